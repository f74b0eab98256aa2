import json
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tdn_interop.algo.kernel import Kernel, best_kernel, kernels
from tdn_interop.algo.suites import SUITES, X25519_SHA256_ELL2, suite_named
from tdn_interop.errors import NegotiationFailed, PeerProtocolError, Reason
from tdn_interop.identity import Identity
from tests.algo import reference
from tests.algo.parties import entropy

VECTORS = Path(__file__).parent.parent / "vectors"
RFC7748 = json.loads((VECTORS / "rfc7748.json").read_text())
RFC8032 = json.loads((VECTORS / "rfc8032.json").read_text())
OWN = json.loads((VECTORS / "x25519-sha256-ell2.json").read_text())
EDGES = [
    2,
    9,
    reference.P - 2,
    (reference.P - 1) // 2,
    (reference.P + 1) // 2,
    2**254,
    2**64,
    2**255 - 20 - 18,
]

every_kernel = pytest.mark.parametrize("kernel", kernels(X25519_SHA256_ELL2), ids=lambda kernel: kernel.name)


def rows(*points: bytes) -> np.ndarray:
    return np.frombuffer(b"".join(points), np.uint8).reshape(-1, 32)


def product(kernel: Kernel, scalar: str, point: str) -> str:
    return kernel.mask(bytes.fromhex(scalar), rows(bytes.fromhex(point))).tobytes().hex()


@every_kernel
def test_rfc7748_single_products(kernel):
    for case in RFC7748["single"]:
        point = bytearray.fromhex(case["u"])
        point[31] &= 0x7F  # the RFC ignores this bit, our profile refuses it; see below
        assert product(kernel, case["scalar"], point.hex()) == case["product"]


@every_kernel
def test_the_second_rfc7748_input_is_not_canonical_here(kernel):
    case = RFC7748["single"][1]
    with pytest.raises(PeerProtocolError) as caught:
        product(kernel, case["scalar"], case["u"])
    assert caught.value.reason is Reason.BAD_POINT


@every_kernel
def test_rfc7748_iterated(kernel):
    k = u = RFC7748["iterated"]["start"]
    for count in range(1, 1001):
        k, u = product(kernel, k, u), k
        if count == 1:
            assert k == RFC7748["iterated"]["after_1"]
    assert k == RFC7748["iterated"]["after_1000"]


@every_kernel
def test_rfc7748_diffie_hellman(kernel):
    dh, base = RFC7748["diffie_hellman"], "09" + "00" * 31
    assert product(kernel, dh["alice"], base) == dh["alice_public"]
    assert product(kernel, dh["bob"], base) == dh["bob_public"]
    assert product(kernel, dh["alice"], dh["bob_public"]) == dh["shared"]
    assert product(kernel, dh["bob"], dh["alice_public"]) == dh["shared"]


def test_rfc8032_signatures_as_the_identity_key_makes_them():
    for case in RFC8032["cases"]:
        key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(case["seed"]))
        assert Identity("bank-a.cn", key).public_key.hex() == case["public"]
        assert key.sign(bytes.fromhex(case["message"])).hex() == case["signature"]


@every_kernel
def test_edge_points_equal_the_reference(kernel):
    scalars = [bytes(32), b"\xff" * 32, *(entropy(i)(32) for i in range(4))]
    for scalar in scalars:
        masked = kernel.mask(scalar, rows(*map(reference.encoded, EDGES)))
        expected = [reference.multiple(reference.clamp(scalar), u) for u in EDGES]
        assert [reference.number(row.tobytes()) for row in masked] == expected


def test_kernels_agree_on_random_points():
    points = rows(*(reference.encoded(reference.number(entropy(i)(32)) % reference.P) for i in range(300)))
    scalar = entropy("scalar")(32)
    first, *others = [kernel.mask(scalar, points).tobytes() for kernel in kernels(X25519_SHA256_ELL2)]
    assert others
    assert all(other == first for other in others)


