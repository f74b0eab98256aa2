import asyncio
import dataclasses
import gc
import weakref

import pytest

from tdn_interop.errors import (
    ConfigError,
    LocalProtocolError,
    Reason,
    TdnError,
)
from tdn_interop.transport.frame import Data, Limits
from tdn_interop.transport.loopback import SOUND, Faults, Loopback
from tests.transport.nodes import MESSAGES, QUICK, SMALL, both_ways, nodes, receive_all, refused, send_all

# -- exactly once ----------------------------------------------------------------------------------


async def test_both_directions_in_order_exactly_once_with_the_certified_sender():
    async with nodes() as mesh:
        assert await both_ways(mesh, MESSAGES) == [MESSAGES, MESSAGES]
        await mesh.a.send("b.cn", "who", b"", 5)
        assert await mesh.b.receive("who", timeout_s=5) == ("a.cn", b"")
        assert mesh.a.peers() == ["b.cn"]


async def test_loss_duplication_and_reordering_do_not_change_the_log():
    messages = [number.to_bytes(2, "big") * (number % 40) for number in range(600)]
    rates = {"loss": 0.05, "duplication": 0.1, "reordering": 0.05}
    net = Loopback(lambda _s, _d, n: (Faults(seed=n, **rates), Faults(seed=n + 10_000, **rates)))
    async with nodes(net, timing=QUICK) as mesh:
        assert await both_ways(mesh, messages) == [messages, messages]
        assert mesh.kinds("a.cn").count("resumed") > 10, "the link was sound, this shows nothing"


@pytest.mark.parametrize(("direction", "least"), [("forth", 100), ("back", 3)])
async def test_a_reset_in_place_of_every_frame_resumes_with_bounded_repetition(direction, least):
    messages = MESSAGES[:24]
    for cut in range(10_000):
        broken = Faults(reset_after=cut)
        faults = (broken, SOUND) if direction == "forth" else (SOUND, broken)
        sent_bytes = []

        def count(_source, _destination, frame, sent_bytes=sent_bytes):
            sent_bytes.append(len(frame.payload) if isinstance(frame, Data) else 0)

        net = Loopback(lambda _s, _d, n, faults=faults: (SOUND, SOUND) if n else faults, count)
        async with nodes(net) as mesh:
            received, _ = await asyncio.gather(
                receive_all(mesh.b, "t", len(messages)), send_all(mesh.a, "b.cn", "t", messages)
            )
            dials = net.dials["a.cn", "b.cn"]
        assert received == messages
        # A connection holds at most 16 frames each way, and each end one more in its hand.
        assert sum(sent_bytes) - sum(map(len, messages)) <= 18 * SMALL.frame_bytes
        if dials == 1:
            break  # everything was flushed before this frame
    assert cut > least


