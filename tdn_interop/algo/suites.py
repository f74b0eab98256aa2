"""Suites: named parameter sets with a claimed security level and a statement of what they leak.

A suite fixes everything that two parties must share to get the same point from the same item. Its
id and its domain separation tag are permanent: any change of a parameter is a new suite.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tdn_interop.errors import NegotiationFailed, Reason, guard


@dataclass(frozen=True, slots=True)
class Suite:
    """One parameter set; `leakage` holds English and Chinese."""

    id: str
    curve: str
    hash: str  # name as hashlib knows it
    hash_to_point: str
    dst: bytes  # domain separation tag of hash_to_point, at most 255 bytes (RFC 9380 5.3.3)
    point_bytes: int
    security_bits: int
    leakage: tuple[str, str]


X25519_SHA256_ELL2 = Suite(
    id="x25519-sha256-ell2",
    curve="curve25519, u-coordinate only, RFC 7748 ladder with clamped scalar",
    hash="sha256",
    hash_to_point="RFC 9380 encode_to_curve: expand_message_xmd, one Elligator 2 map; the ladder clears the cofactor",
    dst=b"tdn_interop-x25519-sha256-ell2/1",
    point_bytes=32,
    security_bits=126,  # order of the prime subgroup is about 2^252; Pollard rho takes its root
    leakage=(
        "Masked points never show on which side, curve or twist, an item was; only equality shows.",
        "盲化点不会暴露条目位于曲线还是扭曲线；仅泄露相等关系。",
    ),
)

SUITES: Mapping[str, Suite] = MappingProxyType({suite.id: suite for suite in (X25519_SHA256_ELL2,)})


def suite_named(suite_id: str) -> Suite:
    """The suite with this id. Errors: UNSUPPORTED_PARAMS when this product does not have it."""
    suite = SUITES.get(suite_id)
    if suite is None:
        guard("TDN-A-NEG-01").refuse(
            Reason.UNSUPPORTED_PARAMS, f"no suite {suite_id[:64]!r} here", NegotiationFailed
        )
    return suite
