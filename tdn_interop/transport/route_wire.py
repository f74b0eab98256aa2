"""Adverts of routes: bytes <-> frozen records. Decode is validation. Errors: INVALID_REQUEST."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import DecodeError

from tdn_interop import ids
from tdn_interop._pb.tdn.transport.v1 import routing_service_pb2 as pb
from tdn_interop.errors import PeerProtocolError, Reason, guard
from tdn_interop.identity import Signed
from tdn_interop.transport import records_wire

# Nodes on a path, its origin and the node that tells it included.
MAX_PATH = 8
# Bytes of one statement on it: two node ids and a digest take less than half of that.
MAX_STATEMENT = 1024


@dataclass(frozen=True, slots=True)
class Origin:
    """The first statement of an advert; times in milliseconds since the epoch."""

    prefix: str
    sequence: int
    issued_at_ms: int
    expires_at_ms: int
    backup: bool


@dataclass(frozen=True, slots=True)
class Hop:
    """What one node on the path states; `origin` only in the first hop, a digest in all others."""

    to: str
    previous_sha256: bytes
    origin: Origin | None


@dataclass(frozen=True, slots=True)
class SignedPath:
    """An advert as it is told: Hop statements from the origin on, and the NodeRecords of their signers."""

    hops: tuple[Signed, ...]
    records: tuple[Signed, ...]


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The advert for `prefix` does not count any more."""

    prefix: str


@dataclass(frozen=True, slots=True)
class Complete:
    """What was told before is the whole table."""


Change = SignedPath | Withdrawn | Complete


def encode_hop(hop: Hop) -> bytes:
    """Serialize."""
    message = pb.AdvertHop(to=hop.to, previous_sha256=hop.previous_sha256)
    if hop.origin:
        o = hop.origin
        message.origin.CopyFrom(pb.AdvertOrigin(
            prefix=o.prefix, sequence=o.sequence, issued_at_ms=o.issued_at_ms, expires_at_ms=o.expires_at_ms,
            backup=o.backup,
        ))  # fmt: skip
    return message.SerializeToString(deterministic=True)


def decode_hop(data: bytes) -> Hop:
    """Parse and check."""
    m = pb.AdvertHop()
    try:
        m.ParseFromString(data)
    except DecodeError:
        guard("TDN-T-ENC-01").refuse(Reason.INVALID_REQUEST, "not an AdvertHop")
    _check(len(m.previous_sha256) in (0, 32), "a digest must have 32 bytes")
    origin = None
    if m.HasField("origin"):
        o = m.origin
        prefix = ids.node_id(o.prefix, PeerProtocolError)
        origin = Origin(prefix, o.sequence, o.issued_at_ms, o.expires_at_ms, o.backup)
    return Hop(ids.node_id(m.to, PeerProtocolError), m.previous_sha256, origin)


def change_to_pb(change: Change) -> pb.RouteChange:
    """To the message."""
    match change:
        case SignedPath(hops, records):
            return pb.RouteChange(
                advert=pb.Advert(
                    hops=[records_wire.signed_to_pb(hop) for hop in hops],
                    records=[records_wire.signed_to_pb(record) for record in records],
                )
            )
        case Withdrawn(prefix):
            return pb.RouteChange(withdrawn=prefix)
        case Complete():
            return pb.RouteChange(complete=True)


def change_from_pb(message: pb.RouteChange) -> Change:
    """From the message."""
    which = message.WhichOneof("change")
    if which == "withdrawn":
        return Withdrawn(ids.node_id(message.withdrawn, PeerProtocolError))
    if which == "complete":
        return Complete()
    advert = message.advert
    _check(0 < len(advert.hops) == len(advert.records) <= MAX_PATH, f"a path has 1 to {MAX_PATH} hops")
    longest = max(len(signed.statement) for signed in (*advert.hops, *advert.records))
    _check(longest <= MAX_STATEMENT, f"a statement of an advert has at most {MAX_STATEMENT} bytes")
    return SignedPath(
        tuple(records_wire.signed_from_pb(hop) for hop in advert.hops),
        tuple(records_wire.signed_from_pb(record) for record in advert.records),
    )


def _check(ok: bool, message: str) -> None:
    guard("TDN-T-ENC-01").check(ok, Reason.INVALID_REQUEST, message)
