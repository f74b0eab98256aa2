"""The exchange of adverts with neighbours: both sides tell what they lead to, and every change of it.

A conversation lasts as long as the link. When it ends, everything that was heard in it is gone at once and
the other neighbours hear of it. Paths that pass a neighbour are not told to it (split horizon).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace

from tdn_interop.errors import TdnError
from tdn_interop.identity import Identity, Signed
from tdn_interop.transport import adverts
from tdn_interop.transport.adverts import LIFE_MS, REFRESH_MS, RecordOf
from tdn_interop.transport.route import Path, Table, Teller
from tdn_interop.transport.route_wire import MAX_PATH, Change, Complete, Origin, SignedPath, Withdrawn
from tdn_interop.transport.trust import now_ms

# Changes that come within this time go out together; a flapping link costs its neighbours no more.
PACE_S = 0.05
TICK_S = 1.0
# Adverts of one neighbour that are checked in a second; each costs about a millisecond. What comes faster waits.
CHECKED_PER_S = 500

Send = Callable[[Change], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Told:
    """The last thing a neighbour was told of a prefix; `path` is None after a withdrawal."""

    sequence: int
    expires_at_ms: int
    path: Path | None


@dataclass(eq=False)
class Conversation:
    """With one neighbour. `changed` is set when there may be something to tell it."""

    teller: Teller
    told: dict[str, _Told] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    heard_all: asyncio.Event = field(default_factory=asyncio.Event)


class Neighbours:
    """The conversations of one node.

    `relays` is False at a child: it tells only of itself, and not to its parent. `record_of` verifies the
    NodeRecord of a signer. `on_refusal` hears of adverts that do not hold; they change nothing.
    """

    def __init__(
        self, key: Identity, record: Signed, table: Table, *, relays: bool, record_of: RecordOf,
        on_refusal: Callable[[TdnError], None], clock: Callable[[], int] = now_ms,
    ) -> None:  # fmt: skip
        self.table = table
        self._key = key
        self._record = record
        self._relays = relays
        self._record_of = record_of
        self._on_refusal = on_refusal
        self._clock = clock
        self._conversations: set[Conversation] = set()
        self._served: dict[str, asyncio.Task[object]] = {}
        self._parent_is_linked = False
        self._withheld = False
        self._own = self._issue(0)

    # -- what this node is -----------------------------------------------------------------------

    def parent_linked(self, linked: bool) -> None:
        """A child that its parent does not reach is reached by its other ways, and says so."""
        if linked is not self._parent_is_linked:
            self._parent_is_linked = linked
            self._own = self._issue(self._own.sequence)
            self._tell_all()

    def withhold(self, withheld: bool) -> None:
        """A node that is about to stop leads nowhere: what it told is withdrawn until it says otherwise."""
        self._withheld = withheld
        self._own = self._issue(self._own.sequence)
        self._tell_all()

    async def run(self) -> None:
        """Let adverts expire and issue our own anew, for as long as the node runs."""
        while True:
            await asyncio.sleep(TICK_S)
            self.tick()

    def tick(self) -> None:
        """What time alone changes."""
        now = self._clock()
        fresh = now >= self._own.issued_at_ms + REFRESH_MS
        if fresh:
            self._own = self._issue(self._own.sequence)
        if self.table.expire(now) or fresh:
            self._tell_all()

    def _issue(self, before: int) -> Origin:
        now = self._clock()
        backup = not self._relays and self._parent_is_linked
        return Origin(self.table.me, max(now, before + 1), now, now + LIFE_MS, backup)

    # -- conversations ---------------------------------------------------------------------------

    async def converse(
        self, node: str, told: AsyncIterator[Change], send: Send, on_complete: Callable[[], object]
    ) -> None:
        """Tell and hear over a link of ours until it ends; `on_complete` when both sides know everything."""
        await self._converse(node, told, send, on_complete, we_dialled=True)

    async def serve(self, node: str, told: AsyncIterator[Change], send: Send) -> None:
        """Tell and hear over a link that `node` keeps to us; a newer conversation ends an older one."""
        older = self._served.get(node)
        if older:
            older.cancel()
        task = asyncio.create_task(self._converse(node, told, send, bool, we_dialled=False))
        self._served[node] = task
        try:
            await asyncio.wait((task,))
            if not task.cancelled():
                task.result()
        finally:
            task.cancel()
            if self._served.get(node) is task:
                del self._served[node]

    async def _converse(
        self, node: str, told: AsyncIterator[Change], send: Send, on_complete: Callable[[], object], *,
        we_dialled: bool,
    ) -> None:  # fmt: skip
        with self.conversation(node) as conversation:
            hearing = asyncio.create_task(self._hear(conversation, told, on_complete))
            telling = asyncio.create_task(self._tell(conversation, send, first=we_dialled))
            both = (hearing, telling)
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in both:
                    task.cancel()
                results = await asyncio.gather(*both, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    @contextlib.contextmanager
    def conversation(self, node: str) -> Iterator[Conversation]:
        """With `node`; when it ends, what was heard in it is forgotten."""
        conversation = Conversation(self.table.join(node))
        self._conversations.add(conversation)
        try:
            yield conversation
        finally:
            self._conversations.discard(conversation)
            self.table.leave(conversation.teller)
            self._tell_all()

    async def _hear(
        self, conversation: Conversation, told: AsyncIterator[Change], on_complete: Callable[[], object]
    ) -> None:
        async for change in told:
            self.hear(conversation, change)
            if isinstance(change, Complete):
                on_complete()
            elif isinstance(change, SignedPath):
                await asyncio.sleep(1 / CHECKED_PER_S)

    def hear(self, conversation: Conversation, change: Change) -> None:
        """What the neighbour says."""
        match change:
            case SignedPath():
                self._take(conversation.teller, change)
            case Withdrawn(prefix):
                self.table.withdraw(conversation.teller, prefix)
                self._tell_all()
            case Complete():
                conversation.heard_all.set()

    def _take(self, teller: Teller, told: SignedPath) -> None:
        try:
            advert = adverts.check(told, teller.node, self.table.me, self._clock(), self._record_of)
            self.table.learn(teller, advert)
        except TdnError as error:
            self._on_refusal(error)
        else:
            self._tell_all()

    async def _tell(self, conversation: Conversation, send: Send, *, first: bool) -> None:
        await self._tell_news(conversation, send)
        if not first:
            await conversation.heard_all.wait()
        await send(Complete())
        while True:
            await conversation.changed.wait()
            conversation.changed.clear()
            await self._tell_news(conversation, send)
            await asyncio.sleep(PACE_S)

    async def _tell_news(self, conversation: Conversation, send: Send) -> None:
        for change in self.news(conversation):
            await send(change)

    def _tell_all(self) -> None:
        for conversation in self._conversations:
            conversation.changed.set()

    def news(self, conversation: Conversation) -> Iterator[Change]:
        """What the neighbour must hear now; from then on it has been told.

        Nothing older than before is told: if only that is left, the prefix is withdrawn until something newer comes.
        """
        node, told, now = conversation.teller.node, conversation.told, self._clock()
        best = self.table.best(apart_from=node) if self._relays and not self._withheld else {}
        for prefix, last in list(told.items()):
            advert = best.get(prefix)
            ours = prefix == self.table.me and not self._withheld
            gone = not ours and (advert is None or advert.sequence < last.sequence)
            if gone and last.path is not None:
                told[prefix] = replace(last, path=None)
                yield Withdrawn(prefix)
            elif gone and last.expires_at_ms <= now:
                del told[prefix]
        if not self._withheld and (self._relays or node != self.table.parent):
            own = self._own
            if self._is_news(told, own.prefix, _Told(own.sequence, own.expires_at_ms, ())):
                yield adverts.originate(self._key, self._record, node, own)
        for prefix, advert in best.items():
            fresh = _Told(advert.sequence, advert.expires_at_ms, advert.path)
            if len(advert.path) < MAX_PATH and self._is_news(told, prefix, fresh):
                yield adverts.extend(self._key, self._record, node, advert.signed)

    @staticmethod
    def _is_news(told: dict[str, _Told], prefix: str, fresh: _Told) -> bool:
        last = told.get(prefix)
        if last == fresh or (last and last.sequence > fresh.sequence):
            return False
        told[prefix] = fresh
        return True
