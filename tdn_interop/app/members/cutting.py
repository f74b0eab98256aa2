"""Ending what is open with nodes that are refused by now: sessions at once, connections a moment later.

The moment is for the last words: the session tells its peer why, and the list itself passes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tdn_interop.errors import Refused
from tdn_interop.transport.channels import Channels
from tdn_interop.transport.front import TELL_S, Front
from tdn_interop.transport.link import Link

Refusal = Callable[[str], Refused | None]


class Cutting:
    """What one node has open. `refusal(node)` tells why a node is refused, None when it is not.

    `listeners` are asked to give up what they do with nodes that are refused, again and again: each gets a
    `Refusal` that knows whether it is this node itself that is refused by everybody.
    """

    def __init__(
        self, me: str, refusal: Refusal, channels: Channels, front: Front, links: list[Link]
    ) -> None:
        self._me = me
        self._refusal = refusal
        self._channels = channels
        self._front = front
        self._links = links
        self.listeners: list[Callable[[Refusal], None]] = []

    def sweep(self) -> None:
        """End everything with nodes that are refused; when it is this node that is, everything."""
        self.end_sessions()
        self._front.drop_refused()
        for link in self._links:
            link.drop_refused()

    def end_sessions(self) -> None:
        """End the sessions; both ends hear why."""
        own = self._refusal(self._me)

        def refused(peer: str) -> Refused | None:
            return own or self._refusal(peer)

        for peer in self._channels.peers():
            if refusal := refused(peer):
                self._channels.drop(peer, refusal)
        for listener in self.listeners:
            listener(refused)

    def soon(self) -> None:
        """A newer list is here."""
        self.end_sessions()
        asyncio.get_running_loop().call_later(TELL_S, self.sweep)
