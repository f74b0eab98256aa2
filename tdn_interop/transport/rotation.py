"""Connections go over to fresh certificates before the old ones end; sessions and their messages go along.

A connection lasts as long as the certificates it began with: then either side ends it. The dialling side
makes a new one earlier, when it has a fresh certificate itself or when that of the other side is near its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence

import structlog

from tdn_interop.errors import TdnError
from tdn_interop.transport.channel_service import Peers
from tdn_interop.transport.channels import Channels
from tdn_interop.transport.link import Link
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
    """Watches the connections that this node has dialled: links and those of channels."""

    def __init__(
        self, links: Sequence[Link], peers: Peers, channels: Channels, clock_ms: Callable[[], int] = now_ms
    ) -> None:
        self._links = links
        self._peers = peers
        self._channels = channels
        self._clock_ms = clock_ms
        self._due_at: dict[
            Link | str, tuple[PeerCertificate, int]
        ] = {}  # connection -> when it is to be moved
        self._gate = asyncio.Semaphore(AT_ONCE)

    async def run(self) -> None:
        """Move what is due, as long as the node runs."""
        while True:
            soonest = min((at for _, at in self._look().values()), default=1 << 62)
            await asyncio.sleep(min(LONGEST_WAIT_S, max(0.1, (soonest - self._clock_ms()) / 1000)))
            now = self._clock_ms()
            await self._move([which for which, (_, at) in self._look().items() if at <= now])

    async def own(self) -> None:
        """Move everything, for our own certificate is a fresh one."""
        await self._move(list(self._look()))

    def _look(self) -> dict[Link | str, tuple[PeerCertificate, int]]:
        shown: dict[Link | str, PeerCertificate] = dict(self._peers.certificates().items())
        shown |= {link: link.certificate for link in self._links if link.certificate}
        before = self._due_at
        self._due_at = {
            which: before[which] if which in before and before[which][0] == one else (one, one.at(MOVE_AT))
            for which, one in shown.items()
        }
        return self._due_at

    async def _move(self, which: Sequence[Link | str]) -> None:
        """Make new connections. One that cannot be made leaves the old one."""
        now = self._clock_ms()
        for one in which:
            shown, _ = self._due_at[one]
            self._due_at[one] = (shown, now + shown.at(AGAIN_AFTER) - shown.at(0))
        # The links first, so that the tunnels of the channels go over the new ones.
        await asyncio.gather(*(self._try(one.renew(), one.node) for one in which if isinstance(one, Link)))
        await asyncio.gather(
            *(self._try(self._channels.move(one), one) for one in which if isinstance(one, str))
        )

    async def _try(self, work: Coroutine[None, None, None], node: str) -> None:
        async with self._gate:
            try:
                await work
            except TdnError as error:
                _log.info("not moved yet", peer=node, reason=error.reason.name)
