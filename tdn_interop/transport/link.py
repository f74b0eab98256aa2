"""The link of a node to its parent or to another neighbour: one gRPC connection, kept for as long as the node runs.

Over it adverts are exchanged, the node stays attached, opens and joins tunnels, asks for routes, and hubs
ask the top to endorse. Reconnecting follows a tenacity policy and never gives up: a node without its
parent must come back by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
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
from tdn_interop.transport import records_wire, relay_service, route_wire, status
from tdn_interop.transport.dial import Dialled, Dialler
from tdn_interop.transport.front import connect_tcp
from tdn_interop.transport.pki import PeerCertificate
from tdn_interop.transport.records_wire import Join, Opening
from tdn_interop.transport.route_wire import Change
from tdn_interop.transport.succession import Succession
from tdn_interop.transport.trust import now_ms
from tdn_interop.transport.tunnel import ClientLeg, Leg

T = TypeVar("T")
CALL_S = 10.0
# Tunnels that a neighbour may offer or keep over one link: twice of what any node takes. Beyond, it is not listened to.
OPENINGS = 2048
# A neighbour that vanishes without a word is noticed after 3.5 s (gRPC, doc/keepalive.md; of the two time limits
# gRPC 1.85 looks at that for pings alone, others at the one for keep-alive).
KEEPALIVE = (
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.keepalive_timeout_ms", 2500),
    ("grpc.http2.ping_timeout_ms", 2500),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)

OnOpening = Callable[[Opening], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Carried:
    """What this node counted of a tunnel over its link, in bytes of tunnel messages.

    `opened` by us, otherwise joined. `received` is None unless we have read everything to an orderly end.
    """

    me: str
    relay: str
    tunnel_id: bytes
    opened: bool
    sent: int
    received: int | None


OnReceipt = Callable[[Signed, Carried], Awaitable[None]]
Send = Callable[[Change], Awaitable[None]]
Exchange = Callable[[str, AsyncIterator[Change], Send, Callable[[], object]], Awaitable[None]]


class Link:
    """The link to `node` at `address`. Implements `relay.Neighbour`.

    `exchange`, if set, exchanges adverts for as long as the link stands; `on_record` gets the NodeRecord of `node`.
    """

    def __init__(self, me: str, node: str, address: str, dialler: Dialler) -> None:
        self.me = me
        self.node = node
        self.linked = asyncio.Event()
        self.since_ms = 0  # when it came to stand or was lost
        self.exchange: Exchange | None = None
        self.on_record: Callable[[Signed], object] = bool
        self.on_opening: OnOpening = _ignore
        self.on_receipt: OnReceipt = _ignore
        self.on_state: Callable[[bool, TdnError | None], None] = _quiet
        host, port = config.split_address(address)
        self._connections = Succession(
            lambda: Dialled(node, lambda: connect_tcp(host, port, CALL_S), dialler, KEEPALIVE), self._spawn
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._openings = asyncio.Semaphore(OPENINGS)

    async def start(self) -> None:
        """Dial and stay attached, as soon as the neighbour answers."""
        await self._dialled.start(dial=False)
        self._spawn(self._stay_attached(self._dialled))

    async def close(self) -> None:
        """Detach."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._connections.close()

    async def renew(self) -> None:
        """Go over to a new connection, with our certificate of now; tunnels on the old one go on until they end.

        Errors: why there is no new one; the old one goes on.
        """
        await self._connections.renew()
        self._spawn(self._stay_attached(self._dialled))

    def drop_expired(self, now_ms: int) -> None:
        """Begin anew when the certificate of the neighbour has expired."""
        self._connections.drop_expired(now_ms)

    def drop_refused(self) -> None:
        """End the connection when the other side is refused by now."""
        self._connections.drop_refused()

    def begin_anew(self) -> None:
        """End the connection and what it carries; a new one follows at once."""
        self._connections.begin_anew()

    @property
    def _dialled(self) -> Dialled:
        return self._connections.now

    @property
    def certificate(self) -> PeerCertificate | None:
        """What the neighbour showed on the connection that stands."""
        return self._dialled.peer if self._dialled.stands else None

    @property
    def is_linked(self) -> bool:
        """True while the link stands."""
        return self.linked.is_set()

    @property
    def channel(self) -> grpc.aio.Channel:
        """For stubs of services that the neighbour offers."""
        return self._dialled.channel

    async def ask(self, call: Awaitable[T]) -> T:
        """The answer of the neighbour. Errors: its refusal, or why it cannot be reached."""
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
        """Open a tunnel there."""
        call = self._tunnel(((relay_service.OPEN, records_wire.encode_opening(opening)),))
        try:
            async with asyncio.timeout(opening.deadline_ms / 1000):
                metadata = await call.initial_metadata()
                path = dict(metadata).get(relay_service.PATH)
                if path is None:  # a refused call has no path; reading it raises the refusal
                    await self.ask(_end(call))
                    guard("TDN-T-ENC-01").refuse(Reason.INVALID_REQUEST, f"{self.node} opened no tunnel")
                relays = records_wire.decode_path(str(path))
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
        return _Receipted(call, self, opening.tunnel_id, opened=True), relays

    async def join(self, join: Join) -> Leg | None:
        """Take or refuse a tunnel that waits there."""
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
        call = multi(metadata=grpc.aio.Metadata(*metadata))
        self._connections.carry(call)
        return call

    async def _stay_attached(self, dialled: Dialled) -> None:
        """For as long as this is the connection to use; for a moment two are attached."""
        policy = tenacity.AsyncRetrying(
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=2),
            retry=tenacity.retry_if_exception(lambda e: isinstance(e, TdnError) and dialled is self._dialled),
        )
        while dialled is self._dialled:  # pauses are short again after a link that stood
            await policy(self._once, dialled)

    async def _once(self, dialled: Dialled) -> None:
        """Be linked until the link ends. Errors: why it never stood."""
        stood = False

        def up() -> None:
            nonlocal stood
            stood = True
            self.since_ms = now_ms()
            self.linked.set()
            self.on_state(True, None)

        try:
            await self._exchange_and_attach(up)
        except TdnError as error:
            if dialled is not self._dialled:
                return
            self.on_state(False, error)
            if not stood:
                raise
        finally:
            if dialled is self._dialled:
                self.since_ms = now_ms() if stood else self.since_ms
                self.linked.clear()

    async def _exchange_and_attach(self, up: Callable[[], None]) -> None:
        """Both sides know the adverts of the other before the first tunnel; what ends first ends both."""
        if self.exchange is None:
            await self._attach(up)
            return
        complete = asyncio.Event()
        exchange = asyncio.create_task(self._advertise(self.exchange, complete.set))
        attached = asyncio.create_task(self._attach_after(complete, up))
        both = (exchange, attached)
        try:  # no TaskGroup: in Python 3.11 it forgets that it was cancelled when a task fails in that moment
            await asyncio.wait(both, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for task in both:
                task.cancel()
            results = await asyncio.gather(*both, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _attach_after(self, complete: asyncio.Event, up: Callable[[], None]) -> None:
        try:
            async with asyncio.timeout(CALL_S):
                await complete.wait()
        except TimeoutError:
            guard("TDN-T-DDL-02").refuse(Reason.DEADLINE, f"{self.node} tells no routes", Unavailable)
        await self._attach(up)

    async def _advertise(self, exchange: Exchange, complete: Callable[[], object]) -> None:
        call = routing_service_pb2_grpc.RoutingServiceStub(self.channel).Advertise()

        async def send(change: Change) -> None:
            message = route_wire.change_to_pb(change)
            with contextlib.suppress(asyncio.InvalidStateError):  # it has ended: `told` says why
                await call.write(routing_service_pb2.AdvertiseRequest(change=message))

        async def told() -> AsyncIterator[Change]:
            async for response in call:
                yield route_wire.change_from_pb(response.change)
            guard("TDN-T-ENC-03").refuse(Reason.UNREACHABLE, f"{self.node} ended the link", Unavailable)

        try:
            await exchange(self.node, told(), send, complete)
        except grpc.aio.AioRpcError as error:
            why = self._dialled.reason(error) or status.from_rpc_error(error)
            if why.reason is not Reason.UNSUPPORTED:  # else: an older relay, which knows only names
                raise why from error
            complete()
        finally:
            call.cancel()

    async def _attach(self, up: Callable[[], None]) -> None:
        stub = relay_service_pb2_grpc.RelayServiceStub(self.channel)
        call = stub.Attach(relay_service_pb2.AttachRequest())
        try:
            async for response in call:
                if response.HasField("opening"):
                    opening = records_wire.opening_from_pb(response.opening)
                    await self._openings.acquire()
                    task = self._spawn(self.on_opening(opening))
                    task.add_done_callback(lambda _: self._openings.release())
                else:
                    if response.HasField("record"):
                        self.on_record(records_wire.signed_from_pb(response.record))
                    up()
            guard("TDN-T-ENC-03").refuse(Reason.UNREACHABLE, f"{self.node} ended the link", Unavailable)
        except grpc.aio.AioRpcError as error:
            raise (self._dialled.reason(error) or status.from_rpc_error(error)) from error
        finally:
            call.cancel()

    def _spawn(self, work: Awaitable[None]) -> asyncio.Task[None]:
        async def run() -> None:
            await work

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Receipted(ClientLeg):
    """A tunnel call whose trailing metadata holds the receipt of the neighbour; counts, to compare."""

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
        """The next message of the neighbour."""
        message = await super().read()
        self._received += len(message)
        self._whole = not message
        return message

    async def write(self, message: bytes) -> None:
        """A message to the neighbour. Counted before: what is cancelled may have left all the same."""
        self._sent += len(message)
        await super().write(message)

    async def settle(self) -> None:
        """Take the receipt, if the relay answered in time."""
        if not self.call.done():
            self.call.cancel()
            return
        received = self._received if self._whole else None
        carried = Carried(self._link.me, self._link.node, self._tunnel_id, self._opened, self._sent, received)
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
