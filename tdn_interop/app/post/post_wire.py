"""Messages of the topic `post`: bytes <-> frozen records. Errors: INVALID_REQUEST, TOO_LARGE."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import DecodeError

from tdn_interop._pb.tdn.app.v1 import post_pb2
from tdn_interop.errors import Reason, guard

MAX_BODY = 1 << 20
MAX_NUMBER = (1 << 62) - 1
STREAM_BYTES = 16
MAX_MESSAGE = MAX_BODY + 256


@dataclass(frozen=True, slots=True)
class WireParcel:
    """A parcel on its way: nothing is owed from `after` up to `number`; the sender gives up at `expires_at_ms`."""

    stream_id: bytes
    number: int
    after: int
    body: bytes
    expires_at_ms: int


@dataclass(frozen=True, slots=True)
class WireReceipt:
    """Everything of the stream below `next_number` is stored durably."""

    stream_id: bytes
    next_number: int


def encode(message: WireParcel | WireReceipt) -> bytes:
    """Serialize."""
    m = post_pb2.PostMessage()
    if isinstance(message, WireParcel):
        m.parcel.stream_id, m.parcel.number, m.parcel.after = message.stream_id, message.number, message.after
        m.parcel.body, m.parcel.expires_at_ms = message.body, message.expires_at_ms
    else:
        m.receipt.stream_id, m.receipt.next_number = message.stream_id, message.next_number
    return m.SerializeToString()


def decode(data: bytes) -> WireParcel | WireReceipt:
    """Parse and check."""
    guard("TDN-T-LIM-01").check(
        len(data) <= MAX_MESSAGE, Reason.TOO_LARGE, f"a message of the post has {len(data)} bytes"
    )
    m = post_pb2.PostMessage()
    try:
        m.ParseFromString(data)
    except DecodeError:
        guard("TDN-T-ENC-01").refuse(Reason.INVALID_REQUEST, "not a PostMessage")
    kind = m.WhichOneof("body")
    if kind == "parcel":
        return _parcel(m.parcel)
    _check(kind == "receipt", "the message of the post has no known kind")
    receipt = m.receipt
    _check(len(receipt.stream_id) == STREAM_BYTES, "a stream id must have 16 bytes")
    _check(receipt.next_number <= MAX_NUMBER, "the number is too large")
    return WireReceipt(receipt.stream_id, receipt.next_number)


def _parcel(m: post_pb2.PostParcel) -> WireParcel:
    _check(len(m.stream_id) == STREAM_BYTES, "a stream id must have 16 bytes")
    _check(m.after <= m.number < MAX_NUMBER, "the numbers of a parcel do not fit together")
    _check(0 < m.expires_at_ms <= MAX_NUMBER, "a parcel must have an end of its validity")
    guard("TDN-T-LIM-01").check(
        len(m.body) <= MAX_BODY,
        Reason.TOO_LARGE,
        f"a parcel holds {len(m.body)} bytes, {MAX_BODY} are allowed",
    )
    return WireParcel(m.stream_id, m.number, m.after, m.body, m.expires_at_ms)


def _check(ok: object, message: str) -> None:
    guard("TDN-T-ENC-01").check(ok, Reason.INVALID_REQUEST, message)
