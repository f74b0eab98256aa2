"""Algorithm wire: what we encode we decode; whatever comes in is a record or a refusal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdn_interop.algo.handshake import AlgorithmProposal, Choice, Proposal
from tdn_interop.algo.message import KeyBody, PointBatch, SealedBatch, TagBatch, TaskMessage
from tdn_interop.algo.wire import (
    decode_choice,
    decode_message,
    decode_proposal,
    encode_choice,
    encode_message,
    encode_proposal,
)
from tdn_interop.errors import PeerProtocolError

counts = st.integers(0, 5)


@st.composite
def bodies(draw):
    count, width = draw(counts), draw(st.integers(1, 80))
    fill = draw(st.binary(min_size=1, max_size=1))
    return draw(
        st.sampled_from(
            [
                PointBatch(count, fill * 32 * count),
                SealedBatch(count, fill * 32 * count, fill * width * count, width),
                TagBatch(count, fill * 16 * count, fill * width * count, width),
                KeyBody(fill * width),
            ]
        )
    )


words = st.from_regex(r"[a-z][a-z-]{0,31}", fullmatch=True)
ids = st.from_regex(r"[a-z0-9][a-z0-9./_-]{0,63}", fullmatch=True)
uint32 = st.integers(0, 2**32 - 1)
messages = st.builds(
    TaskMessage, st.binary(min_size=32, max_size=32), uint32, words, uint32, st.booleans(), bodies()
)
lists = st.lists(ids, min_size=1, max_size=4, unique=True).map(tuple)
proposals = st.builds(
    Proposal,
    st.text("abc.-", min_size=1, max_size=30),
    st.lists(
        st.builds(AlgorithmProposal, ids, lists, lists),
        min_size=1,
        max_size=3,
        unique_by=lambda e: e.algorithm,
    ).map(tuple),
)
choices = st.builds(Choice, ids, ids, ids)


@given(messages)
def test_messages_round_trip(message):
    assert decode_message(encode_message(message)) == message


@given(proposals)
def test_proposals_round_trip(proposal):
    assert decode_proposal(encode_proposal(proposal)) == proposal


@given(choices)
def test_choices_round_trip(choice):
    assert decode_choice(encode_choice(choice)) == choice


def decode_or_refuse(decode, data):
    try:
        return decode(data)
    except PeerProtocolError:
        return None


@pytest.mark.parametrize("decode", [decode_message, decode_proposal, decode_choice])
@given(data=st.binary(max_size=200))
def test_random_bytes_are_a_record_or_a_refusal(decode, data):
    decode_or_refuse(decode, data)


@given(messages, st.data())
def test_a_mutated_message_is_a_record_or_a_refusal(message, data):
    wire = bytearray(encode_message(message))
    for _ in range(data.draw(st.integers(1, 3))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(wire[: data.draw(st.integers(0, len(wire)))])
    for mutant in (bytes(wire), cut):
        decoded = decode_or_refuse(decode_message, mutant)
        assert decoded is None or decode_message(encode_message(decoded)) == decoded
