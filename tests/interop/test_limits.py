"""Attacks on a running hub by somebody with a valid certificate.

For each: memory within a bound, a refusal with a reason in the victim's log, and the channel of somebody else
through the same hub goes on. The bounds leave 24 MiB for what a process does anyway while six nodes work.
"""

import asyncio
import contextlib
import os
import signal
import struct
import zlib

import grpc
import pytest

from tdn_interop.errors import PeerProtocolError, Reason, TdnError
from tdn_interop.transport import records_wire, relay_service, status
from tdn_interop.transport.channels import MAX_CONNECTIONS
from tdn_interop.transport.frame import Data, Limits, Reset
from tdn_interop.transport.records_wire import Opening
from tests.interop import attacker as h2
from tests.interop.limits_world import MALLORY, World
from tests.mesh import AIRLINE, RESEARCH

USUAL = 24


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The lab lives as long as the module; each test has a loop of its own."""
    world = World(tmp_path_factory.mktemp("w"))
    asyncio.run(world.up())
    try:
        yield world
    finally:
        asyncio.run(world.lab.down())
        world.lab.remove()


async def refusal(awaitable):
    """The error that a call of the attacker ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    return status.from_rpc_error(caught.value)


# -- messages ------------------------------------------------------------------------------------


async def exchange(mallory, body, **options):
    """Send one message on Exchange; the error that the call ends with."""
    async with mallory.dialled() as dialled:
        call = dialled.channel.stream_stream(h2.EXCHANGE)(timeout=20, **options)
        with contextlib.suppress(
            grpc.aio.AioRpcError, asyncio.InvalidStateError
        ):  # it may have ended by then
            await call.write(body)
            await call.done_writing()
        code, words = await call.code(), await call.details()
        ended = grpc.aio.AioRpcError(
            code, await call.initial_metadata(), await call.trailing_metadata(), words
        )
        return status.from_rpc_error(ended)


async def test_a_compressed_bomb(world):
    """1 GiB of nothing is 1 MiB on the wire; nothing of it is expanded beyond 4 MiB."""
    bomb = b"".join(_squeezed(1 << 30))
    assert len(bomb) < 2 << 20
    async with world.attack(USUAL + 24) as seen:
        for _ in range(5):
            error = await exchange(world.attacker(), bomb)
            assert (error.reason, error.requirement) == (Reason.TOO_LARGE, "TDN-T-LIM-04")
        await seen.refused("TOO_LARGE", "TDN-T-LIM-04", 5)


def _squeezed(size):
    stream = zlib.compressobj(9, wbits=16 + zlib.MAX_WBITS)
    for _ in range(size >> 20):
        yield stream.compress(bytes(1 << 20))
    yield stream.flush()


async def test_what_claims_to_be_endless(world):
    """Lengths of 2^63 in a field of a message, in the size of a message of a session, and 2^32 in a gRPC message."""
    mallory = world.attacker()
    varint = b"\x0a" + b"\xff" * 8 + b"\x7f"  # field 1, 2^63 - 1 bytes
    async with world.attack(USUAL) as seen:
        error = await exchange(mallory, varint)
        assert (error.reason, error.requirement) == (Reason.INVALID_REQUEST, "TDN-T-ENC-01")
        async with mallory.session() as frames:
            await frames.send(Data("ping", 0, (1 << 63) - 1, 0, b"x"))
            assert (await last_words(frames)).reason is Reason.TOO_LARGE
            await seen.refused("TOO_LARGE", "session")
        async with http2(mallory) as raw:
            stream, opens = raw.call(h2.EXCHANGE)
            await raw.send(opens, h2.frame(h2.DATA, 0, stream, h2.message(b"x", claimed=0xFFFFFFFF)))
            await heard(raw, 100)  # gRPC ends the call: nothing of it reaches us


@contextlib.asynccontextmanager
async def http2(mallory, **options):
    raw = await mallory.http2(**options)
    try:
        yield raw
    finally:
        await raw.close()


async def heard(raw, size):
    async with asyncio.timeout(10):
        while raw.heard < size and not raw.over.is_set():
            await asyncio.sleep(0.01)


async def last_words(frames):
    """The failure in the reset that ends a session."""
    async with asyncio.timeout(20):
        while not isinstance(last := await frames.receive(), Reset):
            continue
    return last.failure


