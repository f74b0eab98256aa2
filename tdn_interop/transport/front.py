"""The one TLS front: real certificates outside, clear-text gRPC on a private unix socket inside.

Whatever the bytes came over, a TCP connection or a tunnel, they arrive here as a socket. The front
does mutual TLS 1.3 on it and only then opens a connection to the gRPC server behind it. Each such
connection has its own unix socket name, so that `context.peer()` of a handler leads back to the
verified certificate: a handler never has to believe a message about who sent it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

from tdn_interop.errors import Reason, TdnError, Unavailable, guard
from tdn_interop.transport import tls
from tdn_interop.transport.pki import PeerCertificate

HANDSHAKE_S = 10.0
# Handshakes that may run at once; more wait in the listen queue of the kernel.
HALF_OPEN = 64
# Bytes kept for a slow reader before the fast side is paused.
HIGH_WATER = 4 << 20

ContextFactory = Callable[[], ssl.SSLContext]
Refusal = Callable[[TdnError], None]


class Pipe(asyncio.Protocol):
    """Copies bytes to its mate and pauses its own side while the mate is full."""

    def __init__(self, on_broken: Refusal | None = None, other: str = "") -> None:
        self.transport: asyncio.Transport | None = None
        self._mate: Pipe | None = None
        self.early: list[bytes] = []
        self._on_broken = on_broken
        self._other = other

    def join(self, mate: Pipe) -> None:
        """From now on bytes flow both ways."""
        self._mate, mate._mate = mate, self
        for one in (self, mate):
            for data in one.early:
                one.data_received(data)
            one.early.clear()
            if one.transport is None or one.transport.is_closing():
                one.connection_lost(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = transport  # type: ignore[assignment]  # asyncio hands out a Transport for streams
        self.transport.set_write_buffer_limits(HIGH_WATER)  # type: ignore[union-attr]  # set one line above

    def data_received(self, data: bytes) -> None:
        """Hand on, or keep until joined (at most one read: reading is paused by TLS until then)."""
        if self._mate is None:
            self.early.append(data)
        elif self._mate.transport is not None:
            self._mate.transport.write(data)

    def pause_writing(self) -> None:
        """Our side is full: the mate stops reading."""
        if self._mate and self._mate.transport:
            self._mate.transport.pause_reading()

    def resume_writing(self) -> None:
        """Our side has room again."""
        if self._mate and self._mate.transport:
            self._mate.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Close the mate; a broken TLS stream is a refusal that somebody has to hear of."""
        if isinstance(exc, ssl.SSLError) and self._on_broken:
            self._on_broken(tls.explain(exc, self._other))
        if self._mate and self._mate.transport:
            self._mate.transport.close()


