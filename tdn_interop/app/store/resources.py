"""Registered versions of resources; a version never changes."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from tdn_interop.app.store import rows, tables
from tdn_interop.errors import ConfigError, Reason, guard


@dataclass(frozen=True, slots=True)
class ResourceRow:
    """One version. `id` is `node/name@version`, `sha256` hexadecimal, `salt` secret."""

    id: str
    name: str
    version: int
    path: str
    encoding: str
    delimiter: str
    columns: tuple[str, ...]
    keys: tuple[str, ...]
    rows: int
    size_bytes: int
    sha256: str
    salt: bytes
    registered_at_ms: int
    distinct_keys: int
    duplicate_rows: int
    empty_rows: int


def add(connection: sa.Connection, resource: ResourceRow) -> None:
    """Register a version; the same row again changes nothing. Errors: ALREADY_EXISTS."""
    known = get(connection, resource.id)
    if known is None:
        rows.insert(connection, tables.resources, resource)
        return
    guard("TDN-F-RES-01").check(
        known == resource,
        Reason.ALREADY_EXISTS,
        f"{resource.id} is registered with other content",
        ConfigError,
    )


def get(connection: sa.Connection, resource_id: str) -> ResourceRow | None:
    """The version with this id, or None."""
    query = sa.select(tables.resources).where(tables.resources.c.id == resource_id)
    return rows.first(connection, ResourceRow, query)


def latest(connection: sa.Connection, name: str) -> ResourceRow | None:
    """The newest version of a name, or None."""
    r = tables.resources.c
    query = sa.select(tables.resources).where(r.name == name).order_by(r.version.desc())
    return rows.first(connection, ResourceRow, query)


def every(connection: sa.Connection) -> list[ResourceRow]:
    """All versions, by name and version."""
    r = tables.resources.c
    return rows.select(connection, ResourceRow, sa.select(tables.resources).order_by(r.name, r.version))
