"""A node that answers the trust service with fixed content, and what another top would export."""

import base64

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tdn_interop import identity
from tdn_interop._pb.tdn.app.v1 import trust_service_pb2 as pb
from tdn_interop._pb.tdn.app.v1 import trust_service_pb2_grpc
from tdn_interop._pb.tdn.common.v1.identity_pb2 import Role
from tdn_interop.identity import Identity
from tdn_interop.transport import pki, records_wire, trust_wire

SHA = "ab" * 32
CA = pb.CaView(
    certificate_sha256=SHA, expires_at_ms=1_900_000_000_000, overlap_ends_at_ms=1_800_000_000_000,
    members=[pb.CaMember(node_id="bank-a.cn", role=Role.ROLE_CHILD, certificate_expires_at_ms=1_800_000_000_000)],
)  # fmt: skip


def card(top):
    """The text by which `top` gets known."""
    key = Identity(top, Ed25519PrivateKey.generate())
    root = pki.der(pki.create_root(top).certificate)
    own = trust_wire.TrustedTop(top, key.public_key, (root,))
    statement = trust_wire.encode_bundle(trust_wire.TrustBundle(top, 0, 1_700_000_000_000, (own,)))
    signed = key.sign(identity.FEDERATION, statement)
    return base64.urlsafe_b64encode(records_wire.encode_signed(signed)).decode()


class FakeTrust(trust_service_pb2_grpc.TrustServiceServicer):
    def ExportTop(self, request, context):
        return pb.ExportTopResponse(card="card")

    def Federate(self, request, context):
        return pb.FederateResponse(top="hk")

    def EndFederation(self, request, context):
        return pb.EndFederationResponse()

    def ListTops(self, request, context):
        return pb.ListTopsResponse(
            version=1, tops=[pb.TopView(top="cn", identity_sha256=SHA, root_sha256=[SHA])]
        )

    def GetCa(self, request, context):
        return pb.GetCaResponse(ca=CA)

    def RollOverCa(self, request, context):
        return pb.RollOverCaResponse(ca=CA)

    def RetireRoot(self, request, context):
        return pb.RetireRootResponse(ca=CA)
