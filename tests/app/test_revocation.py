"""A node is revoked while it is at work: everybody refuses it, in every direction, and what was open ends."""

import asyncio
import contextlib
import os

import pytest

from tdn_interop import identity
from tdn_interop.app.members import setup
from tdn_interop.app.members.federation import federate
from tdn_interop.app.node import running
from tdn_interop.app.post.mailbox_service import MailboxClient
from tdn_interop.app.store import status as rows
from tdn_interop.errors import Reason, TdnError
from tdn_interop.transport import adverts, status_list, status_service
from tdn_interop.transport.notices import STATUS_LIST
from tdn_interop.transport.route_wire import Origin
from tdn_interop.transport.status_list_wire import Order, Revocation, encode_order
from tdn_interop.transport.trust import now_ms
from tests.app.job_mesh import ends as job_ends
from tests.app.job_mesh import flow, job_mesh, restart
from tests.app.job_mesh import until as job_at
from tests.interop.forge import refusals, stranger, until
from tests.mesh import AIRLINE, HUB_1, HUB_2, REGISTRY, RESEARCH, TOP, Mesh, mini_mesh

GONE = (Reason.REVOKED,)


@pytest.fixture
async def mesh(tmp_path):
    async with mini_mesh(tmp_path) as running_mesh:
        await until(lambda: all(known(running_mesh, node) for node in running_mesh.nodes))
        yield running_mesh


def known(mesh, node):
    """The version of the list that a node holds."""
    return mesh.nodes[node].mesh.lists.version(TOP)


async def reason_of(call):
    with pytest.raises(TdnError) as caught:
        await call
    return caught.value.reason


def ends(mesh, node):
    """Why sessions of a node ended: reason -> how often."""
    found = {}
    mesh.nodes[node].mesh.listeners.append(
        lambda event: found.update({event.reason: event.peer}) if event.kind == "failed" else None
    )
    return found


async def everybody_has(mesh, version):
    await until(lambda: all(known(mesh, node) >= version for node in mesh.nodes))


async def test_open_sessions_end_at_both_ends_and_nobody_meets_it_again(mesh):
    airline, research, registry = (mesh.nodes[name].mesh for name in (AIRLINE, RESEARCH, REGISTRY))
    await airline.pings.ping(RESEARCH, 10)
    await registry.pings.ping(AIRLINE, 10)
    ended = {name: ends(mesh, name) for name in (AIRLINE, RESEARCH, REGISTRY)}

    assert await mesh.nodes[HUB_1].mesh.revoking.revoke(AIRLINE, "lost key")

    await until(lambda: not research.channels.peers() and not registry.channels.peers())
    await until(lambda: not airline.channels.peers())
    assert ended[RESEARCH] == ended[REGISTRY] == {"REVOKED": AIRLINE}
    assert set(ended[AIRLINE]) == {"REVOKED"}
    for other in (RESEARCH, REGISTRY, HUB_1, HUB_2, TOP):
        assert await reason_of(mesh.nodes[other].mesh.pings.ping(AIRLINE, 10)) is Reason.REVOKED
        assert await reason_of(airline.pings.ping(other, 10)) is Reason.REVOKED
    assert (await research.pings.ping(REGISTRY, 10)).hops == (HUB_1, TOP, HUB_2)


async def test_its_link_ends_and_does_not_come_back(mesh):
    airline, hub = mesh.nodes[AIRLINE].mesh, mesh.nodes[HUB_1].mesh
    states = []
    airline.link.on_state = lambda up, why: states.append((up, why.reason if why else None))
    await hub.revoking.revoke(AIRLINE, "")
    await until(lambda: AIRLINE not in hub.tunnels.attached)
    await until(lambda: (False, Reason.REVOKED) in states)
    hub.cutting.sweep()
    assert AIRLINE not in hub.server.front._served.values()
    assert ("REVOKED", "TDN-T-IDN-01") in refusals(mesh.nodes[HUB_1])
    assert hub.register.nodes == [RESEARCH]


