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
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path

from tdn_interop.errors import Reason, Refused, TdnError, Unavailable, guard
from tdn_interop.transport import descriptors, tls
from tdn_interop.transport.pki import PeerCertificate
from tdn_interop.transport.pump import Pump, TlsStream, widen

HANDSHAKE_S = 10.0
# Handshakes that may run at once on a listener; beyond, the oldest one of the busiest source gives way.
HALF_OPEN = 256
# Connections after the handshake: of one node (of one address where nobody shows a certificate), and of all as far as
# descriptors allow. Beyond, the oldest one of the busiest source gives way: a node that comes back finds room.
PER_SOURCE = 32
CONNECTIONS = 4096
# What a connection takes: itself, and both sides of the way to gRPC.
DESCRIPTORS = 3
# How long a listener rests when a connection cannot be accepted, for instance for want of descriptors.
ACCEPT_REST_S = 0.2
# How long a node that is refused may stay: long enough to be told why.
TELL_S = 1.0

ContextFactory = Callable[[], ssl.SSLContext]
Refusal = Callable[[TdnError], None]


class Front:
    """The listening side. `backend` is the unix socket of the gRPC server; `folder` is private (0700).

    `life_s` is how long a connection may last, None for ever.
    """

    def __init__(
        self, context: ContextFactory, backend: Path, folder: Path, on_refusal: Refusal,
        life_s: float | None = None,
    ) -> None:  # fmt: skip
        self._context = context
        self._backend = backend
        self._folder = folder
        self._on_refusal = on_refusal
        self._peers: dict[str, PeerCertificate | None] = {}
        self._sources: dict[str, str] = {}  # node, or the address where nobody shows a certificate
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        # Handshake -> address it comes from, oldest first.
        self._half_open: dict[asyncio.Task[None], str] = {}
        self._life_s = life_s
        self._places = min(CONNECTIONS, descriptors.room(0.25, DESCRIPTORS))
        # Connection -> node or address it comes from, oldest first.
        self._served: dict[Pump, str] = {}
        self._raw: set[socket.socket] = set()  # accepted, and not yet a pump's
        # Why a node is refused although its certificate is good; asked at the handshake, at each call and by sweeps.
        self.refusal: Callable[[str], TdnError | None] = lambda _node: None

    def peer(self, grpc_peer: str) -> PeerCertificate:
        """The certificate behind `context.peer()`. Errors: UNAUTHENTICATED, REVOKED."""
        found = self._peers.get(grpc_peer)
        if found is None:
            guard("TDN-T-IDN-01").refuse(
                Reason.UNAUTHENTICATED, "this connection has no verified certificate"
            )
        if refusal := self.refusal(found.node):
            raise refusal
        return found

    def source(self, grpc_peer: str) -> str:
        """The node behind `context.peer()`, or its address where nobody shows a certificate; empty when it is gone."""
        return self._sources.get(grpc_peer, "")

    def expires_at_ms(self, node: str) -> int:
        """End of the latest certificate that `node` has shown on a connection that stands; 0 without one."""
        shown = (peer.expires_at_ms for peer in self._peers.values() if peer and peer.node == node)
        return max(shown, default=0)

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
        self._raw.add(stream)
        self._spawn(self._serve(stream, origin))

    async def close(self) -> None:
        """Stop accepting and close every connection."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for stream in self._raw:
            stream.close()
        for pump in list(self._served):
            pump.end()

    def drop_expired(self, now_ms: int) -> None:
        """End the connections whose certificate has expired; each one is a refusal."""
        for pump in list(self._served):
            peer = self._peers.get(_key(pump.name))
            if peer and peer.expires_at_ms <= now_ms:
                pump.end()
                self._on_refusal(expired(peer))

    def drop_refused(self) -> None:
        """End the connections of nodes that are refused by now; each one is a refusal."""
        for pump in list(self._served):
            peer = self._peers.get(_key(pump.name))
            if peer and (refusal := self.refusal(peer.node)):
                pump.end()
                self._on_refusal(refusal)

    def begin_anew(self) -> None:
        """End every connection; who is still welcome comes back."""
        for pump in list(self._served):
            pump.end()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                try:
                    stream, address = await loop.sock_accept(listener)
                except OSError as error:
                    self._on_refusal(tls.explain(error, "a connection could not be accepted"))
                    await asyncio.sleep(ACCEPT_REST_S)
                    continue
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._make_room()
                self._raw.add(stream)
                task = self._spawn(self._serve(stream, f"{address[0]}:{address[1]}"))
                self._half_open[task] = address[0]
                task.add_done_callback(lambda done: self._half_open.pop(done, None))
                await asyncio.sleep(0)  # a turn for the others: accepting does not wait under a flood

    def _make_room(self) -> None:
        """So that nobody locks others out by handshakes that never end (RFC 4987 section 3.3)."""
        if len(self._half_open) < HALF_OPEN:
            return
        busiest, count = Counter(self._half_open.values()).most_common(1)[0]
        oldest = next(task for task, source in self._half_open.items() if source == busiest)
        del self._half_open[oldest]
        oldest.cancel()
        words = f"{busiest} keeps {count} TLS handshakes unfinished"
        self._on_refusal(Refused(Reason.RESOURCE_EXHAUSTED, words, "TDN-T-LIM-03"))

    async def _serve(self, stream: socket.socket, origin: str) -> None:
        try:
            outer, peer = await self._handshake(stream)
            life_s = self._life_s
            if peer and (refusal := self.refusal(peer.node)):
                self._on_refusal(refusal)
                life_s = TELL_S  # no handler serves it; its first call is told why
            await self._connect(outer, peer, origin, life_s)
        except (OSError, TdnError) as error:
            stream.close()
            self._on_refusal(tls.explain(error, origin))
        except asyncio.CancelledError:
            stream.close()
            raise
        finally:
            self._raw.discard(stream)

    async def _handshake(self, stream: socket.socket) -> tuple[TlsStream, PeerCertificate | None]:
        stream.setblocking(False)
        context = self._context()
        outer = TlsStream(stream, context)
        async with asyncio.timeout(HANDSHAKE_S):
            await outer.shake_hands()
        anonymous = context.verify_mode is ssl.CERT_NONE
        return outer, None if anonymous else tls.peer_certificate(outer.tls)

    async def _connect(
        self, outer: TlsStream, peer: PeerCertificate | None, origin: str, life_s: float | None
    ) -> None:
        loop = asyncio.get_running_loop()
        # Other fronts of the node have their sockets in the same folder.
        name = self._folder / f"{self._backend.stem}-in{next(self._numbers)}"
        name.unlink(missing_ok=True)  # of a process that was killed
        source = peer.node if peer else origin.rpartition(":")[0]
        inside = socket.socket(socket.AF_UNIX)
        inside.setblocking(False)
        key = _key(str(name))
        self._peers[key], self._sources[key] = peer, source
        try:
            inside.bind(str(name))
            await loop.sock_connect(inside, str(self._backend))
        except (OSError, asyncio.CancelledError) as error:
            inside.close()
            outer.socket.close()
            self._forget(key)
            if isinstance(error, OSError):  # the server behind has stopped
                return
            raise
        finally:
            # gRPC has read the name by now or never will; a name left behind would only litter.
            name.unlink(missing_ok=True)
        self._give_way(source)
        pump = Pump(
            outer, inside, str(name), lambda error: self._on_refusal(tls.broken(error, origin)), self._ended
        )
        self._served[pump] = source
        if life_s:
            loop.call_later(life_s, pump.end)
        pump.start()

    def _give_way(self, source: str) -> None:
        """Make room for one more connection of `source`."""
        counts = Counter(self._served.values())
        if counts[source] < PER_SOURCE and len(self._served) < self._places:
            return
        busiest = source if counts[source] >= PER_SOURCE else counts.most_common(1)[0][0]
        next(one for one, of in self._served.items() if of == busiest).end()
        words = f"{busiest} keeps {counts[busiest]} connections, its oldest one ends"
        self._on_refusal(Refused(Reason.RESOURCE_EXHAUSTED, words, "TDN-T-LIM-03"))

    def _ended(self, pump: Pump) -> None:
        self._served.pop(pump, None)
        self._forget(_key(pump.name))

    def _forget(self, key: str) -> None:
        self._peers.pop(key, None)
        self._sources.pop(key, None)

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _key(name: str) -> str:
    """What gRPC calls the peer whose unix socket has this name."""
    return f"unix:{name}"


def expired(peer: PeerCertificate) -> Refused:
    """The refusal of a connection or session that outlives the certificate it began with."""
    words = f"the certificate of {peer.node} has expired"
    return Refused(Reason.CERTIFICATE_EXPIRED, words, "TDN-T-IDN-01")


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected non-blocking sockets: one end for TLS, one for the pump of a tunnel. Errors: RESOURCE_EXHAUSTED."""
    try:
        near, far = socket.socketpair()
    except OSError as error:  # no descriptors are left
        words = f"a tunnel has no end here: {error.strerror}"
        guard("TDN-T-LIM-03").refuse(Reason.RESOURCE_EXHAUSTED, words, Unavailable)
    for one in (near, far):
        one.setblocking(False)
        widen(one)
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
