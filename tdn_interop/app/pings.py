"""Pings: one message there and back on an open channel, and the answers to those of others."""

from __future__ import annotations

import asyncio
import os
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import structlog

from tdn_interop.errors import Reason, TdnError, Unavailable
from tdn_interop.identity import fingerprint
from tdn_interop.transport.channels import Channels

_log = structlog.get_logger("tdn.pings")
PING, PONG = "ping", "pong"


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a ping."""

    round_trip_ms: float
    hops: tuple[str, ...]
    identity_sha256: str


class Pings:
    """The pings of one node.

    `path_of` and `key_of` tell the relays to a node and its identity key; `on_refusal` hears of pings that are
    dropped; answers take at most `answer_s`.
    """

    def __init__(
        self, channels: Channels, path_of: Callable[[str], tuple[str, ...]], key_of: Callable[[str], bytes],
        on_refusal: Callable[[TdnError], None], answer_s: float,
    ) -> None:  # fmt: skip
        self._channels = channels
        self._path_of = path_of
        self._key_of = key_of
        self._on_refusal = on_refusal
        self._answer_s = answer_s
        self._answering: set[str] = set()
        self._pinging: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def ping(self, node: str, timeout_s: float) -> Pong:
        """Measure one message there and back. Errors: why there is no channel, DEADLINE."""
        async with self._pinging[node]:
            await self._channels.open(node, timeout_s)
            nonce = os.urandom(16)
            begin = time.monotonic()
            await self._channels.send(node, PING, nonce, timeout_s)
            while (await self._channels.receive(PONG, node, timeout_s))[1] != nonce:
                continue  # the answer to a ping that was given up
            spent_ms = (time.monotonic() - begin) * 1000
            return Pong(spent_ms, self._path_of(node), fingerprint(self._key_of(node)))

    async def answer(self, spawn: Callable[[Coroutine[Any, Any, object]], None]) -> None:
        """Answer for ever, one ping of a peer at a time."""
        while True:
            peer, nonce = await self._channels.receive(PING)
            if peer not in self._answering:
                self._answering.add(peer)
                spawn(self._pong(peer, nonce))
            else:  # dropped, and counted without a line: the log is not for floods
                words = f"{peer} pings faster than it takes the answers"
                self._on_refusal(Unavailable(Reason.RESOURCE_EXHAUSTED, words, "TDN-T-LIM-03"))
            await asyncio.sleep(0)  # a turn for the others

    async def _pong(self, peer: str, nonce: bytes) -> None:
        try:
            await self._channels.send(peer, PONG, nonce[:64], self._answer_s)
        except TdnError as error:
            _log.info("pong lost", peer=peer, reason=error.reason.name)
        finally:
            self._answering.discard(peer)
