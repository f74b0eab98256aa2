"""Files on their way out and in. Ended ones are kept for a while: they are what keeps a file from coming twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from tdn_interop.app.store import rows, tables

_out, _in = tables.transfers_out, tables.transfers_in


@dataclass(frozen=True, slots=True)
class OutRow:
    """A file that goes out: QUEUED, RUNNING, DONE or FAILED.

    `acknowledged` bytes are on record at the peer; size, time and inode are those of the file when it was asked
    for. `failure` is JSON of a failure, `ended_at_ms` is 0 before the end.
    """

    transfer_id: str
    peer: str
    topic: str
    path: str
    size_bytes: int
    mtime_ns: int
    inode: int
    state: str
    created_at_ms: int
    acknowledged: int = 0
    attempt: int = 0
    resumes: int = 0
    resent_bytes: int = 0
    sha256: str = ""
    failure: Mapping[str, Any] | None = None
    ended_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class InRow:
    """A file that comes in: RECEIVING, COMPLETE, DELIVERED or FAILED.

    `stored` bytes of it are on the disk in `part`, a file that is ours; empty when that is over. `out` is the
    name that the file takes, `receive_id` the request of our owner that it answers.
    """

    transfer_id: str
    sender: str
    topic: str
    size_bytes: int
    receive_id: str
    out: str
    part: str
    state: str
    created_at_ms: int
    stored: int = 0
    attempt: int = 0
    resumes: int = 0
    resent_bytes: int = 0
    sha256: str = ""
    failure: Mapping[str, Any] | None = None
    ended_at_ms: int = 0


def put_out(connection: sa.Connection, row: OutRow) -> None:
    """Write a file that goes out."""
    rows.put(connection, _out, row)


def put_in(connection: sa.Connection, row: InRow) -> None:
    """Write a file that comes in."""
    rows.put(connection, _in, row)


def get_out(connection: sa.Connection, transfer_id: str) -> OutRow | None:
    """The file that goes out under this id, or None."""
    return rows.first(connection, OutRow, sa.select(_out).where(_out.c.transfer_id == transfer_id))


def get_in(connection: sa.Connection, transfer_id: str) -> InRow | None:
    """The file that comes in under this id, or None."""
    return rows.first(connection, InRow, sa.select(_in).where(_in.c.transfer_id == transfer_id))


def received_for(connection: sa.Connection, receive_id: str) -> InRow | None:
    """The file that came for this request of our owner, or None."""
    return rows.first(connection, InRow, sa.select(_in).where(_in.c.receive_id == receive_id))


def every_out(connection: sa.Connection) -> list[OutRow]:
    """All files that go out, newest first."""
    return rows.select(connection, OutRow, sa.select(_out).order_by(_out.c.created_at_ms.desc()))


def every_in(connection: sa.Connection) -> list[InRow]:
    """All files that come in, newest first."""
    return rows.select(connection, InRow, sa.select(_in).order_by(_in.c.created_at_ms.desc()))


def prune(connection: sa.Connection, before_ms: int) -> None:
    """Forget what ended before then."""
    for table in (_out, _in):
        ended = table.c.ended_at_ms
        connection.execute(table.delete().where(ended > 0, ended < before_ms))
