"""Metrics of calls, with the names and labels of go-grpc-prometheus, so that its dashboards and alerts fit.

The same class serves both sides. Streams are counted by servers only: on the client side grpc.aio hands a
streaming call straight to the caller.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Literal

import grpc
from prometheus_client import CollectorRegistry, Counter, Histogram

Streams = tuple[bool, bool]  # the requests stream, the responses stream

_LABELS = ("grpc_type", "grpc_service", "grpc_method")
_GO_SPELLING = {grpc.StatusCode.OK: "OK", grpc.StatusCode.CANCELLED: "Canceled"}
_TYPES: dict[Streams, str] = {
    (False, False): "unary",
    (True, False): "client_stream",
    (False, True): "server_stream",
    (True, True): "bidi_stream",
}


def go_code(code: grpc.StatusCode) -> str:
    """`code` in Go spelling: `PermissionDenied`, `OK`, `Canceled`."""
    return _GO_SPELLING.get(code) or code.name.title().replace("_", "")


class RpcMetrics:
    """The metrics of one side of a process."""

    def __init__(self, registry: CollectorRegistry, side: Literal["server", "client"]) -> None:
        def counter(name: str, words: str, *labels: str) -> Counter:
            return Counter(f"grpc_{side}_{name}_total", words, (*_LABELS, *labels), registry=registry)

        self.calls_started = counter("started", "Calls started.")
        self.calls_handled = counter("handled", "Calls ended, by code.", "grpc_code")
        self.messages_received = counter("msg_received", "Messages received.")
        self.messages_sent = counter("msg_sent", "Messages sent.")
        self.seconds = Histogram(
            f"grpc_{side}_handling_seconds", "Seconds from start to end of calls.", _LABELS, registry=registry
        )

    def started(self, path: str, streams: Streams) -> Timer:
        """Count a call of `/package.Service/Method` as started."""
        service, _, method = path.removeprefix("/").rpartition("/")
        labels = _TYPES[streams], service, method
        self.calls_started.labels(*labels).inc()
        return Timer(self, labels, time.monotonic())


@dataclass(frozen=True, slots=True)
class Timer:
    """One call that has started and not ended."""

    metrics: RpcMetrics
    labels: tuple[str, str, str]
    begin: float

    def received(self) -> None:
        """Count a message received."""
        self.metrics.messages_received.labels(*self.labels).inc()

    def sent(self) -> None:
        """Count a message sent."""
        self.metrics.messages_sent.labels(*self.labels).inc()

    def handled(self, code: grpc.StatusCode) -> None:
        """Count the end of the call."""
        self.metrics.calls_handled.labels(*self.labels, go_code(code)).inc()
        self.metrics.seconds.labels(*self.labels).observe(time.monotonic() - self.begin)


def client_interceptors(metrics: RpcMetrics) -> tuple[grpc.aio.ClientInterceptor, ...]:
    """What counts the calls of a channel. Streams pass by: intercepted, grpc.aio gives them another read and write."""
    return (_UnaryUnary(metrics),)


class _UnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):
    """Waits for the end of each call without touching its messages."""

    def __init__(self, metrics: RpcMetrics) -> None:
        self._metrics = metrics
        self._ends: set[asyncio.Task[None]] = set()  # the loop itself keeps only weak references

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        method = client_call_details.method
        timer = self._metrics.started(
            method.decode() if isinstance(method, bytes) else method, (False, False)
        )
        call = await continuation(client_call_details, request)
        timer.sent()
        task = asyncio.get_running_loop().create_task(self._end(call, timer))
        self._ends.add(task)
        task.add_done_callback(self._ends.discard)
        return call

    @staticmethod
    async def _end(call: Any, timer: Timer) -> None:
        code = await call.code()
        if code is grpc.StatusCode.OK:
            timer.received()
        timer.handled(code)
