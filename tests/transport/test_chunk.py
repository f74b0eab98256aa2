import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdn_interop.errors import PeerProtocolError, Reason
from tdn_interop.transport.chunk import Joiner, part
from tdn_interop.transport.frame import FRAME_COST, frame_count, message_cost

C = 10


def split(message, frame_bytes):
    for number in range(frame_count(len(message), frame_bytes)):
        offset = number * frame_bytes
        yield offset, part(message, offset, frame_bytes)


def join(joiner, parts):
    return [joiner.add(*part) for part in parts][-1]


@pytest.mark.parametrize("size", [0, 1, C - 1, C, C + 1, 10 * C])
def test_sizes_around_the_frame(size):
    message = bytes(range(256))[:size]
    parts = [(size, offset, part) for offset, part in split(message, C)]
    assert len(parts) == max(1, -(-size // C))
    assert max(len(part) for _, _, part in parts) <= C
    joiner = Joiner(1000)
    assert all(joiner.add(*part) is None for part in parts[:-1])
    assert joiner.add(*parts[-1]) == message


@given(st.lists(st.binary(max_size=70), max_size=5), st.integers(1, 30))
def test_any_messages_one_after_another(messages, frame_bytes):
    joiner = Joiner(70)
    for message in messages:
        parts = list(split(message, frame_bytes))
        assert join(joiner, [(len(message), *part) for part in parts]) == message
        assert message_cost(len(message), frame_bytes) == len(message) + FRAME_COST * len(parts)


def test_parts_are_views_and_a_whole_message_is_itself():
    message = bytes(25)
    assert next(split(message, 25))[1] is message
    assert all(part.obj is message for _, part in split(message, 10))
    assert Joiner(25).add(25, 0, message) is message


@pytest.mark.parametrize(
    "wrong",
    [
        (31, 10, b"x" * 10),  # another total
        (30, 0, b"x" * 10),  # overlaps
        (30, 9, b"x" * 10),
        (30, 11, b"x" * 10),  # leaves a hole
        (30, 10, b"x" * 21),  # runs over the end
        (30, 2**64 - 5, b"x" * 10),  # wraps around in 64 bits
        (30, 10, b""),  # gets nowhere
        (0, 10, b""),
    ],
)
def test_contradicting_parts_are_refused(wrong):
    joiner = Joiner(100)
    assert joiner.add(30, 0, b"x" * 10) is None
    with pytest.raises(PeerProtocolError) as caught:
        joiner.add(*wrong)
    assert caught.value.reason is Reason.CHUNK_META


@pytest.mark.parametrize("wrong", [(3, 0, b"abcd"), (3, 1, b"bc"), (0, 0, b"a"), (3, 0, b"")])
def test_a_first_part_that_does_not_fit_its_own_total_is_refused(wrong):
    with pytest.raises(PeerProtocolError) as caught:
        Joiner(100).add(*wrong)
    assert caught.value.reason is Reason.CHUNK_META


def test_the_limit_itself_passes_and_one_byte_more_is_refused():
    assert Joiner(100).add(100, 0, bytes(100)) == bytes(100)
    with pytest.raises(PeerProtocolError) as caught:
        Joiner(100).add(101, 0, bytes(100))
    assert caught.value.reason is Reason.TOO_LARGE
    assert caught.value.metadata["limitBytes"] == "100"


def test_a_declared_length_allocates_nothing():
    tracemalloc.start()
    try:
        Joiner(2**62).add(2**62, 0, b"x" * 10)
        with pytest.raises(PeerProtocolError) as caught:
            Joiner(2**62).add(2**63, 0, b"x" * 10)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.reason is Reason.TOO_LARGE
    assert peak < 100_000
