"""The mailbox of a hub: sealing keys of the nodes below, and letters for them."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from tdn_interop.app.store import rows, tables

_keys, _letters = tables.mailbox_keys, tables.mailbox_letters


@dataclass(frozen=True, slots=True)
class KeyRow:
    """The newest sealing key of a node, as it signed it; SHA-256 of the public key."""

    node_id: str
    signed: bytes
    key_sha256: bytes
    not_after_ms: int


@dataclass(frozen=True, slots=True)
class LetterRow:
    """One letter; `number` is its place in the mailbox, `sha256` that of the statement, `letter` a SignedLetter."""

    number: int
    sender: str
    letter_id: bytes
    recipient: str
    sha256: bytes
    size_bytes: int
    expires_at_ms: int
    deposited_at_ms: int
    letter: bytes


@dataclass(frozen=True, slots=True)
class BoxRow:
    """The letters for one node together."""

    recipient: str
    letters: int
    size_bytes: int
    oldest_at_ms: int


def put_key(connection: sa.Connection, key: KeyRow) -> None:
    """Write the key of a node."""
    rows.put(connection, _keys, key)


def key(connection: sa.Connection, node_id: str) -> KeyRow | None:
    """The key of a node, or None."""
    return rows.first(connection, KeyRow, sa.select(_keys).where(_keys.c.node_id == node_id))


def next_number(connection: sa.Connection) -> int:
    """The place behind every letter."""
    last = connection.scalar(sa.select(sa.func.max(_letters.c.number)))
    return 0 if last is None else last + 1


def add(connection: sa.Connection, letter: LetterRow) -> None:
    """Keep a letter."""
    rows.insert(connection, _letters, letter)


def drop_same(connection: sa.Connection, sender: str, letter_id: bytes) -> None:
    """Forget the letter of a sender with this id."""
    connection.execute(
        _letters.delete().where(_letters.c.sender == sender, _letters.c.letter_id == letter_id)
    )


def sizes(connection: sa.Connection, *, sender: str = "", recipient: str = "") -> tuple[int, int]:
    """(letters, bytes) of a sender or for a recipient."""
    mine = _letters.c.sender == sender if sender else _letters.c.recipient == recipient
    query = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(_letters.c.size_bytes), 0)).where(mine)
    count, size = connection.execute(query).one()
    return count, int(size)


def after(connection: sa.Connection, recipient: str, number: int) -> LetterRow | None:
    """The first letter for `recipient` behind `number`, or None."""
    query = sa.select(_letters).where(_letters.c.recipient == recipient, _letters.c.number > number)
    return rows.first(connection, LetterRow, query.order_by(_letters.c.number))


def by_digest(connection: sa.Connection, recipient: str, sha256: bytes) -> LetterRow | None:
    """The letter for `recipient` with this digest, or None."""
    query = sa.select(_letters).where(_letters.c.recipient == recipient, _letters.c.sha256 == sha256)
    return rows.first(connection, LetterRow, query)


def expired(connection: sa.Connection, now_ms: int) -> list[LetterRow]:
    """Letters past their validity, oldest first."""
    query = sa.select(_letters).where(_letters.c.expires_at_ms <= now_ms).order_by(_letters.c.number)
    return rows.select(connection, LetterRow, query)


def drop(connection: sa.Connection, number: int) -> None:
    """Forget a letter."""
    connection.execute(_letters.delete().where(_letters.c.number == number))


def boxes(connection: sa.Connection) -> list[BoxRow]:
    """Every recipient with letters, by node id."""
    c = _letters.c
    query = sa.select(
        c.recipient, sa.func.count().label("letters"), sa.func.sum(c.size_bytes).label("size_bytes"),
        sa.func.min(c.deposited_at_ms).label("oldest_at_ms"),
    ).group_by(c.recipient).order_by(c.recipient)  # fmt: skip
    return rows.select(connection, BoxRow, query)
