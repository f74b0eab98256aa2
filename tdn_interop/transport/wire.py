"""Frame values to and from `tdn.transport.v1` messages.

Decode is validation: every field is checked here for grammar and range, before anything is kept.
Sizes against the negotiated limits are the session's business. Unknown fields, features and
versions are ignored, as proto3 demands of a reader that is older than the writer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tdn_interop import ids
from tdn_interop._pb.tdn.common.v1 import failure_pb2, identity_pb2
from tdn_interop._pb.tdn.transport.v1 import channel_service_pb2, frame_pb2
from tdn_interop.errors import PeerProtocolError, Reason, guard
from tdn_interop.identity import Credentials, Signed
from tdn_interop.transport.frame import (
    Ack,
    Credit,
    Data,
    Failure,
    Frame,
    Goodbye,
    Hello,
    Limits,
    Reset,
    Status,
    TopicPosition,
)

# Bounds of what is not bounded by the negotiated limits. A statement is a few hundred bytes.
_STATEMENT_BYTES = 16 << 10
_LIST = 64
_POSITIONS = 1 << 16
_TEXT = 2_048
_NAME = 200

_fields = guard("TDN-T-ENC-04")


def encode(frame: Frame) -> bytes:
    """An ExchangeRequest or an ExchangeResponse with the frame: both have this one field."""
    if isinstance(frame, Data):
        return _encode_data(frame)
    message = channel_service_pb2.ExchangeRequest()
    _write(frame, message.frame)
    return message.SerializeToString()


def decode(message: frame_pb2.Frame) -> Frame:
    """The frame, checked. Errors: INVALID_REQUEST (PeerProtocolError), naming the field."""
    kind = message.WhichOneof("kind")
    if kind is None:
        _fields.refuse(Reason.INVALID_REQUEST, "a frame of no known kind")
    return _READERS[kind](getattr(message, kind))


def _require(ok: object, field: str) -> None:
    _fields.check(ok, Reason.INVALID_REQUEST, f"bad field: {field}", field=field)


# -- writing -------------------------------------------------------------------------------------


def _encode_data(frame: Data) -> bytes:
    """The payload is copied once. protobuf would copy it three times, as much as encrypting it costs."""
    data = frame_pb2.Data(
        topic=frame.topic, seq=frame.seq, message_bytes=frame.message_bytes, offset=frame.offset
    ).SerializeToString()
    head, size = data + _announce(frame_pb2.Data.PAYLOAD_FIELD_NUMBER, len(frame.payload)), len(frame.payload)
    for field in (frame_pb2.Frame.DATA_FIELD_NUMBER, channel_service_pb2.ExchangeRequest.FRAME_FIELD_NUMBER):
        head = _announce(field, len(head) + size) + head
    return b"".join((head, frame.payload))


def _announce(field: int, size: int) -> bytes:
    """Tag and length of a field below 16 that is a message or bytes (protobuf's encoding, wire type 2)."""
    found = bytearray([field << 3 | 2])
    while size > 0x7F:
        found.append(size & 0x7F | 0x80)
        size >>= 7
    found.append(size)
    return bytes(found)


def _write(frame: Frame, to: frame_pb2.Frame) -> None:
    match frame:
        case Ack(topic, next_seq):
            to.ack.topic, to.ack.next_seq = topic, next_seq
        case Credit(topic, limit_bytes):
            to.credit.topic, to.credit.limit_bytes = topic, limit_bytes
        case Status(ask, positions):
            to.status.ask = ask
            to.status.positions.extend(_position(p) for p in positions)
            to.status.SetInParent()
        case Hello():
            _write_hello(frame, to.hello)
        case Reset(failure):
            to.reset.failure.CopyFrom(failure_to_pb(failure))
        case Goodbye():
            to.goodbye.SetInParent()
        case _:
            raise TypeError(f"no such frame: {type(frame).__name__}")


def _write_hello(hello: Hello, to: frame_pb2.Hello) -> None:
    to.versions.extend(hello.versions)
    to.session_id, to.resume = hello.session_id, hello.resume
    to.credentials.CopyFrom(
        identity_pb2.Credentials(
            record=_signed(hello.credentials.record), delegation=_signed(hello.credentials.delegation)
        )
    )
    limits = hello.limits
    to.limits.frame_bytes, to.limits.message_bytes = limits.frame_bytes, limits.message_bytes
    to.limits.topic_credit_bytes, to.limits.topics = limits.topic_credit_bytes, limits.topics
    to.limits.idle_ms = limits.idle_ms
    to.positions.extend(_position(p) for p in hello.positions)
    to.features.extend(hello.features)


def _position(position: TopicPosition) -> frame_pb2.TopicPosition:
    return frame_pb2.TopicPosition(
        topic=position.topic, next_seq=position.next_seq, credit_bytes=position.credit_bytes
    )


def _signed(signed: Signed) -> identity_pb2.Signed:
    return identity_pb2.Signed(statement=signed.statement, signer=signed.signer, signature=signed.signature)


def failure_to_pb(failure: Failure) -> failure_pb2.Failure:
    """The message, cut to what `failure_from_pb` takes: a long comment must not make a refusal unheard."""
    return failure_pb2.Failure(
        reason=failure.reason.name,
        message=failure.message[:_TEXT],
        noticed_by=failure.noticed_by[:_NAME],
        requirement=failure.requirement[:_LIST],
        metadata={key[:_LIST]: text[:_TEXT] for key, text in list(failure.metadata.items())[:_LIST]},
    )


# -- reading -------------------------------------------------------------------------------------


def _topic(text: str) -> str:
    return ids.topic(text, PeerProtocolError)


def _read_data(pb: frame_pb2.Data) -> Data:
    return Data(_topic(pb.topic), pb.seq, pb.message_bytes, pb.offset, pb.payload)


def _read_hello(pb: frame_pb2.Hello) -> Hello:
    _require(1 <= len(pb.versions) <= _LIST, "versions")
    _require(len(pb.session_id) == 16, "session_id")
    _require(len(pb.features) <= _LIST and all(len(name) <= _LIST for name in pb.features), "features")
    _require(pb.HasField("credentials"), "credentials")
    credentials = Credentials(
        _read_signed(pb.credentials.record, "record"), _read_signed(pb.credentials.delegation, "delegation")
    )
    return Hello(
        tuple(pb.versions), pb.session_id, pb.resume, credentials, _read_limits(pb.limits),
        _read_positions(pb.positions), tuple(pb.features),
    )  # fmt: skip


def _read_limits(pb: frame_pb2.Limits) -> Limits:
    limits = Limits(pb.frame_bytes, pb.message_bytes, pb.topic_credit_bytes, pb.topics, pb.idle_ms)
    limits.check()
    return limits


def _read_signed(pb: identity_pb2.Signed, name: str) -> Signed:
    _require(1 <= len(pb.statement) <= _STATEMENT_BYTES, f"credentials.{name}.statement")
    _require(len(pb.signature) == 64, f"credentials.{name}.signature")
    return Signed(pb.statement, ids.node_id(pb.signer, PeerProtocolError), pb.signature)


def _read_positions(pbs: Iterable[frame_pb2.TopicPosition]) -> tuple[TopicPosition, ...]:
    positions = tuple(TopicPosition(_topic(pb.topic), pb.next_seq, pb.credit_bytes) for pb in pbs)
    _require(len(positions) <= _POSITIONS, "positions")
    _require(len({position.topic for position in positions}) == len(positions), "positions")
    return positions


def failure_from_pb(pb: failure_pb2.Failure) -> Failure:
    """The failure, checked. Errors: INVALID_REQUEST."""
    _require(len(pb.message) <= _TEXT, "failure.message")
    _require(len(pb.metadata) <= _LIST, "failure.metadata")
    for key, text in pb.metadata.items():
        _require(len(key) <= _LIST and len(text) <= _TEXT, "failure.metadata")
    # A newer peer may know more reasons than we do; its words are kept.
    reason = Reason.__members__.get(pb.reason, Reason.INTERNAL)
    _require(len(pb.noticed_by) <= _NAME and len(pb.requirement) <= _LIST, "failure.noticed_by")
    return Failure(reason, pb.message, pb.noticed_by, pb.requirement, dict(pb.metadata))


# Any: each reader takes the message type its name in the oneof stands for.
_READERS: dict[str, Callable[[Any], Frame]] = {
    "hello": _read_hello,
    "data": _read_data,
    "ack": lambda pb: Ack(_topic(pb.topic), pb.next_seq),
    "credit": lambda pb: Credit(_topic(pb.topic), pb.limit_bytes),
    "status": lambda pb: Status(pb.ask, _read_positions(pb.positions)),
    "reset": lambda pb: Reset(failure_from_pb(pb.failure)),
    "goodbye": lambda _: Goodbye(),
}
