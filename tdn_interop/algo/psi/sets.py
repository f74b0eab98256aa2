"""What every intersection needs: shuffling, batches, masking of items, finding the common rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from tdn_interop.algo.curve25519 import Points
from tdn_interop.algo.kernel import Kernel, Scalar
from tdn_interop.algo.message import PointBatch, rows_per_batch
from tdn_interop.errors import Reason, guard

Rows = NDArray[np.uint8]
Indices = NDArray[np.intp]
SHUFFLE_KEY_BYTES = 16


def permutation(keys: bytes) -> Indices:
    """A uniform permutation of range(n): the order of n random keys of SHUFFLE_KEY_BYTES each.

    Two equal keys, which would favour one order, have probability below n^2 / 2^129.
    """
    limbs = np.frombuffer(keys, "<u8").reshape(-1, 2)
    return np.lexsort((limbs[:, 0], limbs[:, 1]))


def shuffle_items(keys: bytes, items: Sequence[bytes]) -> tuple[Indices, list[bytes]]:
    """The permutation of `keys` and the items in that order."""
    order = permutation(keys)
    return order, [items[i] for i in order]


def shuffle_rows(keys: bytes, tags: Sequence[Rows], values: Sequence[Rows]) -> tuple[Rows, Rows]:
    """All tags and, paired with them, all values, joined and in the order of `keys`; at least one part of each."""
    order = permutation(keys)
    return np.concatenate(tags)[order], np.concatenate(values)[order]


def batches(count: int, row_bytes: int) -> Iterator[tuple[int, slice, bool]]:
    """(index, slice, last) of batches below the message limits; no rows make one empty batch."""
    size = rows_per_batch(row_bytes)
    starts = range(0, max(1, count), size)
    for index, start in enumerate(starts):
        yield index, slice(start, start + size), index == len(starts) - 1


def mask_items(kernel: Kernel, scalar: Scalar, items: Sequence[bytes]) -> Points:
    """Masked points (n, point size) of the items."""
    return kernel.mask(scalar, kernel.hash(items))


def point_batch(points: Points) -> PointBatch:
    """Points as a message body."""
    return PointBatch(len(points), points.tobytes())


def join(parts: Sequence[Rows], row_bytes: int) -> Rows:
    """All parts as one array (n, row_bytes), also when there is none."""
    return np.concatenate([np.empty((0, row_bytes), np.uint8), *parts])


def common_rows(left: Rows, right: Rows) -> tuple[Indices, Indices]:
    """Positions in `left` and in `right`, pairwise, of the rows in both; (n, k) and (m, k) uint8.

    Errors: INVALID_REQUEST when a row is repeated: sets were promised, and a repetition would count twice.
    """
    _, at_left, at_right = np.intersect1d(
        _distinct(left), _distinct(right), assume_unique=True, return_indices=True
    )
    return at_left, at_right


def _distinct(rows: Rows) -> NDArray[np.bytes_]:
    keys: NDArray[np.bytes_] = np.ascontiguousarray(rows).view(f"S{rows.shape[1]}").reshape(-1)
    ordered = np.sort(keys)
    guard("TDN-A-PSI-03").check(
        not (ordered[1:] == ordered[:-1]).any(), Reason.INVALID_REQUEST, "a row of a set is repeated"
    )
    return keys
