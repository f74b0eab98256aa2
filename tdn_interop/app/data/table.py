"""Reading a CSV table: one pass, bounded, and one clear sentence when the file is not what was declared.

The format is RFC 4180 with a declared encoding and delimiter, a header in the first line and
balanced quotes. Blank lines are not rows. A byte order mark of UTF-8 is not part of the first
column's name. Refusals name lines, columns and sizes, never a value.
"""

from __future__ import annotations

import csv
import hashlib
import io
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from tdn_interop.errors import ConfigError, Reason, guard

MAX_COLUMNS = 4_096
MAX_ROW_CHARS = 1 << 20  # one field is bounded by the csv module: 131,072 characters
_COMMON_DELIMITERS = ",;\t|"

_reads = guard("TDN-F-RES-05")
_unchanged = guard("TDN-F-RES-06")
_usable = guard("TDN-F-RES-07")


@dataclass(frozen=True, slots=True)
class CsvFormat:
    """How to read a CSV file: a Python text codec and one character."""

    encoding: str = "utf-8"
    delimiter: str = ","


class Table:
    """An open CSV file: `columns`, then its rows, once; `bytes`, `sha256` and `rows` hold when they are read."""

    def __init__(self, name: str, file: BinaryIO, form: CsvFormat) -> None:
        self.rows = 0
        self._name = name
        self._source = _Hashed(file)
        self._row_chars = 0
        self._text = self._decoded(form.encoding)
        try:
            self._reader = csv.reader(self._lines(), delimiter=form.delimiter, strict=True)
        except (TypeError, ValueError):
            self.refuse("the delimiter must be one character, not a quote or a line end")
        with self._readable():
            self.columns = self._header(form.delimiter)

    def __iter__(self) -> Iterator[list[str]]:
        """The rows, each as long as `columns`. Errors: INPUT_INVALID with the line, EMPTY_SET when there is none."""
        width = len(self.columns)
        with self._readable():
            for row in self._reader:
                self._row_chars = 0
                if len(row) != width:
                    if not row:
                        continue
                    self.refuse(f"line {self.line} has {len(row)} fields, the header has {width}")
                self.rows += 1
                yield row
        _usable.check(self.rows, Reason.EMPTY_SET, f"{self._name} has a header and no row", ConfigError)

    @property
    def line(self) -> int:
        """Number of the line that was read last, from 1."""
        return self._reader.line_num

    @property
    def sha256(self) -> str:
        """Hexadecimal digest of the bytes read so far."""
        return self._source.sha256.hexdigest()

    @property
    def bytes(self) -> int:
        """Number of bytes read so far."""
        return self._source.bytes

    def positions(self, keys: Sequence[str]) -> tuple[int, ...]:
        """Where the key columns are. Errors: INPUT_INVALID, with the names that there are."""
        missing = [key for key in keys if key not in self.columns]
        if missing or not keys:
            self.refuse(f"no column {_listed(missing)}; there are: {_listed(self.columns)}")
        return tuple(self.columns.index(key) for key in keys)

    def refuse(self, why: str) -> NoReturn:
        """Refuse the file as one that does not read as declared."""
        _reads.refuse(Reason.INPUT_INVALID, f"{self._name}: {why}", ConfigError)

    def _decoded(self, encoding: str) -> io.TextIOWrapper:
        try:
            plain = encoding.lower().replace("_", "-") in {"utf-8", "utf8"}
            return io.TextIOWrapper(
                self._source, encoding="utf-8-sig" if plain else encoding, errors="strict", newline=""
            )
        except (LookupError, ValueError):
            self.refuse(f"no text encoding {encoding[:40]!r}")

    def _lines(self) -> Iterator[str]:
        while line := self._text.readline(MAX_ROW_CHARS + 1):
            self._row_chars += len(line)
            if self._row_chars > MAX_ROW_CHARS:
                self.refuse(f"the row at line {self.line + 1} is longer than {MAX_ROW_CHARS} characters")
            if "\0" in line:
                self.refuse(f"line {self.line + 1} holds a NUL character: a binary file, or another encoding")
            yield line

    def _header(self, delimiter: str) -> tuple[str, ...]:
        columns = tuple(next((row for row in self._reader if row), ()))
        self._row_chars = 0
        if not columns:
            self.refuse("the file is empty; the first line must name the columns")
        if len(columns) > MAX_COLUMNS:
            self.refuse(f"{len(columns)} columns, the limit is {MAX_COLUMNS}")
        others = [other for other in _COMMON_DELIMITERS if other != delimiter and other in columns[0]]
        if len(columns) == 1 and others:
            self.refuse(f"only one column with delimiter {delimiter!r}; the header holds {others[0]!r}")
        repeated = [name for name, count in Counter(columns).items() if count > 1]
        if repeated:
            self.refuse(f"several columns are named {_listed(repeated)}")
        return columns

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except UnicodeDecodeError as error:
            # The decoder counts from the start of what it was given last.
            offset = self._source.bytes - len(error.object) + error.start
            self.refuse(f"byte {offset} is not {error.encoding}")
        except csv.Error as error:
            self.refuse(f"line {self.line}: {error}")  # the module's sentences hold no value
        except OSError as error:
            self.refuse(f"cannot be read: {error.strerror}")


@contextmanager
def open_table(path: Path, form: CsvFormat, expected_sha256: str | None = None) -> Iterator[Table]:
    """Open a CSV file for one pass over its rows.

    Errors: INPUT_INVALID; DIGEST_MISMATCH when the content is not `expected_sha256` (hexadecimal), told
    before anything that the change may have broken, and again if the file changes during the pass.
    """
    with _opened(path) as file:
        if expected_sha256 is not None:
            _check_digest(path.name, hashlib.file_digest(file, "sha256").hexdigest(), expected_sha256)
            file.seek(0)
        table = Table(path.name, file, form)
        yield table
        if expected_sha256 is not None:
            _check_digest(path.name, table.sha256, expected_sha256)


def _opened(path: Path) -> io.BufferedReader:
    try:
        # Asked before opening: a pipe would block.
        if not stat.S_ISREG(path.stat().st_mode):
            _reads.refuse(Reason.INPUT_INVALID, f"{path.name} is not a regular file", ConfigError)
        return path.open("rb")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        _reads.refuse(Reason.INPUT_INVALID, f"cannot open {path.name!r}: {why}", ConfigError)


def _check_digest(name: str, found: str, expected: str) -> None:
    # Without the digests: with half of one, whoever hears this could try out what the table is.
    _unchanged.check(
        found == expected, Reason.DIGEST_MISMATCH, f"{name} has changed since it was registered", ConfigError
    )


def _listed(names: Iterable[str]) -> str:
    shown = [name[:64] for name in names]
    more = f" and {len(shown) - 20} more" if len(shown) > 20 else ""
    return ", ".join(map(repr, shown[:20])) + more


class _Hashed(io.BufferedIOBase):
    """Digest and count of exactly the bytes that are parsed."""

    name = "table"

    def __init__(self, file: BinaryIO) -> None:
        self.sha256 = hashlib.sha256()
        self.bytes = 0
        self._file = file

    def readable(self) -> bool:
        return True

    def read1(self, size: int = -1, /) -> bytes:
        block = self._file.read(size)
        self.sha256.update(block)
        self.bytes += len(block)
        return block
