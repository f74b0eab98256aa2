"""Tunnels of one node: as source, as destination, and at hubs and tops as relay in between.

Every node runs the same code; where a tunnel goes next is decided in `route.py`. Over a link of ours a
tunnel is opened by a call; a node that keeps a link to us is told over its `Attach` stream and dials out
to join, so nothing below a hub needs a listener. A relay tries one way, the source one after the other.
It keeps no payload: when it dies, the ends notice and take another way.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from tdn_interop import identity
from tdn_interop.errors import Reason, Refused, TdnError, Unavailable, guard
from tdn_interop.identity import Identity, Signed
from tdn_interop.transport import descriptors, records_wire, route
from tdn_interop.transport.front import Front, socket_pair
from tdn_interop.transport.records_wire import Join, Opening, Receipt
from tdn_interop.transport.route import Path, Table
from tdn_interop.transport.trust import now_ms
from tdn_interop.transport.tunnel import Counter, Leg, Passage, SocketLeg, splice

# Tunnels of others at once, as far as descriptors allow; nobody may hold more than half of the places.
MAX_TUNNELS = 1024
# What a tunnel takes that ends here: its pump, its TLS, and both sides of the way to gRPC.
DESCRIPTORS = 4
MAX_WAITING = 256
HOP_LIMIT = 8


class Neighbour(Protocol):
    """What a tunnel needs of a link that this node keeps."""

    @property
    def node(self) -> str:
        """Who is at the other end."""
        ...

    @property
    def is_linked(self) -> bool:
        """True while the link stands."""
        ...

    async def open(self, opening: Opening) -> tuple[Leg, Path]:
        """Open a tunnel there; the leg and the relays from there on."""
        ...

    async def join(self, join: Join) -> Leg | None:
        """Take or refuse a tunnel that waits there; None after a refusal."""
        ...


class Ledger(Protocol):
    """Where receipts stay. A tunnel has one receipt of a relay, for ever."""

    async def knows(self, tunnel_id: bytes) -> bool:
        """True when there is a receipt for a tunnel of this id."""
        ...

    async def gave(self, receipt: Signed) -> None:
        """Keep a receipt that this node signed."""
        ...


@dataclass
class _Waiting:
    """A tunnel that waits for an attached node to join."""

    node: str
    destination: str
    told: asyncio.Queue[Opening | None]
    joined: asyncio.Future[tuple[Leg, Path]]
    done: asyncio.Future[Signed | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


@dataclass(frozen=True, slots=True)
class _Onward:
    """An open way: the leg, the relays after this node, the adjacent node, and what gets the receipt at the end."""

    leg: Leg
    path: Path
    next: str
    finish: Callable[[Signed | None], None]


class Tunnels:
    """All tunnels of one node. `links` are those that it keeps, by the node at the other end."""

    def __init__(
        self, key: Identity, table: Table, links: Mapping[str, Neighbour], front: Front, ledger: Ledger
    ) -> None:
        self.me = key.node
        self._key = key
        self._table = table
        self._links = links
        self._front = front
        self._ledger = ledger
        self._places = min(MAX_TUNNELS, descriptors.room(0.5, DESCRIPTORS))
        self._below: dict[str, asyncio.Queue[Opening | None]] = {}
        self._waiting: dict[bytes, _Waiting] = {}
        self._open: dict[bytes, str] = {}  # tunnel of others -> who answers for it
        self._tasks: set[asyncio.Task[object]] = set()
        self.attached_since: dict[str, int] = {}  # node below -> since when, milliseconds since the epoch
        self.passing: dict[bytes, Passage] = {}  # what is carried now, tunnels that begin here included
        self.takes: Callable[[], None] = _always  # raises while nothing new is taken
        self.admit: Callable[[str], None] = lambda _node: None  # raises for a node that may not have tunnels

    @property
    def attached(self) -> list[str]:
        """Nodes that keep a link to us and can be reached now."""
        return sorted(self._below)

    @property
    def count(self) -> int:
        """Tunnels of others that end here or pass here now, those that are being opened included."""
        return len(self._open)

    def is_linked(self, node: str) -> bool:
        """True while an adjacent node can be reached, whoever of us keeps the link."""
        link = self._links.get(node)
        return (link is not None and link.is_linked) or node in self._below

    async def dial(self, destination: str, timeout_s: float) -> tuple[socket.socket, Path]:
        """A socket to `destination` and the relays it passes; ways are tried one after the other.

        Errors: NO_ROUTE, DEADLINE, UNREACHABLE, REVOKED.
        """
        self._admit_ends(self.me, destination)
        ends = asyncio.get_running_loop().time() + timeout_s
        opening = self._opening(destination, timeout_s)
        ways = route.choose(opening, self._table, self.is_linked)
        while True:
            way = ways.pop(0)
            left_s = ends - asyncio.get_running_loop().time()
            try:
                return await self._dial(self._opening(destination, left_s / (1 + len(ways))), way)
            except TdnError:
                if not ways:
                    raise

    def _opening(self, destination: str, timeout_s: float) -> Opening:
        return Opening(os.urandom(16), self.me, destination, HOP_LIMIT, max(0, int(timeout_s * 1000)), ())

    async def _dial(self, opening: Opening, way: Path) -> tuple[socket.socket, Path]:
        near, far = socket_pair()
        try:
            onward = await self._over(opening, way[0])
        except BaseException:
            near.close()
            far.close()
            raise
        leg = SocketLeg(near)
        self.spawn(self._carry(opening, leg, onward, self.me), leg, onward.leg)
        return far, onward.path

    @contextlib.contextmanager
    def attach(self, node: str) -> Iterator[asyncio.Queue[Opening | None]]:
        """Openings for a node that keeps a link to us, within the block; None when a newer stream of it is here."""
        queue: asyncio.Queue[Opening | None] = asyncio.Queue()
        older, self._below[node] = self._below.get(node), queue
        self.attached_since[node] = now_ms()
        if older:
            self._move(older, queue)
        try:
            yield queue
        finally:
            if self._below.get(node) is queue:  # else it goes over to a new connection, and joins on that
                del self._below[node], self.attached_since[node]
                for waiting in self._waiting.values():
                    if waiting.told is queue and not waiting.joined.done():
                        waiting.joined.set_exception(_left(node))

    def _move(self, older: asyncio.Queue[Opening | None], newer: asyncio.Queue[Opening | None]) -> None:
        """Whoever waits, waits on the newer stream; the older one ends."""
        while not older.empty():
            newer.put_nowait(older.get_nowait())
        older.put_nowait(None)
        for waiting in self._waiting.values():
            if waiting.told is older:
                waiting.told = newer

    async def relay(
        self, opening: Opening, previous: str, leg: Leg, ready: Callable[[Path], Awaitable[None]]
    ) -> Signed | None:
        """Serve an opening of an adjacent node: open the way onward, say `ready`, carry, sign a receipt."""
        route.admit(opening, previous, self._table)
        async with self._place(opening, previous):
            onward = await self._onward(opening)
            here = onward.next == self.me
            try:
                await ready(() if here else (self.me, *onward.path))
            except BaseException:
                await _abandon(onward)
                raise
            return await self._carry(opening, leg, onward, previous)

    async def joined(self, join: Join, node: str, leg: Leg) -> Signed | None:
        """Serve a join of a node that keeps a link to us; our receipt when the tunnel has ended."""
        waiting = self._waiting.get(join.tunnel_id)
        expected = waiting is not None and waiting.node == node and not waiting.joined.done()
        guard("TDN-T-RTE-05").check(expected, Reason.NO_ROUTE, f"no tunnel waits for {node}", Refused)
        assert waiting is not None  # noqa: S101  for the type checker, checked one line above
        if join.refusal:
            waiting.joined.set_exception(_not_taken(Reason[join.refusal], waiting))
            return None
        waiting.joined.set_result((leg, join.path))
        return await waiting.done

    async def arrived(self, link: Neighbour, opening: Opening) -> None:
        """Take a tunnel that waits at the other end of our link: open the way onward first, then join."""
        async with contextlib.AsyncExitStack() as place:
            try:
                route.admit(opening, link.node, self._table)
                await place.enter_async_context(self._place(opening, link.node))
                onward = await self._onward(opening)
            except TdnError as error:
                with contextlib.suppress(TdnError):  # a neighbour that is gone needs no answer
                    await link.join(Join(opening.tunnel_id, (), error.reason.name))
                return
            path = () if onward.next == self.me else (self.me, *onward.path)
            try:
                leg = await link.join(Join(opening.tunnel_id, path, ""))
            except TdnError:
                await _abandon(onward)
                return
            if leg:
                await self._carry(opening, leg, onward, link.node)

    def spawn(self, work: Coroutine[Any, Any, object], *legs: Leg) -> None:
        """Run in the background until done or until `close`; the legs are freed even if it never ran."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        for leg in legs:
            task.add_done_callback(lambda _, leg=leg: leg.drop())  # type: ignore[misc]  # mypy infers no default

    async def close(self) -> None:
        """End every tunnel; relays give their receipts."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def _place(self, opening: Opening, previous: str) -> AsyncIterator[None]:
        """The place of a tunnel of others, from its opening on. Errors: RESOURCE_EXHAUSTED, ALREADY_EXISTS."""
        self.takes()
        # A neighbour answers for all that it sends; from above, the source does.
        account = opening.source if previous == self._table.parent else previous
        tunnel_id, held = opening.tunnel_id, list(self._open.values()).count(account)
        guard("TDN-T-LIM-03").check(
            self.count < self._places and held < (self._places + 1) // 2, Reason.RESOURCE_EXHAUSTED,
            f"{self.me} has {self.count} tunnels, {held} of {account}, and takes no more for now", Unavailable,
        )  # fmt: skip
        once = guard("TDN-T-RTE-08")
        words = f"{self.me} has carried a tunnel of this id before"
        once.check(tunnel_id not in self._open, Reason.ALREADY_EXISTS, words, Refused)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  only coroutines take a place
        self._open[tunnel_id] = account
        self._tasks.add(task)
        try:
            once.check(not await self._ledger.knows(tunnel_id), Reason.ALREADY_EXISTS, words, Refused)
            yield
        finally:
            del self._open[tunnel_id]
            self._tasks.discard(task)

    async def _onward(self, opening: Opening) -> _Onward:
        self._admit_ends(opening.source, opening.destination)
        if opening.destination == self.me:
            near, far = socket_pair()
            self._front.take(far, f"tunnel from {opening.source}")
            return _Onward(SocketLeg(near), (), self.me, _nothing)
        [way, *_] = route.choose(opening, self._table, self.is_linked)
        return await self._over(route.passed(opening, self.me), way[0])

    def _admit_ends(self, *ends: str) -> None:
        for end in ends:
            self.admit(end)

    async def _over(self, opening: Opening, node: str) -> _Onward:
        """Hand an opening to an adjacent node."""
        link = self._links.get(node)
        if link is None or (node in self._below and not link.is_linked):
            return await self._down(opening, node)
        leg, path = await link.open(opening)
        return _Onward(leg, path, node, _nothing)

    async def _down(self, opening: Opening, node: str) -> _Onward:
        queue = self._below.get(node)
        if queue is None or opening.tunnel_id in self._waiting:
            route.no_route(opening.destination)
        guard("TDN-T-LIM-03").check(
            queue.qsize() < MAX_WAITING,
            Reason.RESOURCE_EXHAUSTED,
            f"too many tunnels wait for {node}",
            Unavailable,
        )
        waiting = _Waiting(node, opening.destination, queue, asyncio.get_running_loop().create_future())
        self._waiting[opening.tunnel_id] = waiting
        try:
            queue.put_nowait(opening)
            async with asyncio.timeout(opening.deadline_ms / 1000):
                leg, path = await waiting.joined
        except BaseException as error:
            _release(waiting.done, None)  # it may have joined in the meantime
            if isinstance(error, TimeoutError):
                guard("TDN-T-DDL-02").refuse(Reason.DEADLINE, f"{node} did not join in time", Unavailable)
            raise
        finally:
            del self._waiting[opening.tunnel_id]
        return _Onward(leg, path, node, lambda receipt: _release(waiting.done, receipt))

    async def _carry(self, opening: Opening, leg: Leg, onward: _Onward, previous: str) -> Signed | None:
        """Carry until the end, whatever ends it: a caller that is gone must not take the evidence along."""
        counter, started = Counter(), now_ms()
        signed = None
        passage = Passage(opening, previous, onward.next, counter, started, leg)
        self.passing[opening.tunnel_id] = passage
        try:
            await splice(leg, onward.leg, counter)
        finally:
            del self.passing[opening.tunnel_id]
            leg.drop()
            onward.leg.drop()
            if self.me not in {previous, onward.next}:  # a relay has a node on either side
                signed = self._receipt(opening, previous, onward.next, counter, started)
            onward.finish(signed)
            if signed:
                await self._ledger.gave(signed)
        return signed

    def _receipt(
        self, opening: Opening, previous: str, onward: str, counter: Counter, started_at_ms: int
    ) -> Signed:
        receipt = Receipt(
            opening.tunnel_id, self.me, opening.source, opening.destination, previous, onward,
            counter.forward, counter.backward, started_at_ms, now_ms(),
        )  # fmt: skip
        return self._key.sign(identity.RECEIPT, records_wire.encode_receipt(receipt))


def _always() -> None:
    """What is asked for is taken."""


def _nothing(_receipt: Signed | None) -> None:
    """A way on which nobody waits for the end."""


def _release(done: asyncio.Future[Signed | None], receipt: Signed | None) -> None:
    if not done.done():
        done.set_result(receipt)


async def _abandon(onward: _Onward) -> None:
    await onward.leg.close()
    await onward.leg.settle()
    onward.leg.drop()
    onward.finish(None)


def _left(node: str) -> Unavailable:
    return Unavailable(Reason.UNREACHABLE, f"{node} left before it joined", "TDN-T-RTE-04")


def _not_taken(reason: Reason, waiting: _Waiting) -> Refused:
    """What the node below said, in words that tell no more than a refusal of our own would."""
    missing = reason is Reason.NO_ROUTE
    words = (
        f"there is no way to {waiting.destination}" if missing else f"{waiting.node} did not take the tunnel"
    )
    return Refused(reason, words, "TDN-T-RTE-03")
