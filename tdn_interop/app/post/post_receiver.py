"""The receiving end of the post: parcels are stored durably, then handed over in order per peer."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from tdn_interop.app.post.post_wire import WireParcel, WireReceipt
from tdn_interop.app.store import post as table
from tdn_interop.app.store.engine import Store
from tdn_interop.app.store.post import InRow, PositionRow
from tdn_interop.errors import Reason, Refused, TdnError, Unavailable, guard
from tdn_interop.transport.channel import fresh

MAX_UNDONE, MAX_UNDONE_BYTES = 1024, 16 << 20
"""Parcels of one peer that are stored here and not done; more are not taken."""
MAX_STREAMS = 32
"""Streams of one peer that are remembered. It opens one each time it loses its database."""
RECENT_MS = 3_600_000
"""A peer that sent something in this time is told when this node is back."""
# Parcels that wait for one transaction.
_BATCH = 64


@dataclass(frozen=True, slots=True)
class Parcel:
    """A message as received; `peer` from its certificate, `number` the order of arrival at this node."""

    peer: str
    number: int
    body: bytes


@dataclass(frozen=True, slots=True)
class _Arrival:
    peer: str
    parcel: WireParcel
    stored: asyncio.Future[None] | None


@dataclass(slots=True)
class _Kept:
    """What became of the parcels of one stream: `next_number` is 0 for a stream of somebody else."""

    peer: str
    stream_id: bytes
    next_number: int = 0
    rows: list[InRow] = field(default_factory=list)
    error: TdnError | None = None


class Arrivals:
    """Stores and hands over. `receipt` is called for what is stored; `consume` takes parcels in order per peer.

    A stream has one position, kept for good: a parcel below it is a copy, whenever and by whichever way it
    comes, so that a stream which its sender has left for a newer one cannot be played again. A stream is
    worth nothing to any other peer than the one whose certificate opened it.
    """

    def __init__(
        self, store: Store, spawn: Callable[[Coroutine[Any, Any, object]], None],
        on_refusal: Callable[[TdnError], None], receipt: Callable[[str, WireReceipt], None],
        consume: Callable[[Parcel], Awaitable[None]], clock: Callable[[], int],
    ) -> None:  # fmt: skip
        self._consume = consume
        self._store = store
        self._spawn = spawn
        self._on_refusal = on_refusal
        self._receipt = receipt
        self._clock = clock
        self._queue: asyncio.Queue[_Arrival] = asyncio.Queue(_BATCH)
        self._numbers = itertools.count()
        self._waiting: defaultdict[str, deque[Parcel]] = defaultdict(deque)
        self._handing: set[str] = set()

    async def start(self) -> None:
        """Hand over again what an earlier process did not get done, then store what comes.

        Peers of late get a receipt: it opens a session, and their own that died with that process ends, so that
        nothing waits on it.
        """
        rows = await self._store.run(table.every_in)
        self._numbers = itertools.count(rows[-1].number + 1 if rows else 0)
        self._hand_over(rows)
        self._spawn(self._keep_all())
        since = self._clock() - RECENT_MS
        for row in await self._store.run(lambda c: table.positions_since(c, since)):
            self._receipt(row.peer, WireReceipt(row.stream_id, row.next_number))

    async def put(self, peer: str, parcel: WireParcel) -> None:
        """Queue a parcel of `peer`; waits while the database is slower than the peers."""
        await self._queue.put(_Arrival(peer, parcel, None))

    async def stored(self, peer: str, parcel: WireParcel) -> None:
        """Like `put`, and wait until the parcel is stored. Errors: why it is not."""
        stored = asyncio.get_running_loop().create_future()
        await self._queue.put(_Arrival(peer, parcel, stored))
        await stored

    # -- storing -------------------------------------------------------------------------------

    async def _keep_all(self) -> None:
        """One transaction for everything that came during the last one."""
        while True:
            batch = [await self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get_nowait())
            await self._keep_batch(batch)

    async def _keep_batch(self, batch: list[_Arrival]) -> None:
        streams: defaultdict[tuple[str, bytes], list[_Arrival]] = defaultdict(list)
        for arrival in batch:
            streams[arrival.peer, arrival.parcel.stream_id].append(arrival)
        try:
            kept = await self._store.run(lambda c: [self._keep(c, *key, of) for key, of in streams.items()])
        except TdnError as error:
            kept = [_Kept(*key, error=error) for key in streams]
        for arrivals, fate in zip(streams.values(), kept, strict=True):
            if fate.error:
                self._on_refusal(fate.error)
            if fate.next_number:
                self._receipt(fate.peer, WireReceipt(fate.stream_id, fate.next_number))
            _tell(arrivals, fate)
            self._hand_over(fate.rows)

    def _keep(
        self, connection: sa.Connection, peer: str, stream_id: bytes, arrivals: list[_Arrival]
    ) -> _Kept:
        known = table.position(connection, stream_id)
        kept = _Kept(peer, stream_id, known.next_number if known else 0)
        try:
            guard("TDN-T-DLV-02").check(
                known is None or known.peer == peer, Reason.IDENTITY_MISMATCH,
                f"{peer} uses a stream of another node", Refused,
            )  # fmt: skip
        except Refused as error:
            return _Kept(peer, stream_id, error=error)
        count, size = table.in_size(connection, peer)
        for parcel in (arrival.parcel for arrival in arrivals):
            if parcel.number < kept.next_number:
                continue  # a copy
            try:
                _check_order(peer, parcel, kept.next_number)
                size += len(parcel.body)
                _check_room(peer, count + len(kept.rows) + 1, size)
            except TdnError as error:
                kept.error = kept.error or error
                continue
            kept.rows.append(InRow(next(self._numbers), peer, parcel.body))
            kept.next_number = parcel.number + 1
        self._write(connection, kept, known)
        return kept

    def _write(self, connection: sa.Connection, kept: _Kept, known: PositionRow | None) -> None:
        if not kept.rows:
            return
        for row in kept.rows:
            table.add_in(connection, row)
        position = PositionRow(kept.stream_id, kept.peer, kept.next_number, self._clock())
        table.put_position(connection, position)
        if known is None:
            table.forget_positions(connection, kept.peer, MAX_STREAMS)

    # -- handing over --------------------------------------------------------------------------

    def _hand_over(self, rows: list[InRow]) -> None:
        for row in rows:
            self._waiting[row.peer].append(Parcel(row.peer, row.number, row.body))
        for peer in {row.peer for row in rows} - self._handing:
            self._handing.add(peer)
            self._spawn(self._hand(peer))

    async def _hand(self, peer: str) -> None:
        try:
            while self._waiting[peer]:
                try:
                    await self._consume(self._waiting[peer].popleft())
                except TdnError as error:
                    self._on_refusal(error)
        finally:
            self._handing.discard(peer)


def _check_order(peer: str, parcel: WireParcel, next_number: int) -> None:
    guard("TDN-T-DLV-04").check(
        parcel.after <= next_number, Reason.SEQ_GAP, f"parcel {next_number} of {peer} has not come"
    )


def _check_room(peer: str, count: int, size: int) -> None:
    guard("TDN-T-LIM-03").check(
        count <= MAX_UNDONE and size <= MAX_UNDONE_BYTES, Reason.RESOURCE_EXHAUSTED,
        f"{count - 1} parcels of {peer} are not done here", Unavailable,
    )  # fmt: skip


def _tell(arrivals: list[_Arrival], kept: _Kept) -> None:
    """Those who wait for their parcel."""
    for arrival in arrivals:
        if arrival.stored is None or arrival.stored.done():
            continue
        if arrival.parcel.number < kept.next_number:
            arrival.stored.set_result(None)
        elif kept.error:
            arrival.stored.set_exception(fresh(kept.error))
