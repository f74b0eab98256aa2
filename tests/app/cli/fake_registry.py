"""The register and the backups of the fake node."""

from tdn_interop._pb.tdn.app.v1 import backup_service_pb2, backup_service_pb2_grpc, registry_service_pb2_grpc
from tdn_interop._pb.tdn.app.v1 import registry_service_pb2 as pb
from tdn_interop._pb.tdn.common.v1.identity_pb2 import Role

SHA = "ab" * 32
AT = 1_700_000_000_000


class FakeRegistry(
    registry_service_pb2_grpc.RegistryServiceServicer, backup_service_pb2_grpc.BackupServiceServicer
):
    """Notes every request at `node`."""

    def __init__(self, node):
        self._node = node

    @classmethod
    def add_to(cls, server, node):
        one = cls(node)
        registry_service_pb2_grpc.add_RegistryServiceServicer_to_server(one, server)
        backup_service_pb2_grpc.add_BackupServiceServicer_to_server(one, server)

    def RevokeNode(self, request, context):
        self._node._note(request, context)
        return pb.RevokeNodeResponse(node_id=request.node_id, listed=request.reason != "top is away")

    def ListMembers(self, request, context):
        self._node._note(request, context)
        one = {"role": Role.ROLE_CHILD, "identity_sha256": SHA, "enrolled_at_ms": AT}
        return pb.ListMembersResponse(
            members=[
                pb.Member(node_id="bank-a.cn", state="ACTIVE", certificate_expires_at_ms=AT, **one),
                pb.Member(node_id="bank-b.cn", state="REVOKED", **one),
            ]
        )

    def GetStanding(self, request, context):
        self._node._note(request, context)
        return pb.GetStandingResponse(
            lists=[pb.ListStanding(top="cn", version=7, issued_at_ms=AT, age_s=12.5)],
            revoked=[pb.RevokedNode(node_id="bank-b.cn", at_ms=AT, reason="key lost")],
        )

    def BackUp(self, request, context):
        self._node._note(request, context)
        return backup_service_pb2.BackUpResponse(
            path=request.path, bytes=4096, sha256=SHA, files=["identity.key", "node.db"]
        )
