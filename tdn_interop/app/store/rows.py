"""Frozen rows to tables and back: the only generic code of the store. A row class has the columns as fields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, TypeVar

import sqlalchemy as sa

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Row = TypeVar("Row")


def insert(connection: sa.Connection, table: sa.Table, row: DataclassInstance) -> None:
    """Add a row; a row with the same key is an IntegrityError."""
    connection.execute(table.insert(), _values(row))


def put(connection: sa.Connection, table: sa.Table, row: DataclassInstance) -> None:
    """Write a row: in place of the one with the same key, or as a new one. Doing it twice changes nothing."""
    values = _values(row)
    same = [column == values[column.name] for column in table.primary_key]
    if connection.execute(table.update().where(*same), values).rowcount == 0:
        connection.execute(table.insert(), values)


def select(
    connection: sa.Connection, kind: Callable[..., Row], query: sa.Select[tuple[object, ...]]
) -> list[Row]:
    """Every row of `query`, as `kind`."""
    return [kind(**row) for row in connection.execute(query).mappings()]


def first(
    connection: sa.Connection, kind: Callable[..., Row], query: sa.Select[tuple[object, ...]]
) -> Row | None:
    """The first row of `query`, as `kind`, or None."""
    found = connection.execute(query.limit(1)).mappings().first()
    return None if found is None else kind(**found)


def _values(row: DataclassInstance) -> dict[str, object]:
    return {field.name: getattr(row, field.name) for field in fields(row)}