async def test_a_message_of_many_mebibytes_arrives_whole():
    limits = Limits()
    async with nodes(limits=limits) as mesh:
        message = bytes(range(256)) * (limits.message_bytes // 256)
        sent = [message, message[:-1], message]
        assert (await asyncio.gather(receive_all(mesh.b, "t", 3), send_all(mesh.a, "b.cn", "t", sent)))[
            0
        ] == sent


async def test_simultaneous_dialling_needs_no_tie_break():
    async with nodes() as mesh:
        await asyncio.gather(mesh.a.send("b.cn", "t", b"a", 5), mesh.b.send("a.cn", "t", b"b", 5))
        assert await mesh.a.receive("t", timeout_s=5) == ("b.cn", b"b")
        assert await mesh.b.receive("t", timeout_s=5) == ("a.cn", b"a")
        for _ in range(3):
            await both_ways(mesh, MESSAGES[:5])
        assert sum(mesh.net.dials.values()) == 2


async def test_the_answering_side_sends_on_the_session_it_has():
    async with nodes() as mesh:
        await mesh.a.open("b.cn", 5)
        await mesh.b.send("a.cn", "t", b"x", 5)
        assert await mesh.a.receive("t", "b.cn", 5) == ("b.cn", b"x")
        assert sum(mesh.net.dials.values()) == 1


# -- topics, credit, limits ------------------------------------------------------------------------


async def test_a_stalled_topic_waits_for_its_consumer_and_blocks_nobody_else():
    async with nodes() as mesh:
        stalled = 0
        error = None
        while error is None:
            try:
                await mesh.a.send("b.cn", "stalled", bytes(1000), 0.05)
                stalled += 1
            except TdnError as caught:
                error = caught
        assert error.reason is Reason.DEADLINE
        assert 1000 * stalled <= SMALL.topic_credit_bytes
        sender = asyncio.create_task(send_all(mesh.a, "b.cn", "free", MESSAGES))
        assert await receive_all(mesh.b, "free", len(MESSAGES)) == MESSAGES
        await sender
        waiting = asyncio.create_task(mesh.a.send("b.cn", "stalled", b"last", 10))
        assert await receive_all(mesh.b, "stalled", stalled + 1) == [bytes(1000)] * stalled + [b"last"]
        await waiting


async def test_senders_on_one_topic_take_turns():
    async with nodes() as mesh:
        for _ in range(2):
            await mesh.a.send("b.cn", "t", bytes(1000), 5)
        large = asyncio.create_task(mesh.a.send("b.cn", "t", bytes(1000), 10))
        await asyncio.sleep(0)
        small = asyncio.create_task(mesh.a.send("b.cn", "t", b"small", 10))
        received = await receive_all(mesh.b, "t", 4)
        assert received[-2:] == [bytes(1000), b"small"]
        await asyncio.gather(large, small)


async def test_discarding_what_nobody_reads_gives_the_credit_back():
    async with nodes() as mesh:
        for topic in ("job/1/x", "job/1/y", "job/2/x"):
            await mesh.a.send("b.cn", topic, bytes(900), 5)
            await mesh.a.flush("b.cn", topic, 5)
        assert mesh.b.discard("job/1/") == 2
        assert mesh.b.discard("job/1/") == 0
        assert await mesh.b.receive("job/2/x", timeout_s=5) == ("a.cn", bytes(900))
        for _ in range(50):
            await mesh.a.send("b.cn", "job/1/x", bytes(900), 5)
            await mesh.a.flush("b.cn", "job/1/x", 5)
            assert mesh.b.discard("job/1/x") == 1


async def test_too_large_at_our_own_api_and_the_session_survives():
    async with nodes() as mesh:
        await mesh.a.send("b.cn", "t", bytes(1000), 5)
        error = await refused(LocalProtocolError, mesh.a.send("b.cn", "t", bytes(1001), 5))
        assert error.reason is Reason.TOO_LARGE
        await mesh.a.send("b.cn", "t", b"next", 5)
        assert await receive_all(mesh.b, "t", 2) == [bytes(1000), b"next"]
        assert mesh.kinds("a.cn").count("opened") == 1


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan")])
async def test_no_time_left_means_no_side_effect(timeout_s):
    async with nodes() as mesh:
        for attempt in (
            mesh.a.send("b.cn", "t", b"x", timeout_s), mesh.a.open("b.cn", timeout_s),
            mesh.a.receive("t", timeout_s=timeout_s), mesh.a.flush("b.cn", "t", timeout_s),
        ):  # fmt: skip
            assert (await refused(TdnError, attempt)).reason is Reason.DEADLINE
        assert not mesh.net.dials


async def test_more_topics_than_a_session_takes_move_to_a_new_session_in_order():
    async with nodes() as mesh:
        for number in range(3 * SMALL.topics + 1):
            for part in (b"1", b"2"):
                await mesh.a.send("b.cn", f"t{number % (SMALL.topics + 1)}", part, 5)
        for number in range(SMALL.topics + 1):
            expected = [b"1", b"2"] * (3 if number < SMALL.topics - 1 else 2)
            assert await receive_all(mesh.b, f"t{number}", len(expected)) == expected
        assert mesh.kinds("a.cn").count("closed") >= 3
        assert "failed" not in mesh.kinds("a.cn") + mesh.kinds("b.cn")


async def test_topics_that_are_not_served_end_the_session_with_a_typed_reason():
    async with nodes() as mesh:
        mesh.start("b.cn", admits=lambda peer, topic: (peer, topic) == ("a.cn", "ok"))
        await mesh.a.send("b.cn", "ok", b"x", 5)
        await mesh.a.send("b.cn", "no", b"x", 5)
        assert (await refused(TdnError, mesh.a.flush("b.cn", "no", 5))).reason is Reason.POLICY_DENIED


TINY = dataclasses.replace(SMALL, frame_bytes=1000, topics=1, topic_credit_bytes=2000)
ROOM_FOR_TWO = 2 * 2 * 1256


async def test_a_peer_cannot_fill_the_memory_by_one_session_after_another():
    async with nodes(limits=TINY) as mesh:
        b = mesh.start("b.cn", inbox_bytes=ROOM_FOR_TWO)
        for number in range(2):
            await mesh.a.send("b.cn", f"t{number}", bytes(1000), 5)
        error = await refused(TdnError, mesh.a.send("b.cn", "t2", bytes(1000), 5))
        assert error.reason is Reason.RESOURCE_EXHAUSTED
        await b.receive("t0", timeout_s=5)
        await mesh.a.send("b.cn", "t9", bytes(1000), 5)


async def test_a_peer_within_its_credit_that_overfills_the_inbox_is_told_and_loses_only_what_was_too_much():
    async with nodes(limits=dataclasses.replace(TINY, topics=8)) as mesh:
        b = mesh.start("b.cn", inbox_bytes=ROOM_FOR_TWO)
        for topic in ("t0", "t1"):
            await mesh.a.send("b.cn", topic, bytes(1000), 5)
            await mesh.a.flush("b.cn", topic, 5)
        await mesh.a.send("b.cn", "t2", bytes(1000), 5)
        assert (await refused(TdnError, mesh.a.flush("b.cn", "t2", 5))).reason is Reason.RESOURCE_EXHAUSTED
        assert mesh.kinds("b.cn").count("received") == 2
        for topic in ("t0", "t1"):
            assert await b.receive(topic, timeout_s=5) == ("a.cn", bytes(1000))
        await mesh.a.send("b.cn", "t2", bytes(1000), 5)
        assert await b.receive("t2", timeout_s=5) == ("a.cn", bytes(1000))


async def test_a_message_that_nobody_receives_does_not_keep_its_session():
    async with nodes() as mesh:
        await mesh.a.send("b.cn", "t", b"x", 5)
        await mesh.a.flush("b.cn", "t", 5)
        channel = weakref.ref(next(iter(mesh.b._live.values())))
        mesh.b.drop("a.cn")
        await mesh.until("a.cn", "failed")
        await mesh.net.close()
        gc.collect()
        assert channel() is None
        assert await mesh.b.receive("t", timeout_s=5) == ("a.cn", b"x")


@pytest.mark.parametrize("topic", ["", "T", "../x", "t" * 129])
async def test_topic_grammar(topic):
    async with nodes() as mesh:
        for attempt in (mesh.a.send("b.cn", topic, b"", 5), mesh.a.receive(topic, timeout_s=5)):
            assert (await refused(LocalProtocolError, attempt)).reason is Reason.INVALID_REQUEST


def test_own_limits_are_checked():
    with pytest.raises(ConfigError):
        asyncio.run(bad_limits())

    with pytest.raises(ConfigError):
        asyncio.run(bad_inbox())


async def bad_limits():
    async with nodes(limits=dataclasses.replace(SMALL, topic_credit_bytes=100)):
        pass


async def bad_inbox():
    async with nodes() as mesh:
        mesh.start("c.cn", inbox_bytes=2 * SMALL.topic_credit_bytes - 1)
