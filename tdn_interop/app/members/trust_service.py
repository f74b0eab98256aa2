"""TrustService on the control socket: federation, and the CA of this node."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import grpc.aio

from tdn_interop import ids
from tdn_interop._pb.tdn.app.v1 import trust_service_pb2 as pb
from tdn_interop._pb.tdn.app.v1 import trust_service_pb2_grpc
from tdn_interop.app.members import federation
from tdn_interop.app.mesh import Mesh
from tdn_interop.transport import records_wire

Context = grpc.aio.ServicerContext[Any, Any]


class TrustServicer(trust_service_pb2_grpc.TrustServiceServicer):
    """For the owner of the node."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    async def ExportTop(self, request: pb.ExportTopRequest, context: Context) -> pb.ExportTopResponse:  # noqa: N802
        """See the proto."""
        del request, context
        return pb.ExportTopResponse(card=self._mesh.federation.card())

    async def Federate(self, request: pb.FederateRequest, context: Context) -> pb.FederateResponse:  # noqa: N802
        """See the proto."""
        del context
        other = federation.read_card(request.card)
        await self._mesh.federation.add(other)
        return pb.FederateResponse(top=other.top)

    async def EndFederation(  # noqa: N802
        self, request: pb.EndFederationRequest, context: Context
    ) -> pb.EndFederationResponse:
        """See the proto."""
        del context
        await self._mesh.federation.end(ids.node_id(request.top))
        return pb.EndFederationResponse()

    async def ListTops(self, request: pb.ListTopsRequest, context: Context) -> pb.ListTopsResponse:  # noqa: N802
        """See the proto."""
        del request, context
        bundle = self._mesh.federation.bundle
        found = [(top, federation.fingerprints(top)) for top in bundle.tops]
        return pb.ListTopsResponse(
            version=bundle.version, issued_at_ms=bundle.issued_at_ms,
            tops=[pb.TopView(top=top.top, identity_sha256=key, root_sha256=roots) for top, (key, roots) in found],
        )  # fmt: skip

    async def GetCa(self, request: pb.GetCaRequest, context: Context) -> pb.GetCaResponse:  # noqa: N802
        """See the proto."""
        del request, context
        return pb.GetCaResponse(ca=await self._ca())

    async def RollOverCa(self, request: pb.RollOverCaRequest, context: Context) -> pb.RollOverCaResponse:  # noqa: N802
        """See the proto."""
        del context
        await self._mesh.rollover.begin(timedelta(seconds=request.overlap_s))
        return pb.RollOverCaResponse(ca=await self._ca())

    async def RetireRoot(self, request: pb.RetireRootRequest, context: Context) -> pb.RetireRootResponse:  # noqa: N802
        """See the proto."""
        del request, context
        await self._mesh.rollover.retire()
        return pb.RetireRootResponse(ca=await self._ca())

    async def _ca(self) -> pb.CaView:
        ca = await self._mesh.rollover.show()
        return pb.CaView(
            certificate_sha256=ca.certificate_sha256, expires_at_ms=ca.expires_at_ms,
            overlap_ends_at_ms=ca.overlap_ends_at_ms,
            members=[
                pb.CaMember(
                    node_id=one.node_id, role=records_wire.ROLES[one.role],
                    certificate_expires_at_ms=one.certificate_expires_at_ms, current=one.current,
                )
                for one in ca.members
            ],
        )  # fmt: skip
