"""What a table is like, told to its owner when it is registered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tdn_interop.app.data.keys import Normalisation, read_keys
from tdn_interop.app.data.table import CsvFormat, open_table


@dataclass(frozen=True, slots=True)
class Profile:
    """Counts and the digest of one table; the three key counts are over all declared key columns together."""

    columns: tuple[str, ...]
    rows: int
    bytes: int
    sha256: str  # hexadecimal
    distinct_keys: int
    duplicate_rows: int
    empty_rows: int


def inspect(path: Path, form: CsvFormat, keys: Sequence[str]) -> Profile:
    """Read a CSV file once, keys under the default normalisation.

    Errors: INPUT_INVALID, EMPTY_SET when there is no row, INVALID_ITEM when a row has an invalid key.
    """
    with open_table(path, form) as table:
        found = read_keys(table, keys, Normalisation())
        return Profile(
            table.columns,
            table.rows,
            table.bytes,
            table.sha256,
            len(found.items),
            found.duplicates,
            found.empties,
        )