async def test_nobody_meets_it_directly_either(mesh):
    """Without a relay in between that could refuse for them; the refusal is read from the wire."""
    airline, research = mesh.nodes[AIRLINE].mesh, mesh.nodes[RESEARCH].mesh
    airline.peers._direct[RESEARCH] = mesh.config(RESEARCH).listen
    research.peers._direct[AIRLINE] = mesh.config(AIRLINE).listen
    await airline.pings.ping(RESEARCH, 10)
    await mesh.nodes[HUB_1].mesh.revoking.revoke(AIRLINE, "")
    await until(lambda: not research.channels.peers() and not airline.channels.peers())
    for _ in range(2):
        assert await reason_of(airline.pings.ping(RESEARCH, 10)) is Reason.REVOKED
        assert await reason_of(research.pings.ping(AIRLINE, 10)) is Reason.REVOKED
    assert ("REVOKED", "TDN-T-IDN-01") in refusals(mesh.nodes[RESEARCH])
    await until(lambda: AIRLINE not in research.server.front._served.values())


async def test_a_top_revokes_anybody_of_its_tree_and_the_hub_follows(mesh):
    top, hub = mesh.nodes[TOP].mesh, mesh.nodes[HUB_2].mesh
    assert await top.revoking.revoke(REGISTRY, "left the mesh")
    await until(lambda: not hub.register.known(REGISTRY))
    await until(lambda: REGISTRY not in hub.tunnels.attached)
    states = {row.node_id: row.state for row in await top.register.every()}
    assert states[REGISTRY] == "REVOKED"
    assert states[AIRLINE] == "ENDORSED"
    [(_, event)] = [one for one in await top._evidence.about(REGISTRY) if one[1].kind == "member.revoked"]
    assert event.facts == {"by": TOP, "reason": "left the mesh"}
    assert [one.kind for _, one in await hub._evidence.about(REGISTRY)][-1] == "member.revoked"


async def test_everybody_below_a_revoked_hub_goes_with_it(mesh):
    top, research = mesh.nodes[TOP].mesh, mesh.nodes[RESEARCH].mesh
    await research.pings.ping(REGISTRY, 10)
    await top.revoking.revoke(HUB_1, "its CA key is lost")
    await until(lambda: not mesh.nodes[REGISTRY].mesh.channels.peers())
    await until(lambda: top.tunnels.attached == [HUB_2])
    assert await reason_of(mesh.nodes[REGISTRY].mesh.pings.ping(RESEARCH, 10)) is Reason.REVOKED
    assert await reason_of(top.pings.ping(HUB_1, 10)) is Reason.REVOKED


async def test_no_way_leads_over_a_revoked_hub(mesh):
    """A neighbour that has not got the list, or does not care for it, tells what the hub still signs."""
    top, other = mesh.nodes[TOP].mesh, mesh.nodes[HUB_2].mesh
    gone = mesh.nodes[HUB_1].mesh.standing
    await top.revoking.revoke(HUB_1, "its key is lost")
    await until(lambda: other.lists.refusal(HUB_1))
    origin = Origin(HUB_1, 1 << 60, now_ms(), now_ms() + 60_000, backup=False)
    told = adverts.originate(gone.key, gone.membership.record, TOP, origin)
    told = adverts.extend(top.standing.key, top.standing.membership.record, HUB_2, told)
    with other.adjacency.neighbours.conversation(TOP) as conversation:
        other.adjacency.neighbours.hear(conversation, told)
        ways = [advert.path for advert in other.adjacency.table.every() if advert.sequence == origin.sequence]
    assert ways == []
    assert refusals(mesh.nodes[HUB_2])["ROUTE_INVALID", "TDN-T-RTE-09"] >= 1


async def test_a_revoked_node_asks_for_no_sealing_key(mesh):
    """While it is still connected, to be told why."""
    airline, research = mesh.nodes[AIRLINE].mesh, mesh.nodes[RESEARCH].mesh
    hub = mesh.nodes[HUB_1].mesh
    await until(lambda: airline.link.is_linked and research.link.is_linked)
    hub.lists.refuse([Revocation(AIRLINE, now_ms(), "")])
    box = MailboxClient(airline.link.channel, airline.link.ask)
    assert await reason_of(box.key_of(RESEARCH)) is Reason.REVOKED


