"""Durable messages to other nodes: in order per peer, exactly once even if either side is killed at any moment.

A parcel is written to the outbox in the transaction of its sender, sent until a receipt covers it, written to
the inbox of the receiver with the position of its stream, and done in the transaction of the consumer. Whatever
is killed in between, each step is repeated and none takes effect twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import sqlalchemy as sa

from tdn_interop.app.post import post_wire
from tdn_interop.app.post.post_receiver import Arrivals, Parcel
from tdn_interop.app.post.post_sender import SEND_S, TOPIC, Outbox
from tdn_interop.app.post.post_wire import MAX_BODY, WireParcel, WireReceipt
from tdn_interop.app.store import post as table
from tdn_interop.app.store.engine import Store
from tdn_interop.errors import LocalProtocolError, Reason, TdnError, Unavailable, guard
from tdn_interop.transport.channel import ChannelEvent
from tdn_interop.transport.channels import Channels
from tdn_interop.transport.trust import now_ms

__all__ = ["MAX_BODY", "TOPIC", "Parcel", "Post"]
MAX_OUT, MAX_OUT_BYTES = 4096, 64 << 20
"""Parcels to one peer without a receipt; more are refused."""


class Post:
    """The post of one node.

    `consumer` is set before `start` and called with the parcels of each peer in order; sooner or later it has
    `done_in` run in the transaction that holds what the parcel means. A parcel that is not done comes again
    when the node starts. `expired` hears of parcels of ours that were not acknowledged within their validity,
    perhaps twice; `away` takes serialized messages for a peer that cannot be reached and tells whether it
    did. `spawn` runs in the background until the node closes.
    """

    def __init__(
        self, channels: Channels, store: Store, spawn: Callable[[Coroutine[Any, Any, object]], None],
        on_refusal: Callable[[TdnError], None], *, clock: Callable[[], int] = now_ms, pause_s: float = 0.2,
    ) -> None:  # fmt: skip
        self.consumer: Callable[[Parcel], Awaitable[None]] | None = None
        self.expired: Callable[[str, bytes], None] = lambda _peer, _body: None
        self.away: Callable[[str, Sequence[bytes]], Awaitable[bool]] | None = None
        self._channels = channels
        self._spawn = spawn
        self._on_refusal = on_refusal
        self._clock = clock
        self._outbox = Outbox(channels, store, spawn, self._send_away, self._give_up, clock, pause_s)
        self._arrivals = Arrivals(store, spawn, on_refusal, self._owe, self._consume, clock)
        self._owed: defaultdict[str, dict[bytes, WireReceipt]] = defaultdict(dict)
        self._giving: set[str] = set()
        self._closed = False

    async def start(self) -> None:
        """Go on with what the tables hold: undone parcels to the consumer, the outbox to the peers."""
        await self._arrivals.start()
        await self._outbox.start()
        self._spawn(self._listen())

    async def close(self) -> None:
        """Start nothing new; what runs ends with the node."""
        self._closed = True

    # -- sending -------------------------------------------------------------------------------

    def send_in(self, connection: sa.Connection, peer: str, body: bytes, valid_s: float) -> None:
        """Keep a parcel for `peer` in the caller's transaction; `wake` after the commit sends it.

        Errors: TOO_LARGE, RESOURCE_EXHAUSTED (too much on its way to this peer), INVALID_REQUEST (to oneself).
        """
        guard("TDN-T-SES-02").check(
            peer != self._channels.me,
            Reason.INVALID_REQUEST,
            "a node has no post for itself",
            LocalProtocolError,
        )
        guard("TDN-T-LIM-01").check(
            len(body) <= MAX_BODY, Reason.TOO_LARGE, f"a parcel holds {len(body)} bytes", LocalProtocolError
        )
        count, size = table.out_size(connection, peer)
        guard("TDN-T-LIM-03").check(
            count < MAX_OUT and size + len(body) <= MAX_OUT_BYTES, Reason.RESOURCE_EXHAUSTED,
            f"{count} parcels wait for {peer}", Unavailable,
        )  # fmt: skip
        now = self._clock()
        table.add_out(connection, peer, body, now + int(valid_s * 1000), now)

    def wake(self, peer: str) -> None:
        """Send now what the outbox holds for `peer`."""
        if not self._closed:
            self._outbox.wake(peer)

    def on_channel(self, event: ChannelEvent) -> None:
        """Sessions that open or end: what was on its way goes again."""
        if event.kind in ("opened", "closed", "failed"):
            self._outbox.session(event.peer, open_now=event.kind == "opened")

    # -- receiving -----------------------------------------------------------------------------

    def done_in(self, connection: sa.Connection, parcel: Parcel) -> None:
        """In the consumer's transaction: the parcel has had its effect and does not come again."""
        table.drop_in(connection, parcel.number)

    async def arrived(self, peer: str, parcel: bytes) -> None:
        """Take a message that came as a letter from `peer`; returns when it is stored durably.

        Errors: INVALID_REQUEST, TOO_LARGE, SEQ_GAP (an earlier one is missing), RESOURCE_EXHAUSTED, and those
        of a receipt.
        """
        message = post_wire.decode(parcel)
        if isinstance(message, WireParcel):
            await self._arrivals.stored(peer, message)
        else:
            await self._outbox.receipt(peer, message)

    async def _listen(self) -> None:
        while True:
            peer, data = await self._channels.receive(TOPIC)
            try:
                message = post_wire.decode(data)
                if isinstance(message, WireParcel):
                    await self._arrivals.put(peer, message)
                else:
                    await self._outbox.receipt(peer, message)
            except TdnError as error:
                self._on_refusal(error)

    def _owe(self, peer: str, receipt: WireReceipt) -> None:
        """Only the newest receipt of a stream has to be given."""
        self._owed[peer][receipt.stream_id] = receipt
        if peer not in self._giving:
            self._giving.add(peer)
            self._spawn(self._give(peer))

    async def _give(self, peer: str) -> None:
        """A receipt that gets lost is asked for again."""
        try:
            while self._owed[peer]:
                _, receipt = self._owed[peer].popitem()
                await self._give_one(peer, post_wire.encode(receipt))
        finally:
            self._giving.discard(peer)

    async def _give_one(self, peer: str, receipt: bytes) -> None:
        try:
            await self._channels.send(peer, TOPIC, receipt, SEND_S)
        except TdnError as error:
            if not await self._send_away(peer, [receipt]):
                self._on_refusal(error)

    async def _send_away(self, peer: str, messages: Sequence[bytes]) -> bool:
        return self.away is not None and await self.away(peer, messages)

    def _give_up(self, peer: str, body: bytes) -> None:
        self.expired(peer, body)

    async def _consume(self, parcel: Parcel) -> None:
        assert self.consumer is not None  # noqa: S101  set before start
        await self.consumer(parcel)
