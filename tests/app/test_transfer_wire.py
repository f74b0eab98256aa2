"""Words about transfers: what goes out comes back, and what no sender of ours would say is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdn_interop._pb.tdn.app.v1 import transfer_pb2
from tdn_interop.app.files import transfer_wire as wire
from tdn_interop.errors import PeerProtocolError, Reason
from tdn_interop.transport.frame import Failure

NAME, SHA = "0a" * 16, "cd" * 32
WHY = Failure(Reason.ABANDONED, "no more", "a.b.cn")
MESSAGES = [
    wire.Offer(NAME, 1, "files/march", 0),
    wire.Offer(NAME, 7, "t", wire.MAX_FILE),
    wire.Withdrawal(NAME, 1, WHY),
    wire.Accept(NAME, 1, 0),
    wire.Stored(NAME, 1, 1 << 40),
    wire.Done(NAME, 1, SHA),
    wire.Refusal(NAME, 1, WHY),
    wire.Wanted(NAME, 3),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_there_and_back(message):
    assert wire.decode(wire.encode(message)) == message


def pb(**fields):
    return transfer_pb2.TransferMessage(
        **{"transfer_id": bytes(16), "attempt": 1} | fields
    ).SerializeToString()


OFFER = transfer_pb2.FileOffer(topic="t", size_bytes=1)
WRONG = {
    "nothing": (b"", Reason.INVALID_REQUEST),
    "no message": (b"\xff\xff", Reason.INVALID_REQUEST),
    "no kind": (pb(), Reason.INVALID_REQUEST),
    "short id": (pb(transfer_id=bytes(15), offer=OFFER), Reason.INVALID_REQUEST),
    "no attempt": (pb(attempt=0, offer=OFFER), Reason.INVALID_REQUEST),
    "late attempt": (pb(attempt=1 << 31, offer=OFFER), Reason.INVALID_REQUEST),
    "no topic": (pb(offer=transfer_pb2.FileOffer(size_bytes=1)), Reason.INVALID_REQUEST),
    "path": (pb(offer=transfer_pb2.FileOffer(topic="../x")), Reason.INVALID_REQUEST),
    "2^63 bytes": (pb(offer=transfer_pb2.FileOffer(topic="t", size_bytes=1 << 63)), Reason.TOO_LARGE),
    "short digest": (pb(done=transfer_pb2.FileDone(sha256=bytes(31))), Reason.INVALID_REQUEST),
    "long": (pb(offer=OFFER) + bytes(1 << 15), Reason.TOO_LARGE),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_words_are_refused(wrong):
    data, reason = WRONG[wrong]
    with pytest.raises(PeerProtocolError) as error:
        wire.decode(data)
    assert error.value.reason is reason


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(data):
    try:
        message = wire.decode(data)
    except PeerProtocolError:
        return
    assert wire.decode(wire.encode(message)) == message


@given(st.integers(0, 1 << 50), st.binary(min_size=1, max_size=100))
def test_parts(offset, content):
    found, view = wire.decode_part(wire.encode_part(offset, content))
    assert (found, bytes(view)) == (offset, content)


@pytest.mark.parametrize("message", [b"", bytes(7), bytes(8)])
def test_a_part_without_content_is_refused(message):
    with pytest.raises(PeerProtocolError) as error:
        wire.decode_part(message)
    assert error.value.reason is Reason.CHUNK_META


def test_no_topic_is_the_beginning_of_another():
    """What is left of one attempt can be dropped without touching the next."""
    topics = [wire.content_topic(NAME, attempt) for attempt in (1, 10, 100, 2**31 - 1)]
    assert len({len(topic) for topic in topics}) == 1
