"""Curve25519 by u-coordinate: encoding rule and the Elligator 2 map.

Points are (n, 32) uint8 arrays, one u-coordinate a row, little-endian (RFC 7748 section 5). Where
RFC 7748 lets a receiver reduce a non-canonical encoding, this profile refuses it: two encodings of
one point would be two elements to a set intersection.
"""

from __future__ import annotations

from collections.abc import Sequence

import gmpy2
import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.uint8]

P = 2**255 - 19
A = 486662
_HALF_TOP = np.uint64(2**63 - 1)
_FULL = np.uint64(2**64 - 1)
_LOW_OF_P = np.uint64(2**64 - 19)
_INVERT_TOGETHER = (
    256  # one inversion costs about as much as 40 multiplications; beyond this nothing is gained
)


def not_canonical(points: Points) -> NDArray[np.bool_]:
    """For each row of an (n, 32) array, whether it encodes u >= p or has its top bit set."""
    limbs = np.ascontiguousarray(points).view("<u8").reshape(-1, 4)
    above = (limbs[:, 3] == _HALF_TOP) & (limbs[:, 2] == _FULL) & (limbs[:, 1] == _FULL)
    flags: NDArray[np.bool_] = (limbs[:, 3] > _HALF_TOP) | (above & (limbs[:, 0] >= _LOW_OF_P))
    return flags


def elligator2(elements: Sequence[int]) -> Points:
    """u-coordinates (n, 32) of map_to_curve_elligator2_curve25519 (RFC 9380 6.7.1, Z = 2).

    Takes field elements below p. The cofactor is not cleared. Runs in variable time: it is meant
    for the caller's own items, out of reach of a peer's clock.
    """
    found: list[bytes] = []
    for start in range(0, len(elements), _INVERT_TOGETHER):
        # 1 + 2 t^2 is never zero: -1/2 is not a square modulo p.
        denominators = [1 + 2 * t * t % P for t in elements[start : start + _INVERT_TOGETHER]]
        found += [_on_curve(-A * inverse % P) for inverse in _inverses(denominators)]
    return np.frombuffer(b"".join(found), np.uint8).reshape(-1, 32)


def _on_curve(u: gmpy2.mpz) -> bytes:
    """`u` or its partner -u - A, whichever has a point on the curve and not on the twist."""
    square = gmpy2.jacobi(u * (u * (u + A) + 1), P) != -1
    return int(u if square else (-u - A) % P).to_bytes(32, "little")


def _inverses(values: Sequence[int]) -> list[gmpy2.mpz]:
    """Inverses modulo p of non-zero values, by one inversion and three multiplications each (Montgomery)."""
    prefix = [gmpy2.mpz(1)]
    for value in values:
        prefix.append(prefix[-1] * value % P)
    running = gmpy2.invert(prefix[-1], P)
    inverses = [prefix[0]] * len(values)
    for i in range(len(values) - 1, -1, -1):
        inverses[i] = running * prefix[i] % P
        running = running * values[i] % P
    return inverses
