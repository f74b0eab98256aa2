"""StatusService on the wire: hubs order, their top decides and answers with its list."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio

from tdn_interop._pb.tdn.transport.v1 import status_service_pb2 as pb
from tdn_interop._pb.tdn.transport.v1 import status_service_pb2_grpc
from tdn_interop.identity import Signed
from tdn_interop.transport import records_wire
from tdn_interop.transport.link import CALL_S, Link
from tdn_interop.transport.status_list_wire import signed_list_from_pb

# The list for the order of a node below.
Decide = Callable[[str, Signed], Awaitable[Signed]]


class StatusServicer(status_service_pb2_grpc.StatusServiceServicer):
    """Takes orders of hubs; which hub it is comes from the certificate of the link."""

    def __init__(self, decide: Decide, peer_of: Callable[[str], str]) -> None:
        self._decide = decide
        self._peer_of = peer_of

    async def Revoke(  # noqa: N802  the name of the RPC
        self, request: pb.RevokeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.RevokeResponse:
        """See the proto."""
        hub = self._peer_of(context.peer())
        found = await self._decide(hub, records_wire.signed_from_pb(request.order))
        return pb.RevokeResponse(status_list=records_wire.signed_to_pb(found))


async def order(link: Link, signed: Signed) -> Signed:
    """The list of the top with the node that a signed order names. Errors: those of the top and of the link."""
    stub = status_service_pb2_grpc.StatusServiceStub(link.channel)
    request = pb.RevokeRequest(order=records_wire.signed_to_pb(signed))
    answer = await link.ask(stub.Revoke(request, timeout=CALL_S))
    return signed_list_from_pb(answer.status_list)
