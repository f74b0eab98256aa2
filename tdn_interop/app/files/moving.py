"""What a file that goes out and one that comes in have in common: a record, one worker, and those who watch."""

from __future__ import annotations

import abc
import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import sqlalchemy as sa
import structlog

from tdn_interop.app.files import transfer_wire as wire
from tdn_interop.app.store.engine import Store
from tdn_interop.app.store.transfers import InRow, OutRow
from tdn_interop.errors import Reason, TdnError
from tdn_interop.reasons import Retry
from tdn_interop.transport.channel import fresh
from tdn_interop.transport.frame import Failure
from tdn_interop.transport.trust import now_ms

_log = structlog.get_logger("tdn.transfer")
RowT = TypeVar("RowT", OutRow, InRow)
# Longest silence before an attempt counts as lost: it is begun anew, which costs little.
QUIET_S = 60.0
# Longest time that a last word to a peer may take.
FAREWELL_S = 5.0


class Lost(Exception):
    """The attempt is lost; another one may succeed."""


class Messages(Protocol):
    """What a transfer needs of `transport.channels.Channels`."""

    async def send(self, peer: str, topic: str, payload: bytes, timeout_s: float) -> None:
        """Queue a message."""

    async def receive(
        self, topic: str, peer: str | None = None, timeout_s: float | None = None
    ) -> tuple[str, bytes]:
        """(sender, message)."""

    def discard(self, prefix: str) -> int:
        """Drop what has arrived on topics that start so."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes: a part fills one frame; what is sent never runs further ahead than `window` of what is on record."""

    part: int = (1 << 20) - wire.OFFSET_BYTES
    window: int = 16 << 20
    checkpoint: int = 8 << 20


