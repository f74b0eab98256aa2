"""The front under abuse: floods, oversized hellos, resets at every phase; nothing is left behind."""

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import struct

import pytest

from tdn_interop.transport import front as front_module
from tdn_interop.transport import pump
from tests.interop.forge import raw_context, until
from tests.interop.fronts import CLIENT, dns, exchange, fronted, made


@pytest.fixture
async def victim(tmp_path):
    async with fronted(tmp_path / "f") as parts:
        yield parts


@pytest.fixture
def guest(tmp_path):
    return raw_context(made(tmp_path / "guest", dns(CLIENT)))


def fds():
    return len(os.listdir("/proc/self/fd"))


def knock(port, count, source="127.0.0.1"):
    """Connections that never say a word."""
    return [socket.create_connection(("127.0.0.1", port), source_address=(source, 0)) for _ in range(count)]


async def test_unfinished_handshakes_lock_nobody_out(victim, guest):
    front, port, behind = victim
    silent = await asyncio.to_thread(knock, port, front_module.HALF_OPEN + 100)
    await until(lambda: len(front._half_open) == front_module.HALF_OPEN and len(behind.refused) >= 100)
    async with asyncio.timeout(2):  # far less than a handshake may take
        assert await exchange(port, guest) == b"hello"
    assert len(front._half_open) <= front_module.HALF_OPEN
    assert set(behind.said()) == {("RESOURCE_EXHAUSTED", "TDN-T-LIM-03")}
    assert "127.0.0.1 keeps 256 TLS handshakes unfinished" in behind.refused[0].message
    for one in silent:
        one.close()


async def test_a_flood_from_one_source_costs_only_that_source(victim, monkeypatch):
    front, port, behind = victim
    monkeypatch.setattr(front_module, "HALF_OPEN", 8)
    [slow] = await asyncio.to_thread(knock, port, 1, "127.0.0.2")  # honest, and first in line
    await until(lambda: len(front._half_open) == 1)
    flood = await asyncio.to_thread(knock, port, 30)
    await until(lambda: len(behind.refused) == 23)
    assert "127.0.0.2" in front._half_open.values()
    assert all(error.message.startswith("127.0.0.1 keeps") for error in behind.refused)
    for one in (slow, *flood):
        one.close()


async def test_finished_handshakes_take_no_place(victim, guest, monkeypatch):
    front, port, behind = victim
    monkeypatch.setattr(front_module, "HALF_OPEN", 2)
    open_ones = [await asyncio.open_connection("127.0.0.1", port, ssl=guest) for _ in range(6)]
    await until(lambda: len(behind.reached) == 6)
    assert behind.refused == []
    assert front._half_open == {}
    for _, writer in open_ones:
        writer.transport.abort()


async def opened(port, context, count, source="127.0.0.1"):
    """Connections that have ended their handshake and stay."""
    return [
        await asyncio.open_connection("127.0.0.1", port, ssl=context, local_addr=(source, 0))
        for _ in range(count)
    ]


async def alive(stream):
    reader, writer = stream
    try:
        writer.write(b"hello")
        return await reader.readexactly(5) == b"hello"
    except (OSError, asyncio.IncompleteReadError):
        return False


def hang_up(streams):
    for _, writer in streams:
        writer.transport.abort()


async def test_idle_connections_of_one_node_make_way_for_its_own(victim, guest, tmp_path, monkeypatch):
    front, port, behind = victim
    monkeypatch.setattr(front_module, "PER_SOURCE", 4)
    other = raw_context(made(tmp_path / "other", dns("other.shandong.cn")))
    found = await opened(port, other, 1) + await opened(port, guest, 4)
    assert behind.refused == []
    found += await opened(port, guest, 2)
    await until(lambda: len(behind.refused) == 2 and len(front._served) == 5)
    assert [await alive(one) for one in found] == [True, False, False, True, True, True, True]
    assert set(behind.said()) == {("RESOURCE_EXHAUSTED", "TDN-T-LIM-03")}
    assert behind.refused[0].message == f"{CLIENT} keeps 4 connections, its oldest one ends"
    hang_up(found)
    await until(lambda: not front._served and not front._served)


async def test_all_places_taken_the_busiest_source_makes_way(tmp_path, monkeypatch):
    async with fronted(tmp_path / "f", mutual=False) as (front, port, behind):
        front._places = 4
        [first] = await opened(port, raw_context(), 1, "127.0.0.2")
        flood = await opened(port, raw_context(), 6)
        await until(lambda: len(behind.refused) == 3 and len(front._served) == 4)
        assert await alive(first)
        assert all(error.message.startswith("127.0.0.1 keeps") for error in behind.refused)
        hang_up([first, *flood])


async def test_a_connection_of_the_enrolment_front_has_an_end(tmp_path):
    async with fronted(tmp_path / "f", mutual=False, life_s=0.05) as (front, port, _):
        [(reader, writer)] = await opened(port, raw_context(), 1)
        async with asyncio.timeout(5):
            with contextlib.suppress(OSError):
                assert await reader.read() == b""
        await until(lambda: not front._served and not front._served)
        writer.transport.abort()


