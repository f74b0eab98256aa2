"""Files over channel topics: a header, parts, and a digest at the end.

The file is never in memory as a whole, and a received file takes its name only when it is complete.
On a topic one file follows the other: whoever sends to the same node, or receives, on a topic that is
busy waits for its turn. A header in the middle means that the sender has begun anew; parts without a
header belong to a transfer that nobody follows any more, and are passed over.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import structlog

from tdn_interop import ids
from tdn_interop.app.data.results import appearing
from tdn_interop.errors import ConfigError, PeerProtocolError, Reason, TdnError, Unavailable, guard
from tdn_interop.transport.channel import within
from tdn_interop.transport.channels import Channels

_log = structlog.get_logger("tdn.transfer")
PART_BYTES = (1 << 20) - 1  # one frame with the letter in front
STALL_S = 300.0
FAREWELL_S = 5.0
_HEADER, _PART, _END, _GIVEN_UP = b"H", b"P", b"E", b"X"

_whole = guard("TDN-T-CHK-02")
_reads = guard("TDN-F-RES-05")


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a transfer stands; `sha256` is hexadecimal and given when `done`."""

    moved_bytes: int
    total_bytes: int
    peer: str
    done: bool = False
    sha256: str = ""


class Transfers:
    """Sends and receives files on the topics `user/...`."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self._turns: defaultdict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)

    async def send(self, node: str, topic: str, path: Path) -> AsyncGenerator[Progress]:
        """Send a file. Errors: INPUT_INVALID and DIGEST_MISMATCH (the file), those of the channel."""
        name = ids.topic(f"user/{topic}")
        _size(path)
        async with self._turns[node, name]:
            try:
                async with contextlib.aclosing(self._parts(node, name, path)) as parts:
                    async for now in parts:
                        yield now
            except (TdnError, asyncio.CancelledError, GeneratorExit):
                await self._give_up(node, name)
                raise

    async def _parts(self, node: str, name: str, path: Path) -> AsyncGenerator[Progress]:
        size, moved, digest = _size(path), 0, hashlib.sha256()
        await self._channels.send(node, name, _HEADER + json.dumps({"bytes": size}).encode(), STALL_S)
        with _readable(path), path.open("rb") as file:
            while part := await asyncio.to_thread(file.read, PART_BYTES):
                digest.update(part)
                moved += len(part)
                _unchanged(moved <= size, path)
                await self._channels.send(node, name, _PART + part, STALL_S)
                yield Progress(moved, size, node)
        _unchanged(moved == size, path)
        await self._channels.send(node, name, _END + digest.digest(), STALL_S)
        await self._channels.flush(node, name, STALL_S)
        yield Progress(moved, size, node, done=True, sha256=digest.hexdigest())

    async def _give_up(self, node: str, name: str) -> None:
        """Let the receiver know, if it can still be told."""
        try:
            await self._channels.send(node, name, _GIVEN_UP, FAREWELL_S)
        except TdnError as error:
            _log.info("receiver not told", peer=node, topic=name, reason=error.reason.name)

    async def receive(self, topic: str, out: Path, timeout_s: float | None) -> AsyncGenerator[Progress]:
        """Receive one file; `timeout_s` is for its beginning.

        Errors: OUTPUT_EXISTS, INPUT_INVALID (no such folder), DEADLINE, DIGEST_MISMATCH, CHUNK_META,
        ABANDONED when the sender gives up, those of the channel; nothing is left behind then.
        """
        name = ids.topic(f"user/{topic}")
        _may_appear(out)
        async with contextlib.AsyncExitStack() as turn:
            async with within(timeout_s, f"waiting for a file on {topic}"):
                await turn.enter_async_context(self._turns["", name])
                sender, size = await self._next_file(name)
            with appearing(out) as file:
                async for now in self._content(name, sender, size, file):
                    yield now
                await asyncio.to_thread(os.fsync, file.fileno())  # here, so that nobody waits for the disk
        yield Progress(now.moved_bytes, now.total_bytes, sender, done=True, sha256=now.sha256)

    async def _next_file(self, name: str) -> tuple[str, int]:
        """(sender, size) of the next file that begins."""
        while True:
            sender, message = await self._channels.receive(name)
            if message[:1] == _HEADER:
                return sender, _announced(message)

    async def _content(self, name: str, sender: str, size: int, file: BinaryIO) -> AsyncGenerator[Progress]:
        """Write what follows the header; the last progress has the digest."""
        moved, digest = 0, hashlib.sha256()
        yield Progress(0, size, sender)
        while True:
            _, message = await self._channels.receive(name, sender, STALL_S)
            kind, body = message[:1], memoryview(message)[1:]
            if kind == _HEADER:
                size, moved, digest = _announced(message), 0, hashlib.sha256()
                file.seek(0)
                file.truncate()
            elif kind == _PART:
                moved += len(body)
                _as_announced(moved <= size, sender)
                digest.update(body)
                await asyncio.to_thread(file.write, body)
            elif kind == _END:
                _as_announced(moved == size and body == digest.digest(), sender)
                file.flush()
                yield Progress(moved, size, sender, sha256=digest.hexdigest())
                return
            else:
                _whole.check(
                    kind != _GIVEN_UP, Reason.ABANDONED, f"{sender} has given up the transfer", Unavailable
                )
                _whole.refuse(Reason.CHUNK_META, f"{sender} sends what is no part of a file")
            yield Progress(moved, size, sender)


def _size(path: Path) -> int:
    with _readable(path):
        size = path.stat().st_size
        _reads.check(path.is_file(), Reason.INPUT_INVALID, f"{path} is no file", ConfigError)
        path.open("rb").close()
    return size


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        _reads.refuse(Reason.INPUT_INVALID, f"{path} cannot be read: {error.strerror}", ConfigError)


def _unchanged(ok: bool, path: Path) -> None:
    guard("TDN-T-CHK-01").check(
        ok, Reason.DIGEST_MISMATCH, f"{path.name} changed while it was sent", ConfigError
    )


def _may_appear(out: Path) -> None:
    gate = guard("TDN-F-RES-08")
    gate.check(
        not os.path.lexists(out), Reason.OUTPUT_EXISTS, f"{out} exists; nothing was overwritten", ConfigError
    )
    gate.check(out.parent.is_dir(), Reason.INPUT_INVALID, f"there is no folder {out.parent}", ConfigError)


def _announced(header: bytes) -> int:
    """The size in a header. Errors: CHUNK_META."""
    try:
        size = json.loads(header[1:])["bytes"]
        ok = type(size) is int and 0 <= size < 1 << 50
    except (ValueError, KeyError, TypeError, RecursionError):
        ok = False
    _whole.check(ok, Reason.CHUNK_META, "the transfer does not start with a header")
    return int(size)


def _as_announced(ok: bool, sender: str) -> None:
    _whole.check(
        ok, Reason.DIGEST_MISMATCH, f"the file of {sender} is not what it announced", PeerProtocolError
    )
