"""Merkle trees of RFC 9162 section 2.1 over SHA-256: roots, proofs and their verification. Pure.

Hashes are 32 bytes. An interior node is written `(level, i)`: the complete subtree over the leaves
`i * 2**level` up to, not including, `(i + 1) * 2**level`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(leaf: bytes) -> bytes:
    """Hash of a leaf; the prefix keeps leaves and interior nodes apart (RFC 9162 section 2.1.1)."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an interior node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Tree:
    """An append-only tree that keeps the hash of every complete subtree: 64 bytes a leaf.

    `append` costs two hashes on average; roots and proofs, also of older sizes, read and hash O(log n) nodes.
    """

    def __init__(self) -> None:
        self._levels: list[bytearray] = [bytearray()]

    @property
    def size(self) -> int:
        """Number of leaves."""
        return len(self._levels[0]) // HASH_BYTES

    def append(self, leaf: bytes) -> None:
        """Add a leaf, given by its leaf hash."""
        node = leaf
        for level in range(len(self._levels) + 1):
            if level == len(self._levels):
                self._levels.append(bytearray())
            row = self._levels[level]
            row += node
            if len(row) // HASH_BYTES % 2:
                return
            node = node_hash(bytes(row[-2 * HASH_BYTES : -HASH_BYTES]), node)

    def truncate(self, size: int) -> None:
        """Forget the leaves from `size` on; nothing happens when there are none."""
        for level, row in enumerate(self._levels):
            del row[(size >> level) * HASH_BYTES :]

    def root(self, size: int) -> bytes:
        """Root of the first `size` leaves."""
        return self._range(0, self._known(size)) if size else EMPTY_ROOT

    def inclusion(self, index: int, size: int) -> tuple[bytes, ...]:
        """Inclusion path of leaf `index` in the first `size` leaves, leaf to root (section 2.1.3.1)."""
        if not 0 <= index < self._known(size):
            raise IndexError(f"leaf {index} of {size}")
        path, start, stop = [], 0, size
        while stop - start > 1:
            middle = start + _split(stop - start)
            if index < middle:
                path.append(self._range(middle, stop))
                stop = middle
            else:
                path.append(self._range(start, middle))
                start = middle
        return tuple(reversed(path))

    def consistency(self, first: int, second: int) -> tuple[bytes, ...]:
        """Proof that the first `first` leaves are a prefix of the first `second` (section 2.1.4.1)."""
        if not 0 <= first <= self._known(second):
            raise IndexError(f"size {first} of {second}")
        if first in {0, second}:
            return ()
        path, start, stop = [], 0, second
        while first < stop:
            middle = start + _split(stop - start)
            if first <= middle:
                path.append(self._range(middle, stop))
                stop = middle
            else:
                path.append(self._range(start, middle))
                start = middle
        # The verifier knows the old root; a subtree that is not the whole old tree has to be given.
        return tuple(reversed(path if start == 0 else [*path, self._range(start, stop)]))

    def _known(self, size: int) -> int:
        if not 0 <= size <= self.size:
            raise IndexError(f"size {size} of a tree of {self.size}")
        return size

    def _range(self, start: int, stop: int) -> bytes:
        """Hash over the leaves `start` to `stop`; `start` is aligned to the subtrees that this needs."""
        width = stop - start
        if width & (width - 1) == 0:
            level = width.bit_length() - 1
            at = (start >> level) * HASH_BYTES
            return bytes(self._levels[level][at : at + HASH_BYTES])
        middle = start + _split(width)
        return node_hash(self._range(start, middle), self._range(middle, stop))


def root_of(leaves: Sequence[bytes]) -> bytes:
    """Root over leaves (not hashes), by the definition of section 2.1.1."""
    if not leaves:
        return EMPTY_ROOT
    if len(leaves) == 1:
        return leaf_hash(leaves[0])
    middle = _split(len(leaves))
    return node_hash(root_of(leaves[:middle]), root_of(leaves[middle:]))


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """True when `path` proves the leaf hash `leaf` at `index` of a tree of `size` (section 2.1.3.2)."""
    if not 0 <= index < size or any(len(p) != HASH_BYTES for p in (leaf, *path)):
        return False
    fn, sn, r = index, size - 1, leaf
    for p in path:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            r = node_hash(p, r)
            fn, sn = _to_odd(fn, sn)
        else:
            r = node_hash(r, p)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and r == root


def verify_consistency(first: int, second: int, old: bytes, new: bytes, path: Sequence[bytes]) -> bool:
    """True when `path` proves that the tree (`first`, `old`) is a prefix of (`second`, `new`) (section 2.1.4.2)."""
    if not 0 <= first <= second or any(len(p) != HASH_BYTES for p in path):
        return False
    if first in {0, second}:  # nothing to prove: an empty tree is a prefix of every tree
        return not path and old == (EMPTY_ROOT if first == 0 else new) and (second > 0 or new == EMPTY_ROOT)
    nodes = [old, *path] if first & (first - 1) == 0 else list(path)
    if not nodes:
        return False
    fn, sn = first - 1, second - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = nodes[0]
    for c in nodes[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            fr, sr = node_hash(c, fr), node_hash(c, sr)
            fn, sn = _to_odd(fn, sn)
        else:
            sr = node_hash(sr, c)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and fr == old and sr == new


def _split(width: int) -> int:
    """The largest power of two below `width` (at least 2)."""
    return 1 << ((width - 1).bit_length() - 1)


def _to_odd(fn: int, sn: int) -> tuple[int, int]:
    """Climb to the next level at which the node is a right child."""
    while fn and not fn & 1:
        fn, sn = fn >> 1, sn >> 1
    return fn, sn
