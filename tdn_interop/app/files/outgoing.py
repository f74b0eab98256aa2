"""A file that goes out: offered again and again until the receiver has all of it on record.

What is on record here is the path, the promise that the file stays what it is, and how far the receiver has got.
Every attempt begins with an offer; the receiver answers with its own offset, which decides. So a kill of either
side costs no more than the window.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from pathlib import Path

import sqlalchemy as sa
import structlog
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from tdn_interop.app.files import transfer_wire as wire
from tdn_interop.app.files.moving import (
    Lost,
    Means,
    Moving,
    for_owner,
    from_record,
    on_record,
)
from tdn_interop.app.files.transfer_files import Shape, Source
from tdn_interop.app.store import transfers as rows
from tdn_interop.app.store.transfers import OutRow
from tdn_interop.errors import ConfigError, Reason, TdnError, guard
from tdn_interop.reasons import Retry
from tdn_interop.transport.channel import ChannelEvent
from tdn_interop.transport.frame import Failure
from tdn_interop.transport.trust import now_ms

_log = structlog.get_logger("tdn.transfer")
# Between two attempts: the shortest pause keeps a receiver that loses each of them from keeping us busy.
SHORTEST_S, LONGEST_S = 0.2, 10.0

_resumes = guard("TDN-T-DLV-02")
_whole = guard("TDN-T-CHK-01")


@dataclass(slots=True)
class _Heard:
    """What the receiver has said in this attempt, and what became of it."""

    accepted: wire.Accept | None = None
    stored: int = 0
    done: str = ""  # the digest
    lost: str = ""  # why
    over: TdnError | None = None


class Outgoing(Moving[OutRow]):
    """One file on its way to `peer`."""

    whole = "DONE"

    def __init__(self, row: OutRow, means: Means) -> None:
        super().__init__(row, row.peer, means)
        self._heard = _Heard()
        self._awake = asyncio.Event()
        # How far an earlier process may have sent: it never ran further ahead.
        ahead = row.acknowledged + means.sizes.window if row.state == "RUNNING" else 0
        self._sent = min(row.size_bytes, ahead)
        self._position = row.acknowledged
        if row.failure:
            self.error = for_owner(from_record(row.failure), means.me)

    # -- what happens to it --------------------------------------------------------------------

    def hear(self, answer: wire.Answer) -> None:
        """Take what the receiver says; what belongs to another attempt is passed over."""
        if answer.attempt != self.row.attempt and not isinstance(answer, wire.Wanted):
            return
        match answer:
            case wire.Accept():
                self._heard.accepted = answer
            case wire.Stored(offset=offset):
                self._heard.stored = max(self._heard.stored, offset)
            case wire.Done(sha256=sha256):
                self._heard.done = sha256
            case wire.Refusal(failure=failure):
                self._heard.over = for_owner(replace(failure, noticed_by=self.peer), self._means.me)
            case wire.Wanted(attempt=attempt):
                if attempt == self.row.attempt:
                    self._heard.lost = "the receiver asks for another offer"
                self._awake.set()
        self._changed()

    def on_session(self, event: ChannelEvent) -> None:
        """A session with the peer has opened or ended."""
        if event.kind == "opened":
            self._awake.set()
            return
        reason = Reason.__members__.get(event.reason)
        self._heard.lost = f"the session has {event.kind} {event.reason}".strip()
        if reason and reason.value.retry is Retry.NO:
            words = f"the session with {self.peer} has failed"
            self._heard.over = TdnError(reason, words, "TDN-T-DLV-02")
        self._changed()

    # -- the work ------------------------------------------------------------------------------

    async def _run(self) -> None:
        row = self.row
        source = Source(Path(row.path), Shape(row.size_bytes, row.mtime_ns, row.inode))
        try:
            while not self.row.ended_at_ms:
                policy = AsyncRetrying(
                    wait=wait_random_exponential(multiplier=SHORTEST_S, max=LONGEST_S),
                    retry=retry_if_exception_type(Lost), sleep=self._nap, reraise=True,
                )  # fmt: skip
                await policy(self._attempt, source)
        except TdnError as error:
            await self._fail(error)
        finally:
            await source.close()

    async def _attempt(self, source: Source) -> None:
        """Offer the file and hand it over, as far as it goes. Errors: Lost before the receiver has answered."""
        self._heard = _Heard(stored=self.row.acknowledged)
        await self._keep(attempt=self.row.attempt + 1)
        row = self.row
        await self._offer(wire.Offer(row.transfer_id, row.attempt, row.topic, row.size_bytes))
        await self._until(lambda: self._heard.accepted or self._heard.done)
        try:
            if accepted := self._heard.accepted:
                await self._content(source, accepted.offset)
            await self._until(lambda: self._heard.done)
        except Lost as why:
            _log.info(
                "attempt lost", transfer=row.transfer_id, peer=self.peer, attempt=row.attempt, why=str(why)
            )
            await self._nap(SHORTEST_S)
            return
        await self._finish(source, self._heard.done)

    async def _offer(self, offer: wire.Offer) -> None:
        """Errors: Lost; NO_ROUTE when the very first offer finds that there is no such node."""
        try:
            await self._say(offer)
        except Lost as lost:
            cause = lost.__cause__
            nowhere = isinstance(cause, TdnError) and cause.reason is Reason.NO_ROUTE and offer.attempt == 1
            if nowhere and not await self._means.is_node(self.peer):
                raise cause from lost  # type: ignore[misc]  # narrowed by `nowhere`
            raise

    async def _content(self, source: Source, offset: int) -> None:
        """Send everything from `offset` on, and the digest of the whole."""
        row, size = self.row, self.row.size_bytes
        _resumes.check(
            row.acknowledged <= offset <= min(size, row.acknowledged + self._means.sizes.window),
            Reason.SEQ_RANGE,
            f"{self.peer} wants to go on at {offset}, on record are {row.acknowledged} of {size} bytes",
        )
        await self._keep(
            state="RUNNING", acknowledged=offset, resumes=row.resumes + (row.state == "RUNNING"),
            resent_bytes=row.resent_bytes + max(0, self._sent - offset),
        )  # fmt: skip
        self._heard.stored = max(self._heard.stored, offset)
        self._position = offset
        topic = wire.content_topic(row.transfer_id, row.attempt)
        await source.check()
        await source.skip(offset)
        async with contextlib.aclosing(self._parts(source, offset)) as parts:
            async for position, content in parts:
                await self._room(position + len(content))
                await self._send(topic, wire.encode_part(position, content))
                self._position = position + len(content)
                self._sent = max(self._sent, self._position)
                self._changed()
        sha256 = await source.sha256()
        await self._keep(sha256=sha256)
        await self._send(topic, wire.encode_part(size, bytes.fromhex(sha256)))

    async def _parts(self, source: Source, offset: int) -> AsyncGenerator[tuple[int, bytes]]:
        """(offset, content), read one part ahead."""
        size, part = self.row.size_bytes, self._means.sizes.part

        def read(start: int) -> asyncio.Task[bytes]:
            return asyncio.create_task(source.read(start, min(part, size - start)))

        ahead = read(offset) if offset < size else None
        try:
            while ahead:
                content, start = await ahead, offset
                offset += len(content)
                ahead = read(offset) if offset < size else None
                yield start, content
        finally:
            if ahead:
                ahead.cancel()
                await asyncio.gather(ahead, return_exceptions=True)

    async def _room(self, end: int) -> None:
        """Wait until everything up to `end` is within the window. Errors: SEQ_RANGE, Lost, why it is over."""
        self._check()
        window = self._means.sizes.window
        while end > self.row.acknowledged + window:
            await self._until(lambda: self._heard.stored > self.row.acknowledged)
            stored = self._heard.stored
            _resumes.check(
                stored <= self._sent,
                Reason.SEQ_RANGE,
                f"{self.peer} has stored {stored} bytes, {self._sent} were sent",
            )
            await self._keep(acknowledged=stored)

    async def _finish(self, source: Source, sha256: str) -> None:
        """The receiver has it: compare the digests, and that was all."""
        if not self.row.sha256:
            await source.skip(self.row.size_bytes)
        ours = self.row.sha256 or await source.sha256()
        _whole.check(
            ours == sha256, Reason.DIGEST_MISMATCH, f"{self.peer} has another file under this id", ConfigError
        )
        await self._keep(state="DONE", sha256=ours, acknowledged=self.row.size_bytes, ended_at_ms=now_ms())

    async def _fail(self, error: TdnError) -> None:
        failure = Failure.in_full(error, error.metadata.get("noticed_by", self._means.me))
        await self._keep(state="FAILED", failure=on_record(failure), ended_at_ms=now_ms())
        self._end(error)
        if failure.noticed_by == self._means.me:
            await self._farewell(withdrawal(self.row.transfer_id, self.row.attempt, self._means.me))

    # -- waiting -------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._heard.over:
            raise self._heard.over
        if self._heard.lost:
            raise Lost(self._heard.lost)

    async def _nap(self, pause_s: float) -> None:
        """A pause that ends when the peer is back."""
        self._awake.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._awake.wait()

    @property
    def _moved(self) -> int:
        return self._position

    def _put(self, connection: sa.Connection, row: OutRow) -> None:
        rows.put_out(connection, row)


def withdrawal(transfer_id: str, attempt: int, me: str) -> wire.Withdrawal:
    """What the receiver of a file that will not come is told."""
    failure = Failure(Reason.ABANDONED, f"{me} has given up the transfer", me)
    return wire.Withdrawal(transfer_id, max(1, attempt), failure)
