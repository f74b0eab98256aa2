"""Logs and metrics of a node: names, sizes and digests, never content.

Logs are structlog events, for people on a terminal and JSON lines otherwise. Metrics are few, have their
unit in the name and are served only when the configuration gives an address.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections import Counter as Counts
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from tdn_interop import config
from tdn_interop.errors import ConfigError, Reason, TdnError, guard
from tdn_interop.transport.rpc_metrics import RpcMetrics

_BYTES = (bytes, bytearray, memoryview)


def set_up_logging(log: Path | None = None, *, verbose: bool = False) -> None:
    """Send events of ours and of the libraries to `log`, or to stderr. Errors: CONFIG_INVALID."""
    handler = _handler(log)
    on_terminal = log is None and sys.stderr.isatty()
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        refuse_bytes,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if verbose else logging.INFO),
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=_rendering(on_terminal))
    )
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler], force=True)


def _handler(log: Path | None) -> logging.Handler:
    try:
        return logging.FileHandler(log, encoding="utf-8") if log else logging.StreamHandler()
    except OSError as error:
        words = f"the log {log} cannot be written: {error.strerror}"
        guard("TDN-X-LAB-05").refuse(Reason.CONFIG_INVALID, words, ConfigError)


def _rendering(on_terminal: bool) -> list[Any]:
    # Tracebacks are plain: the pretty ones print local variables, and those hold data.
    strip = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    if on_terminal:
        plain = structlog.dev.plain_traceback
        return [strip, structlog.dev.ConsoleRenderer(exception_formatter=plain)]
    return [
        strip, structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False)
    ]  # fmt: skip


def refuse_bytes(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Put the size in the place of every bytes value, at any depth (requirement TDN-A-SEC-05).

    A log line must not end the work it tells about, so this replaces where a check elsewhere would raise.
    """
    return {key: _without_bytes(value) for key, value in event.items()}


def _without_bytes(value: Any) -> Any:
    if isinstance(value, _BYTES):
        return f"<{len(value)} bytes, not logged>"
    if isinstance(value, Mapping):
        return {_without_bytes(key): _without_bytes(item) for key, item in value.items()}
    if isinstance(value, list | set | frozenset) or type(value) is tuple:
        return [_without_bytes(item) for item in value]
    return value


def context(
    *,
    node: str | None = None,
    peer: str | None = None,
    session: str | None = None,
    job: str | None = None,
    task: str | None = None,
) -> AbstractContextManager[None]:
    """Within the block, every event carries the names that are given."""
    names = {"node": node, "peer": peer, "session": session, "job": job, "task": task}
    return structlog.contextvars.bound_contextvars(**{k: v for k, v in names.items() if v is not None})


class Recent:
    """How often each name came in the last minute, by whole seconds. `clock` in seconds."""

    WINDOW_S = 60

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds: dict[int, Counts[str]] = {}

    def add(self, name: str) -> None:
        """One more of `name`, now."""
        second = int(self._clock())
        if second not in self._seconds:
            self._forget(second)
            self._seconds[second] = Counts()
        self._seconds[second][name] += 1

    def counts(self) -> list[tuple[str, int]]:
        """(name, times), most often first."""
        self._forget(int(self._clock()))
        return sum(self._seconds.values(), Counts[str]()).most_common()

    def _forget(self, now: int) -> None:
        for second in [second for second in self._seconds if second <= now - self.WINDOW_S]:
            del self._seconds[second]


class Metrics:
    """Everything a node counts, in one registry."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.recent = Recent()
        self.rpc_server = RpcMetrics(registry, "server")
        self.rpc_client = RpcMetrics(registry, "client")
        self.session_open = Gauge("tdn_session_open", "Sessions open now.", registry=registry)
        self.session_resumed = Counter(
            "tdn_session_resumed_total", "Sessions continued on a new connection.", registry=registry
        )
        self.session_ended = Counter(
            "tdn_session_ended_total", "Sessions ended, by reason; `GOODBYE` is orderly.", ["reason"],
            registry=registry,
        )  # fmt: skip
        self.frame_bytes = Counter(
            "tdn_frame_bytes_total", "Payload bytes of data frames, `sent` or `received`.", ["direction"],
            registry=registry,
        )  # fmt: skip
        self.job = Counter("tdn_job_total", "Jobs that entered a state.", ["state"], registry=registry)
        self.refusal = Counter(
            "tdn_refusal_total", "Refusals by reason and requirement.", ["reason", "requirement"],
            registry=registry,
        )  # fmt: skip

    def refused(self, error: TdnError) -> None:
        """Count a refusal."""
        self.recent.add(error.reason.name)
        self.refusal.labels(error.reason.name, error.requirement).inc()

    @contextlib.contextmanager
    def served(self, address: str | None) -> Iterator[None]:
        """Within the block, `/metrics` answers on `host:port`; nothing listens without an address.

        Errors: CONFIG_INVALID when the address cannot be bound.
        """
        if address is None:
            yield
            return
        host, port = config.split_address(address)
        try:
            server, thread = start_http_server(port, host, self.registry)
        except OSError as error:
            words = f"metrics cannot listen on {address}: {error.strerror}"
            guard("TDN-X-LAB-05").refuse(Reason.CONFIG_INVALID, words, ConfigError)
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
