import math
from collections import Counter

import numpy as np
import pytest

from tdn_interop.algo.message import MAX_MESSAGE_BYTES, MAX_ROWS, rows_per_batch
from tdn_interop.algo.psi.sets import batches, common_rows, join, permutation
from tdn_interop.errors import PeerProtocolError, Reason
from tests.algo.parties import entropy


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_a_permutation_holds_every_index_once(count):
    order = permutation(entropy(count)(16 * count))
    assert sorted(order.tolist()) == list(range(count))


def test_every_order_of_four_is_equally_likely():
    source, runs = entropy("orders"), 24_000
    seen = Counter(tuple(permutation(source(64)).tolist()) for _ in range(runs))
    assert len(seen) == math.factorial(4)
    chi_square = sum((n - runs / 24) ** 2 / (runs / 24) for n in seen.values())
    assert chi_square < 60  # 23 degrees of freedom: exceeded with probability below 4e-5


def test_both_halves_of_a_key_count():
    high_equal = b"".join(i.to_bytes(8, "little") + bytes(8) for i in (2, 0, 1))
    low_equal = b"".join(bytes(8) + i.to_bytes(8, "little") for i in (2, 0, 1))
    assert permutation(high_equal).tolist() == [1, 2, 0]
    assert permutation(low_equal).tolist() == [1, 2, 0]


def test_batches_cover_everything_once_and_mark_the_last():
    assert list(batches(0, 32)) == [(0, slice(0, MAX_ROWS), True)]
    parts = list(batches(2 * MAX_ROWS + 1, 32))
    assert [index for index, _, _ in parts] == [0, 1, 2]
    assert [last for _, _, last in parts] == [False, False, True]
    covered = [i for _, part, _ in parts for i in range(2 * MAX_ROWS + 1)[part]]
    assert covered == list(range(2 * MAX_ROWS + 1))


@pytest.mark.parametrize("row_bytes", [1, 32, 92, 4156, MAX_MESSAGE_BYTES])
def test_rows_of_every_size_fit_a_message(row_bytes):
    rows = rows_per_batch(row_bytes)
    assert 1 <= rows <= MAX_ROWS
    assert rows == 1 or rows * row_bytes < MAX_MESSAGE_BYTES


def rows(*texts: bytes) -> np.ndarray:
    return np.frombuffer(b"".join(texts), np.uint8).reshape(-1, 4)


def test_common_rows_are_paired_also_with_zero_bytes_at_the_end():
    left = rows(b"aaaa", b"b\0\0\0", b"\0\0\0\0", b"b\0\0\1", b"zzzz")
    right = rows(b"b\0\0\0", b"yyyy", b"aaaa", b"\0\0\0\0")
    at_left, at_right = common_rows(left, right)
    assert sorted(zip(at_left.tolist(), at_right.tolist(), strict=True)) == [(0, 2), (1, 0), (2, 3)]


@pytest.mark.parametrize("repeated", ["left", "right"])
def test_a_repeated_row_is_refused(repeated):
    once, twice = rows(b"aaaa", b"bbbb"), rows(b"cccc", b"aaaa", b"cccc")
    sides = (twice, once) if repeated == "left" else (once, twice)
    with pytest.raises(PeerProtocolError) as caught:
        common_rows(*sides)
    assert caught.value.reason is Reason.INVALID_REQUEST


def test_nothing_joins_to_an_empty_array_of_rows():
    assert join([], 32).shape == (0, 32)
    assert join([rows(b"aaaa"), rows(b"bbbb")], 4).tobytes() == b"aaaabbbb"
