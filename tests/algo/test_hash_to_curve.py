import json
from pathlib import Path

import pytest

from tdn_interop.algo.curve25519 import P, elligator2
from tdn_interop.algo.hash_to_curve import expander, hash_to_field
from tests.algo import reference

VECTORS = Path(__file__).parent.parent / "vectors"
EXPAND = json.loads((VECTORS / "rfc9380_expand_message_xmd.json").read_text())
ELL2 = json.loads((VECTORS / "rfc9380_curve25519_ell2_nu.json").read_text())


@pytest.mark.parametrize("case", EXPAND["cases"], ids=lambda case: f"{len(case['message'])}-{case['length']}")
def test_expand_message_xmd_matches_appendix_k(case):
    expand = expander(EXPAND["dst"].encode(), case["length"], EXPAND["hash"])
    assert expand(case["message"].encode()).hex() == case["uniform_bytes"]


def test_hash_to_field_and_map_match_appendix_j():
    cases = ELL2["cases"]
    messages = [case["message"].encode() for case in cases]
    elements = hash_to_field(messages, ELL2["dst"].encode(), P, ELL2["hash"], level=128)
    assert [f"{u:064x}" for u in elements] == [case["u"] for case in cases]
    points = [row.tobytes()[::-1].hex() for row in elligator2(elements)]
    assert points == [case["Q_x"] for case in cases]


def test_the_cofactor_multiple_of_the_mapped_point_matches_appendix_j():
    for case in ELL2["cases"]:
        assert reference.multiple(8, int(case["Q_x"], 16)) == int(case["P_x"], 16)


@pytest.mark.parametrize("count", [0, 1, 2, 255, 256, 257, 600])
def test_the_batch_map_equals_the_map_of_one(count):
    elements = [(i * 0x9E3779B97F4A7C15) ** 4 % P for i in range(count)]
    expected = [reference.encoded(reference.elligator2(t)) for t in elements]
    assert [row.tobytes() for row in elligator2(elements)] == expected


def test_mapped_points_lie_on_the_curve_and_the_sides_are_both_used():
    elements = list(range(200))
    first_candidates = [-reference.A * pow(1 + 2 * t * t, -1, P) % P for t in elements]
    points = [reference.number(row.tobytes()) for row in elligator2(elements)]
    assert all(reference.on_curve(u) for u in points)
    kept = sum(u == first for u, first in zip(points, first_candidates, strict=True))
    assert 60 < kept < 140  # else one branch of the map is dead


@pytest.mark.parametrize(("dst", "length"), [(b"x" * 256, 48), (b"x", 255 * 32 + 1), (b"x", 0)])
def test_expand_refuses_what_the_rfc_refuses(dst, length):
    with pytest.raises(ValueError, match="expand_message_xmd"):
        expander(dst, length, "sha256")
