"""The CA of a hub or top: what it issues, to whom, and for how long."""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cryptography import x509

from tdn_interop import identity, ids
from tdn_interop.errors import Reason, Refused, guard
from tdn_interop.identity import Signed
from tdn_interop.transport import pki, records_wire
from tdn_interop.transport.membership import Members
from tdn_interop.transport.pki import Authority
from tdn_interop.transport.records_wire import Application


@dataclass(frozen=True, slots=True)
class Issued:
    """A leaf with the certificates above it, without the root, and for a hub its intermediate CA."""

    chain: list[x509.Certificate]
    ca: x509.Certificate | None


Note = Callable[[str, Issued], Awaitable[None]]


class Issuer:
    """Issues for nodes directly below `node`.

    `authority` is asked each time, for a CA may be followed by another one while the node runs; `note`
    hears of whatever was issued, before anybody gets it.
    """

    def __init__(
        self, node: str, role: str, authority: Callable[[], Authority], note: Note,
        leaf_life: dt.timedelta = pki.LEAF_LIFE,
    ) -> None:  # fmt: skip
        self.node = node
        self._role = role
        self._authority = authority
        self._note = note
        self._leaf_life = leaf_life

    def check(self, application: Application) -> None:
        """Whether the application is for this issuer. Errors: POLICY_DENIED, INVALID_REQUEST for its requests."""
        below = ids.parent(application.node_id) == self.node
        ok = below and application.role in (("child", "hub") if self._role == "top" else ("child",))
        message = f"{self.node} cannot enrol {application.node_id} as {application.role}"
        guard("TDN-T-IDN-07").check(ok, Reason.POLICY_DENIED, message, Refused)
        pki.requested_key(application.tls_csr)
        if application.role == "hub":
            pki.requested_key(application.ca_csr)

    async def issue(self, application: Application) -> Issued:
        """Certificates for the keys of an application that was checked."""
        authority, node = self._authority(), application.node_id
        leaf = pki.issue_leaf(authority, node, pki.requested_key(application.tls_csr), self._leaf_life)
        own = () if self._role == "top" else (authority.certificate,)
        chain = [leaf, *own, *authority.above]
        ca = None
        if application.role == "hub":
            ca = pki.issue_intermediate(authority, node, pki.requested_key(application.ca_csr))
        issued = Issued(chain, ca)
        await self._note(node, issued)
        return issued


def read_application(signed: Signed) -> Application:
    """The application, if the key it names signed it. Errors: SIGNATURE_INVALID, INVALID_REQUEST."""
    application = records_wire.decode_application(signed.statement)
    ok = signed.signer == application.node_id
    ok = ok and identity.verify(identity.APPLICATION, signed, application.identity_key)
    guard("TDN-T-IDN-07").check(ok, Reason.SIGNATURE_INVALID, "the applicant did not sign its application")
    return application


async def check_member(members: Members, node: str, application: Application) -> None:
    """Whether `node`, a member now, may have what is applied for. Errors: POLICY_DENIED, IDENTITY_MISMATCH."""
    guard("TDN-T-IDN-04").check(
        application.node_id == node, Reason.IDENTITY_MISMATCH, f"{node} applies for {application.node_id}", Refused
    )  # fmt: skip
    signed = await members.record(node) if members.known(node) else None
    if signed is None:
        guard("TDN-T-IDN-04").refuse(Reason.POLICY_DENIED, f"{node} is no member here", Refused)
    record = records_wire.decode_record(signed.statement)
    same = (record.identity_key, record.role) == (application.identity_key, application.role)
    guard("TDN-T-IDN-04").check(
        same, Reason.IDENTITY_MISMATCH, f"{node} is a member with another identity key or role", Refused
    )
