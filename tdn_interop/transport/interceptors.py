"""What happens around every call: metrics, the audit line, translation of errors, deadlines.

A layer is a context manager around one call; `ServerCalls` puts its layers around handlers of all
four kinds, the first one outermost. `standard_layers` is the order every server of ours uses.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from tdn_interop.errors import LocalProtocolError, Reason, TdnError, Unavailable, guard
from tdn_interop.transport import rpc_metrics, status
from tdn_interop.transport.frame import ABOUT_PEERS
from tdn_interop.transport.rates import Rates
from tdn_interop.transport.rpc_metrics import RpcMetrics

DEFAULT_DEADLINE_S = 60.0
LONGEST_DEADLINE_S = 86_400.0

# The largest message, once it is expanded: frames stay at 1 MiB. And the metadata of a call, counted as HTTP/2 does.
MESSAGE_BYTES = 4 << 20
METADATA_BYTES = 16 << 10
ENTRY_BYTES = 32  # RFC 9113 section 6.5.2
# RFC 1952 section 2.3.1. No protobuf message begins so: it would be a field 3 of wire type 7.
GZIP = b"\x1f\x8b\x08"

_log = structlog.get_logger("tdn.rpc")

# Any: message types differ per method, and grpc.aio's context is generic over them.
_Context = Any
Parse = Callable[[bytes], Any]


@dataclass(slots=True)
class Call:
    """One call while it runs, as the layers see it."""

    path: str  # `/package.Service/Method`
    streams: rpc_metrics.Streams
    context: _Context
    received_bytes: int = 0
    sent_bytes: int = 0
    parse: Parse | None = None  # None: messages are bytes
    on_received: list[Callable[[], None]] = field(default_factory=list)
    on_sent: list[Callable[[], None]] = field(default_factory=list)

    def received(self, raw: bytes) -> Any:
        """Note `raw` from the client and hand the message on. Errors: TOO_LARGE, INVALID_REQUEST."""
        self.received_bytes += len(raw)
        for notice in self.on_received:
            notice()
        return _parsed(_expanded(raw), self.parse)

    def sent(self, message: Any) -> Any:
        """Note `message` to the client and hand it on."""
        self.sent_bytes += _size(message)
        for notice in self.on_sent:
            notice()
        return message

    def code(self, error: BaseException | None) -> grpc.StatusCode:
        """The code of a call that ended with `error`, as its client sees it."""
        if isinstance(error, asyncio.CancelledError):
            late = self.context.time_remaining() == 0
            return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
        return self.context.code() or (grpc.StatusCode.UNKNOWN if error else grpc.StatusCode.OK)


Layer = Callable[[Call], AbstractAsyncContextManager[None]]

# Classes of calls that have a limit of their own; all others are `calls`.
_KINDS_OF_CALL = {
    "/tdn.transport.v1.RelayService/Tunnel": "openings",
    "/tdn.transport.v1.RelayService/Attach": "attachments",
    "/tdn.transport.v1.RoutingService/Resolve": "resolves",
    "/tdn.transport.v1.ChannelService/Exchange": "hellos",
    "/tdn.transport.v1.EnrolmentService/Enrol": "enrolments",
    "/tdn.app.v1.MailboxService/DepositLetters": "letters",
}
# A tunnel that is joined is one that we have offered: how many there are is not up to the node that joins.
_JOINS = "tdn-tunnel-join-bin"


def standard_layers(
    metrics: RpcMetrics,
    peer_of: Callable[[str], str],
    on_refusal: Callable[[TdnError], None],
    tell: Callable[[TdnError], TdnError] = lambda error: error,
) -> tuple[Layer, ...]:
    """The layers of a server.

    `peer_of` tells the verified node id behind `context.peer()` or raises; `on_refusal` hears of every
    error that ends a call, `tell` makes of it what the caller may know.
    """
    return measured(metrics), audited(peer_of), translated(on_refusal, tell), limited()


def for_peers(error: TdnError) -> TdnError:
    """Our words only about what peers did; of this node's own troubles no more than the reason table says."""
    if isinstance(error, ABOUT_PEERS) or error.reason is Reason.INTERNAL:  # its words are a correlation id
        return error
    return type(error)(error.reason, error.reason.value.summary[0], error.requirement)


def measured(metrics: RpcMetrics) -> Layer:
    """Count and time the calls."""

    @contextlib.asynccontextmanager
    async def layer(call: Call) -> AsyncIterator[None]:
        timer = metrics.started(call.path, call.streams)
        call.on_received.append(timer.received)
        call.on_sent.append(timer.sent)
        with _ending(lambda error: timer.handled(call.code(error))):
            yield

    return layer


