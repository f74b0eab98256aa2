"""The thin shell around a session: one connection at a time, a timer, and callers that wait.

All rules are in `session.py`. Here frames are pulled into a stream and events pushed out of it; the
dialling side comes back after a loss, with growing pauses, until the session's idle time is over.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

from tenacity import AsyncRetrying, retry_if_exception, wait_random_exponential

from tdn_interop.errors import Reason, TdnError, Unavailable, guard
from tdn_interop.identity import Credentials
from tdn_interop.reasons import Retry
from tdn_interop.transport.event import (
    Aborted,
    Connected,
    Consumed,
    Deliver,
    Disconnect,
    Disconnected,
    Event,
    Left,
    Queued,
    Ticked,
)
from tdn_interop.transport.frame import Frame, Hello
from tdn_interop.transport.session import CONNECTED, ENDED, Session, State

DIAL_S = 30.0  # longest single attempt to connect
FAREWELL_S = 5.0  # longest time that a last frame and the closing of a stream may take


class ConnectionLost(Unavailable):
    """The stream has ended; what was on its way may or may not have arrived."""


class FrameStream(Protocol):
    """One connection that carries frames in order. One task sends, one receives."""

    async def send(self, frame: Frame) -> None:
        """Send a frame; waits while the connection is full. Errors: ConnectionLost."""

    async def receive(self) -> Frame:
        """The next frame. Errors: ConnectionLost, and PeerProtocolError for a frame that cannot be decoded."""

    async def close(self) -> None:
        """End the connection after what was sent; safe to call again."""


@dataclass(frozen=True, slots=True)
class ChannelEvent:
    """For logs and metrics: opened, resumed, detached, closed, failed, sent, received. Sizes, never data."""

    kind: str
    peer: str
    topic: str = ""
    size_bytes: int = 0
    reason: str = ""


@asynccontextmanager
async def within(timeout_s: float | None, what: str) -> AsyncIterator[None]:
    """Bound the block; None waits for ever. Errors: DEADLINE, also for a time that has already passed."""
    guard("TDN-T-DDL-01").check(
        timeout_s is None or timeout_s > 0, Reason.DEADLINE, f"no time left: {what}", Unavailable
    )
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        guard("TDN-T-DDL-02").refuse(Reason.DEADLINE, f"{what} took longer than {timeout_s:g} s", Unavailable)


def fresh(error: TdnError) -> TdnError:
    """A copy to raise: one error ends a session, and each of its callers gets its own."""
    copy = type(error)(error.reason, error.message, error.requirement)
    copy.metadata = error.metadata
    return copy


class Channel:
    """A session with `peer` and whatever connection it has now.

    `deliver` gets each message; `verify` each hello's credentials and the stream they came on; `report` what
    happened. After
    "closed" or "failed" was reported, nothing more happens.
    """

    def __init__(
        self,
        session: Session,
        peer: str,
        *,
        clock: Callable[[], float],
        verify: Callable[[FrameStream, Credentials], None],
        deliver: Callable[[Channel, Deliver], None],
        report: Callable[[Channel, ChannelEvent], None],
    ) -> None:
        self.session = session
        self.peer = peer
        self._clock = clock
        self._verify = verify
        self._deliver = deliver
        self._report = report
        self._seen = session.state
        self._connections = 0
        self._one_connection = asyncio.Lock()
        self._newest: FrameStream | None = None
        self._next: FrameStream | None = None  # made before the present one is given up
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self._news = asyncio.Event()  # the writer may have something to pull
        self._waiters: list[asyncio.Future[None]] = []
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._timer: asyncio.TimerHandle | None = None

    @property
    def stream(self) -> FrameStream:
        """The connection that is being served, or was served last."""
        assert self._newest is not None  # noqa: S101  a session says nothing before it has a connection
        return self._newest

    @property
    def ended(self) -> bool:
        """True once the session is closed or has failed."""
        return self.session.state in ENDED

    @property
    def takes_messages(self) -> bool:
        """True while new messages may be queued, connected or not."""
        return not (self.ended or self.session.is_leaving)

    # -- callers -------------------------------------------------------------------------------

    async def opened(self) -> None:
        """Wait for the first greeting. Errors: why it failed."""
        await self._until(lambda: self.session.topics.peer is not None)

    async def send(self, topic: str, message: bytes) -> None:
        """Queue a message as soon as there is credit; senders on one topic take turns.

        Errors: SESSION_CLOSED (nothing was queued), TOO_LARGE, RESOURCE_EXHAUSTED, and how the session failed.
        """
        async with self._turns[topic]:
            await self._until(lambda: self._may_queue(topic, len(message)))
            self._step(Queued(topic, message))
        self._tell("sent", topic, len(message))

    async def flush(self, topic: str) -> None:
        """Wait until the peer has acknowledged everything on `topic`. Errors: how the session failed."""
        await self._until(lambda: not self.session.topics.owed_on(topic))

    async def finish(self) -> None:
        """Take nothing new, deliver what is queued, both ways, and wait for the end."""
        if self.takes_messages:
            self._step(Left())
        while not self.ended:
            await self._change()

    async def close(self, timeout_s: float) -> None:
        """Finish within `timeout_s`, or end without."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self.finish()
        self.abort(Unavailable(Reason.SESSION_CLOSED, "the session was closed", "TDN-T-SES-05"))

    def abort(self, error: TdnError) -> None:
        """End the session now and tell the peer why; nothing happens if it has ended."""
        if not self.ended:
            self._step(Aborted(error))

    def consumed(self, topic: str, cost: int) -> None:
        """A delivered message has been taken: its credit goes back to the sender."""
        if not self.ended:
            self._step(Consumed(topic, cost))

    def _may_queue(self, topic: str, size_bytes: int) -> bool:
        self._check_alive()
        return self.session.topics.fits(topic, size_bytes)

    async def _until(self, ready: Callable[[], bool]) -> None:
        while not ready():
            self._check_alive()
            await self._change()

    def _check_alive(self) -> None:
        if self.session.error:
            raise fresh(self.session.error)
        if self.ended:
            guard("TDN-T-SES-05").refuse(Reason.SESSION_CLOSED, "the session was closed", Unavailable)

    async def _change(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    # -- connections ---------------------------------------------------------------------------

    async def run(self, connect: Callable[[], Awaitable[FrameStream]]) -> None:
        """The dialling side: connect, and again after each loss, until the session has ended.

        The very first attempt is the caller's: it fails the session. Later ones are repeated unless
        the reason says that repeating is in vain.
        """
        policy = AsyncRetrying(
            wait=wait_random_exponential(multiplier=0.05, max=2),
            retry=retry_if_exception(self._worth_repeating),
            reraise=True,
        )
        try:
            while not self.ended:
                await policy(self._connect_once, connect)
        except TdnError as error:
            self.abort(error)
        finally:
            self.abort(Unavailable(Reason.SESSION_CLOSED, "the channel was stopped", "TDN-T-SES-05"))
            if self._next:
                await close_stream(self._next)

    def _worth_repeating(self, error: BaseException) -> bool:
        again = isinstance(error, TdnError) and error.reason.value.retry is not Retry.NO
        return again and not self.ended and self.session.state is not State.NEW

    async def _connect_once(self, connect: Callable[[], Awaitable[FrameStream]]) -> None:
        before = self._connections
        stream, self._next = self._next, None
        if stream is None:
            stream = await self._dial(connect)
        try:
            await self.serve(stream)
        finally:
            await close_stream(stream)
        if self._connections == before and not self.ended:
            guard("TDN-T-SES-04").refuse(
                Reason.UNREACHABLE, f"{self.peer} did not answer the greeting", ConnectionLost
            )

    async def move(self, connect: Callable[[], Awaitable[FrameStream]]) -> None:
        """The dialling side: go over to a new connection as soon as it stands; nothing happens without an old one.

        Errors: why there is no new one; the old one goes on.
        """
        if self.session.state not in CONNECTED:
            return
        stream = await self._dial(connect)
        if self.session.state in CONNECTED and self._next is None:
            self._next = stream
            self._drop_connection()
        else:
            await close_stream(stream)

    async def _dial(self, connect: Callable[[], Awaitable[FrameStream]]) -> FrameStream:
        async with within(DIAL_S, f"connecting to {self.peer}"):
            return await connect()

    async def serve(self, stream: FrameStream, hello: Hello | None = None) -> None:
        """Run one connection until it ends; `hello` is the peer's, when the peer has dialled.

        An older connection of the session ends first. The caller closes the stream. Errors: why the
        session does not take this connection.
        """
        self._newest = stream
        self._drop_connection()
        async with self._one_connection:
            guard("TDN-T-SES-02").check(
                self._newest is stream,
                Reason.SESSION_CONFLICT,
                "a newer connection of the session is here",
                ConnectionLost,
            )
            self._step(hello or Connected())
            try:
                await self._converse(stream)
            finally:
                if self.session.state in CONNECTED:
                    self._step(Disconnected())

    async def _converse(self, stream: FrameStream) -> None:
        reader = asyncio.create_task(self._read(stream))
        writer = asyncio.create_task(self._write(stream))
        self._tasks = (reader, writer)
        try:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            if self.ended:
                await asyncio.wait((writer,), timeout=FAREWELL_S)
        finally:
            self._drop_connection()
            results = await asyncio.gather(reader, writer, return_exceptions=True)
            self._tasks = ()
        for result in results:
            if isinstance(result, TdnError):
                self._give_up_after(result)
            elif isinstance(result, Exception):
                raise result

    def _give_up_after(self, error: TdnError) -> None:
        """End the session with why a connection failed, unless the connection was just lost or may come back."""
        passing = self._connections > 0 and error.reason.value.retry is Retry.LATER
        if not isinstance(error, ConnectionLost) and not passing:
            self.abort(error)

    def _drop_connection(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _read(self, stream: FrameStream) -> None:
        while self.session.state in CONNECTED:
            try:
                frame = await stream.receive()
                if isinstance(frame, Hello):
                    self._verify(stream, frame.credentials)
            except TdnError as error:
                self._give_up_after(error)
                raise
            self._step(frame)

    async def _write(self, stream: FrameStream) -> None:
        while True:
            self._news.clear()
            while frame := self.session.next_frame():
                await stream.send(frame)
            if self.session.state not in CONNECTED:
                self._settle()  # pulling the goodbye may have closed the session
                return
            await self._news.wait()

    # -- the session ---------------------------------------------------------------------------

    def _step(self, event: Event | Frame) -> None:
        try:
            effects = self.session.step(event, self._clock())
        except TdnError:
            self._settle()
            raise
        for effect in effects:
            if isinstance(effect, Deliver):
                self._deliver(self, effect)
            elif isinstance(effect, Disconnect):
                self._drop_connection()
        self._settle()

    def _settle(self) -> None:
        """Whatever has changed: wake the writer and the waiting callers, set the timer, report."""
        self._news.set()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._set_timer()
        state, before = self.session.state, self._seen
        self._seen = state
        if state is not before:
            self._report_state(state, before)

    def _report_state(self, state: State, before: State) -> None:
        if state in (State.OPEN, State.CLOSING):
            if before is State.OPEN:
                return
            self._connections += 1
            self._tell("opened" if self._connections == 1 else "resumed")
        elif state in (State.DETACHED, State.CLOSED):
            self._tell(state.name.lower())
        elif self.session.error:
            self._tell("failed", reason=self.session.error.reason.name)

    def _tell(self, kind: str, topic: str = "", size_bytes: int = 0, reason: str = "") -> None:
        self._report(self, ChannelEvent(kind, self.peer, topic, size_bytes, reason))

    def _set_timer(self) -> None:
        wake_at = self.session.wake_at()
        loop = asyncio.get_running_loop()
        due = None if wake_at is None else loop.time() + max(0.0, wake_at - self._clock())
        if self._timer and due is not None and self._timer.when() <= due:
            return  # it comes early, which is harmless, and cheaper than a new timer per frame
        if self._timer:
            self._timer.cancel()
        self._timer = None if due is None else loop.call_at(due, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._step(Ticked())


async def close_stream(stream: FrameStream) -> None:
    """Close within `FAREWELL_S`; a stream that does not get there is left to die with its connection."""
    with suppress(TimeoutError, ConnectionLost):
        async with asyncio.timeout(FAREWELL_S):
            await stream.close()
