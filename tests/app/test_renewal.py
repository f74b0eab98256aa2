"""Certificates that live for seconds: they are renewed in time, and sessions and messages do not notice."""

import asyncio
import contextlib

import pytest

from tests.interop.forge import until
from tests.mesh import AIRLINE, HUB_1, RESEARCH, TOP, Mesh

FEW = ((TOP, "top", True), (HUB_1, "hub", True), (AIRLINE, "child", True), (RESEARCH, "child", True))
LIFE_S = 6


def set_life(config, seconds):
    file = config.dir / "node.toml"
    text = file.read_text()
    assert "# leaf_life_s" in text
    file.write_text(text.replace("# leaf_life_s = 86400", f"leaf_life_s = {seconds}"))


@contextlib.asynccontextmanager
async def short_lived(folder, life_s=LIFE_S, members=FEW, direct=False):
    mesh = Mesh(folder)
    try:
        for node, role, listens in members:
            config = await mesh.enrol(node, role, listens=listens)
            set_life(config, life_s)
            if direct and node == RESEARCH:
                airline = mesh.config(AIRLINE).dir / "node.toml"
                airline.write_text(airline.read_text() + f'\n[direct]\n"{RESEARCH}" = "{config.listen}"\n')
            if not (direct and node == AIRLINE):
                await mesh.start(node)
        if direct:
            await mesh.start(AIRLINE)
        yield mesh
    finally:
        for node in reversed(list(mesh.stacks)):
            await mesh.stop(node)


class Watched:
    """What a node saw of another one: certificates, and what happened to sessions."""

    def __init__(self, mesh):
        self.keys, self.kinds = set(), []
        verify = mesh.trust.verify

        def noting(certificate, credentials):
            record = verify(certificate, credentials)
            self.keys.add(certificate.tls_key_sha256)
            return record

        mesh.trust.verify = noting
        mesh.listeners.append(lambda event: self.kinds.append(event.kind))


async def stream(here, there, topic, until_done):
    """Number messages until it is enough, and take them on the other side; (sent, received, longest gap in seconds)."""
    loop = asyncio.get_running_loop()
    received, gaps, last = [], [0.0], loop.time()
    sent = 0

    async def take():
        nonlocal last
        while True:
            _, message = await there.channels.receive(topic, timeout_s=30)
            gaps.append(loop.time() - last)
            last = loop.time()
            received.append(int(message))

    taking = asyncio.ensure_future(take())
    while not until_done():
        await here.channels.send(there.me, topic, b"%d" % sent, 30)
        sent += 1
        await asyncio.sleep(0.002)
    await here.channels.flush(there.me, topic, 30)
    await until(lambda: len(received) >= sent)
    taking.cancel()
    return sent, received, max(gaps)


@pytest.mark.parametrize("direct", [True, False])
async def test_a_rotation_loses_and_doubles_nothing(tmp_path, monkeypatch, direct):
    """T-IDN-04.P1: the log of what was delivered is that of a run without rotation."""
    monkeypatch.setattr("tdn_interop.app.mesh.SWEEP_S", 0.2)
    async with short_lived(tmp_path, direct=direct) as mesh:
        airline, research = mesh.nodes[AIRLINE].mesh, mesh.nodes[RESEARCH].mesh
        for node in (airline, research):
            monkeypatch.setitem(node.served, "x", lambda _peer, _topic: True)
        seen = [Watched(airline), Watched(research)]
        await airline.channels.open(RESEARCH)

        def enough():
            return all(len(one.keys) >= 3 for one in seen)

        runs = await asyncio.gather(
            stream(airline, research, "x/up", enough), stream(research, airline, "x/down", enough)
        )
        for sent, received, _gap in runs:
            assert received == list(range(sent))
        for one in seen:
            assert one.kinds.count("opened") == 1
            assert not {"failed", "closed"} & set(one.kinds)
            assert "resumed" in one.kinds
        if direct:
            assert max(gap for *_, gap in runs) < 1
        print([gap for *_, gap in runs], [one.kinds.count("resumed") for one in seen])
