"""Revoking: what the operator of a hub or top decides, and how it reaches everybody.

A top keeps whom it revoked and signs its list anew every minute and after each decision. A hub
refuses its member at once, whatever the top does, and orders the top to tell everybody; while the
top is away the order waits. A decision is for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import sqlalchemy as sa
import structlog

from tdn_interop import identity, ids
from tdn_interop.app.members.register import Register
from tdn_interop.app.store import status as rows
from tdn_interop.app.store.engine import Store
from tdn_interop.app.store.status import RevokedRow
from tdn_interop.errors import Reason, Refused, TdnError, guard
from tdn_interop.identity import Identity, Signed
from tdn_interop.transport import status_list, status_list_wire, status_service
from tdn_interop.transport.link import Link
from tdn_interop.transport.notices import STATUS_LIST, Notices
from tdn_interop.transport.records_wire import decode_record
from tdn_interop.transport.status_list import StatusLists
from tdn_interop.transport.status_list_wire import Order, Revocation
from tdn_interop.transport.trust import now_ms

_log = structlog.get_logger("tdn.revocation")
# How often a top signs its list, and a hub repeats what its top has not heard.
REFRESH_S = 60.0


class Revoking:
    """Whom one node revokes and whom it refuses. `link` is None at a top; `on_list` is told of each newer list."""

    def __init__(
        self,
        key: Identity,
        register: Register,
        store: Store,
        notices: Notices,
        lists: StatusLists,
        link: Link | None,
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self.lists = lists
        self.on_list: Callable[[], None] = lambda: None
        self._key, self._register, self._store = key, register, store
        self._notices, self._link, self._clock = notices, link, clock
        self._is_top = not ids.parent(key.node)
        self._expelled: set[str] = set()
        self._one = asyncio.Lock()  # a list never lacks whom an earlier one names

    async def start(self) -> None:
        """Refuse whom this node has revoked and whom the lists it keeps name; as a top, issue a list."""
        decided = await self._store.run(rows.every)
        self.lists.refuse(_entry(row) for row in decided)
        self._notices.add(STATUS_LIST, self.lists.verify, self._took)
        if self._is_top:
            await self._issue()

    async def run(self) -> None:
        """Every minute, as long as the node runs: a fresh list, or what the top has not heard yet."""
        while True:
            await asyncio.sleep(REFRESH_S)
            await self.refresh()

    async def refresh(self) -> None:
        """One turn of `run`."""
        if self._is_top:
            await self._issue()
            return
        await self.apply()
        for row in await self._store.run(rows.every):
            await self._tell(row)

    async def apply(self) -> None:
        """Members that a list names are no members any more."""
        named = {one.node_id for one in self.lists.everybody()} - self._expelled
        if named:
            await self._register.expel(named)
            self._expelled |= named

    async def revoke(self, node: str, reason: str) -> bool:
        """Decide it, here and for ever; True when the list of the top names the node by now.

        Errors: POLICY_DENIED for a node that is not ours to revoke.
        """
        status_list_wire.reason_text(reason)
        await self._check(node)
        await self._decide(RevokedRow(node, self._clock(), reason, self._key.node))
        if not self._is_top:
            row = await self._store.run(lambda c: rows.get(c, node))
            assert row is not None  # noqa: S101  written just before
            await self._tell(row)
        return self.lists.on_list(node)

    async def ordered(self, hub: str, signed: Signed) -> Signed:
        """At a top: carry out the order of a hub; the list that names the node.

        Errors: POLICY_DENIED unless the hub is a member and the node directly below it, SIGNATURE_INVALID.
        """
        gate, order = guard("TDN-T-IDN-10"), status_list_wire.decode_order(signed.statement)
        record = await self._register.record(hub)
        member = self._register.known(hub) and record is not None
        gate.check(member, Reason.POLICY_DENIED, f"{hub} is no member here", Refused)
        key = decode_record(record.statement).identity_key if record else b""
        good = signed.signer == hub and identity.verify(identity.REVOCATION, signed, key)
        gate.check(good, Reason.SIGNATURE_INVALID, f"{hub} did not sign the order")
        gate.check(
            ids.parent(order.node_id) == hub, Reason.POLICY_DENIED,
            f"{hub} cannot revoke {order.node_id}, which is not directly below it", Refused,
        )  # fmt: skip
        await self._check(order.node_id)
        await self._decide(RevokedRow(order.node_id, self._clock(), order.reason, hub))
        found = self._notices.newest(STATUS_LIST, self._key.node)
        assert found is not None  # noqa: S101  `_decide` has issued one
        return found

    async def _check(self, node: str) -> None:
        """What this node may revoke: a hub what is directly below it, a top anybody of its tree."""
        gate, me = guard("TDN-T-IDN-10"), self._key.node
        ours = ids.is_below(node, me) if self._is_top else ids.parent(node) == me
        where = "below" if self._is_top else "directly below"
        words = f"{node} is not {where} {me}; its hub or its top can revoke it"
        gate.check(ours, Reason.POLICY_DENIED, words, Refused)
        known = await self._register.record(node)
        gate.check(known is not None, Reason.POLICY_DENIED, f"{node} has never been a member", Refused)

    async def _decide(self, row: RevokedRow) -> None:
        async with self._one:

            def write(connection: sa.Connection) -> None:
                rows.add(connection, row)
                self._register.expel_in(connection, row.node_id, {"by": row.by, "reason": row.reason})

            await self._store.run(write)
            self._register.forget(row.node_id)
            self.lists.refuse([_entry(row)])
        _log.warning("revoked", node=row.node_id, by=row.by)
        if self._is_top:
            await self._issue()
        self.on_list()

    async def _issue(self) -> None:
        """Sign the list as it stands. The version follows the clock, so that it grows even over a restored backup."""
        async with self._one:
            decided = await self._store.run(rows.every)
            now = self._clock()
            before = self.lists.version(self._key.node)
            signed = status_list.issue(self._key, max(before + 1, now), now, map(_entry, decided))
            self._notices.offer(STATUS_LIST, signed)

    async def _tell(self, row: RevokedRow) -> None:
        """Order the top to tell everybody, unless it has."""
        if self._link is None or self.lists.on_list(row.node_id):
            return
        order = Order(row.node_id, row.reason, row.at_ms)
        signed = self._key.sign(identity.REVOCATION, status_list_wire.encode_order(order))
        try:
            self._notices.offer(STATUS_LIST, await status_service.order(self._link, signed))
        except TdnError as error:
            _log.warning(
                "the top has not heard of a revocation", node=row.node_id, reason=error.reason.name, message=error.message
            )  # fmt: skip

    def _took(self, signed: Signed) -> None:
        self.lists.took(signed)
        self.on_list()


def _entry(row: RevokedRow) -> Revocation:
    return Revocation(row.node_id, row.at_ms, row.reason)
