"""Members of a hub or top, and the identity keys that are pinned."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from tdn_interop.app.store import rows, tables
from tdn_interop.errors import Reason, Refused, guard


@dataclass(frozen=True, slots=True)
class MemberRow:
    """One member; `state` is a state of the node machine, `record` a NodeRecord signed by the top."""

    node_id: str
    role: str
    identity_key: bytes
    state: str
    record: bytes | None
    enrolled_at_ms: int


@dataclass(frozen=True, slots=True)
class _Pin:
    node_id: str
    identity_key: bytes
    pinned_at_ms: int


def put(connection: sa.Connection, member: MemberRow) -> None:
    """Write a member."""
    rows.put(connection, tables.members, member)


def get(connection: sa.Connection, node_id: str) -> MemberRow | None:
    """The member, or None."""
    query = sa.select(tables.members).where(tables.members.c.node_id == node_id)
    return rows.first(connection, MemberRow, query)


def every(connection: sa.Connection) -> list[MemberRow]:
    """All members, by node id."""
    return rows.select(connection, MemberRow, sa.select(tables.members).order_by(tables.members.c.node_id))


def pin(connection: sa.Connection, node_id: str, identity_key: bytes, now_ms: int) -> None:
    """Pin the first identity key of a node. Errors: IDENTITY_MISMATCH when another one is pinned."""
    known = pinned(connection, node_id)
    if known is None:
        rows.insert(connection, tables.pins, _Pin(node_id, identity_key, now_ms))
        return
    guard("TDN-T-IDN-06").check(
        known == identity_key, Reason.IDENTITY_MISMATCH, f"{node_id} has another identity key", Refused
    )


def pinned(connection: sa.Connection, node_id: str) -> bytes | None:
    """The pinned identity key of a node, or None."""
    key = tables.pins.c.identity_key
    return connection.scalar(sa.select(key).where(tables.pins.c.node_id == node_id))


def pins(connection: sa.Connection) -> dict[str, bytes]:
    """Every pinned identity key by node id."""
    return {row.node_id: row.identity_key for row in connection.execute(sa.select(tables.pins))}
