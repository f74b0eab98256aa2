"""Messages that have arrived and wait for their consumer, per topic and peer.

Credit bounds one session; here is the bound over all sessions and peers. A peer may hold as much as
is left free: the first that fills gets half of the whole, the next half of the rest, and something is
always free for one more. A message that arrived stays when its session ends, so it counts until it is taken.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass

from tdn_interop.errors import Reason, TdnError, Unavailable, guard


@dataclass(frozen=True, slots=True)
class _Waiting:
    number: int  # order of arrival over all peers
    message: bytes
    cost: int
    consumed: Callable[[], None]


class Inbox:
    """Queues by (topic, peer), and the callers that wait for them; `limit_bytes` in terms of credit."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._queues: dict[str, dict[str, deque[_Waiting]]] = {}
        self._callers: defaultdict[str, dict[asyncio.Future[None], str | None]] = defaultdict(dict)
        self._held: Counter[str] = Counter()  # by peer
        self._held_in_all = 0
        self._numbers = itertools.count()
        self._closed = False

    def check_room(self, peer: str, cost: int) -> None:
        """Errors: RESOURCE_EXHAUSTED (Unavailable) when there is no room for `cost` more of `peer`."""
        guard("TDN-T-LIM-03").check(
            self._held[peer] + cost <= self._limit - (self._held_in_all + cost), Reason.RESOURCE_EXHAUSTED,
            f"too much from {peer} has not been received", Unavailable,
        )  # fmt: skip

    def put(self, peer: str, topic: str, message: bytes, cost: int, consumed: Callable[[], None]) -> None:
        """Queue a message; `consumed` is called when it is taken or discarded. Errors: those of `check_room`."""
        self.check_room(peer, cost)
        queue = self._queues.setdefault(topic, {}).setdefault(peer, deque())
        queue.append(_Waiting(next(self._numbers), message, cost, consumed))
        self._held[peer] += cost
        self._held_in_all += cost
        for caller, wanted in self._callers[topic].items():
            if wanted in (None, peer) and not caller.done():
                caller.set_result(None)

    async def take(self, topic: str, peer: str | None) -> tuple[str, bytes]:
        """(sender, message): the oldest on `topic` from `peer`, or from anybody. Waits for it.

        Errors: SESSION_CLOSED when this node closes, and what `fail` was told about `peer`.
        """
        while not (sender := self._oldest(topic, peer)):
            guard("TDN-T-SES-05").check(
                not self._closed, Reason.SESSION_CLOSED, "the node has closed its channels", Unavailable
            )
            caller: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._callers[topic][caller] = peer
            try:
                await caller
            finally:
                self._forget(topic, caller)
        return sender, self._pop(topic, sender)

    def fail(self, peer: str, error: Callable[[], TdnError]) -> None:
        """Whoever waits for `peer` alone waits in vain: a session with it has failed."""
        for callers in self._callers.values():
            for caller, wanted in callers.items():
                if wanted == peer and not caller.done():
                    caller.set_exception(error())

    def discard(self, prefix: str) -> int:
        """Drop the messages of every topic that starts with `prefix`; returns how many."""
        dropped = 0
        for topic in [topic for topic in self._queues if topic.startswith(prefix)]:
            for peer, queue in list(self._queues[topic].items()):
                for _ in range(len(queue)):
                    self._pop(topic, peer)
                    dropped += 1
        return dropped

    def close(self) -> None:
        """Messages that have arrived can still be taken; nobody waits any more."""
        self._closed = True
        for callers in self._callers.values():
            for caller in callers:
                if not caller.done():
                    caller.set_result(None)

    def _oldest(self, topic: str, peer: str | None) -> str | None:
        queues = self._queues.get(topic, {})
        if peer is not None:
            return peer if peer in queues else None
        return min(queues, key=lambda sender: queues[sender][0].number, default=None)

    def _pop(self, topic: str, peer: str) -> bytes:
        queue = self._queues[topic][peer]
        waiting = queue.popleft()
        if not queue:
            del self._queues[topic][peer]
            if not self._queues[topic]:
                del self._queues[topic]
        self._held[peer] -= waiting.cost
        self._held_in_all -= waiting.cost
        waiting.consumed()
        return waiting.message

    def _forget(self, topic: str, caller: asyncio.Future[None]) -> None:
        del self._callers[topic][caller]
        if not self._callers[topic]:
            del self._callers[topic]
