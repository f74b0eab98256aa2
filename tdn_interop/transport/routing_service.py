"""RoutingService: where a node is, over which relays, and the record that proves its identity key; adverts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import grpc.aio

from tdn_interop import identity, ids
from tdn_interop._pb.tdn.transport.v1 import routing_service_pb2, routing_service_pb2_grpc
from tdn_interop.errors import PeerProtocolError, Reason, Refused, TdnError, guard
from tdn_interop.identity import Identity, Signed
from tdn_interop.transport import records_wire, route, route_wire
from tdn_interop.transport.neighbours import Neighbours
from tdn_interop.transport.records_wire import MAX_HOPS, Route
from tdn_interop.transport.route import Path, Table
from tdn_interop.transport.route_wire import Change
from tdn_interop.transport.trust import now_ms

# A route changes when a link or a node on it fails; ask again after this time.
ROUTE_LIFE_MS = 60_000

# (name, hop limit) -> the checked answer of a neighbour: Route from us on, record of the node.
Ask = Callable[[str, int], Awaitable[tuple[Route, Signed]]]
FindRecord = Callable[[str], Awaitable[Signed | None]]


def node_of(name: str) -> str:
    """The node of a node id or a resource id. Errors: INVALID_REQUEST."""
    return (
        ids.resource_id(name, PeerProtocolError)[0] if "/" in name else ids.node_id(name, PeerProtocolError)
    )


class Routing:
    """The look-up of one hub or top: below itself it knows, otherwise it asks a neighbour on the way.

    `asks` holds for each neighbour that can be asked how; `is_linked` tells which neighbours can be reached now.
    """

    def __init__(
        self, key: Identity, table: Table, own: Signed, find: FindRecord, asks: Mapping[str, Ask],
        is_linked: Callable[[str], bool],
    ) -> None:  # fmt: skip
        self.me = key.node
        self._key = key
        self._table = table
        self._own = own
        self._find = find
        self._asks = asks
        self._is_linked = is_linked

    async def resolve(self, asker: str, name: str, hop_limit: int) -> tuple[Signed, Signed]:
        """(signed Route for `asker`, signed NodeRecord). Errors: NO_ROUTE, ROUTE_LOOP, INVALID_REQUEST.

        An unknown node and one outside the domain get the same answer.
        """
        guard("TDN-T-RTE-03").check(hop_limit > 0, Reason.ROUTE_LOOP, "the hop limit is used up", Refused)
        guard("TDN-T-ENC-01").check(
            hop_limit <= MAX_HOPS, Reason.INVALID_REQUEST, f"a route passes at most {MAX_HOPS} relays"
        )
        node = node_of(name)
        relays, record = await self._find_way(asker, node, hop_limit)
        here = () if self.me in {asker, node} else (self.me,)
        found = Route(node, (*here, *relays), now_ms() + ROUTE_LIFE_MS)
        return self._key.sign(identity.ROUTE, records_wire.encode_route(found)), record

    async def _find_way(self, asker: str, node: str, hop_limit: int) -> tuple[Path, Signed]:
        """The relays after us on the way that a tunnel would take now, and the record."""
        if node == self.me:
            return (), self._own
        if ids.parent(node) != self.me and (self._table.parent or not ids.is_below(node, self.me)):
            return await self._ask(asker, node, hop_limit)
        record = await self._find(node)
        if record is None:
            route.no_route(node)
        return route.relays(self._ways(asker, node)[0], node), record

    async def _ask(self, asker: str, node: str, hop_limit: int) -> tuple[Path, Signed]:
        ways = self._ways(asker, node)
        asked = [way for way in ways if way[0] in self._asks]
        if not asked:
            route.no_route(node)
        for way in asked:
            try:
                found, record = await self._asks[way[0]](node, hop_limit - 1)
            except TdnError:
                if way is asked[-1]:
                    raise
            else:  # only a node on the way knows better than we do how it goes on
                break
        return (found.hops if way is ways[0] else route.relays(ways[0], node)), record

    def _ways(self, asker: str, node: str) -> list[Path]:
        ways = self._table.ways(node, {asker} - {self.me})
        if not ways:
            route.no_route(node)
        return [way for way in ways if self._is_linked(way[0])] or ways


class RoutingServicer(routing_service_pb2_grpc.RoutingServiceServicer):
    """Answers adjacent nodes; the asker is the node of the certificate."""

    def __init__(
        self, routing: Routing, neighbours: Neighbours, is_neighbour: Callable[[str], bool],
        peer_of: Callable[[str], str],
    ) -> None:  # fmt: skip
        self._routing = routing
        self._neighbours = neighbours
        self._is_neighbour = is_neighbour
        self._peer_of = peer_of

    async def Resolve(  # noqa: N802  the name of the RPC
        self, request: routing_service_pb2.ResolveRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> routing_service_pb2.ResolveResponse:
        """See the proto."""
        asker = self._caller(context)
        signed, record = await self._routing.resolve(asker, request.name, request.hop_limit)
        return routing_service_pb2.ResolveResponse(
            route=records_wire.signed_to_pb(signed), record=records_wire.signed_to_pb(record)
        )

    # grpc.aio also takes a coroutine that calls context.write; the stubs know only generators.
    async def Advertise(  # type: ignore[override]  # noqa: N802  the name of the RPC
        self,
        request_iterator: AsyncIterator[routing_service_pb2.AdvertiseRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        """See the proto."""
        node = self._caller(context)

        async def told() -> AsyncIterator[Change]:
            async for request in request_iterator:
                yield route_wire.change_from_pb(request.change)

        async def send(change: Change) -> None:
            message = route_wire.change_to_pb(change)
            await context.write(routing_service_pb2.AdvertiseResponse(change=message))

        await self._neighbours.serve(node, told(), send)

    def _caller(self, context: grpc.aio.ServicerContext[Any, Any]) -> str:
        """The neighbour that calls. Errors: POLICY_DENIED."""
        node = self._peer_of(context.peer())
        guard("TDN-T-RTE-05").check(
            self._is_neighbour(node), Reason.POLICY_DENIED, f"{node} is no neighbour of {self._routing.me}", Refused
        )  # fmt: skip
        return node
