"""Kernels: hash and mask many points in one call, behind one interface.

Validation lives here, in front of and behind the ladder, so that no algorithm can forget it. A
kernel call is pure and may run in any thread or process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import nacl.exceptions
import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from nacl.bindings import crypto_scalarmult
from numpy.typing import NDArray

from tdn_interop.algo.curve25519 import P, Points, elligator2, not_canonical
from tdn_interop.algo.hash_to_curve import hash_to_field
from tdn_interop.algo.suites import X25519_SHA256_ELL2, Suite
from tdn_interop.errors import Reason, guard

Scalar = bytes | bytearray
Ladder = Callable[[bytes, Points], bytes]
_LOW_ORDER = bytes(32)  # the ladder's answer to a point of low order, RFC 7748 section 6.1


@dataclass(frozen=True, slots=True)
class Kernel:
    """One way to run one suite. `ladder(scalar, points)` gives n × 32 bytes; a row of zeros marks low order."""

    name: str
    suite: Suite
    ladder: Ladder

    def hash(self, items: Sequence[bytes]) -> Points:
        """Points (n, 32) of the items, by the suite's hash to the curve."""
        suite = self.suite
        return elligator2(hash_to_field(items, suite.dst, P, suite.hash, level=128))

    def mask(self, scalar: Scalar, points: Points) -> Points:
        """Every point times the clamped 32-byte scalar, (n, 32) -> (n, 32).

        Errors: BAD_POINT with the first bad `index`; then no product of the batch is released.
        """
        check_encoding(points)
        products = np.frombuffer(self.ladder(bytes(scalar), points), np.uint8).reshape(-1, 32)
        _refuse((products == 0).all(axis=1), "has low order")
        return products


def check_encoding(points: Points) -> None:
    """Accept (n, 32) uint8 rows that are canonical u-coordinates. Errors: BAD_POINT with the `index`."""
    shaped = points.dtype == np.uint8 and points.ndim == 2 and points.shape[1] == 32
    guard("TDN-A-PSI-06").check(shaped, Reason.BAD_POINT, "points are rows of 32 bytes")
    _refuse(not_canonical(points), "is not canonical")


def _refuse(bad: NDArray[np.bool_], why: str) -> None:
    index = int(bad.argmax()) if bad.any() else -1
    guard("TDN-A-PSI-06").check(index < 0, Reason.BAD_POINT, f"point {index} {why}", index=index)


def _sodium(scalar: bytes, points: Points) -> bytes:
    return b"".join([_sodium_product(scalar, row.tobytes()) for row in points])


def _sodium_product(scalar: bytes, point: bytes) -> bytes:
    try:
        return crypto_scalarmult(scalar, point)
    except nacl.exceptions.RuntimeError:  # its only failure is an all-zero product
        return _LOW_ORDER


def _openssl(scalar: bytes, points: Points) -> bytes:
    key = X25519PrivateKey.from_private_bytes(scalar)
    return b"".join([_openssl_product(key, row.tobytes()) for row in points])


def _openssl_product(key: X25519PrivateKey, point: bytes) -> bytes:
    try:
        return key.exchange(X25519PublicKey.from_public_bytes(point))
    except ValueError:  # its only failure is an all-zero product
        return _LOW_ORDER


# Best first. libsodium releases the interpreter lock during a product, OpenSSL's binding does not.
_KERNELS = {
    X25519_SHA256_ELL2.id: (
        (Kernel("sodium", X25519_SHA256_ELL2, _sodium), "portable; lets other threads run"),
        (Kernel("openssl", X25519_SHA256_ELL2, _openssl), "portable; holds the interpreter lock"),
    ),
}


def kernels(suite: Suite) -> tuple[Kernel, ...]:
    """Every kernel that this machine can run for `suite`, best first."""
    return tuple(kernel for kernel, _ in _KERNELS[suite.id])


def best_kernel(suite: Suite) -> tuple[Kernel, str]:
    """The kernel to use for `suite` on this machine, and the reason, for `tdn node check`."""
    return _KERNELS[suite.id][0]
