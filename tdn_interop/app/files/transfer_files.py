"""The two files of a transfer: the one that is sent, and the part file that grows at the receiver.

Each has one thread of its own, so that nothing waits for a disk on the event loop and a caller that is cancelled
never leaves a digest half way: what was handed to the thread happens, in order, or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from tdn_interop.errors import ConfigError, Reason, guard

_log = structlog.get_logger("tdn.transfer")
T = TypeVar("T")
_HASH_BYTES = 1 << 20

_reads = guard("TDN-F-RES-05")
_writes = guard("TDN-F-RES-08")
_whole = guard("TDN-T-CHK-01")


@dataclass(frozen=True, slots=True)
class Shape:
    """What must not change while a file is sent."""

    size_bytes: int
    mtime_ns: int
    inode: int


def shape(path: Path) -> Shape:
    """The shape of a file that can be sent. Errors: INPUT_INVALID."""
    with _readable(path):
        _reads.check(path.is_file(), Reason.INPUT_INVALID, f"{path} is no file", ConfigError)
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
    return Shape(found.st_size, found.st_mtime_ns, found.st_ino)


class Source:
    """A file that is sent: what is read is hashed once, in order, whatever is read again."""

    def __init__(self, path: Path, promised: Shape) -> None:
        self._path = path
        self._promised = promised
        self._digest = hashlib.sha256()
        self._hashed = 0
        self._file = -1
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="send")

    async def read(self, offset: int, size_bytes: int) -> bytes:
        """That much of the file. Errors: DIGEST_MISMATCH (it is shorter now), INPUT_INVALID."""
        return await _in(self._worker, lambda: self._read(offset, size_bytes))

    async def skip(self, end: int) -> None:
        """Hash up to `end` what an earlier process has sent. Errors: those of `read`."""
        while self._hashed < end:
            await self.read(self._hashed, min(_HASH_BYTES, end - self._hashed))

    async def sha256(self) -> str:
        """Of everything up to where it was read. Errors: DIGEST_MISMATCH when the file is not what it was."""
        await self.check()
        return await _in(self._worker, self._digest.hexdigest)

    async def check(self) -> None:
        """Errors: DIGEST_MISMATCH unless the file is what it was when it was asked for, INPUT_INVALID."""
        found = await _in(self._worker, lambda: shape(self._path))
        _unchanged(found == self._promised, self._path)

    async def close(self) -> None:
        """Let go of the file."""
        await asyncio.to_thread(self._close)

    def _read(self, offset: int, size_bytes: int) -> bytes:
        with _readable(self._path):
            if self._file < 0:
                self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            content = os.pread(self._file, size_bytes, offset)
        _unchanged(len(content) == size_bytes, self._path)
        if offset <= self._hashed < offset + size_bytes:
            self._digest.update(memoryview(content)[self._hashed - offset :])
            self._hashed = offset + size_bytes
        return content

    def _close(self) -> None:
        self._worker.shutdown()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class Part:
    """A file that is received, in order, next to the place it will have."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        self._end = 0
        self._file = -1
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="receive")
        self._syncer = ThreadPoolExecutor(1, thread_name_prefix="sync")

    async def open(self, stored: int) -> int:
        """Go on behind the first `stored` bytes; how many bytes behind them were cut off.

        Errors: DIGEST_MISMATCH when the file is shorter, RESOURCE_EXHAUSTED, CONFIG_INVALID (not writable).
        """
        surplus = await _in(self._worker, lambda: self._open(stored))
        while self._end < stored:
            await _in(self._worker, lambda: self._skip(min(_HASH_BYTES, stored - self._end)))
        return surplus

    async def append(self, content: memoryview) -> None:
        """Write and hash the next bytes. Errors: RESOURCE_EXHAUSTED, CONFIG_INVALID."""
        await _in(self._worker, lambda: self._append(content))

    async def end(self) -> int:
        """Number of bytes written, once everything that was handed in is."""
        return await _in(self._worker, lambda: self._end)

    async def sync(self) -> int:
        """Bring what is written to the disk, while more may be written; how many bytes are there. Errors: as above."""
        end = await self.end()
        await _in(self._syncer, self._sync)
        return end

    async def sha256(self) -> str:
        """Of everything written."""
        return await _in(self._worker, self._digest.hexdigest)

    async def check(self) -> None:
        """Errors: CONFIG_INVALID unless the file has its name still."""
        await _in(self._worker, self._check)

    async def close(self) -> None:
        """Let go of the file."""
        await asyncio.to_thread(self._close)

    def _check(self) -> None:
        with _writable(self._path):
            same = os.path.samestat(os.lstat(self._path), os.fstat(self._file))
        words = f"{self._path} was replaced while it was received"
        _writes.check(same, Reason.CONFIG_INVALID, words, ConfigError)

    def _open(self, stored: int) -> int:
        with _writable(self._path):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.open(self._path, flags, 0o600)
            size = os.fstat(self._file).st_size
            guard("TDN-T-DLV-02").check(
                size >= stored, Reason.DIGEST_MISMATCH,
                f"{self._path} has {size} bytes, {stored} were stored", ConfigError,
            )  # fmt: skip
            os.ftruncate(self._file, stored)
        return size - stored

    def _skip(self, size_bytes: int) -> None:
        with _writable(self._path):
            self._digest.update(os.pread(self._file, size_bytes, self._end))
        self._end += size_bytes

    def _append(self, content: memoryview) -> None:
        with _writable(self._path):
            done = 0
            while done < len(content):
                done += os.pwrite(self._file, content[done:], self._end + done)
        self._digest.update(content)
        self._end += len(content)

    def _sync(self) -> None:
        with _writable(self._path):
            os.fdatasync(self._file)

    def _close(self) -> None:
        self._worker.shutdown()
        self._syncer.shutdown()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def part_path(out: Path, transfer_id: str) -> Path:
    """Where `out` grows: hidden, in the same folder, so that it can take its name at once."""
    return out.parent / f".tdn-{transfer_id}.part"


