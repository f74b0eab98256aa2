"""A CA is followed by another one: at a top a new root with an overlap, at a hub a new key below the same root.

The old root vouches for the new one by a certificate that lives as long as the overlap: whoever has not
heard of the new root yet accepts what hangs on it, and that very certificate tells when the overlap ends.
"""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass
from datetime import timedelta

import structlog

from tdn_interop.app.evidence.log import EvidenceLog
from tdn_interop.app.members import setup
from tdn_interop.app.members.federation import Federation
from tdn_interop.app.members.register import Register
from tdn_interop.app.members.renewal import ISSUED, Renewal
from tdn_interop.config import NodeConfig
from tdn_interop.errors import Reason, Refused, guard
from tdn_interop.transport import pki

# How often a top looks whether the overlap is over.
CHECK_S = 10.0

_log = structlog.get_logger("tdn.ca")


@dataclass(frozen=True, slots=True)
class MemberView:
    """What a member has of this CA: end of its newest certificate, and whether the CA of now issued it."""

    node_id: str
    role: str
    certificate_expires_at_ms: int
    current: bool


@dataclass(frozen=True, slots=True)
class CaView:
    """The CA of a node; the overlap ends at 0 when there is none."""

    certificate_sha256: str
    expires_at_ms: int
    overlap_ends_at_ms: int
    members: list[MemberView]


class Rollover:
    """The CA of a hub or top over time."""

    def __init__(
        self, config: NodeConfig, renewal: Renewal, federation: Federation, register: Register, log: EvidenceLog
    ) -> None:  # fmt: skip
        self._config = config
        self._renewal = renewal
        self._federation = federation
        self._register = register
        self._log = log

    @property
    def authority(self) -> pki.Authority:
        """The CA as it is now. Errors: UNSUPPORTED at a child."""
        guard("TDN-T-IDN-04").check(
            self._config.role != "child", Reason.UNSUPPORTED, f"{self._config.id} is no CA", Refused
        )
        return pki.load_authority(self._config.file("ca.pem"), self._config.file("ca.key"))

    async def begin(self, overlap: timedelta) -> None:
        """A new key from now on; at a top with a new root, and the old one counts until the overlap ends.

        Errors: STATE_CONFLICT while an overlap runs, UNSUPPORTED at a child; why the top signs no CA for a hub.
        """
        old = self.authority
        if self._config.role == "hub":
            await self._renewal.renew(pki.new_key())
        else:
            guard("TDN-T-IDN-04").check(
                not old.above, Reason.STATE_CONFLICT, "the old root still counts; end its overlap first: tdn ca retire",
                Refused,
            )  # fmt: skip
            new = pki.create_root(self._config.id)
            bridge = pki.cross_sign(old, new.certificate, overlap)
            setup.keep_authority(self._config.dir, dataclasses.replace(new, above=(bridge,)))
            self._federation.start()
            await self._renewal.renew()
        await self._note("ca.changed")

    async def retire(self) -> None:
        """The old root of a top counts no longer. Errors: STATE_CONFLICT when there is no overlap."""
        now = self.authority
        guard("TDN-T-IDN-04").check(
            now.above and self._config.role == "top", Reason.STATE_CONFLICT, "there is no old root here", Refused
        )  # fmt: skip
        setup.keep_authority(self._config.dir, dataclasses.replace(now, above=()))
        await self._end()

    async def run(self) -> None:
        """At a top: end each overlap when its time has come, and follow other tops."""
        while self._config.role == "top":
            self._federation.follow()
            if len(self._federation.bundle.own.roots) > 1 and not self.authority.above:
                await self._end()
            await asyncio.sleep(CHECK_S)

    async def show(self) -> CaView:
        """The CA, and which members have certificates of it."""
        ca = self.authority
        own = pki.lineage(ca.certificate).hex()
        return CaView(
            pki.sha256(ca.certificate).hex(), pki.renewal_due_ms(ca.certificate, 1),
            pki.renewal_due_ms(ca.above[0], 1) if self._config.role == "top" and ca.above else 0,
            [await self._member(row.node_id, row.role, own)
             for row in await self._register.every() if self._register.known(row.node_id)],
        )  # fmt: skip

    async def _member(self, node: str, role: str, own: str) -> MemberView:
        facts = [event.facts for _, event in await self._log.about(node) if event.kind == ISSUED]
        if not facts:
            return MemberView(node, role, 0, current=False)
        newest = facts[-1]
        return MemberView(node, role, int(newest["expiresAtMs"]), newest["authoritySha256"] == own)

    async def _end(self) -> None:
        self._federation.start()
        await self._renewal.renew()  # our own chain no longer shows what has ended
        await self._note("ca.retired")

    async def _note(self, kind: str) -> None:
        digest = pki.sha256(self.authority.certificate).hex()
        await self._log.append(kind, self._config.id, {"certificateSha256": digest})
        _log.info(kind, sha256=digest)
