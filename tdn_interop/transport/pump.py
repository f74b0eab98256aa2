"""TLS on one socket, clear text on another, and the bytes between them.

asyncio has TLS, too, but copies each byte several times more and moves it in pieces of 256 KiB at most; what costs
most of a piece is waking everybody on its way (docs/design/0006-speed-of-the-channel.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Callable

from tdn_interop.transport import tls

# Bytes moved at once: a frame of 1 MiB with what gRPC and TLS put around its parts, so that no rest of it goes alone.
# What was read is handed on before more is read: a connection holds about twice as much at most.
READ_BYTES = (1 << 20) + (1 << 16)
# What the kernel may keep for us on a unix socket, if its own limit allows that (socket(7), net.core.wmem_max).
SEND_BYTES = 2 << 20
# A connection that has carried so much is worth a search for the socket of gRPC.
WIDEN_AFTER = 8 << 20
# How long the other side may take to end after we have.
LINGER_S = 5.0
# A side that has taken no byte for so long never will: gRPC reads whatever comes, so nobody waits on purpose.
STALL_S = 60.0
# What TLS may say by itself to a side that does not read: some thousand answers to requests for new keys, 27 bytes each.
ANSWER_BYTES = 1 << 16

_NOTHING = memoryview(b"")


class _Scratch(threading.local):
    """One buffer per event loop, that is per thread; a pump needs it within one callback only."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(READ_BYTES))


_scratch = _Scratch()