def check_appears(out: Path) -> None:
    """Errors: OUTPUT_EXISTS, INPUT_INVALID (no such folder)."""
    _writes.check(
        not os.path.lexists(out), Reason.OUTPUT_EXISTS, f"{out} exists; nothing was overwritten", ConfigError
    )
    _writes.check(out.parent.is_dir(), Reason.INPUT_INVALID, f"there is no folder {out.parent}", ConfigError)


def check_room(out: Path, size_bytes: int) -> None:
    """Errors: RESOURCE_EXHAUSTED when the disk has no room for that much now."""
    with _writable(out):
        room = os.statvfs(out.parent)
    free = room.f_bavail * room.f_frsize
    _writes.check(
        size_bytes <= free, Reason.RESOURCE_EXHAUSTED,
        f"the file has {size_bytes} bytes, {out.parent} has room for {free}", ConfigError,
    )  # fmt: skip


def sweep(parts: Iterable[str]) -> None:
    """Remove part files that are of no use any more, if they are still there."""
    for part in parts:
        try:
            Path(part).unlink(missing_ok=True)
        except OSError as error:  # its folder is not what it was
            _log.warning("part file not removed", path=part, why=error.strerror)


def publish(part: Path, out: Path) -> None:
    """Give a whole file its name; done again after a crash in the middle, it ends the same.

    Errors: OUTPUT_EXISTS when the name was taken meanwhile, and then the part file stays; CONFIG_INVALID.
    """
    if not part.exists():
        return  # a crash between here and the record: it has its name, or had it and was moved on
    with _writable(out):
        try:
            os.link(part, out)  # a rename would replace a file that appeared meanwhile
        except FileExistsError:
            ours = out.exists() and out.samefile(part)
            words = f"{out} exists; nothing was overwritten, the file is whole in {part}"
            _writes.check(ours, Reason.OUTPUT_EXISTS, words, ConfigError)
        except OSError as error:  # a file system without links, or a name that cannot be
            words = f"{out} cannot be written: {error.strerror}; the file is whole in {part}"
            _writes.refuse(Reason.CONFIG_INVALID, words, ConfigError)
        part.unlink()
        _sync_folder(out.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def _in(worker: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(worker, work)


def _unchanged(ok: bool, path: Path) -> None:
    _whole.check(ok, Reason.DIGEST_MISMATCH, f"{path.name} changed while it was sent", ConfigError)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        _reads.refuse(Reason.INPUT_INVALID, f"{path} cannot be read: {error.strerror}", ConfigError)


@contextlib.contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        reason = Reason.RESOURCE_EXHAUSTED if full else Reason.CONFIG_INVALID
        _writes.refuse(reason, f"{path} cannot be written: {error.strerror}", ConfigError)
