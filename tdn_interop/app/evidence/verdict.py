"""Whether a verdict follows from what the parties signed. The same for a party that is handed one and for a bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tdn_interop.app.evidence import wire
from tdn_interop.app.evidence.chain import check_signature
from tdn_interop.app.evidence.statements import Outcome, Statement, Verdict
from tdn_interop.errors import PeerProtocolError, Reason, guard
from tdn_interop.identity import STATEMENT

KeyOf = Callable[[str], bytes]


def check_statements(coordinator: str, verdict: Verdict, key_of: KeyOf) -> dict[str, Statement]:
    """The statements in a verdict that `coordinator` signed, by party; each is its party's, about this job.

    Errors: EVIDENCE_BROKEN, SIGNATURE_INVALID.
    """
    found: dict[str, Statement] = {}
    for signed in verdict.statements:
        statement = wire.decode_statement(signed.statement)
        holds(statement.party == signed.signer, f"{signed.signer} states something for {statement.party}")
        check_signature(STATEMENT, signed, key_of(signed.signer), "a statement")
        holds(statement.job_id == verdict.job_id, f"{statement.party} speaks of another job")
        # Nobody but the node that the parties reported to can give the verdict.
        holds(statement.coordinator == coordinator, f"{statement.party} reports to {statement.coordinator}")
        # A party that never saw the agreement of a failed job cannot name it.
        early = not statement.agreement_sha256 and verdict.outcome is not Outcome.SUCCEEDED
        same = statement.agreement_sha256 == verdict.agreement_sha256
        holds(same or early, f"{statement.party} speaks of another agreement")
        found[statement.party] = statement
    stated = [signed.signer for signed in verdict.statements]
    holds(is_sorted(stated) and is_sorted(verdict.missing), "the parties are not sorted or one stands twice")
    holds(not set(stated) & set(verdict.missing), "a party is named as missing that made a statement")
    holds(coordinator in found, "the coordinator made no statement")
    return found


def check_outcome(verdict: Verdict, statements: dict[str, Statement]) -> None:
    """The outcome follows from the statements. Errors: EVIDENCE_BROKEN."""
    said = {statement.outcome for statement in statements.values()}
    if verdict.outcome is not Outcome.SUCCEEDED:
        holds(verdict.outcome in said or verdict.missing, "no party states this outcome")
        return
    epochs = {statement.epoch for statement in statements.values()}
    holds(said == {Outcome.SUCCEEDED} and not verdict.missing, "not every party states success")
    holds(len(epochs) == 1, "the parties speak of different epochs")
    holds(verdict.agreement_sha256, "a job without an agreement cannot succeed")
    holds(len(statements) > 1, "a job has at least two parties")
    holds(not verdict.failure, "a job that succeeded has no failure")


def is_sorted(nodes: Sequence[str]) -> bool:
    """Sorted, and nobody twice."""
    return list(nodes) == sorted(set(nodes))


def holds(ok: object, message: str) -> None:
    """Errors: EVIDENCE_BROKEN."""
    guard("TDN-F-EVD-09").check(ok, Reason.EVIDENCE_BROKEN, message, PeerProtocolError)
