"""Enrolment at the joining side: from a token to certificates that are worth something."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from tdn_interop import config, identity
from tdn_interop._pb.tdn.transport.v1 import enrolment_service_pb2, enrolment_service_pb2_grpc
from tdn_interop.errors import PeerProtocolError, Reason, Refused, guard
from tdn_interop.identity import Identity, Signed
from tdn_interop.transport import pki, records_wire, status, tls, trust_wire
from tdn_interop.transport.dial import Dialled, Dialler
from tdn_interop.transport.front import connect_tcp
from tdn_interop.transport.records_wire import Application, Token
from tdn_interop.transport.trust import Membership

CALL_S = 15.0


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What a node has after enrolment; the keys are new and go into files of mode 0600."""

    root: x509.Certificate
    chain: list[x509.Certificate]
    tls_key: ec.EllipticCurvePrivateKey
    authority: pki.Authority | None
    membership: Membership
    bundle: Signed | None = None  # the newest of the top, if the issuer had one


async def enrol(token: Token, key: Identity, role: str, folder: Path) -> Enrolled:
    """Spend the token.

    1. Fetch the root from the issuer; nothing is believed yet.
    2. Its SHA-256 is the one in the token, or the top of the token says that it goes with that one.
    3. Connect again, now verifying the issuer's name below that root.
    4. Send the application, signed by our identity key.
    5. The record is signed by the top that the token names, and holds our key and our parent.
    6. The leaf names us and holds our TLS key; the CA certificate of a hub holds our CA key.

    Errors: IDENTITY_MISMATCH (2, 5, 6), TOKEN_INVALID, UNREACHABLE, and the issuer's refusals.
    """
    root, bundle = await _fetch_trust(token, folder)  # 1, 2
    root_pem = pki.pem(root).decode()
    tls_key, ca_key = pki.new_key(), pki.new_key() if role == "hub" else None
    application = Application(
        key.node, role, key.public_key, pki.request(key.node, tls_key), pki.request(key.node, ca_key) if ca_key else b"",
    )  # fmt: skip
    request = enrolment_service_pb2.EnrolRequest(
        secret=token.secret,
        application=records_wire.signed_to_pb(
            key.sign(identity.APPLICATION, records_wire.encode_application(application))
        ),
    )
    async with _Issuer(token, lambda: tls.enrolment_context(root_pem), folder) as issuer:  # 3
        answer = await issuer.enrol(request)  # 4
    membership = _membership(token, key, answer)  # 5
    chain = [pki.read(der) for der in answer.tls_chain_der]
    named = chain and pki.read_peer(pki.der(chain[0])).node == key.node
    _ours(named and chain[0].public_key() == tls_key.public_key())  # 6
    authority = pki.Authority(pki.read(answer.ca_der), ca_key, tuple(chain[1:])) if ca_key else None
    _ours(authority is None or authority.certificate.public_key() == authority.key.public_key())
    return Enrolled(root, chain, tls_key, authority, membership, bundle)


def _ours(ok: object) -> None:
    guard("TDN-T-IDN-07").check(
        ok, Reason.IDENTITY_MISMATCH, "the issuer sent a certificate that is not ours"
    )


async def _fetch_trust(token: Token, folder: Path) -> tuple[x509.Certificate, Signed | None]:
    async with _Issuer(token, lambda: tls.enrolment_context(None), folder) as issuer:
        answer = await issuer.trust()
    bundle = records_wire.signed_from_pb(answer.trust_bundle) if answer.HasField("trust_bundle") else None
    roots = _roots(token, bundle) if bundle else []
    accepted = [token.root_sha256, *(roots if token.root_sha256 in roots else [])]
    found = hashlib.sha256(answer.root_der).digest()
    guard("TDN-T-IDN-07").check(
        found in accepted, Reason.IDENTITY_MISMATCH, f"{token.endpoint} has another root than the token says",
        Refused,
    )  # fmt: skip
    return pki.read(answer.root_der), bundle if found in roots else None


def _roots(token: Token, bundle: Signed) -> list[bytes]:
    """SHA-256 of the roots of the token's top, by a bundle that it signed: two while one follows the other."""
    if not identity.verify(identity.TRUST_BUNDLE, bundle, token.top_identity_key):
        return []
    own = trust_wire.decode_bundle(bundle.statement).own
    return [hashlib.sha256(root).digest() for root in own.roots] if own.top == token.top else []


def _membership(token: Token, key: Identity, answer: enrolment_service_pb2.EnrolResponse) -> Membership:
    signed, above = (
        records_wire.signed_from_pb(answer.record),
        records_wire.signed_from_pb(answer.issuer_record),
    )
    good = all(
        s.signer == token.top and identity.verify(identity.NODE_RECORD, s, token.top_identity_key)
        for s in (signed, above)
    )
    guard("TDN-T-IDN-06").check(
        good, Reason.SIGNATURE_INVALID, f"{token.top} did not sign the records", PeerProtocolError
    )
    record, parent = records_wire.decode_record(signed.statement), records_wire.decode_record(above.statement)
    ours = (
        record.node_id == key.node
        and record.identity_key == key.public_key
        and parent.node_id == token.issuer
    )
    guard("TDN-T-IDN-06").check(
        ours, Reason.IDENTITY_MISMATCH, f"the record of {record.node_id} holds another key"
    )
    return Membership(token.top, token.top_identity_key, token.issuer, token.link_endpoint, signed, above)


class _Issuer:
    """A connection to the issuer's enrolment listener."""

    def __init__(self, token: Token, context: Callable[[], ssl.SSLContext], folder: Path) -> None:
        host, port = config.split_address(token.endpoint)
        self._dialled = Dialled(
            token.issuer, lambda: connect_tcp(host, port, CALL_S), Dialler(context, folder)
        )

    async def __aenter__(self) -> Self:
        await self._dialled.start()
        self._stub = enrolment_service_pb2_grpc.EnrolmentServiceStub(self._dialled.channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._dialled.close()

    async def trust(self) -> enrolment_service_pb2.GetTrustResponse:
        """The root and the bundle of the top; not believed yet."""
        try:
            return await self._stub.GetTrust(enrolment_service_pb2.GetTrustRequest(), timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            raise self._dialled.reason(error) or status.from_rpc_error(error) from error

    async def enrol(self, request: enrolment_service_pb2.EnrolRequest) -> enrolment_service_pb2.EnrolResponse:
        """Send the application."""
        try:
            return await self._stub.Enrol(request, timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            raise self._dialled.reason(error) or status.from_rpc_error(error) from error
