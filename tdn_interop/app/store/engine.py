"""The database of a node: one worker thread, one transaction per call, durable when the call returns.

SQLite runs with a write-ahead log, `synchronous=FULL` (a commit is on the disk), foreign keys and an exclusive
lock for the life of the process: a second process on the same file is refused at `open` and can damage
nothing. A process that dies leaves no lock behind. Other databases by URL; there the lock file of the node is
what keeps a second node away.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError

from tdn_interop.errors import ConfigError, Reason, Unavailable, guard

T = TypeVar("T")
# Only a process that is just going away may hold the lock for so long.
BUSY_MS = 1000
_PRAGMAS = (
    f"busy_timeout={BUSY_MS}",
    "locking_mode=EXCLUSIVE",
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
)


class Store:
    """Runs functions on the database, one after the other, each in a transaction of its own."""

    def __init__(self, engine: sa.Engine, worker: ThreadPoolExecutor) -> None:
        self._engine = engine
        self._worker = worker

    @classmethod
    def open(cls, url: str) -> Store:
        """Connect to `url` and bring the schema up to date.

        Errors: CONFIG_INVALID (the URL), STORE_UNAVAILABLE (in use by another process, not a database, not
        writable, or written by a newer version).
        """
        engine = _engine(url)
        store = cls(engine, ThreadPoolExecutor(1, thread_name_prefix="store"))
        try:
            store._worker.submit(store._transact, _migrate).result()
        except BaseException:
            store.close()
            raise
        return store

    async def run(self, fn: Callable[[sa.Connection], T]) -> T:
        """`fn` in one transaction: committed when it returns, undone when it raises.

        A caller that is cancelled meanwhile does not stop `fn`. Errors: STORE_UNAVAILABLE, and those of `fn`.
        """
        return await asyncio.get_running_loop().run_in_executor(self._worker, self._transact, fn)

    async def copy_to(self, path: Path) -> None:
        """Write a copy as of one moment to a new file; everything else waits meanwhile. SQLite only.

        Errors: STORE_UNAVAILABLE.
        """
        await asyncio.get_running_loop().run_in_executor(self._worker, self._copy, path)

    def close(self) -> None:
        """Finish what was asked for, then let go of the database."""
        self._worker.submit(self._engine.dispose).result()
        self._worker.shutdown()

    def _copy(self, path: Path) -> None:
        """Between two transactions: SQLite copies nothing while its own connection is about to write."""
        raw, target = self._engine.raw_connection(), sqlite3.connect(path)
        try:
            source: Any = raw.driver_connection  # Any: the DB-API connection
            source.backup(target)
        except sqlite3.Error as error:
            guard("TDN-F-RCV-01").refuse(Reason.STORE_UNAVAILABLE, f"database: {error}", Unavailable)
        finally:
            target.close()
            raw.close()

    def _transact(self, fn: Callable[[sa.Connection], T]) -> T:
        with _database_faults(), self._engine.begin() as connection:
            return fn(connection)


@contextmanager
def _database_faults() -> Iterator[None]:
    """Faults of disk, lock and file become refusals; a wrong statement stays what it is, our bug."""
    try:
        yield
    except DatabaseError as error:
        if type(error) not in {OperationalError, DatabaseError}:
            raise
        guard("TDN-F-RCV-01").refuse(Reason.STORE_UNAVAILABLE, f"database: {error.orig}", Unavailable)
    except CommandError as error:
        guard("TDN-F-RCV-01").refuse(
            Reason.STORE_UNAVAILABLE, f"the database is of another version: {error}", Unavailable
        )


def _engine(url: str) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
        if parsed.get_backend_name() != "sqlite":
            return sa.create_engine(parsed, pool_pre_ping=True, hide_parameters=True)
        engine = sa.create_engine(
            parsed, poolclass=sa.StaticPool, connect_args={"check_same_thread": False}, hide_parameters=True
        )  # an error with parameters would carry salts into the log
    except (ArgumentError, ImportError) as error:
        guard("TDN-F-RCV-01").refuse(
            Reason.CONFIG_INVALID, f"not a usable database URL: {error}", ConfigError
        )
    if parsed.database and parsed.database != ":memory:":
        _make_private(Path(parsed.database))
    sa.event.listen(engine, "connect", _set_up)
    sa.event.listen(engine, "begin", _begin)
    return engine


def _make_private(path: Path) -> None:
    """The file holds salts, so only its owner may read it; SQLite gives its side files the same mode."""
    try:
        path.touch(mode=0o600)
    except OSError as error:
        guard("TDN-F-RCV-01").refuse(
            Reason.STORE_UNAVAILABLE, f"database: {path}: {error.strerror}", Unavailable
        )


def _set_up(connection: Any, record: object) -> None:
    """Any: the DB-API connection. Transactions begin where `_begin` says, not where the driver guesses."""
    del record
    connection.isolation_level = None
    for pragma in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _migrate(connection: sa.Connection) -> None:
    config = Config()
    config.set_main_option("script_location", "tdn_interop.app.store:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
