"""Random kills over a mix of transfers and jobs; `make chaos` runs 300 of them. The seed is printed.

Everything that is drawn comes from the seed: who dies, how long it stays away, what is sent and how large. When
exactly a kill meets a transfer is up to the machine, so a seed repeats the plan, not every interleaving.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import random
import sqlite3
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tdn_interop.app.lab.demo import FLOW, TABLES
from tdn_interop.errors import TdnError
from tests.chaos.world import MIB, Outcome, World, make_file

RESEARCH, AIRLINE, REGISTRY = "research.shandong.cn", "airline.shandong.cn", "registry.guangdong.cn"
CHILDREN = (RESEARCH, AIRLINE, REGISTRY)
NODES = ("cn", "shandong.cn", "guangdong.cn", *CHILDREN)
ROWS = 3316  # what the samples have in common
PATIENCE_S = 300.0


@dataclass
class Tally:
    """What the run has seen. `problems` must stay empty."""

    kills: Counter[str] = field(default_factory=Counter)
    transfers: list[Outcome] = field(default_factory=list)
    jobs: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


class Chaos:
    """One run."""

    def __init__(self, world: World, seed: int, kills: int) -> None:
        self._world = world
        self._draw = random.Random(seed)
        self._kills = kills
        self._over = False
        self.tally = Tally()

    async def run(self) -> Tally:
        """Register the samples, then kill, send and compute until the kills are used up; then look."""
        await self._register()
        files = [self._file(number) for number in range(6)]
        async with asyncio.TaskGroup() as group:
            group.create_task(self._kill())
            for worker in range(2):
                group.create_task(self._send(random.Random(self._draw.random()), files, worker))
            group.create_task(self._compute(random.Random(self._draw.random())))
        await self._look_at_jobs()
        await self._world.down()
        self._look_at_folders()
        return self.tally

    async def _register(self) -> None:
        for node, (name, file) in TABLES.items():
            path = Path("tdn_interop/app/data/samples", file).resolve()
            answer = await self._world.tdn(
                node, "resource", "register", str(path), "--name", name, "--key", "tailnum"
            )
            if "problem" in answer:
                raise RuntimeError(answer["problem"])

    def _file(self, number: int) -> tuple[Path, str]:
        size = self._draw.choice((0, 1, 70_000, MIB, 5 * MIB, 20 * MIB)) if number else 12 * MIB
        path = self._world.folder / f"file-{number}.bin"
        return path, make_file(path, size, number)

    async def _kill(self) -> None:
        for number in range(self._kills):
            await asyncio.sleep(self._draw.uniform(0.0, 2.0))
            victims = self._draw.sample(NODES, k=2 if self._draw.random() < 0.15 else 1)
            pause_s = self._draw.choice((0.0, 0.0, 0.5, 3.0))
            await asyncio.gather(*(self._world.kill_and_restart(node, pause_s) for node in victims))
            self.tally.kills.update(victims)
            if (number + 1) % 25 == 0:
                print(
                    f"{number + 1} kills, {len(self.tally.transfers)} transfers, {dict(self.tally.jobs)}",
                    flush=True,
                )
        self._over = True

    async def _send(self, draw: random.Random, files: list[tuple[Path, str]], worker: int) -> None:
        while not self._over:
            sender, receiver = draw.sample(CHILDREN, k=2)
            source, digest = draw.choice(files)
            outcome = await self._world.transfer(sender, receiver, source, digest)
            # How often somebody died meanwhile nobody counts here: the price is the matrix's business.
            outcome.problems = [problem for problem in outcome.problems if not problem.startswith("resent")]
            self.tally.transfers.append(outcome)
            self.tally.problems += [
                f"transfer {sender} to {receiver}, {source.name}: {p}" for p in outcome.problems
            ]

    async def _compute(self, draw: random.Random) -> None:
        """One job after the other, proposed wherever a node is up."""
        flow = "\n".join(line for line in FLOW.splitlines() if not line.startswith("output"))
        while not self._over:
            node = draw.choice(CHILDREN)
            job = await self._propose(node, flow)
            if job:
                await self._ended(node, job)

    async def _propose(self, node: str, flow: str) -> str | None:
        with contextlib.suppress(TdnError):  # it may be dead just now: then another one is asked
            async with self._world.lab.client(node) as client:
                job: str = (await client.run_job(flow))["job_id"]
                return job
        await asyncio.sleep(0.2)
        return None

    async def _ended(self, node: str, job: str) -> None:
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            with contextlib.suppress(TdnError):
                async with self._world.lab.client(node) as client:
                    view = await client.job(job)
                if view["ended_at_ms"]:
                    self.tally.jobs[view["state"]] += 1
                    return
            await asyncio.sleep(0.3)
        self.tally.problems.append(f"job {job[:8]} of {node} has not ended in {PATIENCE_S:g} s")

    async def _look_at_jobs(self) -> None:
        """Every job has ended, everywhere alike."""
        until = time.monotonic() + PATIENCE_S
        while True:
            states: defaultdict[str, dict[str, Any]] = defaultdict(dict)
            for node in CHILDREN:
                async with self._world.lab.client(node) as client:
                    for view in (await client.jobs())["jobs"]:
                        states[view["job_id"]][node] = (
                            view["state"] if view["ended_at_ms"] else f"{view['state']}…"
                        )
            odd = {
                job: seen for job, seen in states.items() if len(set(seen.values())) != 1 or "…" in str(seen)
            }
            if not odd or time.monotonic() > until:
                break
            await asyncio.sleep(0.5)
        self.tally.problems += [f"job {job[:8]} stands at {seen}" for job, seen in odd.items()]

    def _look_at_folders(self) -> None:
        """One verdict for each job, one result for each success, nothing left behind."""
        verdicts: defaultdict[str, set[bytes]] = defaultdict(set)
        for node in CHILDREN:
            folder = self._world.folder / "lab" / node
            with contextlib.closing(sqlite3.connect(folder / "node.db")) as database:
                rows = database.execute("SELECT job_id, state, verdict FROM jobs").fetchall()
            for job, _, verdict in rows:
                if verdict:
                    verdicts[job].add(verdict)
            done = {job for job, state, _ in rows if state == "SUCCEEDED"}
            self._look_at_results(node, folder / "results", done if node == RESEARCH else set())
        self.tally.problems += [
            f"job {job[:8]} has {len(v)} verdicts" for job, v in verdicts.items() if len(v) > 1
        ]

    def _look_at_results(self, node: str, folder: Path, done: set[str]) -> None:
        found = {file.name for file in folder.iterdir()} if folder.exists() else set()
        wanted = {f"{job}.csv" for job in done}
        if found != wanted:
            more, less = sorted(found - wanted), sorted(wanted - found)
            self.tally.problems.append(f"{node}: results left behind {more}, missing {less}")
        for name in found & wanted:
            with (folder / name).open(newline="") as file:
                rows = sum(1 for _ in csv.reader(file)) - 1
            if rows != ROWS:
                self.tally.problems.append(f"{node}: {name} has {rows} rows")


async def main(seed: int, kills: int, folder: Path) -> Tally:
    """Run in `folder`."""
    world = World(folder)
    await world.up()
    try:
        return await Chaos(world, seed, kills).run()
    finally:
        await world.down()


def report(tally: Tally, seed: int, seconds: float) -> None:
    """Print what was seen."""
    resumes = sum(outcome.sent.get("resumes", 0) for outcome in tally.transfers)
    print(f"seed {seed}: {sum(tally.kills.values())} kills {dict(tally.kills)} in {seconds:.0f} s")
    print(f"{len(tally.transfers)} transfers, {resumes} resumes; jobs {dict(tally.jobs)}")
    for problem in tally.problems:
        print(f"PROBLEM {problem}")
    print(f"{len(tally.problems)} problems")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--kills", type=int, default=300)
    options = parser.parse_args()
    chosen = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    print(f"seed {chosen}", flush=True)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        seen = asyncio.run(main(chosen, options.kills, Path(name)))
    report(seen, chosen, time.monotonic() - begun)
    sys.exit(1 if seen.problems else 0)
