"""Resources of this node: immutable versions of registered tables."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa

from tdn_interop import ids
from tdn_interop.app.data.profile import inspect
from tdn_interop.app.data.table import CsvFormat
from tdn_interop.app.evidence.log import EvidenceLog
from tdn_interop.app.evidence.statements import SALT_BYTES, commitment
from tdn_interop.app.store import resources as rows
from tdn_interop.app.store.engine import Store
from tdn_interop.app.store.resources import ResourceRow
from tdn_interop.errors import ConfigError, Reason, Refused, guard
from tdn_interop.transport.trust import now_ms


class Resources:
    """Register and find."""

    def __init__(self, node: str, store: Store, log: EvidenceLog) -> None:
        self._node = node
        self._store = store
        self._log = log

    async def register(self, name: str, path: Path, form: CsvFormat, keys: Sequence[str]) -> ResourceRow:
        """Register the file as the next version of `name`; the same content again is the same version.

        Errors: INPUT_INVALID, EMPTY_SET, INVALID_ITEM, INVALID_REQUEST; nothing is registered then.
        """
        ids.resource_name(name)
        guard("TDN-F-RES-05").check(keys, Reason.INPUT_INVALID, "name at least one key column", ConfigError)
        profile = await asyncio.to_thread(inspect, path, form, tuple(keys))
        guard("TDN-F-RES-07").check(
            profile.distinct_keys, Reason.EMPTY_SET,
            f"none of the {profile.rows} rows of {path.name} has a usable key", ConfigError,
        )  # fmt: skip

        def write(connection: sa.Connection) -> ResourceRow:
            last = rows.latest(connection, name)
            same = last and (last.sha256, last.path, last.encoding, last.delimiter, last.keys) == (
                profile.sha256, str(path), form.encoding, form.delimiter, tuple(keys),
            )  # fmt: skip
            if last and same:
                return last
            version = last.version + 1 if last else 1
            row = ResourceRow(
                f"{self._node}/{name}@{version}", name, version, str(path), form.encoding, form.delimiter,
                profile.columns, tuple(keys), profile.rows, profile.bytes, profile.sha256,
                secrets.token_bytes(SALT_BYTES), now_ms(), profile.distinct_keys, profile.duplicate_rows,
                profile.empty_rows,
            )  # fmt: skip
            rows.add(connection, row)
            facts = {"commitment": resource_commitment(row).hex(), "rows": str(row.rows)}
            self._log.append_in(connection, "resource.registered", row.id, facts)
            return row

        return await self._store.run(write)

    async def every(self) -> list[ResourceRow]:
        """All versions."""
        return await self._store.run(rows.every)

    async def find(self, text: str) -> ResourceRow:
        """A resource by `name`, `node/name` or `node/name@version`; the newest version unless named.

        Errors: RESOURCE_UNKNOWN, also for another node's resource.
        """
        node, name, version = ids.resource_id(text if "/" in text else f"{self._node}/{text}")
        row = None
        if node == self._node:
            row = await self._store.run(
                lambda c: rows.get(c, f"{node}/{name}@{version}") if version else rows.latest(c, name)
            )
        if row is None:
            guard("TDN-F-RES-02").refuse(
                Reason.RESOURCE_UNKNOWN, f"there is no resource {text} here", Refused
            )
        return row


def resource_commitment(row: ResourceRow) -> bytes:
    """What others may see of the content: a commitment that only the owner can open."""
    return commitment(row.salt, bytes.fromhex(row.sha256))