def widen(stream: socket.socket) -> None:
    """Let a unix socket take a whole message at once; by default it takes 208 KiB."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)


def widen_peers_of(name: str) -> None:
    """`widen` for the sockets of this process whose other end has the unix socket name `name`.

    They are gRPC's, which has no option for it. Looking through all descriptors takes a millisecond per thousand.
    """
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208  a special folder; only names are wanted
        with contextlib.suppress(OSError):  # no socket, not connected, or closed meanwhile
            found = socket.socket(fileno=int(entry))
            try:
                if found.family == socket.AF_UNIX and found.getpeername() == name:
                    widen(found)
            finally:
                found.detach()


class TlsStream:
    """TLS over a connected socket that does not block. After the handshake a `Pump` reads and writes it.

    `server_hostname` makes us the dialling side.
    """

    def __init__(
        self, stream: socket.socket, context: ssl.SSLContext, server_hostname: str | None = None
    ) -> None:
        self.socket = stream
        self.arrived, self.leaving = ssl.MemoryBIO(), ssl.MemoryBIO()  # records of the other side, and ours
        self.tls = context.wrap_bio(
            self.arrived, self.leaving, server_side=server_hostname is None, server_hostname=server_hostname
        )
        self.ended = False

    async def shake_hands(self) -> None:
        """Do the handshake; whom we refuse is told by an alert. Errors: ssl.SSLError, OSError."""
        loop = asyncio.get_running_loop()
        done = False
        while not done:
            try:
                with contextlib.suppress(ssl.SSLWantReadError):
                    self.tls.do_handshake()
                    done = True
            except ssl.SSLError:
                self._alert()
                raise
            if self.leaving.pending:
                await loop.sock_sendall(self.socket, self.leaving.read())
            if not done:
                self.arrived.write(await self._more(loop))

    async def _more(self, loop: asyncio.AbstractEventLoop) -> bytes:
        data = await loop.sock_recv(self.socket, 1 << 16)
        if not data:
            raise ConnectionResetError
        return data

    def _alert(self) -> None:
        """Otherwise the other side would look for a firewall instead of at its certificate."""
        with contextlib.suppress(OSError):  # it may be gone, or not listen
            self.socket.send(self.leaving.read())

    def read(self, into: memoryview) -> int:
        """Clear text that has arrived, as much as there is and fits; 0 for none. Errors: ssl.SSLError.

        After an orderly end (close_notify) `ended` is true.
        """
        size = 0
        with contextlib.suppress(ssl.SSLWantReadError):
            while size < len(into):
                got = self.tls.read(len(into) - size, into[size:])  # one record at a time
                if not got:
                    self.ended = True
                    break
                size += int(got)
        return size

    def write(self, data: memoryview) -> None:
        """Clear text that is to leave."""
        while data:
            data = data[self.tls.write(data) :]


class Pump:
    """Carries bytes both ways between `outer` and the clear-text socket `inside` until either side ends.

    A side that is full stops the reading of the other. `name` is the unix socket name that gRPC's end of `inside` is
    connected to. `on_broken` hears of records that TLS cannot read, `on_end` of the end, once.
    """

    def __init__(
        self, outer: TlsStream, inside: socket.socket, name: str, on_broken: Callable[[ssl.SSLError], None],
        on_end: Callable[[Pump], None],
    ) -> None:  # fmt: skip
        self._outer = outer
        self._outside = outer.socket
        self._inside = inside
        self.name = name
        self._on_broken = on_broken
        self._on_end = on_end
        self._to_outside = self._to_inside = _NOTHING  # taken, and the kernel was full
        self._outside_over = self._inside_over = False
        self._farewell: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._left = 0  # bytes that have left
        self._armed: dict[tuple[socket.socket, bool], Callable[[], None]] = {}
        self._until_wide = WIDEN_AFTER
        self._ended = False

    def start(self) -> None:
        """Begin, with what came together with the handshake."""
        widen(self._inside)
        self._do(self._decrypt)

    def end(self) -> None:
        """Close both sides now; safe to call again."""
        if self._ended:
            return
        self._ended = True
        self._arm({})
        for timer in (self._farewell, self._watch):
            if timer:
                timer.cancel()
        self._outside.close()
        self._inside.close()
        self._on_end(self)

    def _do(self, step: Callable[[], None]) -> None:
        try:
            with contextlib.suppress(BlockingIOError):
                step()
            self._settle()
        except ssl.SSLError as error:
            self._on_broken(error)
            self.end()  # without an alert: the one who was deceived records it, and the other end has done nothing
        except OSError:  # a side is gone
            self.end()

    def _settle(self) -> None:
        """Whatever has happened: end if all is said, else wait for what can happen next. Errors: ssl.SSLError."""
        if self._outer.leaving.pending > ANSWER_BYTES:
            raise ssl.SSLError(tls.UNREAD)
        if self._outside_over and not self._to_inside:
            self.end()
            return
        if self._inside_over and not self._to_outside and not self._farewell:
            self._outside.shutdown(socket.SHUT_WR)
            self._farewell = asyncio.get_running_loop().call_later(LINGER_S, self.end)
        if self._to_outside and not self._watch:
            self._look_after(self._left)
        wanted: dict[tuple[socket.socket, bool], Callable[[], None]] = {}
        if not self._to_inside and not self._outside_over:
            wanted[self._outside, False] = self._take_records
        if not self._to_outside and not self._inside_over:
            wanted[self._inside, False] = self._take_clear
        if self._to_outside:
            wanted[self._outside, True] = self._send_records
        if self._to_inside:
            wanted[self._inside, True] = self._send_clear
        self._arm(wanted)

    def _look_after(self, left: int) -> None:
        """After `STALL_S` end if no more than `left` bytes have left by then."""
        self._watch = asyncio.get_running_loop().call_later(STALL_S, self._look, left)

    def _look(self, left: int) -> None:
        self._watch = None
        if not self._to_outside:
            return
        if self._left == left:
            self.end()
        else:
            self._look_after(self._left)

    def _arm(self, wanted: dict[tuple[socket.socket, bool], Callable[[], None]]) -> None:
        loop, armed, self._armed = asyncio.get_running_loop(), self._armed, wanted
        for stream, writing in armed.keys() - wanted.keys():
            (loop.remove_writer if writing else loop.remove_reader)(stream)
        for stream, writing in wanted.keys() - armed.keys():
            add = loop.add_writer if writing else loop.add_reader
            add(stream, self._do, wanted[stream, writing])

    # -- from outside ------------------------------------------------------------------------------

    def _take_records(self) -> None:
        view = _scratch.view
        size = self._outside.recv_into(view)
        if not size:
            self._outside_over = True
        elif not self._inside_over:  # otherwise nobody wants it any more
            self._outer.arrived.write(view[:size])
            self._decrypt()

    def _decrypt(self) -> None:
        view = _scratch.view
        while not self._to_inside and (size := self._outer.read(view)):
            self._deliver(view[:size])
        self._outside_over = self._outside_over or self._outer.ended
        self._send_records()  # TLS may have something to say by itself

    def _deliver(self, data: memoryview) -> None:
        sent = _send(self._inside, data)
        if sent < len(data):
            self._to_inside = memoryview(bytes(data[sent:]))

    def _send_clear(self) -> None:
        self._to_inside = self._to_inside[_send(self._inside, self._to_inside) :]
        self._decrypt()

    # -- from inside -------------------------------------------------------------------------------

    def _take_clear(self) -> None:
        view = _scratch.view
        size = self._inside.recv_into(view)
        if size:
            self._outer.write(view[:size])
            self._count(size)
        else:
            self._leave()
        self._send_records()

    def _leave(self) -> None:
        self._inside_over = True
        self._to_inside = _NOTHING
        # It says close_notify, and fails because the other side has not said it yet; nobody waits for that.
        with contextlib.suppress(ssl.SSLError):
            self._outer.tls.unwrap()

    def _send_records(self) -> None:
        leaving = self._outer.leaving
        while self._to_outside or leaving.pending:
            data = self._to_outside or memoryview(leaving.read())
            sent = _send(self._outside, data)
            self._left += sent
            self._to_outside = data[sent:]
            if self._to_outside:
                return

    def _count(self, size: int) -> None:
        """Once a connection turns out to be busy, gRPC gets as much room as we have."""
        before, self._until_wide = self._until_wide, self._until_wide - size
        if before > 0 >= self._until_wide:
            widen_peers_of(self.name)


def _send(stream: socket.socket, data: memoryview) -> int:
    try:
        return stream.send(data)
    except BlockingIOError:
        return 0
