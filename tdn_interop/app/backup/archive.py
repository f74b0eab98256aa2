"""The file of a backup: a tar stream with a list of contents first, encrypted if there is a passphrase.

Encryption is AES-256-GCM in chunks whose nonces are a prefix, a counter and a mark of the last chunk
(STREAM: Hoang, Reyhanitabar, Rogaway and Vizár, "Online Authenticated-Encryption and its
Nonce-Reuse Misuse-Resistance", 2015), under a key from scrypt (RFC 7914). So a file that was cut,
lengthened, reordered or changed is refused, whatever its size, in little memory.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from tdn_interop.app.data.results import appearing
from tdn_interop.errors import ConfigError, Reason, guard

FORMAT = "tdn-backup/1"
LIST = "contents.json"
MAX_LIST = 1 << 20
_MAGIC = b"TDNBAK1\0"
_SALT, _PREFIX, _TAG = 16, 7, 16
_CHUNK = 1 << 20
_COST = 1 << 16  # scrypt with r = 8: 64 MiB and some tenths of a second for each guess
_NAME = re.compile(r"(?:notices/)?[A-Za-z0-9][A-Za-z0-9._-]{0,220}\Z")

_gate = guard("TDN-F-RCV-04")


@dataclass(frozen=True, slots=True)
class About:
    """Whose backup it is: made when (milliseconds), and how many events the evidence log had."""

    node: str
    role: str
    made_at_ms: int
    log_size: int


@dataclass(frozen=True, slots=True)
class Item:
    """A file in the archive: size in bytes, SHA-256 in hexadecimal."""

    bytes: int
    sha256: str


class _Sink(Protocol):
    def write(self, data: bytes, /) -> object:
        """Take bytes."""


def write(path: Path, about: About, files: Mapping[str, bytes | Path], passphrase: str) -> None:
    """Write `files` by name into a new file that only its owner can read. Errors: OUTPUT_EXISTS, INPUT_INVALID."""
    items = {name: _item(content) for name, content in files.items()}
    listed = {
        "format": FORMAT, "node": about.node, "role": about.role, "made_at_ms": about.made_at_ms,
        "log_size": about.log_size,
        "files": {name: {"bytes": item.bytes, "sha256": item.sha256} for name, item in items.items()},
    }  # fmt: skip
    with (
        appearing(path) as file, _sealed(file, passphrase) as sink,
        tarfile.open(fileobj=sink, mode="w|") as tar,  # type: ignore[call-overload]  # it writes, nothing more
    ):  # fmt: skip
        _add(tar, LIST, json.dumps(listed, indent=1).encode())
        for name, content in files.items():
            _add(tar, name, content)


class Archive:
    """A backup that was read once from end to end: complete and unchanged."""

    def __init__(self, path: Path, passphrase: str) -> None:
        """Errors: INPUT_INVALID (no backup, cut short, wrong passphrase), DIGEST_MISMATCH."""
        self._path = path
        self._passphrase = passphrase
        with _faults(path):
            self.about, self.items = self._verified()

    def extract(self, folder: Path) -> None:
        """Write every file below `folder`, on the disk when this returns. Errors: as at the beginning."""
        with _faults(self._path):
            self._extract(folder)

    def _extract(self, folder: Path) -> None:
        for name, content in self._members():
            if name == LIST:
                continue
            target = folder / name
            target.parent.mkdir(mode=0o700, exist_ok=True)
            handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                digest = _copy(content, file)
                file.flush()
                os.fsync(file.fileno())
            self._check(name, digest)

    def _verified(self) -> tuple[About, dict[str, Item]]:
        members = self._members()
        name, content = next(members, ("", io.BytesIO()))
        _gate.check(name == LIST, Reason.INPUT_INVALID, f"{self._path} is no backup of a node", ConfigError)
        about, self.items = _listed(content.read(MAX_LIST + 1), self._path)
        seen = set()
        for name, content in members:
            self._check(name, _copy(content, None))
            seen.add(name)
        missing = min(self.items.keys() - seen, default="")
        _gate.check(not missing, Reason.INPUT_INVALID, f"{self._path} lacks {missing}", ConfigError)
        return about, self.items

    def _check(self, name: str, found: Item) -> None:
        _gate.check(
            self.items.get(name) == found, Reason.DIGEST_MISMATCH, f"{name} in {self._path} is not what was backed up",
            ConfigError,
        )  # fmt: skip

    def _members(self) -> Iterator[tuple[str, BinaryIO]]:
        """(name, content) in order; the content has to be read before the next one is asked for."""
        with self._path.open("rb") as file:
            source = _opened(file, self._passphrase, self._path)
            with tarfile.open(fileobj=source, mode="r|") as tar:  # type: ignore[call-overload]  # it reads, nothing more
                for member in tar:
                    # A sparse file may claim more than any disk holds.
                    ok = member.isreg() and not member.issparse() and _NAME.match(member.name)
                    _gate.check(
                        ok, Reason.INPUT_INVALID, f"{self._path} holds what is no file of a node", ConfigError
                    )
                    content = tar.extractfile(member)
                    assert content is not None  # noqa: S101  it is a regular file
                    yield member.name, content


def _listed(data: bytes, path: Path) -> tuple[About, dict[str, Item]]:
    try:
        raw = json.loads(data)
        ok = raw["format"] == FORMAT and len(data) <= MAX_LIST
        about = About(str(raw["node"]), str(raw["role"]), int(raw["made_at_ms"]), int(raw["log_size"]))
        items = {str(name): Item(int(i["bytes"]), str(i["sha256"])) for name, i in raw["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        ok = False
    _gate.check(ok, Reason.INPUT_INVALID, f"the list of contents of {path} cannot be read", ConfigError)
    return about, items


def _item(content: bytes | Path) -> Item:
    if isinstance(content, bytes):
        return Item(len(content), hashlib.sha256(content).hexdigest())
    with content.open("rb") as file:
        return _copy(file, None)


def _copy(source: BinaryIO, target: BinaryIO | None) -> Item:
    size, digest = 0, hashlib.sha256()
    while part := source.read(_CHUNK):
        size += len(part)
        digest.update(part)
        if target:
            target.write(part)
    return Item(size, digest.hexdigest())


def _add(tar: tarfile.TarFile, name: str, content: bytes | Path) -> None:
    entry = tarfile.TarInfo(name)
    entry.mode = 0o600
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        entry.size = file.seek(0, io.SEEK_END)
        file.seek(0)
        tar.addfile(entry, file)


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, ValueError) as error:  # ValueError: extended headers with no numbers
        _gate.refuse(Reason.INPUT_INVALID, f"{path} is damaged or no backup: {error}", ConfigError)
    except OSError as error:
        _gate.refuse(Reason.INPUT_INVALID, f"{path}: {error.strerror or error}", ConfigError)


# -- encryption ------------------------------------------------------------------------------------


class _Cipher:
    """The chunks of one file: the same nonce never comes twice."""

    def __init__(self, header: bytes, passphrase: str) -> None:
        salt, self._prefix = header[len(_MAGIC) : -_PREFIX], header[-_PREFIX:]
        self._aead = AESGCM(Scrypt(salt, 32, _COST, 8, 1).derive(passphrase.encode()))
        self._header = header
        self._number = 0

    def nonce(self, *, last: bool) -> bytes:
        """For the next chunk."""
        made = self._prefix + self._number.to_bytes(4, "big") + bytes([last])
        self._number += 1
        return made

    def seal(self, chunk: bytes, *, last: bool) -> bytes:
        """Encrypt the next chunk."""
        return self._aead.encrypt(self.nonce(last=last), chunk, self._header)

    def open(self, sealed: bytes, *, last: bool) -> bytes:
        """Decrypt the next chunk. Errors: InvalidTag."""
        return self._aead.decrypt(self.nonce(last=last), sealed, self._header)


class _Sealing:
    """Takes plain bytes, writes chunks."""

    def __init__(self, file: BinaryIO, cipher: _Cipher) -> None:
        self._file = file
        self._cipher = cipher
        self._buffer = bytearray()

    def write(self, data: bytes) -> int:
        """Take bytes."""
        self._buffer += data
        while len(self._buffer) > _CHUNK:
            self._file.write(self._cipher.seal(bytes(self._buffer[:_CHUNK]), last=False))
            del self._buffer[:_CHUNK]
        return len(data)

    def finish(self) -> None:
        """Write what is left as the last chunk."""
        self._file.write(self._cipher.seal(bytes(self._buffer), last=True))


class _Unsealing:
    """Reads chunks, gives plain bytes."""

    def __init__(self, file: BinaryIO, cipher: _Cipher, path: Path) -> None:
        self._file = file
        self._cipher = cipher
        self._path = path
        self._next = file.read(_CHUNK + _TAG)
        self._plain = b""

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, fewer only at the end. Errors: INPUT_INVALID."""
        while len(self._plain) < size and self._next:
            sealed, self._next = self._next, self._file.read(_CHUNK + _TAG)
            try:
                self._plain += self._cipher.open(sealed, last=not self._next)
            except InvalidTag:
                words = f"{self._path}: the passphrase is wrong, or the file was changed"
                _gate.refuse(Reason.INPUT_INVALID, words, ConfigError)
        given, self._plain = self._plain[:size], self._plain[size:]
        return given


@contextmanager
def _sealed(file: BinaryIO, passphrase: str) -> Iterator[_Sink]:
    if not passphrase:
        yield file
        return
    header = _MAGIC + os.urandom(_SALT + _PREFIX)
    file.write(header)
    sealing = _Sealing(file, _Cipher(header, passphrase))
    yield sealing
    sealing.finish()


def _opened(file: BinaryIO, passphrase: str, path: Path) -> BinaryIO | _Unsealing:
    header = file.read(len(_MAGIC) + _SALT + _PREFIX)
    if not header.startswith(_MAGIC):
        file.seek(0)
        return file
    _gate.check(
        passphrase, Reason.INPUT_INVALID, f"{path} is encrypted; it takes --passphrase-file", ConfigError
    )
    return _Unsealing(file, _Cipher(header, passphrase), path)
