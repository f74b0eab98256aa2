"""The session between two nodes as a machine: no socket, no clock, no randomness.

A session is what survives its connections. It is fed events – what our side wants, what the
connection did, frames of the peer, and the time – and `next_frame` is pulled for what to send.
The rules of delivery stand in `proto/tdn/transport/v1/frame.proto`. One recovery serves every
kind of loss: give the connection up, resume, go on from the positions in the hellos. On a sound
connection it never runs.

Everything that changes the state is in this file. The two roles differ in a few rows only: the side
that dialled greets first and comes back after a loss, the other answers.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

from tdn_interop.errors import (
    LocalProtocolError,
    NegotiationFailed,
    PeerProtocolError,
    Reason,
    Refused,
    TdnError,
    Unavailable,
    guard,
)
from tdn_interop.identity import Credentials
from tdn_interop.transport.event import (
    Aborted,
    Connected,
    Consumed,
    Deliver,
    Disconnect,
    Disconnected,
    Effect,
    Event,
    Left,
    LocalEvent,
    Queued,
    Ticked,
)
from tdn_interop.transport.frame import (
    VERSIONS,
    Ack,
    Credit,
    Data,
    Failure,
    Frame,
    Goodbye,
    Hello,
    Limits,
    Reset,
    Status,
)
from tdn_interop.transport.topics import Topics


class State(enum.Enum):
    """Where a session stands."""

    NEW = enum.auto()
    GREETING = enum.auto()  # our hello is out, the peer's is awaited
    OPEN = enum.auto()
    CLOSING = enum.auto()  # nothing new is queued; what was queued is delivered, then goodbye both ways
    DETACHED = enum.auto()  # no connection; can be resumed
    CLOSED = enum.auto()
    FAILED = enum.auto()


CONNECTED = frozenset({State.GREETING, State.OPEN, State.CLOSING})
ENDED = frozenset({State.CLOSED, State.FAILED})
_EXCHANGING = (State.OPEN, State.CLOSING)
_LIVING = (State.GREETING, State.OPEN, State.CLOSING, State.DETACHED)


@dataclass(frozen=True, slots=True)
class Timing:
    """Patience in seconds. `stall_s` should cover one full frame on the slowest link."""

    quiet_s: float = 10  # nothing heard for so long: ask for a status
    stall_s: float = 30  # nothing heard, or nothing acknowledged, for so long: reconnect


# Any: each handler takes the event its row names.
Handler = Callable[[Any, Any, float], "Iterable[Effect] | None"]
Table = dict[tuple[State, type[Event]], tuple[Handler, State | None]]


def _rows(
    states: Iterable[State], handler: Handler, *events: type[Event], target: State | None = None
) -> Table:
    return {(state, event): (handler, target) for state in states for event in events}


class Session:
    """One session, seen from `me`. `dialled` tells the role; `session_id` is 16 random bytes of the dialler."""

    def __init__(
        self,
        session_id: bytes,
        *,
        me: str,
        dialled: bool,
        limits: Limits,
        credentials: Callable[[], Credentials],
        admits: Callable[[str], bool] = lambda _topic: True,
        timing: Timing | None = None,
    ) -> None:
        self.id = session_id
        self.dialled = dialled
        self.state = State.NEW
        self.error: TdnError | None = None
        self._me = me
        self._table = (self.DIALLING if dialled else self.ANSWERING) | self.EITHER
        self.topics = Topics(limits, admits)
        self.is_leaving = False  # set once either side wants the session to end: nothing new is queued
        self._limits = limits
        self._credentials = credentials
        self._timing = timing or Timing()
        self._first: Frame | None = None  # a hello or a reset: at most one, before everything else
        self._asks = self._answers = False  # a status is due; however often the peer asks, it is one
        self._heard_hello: Hello | None = None
        self._said_goodbye = False  # on this connection
        self._heard_goodbye = False
        self._alone_since = 0.0
        self._heard_at = self._asked_at = self._progress_at = 0.0

    # -- driving -------------------------------------------------------------------------------

    def step(self, event: Event, now: float) -> list[Effect]:
        """Feed one event; `now` in seconds of any steady clock.

        A frame that breaks a rule ends the session: the error is raised, and `next_frame` gives the
        Reset that tells the peer. An event of our own that is not allowed raises and changes nothing.
        """
        try:
            row = self._table.get((self.state, type(event)))
            if row is None:
                self._misplaced(event)
            handler, target = row
            if isinstance(event, Frame):
                self._heard_at = now
            effects = list(handler(self, event, now) or ())
        except TdnError as error:
            if isinstance(event, Frame) and self.state not in ENDED:
                self._fail(error)
            raise
        self.state = target or self.state
        self._settle()
        return effects

    def next_frame(self) -> Frame | None:
        """The next frame for the connection, or None for now: hello or reset, then status, receipts, data."""
        if first := self._first:
            self._first = None
            return first
        if self.state not in _EXCHANGING:
            return None
        if frame := self._due_status() or self.topics.next_receipt() or self.topics.next_data():
            return frame
        if self._is_done() and not self._said_goodbye:
            self._said_goodbye = True
            self._settle()
            return Goodbye()
        return None

    def _due_status(self) -> Status | None:
        """Positions are those of the moment it is sent, and one status both asks and answers."""
        if not (self._asks or self._answers):
            return None
        ask, self._asks, self._answers = self._asks, False, False
        return Status(ask, self.topics.positions())

    def wake_at(self) -> float | None:
        """When the next `Ticked` is wanted; None when there is nothing to wait for."""
        stalls = self._stalls_at()
        match self.state:
            case State.OPEN | State.CLOSING:
                return min(self._asks_at(), stalls)
            case State.GREETING:
                return min(self._expires_at(), stalls)
            case State.DETACHED:
                return self._expires_at()
            case _:
                return None

    @property
    def idle_s(self) -> float:
        """Seconds that the session survives without a connection: the lower of both sides' limits."""
        return min(self._limits.idle_ms, (self.topics.peer or self._limits).idle_ms) / 1000

    # -- the connection ------------------------------------------------------------------------

    def _greet(self, _event: Connected, now: float) -> None:
        self._start_connection(now)
        self._say_hello(VERSIONS, resume=self.topics.peer is not None)

    def _answer(self, hello: Hello, now: float) -> None:
        known = self.topics.peer is not None
        guard("TDN-T-SES-01").check(
            known or not hello.resume,
            Reason.SESSION_UNKNOWN,
            "the session to resume is not known here",
            Refused,
        )
        common = set(VERSIONS) & set(hello.versions)
        guard("TDN-T-SES-03").check(
            common, Reason.UNSUPPORTED_VERSION, f"supported versions: {_listed(VERSIONS)}", NegotiationFailed,
            supported=_listed(VERSIONS),
        )  # fmt: skip
        self._start_connection(now)
        self._heard_hello = hello
        self.topics.resume(hello.limits, hello.positions)
        self._say_hello((max(common or VERSIONS),), resume=known)

    def _greeted(self, hello: Hello, now: float) -> None:
        guard("TDN-T-SES-03").check(
            len(hello.versions) == 1 and hello.versions[0] in VERSIONS, Reason.UNSUPPORTED_VERSION,
            f"the peer chose {_listed(hello.versions)}, offered was {_listed(VERSIONS)}", NegotiationFailed,
            supported=_listed(VERSIONS),
        )  # fmt: skip
        guard("TDN-T-SES-01").check(
            hello.session_id == self.id, Reason.SESSION_UNKNOWN, "the peer answered for another session"
        )
        self._progress_at = now
        self._heard_hello = hello
        self.topics.resume(hello.limits, hello.positions)

    def _start_connection(self, now: float) -> None:
        self._asks = self._answers = False
        self._said_goodbye = False
        self._heard_at = self._asked_at = self._progress_at = now
        if self.state is State.NEW:
            self._alone_since = now

    def _say_hello(self, versions: tuple[int, ...], *, resume: bool) -> None:
        positions = self.topics.positions()
        self._first = Hello(versions, self.id, resume, self._credentials(), self._limits, positions)

    def _detach(self, _event: Event, now: float) -> None:
        if self.state is not State.GREETING:  # a greeting that fails does not prolong the wait
            self._alone_since = now
        self._first = None
        self.state = State.DETACHED
        if self._is_done() and self._heard_goodbye:
            self._end(None)

    def _hang_up(self, event: Event, now: float) -> list[Effect]:
        self._detach(event, now)
        return [Disconnect()]

    def _hello_again(self, hello: Hello, _now: float) -> None:
        guard("TDN-T-SES-06").check(
            hello == self._heard_hello, Reason.UNEXPECTED_MESSAGE, "a second hello on one connection"
        )

    # -- frames --------------------------------------------------------------------------------

    def _data(self, data: Data, now: float) -> list[Effect]:
        if self.topics.misses_before(data):
            return self._hang_up(data, now)
        taken = self.topics.take(data)
        return [Deliver(data.topic, *taken)] if taken else []

    def _ack(self, ack: Ack, now: float) -> None:
        self._progress(self.topics.acknowledge(ack.topic, ack.next_seq), now)

    def _credit(self, credit: Credit, _now: float) -> None:
        self.topics.allow(credit.topic, credit.limit_bytes)

    def _status(self, status: Status, now: float) -> None:
        self._progress(self.topics.refresh(status.positions), now)
        if status.ask:
            self._answers = True

    def _goodbye(self, _event: Goodbye, _now: float) -> None:
        self._heard_goodbye = True
        self.is_leaving = True

    def _reset(self, reset: Reset, _now: float) -> None:
        if reset.failure.reason is Reason.SESSION_UNKNOWN and self._is_done():
            self._end(None)  # the peer has finished and forgotten; only its goodbye was lost
        else:
            self._end(reset.failure.error())

    # -- our own side --------------------------------------------------------------------------

    def _queue(self, event: Queued, now: float) -> None:
        guard("TDN-T-SES-05").check(
            not self.is_leaving, Reason.SESSION_CLOSED, "the session is being closed", LocalProtocolError
        )
        if not self.topics.owed:
            self._progress_at = now
        self.topics.queue(event.topic, event.message)

    def _consume(self, event: Consumed, _now: float) -> None:
        self.topics.consumed(event.topic, event.cost)

    def _leave(self, _event: Left, _now: float) -> None:
        self.is_leaving = True

    def _abort(self, event: Aborted, _now: float) -> None:
        self._fail(event.error)

    def _tick_alone(self, event: Ticked, now: float) -> list[Effect]:
        if now >= self._expires_at():
            late = Unavailable(Reason.SESSION_EXPIRED, f"no connection for {self.idle_s:g} s", "TDN-T-SES-04")
            self._end(None if self._is_done() else late)
        elif self.state is State.GREETING and now >= self._stalls_at():
            return self._hang_up(event, now)
        return []

    def _tick(self, event: Ticked, now: float) -> list[Effect]:
        if now >= self._stalls_at():
            return self._hang_up(event, now)
        if now >= self._asks_at():
            self._asked_at = now
            self._asks = True
        return []

    # -- inside --------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Transitions that follow from the state itself."""
        if self.state is State.OPEN and self.is_leaving:
            self.state = State.CLOSING
        if self.state is State.CLOSING and self._said_goodbye and self._heard_goodbye:
            self._end(None)

    def _end(self, error: TdnError | None) -> None:
        self._first = None
        self.error = error
        self.state = State.FAILED if error else State.CLOSED

    def _fail(self, error: TdnError) -> None:
        self._end(error)
        self._first = Reset(Failure.of(error, self._me))

    def _is_done(self) -> bool:
        return self.is_leaving and not self.topics.owed

    def _progress(self, frames: int, now: float) -> None:
        if frames:
            self._progress_at = now

    def _expires_at(self) -> float:
        return self._alone_since + self.idle_s

    def _asks_at(self) -> float:
        return max(self._heard_at, self._asked_at) + self._timing.quiet_s

    def _stalls_at(self) -> float:
        waiting_since = min(self._heard_at, self._progress_at) if self.topics.owed else self._heard_at
        return waiting_since + self._timing.stall_s

    def _misplaced(self, event: Event) -> NoReturn:
        name, state, local = type(event).__name__, self.state.name, isinstance(event, LocalEvent)
        kind = LocalProtocolError if local else PeerProtocolError
        if self.state in ENDED or (local and self.is_leaving):
            guard("TDN-T-SES-05").refuse(Reason.SESSION_CLOSED, f"{name} after the end of the session", kind)
        reason = Reason.STATE_CONFLICT if local else Reason.UNEXPECTED_MESSAGE
        guard("TDN-T-SES-06").refuse(reason, f"{name} is not allowed in state {state}", kind)

    # -- the table ----------------------------------------------------------------------------------

    DIALLING: ClassVar[Table] = (
        _rows((State.NEW, State.DETACHED), _greet, Connected, target=State.GREETING)
        | _rows((State.GREETING,), _greeted, Hello, target=State.OPEN)
        # A hello that was overtaken: the connection is not sound.
        | _rows((State.GREETING,), _hang_up, Data, Ack, Credit, Status, Goodbye)
    )
    ANSWERING: ClassVar[Table] = _rows((State.NEW, State.DETACHED), _answer, Hello, target=State.OPEN)
    EITHER: ClassVar[Table] = (
        _rows(_EXCHANGING, _hello_again, Hello)
        | _rows(_EXCHANGING, _data, Data)
        | _rows(_EXCHANGING, _ack, Ack)
        | _rows(_EXCHANGING, _credit, Credit)
        | _rows(_EXCHANGING, _status, Status)
        | _rows(_EXCHANGING, _goodbye, Goodbye)
        | _rows(CONNECTED, _reset, Reset)
        | _rows(CONNECTED, _detach, Disconnected)
        | _rows((State.GREETING, State.OPEN, State.DETACHED), _queue, Queued)
        | _rows(_LIVING, _consume, Consumed)
        | _rows(_LIVING, _leave, Left)
        | _rows((State.NEW,), _leave, Left, target=State.CLOSED)
        | _rows((State.NEW, *_LIVING), _abort, Aborted)
        | _rows((State.GREETING, State.DETACHED), _tick_alone, Ticked)
        | _rows(_EXCHANGING, _tick, Ticked)
    )


def _listed(versions: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(versions)))
