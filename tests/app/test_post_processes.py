"""Two real nodes below a hub send each other parcels while both are killed again and again."""

import asyncio
import random
import sqlite3
import sys

from tests.app import post_process
from tests.app.post_process import COMPLETE, GOT
from tests.interop.forge import until
from tests.mesh import AIRLINE, HUB_1, RESEARCH, TOP, mini_mesh

FEW = ((TOP, "top", True), (HUB_1, "hub", True), (AIRLINE, "child", True), (RESEARCH, "child", True))
COUNT = 200
KILLS = 4
PATIENCE_S = 60


class Half:
    """One of the two: its folder stays, its processes die."""

    def __init__(self, folder, node, peer):
        self.folder, self.peer = folder / node, peer
        post_process.prepare(self.folder / "node.db")

    async def start(self):
        words = (str(self.folder / "node.toml"), self.peer, str(COUNT))
        with (self.folder / "out.log").open("ab") as out:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.app.post_process", *words, stdout=out, stderr=out
            )

    async def kill(self):
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()

    def said(self, word):
        """How often its processes have said so; it must live to be asked."""
        text = (self.folder / "out.log").read_text()
        assert self.process.returncode is None, text[-3000:]
        return text.count(word)

    def bodies(self):
        with sqlite3.connect(self.folder / "node.db") as connection:
            return [body for (body,) in connection.execute("SELECT body FROM got ORDER BY place")]


async def test_every_parcel_arrives_once_in_order_whoever_is_killed(tmp_path):
    draw = random.Random(4711)
    async with mini_mesh(tmp_path, FEW) as mesh:
        await mesh.stop(AIRLINE)
        await mesh.stop(RESEARCH)
        one, other = Half(tmp_path, AIRLINE, RESEARCH), Half(tmp_path, RESEARCH, AIRLINE)
        await one.start()
        await other.start()
        try:
            for kill in range(1, KILLS + 1):
                target = kill * 2 * COUNT // (KILLS + 2)
                await until(lambda target=target: one.said(GOT) + other.said(GOT) >= target, PATIENCE_S)
                victim = draw.choice((one, other))
                await victim.kill()
                await victim.start()
            await until(lambda: one.said(COMPLETE) and other.said(COMPLETE), PATIENCE_S)
        finally:
            await one.kill()
            await other.kill()
    expected = [b"%d" % number for number in range(COUNT)]
    assert one.bodies() == expected
    assert other.bodies() == expected
