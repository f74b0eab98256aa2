"""Files that others offer and nobody has asked for yet, and the owners' requests that wait for one."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from dataclasses import dataclass

from tdn_interop.app.files.transfer_wire import Offer
from tdn_interop.errors import Reason, TdnError, Unavailable, guard
from tdn_interop.transport.channel import fresh

MAX_WAITING = 64
"""Offers of one peer that nobody has asked for."""
STALE_S = 180.0
"""A sender that still wants to hand over a file repeats its offer more often than that."""


@dataclass(frozen=True, slots=True)
class Offered:
    """An offer, the node of the certificate it came by, and when (seconds, any steady clock)."""

    peer: str
    offer: Offer
    at_s: float


class Offers:
    """Offers and requests by topic; both in the order they came."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, str], Offered] = {}  # by peer and transfer
        self._requests: dict[str, deque[asyncio.Future[Offered]]] = {}

    def put(self, offered: Offered) -> None:
        """Hand the offer to a request, or keep it; a newer attempt takes the place of an older one.

        Errors: RESOURCE_EXHAUSTED when the peer has too many waiting.
        """
        self._drop_stale()
        key = (offered.peer, offered.offer.transfer_id)
        if key in self._waiting:
            self._waiting[key] = offered
            return
        for request in self._requests.get(offered.offer.topic, ()):
            if not request.done():
                request.set_result(offered)
                return
        waiting = Counter(peer for peer, _ in self._waiting)[offered.peer]
        guard("TDN-T-LIM-03").check(
            waiting < MAX_WAITING, Reason.RESOURCE_EXHAUSTED,
            f"{waiting} files of {offered.peer} wait for somebody to receive them", Unavailable,
        )  # fmt: skip
        self._waiting[key] = offered

    async def take(self, topic: str) -> Offered:
        """The oldest offer on `topic`; waits for one."""
        self._drop_stale()
        if all(request.done() for request in self._requests.get(topic, ())):
            for key, offered in self._waiting.items():
                if offered.offer.topic == topic:
                    return self._waiting.pop(key)
        request: asyncio.Future[Offered] = asyncio.get_running_loop().create_future()
        self._requests.setdefault(topic, deque()).append(request)
        try:
            return await request
        except asyncio.CancelledError:
            if request.done() and not request.cancelled() and not request.exception():
                self.put(request.result())  # it came at the moment this caller went
            raise
        finally:
            self._forget(topic, request)

    def withdraw(self, peer: str, transfer_id: str) -> None:
        """The sender does not offer this any more."""
        self._waiting.pop((peer, transfer_id), None)

    def close(self, error: TdnError) -> None:
        """End every request with `error`."""
        for requests in self._requests.values():
            for request in requests:
                if not request.done():
                    request.set_exception(fresh(error))

    def _drop_stale(self) -> None:
        oldest = asyncio.get_running_loop().time() - STALE_S
        self._waiting = {key: offered for key, offered in self._waiting.items() if offered.at_s > oldest}

    def _forget(self, topic: str, request: asyncio.Future[Offered]) -> None:
        self._requests[topic].remove(request)
        if not self._requests[topic]:
            del self._requests[topic]