async def test_metadata_over_the_limit(world):
    async with world.attack(USUAL) as seen, world.attacker().dialled() as dialled:
        call = dialled.channel.unary_unary(h2.RESOLVE)
        for _ in range(20):
            metadata = grpc.aio.Metadata(("much-bin", os.urandom(20_000)))
            error = await refusal(call(b"", metadata=metadata))
            assert (error.reason, error.requirement) == (Reason.TOO_LARGE, "TDN-T-LIM-03"), error
        await seen.refused("TOO_LARGE", "TDN-T-LIM-03", 20)
        for _ in range(20):  # beyond the wall gRPC itself ends the call
            metadata = grpc.aio.Metadata(("much-bin", os.urandom(200_000)))
            error = await refusal(call(b"", metadata=metadata))
            assert error.reason is Reason.RESOURCE_EXHAUSTED


# -- sessions ------------------------------------------------------------------------------------


async def test_a_peer_that_ignores_its_credit(world):
    """One byte to a frame uses up the credit long before the message is whole, so nobody gives any back."""
    async with world.attack(USUAL) as seen, world.attacker().session() as frames:
        size = 1 << 20
        with contextlib.suppress(TdnError):
            for number in range(size):
                await frames.send(Data("ping", number, size, number, b"x"))
        await seen.refused("FLOW_VIOLATION", "session")


async def test_ten_thousand_topics(world):
    """A topic that is not served ends the session; those that are served are a handful."""
    async with world.attack(USUAL) as seen:
        for number in range(20):
            async with world.attacker().session() as frames:
                with contextlib.suppress(TdnError):
                    for topic in range(500):
                        await frames.send(Data(f"topic-{number}-{topic}", 0, 1, 0, b"x"))
                await seen.refused("POLICY_DENIED", "session", number + 1)


async def test_many_sessions(world):
    """Of a peer one session lives that it has opened: a newer one ends it. Connections that say nothing are counted."""
    mallory = world.attacker()
    async with world.attack(USUAL + 24) as seen, contextlib.AsyncExitStack() as stack:
        for _ in range(20):
            await stack.enter_async_context(mallory.session())
        await seen.refused("SESSION_UNKNOWN", "session", 19)
        for _ in range(MAX_CONNECTIONS + 10):
            await stack.enter_async_context(mallory.session(greets=False))
        await seen.refused("RESOURCE_EXHAUSTED", "TDN-T-LIM-03", 10)


async def refused_further(raw, frames):
    """Send the frames again and again: soon the connection ends, or nothing more is taken from it."""
    async with asyncio.timeout(30):
        with contextlib.suppress(TimeoutError):
            while await asyncio.wait_for(raw.send(*frames), 3):
                continue


async def test_a_storm_of_pings(world):
    """Ours on a channel, and those of HTTP/2."""
    mallory = world.attacker()
    async with world.attack(USUAL):
        async with mallory.session() as frames:
            with contextlib.suppress(TdnError):
                for number in range(5_000):
                    await frames.send(Data("ping", number, 16, 0, os.urandom(16)))
        async with http2(mallory) as raw:
            await refused_further(raw, [h2.frame(h2.PING, 0, 0, struct.pack(">Q", n)) for n in range(100)])
        async with http2(mallory) as raw:  # and does not read the answers
            raw.deafen()
            await refused_further(raw, [h2.frame(h2.PING, 0, 0, bytes(8))] * 1_000)


async def test_a_reader_that_never_reads(world):
    """Answers to calls whose window is 0 stay in the victim; there are not many of them."""
    mallory = world.attacker()
    async with world.attack(USUAL + 40) as seen, http2(mallory, window=0) as raw:
        raw.deafen()
        body = h2.message(b"\x0a" + bytes([len(MALLORY)]) + MALLORY.encode() + b"\x10\x08")
        for _ in range(4_000):
            stream, opens = raw.call(h2.RESOLVE)
            if not await raw.send(opens, h2.frame(h2.DATA, h2.END_STREAM, stream, body)):
                break
        await seen.refused("NO_ROUTE", "TDN-T-RTE-03", 20)


# -- calls ---------------------------------------------------------------------------------------


async def test_calls_without_an_end(world):
    """Headers and never a message; opened and reset at once; headers that go on and on; settings again and again."""
    mallory = world.attacker()
    async with world.attack(USUAL + 100):
        async with http2(mallory) as raw:
            for _ in range(5_000):
                if not await raw.send(raw.call(h2.RESOLVE)[1]):
                    break
            await asyncio.sleep(0.5)
        async with http2(mallory) as raw:
            for _ in range(10_000):
                stream, opens = raw.call(h2.RESOLVE)
                if not await raw.send(opens, h2.frame(h2.RST_STREAM, 0, stream, bytes(4))):
                    break
        async with http2(mallory) as raw:
            stream = 1
            await raw.send(h2.frame(h2.HEADERS, 0, stream, h2.call_headers(h2.RESOLVE)))
            for number in range(100_000):
                part = h2.literal(f"x-{number}", "y" * 100) * 10
                if not await raw.send(h2.frame(h2.CONTINUATION, 0, stream, part)):
                    break
        async with http2(mallory) as raw:
            for _ in range(1_000):
                if not await raw.send(*[h2.frame(h2.SETTINGS, 0, 0, struct.pack(">HI", 4, 65_535))] * 100):
                    break