@every_kernel
@pytest.mark.parametrize("position", [0, 7, 15])
@pytest.mark.parametrize(
    "bad",
    [
        *map(reference.encoded, reference.LOW_ORDER),
        reference.encoded(reference.P),
        reference.encoded(reference.P + 9),
        reference.encoded(2**255 - 1),
        reference.encoded(2**255 + 9),
        b"\xff" * 32,
    ],
    ids=lambda point: point[:3].hex() + point[-1:].hex(),
)
def test_a_bad_point_is_refused_at_every_position(kernel, bad, position):
    good = [reference.encoded(9 + i) for i in range(16)]
    assert len(kernel.mask(b"\7" * 32, rows(*good))) == 16
    with pytest.raises(PeerProtocolError) as caught:
        kernel.mask(b"\7" * 32, rows(*good[:position], bad, *good[position + 1 :]))
    assert caught.value.reason is Reason.BAD_POINT
    assert caught.value.metadata == {"index": str(position)}
    assert caught.value.requirement == "TDN-A-PSI-06"


@every_kernel
@pytest.mark.parametrize(
    "points",
    [
        np.zeros((2, 31), np.uint8),
        np.zeros(64, np.uint8),
        np.ones((2, 32), np.int8),
        np.ones((1, 2, 32), np.uint8),
    ],
    ids=["short rows", "flat", "signed", "nested"],
)
def test_a_wrong_shape_or_type_is_refused(kernel, points):
    with pytest.raises(PeerProtocolError) as caught:
        kernel.mask(bytes(32), points)
    assert caught.value.reason is Reason.BAD_POINT


@every_kernel
def test_points_that_are_not_contiguous_are_masked_as_they_read(kernel):
    points = rows(*(reference.encoded(9 + i) for i in range(8)))
    assert kernel.mask(b"\7" * 32, points[::2]).tobytes() == kernel.mask(b"\7" * 32, points)[::2].tobytes()


@every_kernel
def test_no_items_make_no_points(kernel):
    assert kernel.mask(bytes(32), kernel.hash([])).shape == (0, 32)


@every_kernel
def test_known_answers_of_our_suite(kernel):
    items = [bytes.fromhex(case["item"]) for case in OWN["points"]]
    a, b = (bytes.fromhex(OWN[name]) for name in ("scalar_a", "scalar_b"))
    hashed = kernel.hash(items)
    once = kernel.mask(a, hashed)
    twice = kernel.mask(b, once)
    assert [row.tobytes().hex() for row in hashed] == [case["point"] for case in OWN["points"]]
    assert [row.tobytes().hex() for row in once] == [case["masked_a"] for case in OWN["points"]]
    assert [row.tobytes().hex() for row in twice] == [case["masked_ab"] for case in OWN["points"]]
    assert kernel.mask(a, kernel.mask(b, hashed)).tobytes() == twice.tobytes()


def test_known_answers_of_our_suite_follow_from_the_reference():
    a, b = (reference.clamp(bytes.fromhex(OWN[name])) for name in ("scalar_a", "scalar_b"))
    for case in OWN["points"]:
        point = reference.hash_to_point(bytes.fromhex(case["item"]), OWN["dst"].encode())
        once = reference.multiple(a, point)
        assert reference.encoded(point).hex() == case["point"]
        assert reference.encoded(once).hex() == case["masked_a"]
        assert reference.encoded(reference.multiple(b, once)).hex() == case["masked_ab"]


@every_kernel
def test_points_that_our_suite_refuses(kernel):
    for point in OWN["refused"]:
        with pytest.raises(PeerProtocolError):
            kernel.mask(b"\7" * 32, rows(bytes.fromhex(point)))


def test_the_suite_of_the_vectors_is_the_suite_in_use():
    assert suite_named(OWN["suite"]).dst == OWN["dst"].encode()


def test_the_best_kernel_is_one_of_the_kernels_and_says_why():
    for suite in SUITES.values():
        kernel, why = best_kernel(suite)
        assert kernel is kernels(suite)[0]
        assert kernel.suite is suite
        assert why


def test_an_unknown_suite_is_refused():
    with pytest.raises(NegotiationFailed) as caught:
        suite_named("rot13")
    assert caught.value.reason is Reason.UNSUPPORTED_PARAMS
