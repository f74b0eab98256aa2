"""Two session machines joined by queues, on a clock that the test moves."""

import dataclasses
from collections import deque

import pytest

from tdn_interop.errors import PeerProtocolError, TdnError
from tdn_interop.identity import Credentials, Signed
from tdn_interop.transport.event import (
    Connected,
    Consumed,
    Deliver,
    Disconnect,
    Disconnected,
    Left,
    Queued,
    Ticked,
)
from tdn_interop.transport.frame import Data, Frame, Hello, Limits, Reset
from tdn_interop.transport.session import CONNECTED, Session, State, Timing


class TinyLimits(Limits):
    """Limits that may be so small that a test sees every frame."""

    SMALLEST_FRAME_BYTES = 1


SMALL = TinyLimits(frame_bytes=100, message_bytes=1000, topic_credit_bytes=8000, topics=4, idle_ms=60_000)
SESSION_ID = bytes(range(16))


def credentials(node: str) -> Credentials:
    return Credentials(Signed(b"record", node, bytes(64)), Signed(b"delegation", node, bytes(64)))


def session(me: str = "a.cn", *, dialled: bool = True, limits: Limits = SMALL, **options) -> Session:
    return Session(
        SESSION_ID, me=me, dialled=dialled, limits=limits, credentials=lambda: credentials(me), **options
    )


class Side:
    def __init__(self, machine: Session) -> None:
        self.session = machine
        self.delivered: list[tuple[str, bytes]] = []
        self.unconsumed: deque[Deliver] = deque()
        self.consumes = True
        self.sent_bytes = 0
        self.out: deque[Frame] = deque()
        self.errors: list[TdnError] = []

    @property
    def connected(self) -> bool:
        return self.session.state in CONNECTED

    def step(self, event, now: float) -> bool:
        """False when the connection is over after this."""
        effects = self.session.step(event, now)
        for effect in effects:
            if isinstance(effect, Deliver):
                self.delivered.append((effect.topic, effect.message))
                self.unconsumed.append(effect)
        if self.consumes and not self.session.state.name in ("CLOSED", "FAILED"):
            self.consume(now)
        return Disconnect() not in effects

    def consume(self, now: float) -> None:
        while self.unconsumed:
            one = self.unconsumed.popleft()
            self.session.step(Consumed(one.topic, one.cost), now)

    def pull(self) -> None:
        while frame := self.session.next_frame():
            if isinstance(frame, Data):
                self.sent_bytes += len(frame.payload)
            self.out.append(frame)


class Pair:
    """`a` dials `b`."""

    def __init__(self, limits: Limits = SMALL, timing: Timing | None = None, **b_options) -> None:
        self.now = 0.0
        self.a = Side(session("a.cn", limits=limits, timing=timing))
        self.b = Side(session("b.cn", dialled=False, limits=limits, timing=timing, **b_options))
        self.moved = 0

    def connect(self) -> None:
        """A fresh connection: A's hello is on its way."""
        self.a.out.clear()
        self.b.out.clear()
        self.a.step(Connected(), self.now)
        self.a.pull()

    def cut(self) -> None:
        for side in (self.a, self.b):
            side.out.clear()
            if side.connected:
                side.step(Disconnected(), self.now)

    def move(self, source: Side, target: Side) -> bool:
        """Move one frame; a machine that gives the connection up cuts it. False when there was none."""
        source.pull()
        if not source.out:
            return False
        self.moved += 1
        try:
            sound = target.step(source.out.popleft(), self.now)
        except TdnError as error:
            target.errors.append(error)
            sound = True
        target.pull()
        if not sound:
            self.cut()
        return True

    def run(self, most: int = 1_000_000) -> int:
        """Move frames in turns until nothing is left, or `most` have moved; returns how many."""
        start = self.moved
        while self.moved - start < most:
            before = self.moved
            self.move(self.a, self.b)
            if self.moved - start < most:
                self.move(self.b, self.a)
            if self.moved == before:
                break
        return self.moved - start

    def open(self) -> "Pair":
        self.connect()
        self.run()
        assert self.a.session.state is self.b.session.state is State.OPEN
        return self

    def send(self, source: Side, topic: str, message: bytes) -> None:
        source.step(Queued(topic, message), self.now)

    def leave(self, side: Side) -> None:
        side.step(Left(), self.now)

    def tick(self, seconds: float) -> None:
        self.now += seconds
        for side in (self.a, self.b):
            if side.session.wake_at() is not None and not side.step(Ticked(), self.now):
                self.cut()


MESSAGES = [(f"t{i % 2}", bytes([i]) * (i * 7 % 350)) for i in range(64)]


def hello(**changes) -> Hello:
    return dataclasses.replace(Hello((1,), SESSION_ID, False, credentials("b.cn"), SMALL), **changes)


def greeted(dialled: bool = True, **options):
    machine = session(dialled=dialled, **options)
    if dialled:
        machine.step(Connected(), 0)
        machine.next_frame()
    machine.step(hello(), 0)
    machine.next_frame()
    assert machine.state is State.OPEN
    return machine


def refusal(machine, frame, kind=PeerProtocolError):
    with pytest.raises(kind) as caught:
        machine.step(frame, 0)
    assert machine.state is State.FAILED
    assert machine.error is caught.value
    told = machine.next_frame()
    assert isinstance(told, Reset)
    assert told.failure.reason is caught.value.reason
    assert told.failure.requirement == caught.value.requirement != ""
    assert machine.next_frame() is None
    return caught.value


def by_topic(log):
    return {topic: [message for t, message in log if t == topic] for topic, _ in log}
