"""One end of a transfer against a peer that says what it likes."""

import asyncio
import contextlib
import os
from dataclasses import dataclass, replace

import pytest

from tdn_interop.app.files import incoming, outgoing
from tdn_interop.app.files import transfer_wire as wire
from tdn_interop.app.store import transfers as rows
from tdn_interop.errors import Reason, TdnError
from tests.app.transfer_world import SIZES, Doom, Messages, World

ME, PEER = "a.x.cn", "b.y.cn"
NAME, ASKED = "0a" * 16, "0b" * 16
SIZE = 1000


@dataclass
class Stranger:
    """The other end: what it hears is read here, what it says is up to the test."""

    messages: Messages

    def on_session(self, event):
        pass

    async def hear(self, kind):
        """The next message, which must be of this kind."""
        async with asyncio.timeout(5):
            _, data = await self.messages.receive(wire.TOPIC)
        message = wire.decode(data)
        assert isinstance(message, kind), message
        return message

    async def say(self, message):
        await self.messages.send(ME, wire.TOPIC, wire.encode(message), 5)

    async def part(self, attempt, offset, content):
        topic = wire.content_topic(NAME, attempt)
        await self.messages.send(ME, topic, wire.encode_part(offset, content), 5)

    async def content(self, attempt):
        """(offset, length) of the parts that have come and come until nothing comes any more."""
        found = []
        with contextlib.suppress(TimeoutError):
            while True:
                _, data = await self.messages.receive(wire.content_topic(NAME, attempt), None, 0.1)
                offset, content = wire.decode_part(data)
                found.append((offset, len(content)))
        return found


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    for module in (incoming, outgoing):
        monkeypatch.setattr(module, "SHORTEST_S", 0.002)
        monkeypatch.setattr(module, "LONGEST_S", 0.01)


@contextlib.asynccontextmanager
async def against(folder, command):
    """(world, stranger, the command at our end)."""
    world = World(folder, {ME: command})
    stranger = Stranger(Messages(PEER, world, Doom()))
    stranger.transfers = stranger
    world.ends[PEER] = stranger
    await world.start(ME)
    try:
        yield world, stranger
    finally:
        del world.ends[PEER]
        await world.close()


@pytest.fixture
async def sending(tmp_path):
    """We send SIZE bytes; the first offer has come."""
    path = tmp_path / "sent"
    path.write_bytes(os.urandom(SIZE))
    async with against(tmp_path, lambda t: t.send(PEER, "t", path, NAME)) as (world, stranger):
        assert await stranger.hear(wire.Offer) == wire.Offer(NAME, 1, "t", SIZE)
        yield world, stranger


@pytest.fixture
async def receiving(tmp_path):
    """We receive; an offer of SIZE bytes was accepted."""
    out = tmp_path / "got"
    async with against(tmp_path, lambda t: t.receive("t", out, 5, ASKED)) as (world, stranger):
        await stranger.say(wire.Offer(NAME, 1, "t", SIZE))
        assert await stranger.hear(wire.Accept) == wire.Accept(NAME, 1, 0)
        yield world, stranger


async def refused(world, reason):
    with pytest.raises(TdnError) as error:
        await world.ends[ME].command
    assert error.value.reason is reason


@pytest.mark.parametrize("offset", [1, SIZES.window, SIZE, SIZE + 1, (1 << 64) - 1])
async def test_an_offset_that_was_never_sent_is_refused(sending, offset):
    """T-DLV-02.N2."""
    world, stranger = sending
    reason = Reason.SEQ_RANGE if offset > SIZES.window else None
    await stranger.say(wire.Accept(NAME, 1, offset))
    if reason:
        await refused(world, reason)
        assert (await stranger.hear(wire.Withdrawal)).failure.reason is Reason.ABANDONED


async def test_what_was_acknowledged_is_not_sent_again(sending):
    world, stranger = sending
    await stranger.say(wire.Accept(NAME, 1, 0))
    await stranger.say(wire.Stored(NAME, 1, 64))
    await stranger.content(1)
    await stranger.say(wire.Wanted(NAME, 1))
    assert (await stranger.hear(wire.Offer)).attempt == 2
    await stranger.say(wire.Accept(NAME, 2, 0))
    await refused(world, Reason.SEQ_RANGE)


async def test_more_than_was_sent_cannot_be_stored(sending):
    world, stranger = sending
    await stranger.say(wire.Accept(NAME, 1, 0))
    await stranger.content(1)
    await stranger.say(wire.Stored(NAME, 1, SIZES.window + 1))
    await refused(world, Reason.SEQ_RANGE)


async def test_a_sender_is_never_further_ahead_than_the_window(sending):
    _, stranger = sending
    await stranger.say(wire.Accept(NAME, 1, 0))
    assert sum(length for _, length in await stranger.content(1)) == SIZES.window
    await stranger.say(wire.Stored(NAME, 1, 128))
    assert await stranger.content(1) == [(256, 64), (320, 64)]


async def test_words_about_an_older_attempt_change_nothing(sending):
    world, stranger = sending
    await stranger.say(wire.Wanted(NAME, 1))
    assert (await stranger.hear(wire.Offer)).attempt == 2
    for message in (wire.Accept(NAME, 1, 0), wire.Stored(NAME, 1, SIZE), wire.Done(NAME, 1, "00" * 32)):
        await stranger.say(message)
    await stranger.say(wire.Accept(NAME, 2, 0))
    assert (await stranger.content(2))[0] == (0, 64)
    assert await stranger.content(1) == []
    assert not world.ends[ME].command.done()


