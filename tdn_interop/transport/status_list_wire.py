"""Status lists and revocation orders: bytes <-> frozen records. Decode is validation. Errors: INVALID_REQUEST."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from google.protobuf.message import DecodeError

from tdn_interop import ids
from tdn_interop._pb.tdn.common.v1 import identity_pb2
from tdn_interop._pb.tdn.transport.v1 import status_service_pb2 as pb
from tdn_interop.errors import PeerProtocolError, Reason, guard
from tdn_interop.identity import Signed
from tdn_interop.transport import records_wire

# Bytes of a list: about 15,000 nodes. It goes to every node once a minute.
MAX_LIST = 1 << 20
MAX_REASON = 120


@dataclass(frozen=True, slots=True)
class Revocation:
    """A node that is refused, since when, and why in words for people."""

    node_id: str
    at_ms: int
    reason: str


@dataclass(frozen=True, slots=True)
class StatusList:
    """Who is refused in the tree of `top`, sorted by node id."""

    top: str
    version: int
    issued_at_ms: int
    revoked: tuple[Revocation, ...]


@dataclass(frozen=True, slots=True)
class Order:
    """What a hub asks its top for."""

    node_id: str
    reason: str
    ordered_at_ms: int


def encode_status_list(found: StatusList) -> bytes:
    """Serialize."""
    revoked = (pb.Revocation(node_id=r.node_id, at_ms=r.at_ms, reason=r.reason) for r in found.revoked)
    message = pb.StatusList(
        top=found.top, version=found.version, issued_at_ms=found.issued_at_ms, revoked=revoked
    )
    return message.SerializeToString(deterministic=True)


def version(data: bytes) -> int:
    """The version of a list, of which nothing else is checked."""
    found: int = _parse(data).version
    return found


def decode_status_list(data: bytes) -> StatusList:
    """Parse and check: a top, and nodes below it in order, each one once."""
    m = _parse(data)
    top = ids.node_id(m.top, PeerProtocolError)
    _check(not ids.parent(top), f"{top} is no top")
    _check(m.version > 0 and m.issued_at_ms > 0, "the status list has no version or no time")
    revoked = tuple(
        Revocation(ids.node_id(r.node_id, PeerProtocolError), r.at_ms, reason_text(r.reason))
        for r in m.revoked
    )
    _check(all(ids.is_below(r.node_id, top) for r in revoked), f"the list of {top} names a node of others")
    _check(all(a.node_id < b.node_id for a, b in pairwise(revoked)), "the status list is not in order")
    return StatusList(top, m.version, m.issued_at_ms, revoked)


def signed_list_from_pb(message: identity_pb2.Signed) -> Signed:
    """A signed list, which may be longer than other statements."""
    return records_wire.signed_from_pb(message, MAX_LIST)


def _parse(data: bytes) -> pb.StatusList:
    _check(len(data) <= MAX_LIST, "the status list is too long")
    m = pb.StatusList()
    try:
        m.ParseFromString(data)
    except DecodeError:
        guard("TDN-T-ENC-01").refuse(Reason.INVALID_REQUEST, "not a StatusList")
    return m


def encode_order(order: Order) -> bytes:
    """Serialize."""
    message = pb.RevocationOrder(
        node_id=order.node_id, reason=order.reason, ordered_at_ms=order.ordered_at_ms
    )
    return message.SerializeToString(deterministic=True)


def decode_order(data: bytes) -> Order:
    """Parse and check."""
    m = pb.RevocationOrder()
    try:
        m.ParseFromString(data)
    except DecodeError:
        guard("TDN-T-ENC-01").refuse(Reason.INVALID_REQUEST, "not a RevocationOrder")
    return Order(ids.node_id(m.node_id, PeerProtocolError), reason_text(m.reason), m.ordered_at_ms)


def reason_text(text: str) -> str:
    """`text` if it may stand as the reason of a revocation: one line of at most 120 characters."""
    _check(
        len(text) <= MAX_REASON and text.isprintable(),
        f"the reason is one line of at most {MAX_REASON} characters",
    )
    return text


def _check(ok: bool, message: str) -> None:
    guard("TDN-T-ENC-01").check(ok, Reason.INVALID_REQUEST, message)
