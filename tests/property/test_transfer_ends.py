"""Whenever either end of a transfer dies, or their session, and however often: the file arrives once and whole."""

import asyncio
import os
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tdn_interop.app.files import incoming, outgoing
from tests.app.transfer_world import SIZES, World

SENDER, RECEIVER = "a.x.cn", "b.y.cn"
NAME, ASKED = "0a" * 16, "0b" * 16

sizes = st.sampled_from([0, 1, 64, 128, 1000, 3000])
blows = st.lists(
    st.tuples(st.sampled_from([SENDER, RECEIVER, "session"]), st.integers(1, 40), st.booleans()), max_size=8
)


async def strike(world, victim, count, *, after):
    """Let the victim go on for `count` of its calls, or to its end; then it is gone, and comes back."""
    if victim == "session":
        for _ in range(count):
            await asyncio.sleep(0)
        world.cut()
        return
    end = world.ends[victim]
    end.doom.left, end.doom.after = count, after
    while end.doom.left and not all(each.command.done() for each in world.ends.values()):
        await asyncio.sleep(0.001)
    await world.kill(victim)
    await world.start(victim)


async def scenario(folder, size, schedule):
    content = os.urandom(size)
    sent, out = folder / "sent", folder / "got"
    sent.write_bytes(content)
    world = World(folder, {
        SENDER: lambda transfers: transfers.send(RECEIVER, "t", sent, NAME),
        RECEIVER: lambda transfers: transfers.receive("t", out, 30, ASKED),
    })  # fmt: skip
    try:
        async with asyncio.timeout(20):
            await world.start(SENDER)
            await world.start(RECEIVER)
            for victim, count, after in schedule:
                await strike(world, victim, count, after=after)
            gone, got = [await world.ends[name].command for name in (SENDER, RECEIVER)]
        rows = [await world.ends[name].transfers.every() for name in (SENDER, RECEIVER)]
    finally:
        await world.close()
    assert out.read_bytes() == content
    assert out.stat().st_nlink == 1
    assert (gone.sha256, gone.done, got.done) == (got.sha256, True, True)
    assert [[row.state for row in each] for each in rows] == [["DONE"], ["DELIVERED"]]
    assert gone.resent_bytes <= len(schedule) * (SIZES.window + SIZES.part)
    assert {path.name for path in folder.iterdir() if "node" not in path.name and ".db" not in path.name} == {
        "sent",
        "got",
    }
    assert world.refusals == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(size=sizes, schedule=blows)
def test_whatever_dies(size, schedule):
    pauses = {"SHORTEST_S": 0.002, "LONGEST_S": 0.01}
    kept = {module: {name: getattr(module, name) for name in pauses} for module in (incoming, outgoing)}
    try:
        for module in kept:
            vars(module).update(pauses)
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(scenario(Path(folder), size, schedule))
    finally:
        for module, names in kept.items():
            vars(module).update(names)
