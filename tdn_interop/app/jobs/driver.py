"""The one loop between an algorithm machine and the channels: await, step, do the effects.

Compute goes to a thread pool (the kernels release the GIL), sends go through one queue per peer so
that the loop never waits for credit, receives are one task per peer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tdn_interop.algo import wire
from tdn_interop.algo.machine import Effect, Event
from tdn_interop.algo.message import TaskMessage
from tdn_interop.algo.task import (
    Aborted,
    Compute,
    Output,
    Progress,
    Received,
    Report,
    Send,
    Started,
    TaskMachine,
    perform,
)
from tdn_interop.errors import PeerProtocolError, Reason, TdnError, Unavailable, guard
from tdn_interop.reasons import Retry
from tdn_interop.transport.channels import Channels

SEND_S = 300.0


class Interruption(Unavailable):
    """A session or a way to a peer has gone. Nothing is wrong with the task: it can run again from its inputs."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a task runs: its topic, and who plays which role (role -> node id; our own is left out)."""

    topic: str
    nodes: Mapping[str, str]
    epoch: int


@dataclass
class Result:
    """What the machine gave: the output of a receiver, and the counts this party learnt."""

    output: tuple[int, ...] | tuple[bytes, ...] | None = None
    facts: dict[str, int] = field(default_factory=dict)


class Driver:
    """Runs one machine once."""

    def __init__(
        self, machine: TaskMachine, place: Place, channels: Channels, pool: ThreadPoolExecutor,
        on_progress: Callable[[int], None],
    ) -> None:  # fmt: skip
        self._machine = machine
        self._place = place
        self._channels = channels
        self._pool = pool
        self._on_progress = on_progress
        self._events: asyncio.Queue[Event | TdnError] = asyncio.Queue()
        self._outgoing: dict[str, asyncio.Queue[TaskMessage]] = {
            role: asyncio.Queue() for role in place.nodes
        }
        self._computing: set[asyncio.Future[Event]] = set()
        self._result = Result()

    async def run(self) -> Result:
        """Run to the end. Errors: Interruption, those of the machine and the peers. Secrets are erased in any case."""
        senders = {role: self._worker(self._send(role)) for role in self._place.nodes}
        receivers = [self._worker(self._receive(role)) for role in self._place.nodes]
        try:
            self._do(self._machine.step(Started()))
            while not self._machine.over:
                event = await self._events.get()
                if isinstance(event, TdnError):
                    raise event
                self._step(event)
            for role, sender in senders.items():
                await self._sent(role, sender)
        finally:
            if not self._machine.over:
                self._machine.step(Aborted())
            for worker in (*senders.values(), *receivers):
                worker.cancel()
            for computation in list(self._computing):
                computation.cancel()  # if it still waits for a thread
            await asyncio.gather(*senders.values(), *receivers, return_exceptions=True)
        return self._result

    async def _sent(self, role: str, sender: asyncio.Task[None]) -> None:
        """Wait until everything is with the peer. Errors: why the sender has given up."""
        emptied = asyncio.create_task(self._outgoing[role].join())
        try:
            await asyncio.wait({emptied, sender}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            emptied.cancel()
        if sender.done():
            await sender
        with _interruptible():
            await self._channels.flush(self._place.nodes[role], self._place.topic, SEND_S)

    def _worker(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Work that ends only by an error, which is an event then."""
        task = asyncio.create_task(work)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error:
            self._events.put_nowait(error if isinstance(error, TdnError) else _defect(error))

    def _step(self, event: Event) -> None:
        try:
            self._do(self._machine.step(event))
        except PeerProtocolError as error:
            if error.reason is not Reason.STALE:  # an old message is refused, the run goes on
                raise

    def _do(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(to=role, message=message):
                    self._outgoing[role].put_nowait(message)
                case Compute():
                    self._compute(effect)
                case Report(facts=facts):
                    self._result.facts.update(facts)
                case Output(value=value):
                    self._result.output = value
                case Progress(items=items):
                    self._on_progress(items)

    def _compute(self, effect: Compute) -> None:
        work: asyncio.Future[Event] = asyncio.get_running_loop().run_in_executor(self._pool, perform, effect)
        self._computing.add(work)

        def done(future: asyncio.Future[Event]) -> None:
            self._computing.discard(future)
            if not future.cancelled():
                error = future.exception()
                self._events.put_nowait(_defect(error) if error else future.result())

        work.add_done_callback(done)

    async def _receive(self, role: str) -> None:
        node = self._place.nodes[role]
        while True:
            with _interruptible():
                _, data = await self._channels.receive(self._place.topic, node)
            self._events.put_nowait(Received(role, wire.decode_message(data)))

    async def _send(self, role: str) -> None:
        node, queue = self._place.nodes[role], self._outgoing[role]
        while True:
            message = await queue.get()
            with _interruptible():
                await self._channels.send(node, self._place.topic, wire.encode_message(message), SEND_S)
            queue.task_done()


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Errors of channels that a new session or a later try may not meet are interruptions."""
    try:
        yield
    except TdnError as error:
        if error.reason.value.retry is Retry.NO:
            raise
        raise Interruption(error.reason, error.message, error.requirement) from error


def _defect(error: BaseException) -> TdnError:
    try:
        guard("TDN-A-SEC-01").refuse(
            Reason.INTERNAL, f"a computation failed: {type(error).__name__}", TdnError
        )
    except TdnError as made:
        made.__cause__ = error
        return made