async def test_a_connection_does_not_outlive_its_certificate(victim, guest):
    front, port, behind = victim
    [stream] = await opened(port, guest, 1)
    await until(lambda: front._served)
    [peer] = front._peers.values()
    front.drop_expired(peer.expires_at_ms - 1)
    assert await alive(stream)
    front.drop_expired(peer.expires_at_ms)
    assert behind.said() == [("CERTIFICATE_EXPIRED", "TDN-T-IDN-01")]
    assert not await alive(stream)
    await until(lambda: not front._peers and not front._served)
    hang_up([stream])


async def test_a_hello_without_end_is_cut_off(victim, guest):
    _, port, behind = victim
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    # Handshake records that announce a ClientHello of 16 MiB - 1 (the field has 24 bits) and go on and on.
    writer.write(b"\x16\x03\x01\x40\x00\x01\xff\xff\xff\x03\x03" + bytes(0x4000 - 6))
    sent = 0
    with pytest.raises(OSError):
        while sent < 64 << 20:
            writer.write(b"\x16\x03\x03\x40\x00" + bytes(0x4000))
            await writer.drain()
            sent += 0x4000
    assert sent < 16 << 20
    writer.transport.abort()
    await until(lambda: behind.refused)
    assert len(behind.refused) == 1
    assert behind.reached == []
    assert await exchange(port, guest) == b"hello"


def hello_bytes(context):
    """The ClientHello of a context."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="x")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def reset(stream):
    """Close with RST."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.close()


async def test_a_reset_in_every_phase_of_the_handshake(victim, guest):
    front, port, behind = victim
    hello = hello_bytes(guest)
    for length in [0, 1, 4, 5, 6, len(hello) // 2, len(hello) - 1, len(hello)]:
        for end in (reset, socket.socket.close):
            stream = socket.create_connection(("127.0.0.1", port))
            stream.sendall(hello[:length])
            if length == len(hello):
                await asyncio.to_thread(stream.recv, 1)  # the server has answered
            before = len(behind.refused)
            end(stream)
            await until(lambda before=before: len(behind.refused) == before + 1)
    assert set(behind.said()) == {("UNREACHABLE", "TDN-T-ENC-03")}
    assert behind.reached == []
    assert len(front._tasks) == 1  # the listener
    assert await exchange(port, guest) == b"hello"


async def test_a_reset_after_the_handshake_ends_both_sides(victim, guest):
    front, port, behind = victim
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=guest)
    await until(lambda: behind.reached)
    reset_socket = writer.get_extra_info("socket")
    reset_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    await until(lambda: behind.reached[0].is_closing() and not front._served)
    assert front._peers == {}


async def test_200_connections_leave_nothing(victim, guest, tmp_path):
    front, port, behind = victim
    good, bad = guest, raw_context()
    await exchange(port, good)
    await until(lambda: not front._served)
    before = fds()
    for context in [good, bad] * 100:
        await exchange(port, context)
    await until(lambda: not front._served and len(front._tasks) == 1)
    await until(lambda: fds() <= before)
    assert front._peers == {}
    assert front._raw == set()
    assert len(behind.reached) == 101
    assert set(os.listdir(tmp_path / "f")) == {"b.sock", "victim"}


async def test_close_ends_handshakes_and_connections(tmp_path, guest):
    async with fronted(tmp_path / "f") as (front, port, behind):
        before = fds()
        silent = socket.create_connection(("127.0.0.1", port))
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=guest)
        await until(lambda: behind.reached and len(front._half_open) == 1)
        await front.close()
        assert silent.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        writer.transport.abort()
        silent.close()
        await until(lambda: fds() <= before)


async def test_names_of_a_killed_process_are_reused(tmp_path, guest):
    folder = tmp_path / "f"
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as leftover:
        leftover.bind(str(folder / "b-in1"))
    async with fronted(folder) as (_, port, _behind):
        assert await exchange(port, guest) == b"hello"
    assert not (folder / "b-in1").exists()


async def test_a_stopped_server_behind_ends_the_connection(victim, guest, tmp_path):
    front, port, behind = victim
    (tmp_path / "f" / "b.sock").unlink()
    assert isinstance(await exchange(port, guest), Exception)
    await until(lambda: len(front._tasks) == 1)
    assert front._peers == {}
    assert behind.refused == []


async def test_the_listener_outlives_a_lack_of_descriptors(victim, guest, monkeypatch):
    _, port, behind = victim
    loop = asyncio.get_running_loop()
    honest, failed = loop.sock_accept, []

    async def accept(listener):
        if len(failed) < 2:
            failed.append(1)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return await honest(listener)

    monkeypatch.setattr(front_module, "ACCEPT_REST_S", 0)
    monkeypatch.setattr(loop, "sock_accept", accept)
    assert await exchange(port, guest) == b"hello"  # taken by the accept that was already waiting
    assert await exchange(port, guest) == b"hello"
    assert behind.said() == [("UNREACHABLE", "TDN-T-ENC-03")] * 2
    assert "Too many open files" in behind.refused[0].message


async def test_a_slow_reader_holds_back_the_sender(victim, guest):
    """Neither side of the front piles up more than its limit."""
    _, port, behind = victim
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=guest)
    await until(lambda: behind.reached)
    inner = behind.reached[0]
    inner.pause_reading()
    sent, block = 0, bytes(1 << 20)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            while True:
                writer.write(block)
                await writer.drain()
                sent += len(block)
    held = 2 * pump.READ_BYTES + (4 << 20)  # our limit, and what the kernel's buffers take
    assert sent < held + (16 << 20)
    writer.transport.abort()
