"""Bytes to records and back for `tdn.algo.v1`. Decoding is validation: what comes out is well formed.

What needs the suite (row size of points) or the run (stages, order, totals) is checked by the task.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from tdn_interop._pb.tdn.algo.v1 import handshake_pb2, psi_pb2
from tdn_interop.algo.handshake import ID_GRAMMAR, AlgorithmProposal, Choice, Proposal, check_proposal
from tdn_interop.algo.message import (
    DIGEST_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_ROWS,
    TAG_BYTES,
    Body,
    KeyBody,
    PointBatch,
    SealedBatch,
    TagBatch,
    TaskMessage,
)
from tdn_interop.errors import Reason, guard

MAX_HANDSHAKE_BYTES = 256 << 10  # 32 algorithms × 64 values × 66 bytes, and room
MAX_KEY_BYTES = 4096
MAX_VALUE_BYTES = 4096 + 44  # the largest block, a nonce of 12 bytes and two tags of 16
_STAGE = re.compile(r"[a-z][a-z-]{0,31}\Z")

MessageT = TypeVar("MessageT", bound=Message)


def encode_message(message: TaskMessage) -> bytes:
    """Serialized `tdn.algo.v1.TaskMessage`."""
    wire = psi_pb2.TaskMessage(
        agreement=message.agreement,
        epoch=message.epoch,
        stage=message.stage,
        batch_index=message.batch_index,
        last=message.last,
    )
    match message.body:
        case PointBatch(count, points):
            wire.points.CopyFrom(psi_pb2.PointBatch(count=count, points=points))
        case SealedBatch(count, points, sealed, sealed_bytes):
            wire.sealed.CopyFrom(
                psi_pb2.SealedBatch(count=count, points=points, sealed=sealed, sealed_bytes=sealed_bytes)
            )
        case TagBatch(count, tags, values, value_bytes):
            wire.tags.CopyFrom(
                psi_pb2.TagBatch(count=count, tags=tags, values=values, value_bytes=value_bytes)
            )
        case KeyBody(key):
            wire.key.CopyFrom(psi_pb2.KeyBody(key=key))
    return wire.SerializeToString(deterministic=True)


def decode_message(data: bytes) -> TaskMessage:
    """A task message from bytes. Errors: TOO_LARGE, INVALID_REQUEST, COUNT_MISMATCH."""
    wire = _parse(psi_pb2.TaskMessage, data, MAX_MESSAGE_BYTES)
    _valid(len(wire.agreement) == DIGEST_BYTES, "agreement")
    _valid(_STAGE.match(wire.stage), "stage")
    kind = wire.WhichOneof("body")
    decode = _BODIES.get(kind) if kind else None
    if decode is None:
        guard("TDN-A-PSI-05").refuse(Reason.INVALID_REQUEST, "malformed field: body")
    return TaskMessage(wire.agreement, wire.epoch, wire.stage, wire.batch_index, wire.last, decode(wire))


def encode_proposal(proposal: Proposal) -> bytes:
    """Serialized `tdn.algo.v1.Proposal`."""
    entries = [
        handshake_pb2.AlgorithmProposal(algorithm=e.algorithm, suites=e.suites, formats=e.formats)
        for e in proposal.algorithms
    ]
    wire = handshake_pb2.Proposal(party=proposal.party, algorithms=entries)
    return wire.SerializeToString(deterministic=True)


def decode_proposal(data: bytes) -> Proposal:
    """A proposal from bytes. Errors: TOO_LARGE, INVALID_REQUEST."""
    wire = _parse(handshake_pb2.Proposal, data, MAX_HANDSHAKE_BYTES)
    entries = (AlgorithmProposal(e.algorithm, tuple(e.suites), tuple(e.formats)) for e in wire.algorithms)
    proposal = Proposal(wire.party, tuple(entries))
    _valid(1 <= len(wire.party) <= 200, "party")
    check_proposal(proposal)
    return proposal


def encode_choice(choice: Choice) -> bytes:
    """Serialized `tdn.algo.v1.Choice`."""
    wire = handshake_pb2.Choice(algorithm=choice.algorithm, suite=choice.suite, format=choice.format)
    return wire.SerializeToString(deterministic=True)


def decode_choice(data: bytes) -> Choice:
    """A choice from bytes; whether it may be accepted, `check_choice` says. Errors: TOO_LARGE, INVALID_REQUEST."""
    wire = _parse(handshake_pb2.Choice, data, MAX_HANDSHAKE_BYTES)
    for name in ("algorithm", "suite", "format"):
        _valid(ID_GRAMMAR.match(getattr(wire, name)), name)
    return Choice(wire.algorithm, wire.suite, wire.format)


def _parse(kind: type[MessageT], data: bytes, limit: int) -> MessageT:
    guard("TDN-A-PSI-13").check(
        len(data) <= limit, Reason.TOO_LARGE, f"a message of {len(data)} bytes, {limit} allowed"
    )
    try:
        return kind.FromString(data)
    except DecodeError:
        guard("TDN-T-ENC-01").refuse(Reason.INVALID_REQUEST, f"no {kind.DESCRIPTOR.full_name}")


def _valid(ok: object, field: str) -> None:
    guard("TDN-A-PSI-05").check(ok, Reason.INVALID_REQUEST, f"malformed field: {field}", field=field)


def _rows(count: int, rows: bytes, size: int, field: str) -> None:
    guard("TDN-A-PSI-13").check(
        count <= MAX_ROWS, Reason.TOO_LARGE, f"{count} rows in one batch", field=field
    )
    guard("TDN-A-PSI-05").check(
        len(rows) == count * size,
        Reason.COUNT_MISMATCH,
        f"{field}: {len(rows)} bytes for {count} rows of {size}",
        field=field,
    )


def _points(wire: psi_pb2.TaskMessage) -> Body:
    body = wire.points
    _rows(body.count, body.points, _row_size(body.count, body.points), "points")
    return PointBatch(body.count, body.points)


def _sealed(wire: psi_pb2.TaskMessage) -> Body:
    body = wire.sealed
    _valid(1 <= body.sealed_bytes <= MAX_VALUE_BYTES, "sealed_bytes")
    _rows(body.count, body.points, _row_size(body.count, body.points), "points")
    _rows(body.count, body.sealed, body.sealed_bytes, "sealed")
    return SealedBatch(body.count, body.points, body.sealed, body.sealed_bytes)


def _tags(wire: psi_pb2.TaskMessage) -> Body:
    body = wire.tags
    _valid(1 <= body.value_bytes <= MAX_VALUE_BYTES, "value_bytes")
    _rows(body.count, body.tags, TAG_BYTES, "tags")
    _rows(body.count, body.values, body.value_bytes, "values")
    return TagBatch(body.count, body.tags, body.values, body.value_bytes)


def _key(wire: psi_pb2.TaskMessage) -> Body:
    _valid(1 <= len(wire.key.key) <= MAX_KEY_BYTES, "key")
    return KeyBody(wire.key.key)


def _row_size(count: int, rows: bytes) -> int:
    """Size of a row if rows of one size fill the bytes; the task compares it with the suite's."""
    return len(rows) // count if count else 0


_BODIES: dict[str, Callable[[psi_pb2.TaskMessage], Body]] = {
    "points": _points,
    "sealed": _sealed,
    "tags": _tags,
    "key": _key,
}
