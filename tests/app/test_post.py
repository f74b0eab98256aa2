"""The post: order, exactly once under kills at every point, bounds, validity, and hostile peers."""

import asyncio
import dataclasses

import pytest

from tdn_interop.app.post import post as post_module
from tdn_interop.app.post import post_receiver, post_sender, post_wire
from tdn_interop.app.post.post_wire import WireParcel, WireReceipt
from tdn_interop.app.store import post as table
from tdn_interop.app.store import rows, tables
from tdn_interop.errors import LocalProtocolError, PeerProtocolError, Reason, Refused, Unavailable
from tests.app.post_world import revive, settle, two

BODIES = [b"one", b"two", b"", b"four" * 1000, b"five"]
LATER = 1 << 50


async def test_parcels_arrive_in_order_once_in_both_directions(tmp_path):
    async with two(tmp_path) as (a, b):
        await a.submit("b.cn", *BODIES)
        await b.submit("a.cn", b"back")
        await a.submit("b.cn", b"more")
        await settle(a, b)
        assert await b.done() == [*BODIES, b"more"]
        assert await a.done() == [b"back"]
        assert a.refusals + b.refusals == []


@pytest.mark.parametrize("victim", ["a", "b"])
async def test_a_kill_at_every_point_of_either_end(tmp_path, victim):
    for fuse in range(1000):
        folder = tmp_path / str(fuse)
        folder.mkdir()
        async with two(folder) as ends:
            a, b = ends
            mortal = a if victim == "a" else b
            mortal.points, mortal.fuse = 0, fuse
            await a.submit("b.cn", *BODIES[:2])
            await revive(a, b)
            await a.submit("b.cn", *BODIES[2:])
            await settle(a, b)
            assert await b.done() == BODIES, fuse
            if not mortal.deaths:
                break
    assert fuse > 12, "nothing was killed"


@pytest.mark.parametrize("lost", [{0}, {1}, {0, 2}, {3, 5}, {0, 1, 2, 3, 4, 5}])
async def test_what_goes_down_with_a_session_comes_again_in_order(tmp_path, monkeypatch, lost):
    monkeypatch.setattr(post_sender, "RECEIPT_S", 0.02)
    async with two(tmp_path) as (a, b):
        a.lost = lost
        await a.submit("b.cn", *BODIES)
        await a.submit("b.cn", b"more")
        await settle(a, b)
        assert await b.done() == [*BODIES, b"more"]


async def test_a_sender_that_is_killed_before_its_commit_has_sent_nothing(tmp_path):
    async with two(tmp_path) as (a, b):

        def half(connection):
            a.post.send_in(connection, "b.cn", b"never", 60)
            raise KeyError("killed")

        with pytest.raises(KeyError):
            await a.store.run(half)
        await a.submit("b.cn", b"real")
        await settle(a, b)
        assert await b.done() == [b"real"]


async def test_what_is_not_done_comes_again_with_the_next_process(tmp_path):
    async with two(tmp_path) as (a, b):
        seen, enough = [], asyncio.Event()

        async def forget(parcel):
            seen.append(parcel.body)
            if len(seen) == 3:
                enough.set()

        b.post.consumer = forget
        await a.submit("b.cn", b"1", b"2", b"3")
        await enough.wait()
        assert await b.count("post_in") == 3
        await b.restart()
        await settle(a, b)
        assert await b.done() == [b"1", b"2", b"3"]


async def test_a_consumer_that_refuses_does_not_stop_the_next_parcel(tmp_path):
    async with two(tmp_path) as (a, b):
        usual = b.consume

        async def picky(parcel):
            if parcel.body == b"bad":
                raise Refused(Reason.POLICY_DENIED, "no", "TDN-F-TSK-02")
            await usual(parcel)

        b.post.consumer = picky
        await a.submit("b.cn", b"bad", b"good")
        async with asyncio.timeout(10):
            while await b.done() != [b"good"]:
                await asyncio.sleep(0)
        assert [error.reason for error in b.refusals] == [Reason.POLICY_DENIED]