def audited(peer_of: Callable[[str], str]) -> Layer:
    """Write one line per call: who, what, how it ended, sizes and seconds. Never content."""

    @contextlib.asynccontextmanager
    async def layer(call: Call) -> AsyncIterator[None]:
        begin, peer = time.monotonic(), _peer(peer_of, call)

        def line(error: BaseException | None) -> None:
            _log.info(
                "call", peer=peer, method=call.path, code=call.code(error).name,
                received_bytes=call.received_bytes, sent_bytes=call.sent_bytes,
                duration_s=round(time.monotonic() - begin, 6),
            )  # fmt: skip

        with _ending(line):
            yield

    return layer


def translated(
    on_refusal: Callable[[TdnError], None], tell: Callable[[TdnError], TdnError] = lambda error: error
) -> Layer:
    """End the call with the status of a TdnError; anything else is INTERNAL, its traceback stays here."""

    @contextlib.asynccontextmanager
    async def layer(call: Call) -> AsyncIterator[None]:
        try:
            yield
        except TdnError as error:
            refusal = error
        except grpc.aio.AbortError:
            raise  # the handler has answered with a code of its own
        except Exception:  # noqa: BLE001  the boundary: a defect of ours must not show its inside to a peer
            refusal = _defect(call)
        else:
            return
        on_refusal(refusal)
        await call.context.abort_with_status(rpc_status.to_status(status.to_status(tell(refusal))))

    return layer


def limited(default_s: float = DEFAULT_DEADLINE_S, longest_s: float = LONGEST_DEADLINE_S) -> Layer:
    """Refuse too much metadata, absurd and passed deadlines; end a unary call without a deadline after `default_s`."""

    @contextlib.asynccontextmanager
    async def layer(call: Call) -> AsyncIterator[None]:
        _check_metadata(call.context.invocation_metadata() or ())
        left = call.context.time_remaining()
        if left is not None:
            words = f"the longest deadline is {longest_s:.0f} s"
            guard("TDN-T-DDL-03").check(
                left <= longest_s, Reason.INVALID_REQUEST, words, field="grpc-timeout"
            )
            guard("TDN-T-DDL-01").check(
                left > 0, Reason.DEADLINE, "the deadline passed before the start", Unavailable
            )
        unbounded = left is not None or any(call.streams)
        try:
            async with asyncio.timeout(None if unbounded else default_s) as timeout:
                yield
        except TimeoutError:
            if not timeout.expired():
                raise
            guard("TDN-T-DDL-02").refuse(
                Reason.DEADLINE, f"not done in {default_s:g} s, the time for calls without a deadline", Unavailable
            )  # fmt: skip

    return layer


def rated(rates: Rates, source_of: Callable[[str], str]) -> Layer:
    """Refuse calls of a source that come too often; `source_of` tells the node or address behind `context.peer()`."""

    @contextlib.asynccontextmanager
    async def layer(call: Call) -> AsyncIterator[None]:
        kind = _KINDS_OF_CALL.get(call.path, "calls")
        if kind == "openings" and any(key == _JOINS for key, _ in call.context.invocation_metadata() or ()):
            kind = "calls"
        rates.take(kind, source_of(call.context.peer()))
        yield

    return layer


def _check_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> None:
    size = sum(len(key) + len(value) + ENTRY_BYTES for key, value in metadata)
    guard("TDN-T-LIM-03").check(
        size <= METADATA_BYTES, Reason.TOO_LARGE, f"{size} bytes of metadata, the limit is {METADATA_BYTES}",
        limitBytes=METADATA_BYTES,
    )  # fmt: skip


