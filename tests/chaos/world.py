"""A lab under attack: real processes, real sockets, kill -9, and commands that have to live through it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tdn_interop.app.lab.lab import Lab

SENDER, HUB_1, TOP, HUB_2, RECEIVER = (
    "airline.shandong.cn",
    "shandong.cn",
    "cn",
    "guangdong.cn",
    "registry.guangdong.cn",
)
PATH = (SENDER, HUB_1, TOP, HUB_2, RECEIVER)
MIB = 1 << 20
# What one kill may cost on the wire again (bytes that had been sent and were not yet on the disk of the receiver).
RESENT_PER_KILL = 17 * MIB
PATIENCE_S = 600.0
COMMAND = (sys.executable, "-P", "-m", "tdn_interop.app.cli")


@dataclass(frozen=True)
class Kill:
    """`node` dies when the receiver has this part of the file."""

    node: str
    at: float


@dataclass
class Outcome:
    """What came of one transfer; `problems` is empty when it arrived identical, once, and at the price allowed."""

    kills: tuple[Kill, ...]
    sent: dict[str, Any] = field(default_factory=dict)
    received: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def line(self) -> str:
        """One row of a report."""
        names = {SENDER: "sender", HUB_1: "hub 1", TOP: "top", HUB_2: "hub 2", RECEIVER: "receiver"}
        what = (
            " + ".join(f"{names.get(kill.node, kill.node)} at {kill.at:.0%}" for kill in self.kills)
            or "no kill"
        )
        resent = self.sent.get("resent_bytes", 0) / MIB
        verdict = "; ".join(self.problems) or "identical, once"
        return (
            f"{what:36} resumes {self.sent.get('resumes', '?'):>2}  resent {resent:5.1f} MiB  "
            f"{self.received.get('seconds', 0):6.1f} s  {verdict}"
        )


def make_file(path: Path, size: int, seed: int) -> str:
    """Write `size` bytes that no compression shortens; their SHA-256."""
    source, digest, left = random.Random(seed), hashlib.sha256(), size
    with path.open("wb") as file:
        while left:
            part = source.randbytes(min(left, MIB))
            file.write(part)
            digest.update(part)
            left -= len(part)
    return digest.hexdigest()


class World:
    """The mini lab in `folder`, and what a user does there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lab = Lab(folder / "lab")
        self._numbers = iter(range(1 << 30))

    async def up(self) -> None:
        """Start every node."""
        await self.lab.up("mini")

    async def down(self) -> None:
        """Stop every node."""
        await self.lab.down()

    async def kill_and_restart(self, node: str, pause_s: float = 0.0) -> None:
        """kill -9, a pause, and the same node again."""
        await self.lab.kill(node)
        await asyncio.sleep(pause_s)
        await self.lab.start(node)

    def config(self, node: str) -> Path:
        """The configuration file of a node."""
        return self.folder / "lab" / node / "node.toml"

    async def tdn(self, node: str, *words: str) -> dict[str, Any]:
        """The document of a command at a node; {"problem": …} when it fails.

        A command that finds its node dead says so at once and has begun nothing: the user tries again. What it
        has begun, it follows by itself.
        """
        until = time.monotonic() + PATIENCE_S
        while True:
            document = await self._tdn(node, words, until - time.monotonic())
            if document.get("reason") != "NODE_DOWN" or time.monotonic() > until:
                return document
            await asyncio.sleep(0.2)

    async def _tdn(self, node: str, words: tuple[str, ...], patience_s: float) -> dict[str, Any]:
        process = await asyncio.create_subprocess_exec(
            *COMMAND, *words, "--json", "--config", str(self.config(node)),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            async with asyncio.timeout(patience_s):
                out, err = await process.communicate()
        except TimeoutError:
            return {"problem": f"tdn {words[0]} {words[1]} at {node} did not end in {PATIENCE_S:g} s"}
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        lines = [line for line in (err if process.returncode else out).decode().split("\n") if line.strip()]
        if not process.returncode:
            document: dict[str, Any] = json.loads(lines[-1])
            return document
        error = json.loads(lines[-1])["error"] if lines and lines[-1].startswith("{") else {}
        return {
            "problem": f"tdn {words[0]} {words[1]} at {node}: {lines[-1:]}",
            "reason": error.get("reason", ""),
        }

    async def transfer(
        self, sender: str, receiver: str, source: Path, digest: str, kills: tuple[Kill, ...] = (),
    ) -> Outcome:  # fmt: skip
        """Send `source` once and receive it once while the kills happen; then look at what is there."""
        number = next(self._numbers)
        folder = self.folder / f"out-{number}"
        folder.mkdir()
        out, topic, result = folder / source.name, f"t{number}", Outcome(kills)
        receiving = asyncio.create_task(self.tdn(receiver, "channel", "recv", topic, "--out", str(out)))
        sending = asyncio.create_task(self.tdn(sender, "channel", "send", receiver, topic, str(source)))
        try:
            for kill in kills:
                await self._until(folder, kill.at * source.stat().st_size, sending, receiving)
                await self.kill_and_restart(kill.node)
            result.sent = await sending
            if "problem" in result.sent:  # then there is nothing to wait for
                receiving.cancel()
            result.received = (await asyncio.gather(receiving, return_exceptions=True))[0]
            if isinstance(result.received, BaseException):
                result.received = {"problem": "not awaited"}
        finally:
            for command in (sending, receiving):
                command.cancel()
            await asyncio.gather(sending, receiving, return_exceptions=True)
        result.problems = await asyncio.to_thread(_problems, result, out, source, digest)
        return result

    async def _until(self, folder: Path, size: float, *commands: asyncio.Task[Any]) -> None:
        """Wait until a file in `folder` has `size` bytes, as an onlooker sees it, or nothing more can come."""
        while not any(command.done() for command in commands):
            if max((_size(file) for file in folder.iterdir()), default=0) >= size:
                return
            await asyncio.sleep(0.002)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:  # it was just given its name
        return 0


def _problems(result: Outcome, out: Path, source: Path, digest: str) -> list[str]:
    found = [document["problem"] for document in (result.sent, result.received) if "problem" in document]
    if found:
        return found
    if not out.exists() or _sha256(out) != digest:
        found.append("the file is not identical")
    if others := [file.name for file in out.parent.iterdir() if file != out]:
        found.append(f"left behind: {', '.join(others)}")
    size = source.stat().st_size
    found += [
        f"a command reports {told['bytes']} bytes, {told['sha256'][:16]}"
        for told in (result.sent, result.received)
        if (told["sha256"], told["bytes"]) != (digest, size)
    ]
    allowed = RESENT_PER_KILL * len(result.kills)
    if result.sent["resent_bytes"] > allowed:
        found.append(f"resent {result.sent['resent_bytes']} bytes, allowed {allowed}")
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
