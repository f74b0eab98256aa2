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
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import structlog

from tdn_interop.errors import Reason, TdnError, Unavailable
from tdn_interop.transport import tls
from tdn_interop.transport.front import HANDSHAKE_S, Pipe, expired
from tdn_interop.transport.pki import PeerCertificate

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
        self._server: asyncio.Server | None = None
        self._pipes: dict[Pipe, Pipe] = {}  # what comes from gRPC -> where it goes out
        self._tasks: set[asyncio.Task[None]] = set()
        self._first: Pipe | None = None  # dialled, and not yet used
        self.channel: grpc.aio.Channel

    async def start(self, *, dial: bool = True) -> Dialled:
        """Make the channel. With `dial` its first connection is made now, so that its errors are known at once.

        Errors: those of `open_stream`, and why TLS was refused.
        """
        if dial:
            self._first = await self._dial()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Local(self), str(self._path))
        options = [*OPTIONS, ("grpc.default_authority", self.node), *self._options]
        self.channel = grpc.aio.insecure_channel(
            f"unix:{self._path}", options=options, interceptors=self._dialler.interceptors
        )
        return self

    async def close(self) -> None:
        """Close the channel and every connection under it; nothing when it was never started."""
        if self._server:
            await self.channel.close()
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for pipe in (*self._pipes, *self._pipes.values(), self._first):
            if pipe and pipe.transport:
                pipe.transport.abort()
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
        if self.peer and self.peer.expires_at_ms <= now_ms and self._pipes:
            _note(expired(self.peer))
            self._abort()

    def drop_refused(self) -> None:
        """End the connections when the node is refused by now; dialling again says why."""
        if self.peer and self._pipes and (refusal := self._dialler.refusal(self.peer.node)):
            _note(refusal)
            self._abort()

    @property
    def stands(self) -> bool:
        """True while there is a connection."""
        return bool(self._pipes)

    def serve(self, local: Pipe) -> None:
        """Carry one local connection out."""
        task = asyncio.ensure_future(self._carry(local))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, local: Pipe) -> None:
        remote, self._first = self._first, None
        try:
            remote = remote or await self._dial()
        except (TdnError, asyncio.CancelledError) as error:
            if local.transport:
                local.transport.abort()
            if isinstance(error, asyncio.CancelledError):
                raise
            return
        self._pipes[local] = remote
        local.join(remote)

    async def _dial(self) -> Pipe:
        """A verified connection to the node."""
        loop = asyncio.get_running_loop()
        remote = Pipe(self.broken, self.node)
        stream: socket.socket | None = None
        try:
            context = self._dialler.context()
            stream = await self._open()
            async with asyncio.timeout(HANDSHAKE_S):
                transport, _ = await loop.create_connection(
                    lambda: remote, sock=stream, ssl=context, server_hostname=self.node
                )
            self.peer = tls.peer_certificate(transport.get_extra_info("ssl_object"))
            if refusal := self._dialler.refusal(self.peer.node):
                raise refusal
        except (OSError, TdnError, asyncio.CancelledError) as error:
            if remote.transport:
                remote.transport.abort()
            elif stream:
                stream.close()
            if isinstance(error, asyncio.CancelledError):
                raise
            self.error = tls.explain(error, self.node)
            if not isinstance(self.error, Unavailable):
                _note(self.error)  # gRPC dials again before our caller hears of it
            raise self.error from error
        self.error = None
        return remote

    def forget(self, local: Pipe) -> None:
        """Drop a connection that has ended."""
        self._pipes.pop(local, None)

    def _abort(self) -> None:
        for pipe in [*self._pipes, *self._pipes.values()]:
            if pipe.transport:
                pipe.transport.abort()


def _note(error: TdnError) -> None:
    """The record of what was tried on us, as a listener keeps it."""
    _log.warning("refused", reason=error.reason.name, requirement=error.requirement, message=error.message)


class _Local(Pipe):
    """The side towards gRPC."""

    def __init__(self, dialled: Dialled) -> None:
        super().__init__()
        self._dialled = dialled

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._dialled.serve(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._dialled.forget(self)
