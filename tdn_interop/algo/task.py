"""The part that every algorithm machine shares: events, effects, ordered streams, secrets.

A task machine is started once, receives batches from the other roles, has work computed for it, and
ends in DONE or FAILED. It knows roles, never node ids. The driver

- decodes bytes, names the sender's role from the authenticated channel and feeds `Received`;
- answers every `Compute` exactly once, in any order, with `perform(compute)` run wherever it likes;
- stops at the first TdnError except STALE, which refuses one message and leaves the run alone.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from tdn_interop.algo.curve25519 import Points
from tdn_interop.algo.kernel import Kernel
from tdn_interop.algo.machine import Effect, Event, LocalEvent, Machine, Table
from tdn_interop.algo.message import MAX_STREAM_BYTES, Body, KeyBody, TaskMessage, body_bytes, row_count
from tdn_interop.errors import ConfigError, LocalProtocolError, PeerProtocolError, Reason, TdnError, guard

Entropy = Callable[[int], bytes]
DEFAULT_MAX_ITEMS = 1 << 24


@dataclass(frozen=True, slots=True)
class Task:
    """What one run is bound to. `entropy(n)` gives n random bytes fit for keys."""

    agreement: bytes
    epoch: int
    kernel: Kernel
    entropy: Entropy
    max_items: int = DEFAULT_MAX_ITEMS

    @property
    def binding(self) -> bytes:
        """Bytes that differ for every agreement, epoch and suite; bound into every derived key."""
        return self.agreement + self.epoch.to_bytes(4, "big") + self.kernel.suite.id.encode()


class State(enum.Enum):
    """Where a run is."""

    IDLE = "idle"
    EXCHANGING = "exchanging"
    SHUFFLING = "shuffling"
    MATCHING = "matching"
    OPENING = "opening"
    DONE = "done"
    FAILED = "failed"


TERMINAL = frozenset({State.DONE, State.FAILED})


@dataclass(frozen=True, slots=True)
class Started(LocalEvent):
    """The job has started everywhere."""


@dataclass(frozen=True, slots=True)
class Aborted(LocalEvent):
    """The job has ended without us: forget everything."""


@dataclass(frozen=True, slots=True)
class Computed(LocalEvent):
    """The answer to the Compute with this token."""

    token: int
    value: Any  # whatever the computation returns


@dataclass(frozen=True, slots=True)
class ComputeRefused(LocalEvent):
    """The Compute with this token found its input unacceptable."""

    token: int
    error: TdnError


@dataclass(frozen=True, slots=True)
class Settled(LocalEvent):
    """All awaited streams have ended and all computations are answered; a machine tells itself."""


@dataclass(frozen=True, slots=True)
class Received(Event):
    """A message came from the party with this role."""

    sender: str
    message: TaskMessage


@dataclass(frozen=True, slots=True)
class Send(Effect):
    """Send to the party with role `to`; order between two parties must be kept."""

    to: str
    message: TaskMessage


@dataclass(frozen=True, slots=True)
class Compute(Effect):
    """Call `fn(*args)` off the event loop; see `perform`."""

    token: int
    fn: Callable[..., Any]
    args: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Progress(Effect):
    """`items` more items have passed `stage`."""

    stage: str
    items: int


@dataclass(frozen=True, slots=True)
class Report(Effect):
    """Counts that this party learnt: `items.ROLE` is the size of that role's set, `matches` of the result."""

    facts: dict[str, int]


@dataclass(frozen=True, slots=True)
class Output(Effect):
    """The result, sorted: indices into the own input, or items."""

    value: tuple[int, ...] | tuple[bytes, ...]


def perform(compute: Compute) -> Computed | ComputeRefused:
    """Run one computation; a refusal comes back as an event, because it belongs to the machine."""
    try:
        return Computed(compute.token, compute.fn(*compute.args))
    except TdnError as error:
        return ComputeRefused(compute.token, error)


