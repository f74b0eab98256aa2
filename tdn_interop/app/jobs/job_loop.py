"""The loop under a job: events in, the record, effects out, and work beside it.

One task feeds the machines, event after event; what this node says to itself is taken in the same turn. Work
that takes time runs beside and comes back as an event. The record of a turn – the events, what they make other
nodes hear, the parcels they came in – is one transaction, written before the effects are performed; if that is
not possible, only those effects are performed that end the job.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import tenacity

from tdn_interop.algo.machine import Effect, Event
from tdn_interop.app.jobs import job_events as steps
from tdn_interop.app.jobs import job_protocol as words
from tdn_interop.app.jobs.job_protocol import JobMachine, Message
from tdn_interop.app.jobs.journal import Entry
from tdn_interop.app.post.post import Parcel
from tdn_interop.errors import Reason, TdnError, Unavailable, guard
from tdn_interop.transport.trust import now_ms

# What ends a job is done even when the record cannot be written; what it says to others waits for the record.
_ENDING = (
    words.WakeAfter,
    steps.SignVerdict,
    steps.StopTask,
    steps.SignStatement,
    steps.AcceptVerdict,
    steps.GiveUp,
)


@dataclass
class Turn:
    """What is to be recorded together; what could not be recorded waits for the next time."""

    entries: list[Entry] = field(default_factory=list)
    sends: list[words.Send] = field(default_factory=list)
    parcels: list[Parcel] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.entries or self.sends or self.parcels)

    def copy(self) -> Turn:
        """As it is now."""
        return Turn(list(self.entries), list(self.sends), list(self.parcels))

    def written(self, done: Turn) -> None:
        """Forget what `done`, a copy from before, had."""
        del self.entries[: len(done.entries)]
        del self.sends[: len(done.sends)]
        del self.parcels[: len(done.parcels)]


class JobLoop(abc.ABC):
    """Runs until it is closed. What a step means, a subclass says."""

    def __init__(self, me: str, on_refusal: Callable[[TdnError], None]) -> None:
        self.pending = Turn()
        self._me = me
        self._on_refusal = on_refusal
        self._events: asyncio.Queue[tuple[JobMachine, Event, Parcel | None]] = asyncio.Queue()
        self._busy: set[asyncio.Task[None]] = set()  # work that `StopTask` stops
        self._aside: set[asyncio.Task[None]] = set()
        self._timers: list[asyncio.TimerHandle] = []

    def feed(self, machine: JobMachine, event: Event, parcel: Parcel | None = None) -> None:
        """Queue an event, and the parcel it came in."""
        self._events.put_nowait((machine, event, parcel))

    async def close(self) -> None:
        """Stop everything; the record stays as it is."""
        self._forget_timers()
        tasks = [*self._busy, *self._aside]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def undone(self) -> list[Parcel]:
        """After `close`: the parcels that nobody will look at any more."""
        waiting = [self._events.get_nowait()[2] for _ in range(self._events.qsize())]
        return [*self.pending.parcels, *(parcel for parcel in waiting if parcel)]

    @abc.abstractmethod
    def _hears(self, message: Message) -> JobMachine:
        """Which machine of this node a message is for."""

    @abc.abstractmethod
    def _name(self, machine: JobMachine) -> str:
        """The name of a machine in the journal."""

    @abc.abstractmethod
    def _note(self, event: Event) -> None:
        """Keep what an accepted event says."""

    @abc.abstractmethod
    async def _write(self) -> None:
        """Write the record. Errors: STORE_UNAVAILABLE."""

    @abc.abstractmethod
    async def _perform(self, machine: JobMachine, effect: Effect) -> None:
        """Do what a machine asks for."""

    @abc.abstractmethod
    def _broken(self, error: BaseException) -> None:
        """A defect, or a record that cannot be written: the job fails."""

    async def _loop(self) -> None:
        while True:
            machine, event, parcel = await self._events.get()
            async with self._surviving():
                await self._take(machine, event, parcel)
            self._events.task_done()

    async def settled(self) -> None:
        """Wait until everything that was fed is on record. Errors: STORE_UNAVAILABLE when it could not be written."""
        await self._events.join()
        guard("TDN-F-RCV-01").check(
            not self.pending,
            Reason.STORE_UNAVAILABLE,
            "what was asked is heard, and not on record yet",
            Unavailable,
        )

    async def _take(self, machine: JobMachine, event: Event, parcel: Parcel | None) -> None:
        if parcel:
            self.pending.parcels.append(parcel)
        effects = self._turn(machine, event)
        recorded = not self.pending or await self._recorded()
        for asking, effect in effects:
            if recorded or isinstance(effect, _ENDING):
                async with self._surviving():
                    await self._perform(asking, effect)

    def _turn(self, machine: JobMachine, event: Event) -> list[tuple[JobMachine, Effect]]:
        """Step, and step on with what this node says to itself; the effects, with the machines that ask for them."""
        todo, asked = deque([(machine, event)]), []
        while todo:
            machine, event = todo.popleft()
            for effect in self._step(machine, event):
                if not isinstance(effect, words.Send):
                    asked.append((machine, effect))
                elif effect.to == self._me:
                    todo.append((self._hears(effect.message), effect.message))
                else:
                    self.pending.sends.append(effect)
        return asked

    def _step(self, machine: JobMachine, event: Event) -> list[Effect]:
        before = machine.taken
        try:
            effects = machine.step(event)
        except TdnError as error:  # a refused event changes nothing
            self._on_refusal(error)
            return []
        if machine.taken != before:
            self.pending.entries.append(Entry(now_ms(), self._name(machine), event))
            self._note(event)
        return effects

    @contextlib.asynccontextmanager
    async def _surviving(self) -> AsyncIterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001  the driver of the machines: a defect ends this job, not the loop
            self._broken(error)

    async def _recorded(self) -> bool:
        """True when the record is written; otherwise the job fails."""
        async with self._surviving():
            await self._record()
            return True
        return False

    @tenacity.retry(
        wait=tenacity.wait_fixed(0.2), stop=tenacity.stop_after_attempt(3), reraise=True,
        retry=tenacity.retry_if_exception_type(TdnError),
    )  # fmt: skip
    async def _record(self) -> None:
        await self._write()

    def _forget_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()

    def _wake(self, seconds: float, call: Callable[..., None], *arguments: object) -> None:
        self._timers.append(asyncio.get_running_loop().call_later(seconds, call, *arguments))

    def _beside(self, work: Coroutine[Any, Any, None], group: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(work)
        group.add(task)
        task.add_done_callback(group.discard)
        task.add_done_callback(self._defect)

    def _defect(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error:
            self._broken(error)
