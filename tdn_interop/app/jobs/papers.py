"""The papers of one job: what this node signs, what it checks of others, and the bundle made of them.

Agreement and digests belong to `Part`; identity keys come from pins and from records that the top signed,
never from a message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tdn_interop import identity
from tdn_interop.algo.machine import Effect, Event
from tdn_interop.app.evidence import bundle, wire
from tdn_interop.app.evidence.chain import check_attestation
from tdn_interop.app.evidence.statements import (
    VERDICT_KIND,
    Attestation,
    Consent,
    Outcome,
    Statement,
    Verdict,
    digest,
)
from tdn_interop.app.evidence.verdict import check_outcome, check_statements
from tdn_interop.app.jobs import agreement as agreements
from tdn_interop.app.jobs import job_events as steps
from tdn_interop.app.jobs import job_protocol as words
from tdn_interop.app.jobs import job_wire
from tdn_interop.app.jobs.agreement import Approved
from tdn_interop.app.jobs.job_replay import Past
from tdn_interop.app.jobs.job_work import Part
from tdn_interop.app.mesh import Mesh
from tdn_interop.app.store.jobs import JobPartyRow
from tdn_interop.errors import Reason, guard
from tdn_interop.identity import Signed
from tdn_interop.transport.records_wire import decode_signed, encode_signed
from tdn_interop.transport.trust import now_ms


class Papers:
    """Signs, checks and keeps. `verdict` is set when it has been accepted."""

    def __init__(self, mesh: Mesh, part: Part) -> None:
        self._mesh = mesh
        self._part = part
        self._key = mesh.standing.key
        self.record = mesh.standing.membership.record
        self.verdict: Signed | None = None
        self.verdict_index: int | None = None  # of the event about it, when it is in our log
        self.given: Signed | None = None  # at the coordinator: the verdict as it was signed
        self.bundle: bytes | None = None
        # What each party has said so far, at the coordinator; elsewhere only what we have stated.
        self.parties: dict[str, JobPartyRow] = {}
        self._records: dict[str, Signed] = {}
        self._consents: dict[str, Signed] = {}
        self._attestations: dict[str, Attestation] = {}
        self._missing: set[str] = set()
        self._stated: Signed | None = None
        self._verdict_sha256 = b""

    def recall(self, event: Event, answered: Effect | None) -> None:
        """Know again what came with an event that an earlier process has taken, in answer to this effect."""
        part = self._part
        match event, answered:
            case steps.Approved(offer=offer), _:
                part.offer = offer
            case steps.Agreed(agreement_sha256=digest_), _:
                part.agreement_digest = digest_
            case steps.AgreementAccepted(agreement_sha256=digest_), steps.CheckAgreement(agreement=agreement):
                part.agreement, part.agreement_digest = job_wire.decode_agreement(agreement), digest_
            case steps.StatementSigned(statement=statement), _:
                self._state(statement)
            case steps.VerdictSigned(verdict=verdict), steps.SignVerdict(missing=missing):
                self.give(verdict, missing)
            case steps.VerdictAccepted(), steps.AcceptVerdict(verdict=verdict):
                self.verdict = verdict

    def recall_record(self, past: Past) -> None:
        """Know again what is on record of the job, for want of a journal."""
        row = past.row
        if row.agreement:
            self._part.agreement = job_wire.decode_agreement(row.agreement)
            self._part.agreement_digest = agreements.digest(row.agreement)
        for said in past.parties:
            self.parties[said.party] = said
            if said.record:
                self._records[said.party] = decode_signed(said.record)
            if said.consent:
                self._consents[said.party] = decode_signed(said.consent)
            if said.statement and said.party == self._mesh.me:
                self._stated = decode_signed(said.statement)
        if row.verdict and row.coordinator == self._mesh.me:
            verdict = decode_signed(row.verdict)
            self.give(verdict, wire.decode_verdict(verdict.statement).missing)

    def stated(self, epoch: int) -> list[words.Stated]:
        """What the parties have stated, as messages of `epoch`."""
        rows = [row for row in self.parties.values() if row.statement]
        signed = {row.party: decode_signed(row.statement or b"") for row in rows}
        return [
            words.Stated(
                party, epoch, one, job_wire.decode_statement(one.statement)[1], self._records.get(party)
            )
            for party, one in signed.items()
        ]

    # -- as a party ----------------------------------------------------------------------------

    def consent(self) -> Signed:
        """Our consent to the agreement of the part."""
        return self._key.sign(identity.CONSENT, job_wire.encode_consent(self._wanted_consent()))

    def statement(self, outcome: Outcome, epoch: int) -> Signed:
        """Our statement of how our part ended; made once."""
        part = self._part
        made = Statement(
            part.job_id, self._mesh.me, outcome, part.agreement_digest, epoch, part.commitment, now_ms(),
            part.coordinator,
        )  # fmt: skip
        return self._state(self._key.sign(identity.STATEMENT, job_wire.encode_statement(made)))

    def _state(self, statement: Signed) -> Signed:
        self._stated = statement
        before = self._said_by(self._mesh.me)
        self.parties[self._mesh.me] = replace(before, statement=encode_signed(statement))
        return statement

    def accept(self, verdict: Signed, records: Sequence[Signed] = ()) -> None:
        """Take the verdict as the end of the job; `records` tell the keys of parties that we have not met.

        1. The coordinator signed it, about this job and the agreement we consented to, if we did.
        2. Each statement in it is its party's, made to this coordinator, about this job.
        3. The outcome follows from them.
        4. Parties with and without statement are those of the flow.
        5. Ours is the one we made; if it is not there, it is named as missing.

        Errors: SIGNATURE_INVALID, IDENTITY_MISMATCH, EVIDENCE_BROKEN.
        """
        part, told = self._part, guard("TDN-F-TSK-07")
        self._signed(identity.VERDICT, part.coordinator, verdict)  # 1
        found = wire.decode_verdict(verdict.statement)
        agreed = not part.agreement_digest or found.agreement_sha256 in {part.agreement_digest, b""}
        about = found.job_id == part.job_id and agreed
        told.check(about, Reason.IDENTITY_MISMATCH, "the verdict is about another job or agreement")
        known = [self._mesh.record(record) for record in records]
        keys = {record.node_id: record.identity_key for record in known}

        def key_of(node: str) -> bytes:
            return keys.get(node) or self._mesh.key_of(node)

        statements = check_statements(part.coordinator, found, key_of)  # 2
        check_outcome(found, statements)  # 3
        parties = sorted([*(s.signer for s in found.statements), *found.missing])
        told.check(
            parties == sorted(part.flow.parties), Reason.EVIDENCE_BROKEN, "the verdict names other parties"
        )  # 4
        ours = [s for s in found.statements if s.signer == self._mesh.me]
        told.check(
            ours in ([], [self._stated]), Reason.SIGNATURE_INVALID,
            "the verdict does not hold what this node stated",
        )  # 5  # fmt: skip
        self.verdict = verdict

    def _wanted_consent(self) -> Consent:
        part = self._part
        return Consent(part.job_id, part.agreement_digest, part.coordinator, tuple(sorted(part.flow.parties)))

    # -- as the coordinator --------------------------------------------------------------------

    def check(self, message: words.Message) -> None:
        """Refuse what a party did not sign, or signed for something else; the job machine takes it as it is.

        Errors: SIGNATURE_INVALID, DIGEST_MISMATCH, IDENTITY_MISMATCH.
        """
        match message:
            case words.Admitted(sender=sender, consent=signed):
                self._signed(identity.CONSENT, sender, signed)
                same = wire.decode_consent(signed.statement) == self._wanted_consent()
                guard("TDN-F-TSK-02").check(
                    same, Reason.DIGEST_MISMATCH, f"{sender} consents to another agreement"
                )
            case words.Stated(sender=sender, statement=signed, record=record):
                self._signed(identity.STATEMENT, sender, signed)
                if record:
                    guard("TDN-F-TSK-07").check(
                        self._mesh.record(record).node_id == sender,
                        Reason.IDENTITY_MISMATCH,
                        f"{sender} sends the record of another node",
                    )
                stated = wire.decode_statement(signed.statement)
                told = (stated.job_id, stated.party, stated.coordinator)
                guard("TDN-F-TSK-07").check(
                    told == (self._part.job_id, sender, self._mesh.me),
                    Reason.IDENTITY_MISMATCH,
                    f"the statement of {sender} is about another job",
                )

    def keep(self, message: words.Message) -> None:
        """Keep what record and bundle need of an accepted message of a party."""
        said: dict[str, Any] = {}
        match message:
            case words.Approval(sender=sender, offer=offer, record=record):
                self._records[sender] = record
                said = {"offer": encode_signed(offer), "record": encode_signed(record)}
            case words.Admitted(sender=sender, consent=consent):
                self._consents[sender] = consent
                said = {"consent": encode_signed(consent)}
            case words.Stated(sender=sender, statement=statement, record=record):
                said = {"statement": encode_signed(statement)}
                if record:
                    self._records[sender] = record
                    said |= {"record": encode_signed(record)}
            case words.Attested(attestation=attestation):
                said = {"attestation": attestation}
        before = self._said_by(message.sender)
        self.parties[message.sender] = replace(before, state=type(message).__name__.upper(), **said)

    def _said_by(self, party: str) -> JobPartyRow:
        return self.parties.get(party) or JobPartyRow(self._part.job_id, party, "")

    def keep_attestation(self, sender: str, data: bytes) -> bool:
        """Keep a party's attestation; True when that of every party which the verdict heard is there.

        A wrong one is worse than none, because the bundle would not verify. Errors: EVIDENCE_BROKEN,
        SIGNATURE_INVALID.
        """
        attestation = wire.decode_attestation(data)
        check_attestation(attestation, *self._mesh.trust.keys)
        event = wire.decode_event(attestation.event.statement)
        about = (event.node, event.kind, event.subject, event.statement_sha256)
        guard("TDN-F-EVD-08").check(
            about == (sender, VERDICT_KIND, self._part.job_id, self._verdict_sha256),
            Reason.EVIDENCE_BROKEN,
            f"{sender} attests something else",
        )
        self._attestations[sender] = attestation
        return self._attestations.keys() >= set(self._part.flow.parties) - self._missing

    def agree(self, approvals: Sequence[words.Approval]) -> steps.Agreed:
        """The agreement that follows from the approvals. Errors: those of `agreement.agree`."""
        approved = [Approved(each.offer, each.record) for each in approvals]
        made = agreements.agree(self._part.job_id, self._part.flow, approved, self._mesh.record)
        data = job_wire.encode_agreement(made)
        self._part.agreement_digest = agreements.digest(data)
        records = tuple(self._records[offer.signer] for offer in made.offers)
        return steps.Agreed(data, self._part.agreement_digest, records)

    def sign_verdict(self, effect: steps.SignVerdict) -> Signed:
        """The verdict over the statements of the parties."""
        statements = tuple(stated.statement for stated in effect.statements)
        reason = effect.failure.reason.name if effect.failure else ""
        agreement = self._part.agreement_digest
        made = Verdict(self._part.job_id, effect.outcome, agreement, statements, effect.missing, reason)
        signed = self._key.sign(identity.VERDICT, job_wire.encode_verdict(made, effect.failure))
        self.give(signed, effect.missing)
        return signed

    def give(self, verdict: Signed, missing: Sequence[str]) -> None:
        """Keep the verdict of the job, which misses the statements of these."""
        self.given, self._missing, self._verdict_sha256 = verdict, set(missing), digest(verdict)

    def records(self) -> tuple[Signed, ...]:
        """The NodeRecords of the parties that have sent theirs, by party."""
        return tuple(self._records[party] for party in sorted(self._records))

    def make_bundle(self) -> None:
        """Build and verify the bundle, once. Errors: EVIDENCE_BROKEN, TOO_LARGE."""
        if self.bundle is None and self.verdict is not None:
            records = [*self._records.values(), self.record]
            made = bundle.build(self.verdict, self._consents.values(), self._attestations.values(), records)
            bundle.verify(made, *self._mesh.trust.keys)
            self.bundle = made

    def _signed(self, context: str, sender: str, signed: Signed) -> None:
        good = signed.signer == sender and identity.verify(context, signed, self._mesh.key_of(sender))
        guard("TDN-F-EVD-01").check(
            good, Reason.SIGNATURE_INVALID, f"{sender} did not sign its {context.rpartition('/')[2]}"
        )
