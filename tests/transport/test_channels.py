import asyncio
import dataclasses

import pytest

from tdn_interop.errors import (
    ConfigError,
    LocalProtocolError,
    PeerProtocolError,
    Reason,
    Refused,
    TdnError,
    guard,
)
from tdn_interop.transport.channel import ConnectionLost
from tdn_interop.transport.frame import Ack, Data, Goodbye, Hello, Limits, Reset
from tdn_interop.transport.loopback import SOUND, Faults, Loopback, pair
from tests.transport.nodes import QUICK, SMALL, nodes
from tests.transport.sessions import credentials

MESSAGES = [bytes([i]) * (i * 37 % 900) for i in range(64)]


async def send_all(channels, peer, topic, messages, timeout_s=30):
    for message in messages:
        await channels.send(peer, topic, message, timeout_s)
    await channels.flush(peer, topic, timeout_s)


async def receive_all(channels, topic, count, timeout_s=30):
    return [(await channels.receive(topic, timeout_s=timeout_s))[1] for _ in range(count)]


async def both_ways(mesh, messages):
    """Send the messages in both directions at once; what either side received."""
    results = await asyncio.gather(
        receive_all(mesh.a, "t", len(messages)), receive_all(mesh.b, "t", len(messages)),
        send_all(mesh.a, "b.cn", "t", messages), send_all(mesh.b, "a.cn", "t", messages),
    )  # fmt: skip
    return results[:2]


def refused(kind, coroutine):
    async def run():
        with pytest.raises(kind) as caught:
            await coroutine
        return caught.value

    return run()


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


async def test_a_peer_cannot_fill_the_memory_by_one_session_after_another():
    tiny = dataclasses.replace(SMALL, frame_bytes=1000, topics=1, topic_credit_bytes=2000)
    async with nodes(limits=tiny) as mesh:
        for number in range(2):
            await mesh.a.send("b.cn", f"t{number}", bytes(1000), 5)
        error = await refused(TdnError, mesh.a.send("b.cn", "t2", bytes(1000), 5))
        assert error.reason is Reason.RESOURCE_EXHAUSTED
        await mesh.b.receive("t0", timeout_s=5)
        await mesh.a.send("b.cn", "t9", bytes(1000), 5)


@pytest.mark.parametrize("topic", ["", "T", "../x", "t" * 129])
async def test_topic_grammar(topic):
    async with nodes() as mesh:
        for attempt in (mesh.a.send("b.cn", topic, b"", 5), mesh.a.receive(topic, timeout_s=5)):
            assert (await refused(LocalProtocolError, attempt)).reason is Reason.INVALID_REQUEST


def test_own_limits_are_checked():
    with pytest.raises(ConfigError):
        asyncio.run(bad_limits())


async def bad_limits():
    async with nodes(limits=dataclasses.replace(SMALL, topic_credit_bytes=100)):
        pass


# -- loss of peers ---------------------------------------------------------------------------------


async def test_an_unknown_peer_is_a_typed_error_at_once():
    async with nodes() as mesh:
        error = await refused(TdnError, mesh.a.open("nobody.cn", 5))
        assert error.reason is Reason.UNREACHABLE
        assert error.requirement


async def test_a_node_has_no_session_with_itself():
    async with nodes() as mesh:
        error = await refused(LocalProtocolError, mesh.a.send("a.cn", "t", b"x", 5))
        assert error.reason is Reason.INVALID_REQUEST


async def test_a_caller_that_does_not_wait_for_the_dial_leaves_no_session_behind():
    async with nodes() as mesh:
        held = asyncio.Event()
        serve = mesh.b.accept

        async def slow(stream, peer):
            await held.wait()
            await serve(stream, peer)

        mesh.net.attach("b.cn", slow)
        error = await refused(TdnError, mesh.a.open("b.cn", 0.05))
        assert error.reason is Reason.DEADLINE
        held.set()
        mesh.net.attach("b.cn", serve)
        await mesh.a.send("b.cn", "t", b"x", 5)
        assert await mesh.b.receive("t", timeout_s=5) == ("a.cn", b"x")
        assert mesh.kinds("a.cn").count("opened") == 1
        assert mesh.a.peers() == ["b.cn"]


async def test_who_cannot_reach_a_peer_sends_on_the_session_that_the_peer_dialled():
    async with nodes() as mesh:
        dialling = asyncio.Event()
        peer_is_here = asyncio.Event()

        async def no_way(_peer):
            dialling.set()
            await peer_is_here.wait()
            guard("TDN-T-RTE-03").refuse(Reason.NO_ROUTE, "no way there", ConnectionLost)

        c = mesh.start("c.cn", connect=no_way)
        sending = asyncio.create_task(c.send("b.cn", "t", b"x", 5))
        await dialling.wait()
        await mesh.b.open("c.cn", 5)
        peer_is_here.set()
        await sending
        assert await mesh.b.receive("t", timeout_s=5) == ("c.cn", b"x")


