"""The loop under a job: events in, the record, effects out, and work beside it.

One task feeds the machines, event after event; work that takes time runs beside it and comes back as an
event. The record of the job is written before the effects of a step are performed; if that is not
possible, only those effects are performed that end the job.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import tenacity

from tdn_interop.algo.machine import Effect, Event
from tdn_interop.app import job, party
from tdn_interop.app import job_protocol as words
from tdn_interop.app.job_protocol import JobMachine
from tdn_interop.errors import TdnError

# What ends a job is done even when the record cannot be written. A success is stated only on record.
_ENDING = (
    words.WakeAfter,
    job.SignVerdict,
    party.StopTask,
    party.SignStatement,
    party.AcceptVerdict,
    party.GiveUp,
)
_LAST_WORDS = (words.Refusal, words.Fail, words.Abort, words.Conclude)


class JobLoop(abc.ABC):
    """Runs until it is closed. What a step means, a subclass says."""

    def __init__(self, on_refusal: Callable[[TdnError], None]) -> None:
        self._on_refusal = on_refusal
        self._events: asyncio.Queue[tuple[JobMachine, Event]] = asyncio.Queue()
        self._busy: set[asyncio.Task[None]] = set()  # work that `StopTask` stops
        self._aside: set[asyncio.Task[None]] = set()
        self._timers: list[asyncio.TimerHandle] = []

    def feed(self, machine: JobMachine, event: Event) -> None:
        """Queue an event."""
        self._events.put_nowait((machine, event))

    async def close(self) -> None:
        """Stop everything; the record stays as it is."""
        self._forget_timers()
        tasks = [*self._busy, *self._aside]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

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
            machine, event = await self._events.get()
            async with self._surviving():
                await self._take(machine, event)

    async def _take(self, machine: JobMachine, event: Event) -> None:
        try:
            effects = machine.step(event)
        except TdnError as error:  # a refused event changes nothing
            self._on_refusal(error)
            return
        self._note(event)
        recorded = await self._recorded()
        for effect in effects:
            if recorded or _is_ending(effect):
                async with self._surviving():
                    await self._perform(machine, effect)

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


def _is_ending(effect: Effect) -> bool:
    if isinstance(effect, words.Send):
        return isinstance(effect.message, _LAST_WORDS)
    return isinstance(effect, _ENDING)
