"""Leaves and heads of the evidence log. What they mean is the business of `app.evidence`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from tdn_interop.app.store import rows, tables

_CHUNK = 10_000


@dataclass(frozen=True, slots=True)
class LeafRow:
    """One leaf: a serialized Signed, its leaf hash, and the root of the tree that ends with it."""

    idx: int
    leaf: bytes
    leaf_hash: bytes
    root: bytes
    kind: str
    subject: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class HeadRow:
    """The last head of a log: a serialized Signed."""

    node: str
    size: int
    head: bytes


@dataclass(frozen=True, slots=True)
class AnchorRow:
    """A head of a child's log that is leaf `leaf_index` of ours."""

    node: str
    size: int
    root: bytes
    leaf_index: int


def add_leaf(connection: sa.Connection, leaf: LeafRow) -> None:
    """Add a leaf."""
    rows.insert(connection, tables.log_leaves, leaf)


def leaf(connection: sa.Connection, idx: int) -> LeafRow | None:
    """The leaf at `idx`, or None."""
    query = sa.select(tables.log_leaves).where(tables.log_leaves.c.idx == idx)
    return rows.first(connection, LeafRow, query)


def last(connection: sa.Connection) -> tuple[int, int]:
    """(size, time of the last leaf); (0, 0) for an empty log."""
    c = tables.log_leaves.c
    found = connection.execute(sa.select(c.idx, c.at_ms).order_by(c.idx.desc()).limit(1)).first()
    return (0, 0) if found is None else (found.idx + 1, found.at_ms)


def hashes(connection: sa.Connection, start: int) -> Iterator[bytes]:
    """Leaf hashes from index `start`, in order."""
    c = tables.log_leaves.c
    query = sa.select(c.leaf_hash).where(c.idx >= start).order_by(c.idx)
    yield from connection.scalars(query.execution_options(yield_per=_CHUNK))


def leaves(connection: sa.Connection) -> Iterator[LeafRow]:
    """Every leaf in order, read in chunks."""
    query = sa.select(tables.log_leaves).order_by(tables.log_leaves.c.idx)
    for row in connection.execute(query.execution_options(yield_per=_CHUNK)).mappings():
        yield LeafRow(**row)


def about(connection: sa.Connection, subject: str) -> list[LeafRow]:
    """Leaves about a subject, in order."""
    c = tables.log_leaves.c
    return rows.select(
        connection, LeafRow, sa.select(tables.log_leaves).where(c.subject == subject).order_by(c.idx)
    )


def put_head(connection: sa.Connection, head: HeadRow) -> None:
    """Write the last head of a log."""
    rows.put(connection, tables.log_heads, head)


def head(connection: sa.Connection, node: str) -> HeadRow | None:
    """The last head of the log of `node`, or None."""
    query = sa.select(tables.log_heads).where(tables.log_heads.c.node == node)
    return rows.first(connection, HeadRow, query)


def put_anchor(connection: sa.Connection, anchor: AnchorRow) -> None:
    """Write an anchored head."""
    rows.put(connection, tables.log_anchors, anchor)


def last_anchor(connection: sa.Connection, node: str) -> AnchorRow | None:
    """The largest head of `node` anchored here, or None."""
    c = tables.log_anchors.c
    query = sa.select(tables.log_anchors).where(c.node == node).order_by(c.size.desc())
    return rows.first(connection, AnchorRow, query)
