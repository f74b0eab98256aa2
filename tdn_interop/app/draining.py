"""Stopping a node without anybody noticing: it takes nothing new and waits for what moves.

Sessions survive their tunnels, so those in which nothing moves do not hold the node up: they are ended last, in
good order, and their ends resume over another relay, or over this one when it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from tdn_interop.errors import Reason, Unavailable, guard
from tdn_interop.transport.interceptors import Call
from tdn_interop.transport.relay import Tunnels
from tdn_interop.transport.tunnel import GRACE_S, Passage

# A tunnel is quiet when nothing has moved for so long: shorter than the status that quiet sessions ask for.
QUIET_S = 1.0
LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class Remaining:
    """What is still under way: tunnels of others, moving and quiet, jobs that compute here; seconds that are left."""

    moving: int
    quiet: int
    jobs: int
    left_s: float
    stops: bool = False


class Draining:
    """Whether a node drains. `jobs` counts those that compute here; `stop` ends the node."""

    def __init__(self, me: str, tunnels: Tunnels, clock: Callable[[], float] = time.monotonic) -> None:
        self.me = me
        self.jobs: Callable[[], Awaitable[int]] = _none
        self.stop: Callable[[], None] = lambda: None
        self.on_change: Callable[[bool], None] = lambda _on: None
        self._tunnels = tunnels
        self._clock = clock
        self._until: float | None = None
        self._work: asyncio.Task[None] | None = None
        self._now = Remaining(0, 0, 0, 0)
        self._looks = 0
        self._news = asyncio.Condition()

    @property
    def on(self) -> bool:
        """True while the node takes nothing new."""
        return self._until is not None

    def check(self) -> None:
        """Errors: DRAINING (Unavailable) while the node takes nothing new."""
        words = f"{self.me} is about to stop and takes nothing new"
        guard("TDN-T-LIM-07").check(not self.on, Reason.DRAINING, words, Unavailable)

    @contextlib.asynccontextmanager
    async def layer(self, _call: Call) -> AsyncIterator[None]:
        """Around every call of a service that takes only what is new."""
        self.check()
        yield

    async def drain(self, timeout_s: float) -> AsyncIterator[Remaining]:
        """Begin, or join a drain that is under way; what remains, at each look, until the node stops or `undrain`.

        The drain goes on when nobody iterates any more. A later call sets the time limit anew.
        """
        self._until = self._clock() + timeout_s
        if self._work is None:
            self.on_change(True)
            self._work = asyncio.create_task(self._drain())
        seen = self._looks
        while self.on:
            async with self._news:
                while self._looks == seen:
                    await self._news.wait()
            seen = self._looks
            yield self._now
            if self._now.stops:
                return

    async def undrain(self) -> None:
        """Take new things again. Nothing happens when the node does not drain."""
        if self._work is None:
            return
        await self.close()
        self._until = None
        self.on_change(False)
        await self._tell(self._now)

    async def close(self) -> None:
        """Give up the wait, for instance because the node stops anyway."""
        work, self._work = self._work, None
        if work:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _drain(self) -> None:
        before = self._moved()
        while True:
            await asyncio.sleep(QUIET_S)
            now, jobs = self._moved(), await self.jobs()
            moving = sum(before.get(number) != size for number, size in now.items())
            left_s = max(0.0, (self._until or 0) - self._clock())
            stops = not left_s or not (moving or jobs)
            await self._tell(Remaining(moving, len(now) - moving, jobs, left_s, stops))
            if stops:
                break
            before = now
        await self._end_tunnels()
        self.stop()

    async def _end_tunnels(self) -> None:
        """In good order, so that both sides get their receipts; a side that does not answer is not waited for."""
        for passage in self._others():
            await passage.end()
        ends = self._clock() + GRACE_S
        while self._others() and self._clock() < ends:  # noqa: ASYNC110  tunnels end by themselves
            await asyncio.sleep(LOOK_S)

    async def _tell(self, now: Remaining) -> None:
        self._now = now
        self._looks += 1
        async with self._news:
            self._news.notify_all()

    def _others(self) -> list[Passage]:
        return [one for one in self._tunnels.passing.values() if one.opening.source != self.me]

    def _moved(self) -> dict[bytes, int]:
        """Bytes of each tunnel of others so far."""
        return {
            one.opening.tunnel_id: one.counter.forward + one.counter.backward for one in self._others()
        }  # fmt: skip


async def _none() -> int:
    return 0
