"""Taps: recording proxies on links, and what the nodes of `taps_node.py` recorded, read back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.interop import taps_node

READ_BYTES = 1 << 16


class Proxies:
    """One recording TCP proxy for each address it is asked about; the files are named after the address."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._begun: dict[str, tuple[str, asyncio.Task[asyncio.Server]]] = {}
        self._carrying: list[asyncio.Task[None]] = []

    def __call__(self, address: str) -> str:
        """The address of the proxy in front of `address`; it listens at once."""
        if address not in self._begun:
            listener = socket.create_server(("127.0.0.1", 0))
            front = f"127.0.0.1:{listener.getsockname()[1]}"
            serving = asyncio.start_server(lambda *near: self._accept(address, *near), sock=listener)
            self._begun[address] = front, asyncio.ensure_future(serving)
        return self._begun[address][0]

    @property
    def fronts(self) -> dict[str, str]:
        """Address of the proxy by the address behind it."""
        return {address: front for address, (front, _) in self._begun.items()}

    async def close(self) -> None:
        """Accept no more and cut what is still open."""
        for _, begun in self._begun.values():
            server = await begun
            server.close()
            await server.wait_closed()
        for task in self._carrying:
            task.cancel()
        await asyncio.gather(*self._carrying, return_exceptions=True)

    def _accept(self, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = f"{address}-{len(self._carrying)}"
        self._carrying.append(asyncio.ensure_future(self._carry(address, name, reader, writer)))

    async def _carry(
        self, address: str, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with (
            contextlib.closing(writer),
            contextlib.suppress(ConnectionError),
        ):  # a node may be cut off or down
            far_reader, far_writer = await asyncio.open_connection(*address.split(":"))
            with contextlib.closing(far_writer):
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._copy(reader, far_writer, f"{name}-in"))
                    both.create_task(self._copy(far_reader, writer, f"{name}-out"))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str) -> None:
        with (self._folder / name).open("ab", buffering=0) as file, contextlib.suppress(ConnectionError):
            while data := await reader.read(READ_BYTES):
                file.write(data)
                writer.write(data)
                await writer.drain()
        writer.close()


def command(folder: Path, settings: dict[str, str]) -> Callable[[str, Path], list[str]]:
    """The `command` of a Lab whose nodes record into `folder`/NODE; `settings` holds one NAME=VALUE by node."""

    def of(node: str, config: Path) -> list[str]:
        place = folder / node
        place.mkdir(parents=True, exist_ok=True)
        setting = [settings[node]] if node in settings else []
        return [sys.executable, "-P", taps_node.__file__, str(place), str(config), *setting]

    return of


@dataclass(frozen=True, slots=True)
class Notes:
    """What one node noted."""

    lines: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, folder: Path) -> Notes:
        """Read the notes below the folder of a node."""
        return cls(tuple(map(json.loads, (folder / taps_node.NOTES).read_text().splitlines())))

    def about(self, kind: str, **names: object) -> list[dict[str, Any]]:
        """The notes of a kind, in order, that hold all `names`."""
        return [line for line in self.lines if line["kind"] == kind and names.items() <= line.items()]
