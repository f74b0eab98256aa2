"""The connection of a link and the one that follows it: tunnels on the old one go on until they have ended."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import grpc.aio

from tdn_interop.errors import TdnError
from tdn_interop.transport import pki
from tdn_interop.transport.dial import Dialled

# Calls on a connection that another one has followed may take so long; then streams hear that it has ended.
GRACE_S = 10.0
# A connection that still carries tunnels then ends at this share of the life of the certificate it began with.
LATEST = 0.97


class Succession:
    """`make` makes a connection, `spawn` runs work for as long as the link is kept."""

    def __init__(
        self, make: Callable[[], Dialled], spawn: Callable[[Coroutine[Any, Any, None]], object]
    ) -> None:
        self._make = make
        self._spawn = spawn
        self.now = make()
        self._before: set[Dialled] = set()
        self._carries: Counter[Dialled] = Counter()  # tunnels

    async def renew(self) -> None:
        """Make the next connection and use it from now on. Errors: why there is none; the old one goes on."""
        fresh = self._make()
        try:
            await fresh.start()
        except TdnError:
            await fresh.close()
            raise
        old, self.now = self.now, fresh
        self._before.add(old)
        self._release(old)

    async def close(self) -> None:
        """Close all of them."""
        for dialled in self._all():
            await dialled.close()

    def carry(self, call: grpc.aio.Call) -> None:
        """Note a tunnel on the connection of now."""
        dialled = self.now
        self._carries[dialled] += 1

        def ended(_call: object) -> None:
            self._carries[dialled] -= 1
            self._release(dialled)

        call.add_done_callback(ended)

    def drop_expired(self, now_ms: int) -> None:
        """End connections to a neighbour whose certificate has expired, and old ones shortly before ours has."""
        for dialled in self._all():
            dialled.drop_expired(now_ms)
            ours = dialled.peer.ours if dialled.peer else None
            if ours and dialled is not self.now and pki.renewal_due_ms(ours, LATEST) <= now_ms:
                dialled.begin_anew()

    def drop_refused(self) -> None:
        """End the connections when the neighbour is refused by now."""
        for dialled in self._all():
            dialled.drop_refused()

    def begin_anew(self) -> None:
        """End the connections and what they carry; a new one follows at once."""
        for dialled in self._all():
            dialled.begin_anew()

    def _all(self) -> list[Dialled]:
        return [self.now, *self._before]

    def _release(self, dialled: Dialled) -> None:
        if dialled in self._before and not self._carries[dialled]:
            self._spawn(self._retire(dialled))

    async def _retire(self, dialled: Dialled) -> None:
        await asyncio.sleep(GRACE_S)
        dialled.begin_anew()
        await asyncio.sleep(1)  # for streams to end with their reason; closing cancels what is left
        if dialled in self._before:
            self._before.remove(dialled)
            del self._carries[dialled]
            await dialled.close()
