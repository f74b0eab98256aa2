"""Transfers on a node whose database or disk fails for a while: they go on, or end alike at both ends."""

import asyncio
import hashlib
import os
from dataclasses import replace

import pytest

from tdn_interop.app.files import transfer_wire as wire
from tdn_interop.app.store import transfers as rows
from tdn_interop.errors import Reason, TdnError, Unavailable
from tests.app import test_transfer_ends as ends
from tests.app.test_transfer_ends import ASKED, ME, NAME, PEER, SIZE, refused

CONTENT = os.urandom(SIZE)
short_pauses, sending, receiving = ends.short_pauses, ends.sending, ends.receiving


class Failing:
    """The store of our end fails while it is `down`."""

    def __init__(self, world):
        self.down, self.met = False, asyncio.Event()
        store = world.ends[ME].transfers._means.store
        self._real, store.run = store.run, self._run

    async def _run(self, fn):
        if self.down:
            self.met.set()
            raise Unavailable(Reason.STORE_UNAVAILABLE, "database: disk I/O error")
        return await self._real(fn)


async def send_rest(stranger, attempt, offset):
    """Everything from `offset` on, as an honest sender does."""
    for start in range(offset, SIZE, 64):
        await stranger.part(attempt, start, CONTENT[start : start + 64])
    await stranger.part(attempt, SIZE, hashlib.sha256(CONTENT).digest())


async def heard(stranger, kind):
    """The next message of this kind."""
    async with asyncio.timeout(5):
        while True:
            _, data = await stranger.messages.receive(wire.TOPIC)
            if isinstance(message := wire.decode(data), kind):
                return message


async def last(steps):
    async for now in steps:
        found = now
    return found


async def broken(world, stranger, failing):
    """A transfer whose record cannot be written, not even that it has failed; then the database is back."""
    failing.down = True
    for start in (0, 64):
        await stranger.part(1, start, CONTENT[start : start + 64])
    await failing.met.wait()
    for start in (128, 192):
        await stranger.part(1, start, CONTENT[start : start + 64])
    await refused(world, Reason.STORE_UNAVAILABLE)
    failing.down = False


async def test_a_sender_goes_on_with_a_receiver_whose_database_had_failed(receiving, tmp_path):
    world, stranger = receiving
    await broken(world, stranger, Failing(world))
    await stranger.say(wire.Offer(NAME, 2, "t", SIZE))
    accepted = await heard(stranger, wire.Accept)
    await send_rest(stranger, 2, accepted.offset)
    assert (await heard(stranger, wire.Done)).sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert (tmp_path / "got").read_bytes() == CONTENT


async def test_an_owner_goes_on_with_a_file_that_comes_in(receiving, tmp_path):
    world, stranger = receiving
    await broken(world, stranger, Failing(world))
    again = asyncio.create_task(last(world.ends[ME].transfers.receive("t", tmp_path / "got", 5, ASKED)))
    assert (await heard(stranger, wire.Wanted)).transfer_id == NAME
    await stranger.say(wire.Offer(NAME, 2, "t", SIZE))
    accepted = await heard(stranger, wire.Accept)
    await send_rest(stranger, 2, accepted.offset)
    assert (await again).done
    assert (tmp_path / "got").read_bytes() == CONTENT


async def test_an_owner_goes_on_with_a_file_that_goes_out(sending, tmp_path):
    world, stranger = sending
    failing = Failing(world)
    failing.down = True
    await stranger.say(wire.Accept(NAME, 1, 0))
    await refused(world, Reason.STORE_UNAVAILABLE)
    failing.down = False
    again = asyncio.create_task(last(world.ends[ME].transfers.send(PEER, "t", tmp_path / "sent", NAME)))
    offer = await heard(stranger, wire.Offer)
    sha256 = hashlib.sha256((tmp_path / "sent").read_bytes()).hexdigest()
    await stranger.say(wire.Done(NAME, offer.attempt, sha256))
    async with asyncio.timeout(5):
        assert (await again).done


async def test_a_file_that_has_its_name_is_not_called_failed(receiving, tmp_path, monkeypatch):
    world, stranger = receiving
    failing, real = Failing(world), rows.put_in

    def put_in(connection, row):
        if row.state == "DELIVERED":
            failing.down = True
            raise Unavailable(Reason.STORE_UNAVAILABLE, "database: disk I/O error")
        real(connection, row)

    with monkeypatch.context() as patch:
        patch.setattr(rows, "put_in", put_in)
        await send_rest(stranger, 1, 0)
        await refused(world, Reason.STORE_UNAVAILABLE)
    failing.down = False
    async with asyncio.timeout(5):
        again = await last(world.ends[ME].transfers.receive("t", tmp_path / "got", 5, ASKED))
    assert again.done
    assert (tmp_path / "got").read_bytes() == CONTENT
    assert (await heard(stranger, wire.Done)).sha256 == again.sha256


async def test_an_offer_that_meets_a_failing_database_is_not_refused(receiving):
    """The sender would give up; it offers again."""
    world, stranger = receiving
    failing = Failing(world)
    failing.down = True
    await stranger.say(wire.Offer("0d" * 16, 1, "t", SIZE))
    async with asyncio.timeout(5):
        while not world.refusals:
            await asyncio.sleep(0)
    failing.down = False
    await stranger.say(wire.Offer(NAME, 1, "t", SIZE + 1))  # this one is a conflict
    assert (await heard(stranger, wire.Refusal)).transfer_id == NAME


async def test_a_file_that_was_removed_while_it_came_is_not_delivered(receiving, tmp_path):
    world, stranger = receiving
    await stranger.part(1, 0, CONTENT[:64])
    part = tmp_path / f".tdn-{NAME}.part"
    async with asyncio.timeout(5):
        while not part.exists():
            await asyncio.sleep(0)
    part.unlink()
    for start in range(64, SIZE, 64):
        await stranger.part(1, start, CONTENT[start : start + 64])
    await stranger.part(1, SIZE, hashlib.sha256(CONTENT).digest())
    assert isinstance(await heard(stranger, wire.Done | wire.Refusal), wire.Refusal)
    await refused(world, Reason.CONFIG_INVALID)


async def test_a_node_starts_though_a_part_file_cannot_be_swept(receiving, tmp_path):
    world, _ = receiving
    store = world.ends[ME].store
    row = await store.run(lambda c: rows.get_in(c, NAME))
    (tmp_path / "file").write_text("of somebody")
    failure = {"reason": "ABANDONED", "message": "", "noticed_by": "", "requirement": "", "metadata": {}}
    gone = replace(
        row, transfer_id="0d" * 16, receive_id="0e" * 16, state="FAILED", failure=failure, ended_at_ms=row.created_at_ms,
        part=str(tmp_path / "file" / "part"),
    )  # fmt: skip
    await store.run(lambda c: rows.put_in(c, gone))
    await world.kill(ME)
    await world.start(ME)
    with pytest.raises(TdnError):
        await world.ends[ME].transfers.cancel("0d")


async def test_a_sender_that_begins_again_and_again(receiving):
    """Each attempt costs the receiver little, and leaves little behind."""
    world, stranger = receiving
    transfers = world.ends[ME].transfers
    for attempt in range(2, 200):
        await stranger.say(wire.Offer(NAME, attempt, "t", SIZE))
    while (await heard(stranger, wire.Accept)).attempt != attempt:
        pass
    assert len(transfers._tasks) < 20
