"""Enrolment at the issuing side: a token is spent, a leaf issued, the identity key endorsed by the top."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio

from tdn_interop import identity, ids
from tdn_interop._pb.tdn.transport.v1 import enrolment_service_pb2, enrolment_service_pb2_grpc
from tdn_interop.errors import Reason, Refused, guard
from tdn_interop.identity import Identity, Signed
from tdn_interop.transport import pki, records_wire
from tdn_interop.transport.issuer import Issuer, read_application
from tdn_interop.transport.membership import Members
from tdn_interop.transport.records_wire import NodeRecord
from tdn_interop.transport.trust import now_ms

Context = grpc.aio.ServicerContext[Any, Any]
Endorse = Callable[[Signed], Awaitable[Signed]]


class Endorser:
    """The top's log of identity keys."""

    def __init__(self, key: Identity, members: Members) -> None:
        self._key = key
        self._members = members

    async def endorse(self, signed: Signed) -> Signed:
        """Log the applicant and sign its record. Errors: ALREADY_EXISTS when its id has another key."""
        application = read_application(signed)
        parent = ids.parent(application.node_id)
        record = NodeRecord(application.node_id, application.role, application.identity_key, parent, now_ms())
        fresh = self._key.sign(identity.NODE_RECORD, records_wire.encode_record(record))
        return await self._members.endorse(record, fresh)


class EndorsementServicer(enrolment_service_pb2_grpc.EndorsementServiceServicer):
    """Endorse for hubs: a hub may speak only for its own children."""

    def __init__(
        self, endorser: Endorser, is_member: Callable[[str], bool], peer_of: Callable[[str], str]
    ) -> None:
        self._endorser = endorser
        self._is_member = is_member
        self._peer_of = peer_of

    async def Endorse(  # noqa: N802  the name of the RPC
        self, request: enrolment_service_pb2.EndorseRequest, context: Context
    ) -> enrolment_service_pb2.EndorseResponse:
        """See the proto."""
        signed = records_wire.signed_from_pb(request.application)
        hub = self._peer_of(context.peer())
        role = records_wire.decode_application(signed.statement).role
        ok = self._is_member(hub) and ids.parent(signed.signer) == hub and role == "child"
        guard("TDN-T-IDN-07").check(
            ok, Reason.POLICY_DENIED, f"{hub} cannot speak for {signed.signer} as {role}", Refused
        )
        record = await self._endorser.endorse(signed)
        return enrolment_service_pb2.EndorseResponse(record=records_wire.signed_to_pb(record))


class EnrolmentServicer(enrolment_service_pb2_grpc.EnrolmentServiceServicer):
    """Makes members of nodes directly below the issuer; `trust` is the root it hangs on, and the bundle of the top."""

    def __init__(
        self, issuer: Issuer, trust: Callable[[], tuple[bytes, Signed | None]], own_record: Signed, members: Members,
        endorse: Endorse,
    ) -> None:  # fmt: skip
        self._issuer = issuer
        self._trust = trust
        self._own_record = own_record
        self._members = members
        self._endorse = endorse

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve there."""
        enrolment_service_pb2_grpc.add_EnrolmentServiceServicer_to_server(self, server)

    async def GetTrust(  # noqa: N802  the name of the RPC
        self, request: enrolment_service_pb2.GetTrustRequest, context: Context
    ) -> enrolment_service_pb2.GetTrustResponse:
        """See the proto."""
        del request, context
        root, bundle = self._trust()
        told = records_wire.signed_to_pb(bundle) if bundle else None
        return enrolment_service_pb2.GetTrustResponse(root_der=root, trust_bundle=told)

    async def Enrol(  # noqa: N802  the name of the RPC
        self, request: enrolment_service_pb2.EnrolRequest, context: Context
    ) -> enrolment_service_pb2.EnrolResponse:
        """See the proto.

        The token is checked first and spent last, together with the membership: a failure in between
        leaves it good for another try.
        """
        del context
        signed = records_wire.signed_from_pb(request.application)
        application = read_application(signed)
        self._issuer.check(application)
        secret = hashlib.sha256(request.secret).digest()
        await self._members.check_token(secret, application.node_id, application.role)
        record = await self._endorse(signed)
        issued = await self._issuer.issue(application)
        await self._members.admit(secret, records_wire.decode_record(record.statement), record)
        return enrolment_service_pb2.EnrolResponse(
            tls_chain_der=[pki.der(c) for c in issued.chain],
            ca_der=pki.der(issued.ca) if issued.ca else b"",
            record=records_wire.signed_to_pb(record),
            issuer_record=records_wire.signed_to_pb(self._own_record),
        )