async def test_restart_of_the_peer_is_told_to_flush_once_and_nothing_is_sent_again():
    async with nodes() as mesh:
        await mesh.a.send("b.cn", "t", b"before", 5)
        await mesh.a.flush("b.cn", "t", 5)
        mesh.net.detach("b.cn")
        await mesh.net.reset()
        await mesh.until("a.cn", "detached")
        await mesh.a.send("b.cn", "t", b"lost", 5)
        restarted = mesh.start("b.cn")
        error = await refused(TdnError, mesh.a.flush("b.cn", "t", 5))
        assert error.reason is Reason.SESSION_UNKNOWN
        await mesh.a.flush("b.cn", "t", 5)
        await mesh.a.send("b.cn", "t", b"after", 5)
        assert await restarted.receive("t", timeout_s=5) == ("a.cn", b"after")


async def test_a_peer_that_restarted_and_dials_replaces_its_older_session():
    async with nodes() as mesh:
        await mesh.a.open("b.cn", 5)
        waiting = asyncio.create_task(mesh.b.receive("t", "a.cn", 5))
        await asyncio.sleep(0)
        restarted = mesh.start("a.cn")
        await restarted.open("b.cn", 5)
        assert (await refused(TdnError, waiting)).reason is Reason.SESSION_UNKNOWN
        await mesh.b.send("a.cn", "t", b"x", 5)
        assert await restarted.receive("t", timeout_s=5) == ("b.cn", b"x")


async def test_after_the_idle_time_every_waiting_caller_is_told():
    async with nodes(limits=dataclasses.replace(SMALL, idle_ms=150)) as mesh:
        await mesh.a.open("b.cn", 5)
        for _ in range(2):
            await mesh.a.send("b.cn", "full", bytes(1000), 5)
        mesh.net.detach("b.cn")
        await mesh.net.reset()
        await mesh.until("a.cn", "detached")
        await mesh.a.send("b.cn", "t", b"x", 5)
        waiting = [
            mesh.a.flush("b.cn", "t", 10), mesh.a.receive("t", "b.cn", 10), mesh.b.receive("t", "a.cn", 10),
            mesh.a.send("b.cn", "full", bytes(1000), 10),
        ]  # fmt: skip
        errors = await asyncio.gather(*(refused(TdnError, one) for one in waiting))
        assert [error.reason for error in errors] == [Reason.SESSION_EXPIRED] * 4
        assert (await refused(TdnError, mesh.a.send("b.cn", "t", b"", 5))).reason is Reason.UNREACHABLE


async def test_redialling_stops_at_once_when_repeating_is_in_vain():
    async with nodes() as mesh:
        dials = []

        async def connect(peer):
            dials.append(peer)
            reason = Reason.UNREACHABLE if len(dials) < 4 else Reason.UNAUTHENTICATED
            guard("TDN-T-IDN-01").check(len(dials) == 1, reason, "scripted", Refused)
            return await mesh.net.dialler("c.cn")(peer)

        c = mesh.start("c.cn", connect=connect)
        await c.open("b.cn", 5)
        waiting = asyncio.create_task(c.receive("t", "b.cn", 10))
        await mesh.net.reset()
        assert (await refused(TdnError, waiting)).reason is Reason.UNAUTHENTICATED
        assert len(dials) == 4


async def test_close_drains_and_the_peer_may_come_back():
    async with nodes() as mesh:
        for message in MESSAGES[:5]:
            await mesh.a.send("b.cn", "t", message, 5)
        await mesh.a.close(5)
        assert await receive_all(mesh.b, "t", 5) == MESSAGES[:5]
        assert mesh.kinds("a.cn")[-1] == "closed"
        assert (await refused(TdnError, mesh.a.send("b.cn", "t", b"", 5))).reason is Reason.SESSION_CLOSED
        assert (await refused(TdnError, mesh.a.receive("t", timeout_s=5))).reason is Reason.SESSION_CLOSED
        assert (await refused(TdnError, mesh.b.open("a.cn", 5))).reason is Reason.SESSION_CLOSED
        again = mesh.start("a.cn")
        await mesh.b.send("a.cn", "t", b"hello again", 5)
        assert await again.receive("t", timeout_s=5) == ("b.cn", b"hello again")


async def test_a_dropped_peer_is_told_why():
    async with nodes() as mesh:
        await mesh.a.open("b.cn", 5)
        waiting = asyncio.create_task(mesh.a.receive("t", "b.cn", 5))
        await asyncio.sleep(0)
        mesh.b.drop("a.cn", Refused(Reason.CERTIFICATE_EXPIRED, "expired", "TDN-T-IDN-01"))
        assert (await refused(TdnError, waiting)).reason is Reason.CERTIFICATE_EXPIRED
        assert mesh.b.peers() == []


# -- greetings -------------------------------------------------------------------------------------


async def knock(mesh, peer, frame):
    """What b.cn answers to a first frame, and what `accept` raised."""
    here, there = pair()
    serving = asyncio.create_task(mesh.b.accept(there, peer))
    await here.send(frame)
    answer = await here.receive()
    await here.close()
    error = (await asyncio.gather(serving, return_exceptions=True))[0]
    return answer, error


