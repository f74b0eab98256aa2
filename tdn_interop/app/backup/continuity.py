"""Whether this process goes on where the node has stopped: its evidence log against what the parent has seen of it.

A copy from an earlier day, or a second copy that runs beside the first, would tell another history
than the one that is anchored above (RFC 9162 section 8.3, what a misbehaving log does). Such a process stops.
"""

from __future__ import annotations

import asyncio

import structlog

from tdn_interop import config as configuration
from tdn_interop.app.anchoring import Anchoring
from tdn_interop.app.evidence import wire
from tdn_interop.app.evidence.log import EvidenceLog
from tdn_interop.app.members.standing import Standing
from tdn_interop.app.store import post
from tdn_interop.config import NodeConfig
from tdn_interop.errors import LocalProtocolError, Reason, TdnError, guard
from tdn_interop.transport import tls
from tdn_interop.transport.dial import Dialler
from tdn_interop.transport.link import Link

# Stands in the folder of a restored node until its log has been compared.
MARKER = "restored.json"
COMPARE_S = 300.0
RETRY_S = 2.0
_FORKED = (Reason.EVIDENCE_BROKEN, Reason.EQUIVOCATION)

_log = structlog.get_logger("tdn.continuity")


class Continuity:
    """Compares while the node runs; `broken` is set, and `error` says why, when this process must not go on."""

    def __init__(self, anchoring: Anchoring) -> None:
        self._anchoring = anchoring
        self.broken = asyncio.Event()
        self.error: TdnError | None = None

    async def run(self, link: Link) -> None:
        """Compare when the link stands and every few minutes, until the node stops or `broken` is set."""
        while not self.broken.is_set():
            await link.linked.wait()
            answered = await self.compare()
            await asyncio.sleep(COMPARE_S if answered else RETRY_S)

    async def compare(self) -> bool:
        """Show the head of our log above; True when the parent has answered."""
        try:
            await _show(self._anchoring)
        except TdnError as error:
            if error.reason is Reason.EVIDENCE_BROKEN:
                self.error = error
                self.broken.set()
            _log.warning("log not compared", reason=error.reason.name, message=error.message)
            return self.broken.is_set()
        return True


async def prove_restored(config: NodeConfig, standing: Standing, log: EvidenceLog) -> None:
    """Before a restored node does anything: compare, and wait for the parent for as long as it takes.

    A top has nobody above. Errors: EVIDENCE_BROKEN.
    """
    marker, place = config.file(MARKER), standing.membership
    if not marker.exists():
        return
    if place.parent:
        _log.warning("a restored node compares its log with its parent first", parent=place.parent)
        dialler = Dialler(lambda: tls.client_context(standing.files), configuration.runtime_dir(config.dir))
        link = Link(config.id, place.parent, place.parent_link, dialler)
        await link.start()
        try:
            await _answered(Anchoring(log, place.record, link), link)
        finally:
            await link.close()
    await log.store.run(post.renew_streams)
    marker.unlink()


async def _answered(anchoring: Anchoring, link: Link) -> None:
    while True:
        await link.linked.wait()
        try:
            return await _show(anchoring)
        except TdnError as error:
            if error.reason in _FORKED:
                raise
            _log.warning("the parent does not answer", reason=error.reason.name, message=error.message)
            await asyncio.sleep(RETRY_S)


async def _show(anchoring: Anchoring) -> None:
    try:
        await anchoring.show()
    except TdnError as error:
        if error.reason not in _FORKED:
            raise
        size = wire.decode_tree_head((await anchoring.log.head()).statement).size
        guard("TDN-F-EVD-02").refuse(
            Reason.EVIDENCE_BROKEN,
            f"this copy of the node, with {size} events in its log, is not the one that others know: {error.message}. "
            "Do not run it: restore the newest backup, or revoke this id and enrol a new node",
            LocalProtocolError,
        )  # fmt: skip
