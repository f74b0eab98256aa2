"""The dialling side of the front: a gRPC channel whose bytes leave through our own TLS 1.3.

gRPC connects in clear text to a private unix socket; each such connection opens a fresh stream to
the node (TCP or tunnel, the caller decides) and does TLS on it. So reconnecting is gRPC's business,
and what went wrong with TLS keeps its reason.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import structlog

from tdn_interop.errors import Reason, TdnError, Unavailable
from tdn_interop.transport import tls
from tdn_interop.transport.front import ACCEPT_REST_S, HANDSHAKE_S, expired
from tdn_interop.transport.pki import PeerCertificate
from tdn_interop.transport.pump import Pump, TlsStream

# Frames stay at 1 MiB; the default limit of 4 MiB would do, but a peer must get our typed refusal, not gRPC's.
OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.max_send_message_length", 4 << 20),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.enable_http_proxy", 0),
]

Open = Callable[[], Awaitable[socket.socket]]

_numbers = itertools.count(1)
_log = structlog.get_logger("tdn.dial")


@dataclass(frozen=True, slots=True)
class Dialler:
    """What the dialled connections of a node have in common: its certificate, the private folder, who counts calls.

    `refusal` tells why a node is refused although its certificate is good.
    """

    context: Callable[[], ssl.SSLContext]
    folder: Path
    interceptors: tuple[grpc.aio.ClientInterceptor, ...] = ()
    refusal: Callable[[str], TdnError | None] = lambda _node: None


class Dialled:
    """A gRPC channel to `node`; `peer` is the certificate of the newest connection, `error` why the last one failed."""

    def __init__(
        self, node: str, open_stream: Open, dialler: Dialler, options: Sequence[tuple[str, int]] = ()
    ) -> None:
        self.node = node
        self._options = options
        self.peer: PeerCertificate | None = None
        self.error: TdnError | None = None
        self._open = open_stream
        self._dialler = dialler
        self._path = dialler.folder / f"out{next(_numbers)}"
        self._pumps: set[Pump] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._first: TlsStream | None = None  # dialled, and not yet used
        self._started = False
        self.channel: grpc.aio.Channel

    async def start(self, *, dial: bool = True) -> Dialled:
        """Make the channel. With `dial` its first connection is made now, so that its errors are known at once.

        Errors: those of `open_stream`, and why TLS was refused.
        """
        if dial:
            self._first = await self._dial()
        self._path.unlink(missing_ok=True)  # of a process that was killed
        local = socket.socket(socket.AF_UNIX)
        local.setblocking(False)
        local.bind(str(self._path))
        local.listen()
        self._spawn(self._serve(local), local)
        self._started = True
        options = [*OPTIONS, ("grpc.default_authority", self.node), *self._options]
        self.channel = grpc.aio.insecure_channel(
            f"unix:{self._path}", options=options, interceptors=self._dialler.interceptors
        )
        return self

    async def close(self) -> None:
        """Close the channel and every connection under it; nothing when it was never started."""
        if self._started:
            await self.channel.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._end()
        if self._first:
            self._first.socket.close()
        self._path.unlink(missing_ok=True)

    def reason(self, error: BaseException) -> TdnError | None:
        """The typed reason when TLS or the way to the node failed, None when the node itself answered `error`."""
        unavailable = isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.UNAVAILABLE
        return self.error if unavailable else None

    def broken(self, error: TdnError) -> None:
        """An established connection broke: who answered is not in doubt, so dialling again may help."""
        _note(error)
        if error.reason is not Reason.E2E_AUTH_FAILED:  # else: our certificate was refused
            self.error = error

    def drop_expired(self, now_ms: int) -> None:
        """End the connections when the certificate of the node has expired; dialling again asks for a new one."""
        if self.peer and self.peer.expires_at_ms <= now_ms and self._pumps:
            _note(expired(self.peer))
            self._end()

    def drop_refused(self) -> None:
        """End the connections when the node is refused by now; dialling again says why."""
        if self.peer and self._pumps and (refusal := self._dialler.refusal(self.peer.node)):
            _note(refusal)
            self._end()

    def begin_anew(self) -> None:
        """End the connections; what follows begins with the certificates and roots of then."""
        self._end()

    @property
    def stands(self) -> bool:
        """True while there is a connection."""
        return bool(self._pumps)

    async def _serve(self, local: socket.socket) -> None:
        """Carry out each connection that gRPC makes."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                stream, _ = await loop.sock_accept(local)
            except OSError as error:  # no descriptors are left
                _log.warning("not dialled", peer=self.node, message=error.strerror)
                await asyncio.sleep(ACCEPT_REST_S)
            else:
                self._spawn(self._carry(stream), stream)

    def _spawn(self, work: Coroutine[None, None, None], stream: socket.socket) -> None:
        """Run until done; a stream whose work is cancelled is closed, also if the work never began."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda done: stream.close() if done.cancelled() else None)

    async def _carry(self, local: socket.socket) -> None:
        remote, self._first = self._first, None
        try:
            remote = remote or await self._dial()
        except TdnError:
            local.close()
            return
        pump = Pump(
            remote, local, str(self._path), lambda error: self.broken(tls.broken(error, self.node)),
            self._pumps.discard,
        )  # fmt: skip
        self._pumps.add(pump)
        pump.start()

    async def _dial(self) -> TlsStream:
        """A verified connection to the node."""
        stream: socket.socket | None = None
        try:
            context = self._dialler.context()
            stream = await self._open()
            remote = TlsStream(stream, context, self.node)
            async with asyncio.timeout(HANDSHAKE_S):
                await remote.shake_hands()
            self.peer = tls.peer_certificate(remote.tls)
            if refusal := self._dialler.refusal(self.peer.node):
                raise refusal
        except (OSError, TdnError, asyncio.CancelledError) as error:
            if stream:
                stream.close()
            if isinstance(error, asyncio.CancelledError):
                raise
            self.error = tls.explain(error, self.node)
            if not isinstance(self.error, Unavailable):
                _note(self.error)  # gRPC dials again before our caller hears of it
            raise self.error from error
        self.error = None
        return remote

    def _end(self) -> None:
        for pump in list(self._pumps):
            pump.end()


def _note(error: TdnError) -> None:
    """The record of what was tried on us, as a listener keeps it."""
    _log.warning("refused", reason=error.reason.name, requirement=error.requirement, message=error.message)
