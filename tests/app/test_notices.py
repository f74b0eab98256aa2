"""Notices in a running mesh: down to everybody, up from whoever hears first, and again after a restart."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tdn_interop import identity
from tdn_interop.errors import Reason, guard
from tdn_interop.identity import Identity
from tdn_interop.transport.notices import STATUS_LIST, Notices
from tests.interop.forge import refusals, until
from tests.mesh import AIRLINE, HUB_1, HUB_2, TOP, mini_mesh

FEW = ((TOP, "top", True), (HUB_1, "hub", True), (HUB_2, "hub", True), (AIRLINE, "child", True))
SIGNER = Identity("zz", Ed25519PrivateKey.generate())
KIND = STATUS_LIST


def verify(signed):
    good = identity.verify(identity.STATUS_LIST, signed, SIGNER.public_key)
    guard("TDN-T-IDN-09").check(good, Reason.SIGNATURE_INVALID, "a forged notice")
    return int(signed.statement)


def notice(version, by=SIGNER):
    return by.sign(identity.STATUS_LIST, b"%d" % version)


class Serving(Notices):
    """Also statements of a top that exists only here."""

    def __init__(self, folder):
        super().__init__(folder)
        self.add(KIND, verify)


@pytest.fixture
async def mesh(tmp_path, monkeypatch):
    monkeypatch.setattr("tdn_interop.app.mesh.Notices", Serving)
    async with mini_mesh(tmp_path, FEW) as running:
        yield running


def knows(mesh, node):
    return mesh.nodes[node].mesh.notices.newest(KIND, "zz")


async def test_what_the_top_says_reaches_everybody(mesh):
    for version in (1, 2):
        mesh.nodes[TOP].mesh.notices.offer(KIND, notice(version))
        await until(lambda v=version: all(knows(mesh, node) == notice(v) for node in mesh.nodes))


async def test_what_a_child_hears_first_goes_up_and_to_the_other_hub(mesh):
    mesh.nodes[AIRLINE].mesh.notices.offer(KIND, notice(1))
    await until(lambda: all(knows(mesh, node) == notice(1) for node in mesh.nodes))


async def test_a_forged_notice_is_refused_by_every_neighbour_and_the_next_good_one_counts(mesh):
    forger = Identity("zz", Ed25519PrivateKey.generate())
    hub = mesh.nodes[HUB_1].mesh.notices
    hub._kinds[KIND] = type(hub._kinds[KIND])(lambda _signed: 9, lambda _signed: None)
    hub.offer(KIND, notice(9, forger))
    forged = ("SIGNATURE_INVALID", "TDN-T-IDN-09")
    await until(lambda: all(refusals(mesh.nodes[node]).get(forged) for node in (TOP, AIRLINE)))
    mesh.nodes[TOP].mesh.notices.offer(KIND, notice(1))
    await until(lambda: knows(mesh, HUB_2) == notice(1))
    assert knows(mesh, AIRLINE) is None


async def test_a_node_that_was_away_hears_what_it_missed(mesh):
    mesh.nodes[TOP].mesh.notices.offer(KIND, notice(1))
    await until(lambda: knows(mesh, AIRLINE) == notice(1))
    await mesh.stop(AIRLINE)
    mesh.nodes[TOP].mesh.notices.offer(KIND, notice(2))
    await mesh.start(AIRLINE)
    await until(lambda: knows(mesh, AIRLINE) == notice(2))


async def test_notices_go_on_when_a_hub_comes_back(mesh):
    await mesh.stop(HUB_1)
    await mesh.start(HUB_1)
    mesh.nodes[TOP].mesh.notices.offer(KIND, notice(1))
    await until(lambda: knows(mesh, AIRLINE) == notice(1))
