"""RoutingService: where a node is, over which relays, and the record that proves its identity key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio

from tdn_interop import identity, ids
from tdn_interop._pb.tdn.transport.v1 import routing_service_pb2, routing_service_pb2_grpc
from tdn_interop.errors import PeerProtocolError, Reason, Refused, guard
from tdn_interop.identity import Identity, Signed
from tdn_interop.transport import records_wire, route
from tdn_interop.transport.records_wire import Route
from tdn_interop.transport.route import Way
from tdn_interop.transport.trust import now_ms

# A route follows from names, so it changes only when a node leaves; ask again after this time.
ROUTE_LIFE_MS = 60_000

AskParent = Callable[[str, int], Awaitable[tuple[Signed, Signed]]]
FindRecord = Callable[[str], Awaitable[Signed | None]]


def node_of(name: str) -> str:
    """The node of a node id or a resource id. Errors: INVALID_REQUEST."""
    return (
        ids.resource_id(name, PeerProtocolError)[0] if "/" in name else ids.node_id(name, PeerProtocolError)
    )


class Routing:
    """The lookup of one hub or top: below itself it knows, above it asks."""

    def __init__(
        self, key: Identity, parent: str, own: Signed, find: FindRecord, ask: AskParent | None
    ) -> None:
        self.me = key.node
        self._key = key
        self._parent = parent
        self._own = own
        self._find = find
        self._ask = ask

    async def resolve(self, asker: str, name: str, hop_limit: int) -> tuple[Signed, Signed]:
        """(signed Route for `asker`, signed NodeRecord). Errors: NO_ROUTE, ROUTE_LOOP.

        An unknown node and one outside the domain get the same answer.
        """
        guard("TDN-T-RTE-03").check(hop_limit > 0, Reason.ROUTE_LOOP, "the hop limit is used up", Refused)
        node = node_of(name)
        record = await self._record(node, hop_limit)
        if record is None:
            route.no_route(node)
        found = Route(node, route.hops(asker, node), now_ms() + ROUTE_LIFE_MS)
        return self._key.sign(identity.ROUTE, records_wire.encode_route(found)), record

    async def _record(self, node: str, hop_limit: int) -> Signed | None:
        step = route.next_step(self.me, self._parent, node)
        if step.way is Way.HERE:
            return self._own
        if step.way is Way.DOWN or self._ask is None:
            return await self._find(node)
        return (await self._ask(node, hop_limit - 1))[1]


class RoutingServicer(routing_service_pb2_grpc.RoutingServiceServicer):
    """Answers adjacent nodes; the asker is the node of the certificate."""

    def __init__(self, routing: Routing, peer_of: Callable[[str], str]) -> None:
        self._routing = routing
        self._peer_of = peer_of

    async def Resolve(  # noqa: N802  the name of the RPC
        self, request: routing_service_pb2.ResolveRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> routing_service_pb2.ResolveResponse:
        """See the proto."""
        asker = self._peer_of(context.peer())
        guard("TDN-T-RTE-05").check(
            ids.parent(asker) == self._routing.me, Reason.POLICY_DENIED,
            f"{asker} is not directly below {self._routing.me}", Refused,
        )  # fmt: skip
        signed, record = await self._routing.resolve(asker, request.name, request.hop_limit)
        return routing_service_pb2.ResolveResponse(
            route=records_wire.signed_to_pb(signed), record=records_wire.signed_to_pb(record)
        )
