"""Files over channel topics: a header, parts of at most 1 MiB, and a digest at the end.

The file is never in memory as a whole, and a received file takes its name only when it is complete.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from tdn_interop import ids
from tdn_interop.errors import ConfigError, PeerProtocolError, Reason, guard
from tdn_interop.transport.channels import Channels

PART_BYTES = 1 << 20
STALL_S = 300.0
_HEADER, _PART, _END = b"H", b"P", b"E"


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

    async def send(self, node: str, topic: str, path: Path) -> AsyncIterator[Progress]:
        """Send a file. Errors: INPUT_INVALID (the file), those of the channel."""
        name = ids.topic(f"user/{topic}")
        size = _size(path)
        digest, moved = hashlib.sha256(), 0
        await self._channels.send(node, name, _HEADER + json.dumps({"bytes": size}).encode(), STALL_S)
        with path.open("rb") as file:
            while part := await asyncio.to_thread(file.read, PART_BYTES):
                digest.update(part)
                moved += len(part)
                await self._channels.send(node, name, _PART + part, STALL_S)
                yield Progress(moved, size, node)
        guard("TDN-T-CHK-01").check(
            moved == size, Reason.DIGEST_MISMATCH, f"{path.name} changed while it was sent", ConfigError
        )
        await self._channels.send(node, name, _END + digest.digest(), STALL_S)
        await self._channels.flush(node, name, STALL_S)
        yield Progress(moved, size, node, done=True, sha256=digest.hexdigest())

    async def receive(self, topic: str, out: Path, timeout_s: float | None) -> AsyncIterator[Progress]:
        """Receive one file. Errors: OUTPUT_EXISTS, DEADLINE, DIGEST_MISMATCH; nothing is left behind then."""
        name = ids.topic(f"user/{topic}")
        _may_appear(out)
        sender, header = await self._channels.receive(name, None, timeout_s)
        size = _announced(header)
        descriptor, temporary = tempfile.mkstemp(dir=out.parent, prefix=".receive-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                digest, moved = hashlib.sha256(), 0
                yield Progress(0, size, sender)
                while True:
                    _, message = await self._channels.receive(name, sender, STALL_S)
                    if message[:1] == _END:
                        break
                    moved += len(message) - 1
                    _fits(message[:1] == _PART and moved <= size, sender)
                    digest.update(memoryview(message)[1:])
                    await asyncio.to_thread(file.write, memoryview(message)[1:])
                    yield Progress(moved, size, sender)
                _fits(moved == size and message[1:] == digest.digest(), sender)
                file.flush()
                os.fsync(descriptor)
            os.link(temporary, out)  # a rename would replace a file that appeared meanwhile
        finally:
            os.unlink(temporary)  # noqa: PTH108  mkstemp gave the name as text
        yield Progress(moved, size, sender, done=True, sha256=digest.hexdigest())


def _size(path: Path) -> int:
    try:
        ok = path.is_file()
        size = path.stat().st_size
        path.open("rb").close()
    except OSError as error:
        guard("TDN-F-RES-05").refuse(
            Reason.INPUT_INVALID, f"{path} cannot be read: {error.strerror}", ConfigError
        )
    guard("TDN-F-RES-05").check(ok, Reason.INPUT_INVALID, f"{path} is no file", ConfigError)
    return size


def _may_appear(out: Path) -> None:
    gate = guard("TDN-F-RES-08")
    gate.check(not out.exists(), Reason.OUTPUT_EXISTS, f"{out} exists; nothing was overwritten", ConfigError)
    gate.check(out.parent.is_dir(), Reason.INPUT_INVALID, f"there is no folder {out.parent}", ConfigError)


def _announced(header: bytes) -> int:
    try:
        size = json.loads(header[1:])["bytes"]
        ok = header[:1] == _HEADER and isinstance(size, int) and 0 <= size < 1 << 50
    except (ValueError, KeyError, TypeError):
        ok = False
    guard("TDN-T-CHK-02").check(
        ok, Reason.CHUNK_META, "the transfer does not start with a header", PeerProtocolError
    )
    return int(size)


def _fits(ok: bool, sender: str) -> None:
    guard("TDN-T-CHK-02").check(
        ok, Reason.DIGEST_MISMATCH, f"the file of {sender} is not what it announced", PeerProtocolError
    )
