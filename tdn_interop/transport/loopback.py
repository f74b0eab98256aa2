"""Connections in memory with scripted faults, for tests and simulations. Deterministic.

Faults hit one direction of one connection, by the ordinal of its frames (from 0) or at a seeded
random rate. The wire form is not involved: frames are handed over as values.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from tdn_interop.errors import Reason, TdnError, guard
from tdn_interop.transport.channel import ConnectionLost
from tdn_interop.transport.frame import Frame


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong in one direction. `late` frames arrive after up to `window` frames behind them."""

    drop: frozenset[int] = frozenset()
    duplicate: frozenset[int] = frozenset()
    late: frozenset[int] = frozenset()
    reset_after: int | None = None  # the connection breaks, both ways, in place of this frame
    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    window: int = 3
    seed: int = 0


SOUND = Faults()


class _Direction:
    """One direction: a short queue that makes its sender wait when it is full."""

    def __init__(self, faults: Faults, capacity: int) -> None:
        self._faults = faults
        self._dice = random.Random(faults.seed)  # noqa: S311  faults have to be repeatable, not secret
        self._capacity = capacity
        self._queue: deque[Frame] = deque()
        self._held: list[tuple[int, Frame]] = []  # (ordinal behind which it comes, frame)
        self._count = 0
        self._changed = asyncio.Condition()
        self._ended = False

    async def send(self, frame: Frame) -> bool:
        """Queue the frame with its faults; False when the connection is to break here."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._ended or len(self._queue) < self._capacity)
            _check_open(not self._ended)
            ordinal, self._count = self._count, self._count + 1
            if ordinal == self._faults.reset_after:
                return False
            self._queue.extend(self._arrivals(frame, ordinal))
            self._changed.notify_all()
        return True

    async def receive(self) -> Frame:
        """The next frame; those that were queued before the end still come."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._ended or self._queue)
            _check_open(self._queue)
            self._changed.notify_all()
            return self._queue.popleft()

    async def end(self, *, lose: bool) -> None:
        """No more frames; `lose` forgets those on their way too."""
        async with self._changed:
            self._ended = True
            if lose:
                self._queue.clear()
            self._changed.notify_all()

    def _arrivals(self, frame: Frame, ordinal: int) -> list[Frame]:
        faults, dice = self._faults, self._dice
        lost, doubled, late = (
            dice.random() < rate for rate in (faults.loss, faults.duplication, faults.reordering)
        )
        arrivals: list[Frame] = []
        if ordinal in faults.late or late:
            self._held.append((ordinal + dice.randint(1, faults.window), frame))
        elif not (ordinal in faults.drop or lost):
            arrivals = [frame] * (2 if ordinal in faults.duplicate or doubled else 1)
        arrivals += [held for due, held in self._held if due <= ordinal]
        self._held = [(due, held) for due, held in self._held if due > ordinal]
        return arrivals


class LoopbackStream:
    """One end of a connection in memory; a `FrameStream`. `on_send` sees each frame before its faults."""

    def __init__(self, out: _Direction, back: _Direction) -> None:
        self.on_send: Callable[[Frame], None] = lambda _frame: None
        self._out = out
        self._back = back

    async def send(self, frame: Frame) -> None:
        """Send a frame. Errors: ConnectionLost."""
        self.on_send(frame)
        if not await self._out.send(frame):
            await self.reset()
            _check_open(False)

    async def receive(self) -> Frame:
        """The next frame. Errors: ConnectionLost."""
        return await self._back.receive()

    async def close(self) -> None:
        """End both directions; what was sent still arrives."""
        await self._out.end(lose=False)
        await self._back.end(lose=False)

    async def reset(self) -> None:
        """Break the connection; frames on their way are lost."""
        await self._out.end(lose=True)
        await self._back.end(lose=True)


def pair(
    forth: Faults = SOUND, back: Faults = SOUND, capacity: int = 16
) -> tuple[LoopbackStream, LoopbackStream]:
    """Both ends of a new connection; `forth` are the faults from the first end to the second."""
    one, two = _Direction(forth, capacity), _Direction(back, capacity)
    return LoopbackStream(one, two), LoopbackStream(two, one)


Accept = Callable[[LoopbackStream, str], Awaitable[None]]
Plan = Callable[[str, str, int], tuple[Faults, Faults]]


class Loopback:
    """A network in memory. `plan(source, destination, n)` gives the faults of their n-th connection, from 0.

    `on_send(source, destination, frame)` sees every frame before its faults; `dials` counts connections;
    `refused` keeps what `accept` raised.
    """

    def __init__(
        self,
        plan: Plan = lambda _source, _destination, _n: (SOUND, SOUND),
        on_send: Callable[[str, str, Frame], None] = lambda _source, _destination, _frame: None,
    ) -> None:
        self.dials: Counter[tuple[str, str]] = Counter()
        self.refused: list[TdnError] = []
        self._plan = plan
        self._on_send = on_send
        self._nodes: dict[str, Accept] = {}
        self._serving: dict[asyncio.Task[None], tuple[frozenset[str], LoopbackStream]] = {}

    def attach(self, node: str, accept: Accept) -> None:
        """`accept(stream, peer)` serves the connections that are dialled to `node`; the newest one counts."""
        self._nodes[node] = accept

    def detach(self, node: str) -> None:
        """`node` cannot be reached any more; its connections go on."""
        self._nodes.pop(node, None)

    def dialler(self, me: str) -> Callable[[str], Awaitable[LoopbackStream]]:
        """The `connect` of node `me`."""

        async def connect(peer: str) -> LoopbackStream:
            accept = self._nodes.get(peer)
            if accept is None:
                guard("TDN-T-RTE-03").refuse(Reason.UNREACHABLE, f"{peer} is not attached", ConnectionLost)
            n = self.dials[me, peer]
            self.dials[me, peer] += 1
            here, there = pair(*self._plan(me, peer, n))
            here.on_send = partial(self._on_send, me, peer)
            there.on_send = partial(self._on_send, peer, me)
            task = asyncio.create_task(self._serve(accept, there, me))
            self._serving[task] = (frozenset((me, peer)), there)
            task.add_done_callback(self._serving.pop)
            return here

        return connect

    async def reset(self, *nodes: str) -> None:
        """Break every connection that touches all of `nodes`; without names, every one."""
        for ends, stream in list(self._serving.values()):
            if ends.issuperset(nodes):
                await stream.reset()

    async def close(self) -> None:
        """Break everything and wait until nobody serves any more."""
        self._nodes.clear()
        await self.reset()
        await asyncio.gather(*self._serving)

    async def _serve(self, accept: Accept, stream: LoopbackStream, peer: str) -> None:
        try:
            await accept(stream, peer)
        except TdnError as error:
            self.refused.append(error)


def _check_open(ok: object) -> None:
    if not ok:
        guard("TDN-T-ENC-03").refuse(Reason.UNREACHABLE, "the connection has ended", ConnectionLost)
