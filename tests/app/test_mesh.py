"""What a node's peers can do to it over running connections: floods of pings, certificates that expire meanwhile."""

import asyncio
import dataclasses

import pytest

from tdn_interop.transport.trust import now_ms
from tests.interop.forge import refusals, until
from tests.mesh import AIRLINE, HUB_1, RESEARCH, TOP, mini_mesh

FEW = ((TOP, "top", True), (HUB_1, "hub", True), (AIRLINE, "child", True), (RESEARCH, "child", True))
DAY_MS = 86_400_000


@pytest.fixture
async def mesh(tmp_path):
    async with mini_mesh(tmp_path, FEW) as running:
        yield running


async def test_a_flood_of_pings_gets_one_pong_at_a_time(mesh, monkeypatch):
    airline, research = mesh.nodes[AIRLINE].mesh, mesh.nodes[RESEARCH].mesh
    await airline.pings.ping(RESEARCH, 10)
    answers, taken, honest = [], asyncio.Event(), research.channels.send

    async def slow(peer, topic, payload, timeout_s):
        answers.append(payload)
        await taken.wait()
        await honest(peer, topic, payload, timeout_s)

    monkeypatch.setattr(research.channels, "send", slow)
    for number in range(200):
        await airline.channels.send(RESEARCH, "ping", b"%d" % number, 10)
    full = ("RESOURCE_EXHAUSTED", "TDN-T-LIM-03")
    await until(lambda: refusals(mesh.nodes[RESEARCH]).get(full) == 199)
    assert answers == [b"0"]
    taken.set()
    assert (await airline.pings.ping(RESEARCH, 10)).hops == (HUB_1,)


async def test_connections_end_with_the_certificate_and_sessions_go_on(mesh):
    airline, research, hub = (mesh.nodes[name].mesh for name in (AIRLINE, RESEARCH, HUB_1))
    await airline.pings.ping(RESEARCH, 10)
    ends = airline.peers.certificates()[RESEARCH].expires_at_ms
    assert now_ms() < ends <= now_ms() + DAY_MS
    front = hub.server.front
    before = dict(front._served)

    for node in (airline, research, hub):
        node.drop_expired(now_ms())
    assert airline.channels.peers() == [RESEARCH]
    assert dict(front._served) == before

    heard = []
    airline.listeners.append(heard.append)
    airline.drop_expired(ends)
    await until(lambda: [event.kind for event in heard] == ["detached", "resumed"])  # the session goes on
    await until(airline.link.linked.is_set)  # the link began anew, for the hub has a good certificate

    hub.drop_expired(now_ms() + 2 * DAY_MS)
    assert not any(inner in before for inner in front._served)
    assert ("CERTIFICATE_EXPIRED", "TDN-T-IDN-01") in refusals(mesh.nodes[HUB_1])
    await until(lambda: not airline.link.linked.is_set())
    await until(airline.link.linked.is_set)
    await until(lambda: hub.tunnels.attached == [AIRLINE, RESEARCH])
    await airline.pings.ping(RESEARCH, 10)


async def test_the_sweep_runs(tmp_path, monkeypatch):
    monkeypatch.setattr("tdn_interop.app.mesh.SWEEP_S", 0.01)
    async with mini_mesh(tmp_path, FEW[:2]) as mesh:
        front = mesh.nodes[TOP].mesh.server.front
        await until(lambda: front._served)
        [key] = front._peers
        front._peers[key] = dataclasses.replace(front._peers[key], expires_at_ms=0)
        await until(lambda: refusals(mesh.nodes[TOP]).get(("CERTIFICATE_EXPIRED", "TDN-T-IDN-01")))


async def test_an_expired_parent_is_dialled_anew(mesh):
    airline = mesh.nodes[AIRLINE].mesh
    dialled = airline.link._dialled
    first = dialled.peer
    airline.link.drop_expired(first.expires_at_ms - 1)
    assert dialled.peer is first
    airline.link.drop_expired(first.expires_at_ms)
    await until(lambda: dialled.peer is not first)
    await until(airline.link.linked.is_set)
    await airline.pings.ping(RESEARCH, 10)
