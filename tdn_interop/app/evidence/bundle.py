"""Evidence bundles: everything that proves one job, verifiable offline with the identity key of the top.

`verify` goes through numbered steps (`STEPS`); a refusal names the one that failed. It needs no clock, no
network and no database, and trusts nothing but the key it is given. What it does not prove: that a log was
never shown differently to somebody who is not in this bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from tdn_interop.app.evidence import wire
from tdn_interop.app.evidence.chain import Keys, check_chain, check_event, check_one_history, check_signature
from tdn_interop.app.evidence.statements import (
    VERDICT_KIND,
    Attestation,
    Consent,
    Content,
    Event,
    Outcome,
    Statement,
    TreeHead,
    Verdict,
    digest,
)
from tdn_interop.app.evidence.verdict import check_outcome, check_statements, holds, is_sorted
from tdn_interop.errors import LocalProtocolError, PeerProtocolError, Reason, TdnError, guard
from tdn_interop.identity import CONSENT, VERDICT, Signed, fingerprint
from tdn_interop.transport.records_wire import decode_record

MAX_BUNDLE = 8192
# Any other reason of a failed step means that the bundle does not prove what it claims.
_KEPT = (Reason.SIGNATURE_INVALID, Reason.EQUIVOCATION)


@dataclass(frozen=True, slots=True)
class Party:
    """One party of a verified job. Without a statement `stated` is None, without an attestation `logs` is empty."""

    node: str
    stated: Outcome | None
    consented: bool
    result_commitment: bytes
    noted_at_ms: int
    logs: tuple[TreeHead, ...]


@dataclass(frozen=True, slots=True)
class Verified:
    """What a bundle proves. `failure` is the name of a reason, empty when the job succeeded.

    `confirmed_by`: the other parties whose signed papers name this coordinator. When it is empty, the
    bundle shows only what the coordinator says of itself.
    """

    job_id: str
    outcome: Outcome
    failure: str
    coordinator: str
    confirmed_by: tuple[str, ...]
    agreement_sha256: bytes
    verdict_sha256: bytes
    parties: tuple[Party, ...]
    tops: dict[str, bytes]
    size_bytes: int


def build(
    verdict: Signed,
    consents: Iterable[Signed],
    attestations: Iterable[Attestation],
    records: Iterable[Signed],
) -> bytes:
    """A bundle of what a coordinator holds; records that are not needed are left out, others merged.

    Errors: TOO_LARGE when it would be longer than 8,192 bytes; INVALID_REQUEST for parts that are malformed.
    """
    attested = sorted(attestations, key=lambda a: a.event.signer)
    agreed = sorted(consents, key=lambda c: c.signer)
    stated = wire.decode_verdict(verdict.statement).statements
    signers = {s.signer for s in (verdict, *stated, *agreed)}
    signers |= {s.signer for a in attested for s in (a.event, *(link.head for link in a.chain))}
    known = {
        decode_record(r.statement).node_id: r for r in (*records, *(r for a in attested for r in a.records))
    }
    tops = {r.signer for r in known.values()}
    content = Content(
        verdict, tuple(agreed), tuple(Attestation(a.event, a.chain) for a in attested),
        tuple(known[node] for node in sorted(signers & known.keys() - tops)),
    )  # fmt: skip
    bundle = wire.encode_bundle(content)
    guard("TDN-F-EVD-07").check(
        len(bundle) <= MAX_BUNDLE, Reason.TOO_LARGE, f"the bundle has {len(bundle)} bytes, {MAX_BUNDLE} are allowed",
        LocalProtocolError, sizeBytes=len(bundle), limitBytes=MAX_BUNDLE,
    )  # fmt: skip
    return bundle


def verify(bundle: bytes, *top_identity_keys: bytes) -> Verified:
    """Go through every step; a job across hierarchies needs the key of each top. Errors: EVIDENCE_BROKEN, SIGNATURE_INVALID, EQUIVOCATION, each with `step` and `stepName`."""
    work = _Work(bundle, top_identity_keys)
    for number, (name, step) in enumerate(STEPS, 1):
        try:
            step(work)
        except TdnError as error:
            reason = error.reason if error.reason in _KEPT else Reason.EVIDENCE_BROKEN
            guard(error.requirement).refuse(
                reason,
                f"step {number}, {name}: {error.message}",
                PeerProtocolError,
                step=number,
                stepName=name,
            )
    return work.result()


def describe(verified: Verified) -> dict[str, object]:
    """For people and JSON: digests in hexadecimal, one entry per party with the logs that hold its event."""
    return {
        "job_id": verified.job_id,
        "outcome": verified.outcome.name,
        "failure": verified.failure,
        "coordinator": verified.coordinator,
        "confirmed_by": list(verified.confirmed_by),
        "agreement_sha256": verified.agreement_sha256.hex(),
        "verdict_sha256": verified.verdict_sha256.hex(),
        "parties": [
            {
                "node": party.node,
                "stated": party.stated.name if party.stated else None,
                "consented": party.consented,
                "result_commitment": party.result_commitment.hex(),
                "noted_at_ms": party.noted_at_ms,
                "logs": [
                    {"node": h.node, "size": h.size, "root": h.root.hex(), "at_ms": h.at_ms}
                    for h in party.logs
                ],
            }
            for party in verified.parties
        ],
        "top": ", ".join(sorted(verified.tops)),
        "top_identity_sha256": ", ".join(fingerprint(key) for _, key in sorted(verified.tops.items())),
        "size_bytes": verified.size_bytes,
        "steps": [name for name, _ in STEPS],
    }


@dataclass(slots=True)
class _Work:
    """What the steps have found so far; each step fills in what the next ones read."""

    bundle: bytes
    top_keys: tuple[bytes, ...]
    plain: bytes = b""
    content: Content = field(init=False)
    keys: Keys = field(init=False)
    verdict: Verdict = field(init=False)
    statements: dict[str, Statement] = field(default_factory=dict)
    events: dict[str, Event] = field(default_factory=dict)
    logs: dict[str, tuple[TreeHead, ...]] = field(default_factory=dict)

    @property
    def parties(self) -> list[str]:
        """Every party of the job, sorted."""
        return sorted([*self.statements, *self.verdict.missing])

    @property
    def succeeded(self) -> bool:
        return self.verdict.outcome is Outcome.SUCCEEDED

    def result(self) -> Verified:
        consents = {signed.signer for signed in self.content.consents}
        return Verified(
            self.verdict.job_id, self.verdict.outcome, self.verdict.failure, self.content.verdict.signer,
            tuple(sorted((self.statements.keys() | consents) - {self.content.verdict.signer})),
            self.verdict.agreement_sha256, digest(self.content.verdict),
            tuple(self._party(node, node in consents) for node in self.parties),
            self.keys.tops, len(self.bundle),
        )  # fmt: skip

    def _party(self, node: str, consented: bool) -> Party:
        statement, event = self.statements.get(node), self.events.get(node)
        return Party(
            node, statement.outcome if statement else None, consented,
            statement.result_commitment if statement else b"", event.at_ms if event else 0, self.logs.get(node, ()),
        )  # fmt: skip


def _size(work: _Work) -> None:
    guard("TDN-F-EVD-07").check(
        len(work.bundle) <= MAX_BUNDLE, Reason.EVIDENCE_BROKEN, f"{len(work.bundle)} bytes are too many"
    )


def _undamaged(work: _Work) -> None:
    work.plain = wire.unpack_bundle(work.bundle)


def _form(work: _Work) -> None:
    work.content = wire.decode_content(work.plain)
    work.verdict = wire.decode_verdict(work.content.verdict.statement)


def _records(work: _Work) -> None:
    work.keys = Keys(work.content.records, *work.top_keys)


def _verdict(work: _Work) -> None:
    signed = work.content.verdict
    check_signature(VERDICT, signed, work.keys.of(signed.signer), "the verdict")


def _statements(work: _Work) -> None:
    work.statements |= check_statements(work.content.verdict.signer, work.verdict, work.keys.of)


def _outcome(work: _Work) -> None:
    check_outcome(work.verdict, work.statements)


def _consents(work: _Work) -> None:
    wanted = Consent(
        work.verdict.job_id, work.verdict.agreement_sha256, work.content.verdict.signer, tuple(work.parties)
    )
    for signed in work.content.consents:
        check_signature(CONSENT, signed, work.keys.of(signed.signer), "a consent")
        consent = wire.decode_consent(signed.statement)
        holds(consent == wanted, f"{signed.signer} consented to something else")
    _complete(work, [signed.signer for signed in work.content.consents], "consent")


def _events(work: _Work) -> None:
    for attestation in work.content.attestations:
        event = check_event(attestation, work.keys)
        holds(not attestation.records, "records stand at an attestation")
        about = (event.kind, event.subject, event.statement_sha256)
        expected = (VERDICT_KIND, work.verdict.job_id, digest(work.content.verdict))
        holds(about == expected, f"the event of {event.node} is not about this verdict")
        work.events[event.node] = event
    _complete(work, [a.event.signer for a in work.content.attestations], "event")
    holds(work.content.verdict.signer in work.events, "the coordinator has no event")


def _logs(work: _Work) -> None:
    for attestation in work.content.attestations:
        event = work.events[attestation.event.signer]
        work.logs[event.node] = check_chain(attestation, event, work.keys)


def _history(work: _Work) -> None:
    check_one_history([head for heads in work.logs.values() for head in heads])


def _nothing_else(work: _Work) -> None:
    unused = work.keys.unused()
    holds(not unused, f"{len(unused)} records belong to nobody in this job")


# What is checked, in this order; a number is a place in this list, from 1.
STEPS: tuple[tuple[str, Callable[[_Work], None]], ...] = (
    ("at most 8,192 bytes", _size),
    ("undamaged", _undamaged),
    ("well formed, in the one canonical form", _form),
    ("node records signed by the top", _records),
    ("verdict signed by the coordinator", _verdict),
    ("statements signed by the parties, about this job and agreement", _statements),
    ("outcome follows from the statements", _outcome),
    ("consents to this agreement", _consents),
    ("events signed by the parties, about this verdict", _events),
    ("events in the logs of their parties, and those logs in the logs above, up to the top", _logs),
    ("one history per log", _history),
    ("nothing else in it", _nothing_else),
)


def _complete(work: _Work, nodes: Sequence[str], what: str) -> None:
    """One of each party when the job succeeded, at most one otherwise."""
    holds(is_sorted(nodes) and set(nodes) <= set(work.parties), f"a {what} is out of place")
    holds(not work.succeeded or list(nodes) == work.parties, f"the {what} of a party is missing")
