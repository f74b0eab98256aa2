"""Files between nodes, exactly once, whoever dies meanwhile: every transfer of a node.

A file that is sent is offered on a topic and waits there for somebody who receives it; on a topic one request
takes one file, in the order they came. What survives a process is on record (`store/transfers.py`); the files are
in `outgoing.py` and `incoming.py`, the words in `transfer_wire.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import structlog

from tdn_interop import ids
from tdn_interop.app.files import transfer_files as files
from tdn_interop.app.files import transfer_wire as wire
from tdn_interop.app.files.incoming import Incoming
from tdn_interop.app.files.moving import FAREWELL_S, Means, Messages, Progress, Sizes, for_owner
from tdn_interop.app.files.offers import Offered, Offers
from tdn_interop.app.files.outgoing import Outgoing, withdrawal
from tdn_interop.app.store import transfers as rows
from tdn_interop.app.store.engine import Store
from tdn_interop.app.store.transfers import InRow, OutRow
from tdn_interop.errors import ConfigError, LocalProtocolError, Reason, Refused, TdnError, Unavailable, guard
from tdn_interop.transport.channel import ChannelEvent, within
from tdn_interop.transport.frame import Failure
from tdn_interop.transport.trust import now_ms

_log = structlog.get_logger("tdn.transfer")
# Ended transfers are on record for so long; a file that is offered again later than that could come twice.
KEPT_MS = 30 * 86_400_000
# What is still on its way to a topic that nobody reads arrives within this time, or its session has ended.
DRAINED_S, DRAIN_EVERY_S = 60, 5
MAX_ENDED = 1024
MAX_TELLING = 64
"""Answers to one peer that are on their way; a peer that reads none of them gets no more."""

_same = guard("TDN-T-DLV-03")
_identity = guard("TDN-T-DLV-02")


class Transfers:
    """Sends and receives files.

    `on_refusal` hears of what peers asked in vain; `is_node` tells whether a name is, or may be, that of a node.
    """

    def __init__(
        self, me: str, messages: Messages, store: Store, on_refusal: Callable[[TdnError], None],
        is_node: Callable[[str], Awaitable[bool]], sizes: Sizes | None = None,
    ) -> None:  # fmt: skip
        self._means = Means(me, messages, store, sizes or Sizes(), self._leftover, is_node)
        self._on_refusal = on_refusal
        self._out: dict[str, Outgoing] = {}
        self._in: dict[str, Incoming] = {}
        self._ended: dict[str, str] = {}  # sender by transfer: content may still be on its way
        self._offers = Offers()
        self._asked: set[str] = set()  # requests that wait for an offer
        self._opening = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._telling: dict[str, int] = {}
        self._leaving = False
        self._stops = f"{me} stops; transfers go on when it is back"

    async def start(self) -> None:
        """Go on with what is on record, and listen. Files of transfers that failed are swept."""
        out, come = await self._means.store.run(_open_rows)
        failed = [row.part for row in come if row.state == "FAILED" and row.part]
        await asyncio.to_thread(files.sweep, failed)
        for row in out:
            if not row.ended_at_ms:
                self._begin_out(Outgoing(row, self._means))
        for entry in come:
            if not entry.ended_at_ms:
                self._begin_in(Incoming(entry, self._means))
        self._spawn(self._listen())

    def leave(self) -> None:
        """The node is about to stop: whoever follows hears NODE_DOWN, and no transfer is given up because of that."""
        self._leaving = True
        stopping = Unavailable(Reason.NODE_DOWN, self._stops, "TDN-X-CLI-02")
        self._offers.close(stopping)
        for moving in self._moving():
            moving.leave(stopping)

    async def close(self) -> None:
        """Stop working; everything stays as it is on record."""
        self.leave()
        for task in self._tasks:
            task.cancel()
        stops = [moving.stop() for moving in self._moving()]
        await asyncio.gather(*stops, *self._tasks, return_exceptions=True)

    # -- the owner -----------------------------------------------------------------------------

    async def send(
        self, node: str, topic: str, path: Path, transfer_id: str = ""
    ) -> AsyncGenerator[Progress]:
        """Send a file, or follow the transfer that this id stands for; given up when nobody follows any more.

        Errors: INPUT_INVALID and DIGEST_MISMATCH (the file), KEY_CONFLICT (the id), NO_ROUTE when the node is not
        there at first, and why the receiver refused it.
        """
        outgoing = await self._sending(node, ids.topic(topic), path, _id(transfer_id))
        async with contextlib.aclosing(self._followed(outgoing)) as steps:
            async for now in steps:
                yield now

    async def receive(
        self, topic: str, out: Path, timeout_s: float | None, receive_id: str = ""
    ) -> AsyncGenerator[Progress]:
        """Receive one file, or follow the one that came for this id; `timeout_s` is for its beginning.

        Errors: OUTPUT_EXISTS, INPUT_INVALID (no such folder), DEADLINE, KEY_CONFLICT (the id), DIGEST_MISMATCH,
        CHUNK_META, ABANDONED when the sender gives up; nothing is left behind then.
        """
        incoming = await self._receiving(ids.topic(topic), out, timeout_s, _id(receive_id))
        async with contextlib.aclosing(self._followed(incoming)) as steps:
            async for now in steps:
                yield now

    async def every(self) -> list[OutRow | InRow]:
        """All transfers on record, newest first."""

        def both(connection: sa.Connection) -> list[OutRow | InRow]:
            return [*rows.every_out(connection), *rows.every_in(connection)]

        return sorted(await self._means.store.run(both), key=lambda row: -row.created_at_ms)

    async def cancel(self, start: str) -> None:
        """Give up the transfer whose id starts so. Errors: TRANSFER_UNKNOWN unless one goes on."""
        found = [moving for moving in self._moving() if moving.row.transfer_id.startswith(start)]
        words = f"{len(found)} transfers that go on have an id that starts with {start[:40]!r}"
        guard("TDN-X-CLI-01").check(
            start and len(found) == 1, Reason.TRANSFER_UNKNOWN, words, LocalProtocolError
        )
        await found[0].give_up(_given_up())

    def _check_stays(self) -> None:
        guard("TDN-X-CLI-02").check(not self._leaving, Reason.NODE_DOWN, self._stops, Unavailable)

    async def _sending(self, node: str, topic: str, path: Path, transfer_id: str) -> Outgoing:
        self._check_stays()
        async with self._opening:
            if outgoing := self._out.get(transfer_id):
                outgoing.revive()
                row = outgoing.row
            elif found := await self._means.store.run(lambda c: rows.get_out(c, transfer_id)):
                row, outgoing = found, Outgoing(found, self._means)
            else:
                shape = await asyncio.to_thread(files.shape, path)
                row = OutRow(
                    transfer_id, node, topic, str(path), shape.size_bytes, shape.mtime_ns, shape.inode, "QUEUED",
                    now_ms(),
                )  # fmt: skip
                await self._means.store.run(lambda c: rows.put_out(c, row))
                outgoing = Outgoing(row, self._means)
                self._begin_out(outgoing)
        _same.check(
            (row.peer, row.topic, row.path) == (node, topic, str(path)), Reason.KEY_CONFLICT,
            f"transfer {transfer_id} is {row.path} for {row.peer} on {row.topic}", LocalProtocolError,
        )  # fmt: skip
        return outgoing

    async def _receiving(self, topic: str, out: Path, timeout_s: float | None, receive_id: str) -> Incoming:
        self._check_stays()
        for incoming in self._in.values():
            if incoming.row.receive_id == receive_id:
                incoming.revive()
                return self._as_asked(incoming, topic, out)
        if found := await self._means.store.run(lambda c: rows.received_for(c, receive_id)):
            return self._as_asked(Incoming(found, self._means), topic, out)
        _same.check(
            receive_id not in self._asked,
            Reason.KEY_CONFLICT,
            f"request {receive_id} waits already",
            LocalProtocolError,
        )
        await asyncio.to_thread(files.check_appears, out)
        self._asked.add(receive_id)
        try:
            async with within(timeout_s, f"waiting for a file on {topic}"):
                return await self._accept(topic, out, receive_id)
        finally:
            self._asked.discard(receive_id)

    def _as_asked(self, incoming: Incoming, topic: str, out: Path) -> Incoming:
        row = incoming.row
        _same.check(
            (row.topic, row.out) == (topic, str(out)), Reason.KEY_CONFLICT,
            f"request {row.receive_id} is for {row.out} on {row.topic}", LocalProtocolError,
        )  # fmt: skip
        return incoming

    async def _accept(self, topic: str, out: Path, receive_id: str) -> Incoming:
        """Take the next file that is offered. Errors: OUTPUT_EXISTS, RESOURCE_EXHAUSTED; it waits for another request."""
        while True:
            offered = await self._offers.take(topic)
            offer = offered.offer
            try:
                await asyncio.to_thread(files.check_room, out, offer.size_bytes)
                new = await self._is_new(offered.peer, offer)
                taken = any(each.row.out == str(out) for each in self._in.values())
                guard("TDN-F-RES-08").check(
                    not taken, Reason.OUTPUT_EXISTS, f"another file is being received as {out}", ConfigError
                )
            except BaseException:
                self._offers.put(offered)
                raise
            if new:
                break
        part = files.part_path(out, offer.transfer_id)
        row = InRow(
            offer.transfer_id, offered.peer, topic, offer.size_bytes, receive_id, str(out), str(part), "RECEIVING",
            now_ms(),
        )  # fmt: skip
        incoming = Incoming(row, self._means)
        incoming.offered(offer.attempt)
        self._begin_in(incoming)
        return incoming

    async def _followed(self, moving: Outgoing | Incoming) -> AsyncGenerator[Progress]:
        try:
            async with contextlib.aclosing(moving.follow()) as steps:
                async for now in steps:
                    yield now
        except (asyncio.CancelledError, GeneratorExit):
            if not moving.followers and not self._leaving:
                self._spawn(moving.give_up(_given_up()))
            raise

    # -- the others ----------------------------------------------------------------------------

    def admits(self, peer: str, topic: str) -> bool:
        """Words from everybody, content of files that were accepted from that peer."""
        kind, _, rest = topic.partition("/")
        name = rest.partition("/")[0]
        incoming = self._in.get(name)
        return kind == wire.TOPIC or peer in {incoming and incoming.peer, self._ended.get(name)}

    def on_session(self, event: ChannelEvent) -> None:
        """Sessions that open and end."""
        if event.kind in {"opened", "closed", "failed"}:
            for outgoing in self._out.values():
                if outgoing.peer == event.peer:
                    outgoing.on_session(event)

    def refused(self, refusal: Callable[[str], TdnError | None]) -> None:
        """Give up what moves to or from a node that is refused by now."""
        for moving in self._moving():
            if error := refusal(moving.peer):
                self._spawn(moving.give_up(error))

    async def _listen(self) -> None:
        while True:
            peer, message = await self._means.messages.receive(wire.TOPIC)
            try:
                await self._heard(peer, wire.decode(message))
            except TdnError as error:
                self._on_refusal(error)

    async def _heard(self, peer: str, message: wire.Message) -> None:
        name = message.transfer_id
        if isinstance(message, wire.Offer):
            await self._offered(peer, message)
        elif isinstance(message, wire.Withdrawal):
            self._offers.withdraw(peer, name)
            incoming = self._in.get(name)
            if incoming and incoming.peer == peer:
                failure = replace(message.failure, noticed_by=peer)
                self._spawn(incoming.give_up(for_owner(failure, self._means.me)))
        elif (outgoing := self._out.get(name)) and outgoing.peer == peer:
            outgoing.hear(message)
        elif isinstance(message, wire.Wanted):
            self._tell(peer, withdrawal(name, message.attempt, self._means.me))

    async def _offered(self, peer: str, offer: wire.Offer) -> None:
        try:
            known = await self._known(peer, offer)
            if incoming := self._in.get(offer.transfer_id):
                incoming.revive()
                incoming.offered(offer.attempt)
            elif known is None:
                self._offers.put(Offered(peer, offer, asyncio.get_running_loop().time()))
            elif answer := Incoming(known, self._means).answer():
                self._tell(peer, replace(answer, attempt=offer.attempt))
        except TdnError as error:
            self._refuse(peer, offer, error)

    async def _is_new(self, peer: str, offer: wire.Offer) -> bool:
        """True when nothing is on record under this id; a conflict is refused."""
        try:
            return await self._known(peer, offer) is None
        except TdnError as error:
            self._refuse(peer, offer, error)
            return False

    def _refuse(self, peer: str, offer: wire.Offer, error: TdnError) -> None:
        self._on_refusal(error)
        if error.reason is not Reason.STORE_UNAVAILABLE:  # that passes, and the sender offers again
            told = Failure.bare(error, self._means.me)
            self._tell(peer, wire.Refusal(offer.transfer_id, offer.attempt, told))

    async def _known(self, peer: str, offer: wire.Offer) -> InRow | None:
        """The record of the transfer. Errors: IDENTITY_MISMATCH, KEY_CONFLICT."""
        found = await self._means.store.run(lambda c: rows.get_in(c, offer.transfer_id))
        active = self._in.get(offer.transfer_id)
        row = active.row if active else found
        if row:
            _identity.check(
                row.sender == peer, Reason.IDENTITY_MISMATCH,
                f"{peer} goes on with a transfer that another node has begun", Refused,
            )  # fmt: skip
            _same.check(
                (row.size_bytes, row.topic) == (offer.size_bytes, offer.topic), Reason.KEY_CONFLICT,
                f"{peer} offers {offer.size_bytes} bytes under the id of a transfer of {row.size_bytes}", Refused,
            )  # fmt: skip
        return row

    def _tell(self, peer: str, message: wire.Message) -> None:
        """Answer in the background; what does not get through, the peer asks for again."""
        telling = self._telling.get(peer, 0)
        if telling < MAX_TELLING:
            self._telling[peer] = telling + 1
            self._spawn(self._told(peer, wire.encode(message)))

    async def _told(self, peer: str, message: bytes) -> None:
        try:
            await self._means.messages.send(peer, wire.TOPIC, message, FAREWELL_S)
        except TdnError as why:
            _log.info("peer not told", peer=peer, why=str(why))
        finally:
            self._telling[peer] -= 1
            if not self._telling[peer]:
                del self._telling[peer]

    # -- inside --------------------------------------------------------------------------------

    def _moving(self) -> list[Outgoing | Incoming]:
        return [*self._out.values(), *self._in.values()]

    def _begin_out(self, outgoing: Outgoing) -> None:
        name = outgoing.row.transfer_id
        self._out[name] = outgoing

        def ended() -> None:
            self._out.pop(name, None)

        outgoing.begin(ended)

    def _begin_in(self, incoming: Incoming) -> None:
        name = incoming.row.transfer_id
        self._in[name] = incoming

        def ended() -> None:
            self._in.pop(name, None)
            self._ended[name] = incoming.peer
            while len(self._ended) > MAX_ENDED:
                del self._ended[next(iter(self._ended))]

        incoming.begin(ended)

    def _leftover(self, topic: str) -> None:
        self._spawn(self._drain(topic))

    async def _drain(self, topic: str) -> None:
        for _ in range(DRAINED_S // DRAIN_EVERY_S):
            self._means.messages.discard(topic)
            await asyncio.sleep(DRAIN_EVERY_S)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            _log.error("background work failed", exc_info=task.exception())


def _open_rows(connection: sa.Connection) -> tuple[list[OutRow], list[InRow]]:
    rows.prune(connection, now_ms() - KEPT_MS)
    return rows.every_out(connection), rows.every_in(connection)


def _id(text: str) -> str:
    return ids.transfer_id(text) if text else secrets.token_hex(wire.ID_BYTES)


def _given_up() -> TdnError:
    return Unavailable(Reason.ABANDONED, "the transfer was given up here", "TDN-T-CHK-02")
