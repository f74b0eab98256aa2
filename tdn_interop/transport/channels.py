"""Channels to other nodes: what the application sends and receives by.

A node dials at most one live session per peer, and may hold one more that the peer dialled. It sends
on one of them and keeps to it; the inbox merges what arrives, so simultaneous dialling needs no rule.
The sender of a message is the node of the verified certificate, never a field of a frame.
"""

from __future__ import annotations

import asyncio
import secrets
import time
import weakref
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

from tdn_interop.errors import (
    ConfigError,
    LocalProtocolError,
    PeerProtocolError,
    Reason,
    Refused,
    TdnError,
    Unavailable,
    guard,
)
from tdn_interop.identity import Credentials
from tdn_interop.ids import topic as topic_name
from tdn_interop.transport.channel import (
    FAREWELL_S,
    Channel,
    ChannelEvent,
    ConnectionLost,
    FrameStream,
    close_stream,
    fresh,
    within,
)
from tdn_interop.transport.event import Deliver
from tdn_interop.transport.frame import Failure, Frame, Hello, Limits, Reset, message_cost
from tdn_interop.transport.inbox import Inbox
from tdn_interop.transport.session import Session, Timing

MAX_CONNECTIONS = 16
"""Connections of one peer at a time. It needs one; the rest is for those whose loss we have not noticed."""


