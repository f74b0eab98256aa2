"""One node in a process of its own that does what the bench tells it, a JSON line in, a JSON line out.

usage: python -m bench.peer CONFIG
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import structlog

from tdn_interop.app.memory import keep_buffers
from tdn_interop.app.node import Node, running
from tdn_interop.config import load_config

MESSAGE_BYTES = 1 << 20
LONG_S = 300.0

Answer = dict[str, Any]


def cpu_s() -> float:
    """Seconds of CPU of this process so far, user and system, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Peer:
    """The commands; each returns what is answered."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._message = os.urandom(MESSAGE_BYTES)

    async def invite(self, node: str, role: str) -> Answer:
        return {"token": await self._node.mesh.admission.invite(node, role, 600)}

    async def linked(self) -> Answer:
        if self._node.mesh.link:
            await asyncio.wait_for(self._node.mesh.link.linked.wait(), LONG_S)
        return {}

    async def cpu(self) -> Answer:
        return {"cpu_s": cpu_s()}

    async def send(self, to: str, topic: str, count: int) -> Answer:
        """Messages of 1 MiB, until the other side has acknowledged all of them."""
        channels = self._node.mesh.channels
        for _ in range(count):
            await channels.send(to, topic, self._message, LONG_S)
        await channels.flush(to, topic, LONG_S)
        return {"path": list(self._node.mesh.peers.paths.get(to, ()))}

    async def receive(self, topic: str, count: int) -> Answer:
        total = 0
        for _ in range(count):
            _, message = await self._node.mesh.channels.receive(topic, timeout_s=LONG_S)
            total += len(message)
        return {"bytes": total}

    async def send_file(self, to: str, topic: str, path: str) -> Answer:
        async for _ in self._node.transfers.send(to, topic, Path(path)):
            pass
        return {}

    async def receive_file(self, topic: str, path: str) -> Answer:
        async for now in self._node.transfers.receive(topic, Path(path), LONG_S):
            done = now
        await asyncio.to_thread(Path(path).unlink)
        return {"bytes": done.moved_bytes}


async def serve(commands: dict[str, Callable[..., Awaitable[Answer]]]) -> None:
    """Answer the lines of standard input in order, until it ends."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    keep_buffers()  # as `tdn node run` does, and for the floor too
    print("{}", flush=True)
    while line := await reader.readline():
        what = json.loads(line)
        print(json.dumps(await commands[what.pop("do")](**what)), flush=True)


def commands_of(one: object) -> dict[str, Callable[..., Awaitable[Answer]]]:
    """The public methods of a class of commands."""
    return {name: getattr(one, name) for name in dir(one) if not name.startswith("_")}


async def main(config: Path) -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    async with running(load_config(config)) as node:
        node.mesh.admits = lambda _peer, _topic: True
        with contextlib.suppress(asyncio.CancelledError):
            await serve(commands_of(Peer(node)))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
