"""ChannelService on the wire: frames over one gRPC call, on both sides of a connection."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from typing import Any

import grpc
import grpc.aio

from tdn_interop import config
from tdn_interop._pb.tdn.transport.v1 import channel_service_pb2
from tdn_interop.errors import Reason, guard
from tdn_interop.transport import status, wire
from tdn_interop.transport.channel import ConnectionLost
from tdn_interop.transport.channels import Channels
from tdn_interop.transport.dial import Dialled, Dialler
from tdn_interop.transport.frame import Frame
from tdn_interop.transport.front import Front, connect_tcp
from tdn_interop.transport.pki import PeerCertificate
from tdn_interop.transport.relay import Tunnels

SERVICE = "tdn.transport.v1.ChannelService"


class ServerFrames:
    """A `FrameStream` over a call that a peer opened at us; the call ends when the handler returns."""

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any], certificate: PeerCertificate) -> None:
        self.certificate = certificate
        self._context = context

    async def send(self, frame: Frame) -> None:
        """Write a response."""
        with _lost(self.certificate.node):
            await self._context.write(wire.encode(frame))

    async def receive(self) -> Frame:
        """Read a request."""
        with _lost(self.certificate.node):
            message = await self._context.read()
        return _decoded(message, self.certificate.node)

    async def close(self) -> None:
        """Nothing to do: the handler returns."""


class ClientFrames:
    """A `FrameStream` over a call that we opened at `dialled`."""

    def __init__(self, dialled: Dialled) -> None:
        self._dialled = dialled
        exchange: grpc.aio.StreamStreamMultiCallable[bytes, channel_service_pb2.ExchangeResponse]
        exchange = dialled.channel.stream_stream(
            f"/{SERVICE}/Exchange", response_deserializer=channel_service_pb2.ExchangeResponse.FromString
        )
        self._call = exchange()

    @property
    def certificate(self) -> PeerCertificate:
        """The certificate of the listening side; there is one as soon as a frame has come."""
        certificate = self._dialled.peer
        assert certificate is not None  # noqa: S101  frames come only after TLS
        return certificate

    async def send(self, frame: Frame) -> None:
        """Write a request."""
        with _lost(self._dialled.node, self._dialled):
            await self._call.write(wire.encode(frame))

    async def receive(self) -> Frame:
        """Read a response."""
        with _lost(self._dialled.node, self._dialled):
            message = await self._call.read()
        return _decoded(message, self._dialled.node)

    async def close(self) -> None:
        """End the call and its connection."""
        try:
            # The call may have ended already; gRPC has no one exception for that.
            with contextlib.suppress(grpc.aio.AioRpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
                await self._call.done_writing()
        finally:
            await self._dialled.close()


def _decoded(message: Any, node: str) -> Frame:
    if message is grpc.aio.EOF:
        guard("TDN-T-ENC-03").refuse(Reason.UNREACHABLE, f"{node} ended the connection", ConnectionLost)
    return wire.decode(message.frame)


@contextlib.contextmanager
def _lost(node: str, dialled: Dialled | None = None) -> Any:
    """What gRPC raises when a connection breaks, as ConnectionLost or as the reason of the refusal."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        why = dialled.reason(error) if dialled else None
        if why is None and status.has_reason(error):
            why = status.from_rpc_error(error)
        if why is not None:
            raise why from error
        words = f"{node}: {error.code().name}"
    except (grpc.aio.BaseError, asyncio.InvalidStateError, OSError) as error:
        if dialled and dialled.error:  # the writer may fail before the reader sees the status
            raise dialled.error from error
        words = f"{node}: {type(error).__name__}"
    else:
        return
    guard("TDN-T-ENC-03").refuse(Reason.UNREACHABLE, f"the connection to {words} broke", ConnectionLost)


class ChannelServicer:
    """Serves Exchange for any node of the mesh; who it is, its certificate and its identity key decide."""

    def __init__(self, channels: Channels, front: Front) -> None:
        self._channels = channels
        self._front = front

    def handler(self) -> grpc.GenericRpcHandler:
        """What to add to the server: `wire` encodes, for the generated handler would copy each payload again."""
        parse = channel_service_pb2.ExchangeRequest.FromString
        rows: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Exchange": grpc.stream_stream_rpc_method_handler(self._exchange, parse)
        }
        return grpc.method_handlers_generic_handler(SERVICE, rows)

    async def _exchange(self, _requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        certificate = self._front.peer(context.peer())
        try:
            await self._channels.accept(ServerFrames(context, certificate), certificate.node)
        except ConnectionLost:
            return


class Peers:
    """Dials other nodes, directly where the configuration says so, otherwise through the parent."""

    def __init__(
        self,
        tunnels: Tunnels,
        direct: dict[str, str],
        dialler: Dialler,
        timeout_s: float,
    ) -> None:
        self._tunnels = tunnels
        self._direct = direct
        self._dialler = dialler
        self._timeout_s = timeout_s
        self.paths: dict[str, tuple[str, ...]] = {}
        self._dialled: weakref.WeakSet[Dialled] = weakref.WeakSet()

    def certificates(self) -> dict[str, PeerCertificate]:
        """What the nodes showed on the connections to them that stand; of several the one that ends last."""
        shown = [dialled.peer for dialled in self._dialled if dialled.peer and dialled.stands]
        return {peer.node: peer for peer in sorted(shown, key=lambda peer: peer.expires_at_ms)}

    def begin_anew(self) -> None:
        """End every connection that we have dialled; the sessions come back with new ones."""
        for dialled in list(self._dialled):
            dialled.begin_anew()

    def drop_expired(self, now_ms: int) -> None:
        """End the connections to nodes whose certificate has expired; their sessions come back with new ones."""
        for dialled in list(self._dialled):
            dialled.drop_expired(now_ms)

    async def connect(self, node: str) -> ClientFrames:
        """A new connection to `node` for frames. Errors: those of `dial`."""
        return ClientFrames(await self.dial(node))

    async def dial(self, node: str) -> Dialled:
        """A new connection to `node`; the caller closes it. Errors: NO_ROUTE, UNREACHABLE, DEADLINE, and those of TLS."""

        async def over_tcp() -> Any:
            host, port = config.split_address(self._direct[node])
            self.paths[node] = ()
            return await connect_tcp(host, port, self._timeout_s)

        async def over_relays() -> Any:
            stream, self.paths[node] = await self._tunnels.dial(node, self._timeout_s)
            return stream

        opener = over_tcp if node in self._direct else over_relays
        dialled = await Dialled(node, opener, self._dialler).start()
        self._dialled.add(dialled)
        return dialled
