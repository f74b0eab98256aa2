"""Connections go over to fresh certificates before the old ones end; sessions and their messages go along.

A connection lasts as long as the certificates it began with: then either side ends it. The dialling side
makes a new one earlier, when it has a fresh certificate itself or when that of the other side is near its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import structlog

from tdn_interop.errors import TdnError
from tdn_interop.transport.channel_service import Peers
from tdn_interop.transport.channels import Channels
from tdn_interop.transport.pki import PeerCertificate
from tdn_interop.transport.trust import now_ms

# By then the other side has renewed: it does so after two thirds of the life.
MOVE_AT = 0.85
# A node that has not renewed is asked again after this share of the life.
AGAIN_AFTER = 0.04
LONGEST_WAIT_S = 10.0
# Connections that are made at the same time.
AT_ONCE = 16

_log = structlog.get_logger("tdn.rotation")


class Rotation:
    """Watches the connections that this node has dialled."""

    def __init__(self, peers: Peers, channels: Channels, clock_ms: Callable[[], int] = now_ms) -> None:
        self._peers = peers
        self._channels = channels
        self._clock_ms = clock_ms
        self._next: dict[str, tuple[PeerCertificate, int]] = {}  # node -> when its connection is to be moved
        self._gate = asyncio.Semaphore(AT_ONCE)

    async def run(self) -> None:
        """Move what is due, as long as the node runs."""
        while True:
            due = self._due()
            await asyncio.sleep(
                min(LONGEST_WAIT_S, max(0.1, (min(due.values(), default=1 << 62) - self._clock_ms()) / 1000))
            )
            await self.move(node for node, at in self._due().items() if at <= self._clock_ms())

    async def own(self) -> None:
        """Move everything, for our own certificate is a fresh one."""
        await self.move(self._peers.certificates())

    async def move(self, nodes: Iterable[str]) -> None:
        """Make new connections for the sessions with these nodes. One that cannot be made leaves the old one."""
        await asyncio.gather(*(self._move(node) for node in list(nodes)))

    def _due(self) -> dict[str, int]:
        """When the connection to each node is to be moved."""
        certificates = self._peers.certificates()
        self._next = {node: one for node, one in self._next.items() if certificates.get(node) == one[0]}
        for node, certificate in certificates.items():
            self._next.setdefault(node, (certificate, certificate.at(MOVE_AT)))
        return {node: at for node, (_, at) in self._next.items()}

    async def _move(self, node: str) -> None:
        async with self._gate:
            before = self._peers.certificates().get(node)
            try:
                await self._channels.move(node)
            except TdnError as error:
                _log.info("not moved yet", peer=node, reason=error.reason.name)
            after = self._peers.certificates().get(node)
            if before and before == after:
                pause = before.at(AGAIN_AFTER) - before.at(0)
                self._next[node] = (before, self._clock_ms() + pause)
