"""The pump between TLS and clear text: every byte once and in order, whatever the kernel takes at a time."""

import asyncio
import os
import socket

import pytest

from tdn_interop.errors import Reason
from tdn_interop.transport import pump, tls
from tdn_interop.transport.pump import Pump, TlsStream, widen_peers_of
from tests.interop.forge import until
from tests.interop.fronts import CLIENT, VICTIM, dns, made

MEGABYTES = os.urandom(3 << 20)


def pair():
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    return near, far


class Ends:
    """Two pumps with TLS between them; `a` and `b` are the clear-text sockets at either end."""

    def __init__(self):
        self.broken, self.ended = [], []

    async def start(self, folder, between=None):
        dialled, listened = between or pair()
        self.listened = listened
        client = TlsStream(dialled, tls.client_context(made(folder / "c", dns(CLIENT))), VICTIM)
        server = TlsStream(listened, tls.server_context(made(folder / "v", dns(VICTIM))))
        await asyncio.gather(client.shake_hands(), server.shake_hands())
        self.streams = client, server
        (self.a, inside_a), (self.b, inside_b) = pair(), pair()
        self.pumps = [
            Pump(stream, inside, "", self.broken.append, self.ended.append)
            for stream, inside in zip(self.streams, (inside_a, inside_b), strict=True)
        ]
        for one in self.pumps:
            one.start()
        return self


@pytest.fixture
async def ends(tmp_path):
    one = await Ends().start(tmp_path)
    yield one
    for each in one.pumps:
        each.end()
    for stream in (one.a, one.b):
        stream.close()


async def across(source, target, data, pause=lambda: asyncio.sleep(0)):
    loop, got = asyncio.get_running_loop(), bytearray()
    sending = asyncio.create_task(loop.sock_sendall(source, data))
    while len(got) < len(data):
        got += await loop.sock_recv(target, 77_777)
        await pause()
    await sending
    assert bytes(got) == data


async def test_both_directions_at_once(ends):
    await asyncio.gather(across(ends.a, ends.b, MEGABYTES), across(ends.b, ends.a, MEGABYTES[::-1]))
    assert ends.ended == ends.broken == []


async def test_what_the_kernel_takes_in_bits(ends, monkeypatch):
    monkeypatch.setattr(pump, "_send", lambda stream, data: stream.send(data[:50_000]))
    await across(ends.a, ends.b, MEGABYTES)


async def test_a_reader_that_stops_stops_the_sender(ends):
    loop, sent = asyncio.get_running_loop(), 0
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            while True:
                sent += await asyncio.wait_for(send_some(loop, ends.a), 0.2)
    most = 2 * (4 * pump.SEND_BYTES + 2 * pump.READ_BYTES)  # the kernel doubles what is asked for (socket(7))
    assert pump.READ_BYTES < sent < most
    got = 0
    while got < sent:  # and nothing is lost
        got += len(await loop.sock_recv(ends.b, 1 << 20))
    assert got == sent


async def send_some(loop, stream):
    while True:
        try:
            return stream.send(bytes(100_000))
        except BlockingIOError:
            writable = loop.create_future()
            loop.add_writer(stream, lambda: writable.done() or writable.set_result(None))
            try:
                await writable
            finally:
                loop.remove_writer(stream)


async def test_the_last_words_arrive(ends):
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(ends.a, MEGABYTES[:100_000])
    ends.a.shutdown(socket.SHUT_WR)
    got = b""
    while data := await loop.sock_recv(ends.b, 1 << 20):
        got += data
    assert got == MEGABYTES[:100_000]
    await until(lambda: len(ends.ended) == 2)
    assert ends.broken == []


async def test_a_side_that_never_ends_is_left(ends, monkeypatch):
    monkeypatch.setattr(pump, "LINGER_S", 0.01)
    ends.pumps[1]._arm({})  # the other side is deaf
    ends.a.close()
    await until(lambda: ends.ended == [ends.pumps[0]])


async def blocked(ends):
    """Nobody reads at b's end; the pump at a's has more than the kernel takes."""
    ends.pumps[1]._arm({})
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await send_some_more(asyncio.get_running_loop(), ends.a)
    assert ends.pumps[0]._to_outside


async def send_some_more(loop, stream):
    while True:
        await send_some(loop, stream)


async def test_a_side_that_takes_nothing_any_more_is_left_although_grpc_has_ended_long_ago(ends):
    await blocked(ends)
    ends.a.close()
    one = ends.pumps[0]
    assert one._watch.when() <= asyncio.get_running_loop().time() + pump.STALL_S
    one._watch.cancel()
    one._look(one._left)  # as the timer does
    assert ends.ended == [one]
    assert ends.broken == []


async def test_a_side_that_is_slow_is_not_left(ends):
    await blocked(ends)
    one, before = ends.pumps[0], ends.pumps[0]._left
    ends.listened.recv(1 << 20)
    await until(lambda: one._left > before)
    one._watch.cancel()
    one._look(before)
    assert not ends.ended
    assert one._watch


async def test_answers_of_tls_to_a_side_that_reads_none_do_not_pile_up(ends):
    """OpenSSL answers each KeyUpdate that asks for one (RFC 8446 section 4.6.3), at once and whoever reads it."""
    await blocked(ends)
    stream = ends.streams[0]
    read, asked = stream.read, 0

    def answering(into):
        nonlocal asked
        asked += 1
        stream.leaving.write(bytes(27))
        return read(into)

    stream.read = answering
    while not ends.ended:
        ends.pumps[1]._outer.write(memoryview(b"as good as a request"))
        ends.listened.send(ends.streams[1].leaving.read())
        await asyncio.sleep(0)
        assert asked * 27 < 2 * pump.ANSWER_BYTES
    assert [tls.broken(error, "b.cn").reason for error in ends.broken] == [Reason.RESOURCE_EXHAUSTED]


async def test_records_that_were_changed_are_told_once(ends):
    ends.listened.send(bytes.fromhex("1703030020") + bytes(32))  # towards the dialling side
    await until(lambda: ends.ended)
    assert len(ends.broken) == 1
    assert ends.ended[0] is ends.pumps[0]


async def test_what_comes_with_the_handshake_is_not_lost(tmp_path):
    near, far = pair()
    client = TlsStream(near, tls.client_context(made(tmp_path / "c", dns(CLIENT))), VICTIM)
    server = TlsStream(far, tls.server_context(made(tmp_path / "v", dns(VICTIM))))
    shaking = asyncio.create_task(server.shake_hands())
    await client.shake_hands()
    client.write(memoryview(b"early"))
    near.send(client.leaving.read())
    await shaking
    while server.tls.pending() == 0 and not server.arrived.pending:
        server.arrived.write(await asyncio.get_running_loop().sock_recv(far, 1 << 16))
    inside, b = pair()
    one = Pump(server, inside, "", lambda _error: None, lambda _pump: None)
    one.start()
    assert await asyncio.get_running_loop().sock_recv(b, 10) == b"early"
    one.end()
    one.end()  # again is harmless
    for stream in (near, b):
        stream.close()


def test_the_other_end_of_a_unix_socket_gets_room(tmp_path):
    name = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as caller:
        listener.bind(name)
        listener.listen()
        caller.connect(name)
        before = caller.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        widen_peers_of(str(tmp_path / "other"))
        assert caller.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == before
        widen_peers_of(name)
        assert caller.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > before
        caller.send(b"x")  # its descriptor is still its own
