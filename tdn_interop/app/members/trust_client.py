"""The asking side of `TrustService`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from tdn_interop._pb.tdn.app.v1 import trust_service_pb2 as pb
from tdn_interop._pb.tdn.app.v1.trust_service_pb2_grpc import TrustServiceStub

Document = dict[str, Any]


class TrustClient:
    """Asks one node; `ask(method, request)` answers with a document and knows the errors."""

    def __init__(self, channel: grpc.aio.Channel, ask: Callable[..., Awaitable[Document]]) -> None:
        self._stub = TrustServiceStub(channel)
        self._ask = ask

    async def export(self) -> Document:
        """ExportTop."""
        return await self._ask(self._stub.ExportTop, pb.ExportTopRequest())

    async def federate(self, card: str) -> Document:
        """Federate."""
        return await self._ask(self._stub.Federate, pb.FederateRequest(card=card))

    async def part(self, top: str) -> Document:
        """EndFederation."""
        return await self._ask(self._stub.EndFederation, pb.EndFederationRequest(top=top))

    async def tops(self) -> Document:
        """ListTops."""
        return await self._ask(self._stub.ListTops, pb.ListTopsRequest())

    async def ca(self) -> Document:
        """GetCa."""
        ca: Document = (await self._ask(self._stub.GetCa, pb.GetCaRequest()))["ca"]
        return ca

    async def roll_over(self, overlap_s: int) -> Document:
        """RollOverCa."""
        ca: Document = (await self._ask(self._stub.RollOverCa, pb.RollOverCaRequest(overlap_s=overlap_s)))[
            "ca"
        ]
        return ca

    async def retire(self) -> Document:
        """RetireRoot."""
        ca: Document = (await self._ask(self._stub.RetireRoot, pb.RetireRootRequest()))["ca"]
        return ca
