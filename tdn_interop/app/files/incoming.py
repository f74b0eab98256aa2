"""A file that comes in: into a part file, on record every few megabytes, and under its name once it is whole.

The order is what makes it exactly once: bytes to the disk, then their number on record, then the receipt to the
sender. The end is one commit that holds the digest: from then on the same file is never taken again, and giving
it its name can be repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa
import structlog

from tdn_interop.app.files import transfer_wire as wire
from tdn_interop.app.files.moving import (
    QUIET_S,
    Lost,
    Means,
    Moving,
    for_owner,
    from_record,
    losing,
    on_record,
)
from tdn_interop.app.files.transfer_files import Part, publish
from tdn_interop.app.store import transfers as rows
from tdn_interop.app.store.transfers import InRow
from tdn_interop.errors import PeerProtocolError, Reason, TdnError, guard
from tdn_interop.transport.frame import Failure
from tdn_interop.transport.trust import now_ms

_log = structlog.get_logger("tdn.transfer")
SHORTEST_S, LONGEST_S = 1.0, 60.0
# Between two attempts: what a sender that begins again and again keeps busy here has a limit.
AGAIN_S = 0.1
_DIGEST_BYTES = 32

_parts = guard("TDN-T-CHK-02")


class Incoming(Moving[InRow]):
    """One file on its way to us, from `peer`."""

    whole = "DELIVERED"

    def __init__(self, row: InRow, means: Means) -> None:
        super().__init__(row, row.sender, means)
        self._offered = row.attempt  # the newest attempt we know of
        self._taken = row.attempt  # the newest one that was begun here
        self._taking: asyncio.Task[None] | None = None
        self._received = row.stored
        if row.failure:
            self.error = for_owner(from_record(row.failure), means.me)

    # -- what happens to it --------------------------------------------------------------------

    def offered(self, attempt: int) -> None:
        """The sender begins another attempt: whatever is left of an older one is dropped."""
        if attempt > self._offered:
            self._offered = attempt
            if self._taking:
                self._taking.cancel()
            self._changed()

    def answer(self) -> wire.Answer | None:
        """What the sender of a transfer that has ended is told; None before."""
        row = self.row
        if row.sha256:
            return wire.Done(row.transfer_id, self._offered, row.sha256)
        if row.failure:
            told = Failure.bare(from_record(row.failure).error(), self._means.me)
            return wire.Refusal(row.transfer_id, self._offered, told)
        return None

    # -- the work ------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            if self.row.state == "RECEIVING":
                await self._keep()  # before there is a part file: what no record knows, nobody sweeps
                await self._receive()
        except TdnError as error:
            await self._fail(error)
        else:
            await self._publish()

    async def _receive(self) -> None:
        """Attempt after attempt, until everything is on the disk and on record."""
        part = Part(Path(self.row.part))
        try:
            surplus = await part.open(self.row.stored)
            if surplus:
                await self._keep(resent_bytes=self.row.resent_bytes + surplus)
            while not await self._took(part):
                await asyncio.sleep(AGAIN_S)
                await self._next_offer()
            await part.sync()
            sha256 = await part.sha256()
            await part.check()
            await self._keep(state="COMPLETE", stored=self.row.size_bytes, sha256=sha256)
        finally:
            await part.close()

    async def _next_offer(self) -> None:
        """Wait for an attempt that was not begun yet, and ask for one meanwhile."""
        if self._offered > self._taken:
            return
        asking = asyncio.create_task(self._ask())
        waiting = asyncio.create_task(self._newer())
        try:
            await asyncio.wait((asking, waiting), return_when=asyncio.FIRST_COMPLETED)
            if asking.done():
                asking.result()
        finally:
            asking.cancel()
            waiting.cancel()
            await asyncio.gather(asking, waiting, return_exceptions=True)

    async def _newer(self) -> None:
        while self._offered <= self._taken:
            await self._beat()

    async def _ask(self) -> None:
        """Ask the sender to offer again, for ever. Errors: what makes it vain."""
        for pause_s in _pauses():
            try:
                await self._say(wire.Wanted(self.row.transfer_id, max(1, self._taken)))
            except Lost as why:
                _log.info("sender away", transfer=self.row.transfer_id, peer=self.peer, why=str(why))
            await asyncio.sleep(pause_s)

    async def _took(self, part: Part) -> bool:
        """Take the newest attempt, if it was not begun yet; True when the file is whole."""
        if self._offered <= self._taken:
            return False
        self._taken = self._offered
        self._taking = asyncio.create_task(self._take(part, self._taken))
        try:
            await self._taking
        except Lost as why:
            _log.info("attempt lost", transfer=self.row.transfer_id, peer=self.peer, why=str(why))
            return False
        except asyncio.CancelledError:
            ours = asyncio.current_task()
            if ours is None or ours.cancelling():
                raise
            return False  # a newer attempt is here
        finally:
            self._taking = None
        return True

    async def _take(self, part: Part, attempt: int) -> None:
        """One attempt. Errors: Lost, CHUNK_META, DIGEST_MISMATCH, those of the disk."""
        size, end = self.row.size_bytes, await part.sync()
        again = self.row.attempt > 0
        await self._keep(stored=end, attempt=attempt, resumes=self.row.resumes + again)
        await self._say(wire.Accept(self.row.transfer_id, attempt, end))
        topic = wire.content_topic(self.row.transfer_id, attempt)
        saving: asyncio.Task[None] | None = None
        saved, self._received = end, end
        try:
            while self._received < size:
                await self._append(part, await self._next_part(topic))
                if self._received - saved >= self._means.sizes.checkpoint and (not saving or saving.done()):
                    if saving:
                        await saving
                    saved, saving = self._received, asyncio.create_task(self._save(part, attempt))
            if saving:
                await saving
            await self._compare(part, await self._next_part(topic))
        finally:
            self._means.leftover(topic)
            if saving:
                saving.cancel()
                await asyncio.gather(saving, return_exceptions=True)

    async def _save(self, part: Part, attempt: int) -> None:
        """Disk, record, receipt: in this order."""
        end = await part.sync()
        await self._keep(stored=end)
        await self._say(wire.Stored(self.row.transfer_id, attempt, end))

    async def _next_part(self, topic: str) -> memoryview:
        """The bytes that come next. Errors: Lost (also when something before them is missing), CHUNK_META."""
        with losing():
            _, message = await self._means.messages.receive(topic, self.peer, QUIET_S)
        offset, content = wire.decode_part(message)
        if offset != self._received:
            raise Lost(f"byte {offset} came, {self._received} was next")
        return content

    async def _append(self, part: Part, content: memoryview) -> None:
        end = self._received + len(content)
        _parts.check(
            end <= self.row.size_bytes, Reason.CHUNK_META,
            f"{self.peer} sends {end} bytes, announced were {self.row.size_bytes}",
        )  # fmt: skip
        await part.append(content)
        self._received = end
        self._changed()

    async def _compare(self, part: Part, digest: memoryview) -> None:
        _parts.check(
            len(digest) == _DIGEST_BYTES, Reason.CHUNK_META, f"{self.peer} ends with {len(digest)} bytes"
        )
        same = digest.hex() == await part.sha256()
        guard("TDN-T-CHK-01").check(
            same,
            Reason.DIGEST_MISMATCH,
            f"the file of {self.peer} is not what it announced",
            PeerProtocolError,
        )

    async def _publish(self) -> None:
        """Give the whole file its name, then tell the sender. Errors: OUTPUT_EXISTS; the sender is told all the same."""
        row = self.row
        try:
            await asyncio.to_thread(publish, Path(row.part), Path(row.out))
        except TdnError as error:
            failure = Failure.in_full(error, self._means.me)
            await self._keep(state="FAILED", part="", failure=on_record(failure), ended_at_ms=now_ms())
            self._end(error)
        else:
            await self._keep(state="DELIVERED", part="", ended_at_ms=now_ms())
        await self._tell()

    async def _fail(self, error: TdnError) -> None:
        failure = Failure.in_full(error, error.metadata.get("noticed_by", self._means.me))
        await self._keep(state="FAILED", failure=on_record(failure), ended_at_ms=now_ms())
        await asyncio.shield(asyncio.to_thread(Path(self.row.part).unlink, missing_ok=True))
        self._end(error)
        if failure.noticed_by == self._means.me:
            await self._tell()

    async def _tell(self) -> None:
        """Tell the sender how it ended; if that is not possible now, its next offer is answered so."""
        if answer := self.answer():
            await self._farewell(answer)

    @property
    def _moved(self) -> int:
        return self._received

    def _put(self, connection: sa.Connection, row: InRow) -> None:
        rows.put_in(connection, row)


def _pauses() -> Iterator[float]:
    pause_s = SHORTEST_S
    while True:
        yield pause_s
        pause_s = min(2 * pause_s, LONGEST_S)