# -- databases that get lost -----------------------------------------------------------------------


async def test_a_sender_without_its_database_opens_a_new_stream_and_the_old_one_cannot_be_played_again(
    tmp_path,
):
    async with two(tmp_path) as (a, b):
        await a.submit("b.cn", b"old 0", b"old 1")
        await settle(a, b)
        taped = list(a.wire)
        await a.store.run(lambda c: c.exec_driver_sql("DELETE FROM post_streams"))
        await a.submit("b.cn", b"new 0")
        await settle(a, b)
        for payload in taped:
            await b.post.arrived("a.cn", payload)
        await settle(a, b)
        assert await b.done() == [b"old 0", b"old 1", b"new 0"]


async def test_a_sender_with_an_older_copy_of_its_database_loses_nothing(tmp_path):
    async with two(tmp_path) as (a, b):
        await a.submit("b.cn", b"before")
        await settle(a, b)
        copy = await stream_of(a, "b.cn")
        await a.submit("b.cn", b"since 1", b"since 2", b"since 3")
        await settle(a, b)
        await a.store.run(lambda c: rows.put(c, tables.post_streams, copy))
        await a.submit("b.cn", b"new 1", b"new 2")
        await settle(a, b)
        assert await b.done() == [b"before", b"since 1", b"since 2", b"since 3", b"new 1", b"new 2"]
        assert Reason.SEQ_RANGE in {error.reason for error in a.refusals}


async def test_a_receiver_without_its_database_goes_on_where_the_sender_is(tmp_path):
    async with two(tmp_path) as (a, b):
        await a.submit("b.cn", b"before")
        await settle(a, b)
        await b.store.run(lambda c: c.exec_driver_sql("DELETE FROM post_positions"))
        await a.submit("b.cn", b"after 1", b"after 2")
        await settle(a, b)
        assert await b.done() == [b"before", b"after 1", b"after 2"]


async def test_only_the_newest_streams_of_a_peer_are_remembered(tmp_path):
    async with two(tmp_path) as (_, b):
        for number in range(post_receiver.MAX_STREAMS + 5):
            parcel = WireParcel(bytes([number]) * 16, 0, 0, b"x", LATER)
            await b.post.arrived("a.cn", post_wire.encode(parcel))
        assert await b.count("post_positions") <= post_receiver.MAX_STREAMS


# -- validity --------------------------------------------------------------------------------------


async def test_what_expires_is_given_up_and_told_and_the_rest_goes_on(tmp_path):
    async with two(tmp_path) as (a, b):
        b.online = False
        await a.submit("b.cn", b"long 0", valid_s=60)
        await a.submit("b.cn", b"short", valid_s=0.01)
        await a.submit("b.cn", b"long 2", valid_s=60)
        async with asyncio.timeout(10):
            while not a.given_up:
                await asyncio.sleep(0.001)
        b.online = True
        a.post.wake("b.cn")
        await settle(a, b)
        assert await b.done() == [b"long 0", b"long 2"]
        assert a.given_up == [("b.cn", b"short")]


# -- letters ---------------------------------------------------------------------------------------


