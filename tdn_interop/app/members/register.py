"""The register of a hub or top over its store: members, tokens, pinned identity keys."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import replace

import sqlalchemy as sa

from tdn_interop.app.evidence.log import EvidenceLog
from tdn_interop.app.store import members, tokens
from tdn_interop.app.store.engine import Store
from tdn_interop.app.store.members import MemberRow
from tdn_interop.app.store.tokens import TokenRow
from tdn_interop.errors import Reason, Refused, guard
from tdn_interop.identity import Signed, fingerprint
from tdn_interop.transport.records_wire import NodeRecord, decode_signed, encode_signed
from tdn_interop.transport.trust import now_ms

ACTIVE, ENDORSED, REVOKED = "ACTIVE", "ENDORSED", "REVOKED"


class Register:
    """Implements `transport.membership.Members`. A top also keeps the nodes below its hubs (ENDORSED)."""

    def __init__(self, store: Store, log: EvidenceLog) -> None:
        self._store = store
        self._log = log
        self._active: set[str] = set()

    async def load(self) -> None:
        """Read who is a member; `known` never waits for the database."""
        found = await self._store.run(members.every)
        self._active = {m.node_id for m in found if m.state == ACTIVE}

    @property
    def nodes(self) -> list[str]:
        """Members that enrolled here."""
        return sorted(self._active)

    async def every(self) -> list[MemberRow]:
        """All nodes of the register, whatever their state, by node id."""
        return await self._store.run(members.every)

    def known(self, node: str) -> bool:
        """True for a member that enrolled here."""
        return node in self._active

    async def record(self, node: str) -> Signed | None:
        """The record of a node, or None."""
        row = await self._store.run(lambda c: members.get(c, node))
        return decode_signed(row.record) if row and row.record else None

    async def invite(self, node: str, role: str, valid_s: int) -> tuple[bytes, int]:
        """(secret, end in milliseconds) of a new token; only its digest is kept. Errors: REVOKED."""
        secret, ends = secrets.token_bytes(16), now_ms() + valid_s * 1000
        row = TokenRow(hashlib.sha256(secret).digest(), node, role, ends)

        def write(connection: sa.Connection) -> None:
            _not_revoked(connection, node)
            tokens.add(connection, row)
            self._log.append_in(connection, "member.invited", node, {"role": role})

        await self._store.run(write)
        return secret, ends

    async def check_token(self, secret_sha256: bytes, node: str, role: str) -> None:
        """See `Members`."""

        def usable(connection: sa.Connection) -> bool:
            _not_revoked(connection, node)
            return tokens.usable(connection, secret_sha256, node, role, now_ms())

        good = await self._store.run(usable)
        guard("TDN-T-IDN-07").check(
            good, Reason.TOKEN_INVALID, f"no usable token for {node} as {role}", Refused
        )

    async def admit(self, secret_sha256: bytes, record: NodeRecord, signed: Signed) -> None:
        """See `Members`."""

        def write(connection: sa.Connection) -> None:
            _not_revoked(connection, record.node_id)
            tokens.spend(connection, secret_sha256, record.node_id, record.role, now_ms())
            members.put(connection, _row(record, signed, ACTIVE))
            self._log.append_in(connection, "member.admitted", record.node_id, _facts(record))

        await self._store.run(write)
        self._active.add(record.node_id)

    async def endorse(self, record: NodeRecord, signed: Signed) -> Signed:
        """See `Members`."""

        def write(connection: sa.Connection) -> Signed:
            _not_revoked(connection, record.node_id)
            row = members.get(connection, record.node_id)
            if row is None:
                members.put(connection, _row(record, signed, ENDORSED))
                self._log.append_in(connection, "member.endorsed", record.node_id, _facts(record))
                return signed
            same = row.identity_key == record.identity_key and row.role == record.role
            guard("TDN-T-IDN-06").check(
                same, Reason.ALREADY_EXISTS, f"{record.node_id} is logged with another identity key", Refused
            )
            return decode_signed(row.record or b"")

        return await self._store.run(write)

    async def expel(self, nodes: Iterable[str]) -> None:
        """These nodes, if they are in the register, are no members any more, for ever."""
        named = list(nodes)

        def write(connection: sa.Connection) -> None:
            for node in named:
                self.expel_in(connection, node, {})

        await self._store.run(write)
        for node in named:
            self.forget(node)

    def expel_in(self, connection: sa.Connection, node: str, facts: Mapping[str, str]) -> None:
        """`expel` as a part of the caller's transaction, which calls `forget` after it. Once for each node."""
        row = members.get(connection, node)
        if row and row.state != REVOKED:
            members.put(connection, replace(row, state=REVOKED))
            self._log.append_in(connection, "member.revoked", node, facts)

    def forget(self, node: str) -> None:
        """From now on the node is not `known`."""
        self._active.discard(node)


def _not_revoked(connection: sa.Connection, node: str) -> None:
    row = members.get(connection, node)
    ok = row is None or row.state != REVOKED
    guard("TDN-T-IDN-10").check(ok, Reason.REVOKED, f"{node} has been revoked; choose another id", Refused)


def _row(record: NodeRecord, signed: Signed, state: str) -> MemberRow:
    return MemberRow(record.node_id, record.role, record.identity_key, state, encode_signed(signed), now_ms())


def _facts(record: NodeRecord) -> dict[str, str]:
    return {"role": record.role, "identitySha256": fingerprint(record.identity_key)}