async def test_another_file_under_our_id_is_no_success(sending):
    world, stranger = sending
    await stranger.say(wire.Done(NAME, 1, "00" * 32))
    await refused(world, Reason.DIGEST_MISMATCH)


async def test_a_receiver_that_refuses(sending):
    world, stranger = sending
    failure = outgoing.withdrawal(NAME, 1, PEER).failure
    await stranger.say(wire.Refusal(NAME, 1, replace(failure, noticed_by="c.z.cn")))
    with pytest.raises(TdnError) as error:
        await world.ends[ME].command
    assert (error.value.reason, error.value.metadata["noticed_by"]) == (Reason.ABANDONED, PEER)


async def test_what_a_sender_does_not_know_is_withdrawn(sending):
    _, stranger = sending
    await stranger.say(wire.Wanted("ff" * 16, 4))
    assert (await stranger.hear(wire.Withdrawal)).transfer_id == "ff" * 16


@pytest.mark.parametrize("offset", [0, 65, 128, SIZE])
async def test_a_part_out_of_place_loses_the_attempt_and_nothing_else(receiving, offset):
    """T-CHK-02: the receiver asks for another offer and goes on where it stands."""
    _, stranger = receiving
    await stranger.part(1, 0, bytes(64))
    await stranger.part(1, offset, bytes(32))
    assert await stranger.hear(wire.Wanted) == wire.Wanted(NAME, 1)
    await stranger.say(wire.Offer(NAME, 2, "t", SIZE))
    answer = await stranger.hear(wire.Accept | wire.Wanted)
    while isinstance(answer, wire.Wanted):
        answer = await stranger.hear(wire.Accept | wire.Wanted)
    assert answer == wire.Accept(NAME, 2, 64)


async def test_what_is_left_of_an_older_attempt_is_dropped(receiving):
    _, stranger = receiving
    await stranger.part(1, 0, bytes(64))
    await stranger.say(wire.Offer(NAME, 2, "t", SIZE))
    accepted = await stranger.hear(wire.Accept)
    await stranger.part(1, accepted.offset, b"x" * 64)
    await stranger.part(2, accepted.offset, bytes(128))
    assert (await stranger.hear(wire.Stored)).offset == accepted.offset + 128


async def test_receipts_come_after_the_record(receiving):
    """T-DLV-02.F2, F3: what was acknowledged is there after a kill at any later moment."""
    world, stranger = receiving
    await stranger.part(1, 0, bytes(128))
    stored = (await stranger.hear(wire.Stored)).offset
    row = await world.ends[ME].store.run(lambda c: rows.get_in(c, NAME))
    assert stored == row.stored == 128


async def test_a_restarted_receiver_asks_for_the_rest(receiving):
    world, stranger = receiving
    await stranger.part(1, 0, bytes(128))
    await stranger.hear(wire.Stored)
    await stranger.part(1, 128, bytes(64))
    await world.kill(ME)
    await world.start(ME)
    assert (await stranger.hear(wire.Wanted)).attempt == 1
    await stranger.say(wire.Offer(NAME, 2, "t", SIZE))
    answer = await stranger.hear(wire.Accept | wire.Wanted)
    while isinstance(answer, wire.Wanted):
        answer = await stranger.hear(wire.Accept | wire.Wanted)
    assert answer == wire.Accept(NAME, 2, 128)


async def test_the_owner_gives_up_in_the_middle(receiving, tmp_path):
    world, stranger = receiving
    await stranger.part(1, 0, bytes(64))
    await world.ends[ME].transfers.cancel(NAME[:4])
    assert (await stranger.hear(wire.Refusal)).failure.reason is Reason.ABANDONED
    await refused(world, Reason.ABANDONED)
    assert list(tmp_path.glob(".tdn-*")) == []
    await stranger.say(wire.Offer(NAME, 2, "t", SIZE))
    assert (await stranger.hear(wire.Refusal)).attempt == 2
    with pytest.raises(TdnError) as unknown:
        await world.ends[ME].transfers.cancel(NAME[:4])
    assert unknown.value.reason is Reason.TRANSFER_UNKNOWN


async def test_the_part_of_a_failed_transfer_is_swept_at_the_start(receiving, tmp_path):
    """A crash between the record and the file."""
    world, _ = receiving
    part = tmp_path / f".tdn-{NAME}.part"
    row = await world.ends[ME].store.run(lambda c: rows.get_in(c, NAME))
    failure = {"reason": "ABANDONED", "message": "", "noticed_by": "", "requirement": "", "metadata": {}}
    failed = replace(row, state="FAILED", ended_at_ms=row.created_at_ms + 1, failure=failure)
    store = world.ends[ME].store
    await world.ends[ME].transfers.close()
    await store.run(lambda c: rows.put_in(c, failed))
    part.write_bytes(b"left")
    await world.kill(ME)
    await world.start(ME)
    assert not part.exists()


async def test_what_ended_long_ago_is_forgotten(receiving):
    world, _ = receiving
    store = world.ends[ME].store
    row = await store.run(lambda c: rows.get_in(c, NAME))
    await store.run(
        lambda c: rows.put_in(c, replace(row, transfer_id="0c" * 16, receive_id="x", ended_at_ms=9))
    )
    await store.run(lambda c: rows.prune(c, 9))
    assert len(await store.run(rows.every_in)) == 2
    await store.run(lambda c: rows.prune(c, 10))
    assert [row.transfer_id for row in await store.run(rows.every_in)] == [NAME]
