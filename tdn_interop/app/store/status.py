"""Whom this node has revoked: at a hub nodes directly below it, at a top anybody of its tree."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from tdn_interop.app.store import rows, tables


@dataclass(frozen=True, slots=True)
class RevokedRow:
    """One revoked node; `by` is the node that decided it."""

    node_id: str
    at_ms: int
    reason: str
    by: str


def add(connection: sa.Connection, revoked: RevokedRow) -> None:
    """Write a revocation; the first one of a node stays."""
    if get(connection, revoked.node_id) is None:
        rows.insert(connection, tables.revocations, revoked)


def get(connection: sa.Connection, node_id: str) -> RevokedRow | None:
    """The revocation of a node, or None."""
    query = sa.select(tables.revocations).where(tables.revocations.c.node_id == node_id)
    return rows.first(connection, RevokedRow, query)


def every(connection: sa.Connection) -> list[RevokedRow]:
    """All revocations, by node id."""
    query = sa.select(tables.revocations).order_by(tables.revocations.c.node_id)
    return rows.select(connection, RevokedRow, query)