class Inbound:
    """One stage from one sender: batches in order, none after the last, rows and bytes within limits.

    `on_batch` takes (batch index, body, last). `exactly` is the total that must arrive, if known.
    """

    def __init__(
        self,
        kind: type[Body],
        on_batch: Callable[[int, Any, bool], Iterable[Effect]],
        limit: int,
        exactly: int | None = None,
    ) -> None:
        self.closed = False
        self.rows = 0
        self._bytes = 0
        self._kind, self._on_batch, self._limit, self._exactly = kind, on_batch, limit, exactly
        self._next = 0

    def receive(self, message: TaskMessage) -> Iterable[Effect]:
        """Take the next batch. Errors: BATCH_ORDER, INVALID_REQUEST, TOO_LARGE, COUNT_MISMATCH."""
        stage, index = message.stage, message.batch_index
        order = guard("TDN-A-PSI-05")
        order.check(not self.closed, Reason.BATCH_ORDER, f"{stage}: batch {index} after the last")
        order.check(index == self._next, Reason.BATCH_ORDER, f"{stage}: batch {index}, {self._next} is next")
        order.check(isinstance(message.body, self._kind), Reason.INVALID_REQUEST, f"{stage}: another body")
        whole = message.last or not isinstance(message.body, KeyBody)
        order.check(whole, Reason.BATCH_ORDER, f"{stage}: a key is one batch, the last")
        count = row_count(message.body)
        order.check(count or message.last, Reason.BATCH_ORDER, f"{stage}: batch {index} is empty, not last")
        self.rows += count
        self._bytes += body_bytes(message.body)
        self._check_total(stage, message.last)
        self._next += 1
        self.closed = message.last
        return self._on_batch(index, message.body, message.last)

    def _check_total(self, stage: str, last: bool) -> None:
        guard("TDN-A-PSI-13").check(
            self._bytes <= MAX_STREAM_BYTES, Reason.TOO_LARGE, f"{stage}: more than {MAX_STREAM_BYTES} bytes"
        )
        if self._exactly is None:
            guard("TDN-A-PSI-13").check(
                self.rows <= self._limit, Reason.TOO_LARGE, f"{stage}: more than {self._limit} rows"
            )
            return
        fits = self.rows == self._exactly if last else self.rows <= self._exactly
        guard("TDN-A-PSI-05").check(
            fits, Reason.COUNT_MISMATCH, f"{stage}: {self.rows} rows, {self._exactly} were sent"
        )


class Outbound:
    """One stage to one role: takes batches as they become ready, in any order, and sends them in order."""

    def __init__(self, task: Task, to: str, stage: str) -> None:
        self._task, self._to, self._stage = task, to, stage
        self._ready: dict[int, tuple[Body, bool]] = {}
        self._next = 0
        self.rows = 0  # sent so far

    def put(self, index: int, body: Body, last: bool) -> Iterator[Effect]:
        """Batch `index` is ready."""
        self._ready[index] = body, last
        while self._next in self._ready:
            ready, is_last = self._ready.pop(self._next)
            task = self._task
            message = TaskMessage(task.agreement, task.epoch, self._stage, self._next, is_last, ready)
            self._next += 1
            self.rows += row_count(ready)
            yield Send(self._to, message)