@dataclass(frozen=True, slots=True)
class Means:
    """What every transfer of a node uses.

    `leftover` is told of topics that nobody reads any more; `is_node` tells whether a name is, or may be, that of
    a node.
    """

    me: str
    messages: Messages
    store: Store
    sizes: Sizes
    leftover: Callable[[str], None]
    is_node: Callable[[str], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a transfer stands; `sha256` is hexadecimal and given when `done`."""

    transfer_id: str
    moved_bytes: int
    total_bytes: int
    peer: str
    done: bool = False
    sha256: str = ""
    resumes: int = 0
    resent_bytes: int = 0
    seconds: float = 0.0


class Moving(abc.ABC, Generic[RowT]):
    """One transfer. `row` is what is on record; it changes by `_keep` alone. `whole` is the state of success."""

    whole: ClassVar[str]

    def __init__(self, row: RowT, peer: str, means: Means) -> None:
        self.row: RowT = row
        self.peer = peer
        self.error: TdnError | None = None
        self.followers = 0
        self._means = means
        self._work: asyncio.Task[None] | None = None
        self._ended: Callable[[], None] = lambda: None
        self._keeping = asyncio.Lock()
        self._beats = 0
        self._waiters: list[asyncio.Future[None]] = []

    def begin(self, ended: Callable[[], None]) -> None:
        """Work on it from now on; `ended` is called when there is nothing more to do."""
        self._ended = ended
        self._work = asyncio.create_task(self._run())
        self._work.add_done_callback(self._stopped)

    def revive(self) -> None:
        """Go on after a break, when somebody asks for it again: on record it has not ended."""
        work = self._work
        if work and work.done() and not work.cancelled() and not self.row.ended_at_ms:
            self.error = None
            self.begin(self._ended)

    async def stop(self) -> None:
        """Leave it as it is on record: it goes on in another process."""
        if self._work:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
        async with self._keeping:
            pass  # a record that is being written is written

    async def give_up(self, error: TdnError) -> None:
        """End it here and tell the peer, unless all of it is there already."""
        await self.stop()
        if self.row.state in {"QUEUED", "RUNNING", "RECEIVING"}:
            await self._fail(error)
            self._ended()
        elif not self.row.ended_at_ms:
            self.begin(self._ended)
        else:  # it was just ending by itself when it was stopped
            if self.row.failure:
                self._end(self.error or error)
            self._ended()

    def leave(self, error: TdnError) -> None:
        """Whoever follows stops with `error`; the transfer does not."""
        self._end(error)

    async def follow(self) -> AsyncGenerator[Progress]:
        """Where it stands, now and at each change, to the end. Errors: why it failed."""
        self.followers += 1
        try:
            while True:
                seen = self._beats
                if self.error:
                    raise fresh(self.error)
                yield (now := self._progress())
                if now.done:
                    return
                while self._beats == seen:
                    await self._beat()
        finally:
            self.followers -= 1

    @abc.abstractmethod
    async def _run(self) -> None:
        """All of it; errors end in `_fail`."""

    @abc.abstractmethod
    async def _fail(self, error: TdnError) -> None:
        """Put the end on record and tell the peer."""

    @property
    @abc.abstractmethod
    def _moved(self) -> int:
        """Bytes that have moved so far."""

    def _progress(self) -> Progress:
        """Where it stands."""
        row = self.row
        done = row.state == self.whole
        return Progress(
            row.transfer_id, row.size_bytes if done else self._moved, row.size_bytes, self.peer, done,
            row.sha256 if done else "", row.resumes, row.resent_bytes, seconds(row),
        )  # fmt: skip

    @abc.abstractmethod
    def _put(self, connection: sa.Connection, row: RowT) -> None:
        """Write the record."""

    async def _keep(self, **changes: Any) -> None:
        """Change the record. Whoever is cancelled meanwhile, record and `row` stay the same."""
        await asyncio.shield(asyncio.ensure_future(self._write(changes)))

    async def _write(self, changes: Mapping[str, Any]) -> None:
        async with self._keeping:
            row = replace(self.row, **changes)
            await self._means.store.run(lambda c: self._put(c, row))
            self.row = row
        self._changed()

    def _end(self, error: TdnError) -> None:
        self.error = error
        self._changed()

    def _changed(self) -> None:
        self._beats += 1
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _beat(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    async def _until(self, ready: Callable[[], object]) -> None:
        """Errors: those of `_check`, and Lost when nothing changes for too long."""
        while not ready():
            self._check()
            try:
                async with asyncio.timeout(QUIET_S):
                    await self._beat()
            except TimeoutError:
                raise Lost(f"nothing heard from {self.peer} for {QUIET_S:g} s") from None

    def _check(self) -> None:
        """Errors: why waiting is in vain."""

    async def _say(self, message: wire.Message) -> None:
        """Errors: Lost, and what makes trying again vain."""
        await self._send(wire.TOPIC, wire.encode(message))

    async def _send(self, topic: str, payload: bytes) -> None:
        with losing():
            await self._means.messages.send(self.peer, topic, payload, QUIET_S)

    async def _farewell(self, message: wire.Message) -> None:
        """Say how it ended, if the peer can be told now; if not, it asks or offers again."""
        try:
            async with asyncio.timeout(FAREWELL_S):
                await self._say(message)
        except (TdnError, Lost, TimeoutError) as why:
            _log.info("peer not told", transfer=self.row.transfer_id, peer=self.peer, why=str(why))

    def _stopped(self, work: asyncio.Task[None]) -> None:
        if work.cancelled():
            return
        if not (defect := work.exception()):
            self._ended()
            return
        _log.error("transfer broke", transfer=self.row.transfer_id, exc_info=defect)
        inner = TdnError(Reason.INTERNAL, f"the transfer broke: {type(defect).__name__}")
        self._end(defect if isinstance(defect, TdnError) else inner)


@contextlib.contextmanager
def losing() -> Iterator[None]:
    """What may be gone the next time is `Lost`; everything else stays what it is."""
    try:
        yield
    except TdnError as error:
        if error.reason.value.retry is Retry.NO:
            raise
        raise Lost(str(error)) from error


def seconds(row: OutRow | InRow) -> float:
    """How long a transfer has taken so far, or in all."""
    return ((row.ended_at_ms or now_ms()) - row.created_at_ms) / 1000


def on_record(failure: Failure) -> dict[str, Any]:
    """The JSON of a failure."""
    return asdict(failure) | {"reason": failure.reason.name}


def from_record(failure: Mapping[str, Any]) -> Failure:
    """The failure that `on_record` has kept."""
    return Failure(**{**failure, "reason": Reason[failure["reason"]]})


def for_owner(failure: Failure, me: str) -> TdnError:
    """The error that tells our owner about a failure, and who has noticed it if it was another node."""
    error = failure.error()
    if failure.noticed_by not in {"", me}:
        error.metadata["noticed_by"] = failure.noticed_by
    return error
