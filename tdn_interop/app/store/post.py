"""Parcels on their way out and in, and how far each stream has come."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import sqlalchemy as sa

from tdn_interop.app.store import rows, tables

_out, _in = tables.post_out, tables.post_in
_streams, _positions = tables.post_streams, tables.post_positions


@dataclass(frozen=True, slots=True)
class OutRow:
    """A parcel of ours without a receipt."""

    peer: str
    number: int
    body: bytes
    expires_at_ms: int
    created_at_ms: int


@dataclass(frozen=True, slots=True)
class StreamRow:
    """Our stream to a node."""

    peer: str
    stream_id: bytes
    next_number: int


@dataclass(frozen=True, slots=True)
class InRow:
    """A parcel of a node that is stored and not done; `number` is the order of arrival."""

    number: int
    peer: str
    body: bytes


@dataclass(frozen=True, slots=True)
class PositionRow:
    """How far a stream of another node has come, and when it moved last."""

    stream_id: bytes
    peer: str
    next_number: int
    moved_at_ms: int


# -- out ---------------------------------------------------------------------------------------


def stream(connection: sa.Connection, peer: str) -> StreamRow:
    """Our stream to `peer`; made when there is none."""
    found = rows.first(connection, StreamRow, sa.select(_streams).where(_streams.c.peer == peer))
    if found is None:
        found = StreamRow(peer, secrets.token_bytes(16), 0)
        rows.insert(connection, _streams, found)
    return found


def renew_stream(connection: sa.Connection, peer: str) -> None:
    """Put what is on its way to `peer` into a new stream, in the same order from 0."""
    mine = _out.c.peer == peer
    numbers = list(connection.scalars(sa.select(_out.c.number).where(mine).order_by(_out.c.number)))
    for place, number in enumerate(numbers):
        connection.execute(_out.update().where(mine, _out.c.number == number).values(number=place))
    rows.put(connection, _streams, StreamRow(peer, secrets.token_bytes(16), len(numbers)))


def renew_streams(connection: sa.Connection) -> None:
    """`renew_stream` to everybody: peers may have heard more under the old streams than this database knows."""
    for peer in list(connection.scalars(sa.select(_streams.c.peer))):
        renew_stream(connection, peer)


def add_out(connection: sa.Connection, peer: str, body: bytes, expires_at_ms: int, now_ms: int) -> None:
    """Keep a parcel under the next number of the stream to `peer`."""
    number = stream(connection, peer).next_number
    rows.insert(connection, _out, OutRow(peer, number, body, expires_at_ms, now_ms))
    connection.execute(_streams.update().where(_streams.c.peer == peer).values(next_number=number + 1))


def out_size(connection: sa.Connection, peer: str) -> tuple[int, int]:
    """(parcels, bytes) on their way to `peer`."""
    return _size(connection, _out, peer)


def out_from(
    connection: sa.Connection, peer: str, start: int, limit: int, limit_bytes: int
) -> list[tuple[int, OutRow]]:
    """The oldest parcels to `peer` from number `start`, each with the number from which nothing else is owed.

    At most `limit`, and beyond the first at most `limit_bytes` in all.
    """
    mine = _out.c.peer == peer
    before = connection.scalar(sa.select(sa.func.max(_out.c.number)).where(mine, _out.c.number < start))
    after = 0 if before is None else before + 1
    query = sa.select(_out).where(mine, _out.c.number >= start).order_by(_out.c.number).limit(limit)
    found: list[tuple[int, OutRow]] = []
    for row in rows.select(connection, OutRow, query):
        limit_bytes -= len(row.body)
        if found and limit_bytes < 0:
            break
        found.append((after, row))
        after = row.number + 1
    return found


def out_peers(connection: sa.Connection) -> list[str]:
    """Nodes for which something is on its way."""
    return sorted(connection.scalars(sa.select(_out.c.peer).distinct()))


def out_expired(connection: sa.Connection, peer: str, now_ms: int) -> list[OutRow]:
    """Parcels to `peer` whose validity is over, oldest first."""
    query = sa.select(_out).where(_out.c.peer == peer, _out.c.expires_at_ms <= now_ms)
    return rows.select(connection, OutRow, query.order_by(_out.c.number))


def next_expiry(connection: sa.Connection, peer: str) -> int | None:
    """When the first parcel to `peer` expires; None when there is none."""
    first: int | None = connection.scalar(
        sa.select(sa.func.min(_out.c.expires_at_ms)).where(_out.c.peer == peer)
    )
    return first


def drop_out(connection: sa.Connection, peer: str, numbers: list[int]) -> None:
    """Forget these parcels."""
    connection.execute(_out.delete().where(_out.c.peer == peer, _out.c.number.in_(numbers)))


def drop_out_below(connection: sa.Connection, peer: str, number: int) -> None:
    """Forget the parcels below `number`."""
    connection.execute(_out.delete().where(_out.c.peer == peer, _out.c.number < number))


# -- in ----------------------------------------------------------------------------------------


def position(connection: sa.Connection, stream_id: bytes) -> PositionRow | None:
    """How far the stream has come, or None."""
    query = sa.select(_positions).where(_positions.c.stream_id == stream_id)
    return rows.first(connection, PositionRow, query)


def positions_since(connection: sa.Connection, moved_at_ms: int) -> list[PositionRow]:
    """Streams on which something has come since then."""
    query = sa.select(_positions).where(_positions.c.moved_at_ms >= moved_at_ms)
    return rows.select(connection, PositionRow, query)


def put_position(connection: sa.Connection, row: PositionRow) -> None:
    """Write a position."""
    rows.put(connection, _positions, row)


def forget_positions(connection: sa.Connection, peer: str, keep: int) -> None:
    """Forget all but the `keep` streams of `peer` that moved last."""
    newest = sa.select(_positions.c.stream_id).where(_positions.c.peer == peer)
    newest = newest.order_by(_positions.c.moved_at_ms.desc()).limit(keep)
    connection.execute(
        _positions.delete().where(_positions.c.peer == peer, _positions.c.stream_id.not_in(newest))
    )


def add_in(connection: sa.Connection, row: InRow) -> None:
    """Keep a parcel that has arrived."""
    rows.insert(connection, _in, row)


def in_size(connection: sa.Connection, peer: str) -> tuple[int, int]:
    """(parcels, bytes) of `peer` that are not done."""
    return _size(connection, _in, peer)


def every_in(connection: sa.Connection) -> list[InRow]:
    """All parcels that are not done, in order of arrival."""
    return rows.select(connection, InRow, sa.select(_in).order_by(_in.c.number))


def drop_in(connection: sa.Connection, number: int) -> None:
    """The parcel is done."""
    connection.execute(_in.delete().where(_in.c.number == number))


def _size(connection: sa.Connection, table: sa.Table, peer: str) -> tuple[int, int]:
    body = table.c.body
    query = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(sa.func.length(body)), 0))
    count, size = connection.execute(query.where(table.c.peer == peer)).one()
    return count, size
