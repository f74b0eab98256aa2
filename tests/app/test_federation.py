"""Two hierarchies that trust each other: from both sides, each for its own tree only, and no longer than agreed."""

import asyncio
import base64
import contextlib
import dataclasses
import datetime as dt

import pytest

from tdn_interop import identity
from tdn_interop.app.data.table import CsvFormat
from tdn_interop.app.evidence.bundle import verify
from tdn_interop.app.members.federation import Federation, facts, federate, read_card, trusted_keys
from tdn_interop.app.members.standing import Standing
from tdn_interop.errors import ConfigError, Reason, TdnError
from tdn_interop.transport import pki, trust_wire
from tdn_interop.transport.notices import TRUST_BUNDLE
from tdn_interop.transport.trust import now_ms
from tdn_interop.transport.trust_wire import TrustBundle, TrustedTop
from tests.interop.forge import refusals, until
from tests.mesh import Mesh

CN, HK = "cn", "hk"
BANK, CLINIC = "bank.cn", "clinic.hk"


@pytest.fixture
async def mesh(tmp_path):
    """Two tops with a child each; the children know each other's address, so no relay is in between."""
    mesh = Mesh(tmp_path)
    try:
        for top in (CN, HK):
            await mesh.enrol(top, "top", listens=True)
        yield mesh
    finally:
        for node in reversed(list(mesh.stacks)):
            await mesh.stop(node)


async def children(mesh):
    await mesh.start(CN)
    await mesh.start(HK)
    bank = await mesh.enrol(BANK, "child", listens=True)
    clinic = await mesh.enrol(CLINIC, "child", listens=True)
    for one, other in ((bank, clinic), (clinic, bank)):
        file = one.dir / "node.toml"
        file.write_text(file.read_text() + f'\n[direct]\n"{other.id}" = "{other.listen}"\n')
        await mesh.start(one.id)


def linked(mesh):
    """A link between the tops, for routes and notices; tunnels are not needed here."""
    cn, hk = (mesh.config(top).dir / "node.toml" for top in (CN, HK))
    cn.write_text(cn.read_text() + f'\n[[links]]\nnode = "{HK}"\naddress = "{mesh.config(HK).listen}"\n')
    hk.write_text(f'neighbours = ["{CN}"]\n' + hk.read_text())


def node(mesh, name):
    return mesh.nodes[name].mesh


async def met(mesh, *, version):
    """Every node has the bundle of its top in at least this version."""
    await until(
        lambda: all(
            n.mesh.federation.signed and n.mesh.federation.bundle.version >= version
            for n in mesh.nodes.values()
        )
    )


async def test_tops_that_were_federated_before_they_started(mesh):
    await federate(mesh.config(CN), mesh.config(HK))
    await children(mesh)
    await met(mesh, version=2)
    assert node(mesh, BANK).trust.tops == [CN, HK]
    await node(mesh, BANK).pings.ping(CLINIC, 10)
    await node(mesh, CLINIC).pings.ping(BANK, 10)
    for here, other in ((CN, HK), (HK, CN)):
        [(_, event)] = await node(mesh, here)._evidence.about(other)
        assert event.kind == "top.federated"
        assert event.facts == facts(node(mesh, other).federation.bundle.own)


