"""RegistryService on the control socket: the register and who is revoked."""

from __future__ import annotations

from typing import Any

import grpc.aio

from tdn_interop import ids
from tdn_interop._pb.tdn.app.v1 import registry_service_pb2 as pb
from tdn_interop._pb.tdn.app.v1 import registry_service_pb2_grpc
from tdn_interop.app.mesh import Mesh
from tdn_interop.identity import fingerprint
from tdn_interop.transport import records_wire

Context = grpc.aio.ServicerContext[Any, Any]


class RegistryServicer(registry_service_pb2_grpc.RegistryServiceServicer):
    """For the owner of the node."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    async def RevokeNode(self, request: pb.RevokeNodeRequest, context: Context) -> pb.RevokeNodeResponse:  # noqa: N802
        """See the proto."""
        del context
        listed = await self._mesh.revoking.revoke(ids.node_id(request.node_id), request.reason)
        return pb.RevokeNodeResponse(node_id=request.node_id, listed=listed)

    async def ListMembers(self, request: pb.ListMembersRequest, context: Context) -> pb.ListMembersResponse:  # noqa: N802
        """See the proto."""
        del request, context
        front = self._mesh.server.front
        return pb.ListMembersResponse(
            members=[
                pb.Member(
                    node_id=row.node_id, role=records_wire.ROLES[row.role], state=row.state,
                    identity_sha256=fingerprint(row.identity_key), enrolled_at_ms=row.enrolled_at_ms,
                    certificate_expires_at_ms=front.expires_at_ms(row.node_id),
                )
                for row in await self._mesh.register.every()
            ]
        )  # fmt: skip

    async def GetStanding(self, request: pb.GetStandingRequest, context: Context) -> pb.GetStandingResponse:  # noqa: N802
        """See the proto."""
        del request, context
        lists = self._mesh.lists
        return pb.GetStandingResponse(
            lists=[
                pb.ListStanding(
                    top=one.top, version=one.version, issued_at_ms=one.issued_at_ms, age_s=one.age_s, stale=one.stale
                )
                for one in lists.standings()
            ],
            revoked=[
                pb.RevokedNode(node_id=one.node_id, at_ms=one.at_ms, reason=one.reason)
                for one in lists.everybody()
            ],
        )  # fmt: skip