class Channels:
    """Ordered exactly-once messages to and from other nodes, by peer and topic.

    `credentials(stream)` are those for the certificate that we show on that connection; `verify(stream, credentials)` raises unless the credentials belong to the certificate of that connection;
    `connect(peer)` dials a node, directly or by a tunnel; `admits(peer, topic)` says what is served.
    `inbox_bytes` bounds what has arrived and nobody has received, over all peers; one peer gets half at most.
    """

    def __init__(
        self,
        me: str,
        credentials: Callable[[FrameStream], Credentials],
        verify: Callable[[FrameStream, Credentials], None],
        connect: Callable[[str], Awaitable[FrameStream]],
        limits: Limits | None = None,
        *,
        inbox_bytes: int = 2 << 30,
        clock: Callable[[], float] = time.monotonic,
        timing: Timing | None = None,
        admits: Callable[[str, str], bool] = lambda _peer, _topic: True,
        on_event: Callable[[ChannelEvent], None] = lambda _event: None,
    ) -> None:
        self.me = me
        self._credentials = credentials
        self._verify = verify
        self._connect = connect
        self._limits = limits or Limits()
        self._limits.check(ConfigError)
        self._clock = clock
        self._timing = timing or Timing()
        self._admits = admits
        self._on_event = on_event
        guard("TDN-T-LIM-05").check(
            2 * self._limits.topic_credit_bytes <= inbox_bytes, Reason.INVALID_REQUEST,
            "the inbox does not hold the credit of one topic twice", ConfigError,
        )  # fmt: skip
        self._inbox = Inbox(inbox_bytes)
        self._live: dict[bytes, Channel] = {}
        self._sends_on: dict[str, Channel] = {}
        self._answered: dict[str, Channel] = {}
        self._accepted: Counter[str] = Counter()  # connections being served, greeted or not, by peer
        self._opening: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._lost: dict[tuple[str, str], TdnError] = {}
        self._runs: set[asyncio.Task[None]] = set()
        self._closed = False
        self.takes: Callable[[], None] = lambda: None  # raises while no new session is taken

    # -- messages ------------------------------------------------------------------------------

    async def open(self, peer: str, timeout_s: float = 30) -> None:
        """Make sure that there is a session with `peer`. Errors: why there is none, DEADLINE."""
        async with within(timeout_s, f"opening a session with {peer}"):
            await self._channel(peer)

    async def send(self, peer: str, topic: str, payload: bytes, timeout_s: float) -> None:
        """Queue a message; waits for credit. Messages of one caller arrive in order, exactly once.

        Opens a session when there is none. Errors: TOO_LARGE, RESOURCE_EXHAUSTED, DEADLINE (nothing
        was queued), and why the session failed.
        """
        topic_name(topic, LocalProtocolError)
        async with within(timeout_s, f"sending to {peer} on {topic}"):
            while True:
                channel = await self._channel(peer)
                try:
                    return await channel.send(topic, payload)
                except TdnError as error:
                    if not await self._makes_way(channel, error):
                        raise

    async def flush(self, peer: str, topic: str, timeout_s: float) -> None:
        """Wait until the peer has acknowledged everything sent on `topic`.

        Errors: DEADLINE; why a session failed that held unacknowledged messages of this topic. They
        may or may not have arrived and are never sent again; the error is given once.
        """
        key = (peer, topic)
        async with within(timeout_s, f"flushing {topic} to {peer}"):
            for channel in self._with(peer):
                try:
                    await channel.flush(topic)
                except TdnError:
                    self._lost.pop(key, None)
                    raise
            if error := self._lost.pop(key, None):
                raise fresh(error)

    async def receive(
        self, topic: str, peer: str | None = None, timeout_s: float | None = None
    ) -> tuple[str, bytes]:
        """(sender, message): the oldest on `topic` from `peer`, or from anybody. Gives its credit back.

        Errors: DEADLINE; when waiting for one peer, why a session with it failed.
        """
        topic_name(topic, LocalProtocolError)
        async with within(timeout_s, f"waiting for {topic} from {peer or 'anybody'}"):
            return await self._inbox.take(topic, peer)

    def discard(self, prefix: str) -> int:
        """Drop what has arrived on topics that start with `prefix` and that nobody will read; returns how many."""
        return self._inbox.discard(prefix)

    def peers(self) -> list[str]:
        """Nodes with which there is a live session, connected or not."""
        return sorted({channel.peer for channel in self._live.values()})

    @property
    def sessions(self) -> list[Channel]:
        """The live sessions, connected or not."""
        return list(self._live.values())

    # -- sessions ------------------------------------------------------------------------------

    async def accept(self, stream: FrameStream, peer: str) -> None:
        """Serve a connection that `peer`, the node of its verified certificate, has dialled, until it ends.

        Errors: why the greeting was refused, after telling the peer; RESOURCE_EXHAUSTED at once for one too many.
        """
        self._accepted[peer] += 1
        try:
            guard("TDN-T-LIM-03").check(
                self._accepted[peer] <= MAX_CONNECTIONS, Reason.RESOURCE_EXHAUSTED,
                f"{peer} has {MAX_CONNECTIONS} connections here", Unavailable,
            )  # fmt: skip
            async with within(self._timing.stall_s, f"waiting for the hello of {peer}"):
                hello = await stream.receive()
            await self._serve(stream, hello, peer)
        finally:
            try:
                await close_stream(stream)
            finally:
                self._accepted[peer] -= 1

    def drop(self, peer: str, error: TdnError | None = None) -> None:
        """End every session with `peer` now, for instance because it was revoked, and tell it why."""
        default = Unavailable(Reason.SESSION_CLOSED, "the session was dropped", "TDN-T-SES-05")
        for channel in self._with(peer):
            channel.abort(error or default)

    async def move(self, peer: str) -> None:
        """Go over to new connections on the sessions with `peer` that we dialled. Errors: why there is none."""
        for channel in self._with(peer):
            if channel.session.dialled:
                await channel.move(partial(self._connect, peer))

    async def close(self, timeout_s: float = FAREWELL_S) -> None:
        """Deliver what is queued, say goodbye to everybody and end; after `timeout_s` end anyway."""
        self._closed = True
        await asyncio.gather(*(channel.close(timeout_s) for channel in list(self._live.values())))
        self._inbox.close()
        if self._runs:
            _, late = await asyncio.wait(self._runs, timeout=FAREWELL_S)
            for run in late:
                run.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _channel(self, peer: str) -> Channel:
        """The session to send on, opened if need be; one caller opens, the others wait for it."""
        async with self._opening[peer]:
            guard("TDN-T-SES-05").check(
                not self._closed, Reason.SESSION_CLOSED, "the node has closed its channels", Unavailable
            )
            channel = self._sends_on.get(peer)
            if channel and channel.takes_messages:
                return channel
            if channel:
                await channel.finish()  # drained first: the order of a topic holds across sessions
            try:
                self._sends_on[peer] = await self._dial(peer)
            except TdnError:
                if peer not in self._sends_on:  # unless the peer has come to us in the meantime
                    raise
            return self._sends_on[peer]

    async def _dial(self, peer: str) -> Channel:
        guard("TDN-T-SES-02").check(
            peer != self.me, Reason.INVALID_REQUEST, "a node has no session with itself", LocalProtocolError
        )
        self._check_room(peer)
        channel = self._make(secrets.token_bytes(16), peer, dialled=True)
        run = asyncio.create_task(channel.run(partial(self._connect, peer)))
        self._runs.add(run)
        run.add_done_callback(self._runs.discard)
        try:
            await channel.opened()
        except asyncio.CancelledError:
            channel.abort(Unavailable(Reason.DEADLINE, "the caller did not wait any longer", "TDN-T-DDL-02"))
            raise
        return channel

    async def _makes_way(self, channel: Channel, error: TdnError) -> bool:
        """True when the message was not queued and a new session will take it: this one is over or full."""
        if error.reason not in (Reason.SESSION_CLOSED, Reason.RESOURCE_EXHAUSTED) or channel.session.error:
            return False
        await channel.finish()
        return channel.session.error is None

    async def _serve(self, stream: FrameStream, hello: Frame, peer: str) -> None:
        try:
            if not isinstance(hello, Hello):
                guard("TDN-T-SES-06").refuse(
                    Reason.UNEXPECTED_MESSAGE, f"{type(hello).__name__} before the hello", PeerProtocolError
                )
            await self._answering(stream, hello, peer).serve(stream, hello)
        except ConnectionLost:
            raise
        except TdnError as error:
            with suppress(ConnectionLost, TimeoutError):
                async with asyncio.timeout(FAREWELL_S):
                    await stream.send(Reset(Failure.of(error, self.me)))
            raise

    def _answering(self, stream: FrameStream, hello: Hello, peer: str) -> Channel:
        """The channel that `hello` is for: a session of the same peer, or a new one."""
        guard("TDN-T-SES-05").check(
            not self._closed, Reason.SESSION_CLOSED, "the node has closed its channels", Unavailable
        )
        self._verify(stream, hello.credentials)
        channel = self._live.get(hello.session_id)
        if channel is None:
            self.takes()
            self._check_room(peer)
            return self._make(hello.session_id, peer, dialled=False)
        guard("TDN-T-DLV-02").check(
            channel.peer == peer or not hello.resume, Reason.IDENTITY_MISMATCH,
            "the session to resume belongs to another node", Refused,
        )  # fmt: skip
        guard("TDN-T-SES-02").check(
            channel.peer == peer and not channel.session.dialled, Reason.SESSION_CONFLICT,
            "the session id is in use", Refused,
        )  # fmt: skip
        return channel

    def _with(self, peer: str) -> list[Channel]:
        return [channel for channel in self._live.values() if channel.peer == peer]

    def _check_room(self, peer: str) -> None:
        """A peer must not fill the memory by one session after another, nor open one that could take nothing."""
        self._inbox.check_room(peer, message_cost(self._limits.message_bytes, self._limits.frame_bytes))

    def _make(self, session_id: bytes, peer: str, *, dialled: bool) -> Channel:
        session = Session(
            session_id, me=self.me, dialled=dialled, limits=self._limits,
            credentials=lambda: self._credentials(channel.stream), admits=partial(self._admits, peer),
            timing=self._timing,
        )  # fmt: skip
        channel = Channel(
            session, peer, clock=self._clock, verify=self._verify, deliver=self._deliver, report=self._note
        )
        return channel

    def _deliver(self, channel: Channel, arrived: Deliver) -> None:
        consumed = partial(_give_back, weakref.ref(channel), arrived.topic, arrived.cost)
        try:
            self._inbox.put(channel.peer, arrived.topic, arrived.message, arrived.cost, consumed)
        except Unavailable as full:
            channel.abort(full)  # it was not acknowledged yet, so the peer knows it as lost
            return
        self._on_event(ChannelEvent("received", channel.peer, arrived.topic, len(arrived.message)))

    def _note(self, channel: Channel, event: ChannelEvent) -> None:
        if event.kind == "opened":
            self._opened(channel)
        elif event.kind in ("closed", "failed"):
            self._ended(channel)
        self._on_event(event)

    def _opened(self, channel: Channel) -> None:
        peer = channel.peer
        self._live[channel.session.id] = channel
        current = self._sends_on.get(peer)
        if current is None or not current.takes_messages:
            self._sends_on[peer] = channel
        if not channel.session.dialled:
            older, self._answered[peer] = self._answered.get(peer), channel
            if older:
                older.abort(
                    Unavailable(Reason.SESSION_UNKNOWN, "the peer has opened a newer session", "TDN-T-SES-01")
                )

    def _ended(self, channel: Channel) -> None:
        peer, error = channel.peer, channel.session.error
        if self._live.pop(channel.session.id, None) is None:
            return  # it never opened: its opener has the error
        for role in (self._sends_on, self._answered):
            if role.get(peer) is channel:
                del role[peer]
        if error:
            for topic in channel.session.topics.owed_topics():
                self._lost[peer, topic] = error
            self._inbox.fail(peer, partial(fresh, error))


def _give_back(channel: weakref.ref[Channel], topic: str, cost: int) -> None:
    """A message that waits does not keep the state of a session that has ended."""
    if living := channel():
        living.consumed(topic, cost)