async def test_who_is_revoked_gets_no_certificate_and_no_token(mesh, tmp_path):
    hub = mesh.nodes[HUB_1].mesh
    before = await hub.admission.invite(AIRLINE, "child", 600)
    await mesh.nodes[AIRLINE].mesh.renewal.renew()
    await hub.revoking.revoke(AIRLINE, "")
    assert await reason_of(mesh.nodes[AIRLINE].mesh.renewal.renew()) is Reason.REVOKED
    assert await reason_of(hub.admission.invite(AIRLINE, "child", 600)) is Reason.REVOKED
    assert await reason_of(setup.join(mesh.config(AIRLINE), before)) is Reason.REVOKED
    await setup.join(mesh.config(RESEARCH), await hub.admission.invite(RESEARCH, "child", 600))


async def test_a_revocation_is_for_ever(mesh):
    await mesh.nodes[HUB_1].mesh.revoking.revoke(AIRLINE, "first")
    assert await mesh.nodes[HUB_1].mesh.revoking.revoke(AIRLINE, "second")
    [entry] = mesh.nodes[TOP].mesh.lists.everybody()
    assert entry.reason == "first"
    for node in (HUB_1, TOP):
        await mesh.stop(node)
        mesh.nodes[node] = None
    mesh.nodes = {name: node for name, node in mesh.nodes.items() if node}
    await mesh.start(TOP)
    await mesh.start(HUB_1)
    assert mesh.nodes[HUB_1].mesh.lists.refusal(AIRLINE)
    assert not mesh.nodes[HUB_1].mesh.register.known(AIRLINE)
    await until(mesh.nodes[RESEARCH].mesh.link.linked.is_set)
    assert await reason_of(mesh.nodes[RESEARCH].mesh.pings.ping(AIRLINE, 10)) is Reason.REVOKED


NOT_THEIRS = (
    (HUB_1, REGISTRY), (HUB_1, TOP), (HUB_1, HUB_1), (HUB_1, "nobody.shandong.cn"),
    (TOP, TOP), (TOP, "bank.eu"), (TOP, "nobody.shandong.cn"), (AIRLINE, RESEARCH),
)  # fmt: skip


async def test_nobody_revokes_whom_it_does_not_answer_for(mesh):
    for who, whom in NOT_THEIRS:
        node = mesh.nodes[who].mesh
        assert await reason_of(node.revoking.revoke(whom, "")) is Reason.POLICY_DENIED, (who, whom)
        assert node.lists.everybody() == []
    with pytest.raises(TdnError, match=f"{REGISTRY} is not directly below {HUB_1}; its hub or its top can"):
        await mesh.nodes[HUB_1].mesh.revoking.revoke(REGISTRY, "")


async def test_a_top_carries_out_only_genuine_orders_of_the_hub_above(mesh):
    top, link = mesh.nodes[TOP].mesh, mesh.nodes[HUB_1].mesh.link

    async def order(signer, node):
        signed = signer.sign(identity.REVOCATION, encode_order(Order(node, "", now_ms())))
        return await reason_of(status_service.order(link, signed))

    key = mesh.nodes[HUB_1].mesh.standing.key
    assert await order(key, REGISTRY) is Reason.POLICY_DENIED
    assert await order(key, "nobody.shandong.cn") is Reason.POLICY_DENIED
    assert await order(stranger(HUB_1), AIRLINE) is Reason.SIGNATURE_INVALID
    assert await order(mesh.nodes[HUB_2].mesh.standing.key, REGISTRY) is Reason.SIGNATURE_INVALID
    assert top.lists.everybody() == []
    list_ = await status_service.order(
        link, key.sign(identity.REVOCATION, encode_order(Order(AIRLINE, "", now_ms())))
    )
    assert list_.signer == TOP


