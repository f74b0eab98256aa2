"""Who is still there: a node from which something is expected is asked, and given up when it stays silent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from tdn_interop.errors import TdnError

# How often silent nodes are asked, in seconds; more often when a lease is shorter than four times that.
BEAT_S = 5.0


class Waiting(Protocol):
    """Something that waits for other nodes."""

    @property
    def lease_s(self) -> float:
        """How long a node may be silent, in seconds."""

    def expects(self) -> tuple[str, ...]:
        """Nodes from which something is expected now."""

    def lost(self, peer: str) -> None:
        """`peer` was silent for too long."""


class Leases:
    """Watches over everything that waits; `ping(peer, timeout_s)` asks a node for a sign of life.

    A lease begins when something is first expected, and begins anew with everything that is heard.
    """

    def __init__(
        self, waiting: Callable[[], Iterable[Waiting]], ping: Callable[[str, float], Awaitable[object]],
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._waiting = waiting
        self._ping = ping
        self._clock = clock
        self._heard: dict[str, float] = {}  # of nodes from which something is expected

    def heard(self, peer: str) -> None:
        """A sign of life."""
        if peer in self._heard:
            self._heard[peer] = self._clock()

    async def watch(self) -> None:
        """Watch for ever."""
        while True:
            beat_s = min([BEAT_S, *(one.lease_s / 4 for one in self._waiting())])
            await asyncio.sleep(beat_s)
            await self.look(beat_s)

    async def look(self, beat_s: float) -> None:
        """Ask whom nothing was heard of since the last beat, and give up whose lease is over."""
        begin = self._clock()
        expected = {peer for one in self._waiting() for peer in one.expects()}
        self._heard = {peer: self._heard.get(peer, begin) for peer in expected}
        silent = [peer for peer, at in self._heard.items() if begin - at >= beat_s]
        await asyncio.gather(*(self._ask(peer, beat_s) for peer in silent))
        for one in self._waiting():
            for peer in one.expects():
                if self._clock() - self._heard.get(peer, self._clock()) >= one.lease_s:
                    one.lost(peer)

    async def _ask(self, peer: str, timeout_s: float) -> None:
        try:
            await self._ping(peer, timeout_s)
        except TdnError:  # silence is the answer
            return
        self.heard(peer)
