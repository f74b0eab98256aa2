"""Anchoring upwards: heads of this node's log go into the log of the parent, and so on up to the top.

One call goes up at a time and carries everything that came meanwhile, so a member that anchors in a loop
costs the others nothing and the logs above one leaf for each call, not one for each member and head.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import grpc.aio

from tdn_interop._pb.tdn.app.v1 import evidence_pb2, evidence_pb2_grpc
from tdn_interop.app.evidence import wire
from tdn_interop.app.evidence.anchor import take_head
from tdn_interop.app.evidence.log import EvidenceLog
from tdn_interop.app.evidence.statements import AnchorOffer, Attestation, Inclusion
from tdn_interop.app.members.register import Register
from tdn_interop.errors import Reason, Refused, TdnError, guard
from tdn_interop.identity import Signed
from tdn_interop.transport.link import CALL_S, Link
from tdn_interop.transport.rates import Bucket, Rate, Rates

Chain = tuple[tuple[Inclusion, ...], tuple[Signed, ...]]


# Anchors of one member in a second, lastingly and at once. A node that keeps to PACE never meets the limit, and
# 100 jobs a minute need no more than a few in a second.
RATE = Rate(per_s=10, burst=60)
PACE = Rate(per_s=10, burst=20)


class Anchoring:
    """Proofs from an event of this node up to the head of the top. `link` is None at a top."""

    def __init__(
        self, log: EvidenceLog, record: Signed, link: Link | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.log = log
        self._rates = Rates({"anchors": RATE}, clock)
        self._pace = Bucket(PACE, clock)
        self._leaves: set[int] = set()
        self._next: asyncio.Task[dict[int, Chain]] | None = None
        self._climbs: set[asyncio.Task[dict[int, Chain]]] = set()
        self._record = record
        self._link = link
        self._since = 0
        self._one = asyncio.Lock()

    async def attest(self, index: int) -> Attestation:
        """The event at `index` with the way from our log to the top's. Errors: those of the parents."""
        event = await self.log.event(index)
        return Attestation(event, *await self._chain(index))

    async def take(self, caller: str, offer: AnchorOffer) -> Chain:
        """Take the head of a member into our log and forward our own.

        Errors: RATE_LIMITED, those of `take_head` and the parents.
        """
        self._rates.take("anchors", caller)
        here = await take_head(self.log, caller, offer)
        return await self._chain(here.index)

    async def show(self) -> None:
        """Show the head of our log above, so that it is compared. Errors: EVIDENCE_BROKEN, EQUIVOCATION, and no answer."""
        async with self._one:
            await self._upwards(await self.log.head())

    async def close(self) -> None:
        """Give up what is on its way."""
        for climb in self._climbs:
            climb.cancel()
        await asyncio.gather(*self._climbs, return_exceptions=True)

    async def _chain(self, index: int) -> Chain:
        """The way from leaf `index` to the head of the top; the next call upwards takes it along."""
        self._leaves.add(index)
        if self._next is None:
            self._next = asyncio.create_task(self._climb())
            self._climbs.add(self._next)
            self._next.add_done_callback(self._climbed)
        return (await asyncio.shield(self._next))[index]

    def _climbed(self, climb: asyncio.Task[dict[int, Chain]]) -> None:
        self._climbs.discard(climb)
        if not climb.cancelled():
            climb.exception()  # whoever still waits for it has it; perhaps nobody does

    async def _climb(self) -> dict[int, Chain]:
        async with self._one:
            while self._link and (wait_s := self._pace.wait_s()):  # noqa: ASYNC110  time is all that it waits for
                await asyncio.sleep(wait_s)
            leaves, self._leaves, self._next = self._leaves, set(), None
            places = await self.log.store.run(lambda c: [self.log.inclusion_in(c, i) for i in sorted(leaves)])
            links, records = await self._upwards(places[-1].head)  # one transaction: they have one head
        return {here.index: ((here, *links), (self._record, *records)) for here in places}

    async def _upwards(self, head: Signed) -> Chain:
        """The places of `head` in the logs above, and the records of their nodes. Nothing above a top.

        Called with the lock held: heads that arrive above out of order would look like a log cut short.
        """
        if self._link is None:
            return (), ()
        try:
            return await self._ask(head, self._since)
        except TdnError as error:
            last = error.metadata.get("lastSize", "")
            if error.reason is not Reason.STATE_CONFLICT or not last.isdigit():
                raise
            # The parent remembers more than we do after a restart; it tells from where to prove.
            return await self._ask(head, int(last))

    async def _ask(self, head: Signed, since: int) -> Chain:
        assert self._link is not None  # noqa: S101  checked by the caller
        size = wire.decode_tree_head(head.statement).size
        offer = await self.log.offer(head, min(since, size))
        stub = evidence_pb2_grpc.EvidenceServiceStub(self._link.channel)
        answer = await self._link.ask(stub.Anchor(wire.offer_to_pb(offer), timeout=CALL_S))
        self._since = max(self._since, size)
        return wire.anchored_from_pb(answer)


class EvidenceServicer(evidence_pb2_grpc.EvidenceServiceServicer):
    """Takes heads of members."""

    def __init__(self, anchoring: Anchoring, register: Register, peer_of: Any) -> None:
        self._anchoring = anchoring
        self._register = register
        self._peer_of = peer_of

    async def Anchor(  # noqa: N802  the name of the RPC
        self, request: evidence_pb2.AnchorRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> evidence_pb2.AnchorResponse:
        """See the proto."""
        caller = self._peer_of(context.peer())
        guard("TDN-T-RTE-05").check(
            self._register.known(caller), Reason.POLICY_DENIED, f"{caller} is no member here", Refused
        )
        return wire.anchored_to_pb(*await self._anchoring.take(caller, wire.offer_from_pb(request)))
