import asyncio
import dataclasses
from collections import Counter

import pytest

from tdn_interop.errors import (
    LocalProtocolError,
    PeerProtocolError,
    Reason,
    Refused,
    TdnError,
    guard,
)
from tdn_interop.transport.channel import ConnectionLost
from tdn_interop.transport.channels import MAX_CONNECTIONS
from tdn_interop.transport.frame import Ack, Data, Goodbye, Hello, Reset
from tdn_interop.transport.loopback import LoopbackStream, pair
from tests.transport.nodes import MESSAGES, QUICK, SMALL, both_ways, nodes, receive_all, refused
from tests.transport.sessions import credentials

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
    async with asyncio.timeout(10):
        await here.send(frame)
        try:
            answer = await here.receive()
        except ConnectionLost:
            answer = None
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

    def verify(stream, shown):
        seen.append((type(stream), shown.record.signer))
        guard("TDN-T-IDN-06").check(len(seen) < 4, Reason.IDENTITY_MISMATCH, "not delegated", Refused)

    async with nodes() as mesh:
        a, b = mesh.start("a.cn", verify=verify), mesh.start("b.cn", verify=verify)
        await a.open("b.cn", 5)
        assert seen == [(LoopbackStream, "a.cn"), (LoopbackStream, "b.cn")]
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


async def test_hundreds_of_connections_without_a_hello_are_few_at_a_time_and_leave_nothing_behind():
    async with nodes(timing=QUICK) as mesh:
        before = asyncio.all_tasks()
        streams = [pair() for _ in range(200)]
        serving = [asyncio.create_task(mesh.b.accept(there, "evil.cn")) for _, there in streams]
        errors = await asyncio.gather(*serving, return_exceptions=True)
        reasons = Counter(error.reason for error in errors)
        assert reasons == {
            Reason.DEADLINE: MAX_CONNECTIONS, Reason.RESOURCE_EXHAUSTED: 200 - MAX_CONNECTIONS,
        }  # fmt: skip
        for here, _ in streams:
            with pytest.raises(ConnectionLost):
                await here.receive()
        assert asyncio.all_tasks() == before
        await mesh.start("evil.cn").open("b.cn", 5)  # there is room again


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


async def test_the_newest_connection_of_a_session_takes_over():
    """The answering side has not noticed that the connection is gone, and the dialling side is impatient."""
    async with nodes() as mesh:
        here, there = pair()
        serving = asyncio.create_task(mesh.b.accept(there, "a.cn"))
        await here.send(Hello((1,), bytes(16), False, credentials("a.cn"), SMALL))
        assert isinstance(await here.receive(), Hello)
        again = Hello((1,), bytes(16), True, credentials("a.cn"), SMALL)
        (nothing, late), (answer, error) = await asyncio.gather(
            knock(mesh, "a.cn", again), knock(mesh, "a.cn", again)
        )
        assert nothing is None
        assert late.reason is Reason.SESSION_CONFLICT
        assert answer.resume
        assert error is None
        await serving
        assert mesh.kinds("b.cn").count("resumed") == 1


class Slow:
    """A stream whose frames of one kind leave when `gate` opens, or after some turns of the loop."""

    def __init__(self, stream, kind, gate=None):
        self.receive, self.close, self._stream = stream.receive, stream.close, stream
        self._kind, self._gate = kind, gate

    async def send(self, frame):
        if isinstance(frame, self._kind):
            for _ in range(20):
                await asyncio.sleep(0)
            if self._gate:
                await self._gate.wait()
        await self._stream.send(frame)


async def test_a_slow_connection_still_tells_why_it_ends():
    async with nodes() as mesh:
        serve = mesh.start("b.cn", admits=lambda _peer, _topic: False).accept
        mesh.net.attach("b.cn", lambda stream, peer: serve(Slow(stream, Reset), peer))
        await mesh.a.send("b.cn", "t", b"x", 5)
        assert (await refused(TdnError, mesh.a.flush("b.cn", "t", 5))).reason is Reason.POLICY_DENIED


async def test_order_holds_from_a_session_that_the_peer_ends_to_the_next_one():
    async with nodes() as mesh:
        gate = asyncio.Event()
        dial = mesh.net.dialler("c.cn")

        async def connect(peer):
            stream = await dial(peer)
            return stream if mesh.net.dials["c.cn", peer] > 1 else Slow(stream, Data, gate)

        c = mesh.start("c.cn", connect=connect)
        await c.send("b.cn", "t", b"1", 5)
        await c.send("b.cn", "t", b"2", 5)
        leaving = asyncio.create_task(next(iter(mesh.b._live.values())).close(5))
        while c._sends_on["b.cn"].takes_messages:
            await asyncio.sleep(0)
        third = asyncio.create_task(c.send("b.cn", "t", b"3", 5))
        for _ in range(100):
            await asyncio.sleep(0)
        gate.set()
        assert await receive_all(mesh.b, "t", 3) == [b"1", b"2", b"3"]
        await asyncio.gather(leaving, third)
        assert mesh.net.dials["c.cn", "b.cn"] == 2