class TaskMachine(Machine):
    """Base of the roles. A subclass gives `streams` in `_start` and its rows of the table."""

    initial = State.IDLE
    failed = State.FAILED
    requirement = "TDN-A-PSI-05"
    running: ClassVar[tuple[State, ...]] = (
        State.EXCHANGING,
        State.SHUFFLING,
        State.MATCHING,
        State.OPENING,
    )

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task
        self._streams: dict[tuple[str, str], Inbound] = {}
        self._answers: dict[int, Callable[[Any], Iterable[Effect]]] = {}
        self._next_token = 0
        self._secrets: list[bytearray] = []

    @property
    def over(self) -> bool:
        """True in DONE and FAILED; then every secret has been overwritten."""
        return self.state in TERMINAL

    def step(self, event: Event) -> list[Effect]:
        """Feed one event. Errors: STALE (nothing changes), those of Machine.step and of the handlers."""
        if isinstance(event, Received):
            _refuse_stale(event.message, self.task)
        try:
            effects = super().step(event)
            while self._is_settled():
                effects += super().step(Settled())
        finally:
            if self.over:
                self._forget()
        return effects

    def _is_settled(self) -> bool:
        waiting = self._answers or not all(stream.closed for stream in self._streams.values())
        return self.state in self.running and not waiting

    def _forget(self) -> None:
        """Overwrite keys and drop what the run has collected. Copies inside libraries are out of our reach."""
        for secret in self._secrets:
            secret[:] = bytes(len(secret))
        self._answers.clear()
        self._streams.clear()

    def _secret(self, value: bytes) -> bytearray:
        """Keep `value` until the run ends; then it is overwritten."""
        self._secrets.append(bytearray(value))
        return self._secrets[-1]

    def _await(
        self,
        sender: str,
        stage: str,
        kind: type[Body],
        on_batch: Callable[[int, Any, bool], Iterable[Effect]],
        exactly: int | None = None,
    ) -> Inbound:
        """Expect a stage from a role; the state does not settle before its last batch."""
        stream = Inbound(kind, on_batch, self.task.max_items, exactly)
        self._streams[sender, stage] = stream
        return stream

    def _compute(
        self, then: Callable[[Any], Iterable[Effect]], fn: Callable[..., Any], *args: Any
    ) -> Iterator[Effect]:
        """Have `fn(*args)` computed and go on with `then(value)`."""
        self._next_token += 1
        self._answers[self._next_token] = then
        yield Compute(self._next_token, fn, args)

    def on_computed(self, event: Computed | ComputeRefused) -> Iterable[Effect]:
        """Go on with an answer. Errors: STATE_CONFLICT for an unknown token, and what the computation refused."""
        then = self._answers.pop(event.token, None)
        if then is None:
            guard(self.requirement).refuse(
                Reason.STATE_CONFLICT, f"computation {event.token} is not awaited", LocalProtocolError
            )
        if isinstance(event, ComputeRefused):
            raise event.error
        return then(event.value)

    def on_received(self, event: Received) -> Iterable[Effect]:
        """Hand a message to its stream. Errors: TRANSCRIPT_MISMATCH, STATE_CONFLICT, those of Inbound.receive."""
        message = event.message
        guard("TDN-A-NEG-07").check(
            message.agreement == self.task.agreement,
            Reason.TRANSCRIPT_MISMATCH,
            f"{message.stage} from {event.sender} belongs to another agreement",
        )
        guard("TDN-A-SEC-01").check(
            message.epoch == self.task.epoch,
            Reason.STATE_CONFLICT,
            f"epoch {message.epoch}, this run has {self.task.epoch}",
        )
        stream = self._streams.get((event.sender, message.stage))
        if stream is None:
            guard("TDN-A-PSI-05").refuse(
                Reason.STATE_CONFLICT,
                f"{event.sender} has no stage {message.stage} here",
                PeerProtocolError,
            )
        return stream.receive(message)

    def _points(self, rows: bytes, count: int) -> Points:
        """Rows as an array (count, point size). Errors: COUNT_MISMATCH."""
        size = self.task.kernel.suite.point_bytes
        guard("TDN-A-PSI-05").check(
            len(rows) == count * size,
            Reason.COUNT_MISMATCH,
            f"{len(rows)} bytes for {count} points of {size}",
        )
        return np.frombuffer(rows, np.uint8).reshape(-1, size)


# Rows of every role's table; each role adds Started and what Settled means in each state.
COMMON_ROWS: Table = {
    (State.IDLE, Aborted): (None, State.FAILED),
    **{
        (state, event): (handler, target)
        for state in TaskMachine.running
        for event, handler, target in (
            (Received, TaskMachine.on_received, None),
            (Computed, TaskMachine.on_computed, None),
            (ComputeRefused, TaskMachine.on_computed, None),
            (Aborted, None, State.FAILED),
        )
    },
}


def check_items(items: Sequence[bytes], limit: int) -> None:
    """Accept distinct, non-empty items, at most `limit`. Errors: INVALID_ITEM, TOO_LARGE."""
    guard("TDN-A-PSI-13").check(
        len(items) <= limit, Reason.TOO_LARGE, f"{len(items)} items, {limit} allowed", ConfigError
    )
    item = guard("TDN-A-PSI-10")
    item.check(all(items), Reason.INVALID_ITEM, "an item is empty", ConfigError)
    item.check(len(set(items)) == len(items), Reason.INVALID_ITEM, "an item is repeated", ConfigError)


def _refuse_stale(message: TaskMessage, task: Task) -> None:
    stale = message.agreement == task.agreement and message.epoch < task.epoch
    guard("TDN-A-SEC-01").check(not stale, Reason.STALE, f"epoch {message.epoch}, this run has {task.epoch}")
