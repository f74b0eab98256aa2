"""Two ends of bytes, spliced: all that a relay does with a tunnel.

Nothing here parses what it carries. HTTP/2 flow control on each call is the back-pressure: a pump
does not read the next message before the last one was taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import grpc.aio

from tdn_interop.errors import PeerProtocolError
from tdn_interop.transport import records_wire
from tdn_interop.transport.records_wire import Opening

# One message carries at most this much; larger messages cost less CPU per byte but more memory.
READ_BYTES = 1 << 20
# How long the other direction may take to end after one has.
GRACE_S = 2.0


class Leg(Protocol):
    """One end of a tunnel inside this node. `read` gives b"" at the end."""

    async def read(self) -> bytes:
        """The next message."""
        ...

    async def write(self, message: bytes) -> None:
        """Hand a message on; waits while the other side is full."""
        ...

    async def close(self) -> None:
        """Say that nothing more comes from us; a pending `read` then ends soon."""
        ...

    async def settle(self) -> None:
        """Once both directions have ended: take what the other node says about the tunnel."""
        ...

    def drop(self) -> None:
        """Free what is still held, at once; safe to call again, also when nothing ever ran."""
        ...


class ServerLeg:
    """The call that a node opened at us; it ends when the handler returns."""

    def __init__(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        self._context = context
        self._reading: asyncio.Future[Any] | None = None
        self._closed = False

    async def read(self) -> bytes:
        """The next message of the caller."""
        if self._closed:
            return b""
        self._reading = asyncio.ensure_future(self._context.read())
        try:
            message: Any = await self._reading
        except asyncio.CancelledError:
            if self._closed:
                return b""
            raise
        return b"" if message is grpc.aio.EOF else message

    async def write(self, message: bytes) -> None:
        """A message to the caller."""
        await self._context.write(message)

    async def close(self) -> None:
        """The handler will return: nobody reads on."""
        self._closed = True
        if self._reading:
            self._reading.cancel()

    async def settle(self) -> None:
        """Nothing: the caller gets our receipt, not we its."""

    def drop(self) -> None:
        """Nothing: the call is the handler's."""


class ClientLeg:
    """A call that we opened at an adjacent node."""

    def __init__(self, call: grpc.aio.StreamStreamCall[bytes, bytes]) -> None:
        self.call = call

    async def read(self) -> bytes:
        """The next message of the other node."""
        message: Any = await self.call.read()
        return b"" if message is grpc.aio.EOF else message

    async def write(self, message: bytes) -> None:
        """A message to the other node."""
        await self.call.write(message)

    async def close(self) -> None:
        """Half-close; the other node answers with its receipts."""
        with contextlib.suppress(
            asyncio.InvalidStateError, grpc.aio.AioRpcError
        ):  # it may have ended already
            await self.call.done_writing()

    async def settle(self) -> None:
        """Nothing by default; the link takes the receipts."""

    def drop(self) -> None:
        """End the call if it has not ended."""
        self.call.cancel()


class SocketLeg:
    """The end inside this node: a socket whose other end does TLS."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream

    async def read(self) -> bytes:
        """The next bytes of our TLS, as a tunnel message."""
        data = await asyncio.get_running_loop().sock_recv(self._stream, READ_BYTES)
        return records_wire.encode_carried(data) if data else b""

    async def write(self, message: bytes) -> None:
        """Bytes for our TLS. What arrives after our side has closed is nobody's: the call must still be read to its end."""
        data = records_wire.decode_carried(message)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await asyncio.get_running_loop().sock_sendall(self._stream, data)

    async def close(self) -> None:
        """End both directions; a pending read sees the end."""
        with contextlib.suppress(OSError):  # the other end may be gone
            self._stream.shutdown(socket.SHUT_RDWR)

    async def settle(self) -> None:
        """Nothing: `drop` frees the socket."""

    def drop(self) -> None:
        """Close the socket."""
        self._stream.close()


class Counter:
    """Bytes of tunnel messages in each direction."""

    def __init__(self) -> None:
        self.forward = 0
        self.backward = 0


@dataclass(frozen=True, slots=True)
class Passage:
    """A tunnel while this node carries it: between whom, the neighbours on either side, bytes so far."""

    opening: Opening
    previous: str
    next: str
    counter: Counter
    started_at_ms: int
    source: Leg

    async def end(self) -> None:
        """End it in good order: both sides get the receipt, the ends find another way."""
        await self.source.close()


async def splice(source: Leg, target: Leg, counter: Counter) -> None:
    """Carry messages both ways until either side ends, then end the other."""

    async def forward() -> None:
        while message := await source.read():
            await target.write(message)
            counter.forward += len(message)

    async def backward() -> None:
        while message := await target.read():
            await source.write(message)
            counter.backward += len(message)

    pumps = [asyncio.ensure_future(forward()), asyncio.ensure_future(backward())]
    try:
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        # Politely first: cancelling a pending read of a gRPC call would cancel the call and lose its receipts.
        await source.close()
        await target.close()
        await asyncio.wait(pumps, timeout=GRACE_S)
    finally:
        for pump in pumps:
            pump.cancel()
        outcomes = await asyncio.gather(*pumps, return_exceptions=True)
        await source.settle()
        await target.settle()
    for outcome in outcomes:
        # A broken connection is the end of a tunnel, not an error of the relay: the ends notice by themselves.
        if isinstance(outcome, Exception) and not isinstance(outcome, _ENDINGS):
            raise outcome


_ENDINGS = (OSError, grpc.aio.AioRpcError, grpc.aio.BaseError, asyncio.InvalidStateError, PeerProtocolError)
