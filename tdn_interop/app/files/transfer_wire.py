"""What sender and receiver of a file tell each other: bytes <-> frozen records.

Errors of everything that decodes: INVALID_REQUEST, TOO_LARGE, CHUNK_META (PeerProtocolError).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from tdn_interop import ids
from tdn_interop._pb.tdn.app.v1 import transfer_pb2
from tdn_interop.errors import PeerProtocolError, Reason, guard
from tdn_interop.transport import wire
from tdn_interop.transport.frame import Failure

TOPIC = "files"
CONTENT = "file"
ID_BYTES = 16
MAX_FILE = 1 << 50
OFFSET_BYTES = 8
# A failure has at most a few texts; everything else is numbers and names.
_MAX_MESSAGE = 16 << 10
_MAX_ATTEMPT = (1 << 31) - 1

_fields = guard("TDN-T-ENC-04")
_parts = guard("TDN-T-CHK-02")


@dataclass(frozen=True, slots=True)
class Offer:
    """Sender: here is a file of `size_bytes` for whoever receives on `topic`, or the rest of it."""

    transfer_id: str
    attempt: int
    topic: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """Sender: there will be no more of it."""

    transfer_id: str
    attempt: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class Accept:
    """Receiver: begin at `offset`; so much is on record."""

    transfer_id: str
    attempt: int
    offset: int


@dataclass(frozen=True, slots=True)
class Stored:
    """Receiver: everything below `offset` is on the disk and on record."""

    transfer_id: str
    attempt: int
    offset: int


@dataclass(frozen=True, slots=True)
class Done:
    """Receiver: the file is here, whole; `sha256` is hexadecimal."""

    transfer_id: str
    attempt: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Receiver: the file is refused or given up."""

    transfer_id: str
    attempt: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class Wanted:
    """Receiver: `attempt` is lost here, offer again."""

    transfer_id: str
    attempt: int


Message = Offer | Withdrawal | Accept | Stored | Done | Refusal | Wanted
Answer = Accept | Stored | Done | Refusal | Wanted
"""What a receiver says."""


def encode(message: Message) -> bytes:
    """Serialize for the topic `files`."""
    m = transfer_pb2.TransferMessage(transfer_id=bytes.fromhex(message.transfer_id), attempt=message.attempt)
    match message:
        case Offer():
            m.offer.topic, m.offer.size_bytes = message.topic, message.size_bytes
        case Withdrawal():
            m.withdrawal.failure.CopyFrom(wire.failure_to_pb(message.failure))
        case Accept():
            m.accept.offset = message.offset
        case Stored():
            m.stored.offset = message.offset
        case Done():
            m.done.sha256 = bytes.fromhex(message.sha256)
        case Refusal():
            m.refusal.failure.CopyFrom(wire.failure_to_pb(message.failure))
        case Wanted():
            m.wanted.SetInParent()
    return m.SerializeToString()


def decode(data: bytes) -> Message:
    """Parse and check what came on the topic `files`."""
    _fields.check(
        len(data) <= _MAX_MESSAGE, Reason.TOO_LARGE, f"a message of {len(data)} bytes about a transfer"
    )
    m = transfer_pb2.TransferMessage()
    try:
        m.ParseFromString(data)
    except DecodeError:
        _fields.refuse(Reason.INVALID_REQUEST, "a message about a transfer cannot be decoded")
    _require(len(m.transfer_id) == ID_BYTES, "transfer_id")
    _require(1 <= m.attempt <= _MAX_ATTEMPT, "attempt")
    kind = m.WhichOneof("body")
    if kind is None:
        _fields.refuse(Reason.INVALID_REQUEST, "a message about a transfer is of no known kind")
    return _READERS[kind](m.transfer_id.hex(), m.attempt, getattr(m, kind))


def content_topic(transfer_id: str, attempt: int) -> str:
    """The topic that carries the content in one attempt."""
    return f"{CONTENT}/{transfer_id}/{attempt:010d}"  # one is never the beginning of another


def encode_part(offset: int, content: bytes) -> bytes:
    """The message that carries `content`, which begins at `offset` of the file."""
    return offset.to_bytes(OFFSET_BYTES, "big") + content


def decode_part(message: bytes) -> tuple[int, memoryview]:
    """(offset, content) of a message with content; the content is not copied. Errors: CHUNK_META."""
    _parts.check(len(message) > OFFSET_BYTES, Reason.CHUNK_META, f"a part of {len(message)} bytes")
    return int.from_bytes(message[:OFFSET_BYTES], "big"), memoryview(message)[OFFSET_BYTES:]


def _require(ok: object, field: str) -> None:
    _fields.check(ok, Reason.INVALID_REQUEST, f"bad field: {field}", field=field)


# Any: each reader takes the message type its name in the oneof stands for.
def _read_offer(transfer_id: str, attempt: int, m: Any) -> Offer:
    _parts.check(
        m.size_bytes <= MAX_FILE, Reason.TOO_LARGE, f"a file of {m.size_bytes} bytes, the limit is {MAX_FILE}"
    )
    return Offer(transfer_id, attempt, ids.topic(m.topic, PeerProtocolError), m.size_bytes)


def _read_done(transfer_id: str, attempt: int, m: Any) -> Done:
    _require(len(m.sha256) == 32, "done.sha256")
    return Done(transfer_id, attempt, m.sha256.hex())


_READERS: dict[str, Callable[[str, int, Any], Message]] = {
    "offer": _read_offer,
    "withdrawal": lambda name, attempt, m: Withdrawal(name, attempt, wire.failure_from_pb(m.failure)),
    "accept": lambda name, attempt, m: Accept(name, attempt, m.offset),
    "stored": lambda name, attempt, m: Stored(name, attempt, m.offset),
    "done": _read_done,
    "refusal": lambda name, attempt, m: Refusal(name, attempt, wire.failure_from_pb(m.failure)),
    "wanted": lambda name, attempt, _: Wanted(name, attempt),
}
