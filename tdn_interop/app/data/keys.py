"""Keys for matching: the one normal form that all parties agree on, and the bytes that stand for a key.

Two parties match only what both turn into the same bytes, so the rule is a record of the flow and
part of the agreement. For each key column, in this order:

1. Unicode normal form NFC or NFKC (Unicode Standard Annex 15). NFKC also turns full-width digits
   and letters into plain ones.
2. Case: upper or lower by the full default mapping (Unicode Standard 3.13), or kept; then the
   normal form again, because a mapping may leave it.
3. Trim: characters with the property White_Space go at both ends.

A value that holds a lone surrogate or an unassigned code point (which includes noncharacters) is
invalid: another Unicode version may normalise it differently, and parties would miss a match in
silence. So is a key of more than `MAX_KEY_BYTES`. A key with an empty column is empty: no error, and
not used. The bytes (format `key-bytes/1`) are, for each column, the length in 2 bytes, big-endian,
then UTF-8; therefore ("a", "bc") and ("ab", "c") differ.
"""

from __future__ import annotations

import unicodedata
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tdn_interop.app.data.table import CsvFormat, Table, open_table
from tdn_interop.errors import ConfigError, PeerProtocolError, Reason, guard

KEY_FORMAT = "key-bytes/1"
MAX_KEY_BYTES = 4_096
UNUSED = -1  # position of a row that has no usable key

# Property White_Space, PropList.txt of Unicode 14; str.strip() alone would also take U+001C to U+001F.
_WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
_UNSTABLE = {"Cs", "Cn"}  # general categories: surrogate, unassigned

_canonical = guard("TDN-A-PSI-10")
_usable = guard("TDN-F-RES-07")


@dataclass(frozen=True, slots=True)
class Normalisation:
    """The rule that makes values of different owners comparable; part of the agreement."""

    trim: bool = True
    case: Literal["keep", "upper", "lower"] = "keep"
    unicode: Literal["NFC", "NFKC"] = "NFC"

    def apply(self, value: str) -> str | None:
        """The normal form of one column's value; None when the value is invalid."""
        if value.isascii():  # is in every normal form, and so is its upper and lower case
            value = self._cased(value)
        elif any(unicodedata.category(char) in _UNSTABLE for char in value):
            return None
        else:
            normal = unicodedata.normalize(self.unicode, value)
            value = unicodedata.normalize(self.unicode, self._cased(normal))
        return value.strip(_WHITE_SPACE) if self.trim else value

    def _cased(self, value: str) -> str:
        if self.case == "keep":
            return value
        return value.upper() if self.case == "upper" else value.lower()


@dataclass(frozen=True, slots=True)
class KeySet:
    """The distinct keys of one input, in file order, and where each row's key is among them."""

    items: list[bytes]
    item_of_row: array[int]  # for each row its position in `items`, or UNUSED
    duplicates: int  # rows whose key appeared before
    empties: int  # rows with an empty key

    @property
    def rows(self) -> int:
        """Number of rows without the header."""
        return len(self.item_of_row)


def encode_key(values: Sequence[str]) -> bytes:
    """The bytes of a normalised key. Injective."""
    encoded = [value.encode() for value in values]
    return b"".join([len(part).to_bytes(2, "big") + part for part in encoded])


def decode_key(data: bytes) -> tuple[str, ...]:
    """The columns of a key that a peer sent. Errors: INVALID_REQUEST when `data` is not the encoding of a key."""
    ok = 0 < len(data) <= MAX_KEY_BYTES
    _canonical.check(ok, Reason.INVALID_REQUEST, f"a key of {len(data)} bytes", PeerProtocolError)
    try:
        return tuple(_columns(data))
    except ValueError:
        _canonical.refuse(Reason.INVALID_REQUEST, "not the encoding of a key", PeerProtocolError)


def load_keys(
    path: Path,
    form: CsvFormat,
    columns: Sequence[str],
    normalisation: Normalisation,
    expected_sha256: str | None = None,
) -> KeySet:
    """Read the distinct keys of a CSV file.

    Errors: INPUT_INVALID; DIGEST_MISMATCH when the file is not the registered one; INVALID_ITEM when a
    row has an invalid key; EMPTY_SET when no row has a usable key.
    """
    with open_table(path, form, expected_sha256) as table:
        keys = read_keys(table, columns, normalisation)
    message = f"none of the {keys.rows} rows of {path.name} has a usable key"
    _usable.check(keys.items, Reason.EMPTY_SET, message, ConfigError)
    return keys


def read_keys(table: Table, columns: Sequence[str], normalisation: Normalisation) -> KeySet:
    """Read all rows of `table` for their keys. Errors: INPUT_INVALID, INVALID_ITEM."""
    key_of = _key_reader(table.positions(columns), normalisation)
    position: dict[bytes, int] = {}
    item_of_row = array("q")
    empties = invalid = first_line = 0
    for row in table:
        key = key_of(row)
        if key:
            item_of_row.append(position.setdefault(key, len(position)))
            continue
        item_of_row.append(UNUSED)
        if key is None:
            invalid += 1
            first_line = first_line or table.line
        else:
            empties += 1
    _canonical.check(
        not invalid,
        Reason.INVALID_ITEM,
        f"{invalid} of {table.rows} rows have an invalid key, the first at line {first_line}",
        ConfigError,
        invalidRows=invalid,
        firstLine=first_line,
    )
    return KeySet(list(position), item_of_row, table.rows - empties - len(position), empties)


def _key_reader(
    positions: tuple[int, ...], normalisation: Normalisation
) -> Callable[[list[str]], bytes | None]:
    """A function from row to key: its bytes, b"" for an empty key, None for an invalid one."""

    def key_of(row: list[str]) -> bytes | None:
        values = []
        for position in positions:
            value = normalisation.apply(row[position])
            if value is None or len(value) > MAX_KEY_BYTES:
                return None
            values.append(value)
        key = encode_key(values)
        if len(key) > MAX_KEY_BYTES:
            return None
        return key if all(values) else b""

    return key_of


def _columns(data: bytes) -> Iterator[str]:
    rest = data
    while rest:
        size = int.from_bytes(rest[:2], "big")
        part, rest = rest[2 : 2 + size], rest[2 + size :]
        if not 0 < size == len(part):
            raise ValueError(size)
        yield part.decode()