async def test_a_job_across_hierarchies_and_its_evidence(mesh):
    await federate(mesh.config(CN), mesh.config(HK))
    linked(mesh)
    await children(mesh)
    await met(mesh, version=2)
    await until(lambda: node(mesh, CN).adjacency.links[HK].is_linked)
    for name, keys in ((BANK, range(40)), (CLINIC, range(30, 60))):
        file = mesh.folder / name / "keys.csv"
        file.write_text("".join(f"{line}\n" for line in ["id", *(f"k{key}" for key in keys)]))
        await mesh.nodes[name].resources.register("people", file, CsvFormat(), ["id"])
    inputs = ", ".join(f'{{party = "{name}", resource = "people", keys = ["id"]}}' for name in (BANK, CLINIC))
    jobs = mesh.nodes[BANK].jobs
    job = await jobs.run(
        f"""name = "overlap"\nparties = ["{BANK}", "{CLINIC}"]\n[[tasks]]\nname = "psi"\nalgorithm = "psi"
        receivers = ["{BANK}"]\ninputs = [{inputs}]\noutput = {{path = "common.csv"}}"""
    )
    async for row in jobs.watch(job):
        last = row
    assert last.state == "SUCCEEDED", last.failure
    assert (mesh.folder / BANK / "results" / "common.csv").read_text().split() == [
        "id", *(f"k{key}" for key in range(30, 40)),
    ]  # fmt: skip
    bundle = await jobs.bundle(job)
    keys = {top: node(mesh, top).standing.key.public_key for top in (CN, HK)}
    assert verify(bundle, *keys.values()).tops == keys
    assert set(trusted_keys(mesh.config(CLINIC))) == set(keys.values())
    with pytest.raises(TdnError) as caught:
        verify(bundle, keys[CN])
    assert caught.value.reason is Reason.SIGNATURE_INVALID


async def test_strangers_until_both_agree_and_again_when_it_ends(mesh):
    await children(mesh)
    await met(mesh, version=1)
    bank, clinic = node(mesh, BANK), node(mesh, CLINIC)
    with pytest.raises(TdnError) as caught:
        await bank.pings.ping(CLINIC, 10)
    assert caught.value.reason is Reason.UNAUTHENTICATED

    await node(mesh, CN).federation.add(read_card(node(mesh, HK).federation.card()))
    await until(lambda: bank.trust.knows(HK))
    with pytest.raises(TdnError) as caught:  # one side is not enough
        await bank.pings.ping(CLINIC, 10)
    assert caught.value.reason is Reason.UNAUTHENTICATED

    await node(mesh, HK).federation.add(read_card(node(mesh, CN).federation.card()))
    await until(lambda: clinic.trust.knows(CN))
    await bank.pings.ping(CLINIC, 10)

    await node(mesh, CN).federation.end(HK)
    await until(lambda: not bank.trust.knows(HK))
    for here, there in ((bank, CLINIC), (clinic, BANK)):
        here.channels.drop(there)
    await until(lambda: not bank.channels.peers() and not clinic.channels.peers())
    for here, there in ((bank, CLINIC), (clinic, BANK)):
        with pytest.raises(TdnError) as caught:
            await here.pings.ping(there, 10)
        assert caught.value.reason is Reason.UNAUTHENTICATED
    assert ("UNAUTHENTICATED", "TDN-T-IDN-01") in refusals(mesh.nodes[BANK])


async def test_a_new_root_of_one_top_reaches_the_other_hierarchy_over_their_link(mesh, monkeypatch):
    monkeypatch.setattr("tdn_interop.app.members.rollover.CHECK_S", 0.1)
    monkeypatch.setattr("tdn_interop.app.members.federation.FOLLOW_S", 0.1)
    monkeypatch.setattr("tdn_interop.app.members.renewal.PAUSE_S", (0.05, 0.2))
    await federate(mesh.config(CN), mesh.config(HK))
    linked(mesh)
    await children(mesh)
    await met(mesh, version=2)
    hk, bank, clinic = (node(mesh, name) for name in (HK, BANK, CLINIC))
    old = hk.standing.own_root
    await hk.rollover.begin(dt.timedelta(hours=1))
    new = hk.standing.own_root
    await until(lambda: new in bank.standing.roots and clinic.standing.own_root == new)
    await bank.pings.ping(CLINIC, 10)
    await hk.rollover.retire()
    await until(lambda: old not in bank.standing.roots and new in bank.standing.roots)
    async with asyncio.timeout(10):
        while True:  # connections begin anew in the meantime
            with contextlib.suppress(TdnError):
                await bank.pings.ping(CLINIC, 10)
                break