async def test_a_thousand_tunnels_that_nobody_joins(world):
    """The node below is attached and takes none of the tunnels that it is told of."""
    mallory, research = world.attacker(), world.attacker(RESEARCH)
    async with world.attack(USUAL + 60) as seen, research.dialled() as below, mallory.dialled() as above:
        attached = below.channel.unary_stream("/tdn.transport.v1.RelayService/Attach")(b"")
        await attached.read()
        multi = above.channel.stream_stream("/tdn.transport.v1.RelayService/Tunnel")
        calls = []
        for _ in range(1_000):
            opening = Opening(os.urandom(16), MALLORY, RESEARCH, 8, 15_000, ())
            metadata = grpc.aio.Metadata((relay_service.OPEN, records_wire.encode_opening(opening)))
            calls.append(multi(metadata=metadata))
        await seen.refused("RESOURCE_EXHAUSTED", "TDN-T-LIM-03", 400)
        for call in calls:
            call.cancel()


async def test_attaching_again_and_again(world):
    mallory = world.attacker()
    async with world.attack(USUAL) as seen, mallory.dialled() as dialled:
        attach = dialled.channel.unary_stream("/tdn.transport.v1.RelayService/Attach")
        refused = []
        for _ in range(300):
            call = attach(b"")
            try:
                await call.read()
            except grpc.aio.AioRpcError as error:
                refused.append(status.from_rpc_error(error))
            call.cancel()
        await seen.refused("RATE_LIMITED", "TDN-T-LIM-06", 100)
    limited = [error for error in refused if error.reason is Reason.RATE_LIMITED]
    assert len(limited) >= 100
    assert all(0 < int(error.metadata["retry_after_ms"]) <= 200 for error in limited)  # 5 in a second


async def test_limits_that_the_attacker_states(world):
    """A greeting whose limits contradict each other, or want everything cut into crumbs."""
    mallory = world.attacker()
    async with world.attack(USUAL) as seen:
        for number, limits in enumerate(
            (Limits(frame_bytes=1), Limits(topics=1 << 30), Limits(message_bytes=1 << 50))
        ):
            async with mallory.session(greets=False) as frames:
                await frames.send(mallory.hello(limits))
                with pytest.raises(PeerProtocolError) as caught:
                    await frames.receive()
                assert caught.value.reason is Reason.INVALID_REQUEST
                await seen.refused("INVALID_REQUEST", "TDN-T-LIM-05", number + 1)


async def test_enrolments_from_one_address(world):
    """Whoever enrols has no certificate yet, so the address counts."""
    async with world.attack(USUAL) as seen, http2(world.attacker(), enrolling=True) as raw:
        for _ in range(100):
            stream, opens = raw.call("/tdn.transport.v1.EnrolmentService/Enrol")
            await raw.send(opens, h2.frame(h2.DATA, h2.END_STREAM, stream, h2.message(b"")))
        await seen.refused("RATE_LIMITED", "TDN-T-LIM-06", 40)


# -- a peer that stands still --------------------------------------------------------------------


async def test_a_receiver_that_stands_still(world):
    """Neither the hub nor the sender keeps what a stopped process does not take; when it goes on, all arrives."""
    file, got = world.folder / "file", world.folder / "got"
    file.write_bytes(os.urandom(1 << 20) * 64)
    await world.lab.start(RESEARCH)
    sender = world.process(AIRLINE)
    sender.forget_peak()
    before = sender.holds()
    async with world.attack(USUAL + 60):
        receiving = await world.tdn(RESEARCH, "channel", "recv", "still", "--out", got)
        sending = await world.tdn(AIRLINE, "channel", "send", RESEARCH, "still", file)
        await world.carries(8 << 20)
        os.kill(world.process(RESEARCH).pid, signal.SIGSTOP)
        await asyncio.sleep(3)  # long enough to fill whatever can be filled
        os.kill(world.process(RESEARCH).pid, signal.SIGCONT)
        async with asyncio.timeout(60):
            assert (await sending.wait(), await receiving.wait()) == (0, 0)
    assert sender.peak() - before <= (USUAL + 60) << 20
    assert got.read_bytes() == file.read_bytes()
