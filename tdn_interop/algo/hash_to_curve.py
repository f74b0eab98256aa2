"""RFC 9380 section 5: items to uniform bytes to field elements. Knows no curve."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

_LARGEST = 255  # RFC 9380 5.3.1: both the number of blocks and the tag length fit one byte


def expander(dst: bytes, length: int, hash_name: str) -> Callable[[bytes], bytes]:
    """expand_message_xmd of RFC 9380 5.3.1 for one tag and one output length in bytes.

    What does not depend on the message is computed once: with a million items this is most of the
    work. Errors: ValueError for a tag above 255 bytes or a length that needs more than 255 blocks.
    """
    empty = hashlib.new(hash_name)
    blocks = -(-length // empty.digest_size)
    if blocks > _LARGEST or len(dst) > _LARGEST or not 0 < length < 1 << 16:
        raise ValueError(f"expand_message_xmd: tag of {len(dst)} bytes, {length} bytes wanted")
    dst_prime = dst + bytes([len(dst)])
    padded = hashlib.new(hash_name, bytes(empty.block_size))  # Z_pad, absorbed once
    tail = length.to_bytes(2, "big") + b"\0" + dst_prime
    tails = [bytes([i]) + dst_prime for i in range(1, blocks + 1)]
    block: Callable[[bytes], hashlib._Hash] = getattr(hashlib, hash_name)

    def expand(message: bytes) -> bytes:
        first = padded.copy()
        first.update(message + tail)
        b_0 = first.digest()
        b_i = block(b_0 + tails[0]).digest()
        uniform = b_i
        for ending in tails[1:]:
            mixed = int.from_bytes(b_0, "big") ^ int.from_bytes(b_i, "big")
            b_i = block(mixed.to_bytes(len(b_0), "big") + ending).digest()
            uniform += b_i
        return uniform[:length]

    return expand


def hash_to_field(items: Sequence[bytes], dst: bytes, prime: int, hash_name: str, level: int) -> list[int]:
    """One element of GF(prime) per item: hash_to_field of RFC 9380 5.2 with count = 1, m = 1.

    `level` is the security level k in bits; each element comes from ceil((log2 p + k) / 8) bytes,
    so that its bias is below 2^-k.
    """
    length = -(-(prime.bit_length() + level) // 8)
    expand = expander(dst, length, hash_name)
    return [int.from_bytes(expand(item), "big") % prime for item in items]