async def test_a_partner_with_ever_new_roots_does_not_keep_our_tree_busy(mesh):
    await federate(mesh.config(CN), mesh.config(HK))
    cn, key = (await mesh.start(CN)).mesh, Standing.load(mesh.config(HK)).key
    before, said = cn.federation.bundle.version, []
    for version in range(10, 20):
        said.append(foreign(HK, key.public_key))
        bundle = trust_wire.encode_bundle(TrustBundle(HK, version, now_ms(), (said[-1],)))
        assert cn.notices.offer(TRUST_BUNDLE, key.sign(identity.TRUST_BUNDLE, bundle))
    assert (cn.federation.bundle.version, cn.federation.bundle.tops[1]) == (before + 1, said[0])
    cn.federation._follow_at = 0  # a minute later
    cn.federation.follow()
    assert (cn.federation.bundle.version, cn.federation.bundle.tops[1]) == (before + 2, said[-1])
    cn.federation._follow_at = 0
    cn.federation.follow()
    assert cn.federation.bundle.version == before + 2


async def test_what_was_agreed_survives_a_restart(mesh):
    await federate(mesh.config(CN), mesh.config(HK))
    await children(mesh)
    await met(mesh, version=2)
    await mesh.stop(BANK)
    await mesh.stop(CN)
    bank = (await mesh.start(CN)).mesh
    assert bank.federation.bundle.version == 2
    await mesh.start(BANK)
    assert node(mesh, BANK).trust.tops == [CN, HK]  # before anybody told it
    await node(mesh, BANK).pings.ping(CLINIC, 10)


# -- what is refused


def foreign(name, key=bytes(32)):
    return TrustedTop(name, key, (pki.der(pki.create_root(name).certificate),))


async def test_texts_that_are_no_card(mesh):
    federation = (await mesh.start(CN)).mesh.federation
    card = federation.card()
    assert read_card(card) == federation.bundle.own
    data = base64.urlsafe_b64decode(card + "==")
    for bad in (
        "",
        "x",
        "é",
        card[:-8],
        base64.urlsafe_b64encode(data[:-1] + bytes([data[-1] ^ 1])).decode(),
    ):
        with pytest.raises(ConfigError) as caught:
            read_card(bad)
        assert caught.value.requirement == "TDN-T-IDN-08"


async def test_who_is_no_partner(mesh):
    federation = (await mesh.start(CN)).mesh.federation
    before = federation.bundle
    for top, reason in ((before.own, Reason.INVALID_REQUEST), (foreign("a.b"), Reason.INVALID_REQUEST)):
        with pytest.raises(TdnError) as caught:
            await federation.add(top)
        assert caught.value.reason is reason
    with pytest.raises(TdnError):
        await federation.end(HK)
    assert federation.bundle == before
    assert [row for top in ("a.b", HK) for row in await node(mesh, CN)._evidence.about(top)] == []
    await federation.add(foreign(HK, bytes(32)))
    with pytest.raises(TdnError) as caught:
        await federation.add(foreign(HK, bytes([1]) * 32))
    assert caught.value.reason is Reason.IDENTITY_MISMATCH


async def test_a_child_issues_nothing(mesh):
    await children(mesh)
    await met(mesh, version=1)
    federation: Federation = node(mesh, BANK).federation
    for attempt in (federation.card, lambda: federation.issue(federation.bundle.tops)):
        with pytest.raises(TdnError) as caught:
            attempt()
        assert caught.value.reason is Reason.UNSUPPORTED


def test_a_root_that_could_vouch_for_others_is_no_root_of_a_bundle():
    wide = pki.create_root("us").certificate  # constrained, but to other names
    for roots in ((pki.der(wide),), (b"x",), ()):
        top = dataclasses.replace(foreign(HK), roots=roots)
        bundle = trust_wire.TrustBundle(HK, 1, 0, (top,))
        with pytest.raises(TdnError) as caught:
            trust_wire.decode_bundle(trust_wire.encode_bundle(bundle))
        assert caught.value.reason is Reason.INVALID_REQUEST
