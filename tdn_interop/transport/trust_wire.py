"""Whom a hierarchy trusts, as statements: bytes <-> frozen records. Errors: INVALID_REQUEST."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from tdn_interop import ids
from tdn_interop._pb.tdn.transport.v1 import notice_service_pb2 as pb
from tdn_interop.errors import PeerProtocolError, Reason, guard
from tdn_interop.transport import pki
from tdn_interop.transport.records_wire import MAX_STATEMENT

MAX_TOPS = 64
# While one root follows another there are two; a third would mean that a roll-over began before the last one ended.
MAX_ROOTS = 2


@dataclass(frozen=True, slots=True)
class TrustedTop:
    """A top, the key that signs its records, and its roots in DER form, the newest first."""

    top: str
    identity_key: bytes
    roots: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class TrustBundle:
    """What a top tells everybody below it: whom to trust, itself first."""

    top: str
    version: int
    issued_at_ms: int
    tops: tuple[TrustedTop, ...]

    @property
    def own(self) -> TrustedTop:
        """The entry of the issuing top."""
        return self.tops[0]

    @property
    def roots(self) -> tuple[bytes, ...]:
        """Every root, those of the issuing top first."""
        return tuple(root for top in self.tops for root in top.roots)


def encode_bundle(bundle: TrustBundle) -> bytes:
    """Serialize."""
    return pb.TrustBundle(
        top=bundle.top, version=bundle.version, issued_at_ms=bundle.issued_at_ms,
        tops=[_top_to_pb(top) for top in bundle.tops],
    ).SerializeToString(deterministic=True)  # fmt: skip


def decode_bundle(data: bytes) -> TrustBundle:
    """Parse and check: the issuer comes first, no top twice, each root is constrained to the names of its top."""
    m = pb.TrustBundle()
    _check(len(data) <= MAX_STATEMENT, "a trust bundle is too long")
    try:
        m.ParseFromString(data)
    except DecodeError:
        guard("TDN-T-ENC-01").refuse(Reason.INVALID_REQUEST, "not a trust bundle")
    _check(0 < len(m.tops) <= MAX_TOPS, f"a trust bundle names 1 to {MAX_TOPS} tops")
    tops = tuple(map(_top_from_pb, m.tops))
    _check(tops[0].top == m.top, "a trust bundle begins with another top than its own")
    _check(len({top.top for top in tops}) == len(tops), "a trust bundle names a top twice")
    return TrustBundle(m.top, m.version, m.issued_at_ms, tops)


def _top_to_pb(top: TrustedTop) -> pb.TrustedTop:
    return pb.TrustedTop(top=top.top, identity_key=top.identity_key, roots_der=top.roots)


def _top_from_pb(m: pb.TrustedTop) -> TrustedTop:
    top = ids.node_id(m.top, PeerProtocolError)
    _check(ids.parent(top) == "", f"{top} is no top")
    _check(len(m.identity_key) == 32, "an identity key must have 32 bytes")
    roots: Sequence[bytes] = m.roots_der
    _check(0 < len(roots) <= MAX_ROOTS, f"a top has 1 to {MAX_ROOTS} roots")
    for root in roots:
        pki.read_root(root, top)
    return TrustedTop(top, m.identity_key, tuple(roots))


def _check(ok: bool, message: str) -> None:
    guard("TDN-T-ENC-01").check(ok, Reason.INVALID_REQUEST, message)