async def test_a_hub_whose_top_is_away_refuses_at_once_and_tells_later(mesh):
    hub = mesh.nodes[HUB_1].mesh
    await mesh.stop(TOP)
    await until(lambda: not hub.link.linked.is_set())
    assert not await hub.revoking.revoke(AIRLINE, "lost key")
    assert not hub.register.known(AIRLINE)
    await until(lambda: AIRLINE not in hub.tunnels.attached)
    await mesh.start(TOP)
    await until(hub.link.linked.is_set)
    await hub.revoking.refresh()
    assert mesh.nodes[TOP].mesh.lists.on_list(AIRLINE)
    await until(lambda: mesh.nodes[REGISTRY].mesh.lists.refusal(AIRLINE))


async def test_older_and_forged_lists_change_nothing(mesh):
    top, registry = mesh.nodes[TOP].mesh, mesh.nodes[REGISTRY].mesh
    old = top.notices.newest(STATUS_LIST, TOP)
    await top.revoking.revoke(AIRLINE, "")
    await until(lambda: registry.lists.refusal(AIRLINE))
    assert not registry.notices.offer(STATUS_LIST, old)
    hub = mesh.nodes[HUB_2].mesh.standing.key
    forged = status_list.issue(hub, now_ms() + 1000, now_ms(), [])
    for signed in (forged, identity.Signed(forged.statement, TOP, forged.signature)):
        before = registry.lists.version(TOP)
        with pytest.raises(TdnError) as caught:
            if not registry.notices.offer(STATUS_LIST, signed):
                raise TdnError(Reason.SIGNATURE_INVALID, "not of a top that is known here")
        assert caught.value.reason is Reason.SIGNATURE_INVALID
        assert registry.lists.version(TOP) == before
    assert registry.lists.refusal(AIRLINE)


async def test_an_old_list_keeps_what_is_open_and_begins_nothing(mesh, monkeypatch):
    research, registry = mesh.nodes[RESEARCH].mesh, mesh.nodes[REGISTRY].mesh
    await research.pings.ping(REGISTRY, 10)
    for node in (research, registry):
        node.lists._clock = lambda: now_ms() + 601_000
    await research.pings.ping(REGISTRY, 10)
    assert await reason_of(research.pings.ping(HUB_2, 10)) is Reason.STATUS_STALE
    assert await reason_of(mesh.nodes[HUB_2].mesh.pings.ping(REGISTRY, 10)) is Reason.STATUS_STALE
    for node in (research, registry):
        node.lists._clock = now_ms
    await research.pings.ping(HUB_2, 10)


async def last_of(progress):
    async with contextlib.aclosing(progress):
        async for now in progress:
            last = now
    return last


async def moving(node):
    [row] = await node.transfers.every()
    return row


@pytest.mark.parametrize("sender", [RESEARCH, AIRLINE])
async def test_a_running_transfer_fails_at_both_ends(mesh, tmp_path, sender):
    receiver = AIRLINE if sender == RESEARCH else RESEARCH
    path = tmp_path / "sent"
    path.write_bytes(os.urandom(64 << 20))
    sending = asyncio.create_task(last_of(mesh.nodes[sender].transfers.send(receiver, "data", path)))
    receiving = asyncio.create_task(
        last_of(mesh.nodes[receiver].transfers.receive("data", tmp_path / "got", 20))
    )
    await until(lambda: mesh.nodes[receiver].transfers._in)
    await mesh.nodes[HUB_1].mesh.revoking.revoke(AIRLINE, "")
    for task in (sending, receiving):
        assert await reason_of(asyncio.wait_for(task, 20)) is Reason.REVOKED
    for node in (sender, receiver):
        row = await moving(mesh.nodes[node])
        assert (row.state, row.failure["reason"]) == ("FAILED", "REVOKED")
    assert not (tmp_path / "got").exists()
    again = mesh.nodes[RESEARCH].transfers.send(AIRLINE, "more", path)
    assert await reason_of(asyncio.wait_for(last_of(again), 20)) is Reason.REVOKED


