"""Tunnels of one node: as source, as destination, and at hubs and tops as relay in between.

Every node runs the same code; what it does follows from names alone (`route.py`). Upwards a tunnel is
opened by a call to the parent; downwards the node below is told over its `Attach` stream and dials
out to join, so nothing below a hub needs a listener. A relay keeps no payload: when it dies, the ends
notice and take another way.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from tdn_interop import identity
from tdn_interop.errors import Reason, Refused, TdnError, Unavailable, guard
from tdn_interop.identity import Identity, Signed
from tdn_interop.transport import records_wire, route
from tdn_interop.transport.front import Front, socket_pair
from tdn_interop.transport.records_wire import Join, Opening, Receipt
from tdn_interop.transport.route import Way
from tdn_interop.transport.trust import now_ms
from tdn_interop.transport.tunnel import Counter, Leg, SocketLeg, splice

MAX_TUNNELS = 1024
MAX_WAITING = 256
HOP_LIMIT = 8


class Upwards(Protocol):
    """What a tunnel needs of the link to the parent."""

    async def open(self, opening: Opening) -> tuple[Leg, tuple[str, ...]]:
        """Open a tunnel at the parent; the leg and the relays from the parent on."""
        ...

    async def join(self, join: Join) -> Leg | None:
        """Take or refuse a tunnel that waits at the parent; None after a refusal."""
        ...


ReceiptSink = Callable[[Signed], Awaitable[None]]


@dataclass
class _Waiting:
    """A tunnel that waits for the node below to join."""

    node: str
    joined: asyncio.Future[tuple[Leg, tuple[str, ...]]]
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


@dataclass(frozen=True, slots=True)
class _Onward:
    """An open way: the leg, the relays after this node, the adjacent node, and what to call at the end."""

    leg: Leg
    path: tuple[str, ...]
    next: str
    finish: Callable[[], None]


class Tunnels:
    """All tunnels of one node. `up` is the link to the parent, None at a top."""

    def __init__(
        self, key: Identity, parent: str, up: Upwards | None, front: Front, on_receipt: ReceiptSink
    ) -> None:
        self.me = key.node
        self._key = key
        self._parent = parent
        self._up = up
        self._front = front
        self._on_receipt = on_receipt
        self._below: dict[str, asyncio.Queue[Opening]] = {}
        self._waiting: dict[bytes, _Waiting] = {}
        self._open = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def attached(self) -> list[str]:
        """Nodes below that can be reached now."""
        return sorted(self._below)

    @property
    def count(self) -> int:
        """Tunnels that this node carries now."""
        return self._open

    async def dial(self, destination: str, timeout_s: float) -> tuple[socket.socket, tuple[str, ...]]:
        """A socket to `destination` and the relays it passes. Errors: NO_ROUTE, DEADLINE, UNREACHABLE."""
        opening = Opening(os.urandom(16), self.me, destination, HOP_LIMIT, int(timeout_s * 1000), ())
        onward = await self._onward(opening)
        near, far = socket_pair()
        self.spawn(self._carry(opening, SocketLeg(near), onward, self.me))
        return far, onward.path

    async def attach(self, node: str) -> AsyncIterator[Opening]:
        """Openings for the adjacent node below that keeps this stream; a newer stream replaces an older one."""
        queue: asyncio.Queue[Opening] = asyncio.Queue(MAX_WAITING)
        self._below[node] = queue
        try:
            while True:
                yield await queue.get()
        finally:
            if self._below.get(node) is queue:
                del self._below[node]

    async def relay(
        self, opening: Opening, previous: str, leg: Leg, ready: Callable[[tuple[str, ...]], Awaitable[None]]
    ) -> Signed | None:
        """Serve an opening of an adjacent node: open the way onward, say `ready`, carry, sign a receipt."""
        route.admit(opening, previous, self.me, self._parent)
        guard("TDN-T-LIM-03").check(
            self._open < MAX_TUNNELS,
            Reason.RESOURCE_EXHAUSTED,
            f"{self.me} carries {self._open} tunnels",
            Refused,
        )
        onward = await self._onward(opening)
        here = onward.next == self.me
        try:
            await ready(() if here else (self.me, *onward.path))
        except BaseException:
            await _abandon(onward.leg)
            onward.finish()
            raise
        return await self._carry(opening, leg, onward, previous)

    async def joined(self, join: Join, node: str, leg: Leg) -> None:
        """Serve a join of an adjacent node below; returns when the tunnel has ended."""
        waiting = self._waiting.get(join.tunnel_id)
        expected = waiting is not None and waiting.node == node and not waiting.joined.done()
        guard("TDN-T-RTE-05").check(expected, Reason.NO_ROUTE, f"no tunnel waits for {node}", Refused)
        assert waiting is not None  # noqa: S101  for the type checker, checked one line above
        if join.refusal:
            reason = Reason[join.refusal]
            error = Refused(reason, f"{node} did not take the tunnel", "TDN-T-RTE-03")
            waiting.joined.set_exception(error)
            return
        waiting.joined.set_result((leg, join.path))
        await waiting.done

    async def from_above(self, opening: Opening) -> None:
        """Take a tunnel that waits at the parent: open the way down first, then join."""
        assert self._up is not None  # noqa: S101  only a parent calls this
        try:
            route.admit(opening, self._parent, self.me, self._parent)
            onward = await self._onward(opening)
        except TdnError as error:
            await self._up.join(Join(opening.tunnel_id, (), error.reason.name))
            return
        here = onward.next == self.me
        path = () if here else (self.me, *onward.path)
        try:
            leg = await self._up.join(Join(opening.tunnel_id, path, ""))
        except TdnError:
            await _abandon(onward.leg)
            onward.finish()
            return
        if leg:
            await self._carry(opening, leg, onward, self._parent)

    def spawn(self, work: Awaitable[object]) -> None:
        """Run in the background until done or until `close`."""

        async def run() -> None:
            await work

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End every tunnel."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _onward(self, opening: Opening) -> _Onward:
        step = route.next_step(self.me, self._parent, opening.destination)
        if step.way is Way.HERE:
            near, far = socket_pair()
            self._front.take(far, f"tunnel from {opening.source}")
            return _Onward(SocketLeg(near), (), self.me, _nothing)
        handed_on = opening if opening.source == self.me else route.passed(opening, self.me)
        if step.way is Way.UP:
            assert self._up is not None  # noqa: S101  next_step gives UP only below a parent
            leg, path = await self._up.open(handed_on)
            return _Onward(leg, path, step.node, _nothing)
        return await self._down(handed_on, step.node)

    async def _down(self, opening: Opening, node: str) -> _Onward:
        queue = self._below.get(node)
        ok = queue is not None and opening.tunnel_id not in self._waiting
        guard("TDN-T-RTE-03").check(ok, Reason.NO_ROUTE, f"{node} is not attached to {self.me}", Refused)
        waiting = _Waiting(node, asyncio.get_running_loop().create_future())
        self._waiting[opening.tunnel_id] = waiting
        try:
            queue.put_nowait(opening)  # type: ignore[union-attr]  # checked above
            async with asyncio.timeout(opening.deadline_ms / 1000):
                leg, path = await waiting.joined
        except asyncio.QueueFull:
            guard("TDN-T-LIM-03").refuse(
                Reason.RESOURCE_EXHAUSTED, f"too many tunnels wait for {node}", Refused
            )
        except TimeoutError:
            guard("TDN-T-DDL-02").refuse(Reason.DEADLINE, f"{node} did not join in time", Unavailable)
        finally:
            del self._waiting[opening.tunnel_id]
        return _Onward(leg, path, node, lambda: _release(waiting.done))

    async def _carry(self, opening: Opening, leg: Leg, onward: _Onward, previous: str) -> Signed | None:
        counter, started = Counter(), now_ms()
        self._open += 1
        try:
            await splice(leg, onward.leg, counter)
        finally:
            self._open -= 1
            onward.finish()
        if self.me in {opening.source, opening.destination}:
            return None
        receipt = Receipt(
            opening.tunnel_id, self.me, opening.source, opening.destination, previous, onward.next,
            counter.forward, counter.backward, started, now_ms(),
        )  # fmt: skip
        signed = self._key.sign(identity.RECEIPT, records_wire.encode_receipt(receipt))
        await self._on_receipt(signed)
        return signed


def _nothing() -> None:
    """A way that needs no ending."""


def _release(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


async def _abandon(leg: Leg) -> None:
    await leg.close()
    await leg.settle()