class ServerCalls(grpc.aio.ServerInterceptor):
    """Puts `layers` around every handler of a server."""

    def __init__(self, *layers: Layer) -> None:
        self._layers = layers

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """The handler with the layers around it; unknown methods pass, gRPC answers them."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        streams = bool(handler.request_streaming), bool(handler.response_streaming)
        inner, make = _KINDS[streams](handler)
        wrap = self._streaming if handler.response_streaming else self._single
        outer = wrap(
            inner, partial(Call, handler_call_details.method, streams, parse=handler.request_deserializer)
        )
        return make(
            outer, None, handler.response_serializer
        )  # a message that gRPC cannot parse has no reason of ours

    def _single(self, inner: Any, make_call: Callable[[_Context], Call]) -> Any:
        async def behaviour(request: Any, context: _Context) -> Any:
            call = make_call(context)
            async with self._around(call):
                return call.sent(await inner(_inbound(call, request), _CountedContext(call)))

        return behaviour

    def _streaming(self, inner: Any, make_call: Callable[[_Context], Call]) -> Any:
        # A coroutine that writes, not a generator: gRPC leaves the generator of a cancelled call to the
        # garbage collector, and what runs then finds the call's memory gone.
        async def behaviour(request: Any, context: _Context) -> None:
            call = make_call(context)
            counted = _CountedContext(call)
            async with self._around(call):
                responses = inner(_inbound(call, request), counted)
                if not hasattr(responses, "__aiter__"):  # such a coroutine itself
                    await responses
                    return
                async with contextlib.aclosing(responses):
                    async for response in responses:
                        await counted.write(response)

        return behaviour

    @contextlib.asynccontextmanager
    async def _around(self, call: Call) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for layer in self._layers:
                await stack.enter_async_context(layer(call))
            yield


# (request streams, response streams) -> the handler's behaviour and the maker of such a handler.
_KINDS: dict[rpc_metrics.Streams, Callable[[Any], tuple[Any, Any]]] = {
    (False, False): lambda h: (h.unary_unary, grpc.unary_unary_rpc_method_handler),
    (False, True): lambda h: (h.unary_stream, grpc.unary_stream_rpc_method_handler),
    (True, False): lambda h: (h.stream_unary, grpc.stream_unary_rpc_method_handler),
    (True, True): lambda h: (h.stream_stream, grpc.stream_stream_rpc_method_handler),
}


class _CountedContext:
    """The handler's context: messages read from it and written to it are counted."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call.context, name)

    async def read(self) -> Any:
        message = await self._call.context.read()
        return message if message is grpc.aio.EOF else self._call.received(message)

    async def write(self, message: Any) -> None:
        await self._call.context.write(self._call.sent(message))


def _inbound(call: Call, request: Any) -> Any:
    return _counted(call, request) if call.streams[0] else call.received(request)


async def _counted(call: Call, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield call.received(request)


def _expanded(raw: bytes) -> bytes:
    """A gzip message expanded, as far as the limit; any other as it is. Errors: TOO_LARGE, INVALID_REQUEST."""
    plain, whole = raw, True
    if raw.startswith(GZIP):
        stream = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        try:
            plain = stream.decompress(raw, MESSAGE_BYTES + 1)
        except zlib.error:
            whole = False
        else:
            whole = stream.eof or len(plain) > MESSAGE_BYTES
    number = "TDN-T-LIM-01" if plain is raw else "TDN-T-LIM-04"
    guard(number).check(
        len(plain) <= MESSAGE_BYTES, Reason.TOO_LARGE, f"a message of more than {MESSAGE_BYTES} bytes",
        limitBytes=MESSAGE_BYTES,
    )  # fmt: skip
    guard("TDN-T-LIM-04").check(whole, Reason.INVALID_REQUEST, "a compressed message is damaged")
    return plain


def _parsed(raw: bytes, parse: Parse | None) -> Any:
    try:
        return parse(raw) if parse else raw
    except DecodeError:
        guard("TDN-T-ENC-01").refuse(Reason.INVALID_REQUEST, "a message cannot be parsed")


def _size(message: Any) -> int:
    """Bytes of a message of either kind: bytes as they are, or protobuf."""
    return len(message) if isinstance(message, bytes | bytearray | memoryview) else message.ByteSize()


def _peer(peer_of: Callable[[str], str], call: Call) -> str:
    """Node id of the caller; a caller whom nobody verified is named so."""
    try:
        return peer_of(call.context.peer())
    except TdnError as error:
        return f"unverified ({error.reason.name})"


@contextlib.contextmanager
def _ending(notice: Callable[[BaseException | None], None]) -> Iterator[None]:
    """Call `notice` once at the end with the exception that ended the body, which goes on."""
    try:
        yield
    except BaseException as error:
        notice(error)
        raise
    notice(None)


def _defect(call: Call) -> TdnError:
    """Log the exception being handled; the error that leads its reader to the log."""
    correlation = uuid.uuid4().hex
    _log.exception("defect", method=call.path, correlation=correlation)
    sentence = f"internal error, correlation id {correlation}"
    return LocalProtocolError(Reason.INTERNAL, sentence, "TDN-T-ENC-02", correlation=correlation)
