"""RenewalService on both sides: a member asks over its link, its issuer gives fresh certificates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from tdn_interop import identity
from tdn_interop._pb.tdn.transport.v1 import renewal_service_pb2 as pb
from tdn_interop._pb.tdn.transport.v1 import renewal_service_pb2_grpc
from tdn_interop.errors import Reason, guard
from tdn_interop.identity import Identity
from tdn_interop.transport import pki, records_wire
from tdn_interop.transport.issuer import Issuer, check_member, read_application
from tdn_interop.transport.link import CALL_S, Link
from tdn_interop.transport.membership import Members
from tdn_interop.transport.records_wire import Application


@dataclass(frozen=True, slots=True)
class Renewed:
    """Fresh certificates and the keys that belong to them."""

    chain: list[x509.Certificate]
    tls_key: ec.EllipticCurvePrivateKey
    authority: pki.Authority | None


class RenewalServicer(renewal_service_pb2_grpc.RenewalServiceServicer):
    """Serves members directly below; who they are comes from the certificate of the link."""

    def __init__(self, issuer: Issuer, members: Members, peer_of: Callable[[str], str]) -> None:
        self._issuer = issuer
        self._members = members
        self._peer_of = peer_of

    async def Renew(  # noqa: N802  the name of the RPC
        self, request: pb.RenewRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.RenewResponse:
        """See the proto."""
        application = read_application(records_wire.signed_from_pb(request.application))
        await check_member(self._members, self._peer_of(context.peer()), application)
        self._issuer.check(application)
        issued = await self._issuer.issue(application)
        return pb.RenewResponse(
            tls_chain_der=[pki.der(c) for c in issued.chain], ca_der=pki.der(issued.ca) if issued.ca else b""
        )


async def renew(link: Link, key: Identity, role: str, ca_key: ec.EllipticCurvePrivateKey | None) -> Renewed:
    """Ask the parent; a hub gives the key of its CA, an old one or a new one.

    Errors: IDENTITY_MISMATCH when the answer is not ours, UNREACHABLE, and the parent's refusals.
    """
    tls_key = pki.new_key()
    application = Application(
        key.node, role, key.public_key, pki.request(key.node, tls_key), pki.request(key.node, ca_key) if ca_key else b"",
    )  # fmt: skip
    signed = key.sign(identity.APPLICATION, records_wire.encode_application(application))
    stub = renewal_service_pb2_grpc.RenewalServiceStub(link.channel)
    request = pb.RenewRequest(application=records_wire.signed_to_pb(signed))
    answer = await link.ask(stub.Renew(request, timeout=CALL_S))
    chain = [pki.read(der) for der in answer.tls_chain_der]
    ours = bool(chain) and pki.read_peer(pki.der(chain[0])).node == key.node
    ours = ours and chain[0].public_key() == tls_key.public_key()
    authority = pki.Authority(pki.read(answer.ca_der), ca_key, tuple(chain[1:])) if ca_key else None
    ours = ours and (authority is None or authority.certificate.public_key() == authority.key.public_key())
    guard("TDN-T-IDN-04").check(
        ours, Reason.IDENTITY_MISMATCH, f"{link.node} sent a certificate that is not ours"
    )
    return Renewed(chain, tls_key, authority)
