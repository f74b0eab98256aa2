"""Result files: whole or not at all, never over another file, readable by the owner of the node alone."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from tdn_interop.app.data.keys import UNUSED, KeySet, decode_key
from tdn_interop.app.data.table import CsvFormat, open_table
from tdn_interop.errors import ConfigError, Reason, Refused, guard

_whole = guard("TDN-F-RES-08")
_inside = guard("TDN-F-RES-09")
_UNFINISHED = ".result-"


@dataclass(frozen=True, slots=True)
class Written:
    """A result file that is in place."""

    path: Path
    rows: int
    bytes: int
    sha256: str  # hexadecimal


def place(directory: Path, requested: str, *, own: bool) -> Path:
    """Where a result can go. Errors: OUTPUT_EXISTS, and those of `locate`."""
    path = locate(directory, requested, own=own)
    if os.path.lexists(path):
        refuse_existing(path)
    return path


def locate(directory: Path, requested: str, *, own: bool) -> Path:
    """The name that the result of a job gets: below the results directory of the node.

    Only a flow that the node's own owner wrote (`own`) may name a path outside. Errors: POLICY_DENIED;
    CONFIG_INVALID when no file can have that name.
    """
    named = bool(Path(requested).name) and not requested.endswith("/") and "\0" not in requested
    _inside.check(named, Reason.CONFIG_INVALID, "the output path names no file", ConfigError)
    path = directory / requested
    # resolve() also follows links: a link below the directory may lead out of it.
    within = ".." not in path.parts and path.resolve().is_relative_to(directory.resolve())
    _inside.check(
        own or within,
        Reason.POLICY_DENIED,
        "the flow of another node may write below the results directory only",
        Refused,
    )
    return path


def write_keys(path: Path, columns: Sequence[str], items: Iterable[bytes]) -> Written:
    """Write opened keys, one row each, as UTF-8 with commas; sorted, so that their order says nothing.

    Errors: INVALID_REQUEST when an item is not the encoding of a key of `columns`; those of `place`.
    """
    keys = sorted(map(decode_key, items))
    fits = all(len(key) == len(columns) for key in keys)
    _whole.check(fits, Reason.INVALID_REQUEST, f"a key does not have {len(columns)} columns")
    with appearing(path) as file:
        rows = _fill(file, CsvFormat(), columns, keys)
    return written(path, rows)


def write_rows(
    path: Path, source: Path, form: CsvFormat, sha256: str, keys: KeySet, matched: Iterable[int]
) -> Written:
    """Write every row of `source` whose key matched, in file order and in the format of the source.

    `matched` holds positions in `keys.items`, `sha256` the digest of the file the keys were read from.
    Errors: DIGEST_MISMATCH when the file has changed since; those of `place`.
    """
    wanted = bytearray(len(keys.items))
    for position in matched:
        wanted[position] = 1
    # The inner context ends first: nothing appears before the digest of the source is known to hold.
    with appearing(path) as file, open_table(source, form, sha256) as table:
        pairs = zip(table, keys.item_of_row, strict=True)
        chosen = (row for row, item in pairs if item != UNUSED and wanted[item])
        rows = _fill(file, form, table.columns, chosen)
    return written(path, rows)


def _fill(file: BinaryIO, form: CsvFormat, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> int:
    text = io.TextIOWrapper(file, encoding=form.encoding, newline="")
    count = 0
    try:
        writer = csv.writer(text, delimiter=form.delimiter, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            writer.writerow(row)
            count += 1
    finally:
        text.detach()  # flushes, and leaves `file` open
    return count


@contextmanager
def appearing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes its name only when the block ends well; otherwise nothing is left."""
    with writable(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=_UNFINISHED)  # mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(descriptor)
            os.link(name, path)  # a rename would replace a file that appeared meanwhile
        finally:
            Path(name).unlink()
        sync_directory(path.parent)


def sweep(directory: Path) -> int:
    """Remove what a killed process was writing below the results directory; how many files.

    Only while nothing writes there. Links are not followed.
    """
    found = [
        Path(folder, name)
        for folder, _, names in os.walk(directory)
        for name in names
        if name.startswith(_UNFINISHED)
    ]
    found = [path for path in found if stat.S_ISREG(path.lstat().st_mode)]
    for path in found:
        path.unlink()
    return len(found)


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Make what keeps `path` from being written a refusal. Errors: OUTPUT_EXISTS, RESOURCE_EXHAUSTED, CONFIG_INVALID."""
    try:
        yield
    except FileExistsError:
        refuse_existing(path)
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        reason = Reason.RESOURCE_EXHAUSTED if full else Reason.CONFIG_INVALID
        _whole.refuse(reason, f"cannot write {path.name}: {error.strerror}", ConfigError)


def written(path: Path, rows: int) -> Written:
    """What is in place at `path`, with its digest."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Written(path, rows, file.tell(), digest)


def sync_directory(directory: Path) -> None:
    """Put the names in `directory` on the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refuse_existing(path: Path) -> NoReturn:
    """Refuse to write over a file. Errors: OUTPUT_EXISTS."""
    _whole.refuse(Reason.OUTPUT_EXISTS, f"{path.name} exists; nothing was overwritten", ConfigError)
