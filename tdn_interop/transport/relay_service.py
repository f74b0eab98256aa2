"""RelayService on the wire: the servicer of hubs and tops, and the client side in `link.py`'s hands.

Tunnel messages pass with identity serializers: a relay never parses them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio

from tdn_interop._pb.tdn.transport.v1 import relay_service_pb2
from tdn_interop.errors import Reason, guard
from tdn_interop.identity import Signed
from tdn_interop.transport import records_wire
from tdn_interop.transport.front import Front
from tdn_interop.transport.relay import Tunnels
from tdn_interop.transport.tunnel import ServerLeg

SERVICE = "tdn.transport.v1.RelayService"
OPEN, JOIN, PATH, RECEIPT = "tdn-tunnel-open-bin", "tdn-tunnel-join-bin", "tdn-tunnel-path", "tdn-receipt-bin"

Context = grpc.aio.ServicerContext[bytes, bytes]


def same(data: bytes) -> bytes:
    """The serializer of a relay."""
    return data


class RelayServicer:
    """Tunnel and Attach for adjacent nodes; who they are comes from the certificate of the link.

    `record` is our own NodeRecord, for receipts.
    """

    def __init__(
        self, tunnels: Tunnels, front: Front, is_neighbour: Callable[[str], bool], record: Signed
    ) -> None:
        self._tunnels = tunnels
        self._front = front
        self._is_neighbour = is_neighbour
        self._record = record

    def handler(self) -> grpc.GenericRpcHandler:
        """What to add to the server."""
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Tunnel": grpc.stream_stream_rpc_method_handler(self._tunnel, same, same),
            "Attach": grpc.unary_stream_rpc_method_handler(
                self._attach, relay_service_pb2.AttachRequest.FromString,
                relay_service_pb2.AttachResponse.SerializeToString,
            ),
        }  # fmt: skip
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def _tunnel(self, _requests: AsyncIterator[bytes], context: Context) -> None:
        peer = self._front.peer(context.peer()).node
        metadata: dict[str, Any] = dict(context.invocation_metadata() or ())
        leg = ServerLeg(context)
        if JOIN in metadata:
            self._neighbour(peer)
            _give(context, await self._tunnels.joined(records_wire.decode_join(metadata[JOIN]), peer, leg))
            return
        guard("TDN-T-ENC-01").check(OPEN in metadata, Reason.INVALID_REQUEST, f"the call has no {OPEN}")
        opening = records_wire.decode_opening(metadata[OPEN])
        self._neighbour(peer)

        async def ready(path: tuple[str, ...]) -> None:
            await context.send_initial_metadata(((PATH, ",".join(path)),))

        _give(context, await self._tunnels.relay(opening, peer, leg, ready))

    async def _attach(
        self, _request: relay_service_pb2.AttachRequest, context: Context
    ) -> AsyncIterator[relay_service_pb2.AttachResponse]:
        node = self._front.peer(context.peer()).node
        self._neighbour(node)
        with self._tunnels.attach(node) as openings:
            yield relay_service_pb2.AttachResponse(record=records_wire.signed_to_pb(self._record))
            while opening := await openings.get():
                yield relay_service_pb2.AttachResponse(opening=records_wire.opening_to_pb(opening))

    def _neighbour(self, node: str) -> None:
        words = f"{node} is no member here"
        guard("TDN-T-RTE-05").check(self._is_neighbour(node), Reason.POLICY_DENIED, words)


def _give(context: Context, receipt: Signed | None) -> None:
    if receipt:
        context.set_trailing_metadata(((RECEIPT, records_wire.encode_signed(receipt)),))


def receipts(metadata: Any) -> list[Signed]:
    """Receipts among the trailing metadata of a tunnel call."""
    return [records_wire.decode_signed(value) for key, value in metadata or () if key == RECEIPT]
