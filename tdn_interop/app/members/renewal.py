"""The certificates of one node: it renews its own, and as a hub or top issues those of its members.

A certificate is renewed after two thirds of its life, or at once when a newer root has come; a member asks
its parent over the link, a top asks nobody. What is refused or unreachable is tried again until the end.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta

import structlog
from cryptography import x509

from tdn_interop.app.evidence.log import EvidenceLog
from tdn_interop.app.members import setup
from tdn_interop.app.members.standing import Standing
from tdn_interop.config import NodeConfig
from tdn_interop.errors import TdnError
from tdn_interop.transport import pki
from tdn_interop.transport.issuer import Issued, Issuer
from tdn_interop.transport.link import Link
from tdn_interop.transport.renewal_service import Renewed, renew
from tdn_interop.transport.trust import now_ms

# Members that enrolled together shall not all renew together: each takes a moment in this share of the life.
EARLIEST, LATEST = 0.6, 2 / 3
# Between two tries, in shares of the life and in seconds.
PAUSE = 0.03
PAUSE_S = (0.5, 60.0)
# The clock may be set meanwhile.
LONGEST_SLEEP_S = 600.0
ISSUED = "certificate.issued"

_log = structlog.get_logger("tdn.renewal")


def issuer(config: NodeConfig, log: EvidenceLog) -> Issuer:
    """The CA of this hub or top as its files say; what it issues goes into its log."""

    def authority() -> pki.Authority:
        return pki.load_authority(config.file("ca.pem"), config.file("ca.key"))

    async def note(node: str, issued: Issued) -> None:
        leaf = issued.chain[0]
        facts = {
            "certificateSha256": pki.sha256(leaf).hex(),
            "expiresAtMs": str(pki.renewal_due_ms(leaf, 1)),
            "authoritySha256": pki.lineage(authority().certificate).hex(),
        }
        await log.append(ISSUED, node, facts)

    return Issuer(config.id, config.role, authority, note, timedelta(seconds=config.leaf_life_s))


class Renewal:
    """Keeps the certificates of this node fresh. `on_fresh` is called after each renewal."""

    def __init__(
        self, config: NodeConfig, standing: Standing, link: Link | None,
        on_fresh: Callable[[], Awaitable[None]], clock_ms: Callable[[], int] = now_ms,
    ) -> None:  # fmt: skip
        self._config = config
        self._standing = standing
        self._link = link
        self._on_fresh = on_fresh
        self._clock_ms = clock_ms
        self._share = random.uniform(EARLIEST, LATEST)  # noqa: S311  spreads load, keeps no secret
        self._asked = asyncio.Event()

    def soon(self) -> None:
        """Look again now, for instance because a newer root has come."""
        self._asked.set()

    @property
    def hangs_on_newest_root(self) -> bool:
        """False while a roll-over of the top has not reached us."""
        newest = self._standing.roots[0]
        return any(pki.issued_by(certificate, newest) for certificate in self._standing.chain)

    async def run(self) -> None:
        """Renew when it is time, as long as the node runs."""
        pause_s = 0.0
        while True:
            due_s = (self.due_ms() - self._clock_ms()) / 1000
            await self._sleep(max(pause_s, min(due_s, LONGEST_SLEEP_S)))
            pause_s = 0.0
            if self.due_ms() > self._clock_ms():
                continue
            try:
                await self.renew()
            except TdnError as error:
                _log.warning("not renewed yet", reason=error.reason.name, message=error.message)
                pause_s = self._pause_s()
            else:
                pause_s = 0.0 if self.hangs_on_newest_root else self._pause_s()

    def due_ms(self) -> int:
        """When the leaf is to be renewed."""
        return pki.renewal_due_ms(self._standing.leaf, self._share) if self.hangs_on_newest_root else 0

    async def renew(self, ca_key: pki.PrivateKey | None = None) -> None:
        """Fresh certificates now; a hub may give the key of a new CA.

        Errors: why the parent gives none, and why what it gave cannot be used; the old ones then stay.
        """
        setup.keep_renewed(self._config, await self._fresh(ca_key))
        leaf = self._standing.leaf
        _log.info("renewed", expires_at_ms=self._standing.expires_at_ms, sha256=pki.sha256(leaf).hex())
        await self._on_fresh()

    async def _fresh(self, ca_key: pki.PrivateKey | None) -> Renewed:
        config = self._config
        if self._link is None:
            return setup.top_leaf(config, pki.load_authority(config.file("ca.pem"), config.file("ca.key")))
        if config.role == "hub" and ca_key is None:
            ca_key = pki.load_authority(config.file("ca.pem"), config.file("ca.key")).key
        return await renew(self._link, self._standing.key, config.role, ca_key)

    def _pause_s(self) -> float:
        leaf: x509.Certificate = self._standing.leaf
        life_s = (pki.renewal_due_ms(leaf, 1) - pki.renewal_due_ms(leaf, 0)) / 1000
        shortest, longest = PAUSE_S
        return min(max(life_s * PAUSE, shortest), longest) * random.uniform(0.5, 1)  # noqa: S311  spreads load

    async def _sleep(self, seconds: float) -> None:
        self._asked.clear()
        try:
            async with asyncio.timeout(max(seconds, 0)):
                await self._asked.wait()
        except TimeoutError:
            return