async def test_a_job_with_a_revoked_party_ends_at_the_others(tmp_path):
    """Long before any time of the flow is over."""
    hour = {"approval_s": 3600, "step_s": 3600, "run_s": 3600, "stop_s": 60, "lease_s": 3600}
    async with job_mesh(tmp_path) as mesh:
        await restart(mesh, REGISTRY, ('mode = "rules"', 'mode = "manual"'))
        job_id = await mesh.nodes[RESEARCH].jobs.run(flow(**hour))
        await job_at(mesh, REGISTRY, job_id, party_state="AWAITING_APPROVAL")
        await job_at(mesh, AIRLINE, job_id, party_state="APPROVED")
        await mesh.nodes[HUB_1].mesh.revoking.revoke(AIRLINE, "")
        rows = await job_ends(mesh, job_id, (REGISTRY, RESEARCH))
    assert {(row.state, row.failure["reason"]) for row in rows.values()} == {("FAILED", "PARTY_LOST")}


async def test_lists_go_to_federated_trees_and_each_top_speaks_for_its_own(tmp_path):
    mesh, places = Mesh(tmp_path), (("cn", "hk"), ("hk", "cn"))
    try:
        listens = {top: (await mesh.enrol(top, "top", listens=True)).listen for top, _ in places}
        await federate(mesh.config("cn"), mesh.config("hk"))
        for top, other in places:
            file = mesh.folder / top / "node.toml"
            links = f'\n[[links]]\nnode = "{other}"\naddress = "{listens[other]}"\n' if top == "cn" else ""
            file.write_text(f'neighbours = ["{other}"]\n' + file.read_text() + links)
            await mesh.start(top)
        for node in ("bank.cn", "shop.cn", "clinic.hk"):
            await mesh.enrol(node, "child", listens=False)
            await mesh.start(node)
        clinic = mesh.nodes["clinic.hk"].mesh
        await until(lambda: clinic.lists.version("cn") and mesh.nodes["bank.cn"].mesh.lists.version("hk"))
        clinic.lists._started_ms = 0  # nothing is forgiven for its start
        await clinic.pings.ping("bank.cn", 10)

        assert await reason_of(mesh.nodes["hk"].mesh.revoking.revoke("bank.cn", "")) is Reason.POLICY_DENIED
        forged = status_list.issue(
            mesh.nodes["hk"].mesh.standing.key, now_ms(), now_ms(), [Revocation("x.hk", 1, "")]
        )
        statement = forged.statement.replace(b"hk", b"cn")
        signed = mesh.nodes["hk"].mesh.standing.key.sign(identity.STATUS_LIST, statement)
        assert await reason_of(offered(clinic, signed)) is Reason.SIGNATURE_INVALID

        await mesh.nodes["cn"].mesh.revoking.revoke("bank.cn", "left")
        await until(lambda: clinic.lists.refusal("bank.cn"))
        assert await reason_of(clinic.pings.ping("bank.cn", 10)) is Reason.REVOKED
        await clinic.pings.ping("shop.cn", 10)
    finally:
        for node in reversed(list(mesh.stacks)):
            await mesh.stop(node)


async def offered(node, signed):
    node.notices.offer(STATUS_LIST, signed)


async def test_a_long_list_reaches_everybody(mesh):
    """Longer than any other statement."""
    names = [f"node-{number:05}.shandong.cn" for number in range(3_000)]

    def write(connection):
        for name in names:
            rows.add(connection, rows.RevokedRow(name, 1, "", TOP))

    top = mesh.nodes[TOP].mesh
    await mesh.nodes[TOP].mesh._store.run(write)
    await top.revoking.refresh()
    await until(lambda: mesh.nodes[REGISTRY].mesh.lists.refusal(names[-1]), 20)
    await mesh.nodes[RESEARCH].mesh.pings.ping(REGISTRY, 10)


async def test_the_top_signs_anew_and_everybody_hears(mesh):
    before = known(mesh, TOP)
    await mesh.nodes[TOP].mesh.revoking.refresh()
    assert known(mesh, TOP) > before
    await everybody_has(mesh, known(mesh, TOP))


async def test_a_top_continues_its_versions(mesh):
    before = known(mesh, TOP)
    config = mesh.config(TOP)
    await mesh.stop(TOP)
    async with running(config) as again:
        assert again.mesh.lists.version(TOP) > before
