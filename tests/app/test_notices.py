"""Notices in a running mesh: down to everybody, up from whoever hears first, and again after a restart."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tdn_interop.errors import Reason, TdnError
from tdn_interop.identity import TRUST_BUNDLE as CONTEXT
from tdn_interop.identity import Identity
from tdn_interop.transport import trust_wire
from tdn_interop.transport.notices import TRUST_BUNDLE
from tests.app.test_federation import foreign
from tests.interop.forge import refusals, until
from tests.mesh import AIRLINE, HUB_1, HUB_2, TOP, mini_mesh

FEW = ((TOP, "top", True), (HUB_1, "hub", True), (HUB_2, "hub", True), (AIRLINE, "child", True))


@pytest.fixture
async def mesh(tmp_path):
    async with mini_mesh(tmp_path, FEW) as running:
        await until(lambda: all(version(running, node) == 1 for node in running.nodes))
        yield running


def version(mesh, node):
    federation = mesh.nodes[node].mesh.federation
    return federation.signed and federation.bundle.version


def next_bundle(mesh, key=None, number=2):
    """A bundle of the top that nobody has been told yet."""
    top = mesh.nodes[TOP].mesh
    own = top.federation.bundle.own
    made = trust_wire.TrustBundle(TOP, number, 1, (own, foreign("hk")))
    return (key or top.standing.key).sign(CONTEXT, trust_wire.encode_bundle(made))


async def test_what_the_top_says_reaches_everybody(mesh):
    for expected in (2, 3):
        await mesh.nodes[TOP].mesh.federation.add(foreign("hk" if expected == 2 else "sg"))
        await until(lambda v=expected: all(version(mesh, node) == v for node in mesh.nodes))


async def test_what_a_child_hears_first_goes_up_and_to_the_other_hub(mesh):
    assert mesh.nodes[AIRLINE].mesh.notices.offer(TRUST_BUNDLE, next_bundle(mesh))
    await until(lambda: all(version(mesh, node) == 2 for node in mesh.nodes))


async def test_a_forged_notice_is_refused_by_every_neighbour_and_the_next_good_one_counts(mesh):
    forged = next_bundle(mesh, Identity(TOP, Ed25519PrivateKey.generate()), 9)
    hub = mesh.nodes[HUB_1].mesh.notices
    honest = hub._kinds[TRUST_BUNDLE]
    hub._kinds[TRUST_BUNDLE] = type(honest)(lambda _signed: 9, lambda _signed: None)
    hub.offer(TRUST_BUNDLE, forged)
    refused = ("SIGNATURE_INVALID", "TDN-T-IDN-06")
    await until(lambda: all(refusals(mesh.nodes[node]).get(refused) for node in (TOP, AIRLINE)))
    await mesh.nodes[TOP].mesh.federation.add(foreign("hk"))
    await until(lambda: version(mesh, HUB_2) == 2)
    assert version(mesh, AIRLINE) == 1  # its only hub lies


async def test_an_older_bundle_is_not_taken_again(mesh):
    before = mesh.nodes[TOP].mesh.federation.signed
    await mesh.nodes[TOP].mesh.federation.add(foreign("hk"))
    await until(lambda: version(mesh, AIRLINE) == 2)
    assert not mesh.nodes[AIRLINE].mesh.notices.offer(TRUST_BUNDLE, before)
    assert mesh.nodes[AIRLINE].mesh.trust.knows("hk")


async def test_two_bundles_under_one_version(mesh):
    with pytest.raises(TdnError) as caught:
        mesh.nodes[AIRLINE].mesh.notices.offer(TRUST_BUNDLE, next_bundle(mesh, number=1))
    assert caught.value.reason is Reason.EQUIVOCATION


async def test_a_node_that_was_away_hears_what_it_missed(mesh):
    await mesh.stop(AIRLINE)
    await mesh.nodes[TOP].mesh.federation.add(foreign("hk"))
    await mesh.start(AIRLINE)
    await until(lambda: version(mesh, AIRLINE) == 2)


async def test_notices_go_on_when_a_hub_comes_back(mesh):
    await mesh.stop(HUB_1)
    await mesh.start(HUB_1)
    await mesh.nodes[TOP].mesh.federation.add(foreign("hk"))
    await until(lambda: version(mesh, AIRLINE) == 2)
