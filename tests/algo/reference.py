"""Curve25519 in plain integers, straight from RFC 7748 and RFC 9380: slow, and independent of the package."""

from __future__ import annotations

import hashlib

P = 2**255 - 19
A = 486662
# u-coordinates of the points of low order on curve and twist (RFC 7748 section 7 refers to them).
LOW_ORDER = (
    0,
    1,
    P - 1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
)


def number(encoded: bytes) -> int:
    return int.from_bytes(encoded, "little")


def encoded(value: int) -> bytes:
    return value.to_bytes(32, "little")


def clamp(scalar: bytes) -> int:
    return number(scalar) & ~7 & (1 << 255) - 1 & ~(1 << 255) | 1 << 254


def multiple(k: int, u: int) -> int:
    """u-coordinate of k times a point with u-coordinate u: the ladder of RFC 7748 section 5, any k."""
    x2, z2, x3, z3 = 1, 0, u, 1
    for bit in reversed(range(k.bit_length())):
        if k >> bit & 1:
            x2, z2, x3, z3 = x3, z3, x2, z2
        da, cb = (x3 - z3) * (x2 + z2) % P, (x3 + z3) * (x2 - z2) % P
        aa, bb = (x2 + z2) ** 2 % P, (x2 - z2) ** 2 % P
        x3, z3 = (da + cb) ** 2 % P, u * (da - cb) ** 2 % P
        x2, z2 = aa * bb % P, (aa - bb) * (aa + 121665 * (aa - bb)) % P
        if k >> bit & 1:
            x2, z2, x3, z3 = x3, z3, x2, z2
    return x2 * pow(z2, P - 2, P) % P


def on_curve(u: int) -> bool:
    return pow(u * (u * u + A * u + 1), (P - 1) // 2, P) in (0, 1)


def elligator2(t: int) -> int:
    u = -A * pow(1 + 2 * t * t, P - 2, P) % P
    return u if on_curve(u) else (-u - A) % P


def expand(message: bytes, dst: bytes, length: int) -> bytes:
    """expand_message_xmd with SHA-256, as the steps of RFC 9380 5.3.1 stand there."""
    dst_prime = dst + bytes([len(dst)])
    b_0 = hashlib.sha256(bytes(64) + message + length.to_bytes(2, "big") + b"\0" + dst_prime).digest()
    blocks = [hashlib.sha256(b_0 + b"\1" + dst_prime).digest()]
    while 32 * len(blocks) < length:
        mixed = bytes(x ^ y for x, y in zip(b_0, blocks[-1], strict=True))
        blocks.append(hashlib.sha256(mixed + bytes([len(blocks) + 1]) + dst_prime).digest())
    return b"".join(blocks)[:length]


def hash_to_point(item: bytes, dst: bytes) -> int:
    return elligator2(int.from_bytes(expand(item, dst, 48), "big") % P)