async def live_session_id(mesh):
    await mesh.a.open("b.cn", 5)
    return next(iter(mesh.b._live))


@pytest.mark.parametrize(
    ("resume", "reason"), [(True, Reason.IDENTITY_MISMATCH), (False, Reason.SESSION_CONFLICT)]
)
async def test_the_session_of_another_node_is_neither_resumed_nor_replaced(resume, reason):
    async with nodes() as mesh:
        session_id = await live_session_id(mesh)
        hello = Hello((1,), session_id, resume, credentials("evil.cn"), SMALL)
        answer, error = await knock(mesh, "evil.cn", hello)
        assert answer.failure.reason is error.reason is reason
        assert await both_ways(mesh, MESSAGES[:5]) == [MESSAGES[:5]] * 2
        assert "detached" not in mesh.kinds("b.cn"), "the original session was touched"


async def test_a_session_that_we_dialled_is_not_answered():
    async with nodes() as mesh:
        await mesh.b.open("a.cn", 5)
        hello = Hello((1,), next(iter(mesh.b._live)), True, credentials("a.cn"), SMALL)
        answer, _ = await knock(mesh, "a.cn", hello)
        assert answer.failure.reason is Reason.SESSION_CONFLICT
        assert await both_ways(mesh, MESSAGES[:5]) == [MESSAGES[:5]] * 2


async def test_resume_of_an_unknown_session():
    async with nodes() as mesh:
        answer, error = await knock(mesh, "a.cn", Hello((1,), bytes(16), True, credentials("a.cn"), SMALL))
        assert answer.failure.reason is error.reason is Reason.SESSION_UNKNOWN
        assert answer.failure.noticed_by == "b.cn"
        assert mesh.b.peers() == []


@pytest.mark.parametrize("frame", [Data("t", 0, 1, 0, b"x"), Ack("t", 0), Goodbye()])
async def test_anything_before_the_hello_is_refused(frame):
    async with nodes() as mesh:
        answer, error = await knock(mesh, "a.cn", frame)
        assert isinstance(answer, Reset)
        assert answer.failure.reason is error.reason is Reason.UNEXPECTED_MESSAGE


async def test_credentials_are_verified_on_both_sides_and_on_every_connection():
    seen = []

    def verify(peer, shown):
        seen.append((peer, shown.record.signer))
        guard("TDN-T-IDN-06").check(len(seen) < 4, Reason.IDENTITY_MISMATCH, "not delegated", Refused)

    async with nodes() as mesh:
        a, b = mesh.start("a.cn", verify=verify), mesh.start("b.cn", verify=verify)
        await a.open("b.cn", 5)
        assert seen == [("a.cn", "a.cn"), ("b.cn", "b.cn")]
        await a.send("b.cn", "t", b"x", 5)
        await a.flush("b.cn", "t", 5)
        await mesh.net.reset()
        await mesh.until("a.cn", "failed")
        assert len(seen) == 4
        await mesh.until("b.cn", "failed")
        assert a.peers() == b.peers() == []


async def test_a_hello_that_never_comes_ends_the_connection():
    async with nodes(timing=QUICK) as mesh:
        here, there = pair()
        error = await refused(TdnError, mesh.b.accept(there, "a.cn"))
        assert error.reason is Reason.DEADLINE
        with pytest.raises(ConnectionLost):
            await here.receive()


async def test_a_frame_that_cannot_be_decoded_ends_the_session_with_a_reset():
    class Garbled:
        def __init__(self, stream):
            self.send, self.close, self._stream = stream.send, stream.close, stream

        async def receive(self):
            frame = await self._stream.receive()
            if isinstance(frame, Data):
                guard("TDN-T-ENC-04").refuse(Reason.INVALID_REQUEST, "bad field", PeerProtocolError)
            return frame

    async with nodes() as mesh:
        accept = mesh.b.accept
        mesh.net.attach("b.cn", lambda stream, peer: accept(Garbled(stream), peer))
        await mesh.a.send("b.cn", "t", b"x", 5)
        assert (await refused(TdnError, mesh.a.flush("b.cn", "t", 5))).reason is Reason.INVALID_REQUEST


async def test_a_newer_connection_of_a_session_takes_over_from_a_dead_one():
    """The answering side has not noticed that the connection is gone."""
    async with nodes() as mesh:
        here, there = pair()
        serving = asyncio.create_task(mesh.b.accept(there, "a.cn"))
        await here.send(Hello((1,), bytes(16), False, credentials("a.cn"), SMALL))
        assert isinstance(await here.receive(), Hello)
        answer, error = await knock(mesh, "a.cn", Hello((1,), bytes(16), True, credentials("a.cn"), SMALL))
        assert isinstance(answer, Hello)
        assert answer.resume
        assert error is None
        await serving
        assert mesh.kinds("b.cn").count("resumed") == 1
