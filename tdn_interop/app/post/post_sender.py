"""The sending end of the post: the outbox of each peer goes out until receipts cover it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import sqlalchemy as sa
from tenacity import AsyncRetrying, retry_if_exception_type, wait_exponential

from tdn_interop.app.post import post_wire
from tdn_interop.app.post.post_wire import WireParcel, WireReceipt
from tdn_interop.app.store import post as table
from tdn_interop.app.store.engine import Store
from tdn_interop.errors import Reason, Refused, TdnError, Unavailable, guard
from tdn_interop.transport.channels import Channels

TOPIC = "post"
SEND_S = 10.0
"""Longest time to open a session and queue one message."""
RECEIPT_S = 2.0
"""A receipt that has not come by then is asked for by sending again."""
AWAY_S = 2.0
"""A peer that was not heard for so long gets its parcels through the mailbox."""
MAX_PAUSE_S = 10.0
# What is on its way to one peer at a time.
_WINDOW, _WINDOW_BYTES = 64, 2 << 20


class _Peer:
    """What one sender task knows."""

    def __init__(self) -> None:
        self.news = asyncio.Event()  # a parcel, or a session: try now
        self.changed = asyncio.Event()  # `covered` or `lost`
        self.covered = 0
        self.lost = False
        self.heard = time.monotonic()
        self.deposited = 0


class Outbox:
    """One task per peer for which something is on its way. `away` and `expired` as in `Post`."""

    def __init__(
        self, channels: Channels, store: Store, spawn: Callable[[Coroutine[Any, Any, object]], None],
        away: Callable[[str, Sequence[bytes]], Awaitable[bool]], expired: Callable[[str, bytes], None],
        clock: Callable[[], int], pause_s: float,
    ) -> None:  # fmt: skip
        self._away = away
        self._expired = expired
        self._channels = channels
        self._store = store
        self._spawn = spawn
        self._clock = clock
        self._pause_s = pause_s
        self._peers: dict[str, _Peer] = {}

    async def start(self) -> None:
        """Go on with what an earlier process left."""
        for peer in await self._store.run(table.out_peers):
            self.wake(peer)

    def wake(self, peer: str) -> None:
        """Send now."""
        if peer not in self._peers:
            self._peers[peer] = _Peer()
            self._spawn(self._run(peer, self._peers[peer]))
        self._peers[peer].news.set()

    def session(self, peer: str, *, open_now: bool) -> None:
        """A session with `peer` has opened or ended; parcels may have been lost with it."""
        if state := self._peers.get(peer):
            state.lost = state.lost or not open_now
            (state.news if open_now else state.changed).set()

    async def receipt(self, peer: str, receipt: WireReceipt) -> None:
        """Forget what the peer has stored. An old receipt changes nothing.

        Errors: IDENTITY_MISMATCH (not our stream to this peer), SEQ_RANGE (beyond what was sent). The latter is what
        an honest peer says when our database is an older copy: it would take new parcels for copies of those that
        it has had under their numbers, so they go in a new stream.
        """
        sent = await self._store.run(partial(_cover, peer, receipt))
        state = self._peers.get(peer)
        if receipt.next_number > sent:
            if state:
                state.covered = state.deposited = 0
                state.lost = True
                state.changed.set()
            guard("TDN-T-DLV-02").refuse(
                Reason.SEQ_RANGE, f"{peer} acknowledges parcel {receipt.next_number - 1}, {sent} were sent"
            )
        if state:
            state.covered = max(state.covered, receipt.next_number)
            state.heard = time.monotonic()
            state.changed.set()

    async def _run(self, peer: str, state: _Peer) -> None:
        policy = AsyncRetrying(
            wait=wait_exponential(multiplier=self._pause_s, max=MAX_PAUSE_S),
            retry=retry_if_exception_type(TdnError),
            sleep=partial(self._pause, peer, state),
        )
        try:
            while await policy(self._round, peer, state):
                continue
        finally:
            del self._peers[peer]

    async def _round(self, peer: str, state: _Peer) -> bool:
        """Send the oldest parcels and wait for their receipt. False when there is nothing to send.

        Errors: why nothing of it was acknowledged.
        """
        state.news.clear()
        await self._give_up(peer, state)
        parcels = await self._store.run(partial(_parcels, peer, 0))
        if not parcels:
            return state.news.is_set()
        before = state.covered
        try:
            await self._send(peer, state, parcels)
        except TdnError as error:
            if state.covered > before:
                return True
            await self._send_away(peer, state, error)
            raise
        return True

    async def _send(self, peer: str, state: _Peer, parcels: list[WireParcel]) -> None:
        state.lost = False
        for parcel in parcels:
            await self._channels.send(peer, TOPIC, post_wire.encode(parcel), SEND_S)
        try:
            async with asyncio.timeout(RECEIPT_S):
                while state.covered <= parcels[-1].number and not state.lost:
                    state.changed.clear()
                    await state.changed.wait()
        except TimeoutError:
            guard("TDN-T-DLV-02").refuse(Reason.DEADLINE, f"no receipt of {peer}", Unavailable)
        guard("TDN-T-DLV-02").check(
            state.covered > parcels[-1].number, Reason.UNREACHABLE, f"the session with {peer} ended", Unavailable
        )  # fmt: skip

    async def _send_away(self, peer: str, state: _Peer, error: TdnError) -> None:
        """What waits for a peer that cannot be reached goes to its mailbox, once."""
        unheard = time.monotonic() - state.heard >= AWAY_S
        if not unheard and error.reason is not Reason.NO_ROUTE:
            return
        while parcels := await self._store.run(partial(_parcels, peer, state.deposited)):
            if not await self._away(peer, [post_wire.encode(parcel) for parcel in parcels]):
                return
            state.deposited = parcels[-1].number + 1

    async def _give_up(self, peer: str, state: _Peer) -> None:
        """Tell of the expired parcels, then forget them: a crash in between tells twice."""
        rows = await self._store.run(lambda c: table.out_expired(c, peer, self._clock()))
        if rows:
            for row in rows:
                self._expired(peer, row.body)
            numbers = [row.number for row in rows]
            await self._store.run(lambda c: table.drop_out(c, peer, numbers))
            state.deposited = 0  # letters that build on the lost ones go again

    async def _pause(self, peer: str, state: _Peer, seconds: float) -> None:
        """Until something is new, but not past the next end of a validity."""
        expiry = await self._store.run(lambda c: table.next_expiry(c, peer))
        if expiry is not None:
            seconds = min(seconds, max(0.0, (expiry - self._clock()) / 1000))
        try:
            async with asyncio.timeout(seconds):
                await state.news.wait()
        except TimeoutError:
            return


def _parcels(peer: str, start: int, connection: sa.Connection) -> list[WireParcel]:
    stream = table.stream(connection, peer)
    return [
        WireParcel(stream.stream_id, row.number, after, row.body, row.expires_at_ms)
        for after, row in table.out_from(connection, peer, start, _WINDOW, _WINDOW_BYTES)
    ]


def _cover(peer: str, receipt: WireReceipt, connection: sa.Connection) -> int:
    """Number of parcels that the stream had."""
    stream = table.stream(connection, peer)
    guard("TDN-T-DLV-02").check(
        stream.stream_id == receipt.stream_id, Reason.IDENTITY_MISMATCH,
        f"{peer} acknowledges a stream that is not ours to it", Refused,
    )  # fmt: skip
    if receipt.next_number > stream.next_number:
        table.renew_stream(connection, peer)
    else:
        table.drop_out_below(connection, peer, receipt.next_number)
    return stream.next_number
