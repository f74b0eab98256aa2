"""A gRPC server behind a front: the only way into a node from outside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import grpc.aio

from tdn_interop import config
from tdn_interop.transport.dial import OPTIONS
from tdn_interop.transport.front import ContextFactory, Front, Refusal
from tdn_interop.transport.interceptors import MESSAGE_BYTES, METADATA_BYTES

# Open streams (Attach, Exchange) never end by themselves; their other ends come back to the next process.
DRAIN_S = 0.3
# Calls on one connection at once: a hub has up to 1,024 tunnels on its link to its parent, half of them of one node.
STREAMS = 2048
# A node that keeps a link pings (link.KEEPALIVE). One that has vanished is noticed after 4 s; as long as it pings,
# the server need not (gRPC, doc/keepalive.md). Pings that were held up on the way may come close together; whoever
# sends a hundred of them in a row does not keep a link.
KEEPALIVE: list[tuple[str, int | str]] = [
    ("grpc.keepalive_time_ms", 1500),
    ("grpc.keepalive_timeout_ms", 2500),
    ("grpc.http2.ping_timeout_ms", 2500),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 100),
]
# What one peer may make us hold. Messages and metadata get our typed refusal (interceptors.py); these are the walls
# behind it. gRPC hands compressed messages on as they come, and knows only gzip and none (bits 2 and 0).
LIMITS = {
    "grpc.max_receive_message_length": 2 * MESSAGE_BYTES,
    "grpc.max_metadata_size": 4 * METADATA_BYTES,
    "grpc.absolute_max_metadata_size": 4 * METADATA_BYTES,
    "grpc.max_concurrent_streams": STREAMS,
    "grpc.per_message_decompression": 0,
    "grpc.compression_enabled_algorithms_bitset": 0b101,
}


class Server:
    """Services are added to `grpc` before `start`; `front.peer(context.peer())` tells handlers who calls."""

    def __init__(
        self, context: ContextFactory, folder: Path, name: str, on_refusal: Refusal,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (), *, life_s: float | None = None,
    ) -> None:  # fmt: skip
        self._socket = folder / f"{name}.sock"
        options = dict(OPTIONS) | dict(KEEPALIVE) | LIMITS
        self.grpc = grpc.aio.server(options=list(options.items()), interceptors=list(interceptors))
        self.front = Front(context, self._socket, folder, on_refusal, life_s)

    async def start(self, address: str | None) -> int | None:
        """Serve; the TCP port when there is an address. Errors: CONFIG_INVALID when it cannot be bound."""
        self._socket.unlink(missing_ok=True)
        self.grpc.add_insecure_port(f"unix:{self._socket}")
        await self.grpc.start()
        return await self.front.listen(*config.split_address(address)) if address else None

    async def close(self) -> None:
        """Stop accepting, let calls finish for a moment, then end them."""
        await self.grpc.stop(DRAIN_S)
        await self.front.close()

    def node_of(self, grpc_peer: str) -> str:
        """The node id behind `context.peer()`. Errors: UNAUTHENTICATED."""
        return self.front.peer(grpc_peer).node