async def test_what_cannot_be_sent_goes_away_once_in_order_and_a_receipt_comes_back_the_same_way(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(post_sender, "AWAY_S", 0)
    letters = {"a.cn": [], "b.cn": []}

    def away(end):
        async def take(peer, messages):
            letters[peer] += messages
            return True

        end.post.away = take

    async with two(tmp_path) as (a, b):
        away(a)
        away(b)
        a.online = b.online = False
        bodies = [b"%d" % number for number in range(150)]  # more than a window
        await a.submit("b.cn", *bodies)
        async with asyncio.timeout(10):
            while len(letters["b.cn"]) < 150 or len(letters["b.cn"]) != await a.count("post_out"):
                await asyncio.sleep(0.001)
        await a.submit("b.cn", b"one more")
        async with asyncio.timeout(10):
            while len(letters["b.cn"]) < 151:
                await asyncio.sleep(0.001)
        for letter in letters["b.cn"] + letters["b.cn"]:
            await b.post.arrived("a.cn", letter)
        async with asyncio.timeout(10):
            while await b.count("post_in") or b.post._giving:
                await asyncio.sleep(0.001)
        assert await b.done() == [*bodies, b"one more"]
        assert len(letters["b.cn"]) == 151
        for letter in letters["a.cn"]:
            await a.post.arrived("b.cn", letter)
        assert await a.count("post_out") == 0


async def test_letters_that_build_on_an_expired_one_go_again(tmp_path, monkeypatch):
    monkeypatch.setattr(post_sender, "AWAY_S", 0)
    letters = []

    async def take(_peer, messages):
        letters.extend(post_wire.decode(message) for message in messages)
        return True

    async with two(tmp_path) as (a, b):
        a.post.away = take
        b.online = False
        await a.submit("b.cn", b"short", valid_s=60)
        await a.submit("b.cn", b"long", valid_s=600)
        async with asyncio.timeout(10):
            while len(letters) < 2:
                await asyncio.sleep(0.001)
            a.skew_ms = 100_000
            while len(letters) < 3:
                await asyncio.sleep(0.001)
        assert a.given_up == [("b.cn", b"short")]
        await b.post.arrived("a.cn", post_wire.encode(letters[-1]))
        assert [letter.body for letter in letters] == [b"short", b"long", b"long"]


# -- bounds ----------------------------------------------------------------------------------------


async def test_an_outbox_that_is_full_refuses(tmp_path, monkeypatch):
    monkeypatch.setattr(post_module, "MAX_OUT", 3)
    async with two(tmp_path) as (a, b):
        b.online = False
        with pytest.raises(Unavailable) as caught:
            await a.submit("b.cn", b"1", b"2", b"3", b"4")
        assert caught.value.reason is Reason.RESOURCE_EXHAUSTED
        assert await a.count("post_out") == 0, "the transaction was the caller's, and so is the undoing"
        await a.submit("b.cn", b"1", b"2", b"3")
        b.online = True
        a.post.wake("b.cn")
        await settle(a, b)


@pytest.mark.parametrize("bound", ["MAX_OUT_BYTES", "MAX_BODY"])
async def test_bytes_are_bounded_too(tmp_path, monkeypatch, bound):
    monkeypatch.setattr(post_module, bound, 10)
    async with two(tmp_path) as (a, _):
        await a.submit("b.cn", b"1234567890")
        with pytest.raises((Unavailable, LocalProtocolError)) as caught:
            await a.submit("b.cn", b"12345678901")
        assert caught.value.reason in (Reason.RESOURCE_EXHAUSTED, Reason.TOO_LARGE)


async def test_a_node_has_no_post_for_itself(tmp_path):
    async with two(tmp_path) as (a, _):
        with pytest.raises(LocalProtocolError):
            await a.submit("a.cn", b"me")


@pytest.mark.parametrize(("bound", "limit"), [("MAX_UNDONE", 2), ("MAX_UNDONE_BYTES", 8)])
async def test_what_a_receiver_has_no_room_for_waits_at_the_sender(tmp_path, monkeypatch, bound, limit):
    monkeypatch.setattr(post_receiver, bound, limit)
    monkeypatch.setattr(post_sender, "RECEIPT_S", 0.02)
    async with two(tmp_path) as (a, b):
        held, gate = [], asyncio.Event()
        usual = b.consume

        async def slow(parcel):
            held.append(parcel.number)
            await gate.wait()
            await usual(parcel)

        b.post.consumer = slow
        bodies = [b"%04d" % number for number in range(6)]
        await a.submit("b.cn", *bodies)
        async with asyncio.timeout(10):
            while Reason.RESOURCE_EXHAUSTED not in {error.reason for error in b.refusals}:
                await asyncio.sleep(0.001)
        assert await b.count("post_in") == 2
        gate.set()
        await settle(a, b)
        assert await b.done() == bodies


# -- hostile peers ---------------------------------------------------------------------------------


async def stream_of(end, peer):
    return await end.store.run(lambda c: table.stream(c, peer))


async def test_a_receipt_beyond_what_was_sent_is_refused_and_loses_nothing(tmp_path):
    async with two(tmp_path) as (a, b):
        b.online = False
        await a.submit("b.cn", b"kept")
        stream = await stream_of(a, "b.cn")
        with pytest.raises(PeerProtocolError) as caught:
            await a.post.arrived("b.cn", post_wire.encode(WireReceipt(stream.stream_id, 2)))
        assert caught.value.reason is Reason.SEQ_RANGE
        assert await a.count("post_out") == 1
        b.online = True
        a.post.wake("b.cn")
        await settle(a, b)
        assert await b.done() == [b"kept"]


async def test_a_stream_is_worth_nothing_to_another_peer(tmp_path):
    async with two(tmp_path) as (a, b):
        await a.submit("b.cn", b"first")
        await settle(a, b)
        stream = await stream_of(a, "b.cn")
        stolen = WireParcel(stream.stream_id, 1, 0, b"forged", LATER)
        with pytest.raises(Refused) as caught:
            await b.post.arrived("c.cn", post_wire.encode(stolen))
        assert caught.value.reason is Reason.IDENTITY_MISMATCH
        with pytest.raises(Refused) as caught:
            await a.post.arrived("c.cn", post_wire.encode(WireReceipt(stream.stream_id, 1)))
        assert caught.value.reason is Reason.IDENTITY_MISMATCH
        await a.submit("b.cn", b"second")
        await settle(a, b)
        assert await b.done() == [b"first", b"second"]


async def test_nothing_behind_a_gap_is_stored(tmp_path):
    async with two(tmp_path) as (_, b):
        parcel = WireParcel(b"s" * 16, 5, 5, b"early", LATER)
        with pytest.raises(PeerProtocolError) as caught:
            await b.post.arrived("a.cn", post_wire.encode(parcel))
        assert caught.value.reason is Reason.SEQ_GAP
        assert await b.count("post_in") == 0
        first = dataclasses.replace(parcel, number=4, after=0, body=b"first")
        await b.post.arrived("a.cn", post_wire.encode(first))
        await b.post.arrived("a.cn", post_wire.encode(parcel))
        assert await b.done() or await b.count("post_in")


GOOD = WireParcel(b"s" * 16, 3, 2, b"body", LATER)


@pytest.mark.parametrize("message", [GOOD, WireReceipt(b"s" * 16, 7), dataclasses.replace(GOOD, after=3)])
def test_messages_survive_the_wire(message):
    assert post_wire.decode(post_wire.encode(message)) == message


@pytest.mark.parametrize("message", [
    dataclasses.replace(GOOD, stream_id=b"short"), dataclasses.replace(GOOD, after=4),
    dataclasses.replace(GOOD, number=1 << 63), dataclasses.replace(GOOD, expires_at_ms=0),
    dataclasses.replace(GOOD, expires_at_ms=-1), dataclasses.replace(GOOD, body=b"x" * (post_wire.MAX_BODY + 1)),
    dataclasses.replace(GOOD, body=b"x" * (2 * post_wire.MAX_BODY)), WireReceipt(b"", 1),
    WireReceipt(b"s" * 16, 1 << 63),
])  # fmt: skip
def test_what_cannot_be_a_message_is_refused(message):
    with pytest.raises(PeerProtocolError):
        post_wire.decode(post_wire.encode(message))


@pytest.mark.parametrize("data", [b"", b"\xff", b"\x1a\x00"])
def test_other_bytes_are_refused(data):
    with pytest.raises(PeerProtocolError):
        post_wire.decode(data)


async def test_rubbish_on_the_topic_is_refused_and_the_next_message_served(tmp_path):
    async with two(tmp_path) as (a, b):
        b.inbox.put_nowait(("a.cn", b"\xff"))
        await a.submit("b.cn", b"fine")
        await settle(a, b)
        assert await b.done() == [b"fine"]
        assert [error.reason for error in b.refusals] == [Reason.INVALID_REQUEST]
