"""A lab of real processes in which one hub is attacked: what it takes, what it says, and how others fare."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from tdn_interop.app.lab.lab import Lab
from tdn_interop.app.members import setup
from tdn_interop.config import load_config
from tdn_interop.errors import TdnError
from tests.app.cli.fake import COMMAND
from tests.interop.attacker import Attacker
from tests.mesh import AIRLINE, HUB_1, REGISTRY, RESEARCH

MALLORY = "mallory.shandong.cn"
MIB = 1 << 20
# A message there and back over three relays takes a few milliseconds on a machine of its own. Two cores may be
# shared by the attacker, six nodes and whatever else runs there.
PATIENT_MS = 3000.0


@dataclass
class Seen:
    """What happened while the attack ran."""

    victim: Process
    begin: int
    before: int
    pings_ms: list[float] = field(default_factory=list)
    failed: list[TdnError] = field(default_factory=list)

    def refusals(self) -> dict[tuple[str, str], int]:
        """(reason, requirement) -> times, by the log of the victim; for a session that it ended, (reason, "session")."""
        counts: dict[tuple[str, str], int] = {}
        for line in self.victim.log.read_text()[self.begin :].split("\n")[
            :-1
        ]:  # the last one is not whole yet
            event = json.loads(line) if line.startswith("{") else {}  # gRPC writes lines of its own
            if event.get("event") == "refused":
                key = event["reason"], event["requirement"]
            elif event.get("event") == "session" and event["event_kind"] == "failed":
                key = event["reason"], "session"
            else:
                continue
            counts[key] = counts.get(key, 0) + 1
        return counts

    async def refused(self, reason: str, requirement: str, times: int = 1) -> None:
        """Wait until the victim has said so."""
        try:
            async with asyncio.timeout(20):
                while self.refusals().get((reason, requirement), 0) < times:
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"no {reason} {requirement} x {times}: {self.refusals()}") from None

    @property
    def grown(self) -> int:
        """Bytes that the victim held at most above what it held before."""
        return self.victim.peak() - self.before


@dataclass(frozen=True)
class Process:
    """The process of a node."""

    pid: int
    log: Path

    def _memory(self, name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found
        return int(found[1]) << 10

    def holds(self) -> int:
        return self._memory("VmRSS")

    def peak(self) -> int:
        return self._memory("VmHWM")

    def forget_peak(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")  # proc_pid_clear_refs(5)


class World:
    """The mini lab; two members of the first hub are the attacker's, the others want to work."""

    def __init__(self, folder: Path) -> None:
        self.lab = Lab(folder / "lab")
        self.folder = folder

    async def up(self) -> None:
        await self.lab.up("mini")
        await self.lab.kill(RESEARCH)
        hub = self.lab.config(HUB_1)
        setup.init_node(self.folder / MALLORY, MALLORY, "child")
        async with self.lab.client(HUB_1) as client:
            token = (await client.invite(MALLORY, "child", 600))["token"]
        await setup.join(load_config(self.folder / MALLORY / "node.toml"), token)
        assert hub.listen
        await self._ping()

    def attacker(self, node: str = MALLORY) -> Attacker:
        config = self.lab.config(node) if node == RESEARCH else load_config(self.folder / node / "node.toml")
        sockets = self.folder / "s"
        sockets.mkdir(exist_ok=True)
        hub = self.lab.config(HUB_1)
        return Attacker(config, HUB_1, hub.listen or "", hub.enrolment or "", sockets)

    def process(self, name: str) -> Process:
        node = self.lab.node(name)
        assert node.pid
        return Process(node.pid, Path(node.log))

    async def tdn(self, node: str, *words: object) -> asyncio.subprocess.Process:
        """A command at a node."""
        command = [*COMMAND, *map(str, words), "--config", self.lab.node(node).config, "--json"]
        quiet = asyncio.subprocess.DEVNULL
        return await asyncio.create_subprocess_exec(*command, stdout=quiet, stderr=quiet)

    async def carries(self, size: int) -> None:
        """Wait until some tunnel through the victim has carried so many bytes."""
        async with asyncio.timeout(30), self.lab.client(HUB_1) as client:
            while all(one["forward_bytes"] < size for one in (await client.snapshot())["tunnels"]):
                await asyncio.sleep(0.05)

    @contextlib.asynccontextmanager
    async def attack(self, within_mib: int):
        """Within the block the hub is attacked. Afterwards: others fared well, and it has not grown beyond the bound."""
        victim = self.process(HUB_1)
        victim.forget_peak()
        seen = Seen(victim, len(victim.log.read_text()), victim.holds())
        over = asyncio.Event()
        bystander = asyncio.create_task(self._works(seen, over))
        try:
            yield seen
        finally:
            over.set()
            await bystander
        assert not seen.failed, seen.failed
        assert len(seen.pings_ms) >= 2, "the attack was too short to say anything about others"
        assert max(seen.pings_ms) < PATIENT_MS, sorted(seen.pings_ms)[-5:]
        assert seen.grown <= within_mib * MIB, f"{seen.grown / MIB:.0f} MiB"

    async def _works(self, seen: Seen, over: asyncio.Event) -> None:
        """A channel through the victim that somebody else needs: a message there and back, again and again."""
        while not over.is_set() or len(seen.pings_ms) < 2:
            try:
                seen.pings_ms.append(await self._ping())
            except TdnError as error:
                seen.failed.append(error)
                return
            await asyncio.sleep(0.02)

    async def _ping(self) -> float:
        async with self.lab.client(AIRLINE) as client:
            answer = await client.ping(REGISTRY, 10)
        assert HUB_1 in answer["hops"]
        return float(answer["round_trip_ms"])
