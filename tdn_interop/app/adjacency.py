"""The links of one node: to its parent and to further neighbours, what is told over them, and what follows."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import structlog

from tdn_interop.app.members.register import Register
from tdn_interop.app.members.standing import Standing
from tdn_interop.config import NodeConfig
from tdn_interop.errors import Reason, TdnError, guard
from tdn_interop.identity import ROUTE, Signed, verify
from tdn_interop.transport import records_wire
from tdn_interop.transport.adverts import RecordOf
from tdn_interop.transport.dial import Dialler
from tdn_interop.transport.link import Link, OnReceipt
from tdn_interop.transport.neighbours import Neighbours
from tdn_interop.transport.records_wire import NodeRecord, Route
from tdn_interop.transport.relay import HOP_LIMIT, Tunnels
from tdn_interop.transport.route import Table
from tdn_interop.transport.routing_service import Ask, Routing

_log = structlog.get_logger("tdn.adjacency")


class Adjacency:
    """`parent` is the link to the parent, None at a top; `links` are all that this node keeps, by their other end.

    `record_of` verifies a NodeRecord.
    """

    def __init__(
        self, config: NodeConfig, standing: Standing, register: Register, dialler: Dialler, record_of: RecordOf,
        on_refusal: Callable[[TdnError], None],
    ) -> None:  # fmt: skip
        place = standing.membership
        addresses = {link.node: link.address for link in config.links}
        if place.parent:
            addresses = {place.parent: place.parent_link} | addresses
        self.me = config.id
        self.links = {node: Link(config.id, node, address, dialler) for node, address in addresses.items()}
        self.parent = self.links.get(place.parent)
        self.table = Table(config.id, place.parent, {*addresses, *config.neighbours})
        relays = config.role != "child"
        self.neighbours = Neighbours(
            standing.key, place.record, self.table, relays=relays, record_of=record_of, on_refusal=on_refusal
        )
        # A child with one link has no choice; what others lead to is nothing to it.
        self._exchanges = relays or len(self.links) > 1
        self._place, self._key = place, standing.key
        self._register = register
        self._allowed = frozenset(config.neighbours)
        self._record_of = record_of
        self._records: dict[str, NodeRecord] = {}
        self._said: dict[str, str] = {}
        self.routing: Routing
        self.on_parent: Callable[[], object] = bool  # the link to the parent stands, again

    def serve(self, tunnels: Tunnels, on_receipt: OnReceipt) -> None:
        """Who takes what comes over the links."""
        asks: dict[str, Ask] = {node: partial(self._ask, link) for node, link in self.links.items()}
        find = self._register.record
        self.routing = Routing(self._key, self.table, self._place.record, find, asks, tunnels.is_linked)
        for link in self.links.values():
            link.on_opening = partial(tunnels.arrived, link)
            link.on_receipt = on_receipt
            link.on_record = partial(self._recorded, link.node)
            link.on_state = partial(self._state, link)
            if self._exchanges:
                link.exchange = self.neighbours.converse

    async def start(self, spawn: Callable[[Coroutine[Any, Any, object]], None]) -> None:
        """Keep every link from now on."""
        for link in self.links.values():
            await link.start()
        if self._exchanges:
            spawn(self.neighbours.run())

    async def close(self) -> None:
        """Detach everywhere."""
        for link in self.links.values():
            await link.close()

    def drop_expired(self, at_ms: int) -> None:
        """End the links whose other end shows a certificate that has expired."""
        for link in self.links.values():
            link.drop_expired(at_ms)

    def is_neighbour(self, node: str) -> bool:
        """True for a node that may keep a link to us: a member, or one that the configuration names."""
        return self._register.known(node) or node in self._allowed

    def key_of(self, node: str) -> bytes:
        """The identity key of a relay that we keep a link to, for its receipts; empty before it has shown its record."""
        record = self._records.get(node)
        if record is None and node == self._place.parent and self._place.parent_record:
            record = self._record_of(self._place.parent_record)
        return record.identity_key if record else b""

    async def resolve(self, name: str) -> tuple[Route, NodeRecord]:
        """Route and record of a node. Errors: NO_ROUTE and why no neighbour can be asked."""
        signed, record = await self.routing.resolve(self.me, name, HOP_LIMIT)
        return records_wire.decode_route(signed.statement), self._record_of(record)

    async def _ask(self, link: Link, name: str, hop_limit: int) -> tuple[Route, Signed]:
        """The answer of a neighbour. Errors: SIGNATURE_INVALID, IDENTITY_MISMATCH, and those of the neighbour."""
        signed, record = await link.resolve(name, hop_limit)
        good = verify(ROUTE, signed, self.key_of(link.node))
        guard("TDN-T-RTE-05").check(
            good, Reason.SIGNATURE_INVALID, f"a route is not signed by {link.node}, which we asked"
        )
        found = records_wire.decode_route(signed.statement)
        guard("TDN-T-RTE-05").check(
            found.destination == self._record_of(record).node_id,
            Reason.IDENTITY_MISMATCH,
            "route and record name different nodes",
        )
        return found, record

    def _recorded(self, node: str, signed: Signed) -> None:
        """Who is at the other end of a link. Errors: IDENTITY_MISMATCH, and those of the record."""
        record = self._record_of(signed)
        guard("TDN-T-IDN-02").check(
            record.node_id == node, Reason.IDENTITY_MISMATCH, f"{node} shows the record of {record.node_id}"
        )
        self._records[node] = record

    def _state(self, link: Link, up: bool, why: TdnError | None) -> None:
        said, self._said[link.node] = self._said.get(link.node), why.reason.name if why else ""
        if up:
            _log.info("linked", neighbour=link.node)
        elif why and said != why.reason.name:  # one line, not one for each attempt
            _log.warning("link lost", neighbour=link.node, reason=why.reason.name, message=why.message)
        if link is self.parent:
            self.neighbours.parent_linked(up)
            if up:
                self.on_parent()
