"""Backup and restore of one node: keys, membership, notices, configuration, database; no results, no logs.

A restored node must not go its own way from an earlier point: what others have seen of its evidence
log since then can not be unsaid. `continuity.py` compares before such a node does anything.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from tdn_interop.app.backup.archive import About, Archive, write
from tdn_interop.app.backup.continuity import MARKER
from tdn_interop.app.members.standing import Standing
from tdn_interop.app.node_lock import locked
from tdn_interop.config import NodeConfig, load_config
from tdn_interop.errors import ConfigError, Reason, guard
from tdn_interop.transport.trust import now_ms

DATABASE = "node.db"
# Beside the database. Results, logs, locks and unfinished files have other names.
_PATTERNS = ("node.toml", "membership.json", "*.key", "*.pem", "notices/*.bin")

_gate = guard("TDN-F-RCV-04")


@dataclass(frozen=True, slots=True)
class Done:
    """What was written: bytes and SHA-256 (hexadecimal) of the file, names of the files in it."""

    bytes: int
    sha256: str
    files: list[str]


def back_up(config: NodeConfig, path: Path, passphrase: str, copy: Callable[[Path], None]) -> Done:
    """Write a backup to a new file. `copy` writes a copy of the database to a new path.

    Errors: UNSUPPORTED when the database has a place of its own, OUTPUT_EXISTS, INPUT_INVALID, STATE_CONFLICT.
    """
    _gate.check(
        config.database is None, Reason.UNSUPPORTED,
        "the database of this node has a place of its own (key `database`): back it up with its own tools", ConfigError,
    )  # fmt: skip
    small = _small_files(config.dir)
    with tempfile.TemporaryDirectory(prefix=".backup-", dir=config.dir) as folder:
        database = Path(folder) / DATABASE
        copy(database)
        files: dict[str, bytes | Path] = {**small, DATABASE: database}
        write(path, About(config.id, config.role, now_ms(), _log_size(database)), files, passphrase)
    with path.open("rb") as file:
        return Done(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest(), sorted(files))


def back_up_stopped(config: NodeConfig, path: Path, passphrase: str) -> dict[str, object]:
    """`back_up` of a node that does not run, as the document of the command. Errors: CONFIG_INVALID when it runs."""
    with locked(config):
        done = back_up(config, path, passphrase, lambda target: _copy_stopped(config, target))
    return {"path": str(path)} | asdict(done)


def _copy_stopped(config: NodeConfig, target: Path) -> None:
    source = config.dir / DATABASE
    _gate.check(source.is_file(), Reason.INPUT_INVALID, f"there is no {source}", ConfigError)
    with sqlite3.connect(source) as old, sqlite3.connect(target) as new:
        old.backup(new)
    old.close()
    new.close()


def restore(path: Path, directory: Path, passphrase: str) -> About:
    """Make the folder of a node from a backup, whole or not at all.

    Errors: ALREADY_EXISTS unless the folder is new or empty, INPUT_INVALID, DIGEST_MISMATCH, CONFIG_INVALID.
    """
    empty = not directory.exists() or (directory.is_dir() and not any(directory.iterdir()))
    _gate.check(
        empty, Reason.ALREADY_EXISTS, f"{directory} is not empty; a node is never overwritten", ConfigError
    )
    archive = Archive(path, passphrase)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".restore-", dir=directory.parent) as folder:
        fresh = Path(folder) / "node"
        fresh.mkdir(mode=0o700)
        archive.extract(fresh)
        _check_node(fresh, archive.about)
        marker = {"made_at_ms": archive.about.made_at_ms, "restored_at_ms": now_ms()}
        (fresh / MARKER).write_text(json.dumps(marker) + "\n")
        fresh.replace(directory)
    return archive.about


def _small_files(directory: Path) -> dict[str, bytes]:
    """Everything but the database, as of one moment: a certificate and its key belong together."""
    first, again = _read(directory), _read(directory)
    _gate.check(
        first == again,
        Reason.STATE_CONFLICT,
        "the files of the node are just changing; try again",
        ConfigError,
    )
    _gate.check(
        "node.toml" in first, Reason.CONFIG_INVALID, f"there is no node.toml in {directory}", ConfigError
    )
    return first


def _read(directory: Path) -> dict[str, bytes]:
    found = sorted(file for pattern in _PATTERNS for file in directory.glob(pattern))
    return {str(file.relative_to(directory)): file.read_bytes() for file in found}


def _log_size(database: Path) -> int:
    connection = sqlite3.connect(database)
    try:
        (size,) = connection.execute("SELECT COUNT(*) FROM log_leaves").fetchone()
    finally:
        connection.close()
    return int(size)


def _check_node(folder: Path, about: About) -> None:
    """What was extracted is the node that the list names, and its parts fit together."""
    config = load_config(folder / "node.toml")
    standing = Standing.load(config, expired=True)
    same = (config.id, config.role) == (about.node, about.role)
    same = same and standing.record.identity_key == standing.key.public_key
    _gate.check(same, Reason.INPUT_INVALID, "the files of the backup belong to different nodes", ConfigError)
    connection = sqlite3.connect(folder / DATABASE)
    try:
        whole = connection.execute("PRAGMA quick_check").fetchone() == ("ok",)
    except sqlite3.DatabaseError:
        whole = False
    finally:
        connection.close()
    _gate.check(whole, Reason.INPUT_INVALID, "the database of the backup is damaged", ConfigError)
