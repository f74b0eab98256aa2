"""The link of a node to its parent: one gRPC connection, kept for as long as the node runs.

Over it the node stays attached, opens and joins tunnels, asks for routes, and hubs ask the top to
endorse. Reconnecting follows a tenacity policy and never gives up: a node without its parent can do
nothing, but must come back by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import grpc
import grpc.aio
import tenacity

from tdn_interop import config
from tdn_interop._pb.tdn.transport.v1 import (
    enrolment_service_pb2,
    enrolment_service_pb2_grpc,
    relay_service_pb2,
    relay_service_pb2_grpc,
    routing_service_pb2,
    routing_service_pb2_grpc,
)
from tdn_interop.errors import Reason, TdnError, Unavailable, guard
from tdn_interop.identity import Signed
from tdn_interop.transport import records_wire, relay_service, status
from tdn_interop.transport.dial import Dialled, Dialler
from tdn_interop.transport.front import connect_tcp
from tdn_interop.transport.records_wire import Join, Opening
from tdn_interop.transport.tunnel import ClientLeg, Leg

T = TypeVar("T")
CALL_S = 10.0

OnOpening = Callable[[Opening], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Carried:
    """What this node counted of a tunnel over its link, in bytes of tunnel messages.

    `opened` by us, otherwise joined. `received` is None unless we have read everything to an orderly end.
    """

    me: str
    tunnel_id: bytes
    opened: bool
    sent: int
    received: int | None


OnReceipt = Callable[[Signed, Carried], Awaitable[None]]


class Link:
    """The link to `parent` at `address`. Implements `relay.Upwards`."""

    def __init__(self, me: str, parent: str, address: str, dialler: Dialler) -> None:
        self.me = me
        self.parent = parent
        self.linked = asyncio.Event()
        self.on_opening: OnOpening = _ignore
        self.on_receipt: OnReceipt = _ignore
        self.on_state: Callable[[bool, TdnError | None], None] = _quiet
        host, port = config.split_address(address)

        self._dialled = Dialled(parent, lambda: connect_tcp(host, port, CALL_S), dialler)
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Dial and stay attached, as soon as the parent answers."""
        await self._dialled.start(dial=False)
        self._spawn(self._stay_attached())

    async def close(self) -> None:
        """Detach."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._dialled.close()

    def drop_expired(self, now_ms: int) -> None:
        """Begin anew when the certificate of the parent has expired."""
        self._dialled.drop_expired(now_ms)

    def drop_refused(self) -> None:
        """End the connection when the other side is refused by now."""
        self._dialled.drop_refused()

    @property
    def channel(self) -> grpc.aio.Channel:
        """For stubs of services that the parent offers."""
        return self._dialled.channel

    async def ask(self, call: Awaitable[T]) -> T:
        """The answer of the parent. Errors: the parent's refusal, or why it cannot be reached."""
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise self._dialled.reason(error) or status.from_rpc_error(error) from error

    async def resolve(self, name: str, hop_limit: int) -> tuple[Signed, Signed]:
        """The signed route to `name` and the record of its node."""
        request = routing_service_pb2.ResolveRequest(name=name, hop_limit=hop_limit)
        stub = routing_service_pb2_grpc.RoutingServiceStub(self.channel)
        answer = await self.ask(stub.Resolve(request, timeout=CALL_S))
        return records_wire.signed_from_pb(answer.route), records_wire.signed_from_pb(answer.record)

    async def endorse(self, application: Signed) -> Signed:
        """The record of a new node, signed by the top."""
        request = enrolment_service_pb2.EndorseRequest(application=records_wire.signed_to_pb(application))
        stub = enrolment_service_pb2_grpc.EndorsementServiceStub(self.channel)
        answer = await self.ask(stub.Endorse(request, timeout=CALL_S))
        return records_wire.signed_from_pb(answer.record)

    async def open(self, opening: Opening) -> tuple[Leg, tuple[str, ...]]:
        """Open a tunnel at the parent."""
        call = self._tunnel(((relay_service.OPEN, records_wire.encode_opening(opening)),))
        try:
            async with asyncio.timeout(opening.deadline_ms / 1000):
                metadata = await call.initial_metadata()
                path = dict(metadata).get(relay_service.PATH)
                if path is None:  # a refused call has no path; reading it raises the refusal
                    await self.ask(_end(call))
                    guard("TDN-T-ENC-01").refuse(Reason.INVALID_REQUEST, f"{self.parent} opened no tunnel")
        except TimeoutError:
            call.cancel()
            guard("TDN-T-DDL-02").refuse(
                Reason.DEADLINE, f"no tunnel to {opening.destination} in time", Unavailable
            )
        except grpc.aio.AioRpcError as error:
            raise self._dialled.reason(error) or status.from_rpc_error(error) from error
        except BaseException:
            call.cancel()
            raise
        return _Receipted(call, self, opening.tunnel_id, opened=True), tuple(
            n for n in str(path).split(",") if n
        )

    async def join(self, join: Join) -> Leg | None:
        """Take or refuse a tunnel that waits at the parent."""
        call = self._tunnel(((relay_service.JOIN, records_wire.encode_join(join)),))
        if join.refusal:
            await self.ask(_end(call))
            return None
        return _Receipted(call, self, join.tunnel_id, opened=False)

    def _tunnel(self, metadata: tuple[tuple[str, bytes], ...]) -> grpc.aio.StreamStreamCall[bytes, bytes]:
        multi = self.channel.stream_stream(
            f"/{relay_service.SERVICE}/Tunnel", request_serializer=relay_service.same,
            response_deserializer=relay_service.same,
        )  # fmt: skip
        return multi(metadata=grpc.aio.Metadata(*metadata))

    async def _stay_attached(self) -> None:
        policy = tenacity.AsyncRetrying(
            wait=tenacity.wait_exponential_jitter(multiplier=0.2, max=2),
            retry=tenacity.retry_if_exception_type(TdnError),
        )
        async for attempt in policy:
            with attempt:
                await self._attach()

    async def _attach(self) -> None:
        stub = relay_service_pb2_grpc.RelayServiceStub(self.channel)
        call = stub.Attach(relay_service_pb2.AttachRequest())
        try:
            async for response in call:
                if response.HasField("opening"):
                    self._spawn(self.on_opening(records_wire.opening_from_pb(response.opening)))
                else:
                    self.linked.set()
                    self.on_state(True, None)
            guard("TDN-T-ENC-03").refuse(Reason.UNREACHABLE, f"{self.parent} ended the link", Unavailable)
        except grpc.aio.AioRpcError as error:
            why = self._dialled.reason(error) or status.from_rpc_error(error)
            self.on_state(False, why)
            raise why from error
        finally:
            self.linked.clear()
            call.cancel()

    def _spawn(self, work: Awaitable[None]) -> None:
        async def run() -> None:
            await work

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Receipted(ClientLeg):
    """A tunnel call whose trailing metadata holds the receipt of the parent; counts, to compare."""

    def __init__(
        self, call: grpc.aio.StreamStreamCall[bytes, bytes], link: Link, tunnel_id: bytes, *, opened: bool
    ) -> None:
        super().__init__(call)
        self._link = link
        self._tunnel_id = tunnel_id
        self._opened = opened
        self._sent = self._received = 0
        self._whole = False

    async def read(self) -> bytes:
        """The next message of the parent."""
        message = await super().read()
        self._received += len(message)
        self._whole = not message
        return message

    async def write(self, message: bytes) -> None:
        """A message to the parent. Counted before: what is cancelled may have left all the same."""
        self._sent += len(message)
        await super().write(message)

    async def settle(self) -> None:
        """Take the receipt, if the relay answered in time."""
        if not self.call.done():
            self.call.cancel()
            return
        received = self._received if self._whole else None
        carried = Carried(self._link.me, self._tunnel_id, self._opened, self._sent, received)
        for signed in relay_service.receipts(await self.call.trailing_metadata()):
            await self._link.on_receipt(signed, carried)


async def _end(call: grpc.aio.StreamStreamCall[bytes, bytes]) -> None:
    """Say nothing more and read to the end, so that the status of the call is known; raises it."""
    with contextlib.suppress(asyncio.InvalidStateError):  # it has ended already
        await call.done_writing()
    while await call.read() is not grpc.aio.EOF:
        continue


async def _ignore(*_what: object) -> None:
    """Before the node is assembled nobody listens."""


def _quiet(_up: bool, _why: TdnError | None) -> None:
    """Before the node is assembled nobody listens."""
