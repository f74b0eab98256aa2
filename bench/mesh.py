"""Real nodes with real certificates, each a process of its own, and rounds of messages between them.

                cn
        shandong.cn      guangdong.cn
  airline  bank  research     registry

The airline sends: to the research directly, to the bank over one relay, to guangdong.cn itself over two, to the
registry over three.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.peer import MESSAGE_BYTES
from tdn_interop.app.members import setup
from tdn_interop.config import load_config

TOP, HUB_1, HUB_2 = "cn", "shandong.cn", "guangdong.cn"
AIRLINE, BANK = "airline.shandong.cn", "bank.shandong.cn"
RESEARCH, REGISTRY = "research.shandong.cn", "registry.guangdong.cn"
NODES = (
    (TOP, "top"),
    (HUB_1, "hub"),
    (HUB_2, "hub"),
    (RESEARCH, "child"),
    (BANK, "child"),
    (REGISTRY, "child"),
    (AIRLINE, "child"),
)
# Where the airline sends, by the number of relays, and the relays on the way.
WAYS = {0: (RESEARCH, ()), 1: (BANK, (HUB_1,)), 2: (HUB_2, (HUB_1, TOP)), 3: (REGISTRY, (HUB_1, TOP, HUB_2))}
TOPIC = "bench/messages"


@dataclass(frozen=True, slots=True)
class Round:
    """What one transfer took: seconds of wall, seconds of CPU by process."""

    moved_bytes: int
    wall_s: float
    cpu_s: dict[str, float]

    @property
    def mb_per_s(self) -> float:
        """10^6 bytes a second."""
        return self.moved_bytes / self.wall_s / 1e6

    def cpu_s_per_gb(self, process: str) -> float:
        """CPU seconds for 10^9 bytes."""
        return self.cpu_s[process] / self.moved_bytes * 1e9


class Worker:
    """A process that answers commands."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._turn = asyncio.Lock()

    @classmethod
    async def start(cls, log: Path, *arguments: str) -> Worker:
        with log.open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                stderr=errors, limit=1 << 20,
            )  # fmt: skip
        worker = cls(process)
        await worker._line(log)
        return worker

    async def _line(self, log: Path | None = None) -> dict[str, Any]:
        assert self._process.stdout
        line = await self._process.stdout.readline()
        if not line:
            words = await asyncio.to_thread(log.read_text) if log else "see its log"
            raise RuntimeError(f"a process of the bench has ended: {words[-2000:]}")
        return dict(json.loads(line))

    async def do(self, what: str, **arguments: Any) -> dict[str, Any]:
        """Tell it, and wait for the answer."""
        async with self._turn:
            assert self._process.stdin
            self._process.stdin.write(json.dumps({"do": what, **arguments}).encode() + b"\n")
            return await self._line()

    async def cpu_s(self) -> float:
        return float((await self.do("cpu"))["cpu_s"])

    async def stop(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 20)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


@dataclass
class Mesh:
    """Running processes by name; `raw.serve` and `raw.dial` are the two of the floor."""

    folder: Path
    workers: dict[str, Worker]

    async def messages(self, relays: int, count: int) -> Round:
        """`count` messages of 1 MiB from the airline, acknowledged."""
        to, path = WAYS[relays]
        one, other = self.workers[AIRLINE], self.workers[to]

        async def move() -> None:
            sent, got = await asyncio.gather(
                one.do("send", to=to, topic=TOPIC, count=count), other.do("receive", topic=TOPIC, count=count)
            )
            assert (tuple(sent["path"]), got["bytes"]) == (path, count * MESSAGE_BYTES)

        return await self._round((AIRLINE, *path, to), count * MESSAGE_BYTES, move())

    async def file(self, relays: int, source: Path) -> Round:
        """A file from the airline, complete and checked."""
        to, path = WAYS[relays]
        size = (await asyncio.to_thread(source.stat)).st_size

        async def move() -> None:
            out = str(self.folder / "received")
            got: dict[str, Any]
            _, got = await asyncio.gather(
                self.workers[AIRLINE].do("send_file", to=to, topic="bench", path=str(source)),
                self.workers[to].do("receive_file", topic="bench", path=out),
            )
            assert got["bytes"] == size

        return await self._round((AIRLINE, *path, to), size, move())

    async def raw(self, count: int) -> Round:
        """The same messages over the floor."""

        async def move() -> None:
            got = await self.workers["raw.dial"].do("send", count=count)
            assert got["bytes"] == count * MESSAGE_BYTES

        return await self._round(("raw.dial", "raw.serve"), count * MESSAGE_BYTES, move())

    async def _round(self, processes: tuple[str, ...], moved: int, work: Any) -> Round:
        before = {name: await self.workers[name].cpu_s() for name in processes}
        started = time.perf_counter()
        await work
        wall = time.perf_counter() - started
        used = {name: await self.workers[name].cpu_s() - before[name] for name in processes}
        return Round(moved, wall, used)


@contextlib.asynccontextmanager
async def mesh(*, raw: bool = True) -> AsyncIterator[Mesh]:
    """All nodes up, enrolled and linked; the folder goes at the end."""
    with tempfile.TemporaryDirectory(prefix="tdn-bench-") as name:
        folder = Path(name)
        made = Mesh(folder, {})
        try:
            for node, role in NODES:
                await _add(made, node, role)
            if raw:
                await _add_raw(made)
            yield made
        finally:
            for worker in reversed(list(made.workers.values())):
                await worker.stop()


async def _add(made: Mesh, node: str, role: str) -> None:
    folder = made.folder / node
    enrolment = _free_address() if role != "child" else None
    file = setup.init_node(folder, node, role, listen=_free_address(), enrolment=enrolment)
    if node == AIRLINE:
        listen = load_config(made.folder / RESEARCH / "node.toml").listen
        file.write_text(file.read_text() + f'\n[direct]\n"{RESEARCH}" = "{listen}"\n')
    if role != "top":
        parent = made.workers[node.partition(".")[2]]
        token = (await parent.do("invite", node=node, role=role))["token"]
        await setup.join(load_config(file), token)
    made.workers[node] = await Worker.start(folder / "log", "bench.peer", str(file))
    await made.workers[node].do("linked")


async def _add_raw(made: Mesh) -> None:
    for role, node in (("serve", RESEARCH), ("dial", AIRLINE)):
        folder = made.folder / node
        made.workers[f"raw.{role}"] = await Worker.start(
            folder / "raw.log", "bench.raw", role, str(folder), RESEARCH
        )
    port = (await made.workers["raw.serve"].do("port"))["port"]
    await made.workers["raw.dial"].do("dial", port=port)


def _free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"
