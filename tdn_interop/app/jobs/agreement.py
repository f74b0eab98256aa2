"""From approvals to one agreement: every party computes it and compares. Pure but for signatures.

An agreement holds the flow's digest, every party's signed offer and identity key, and the choice that
the negotiation rule gives for the offers. Whoever strips or adds anything in between changes a signed
offer or gets other bytes than the parties compute themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tdn_interop import identity
from tdn_interop.algo.catalogue import algorithm
from tdn_interop.algo.handshake import Choice, Proposal, Wanted, agreement_digest, check_choice, negotiate
from tdn_interop.app.jobs import flow as flows
from tdn_interop.app.jobs import job_wire
from tdn_interop.app.jobs.flow import FlowSpec
from tdn_interop.app.jobs.terms import Agreement, Offer
from tdn_interop.errors import NegotiationFailed, PeerProtocolError, Reason, guard
from tdn_interop.identity import Signed
from tdn_interop.transport.records_wire import NodeRecord

ReadRecord = Callable[[Signed], NodeRecord]


@dataclass(frozen=True, slots=True)
class Approved:
    """One party's signed offer and its record."""

    offer: Signed
    record: Signed


def agree(job_id: str, flow: FlowSpec, approved: Sequence[Approved], read_record: ReadRecord) -> Agreement:
    """The agreement that follows from the approvals of all parties.

    1. There is exactly one approval for each party of the flow.
    2. The top signed the record, and its key signed the offer, for this job and this flow.
    3. The inputs offered are those of the flow.
    4. The rule chooses from the proposals.

    Errors: TRANSCRIPT_MISMATCH (1-3), SIGNATURE_INVALID (2), UNSUPPORTED_ALGO, UNSUPPORTED_PARAMS (4).
    """
    ordered = sorted(approved, key=lambda one: one.offer.signer)
    parties = [one.offer.signer for one in ordered]
    _same(parties == sorted(flow.parties), "the offers are not those of the parties of the flow")  # 1
    offers = {one.offer.signer: _offer(job_id, flow, one, read_record) for one in ordered}  # 2, 3
    choice = _negotiated({party: offer.proposal for party, offer in offers.items()}, _wanted(flow))  # 4
    keys = tuple(read_record(one.record).identity_key for one in ordered)
    model = algorithm(choice.algorithm).security_model.id
    signed = tuple(one.offer for one in ordered)
    return Agreement(job_id, flows.flow_sha256(flow), signed, keys, choice, model)


def confirm(
    data: bytes, records: Sequence[Signed], job_id: str, flow: FlowSpec, own: Signed, read_record: ReadRecord
) -> Agreement:
    """The agreement in `data` if it is exactly what `agree` gives and holds our own offer.

    Errors: HANDSHAKE_REFUSED (a choice that the rule does not give), TRANSCRIPT_MISMATCH, and those of `agree`.
    """
    told = job_wire.decode_agreement(data)
    _same(len(records) == len(told.offers), "offers and records differ in number")
    approved = [Approved(offer, record) for offer, record in zip(told.offers, records, strict=True)]
    _same(own in told.offers, "our own offer is missing or changed")
    computed = agree(job_id, flow, approved, read_record)
    proposals = {offer.signer: job_wire.decode_offer(offer.statement).proposal for offer in told.offers}
    check_choice(told.choice, proposals, _wanted(flow))
    _same(job_wire.encode_agreement(computed) == data, "the rule gives another agreement for these offers")
    return computed


def digest(agreement: bytes) -> bytes:
    """The agreement digest, 32 bytes; it stands in consents, statements, verdicts and every task message."""
    return agreement_digest(agreement)


def _wanted(flow: FlowSpec) -> Wanted:
    task = flows.only_task(flow)
    return Wanted((flows.algorithm_id(task),), task.suites)


def _negotiated(proposals: Mapping[str, Proposal], wanted: Wanted) -> Choice:
    """The choice; what each side wanted stands in the refusal, because nobody has seen it all."""
    try:
        return negotiate(proposals, wanted)
    except NegotiationFailed as error:
        sides = {"the flow": wanted.suites} | {party: _suites(p) for party, p in proposals.items()}
        told = "; ".join(f"{side}: {', '.join(suites) or 'any'}" for side, suites in sides.items())
        guard("TDN-A-NEG-01").refuse(error.reason, f"{error.message} ({told})", NegotiationFailed)


def _suites(proposal: Proposal) -> list[str]:
    return sorted({suite for algorithm in proposal.algorithms for suite in algorithm.suites})


def _offer(job_id: str, flow: FlowSpec, one: Approved, read_record: ReadRecord) -> Offer:
    record = read_record(one.record)
    party = one.offer.signer
    _same(record.node_id == party, f"the record that comes with the offer of {party} names {record.node_id}")
    good = identity.verify(identity.OFFER, one.offer, record.identity_key)
    guard("TDN-F-CTR-01").check(good, Reason.SIGNATURE_INVALID, f"{party} did not sign its offer")
    offer = job_wire.decode_offer(one.offer.statement)
    _same(offer.job_id == job_id, f"the offer of {party} is for another job")
    _same(offer.flow_sha256 == flows.flow_sha256(flow), f"{party} approved another flow")
    _same(offer.proposal.party == party, f"the offer of {party} proposes for another party")
    wanted = [entry.resource for task in flow.tasks for entry in task.inputs if entry.party == party]
    offered = [entry.resource for entry in offer.inputs]
    fits = len(wanted) == len(offered) and all(
        got == asked or got.startswith(f"{asked}@") for got, asked in zip(offered, wanted, strict=True)
    )
    _same(fits, f"{party} offers other inputs than the flow names")
    return offer


def _same(ok: object, message: str) -> None:
    guard("TDN-A-NEG-02").check(ok, Reason.TRANSCRIPT_MISMATCH, message, PeerProtocolError)
