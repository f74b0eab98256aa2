"""The kill matrix: who dies × when, on one file over three relays; `make kills` runs it in full."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from tests.chaos.world import MIB, PATH, RECEIVER, SENDER, Kill, Outcome, World, make_file

SINGLE = tuple((Kill(node, at),) for node in PATH for at in (0.2, 0.5, 0.8))
PAIRS = tuple((Kill(first, 0.3), Kill(second, 0.7)) for first, second in itertools.product(PATH, repeat=2))


async def run(world: World, mib: int, matrix: Iterable[tuple[Kill, ...]], seed: int = 1) -> list[Outcome]:
    """One transfer of `mib` MiB for each entry of the matrix; prints each row as it is known."""
    source = world.folder / f"{mib}-mib.bin"
    digest = make_file(source, mib * MIB, seed)
    outcomes = []
    for kills in matrix:
        outcomes.append(await world.transfer(SENDER, RECEIVER, source, digest, kills))
        print(outcomes[-1].line(), flush=True)
        for folder in world.folder.glob("out-*"):
            shutil.rmtree(folder)
    return outcomes


async def main(single_mib: int, pairs_mib: int, large_mib: int) -> int:
    """Run everything; the number of rows with a problem."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        world = World(Path(name))
        await world.up()
        try:
            outcomes = await run(world, single_mib, ((), *SINGLE))
            outcomes += await run(world, pairs_mib, PAIRS)
            if large_mib:
                outcomes += await run(
                    world, large_mib, (tuple(Kill(n, 0.1 + 0.2 * i) for i, n in enumerate(PATH)),)
                )
        finally:
            await world.down()
    bad = sum(bool(outcome.problems) for outcome in outcomes)
    kills = sum(len(outcome.kills) for outcome in outcomes)
    print(f"{len(outcomes)} transfers, {kills} kills, {bad} with a problem, {time.monotonic() - begin:.0f} s")
    return bad


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--single-mib", type=int, default=200)
    parser.add_argument("--pairs-mib", type=int, default=20)
    parser.add_argument("--large-mib", type=int, default=0, help="one more transfer, every node killed once")
    options = parser.parse_args()
    sys.exit(1 if asyncio.run(main(options.single_mib, options.pairs_mib, options.large_mib)) else 0)
