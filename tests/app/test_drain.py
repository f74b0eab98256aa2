"""A hub that drains takes nothing new, waits for what moves, and nobody sees an error."""

import asyncio

import pytest

from tdn_interop.app.members import setup
from tdn_interop.errors import Reason, TdnError
from tests.interop.forge import until
from tests.mesh import AIRLINE, HUB_1, HUB_2, REGISTRY, RESEARCH, TOP, mini_mesh

LATE = "late.shandong.cn"


@pytest.fixture
async def mesh(tmp_path):
    async with mini_mesh(tmp_path) as running:
        for node in running.nodes.values():
            node.mesh.admits = lambda _peer, _topic: True
        yield running


def said(caught):
    return caught.value.reason


class Drain:
    """`tdn node drain`, as the control service runs it."""

    def __init__(self, node, timeout_s):
        self.seen = []
        self.task = asyncio.create_task(self._follow(node.mesh.draining.drain(timeout_s)))

    async def _follow(self, remaining):
        async for now in remaining:
            self.seen.append(now)


async def stream(mesh, source, destination, ends):
    """Messages one after the other until `ends` is set; their number."""
    sender = mesh.nodes[source].mesh.channels
    sent = 0
    while not ends.is_set():
        await sender.send(destination, "row", b"%d" % sent, 30)
        sent += 1
        await asyncio.sleep(0.01)
    return sent


async def joins(mesh, name):
    """Spend a fresh token of the hub."""
    token = await mesh.nodes[HUB_1].mesh.admission.invite(name, "child", 600)
    await setup.join(mesh.config(name), token)


async def received(mesh, destination, count):
    receiver = mesh.nodes[destination].mesh.channels
    return [int((await receiver.receive("row", timeout_s=30))[1]) for _ in range(count)]


async def test_nothing_new_is_taken_and_what_runs_goes_on(mesh):
    hub, ends = mesh.nodes[HUB_1], asyncio.Event()
    setup.init_node(mesh.folder / LATE, LATE, "child")
    moving = asyncio.create_task(stream(mesh, AIRLINE, REGISTRY, ends))
    await until(lambda: hub.mesh.tunnels.passing)
    drain = Drain(hub, 60)
    await until(lambda: len(drain.seen) == 2)
    assert (drain.seen[-1].moving, drain.seen[-1].stops) == (1, False)

    with pytest.raises(TdnError) as caught:  # a tunnel upwards
        await mesh.nodes[RESEARCH].mesh.channels.open(REGISTRY, 10)
    assert said(caught) is Reason.DRAINING
    with pytest.raises(TdnError) as caught:  # a tunnel downwards
        await mesh.nodes[HUB_2].mesh.channels.open(RESEARCH, 10)
    assert said(caught) is Reason.DRAINING
    with pytest.raises(TdnError) as caught:  # a session with the hub itself, over a connection of its own
        mesh.nodes[AIRLINE].mesh.peers._direct[HUB_1] = hub.config.listen
        await mesh.nodes[AIRLINE].mesh.channels.open(HUB_1, 10)
    assert said(caught) is Reason.DRAINING
    with pytest.raises(TdnError) as caught:  # a member
        await joins(mesh, LATE)
    assert said(caught) is Reason.DRAINING

    await hub.mesh.draining.undrain()
    await asyncio.wait_for(drain.task, 5)  # whoever watched hears that it was taken back
    assert (drain.seen[-1].stops, hub.drained.is_set()) == (False, False)
    await mesh.nodes[RESEARCH].mesh.channels.open(REGISTRY, 10)
    await joins(mesh, LATE)
    ends.set()
    count = await moving
    assert await received(mesh, REGISTRY, count) == list(range(count))


async def test_it_stops_when_nothing_moves_and_sessions_go_on_when_it_is_back(mesh):
    hub, ends = mesh.nodes[HUB_1], asyncio.Event()
    moving = asyncio.create_task(stream(mesh, AIRLINE, REGISTRY, ends))
    await until(lambda: hub.mesh.tunnels.passing)
    drain = Drain(hub, 60)
    await until(lambda: drain.seen and drain.seen[-1].moving == 1)
    assert not hub.drained.is_set()
    ends.set()
    count = await moving
    await asyncio.wait_for(hub.drained.wait(), 15)
    last = drain.seen[-1]
    assert (last.moving, last.quiet, last.stops) == (0, 1, True)
    assert hub.mesh.tunnels.passing == {}

    await mesh.stop(HUB_1)
    await mesh.start(HUB_1)
    session = mesh.nodes[AIRLINE].mesh.channels.sessions[0].session.id
    await mesh.nodes[AIRLINE].mesh.channels.send(REGISTRY, "row", b"%d" % count, 30)
    assert await received(mesh, REGISTRY, count + 1) == list(range(count + 1))
    assert [one.session.id for one in mesh.nodes[AIRLINE].mesh.channels.sessions] == [session]  # the same one


async def test_it_stops_at_the_limit_even_though_something_moves(mesh):
    hub, ends = mesh.nodes[HUB_1], asyncio.Event()
    moving = asyncio.create_task(stream(mesh, AIRLINE, REGISTRY, ends))
    await until(lambda: hub.mesh.tunnels.passing)
    drain = Drain(hub, 1.5)
    await asyncio.wait_for(hub.drained.wait(), 15)
    assert (drain.seen[-1].moving, drain.seen[-1].stops, drain.seen[-1].left_s) == (1, True, 0)
    await mesh.stop(HUB_1)
    await mesh.start(HUB_1)
    ends.set()
    count = await moving
    assert await received(mesh, REGISTRY, count) == list(range(count))


async def test_both_neighbours_have_the_receipt_of_a_tunnel_that_the_drain_ended(mesh):
    hub = mesh.nodes[HUB_1]
    await mesh.nodes[AIRLINE].mesh.channels.send(REGISTRY, "row", b"0", 10)
    await received(mesh, REGISTRY, 1)
    (tunnel,) = hub.mesh.tunnels.passing
    Drain(hub, 60)
    await asyncio.wait_for(hub.drained.wait(), 15)
    async with asyncio.timeout(10):
        for node in (HUB_1, AIRLINE, TOP):
            while not await mesh.nodes[node].mesh.receipts.knows(tunnel):
                await asyncio.sleep(0.01)


async def test_a_job_that_computes_is_waited_for(mesh):
    hub = mesh.nodes[HUB_1]
    computing = [2, 1, 0]

    async def jobs():
        return computing.pop(0) if len(computing) > 1 else computing[0]

    hub.mesh.draining.jobs = jobs
    drain = Drain(hub, 60)
    await asyncio.wait_for(hub.drained.wait(), 15)
    await until(lambda: drain.seen[-1].stops)
    assert [now.jobs for now in drain.seen] == [2, 1, 0]


async def test_the_limit_of_a_later_call_counts(mesh):
    hub, ends = mesh.nodes[HUB_1], asyncio.Event()
    moving = asyncio.create_task(stream(mesh, AIRLINE, REGISTRY, ends))
    await until(lambda: hub.mesh.tunnels.passing)
    Drain(hub, 600)
    await asyncio.sleep(0)
    Drain(hub, 1.2)
    await asyncio.wait_for(hub.drained.wait(), 15)
    ends.set()
    await moving