class Front:
    """The listening side. `backend` is the unix socket of the gRPC server; `folder` is private (0700)."""

    def __init__(self, context: ContextFactory, backend: Path, folder: Path, on_refusal: Refusal) -> None:
        self._context = context
        self._backend = backend
        self._folder = folder
        self._on_refusal = on_refusal
        self._peers: dict[str, PeerCertificate | None] = {}
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._half_open = asyncio.Semaphore(HALF_OPEN)
        self._pipes: set[Pipe] = set()

    def peer(self, grpc_peer: str) -> PeerCertificate:
        """The certificate behind `context.peer()`. Errors: UNAUTHENTICATED."""
        found = self._peers.get(grpc_peer)
        if found is None:
            guard("TDN-T-IDN-01").refuse(
                Reason.UNAUTHENTICATED, "this connection has no verified certificate"
            )
        return found

    async def listen(self, host: str, port: int) -> int:
        """Accept TCP connections until the node stops; the port that was bound. Errors: UNREACHABLE."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        try:
            listener.bind((host, port))
        except OSError as error:
            listener.close()
            guard("TDN-X-LAB-05").refuse(
                Reason.CONFIG_INVALID, f"cannot listen on {host}:{port}: {error.strerror}", Unavailable
            )
        listener.listen(1024)
        self._spawn(self._accept(listener))
        bound: int = listener.getsockname()[1]
        return bound

    def take(self, stream: socket.socket, origin: str) -> None:
        """Serve TLS on a connected socket, such as the end of a tunnel; `origin` is only for the log."""
        self._spawn(self._serve(stream, origin))

    async def close(self) -> None:
        """Stop accepting and close every connection."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for pipe in list(self._pipes):
            if pipe.transport:
                pipe.transport.abort()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                stream, address = await loop.sock_accept(listener)
                await self._half_open.acquire()
                self._spawn(self._serve(stream, f"{address[0]}:{address[1]}", self._half_open))

    async def _serve(self, stream: socket.socket, origin: str, slot: asyncio.Semaphore | None = None) -> None:
        try:
            outer, peer = await self._handshake(stream, origin)
        except (OSError, TdnError, TimeoutError) as error:
            stream.close()
            self._on_refusal(tls.explain(error, origin))
            return
        finally:
            if slot:
                slot.release()
        await self._connect(outer, peer)

    async def _handshake(self, stream: socket.socket, origin: str) -> tuple[Pipe, PeerCertificate | None]:
        stream.setblocking(False)
        context = self._context()
        outer = Pipe(self._on_refusal, origin)
        transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
            lambda: outer, stream, ssl=context, ssl_handshake_timeout=HANDSHAKE_S
        )
        if context.verify_mode is ssl.CERT_NONE:
            return outer, None
        try:
            return outer, tls.peer_certificate(transport.get_extra_info("ssl_object"))
        except TdnError:
            transport.abort()
            raise

    async def _connect(self, outer: Pipe, peer: PeerCertificate | None) -> None:
        loop = asyncio.get_running_loop()
        name = self._folder / f"in{next(self._numbers)}"
        inside = socket.socket(socket.AF_UNIX)
        inside.setblocking(False)
        inside.bind(str(name))
        key = f"unix:{name}"
        self._peers[key] = peer
        try:
            await loop.sock_connect(inside, str(self._backend))
            _, inner = await loop.create_unix_connection(lambda: _Inner(self, key), sock=inside)
        except OSError:
            inside.close()
            self._forget(key)
            if outer.transport:
                outer.transport.abort()
            return
        finally:
            # gRPC has read the name by now or never will; a name left behind would only litter.
            name.unlink(missing_ok=True)
        self._pipes.update((outer, inner))
        inner.outer = outer
        outer.join(inner)

    def _forget(self, key: str) -> None:
        self._peers.pop(key, None)

    def _spawn(self, work: asyncio.Future[None] | object) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)  # type: ignore[arg-type]  # always a coroutine of ours
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Inner(Pipe):
    """The side towards gRPC: when it ends, the certificate behind its name is forgotten."""

    def __init__(self, front: Front, key: str) -> None:
        super().__init__()
        self._front = front
        self._key = key
        self.outer: Pipe | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._front._forget(self._key)  # noqa: SLF001  two halves of one room
        self._front._pipes.difference_update((self, self.outer))  # noqa: SLF001


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected non-blocking sockets: one end for the front, one for the pump of a tunnel."""
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    return near, far


async def connect_tcp(host: str, port: int, timeout_s: float) -> socket.socket:
    """A connected socket. Errors: UNREACHABLE, DEADLINE."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_s):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            stream = socket.socket(found[0][0], socket.SOCK_STREAM)
            stream.setblocking(False)
            try:
                await loop.sock_connect(stream, found[0][4])
            except BaseException:
                stream.close()
                raise
    except TimeoutError:
        guard("TDN-T-DDL-02").refuse(Reason.DEADLINE, f"{host}:{port} did not answer", Unavailable)
    except OSError as error:
        guard("TDN-T-ENC-03").refuse(
            Reason.UNREACHABLE, f"{host}:{port}: {error.strerror or error}", Unavailable
        )
    with contextlib.suppress(OSError):  # a unix socket has no such option
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stream
