"""Jobs that an earlier process of this node left open: they end here, and their parties hear how.

The rule that nobody states or decides twice holds over a restart, too: a statement or a verdict that is on
record is used again, never replaced by another one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import sqlalchemy as sa

from tdn_interop import identity
from tdn_interop.app import agreement as agreements
from tdn_interop.app import flow as flows
from tdn_interop.app import job_protocol as words
from tdn_interop.app import job_wire
from tdn_interop.app.evidence import wire
from tdn_interop.app.evidence.log import EvidenceLog
from tdn_interop.app.evidence.statements import VERDICT_KIND, Outcome, Statement, Verdict, digest
from tdn_interop.app.job_work import RESULT_FACTS
from tdn_interop.app.store import jobs as rows
from tdn_interop.app.store import log as log_rows
from tdn_interop.app.store.jobs import JobRow
from tdn_interop.errors import Reason
from tdn_interop.identity import Identity, Signed
from tdn_interop.transport.frame import Failure
from tdn_interop.transport.records_wire import decode_signed, encode_signed
from tdn_interop.transport.trust import now_ms

_ENDED = {outcome.name for outcome in Outcome}


@dataclass(frozen=True, slots=True)
class Orphan:
    """A job that this node coordinated, and what the other parties are to be told."""

    job_id: str
    parties: tuple[str, ...]
    message: words.Conclude


def end_all(connection: sa.Connection, key: Identity, log: EvidenceLog) -> list[Orphan]:
    """End every job that is open on record; those that this node coordinated."""
    return [
        orphan for row in rows.unfinished(connection) if (orphan := _Ending(connection, key, log, row).end())
    ]


def conclusion(connection: sa.Connection, row: JobRow, epoch: int) -> words.Conclude | None:
    """What a party that asks about an ended job is told; None when there is no verdict."""
    if row.verdict is None:
        return None
    verdict = decode_signed(row.verdict)
    records = [each.record for each in rows.parties(connection, row.job_id) if each.record]
    outcome = job_wire.decode_verdict_outcome(verdict.statement)
    return words.Conclude(row.coordinator, epoch, verdict, outcome, tuple(map(decode_signed, records)))


class _Ending:
    """The end of one job, in one transaction."""

    def __init__(self, connection: sa.Connection, key: Identity, log: EvidenceLog, row: JobRow) -> None:
        self._connection, self._key, self._log, self._row = connection, key, log, row
        self._flow = flows.flow_from_json(row.flow)
        self._digest = agreements.digest(row.agreement) if row.agreement else b""
        said = rows.parties(connection, row.job_id)
        self._statements = {each.party: decode_signed(each.statement) for each in said if each.statement}

    def end(self) -> Orphan | None:
        """Write the end down."""
        me, row = self._key.node, self._row
        failure = Failure(Reason.PARTY_LOST, f"{me} stopped while the job was open", me)
        verdict = self._verdict(failure) if row.coordinator == me else None
        if verdict:
            row = replace(row, verdict=encode_signed(verdict))
        told = conclusion(
            self._connection, row, row.epoch + 1
        )  # the start of the last epoch may not be on record
        state = told.outcome.name if told else row.state if row.state in _ENDED else Outcome.FAILED.name
        failed = row.failure or asdict(failure) | {"reason": failure.reason.name}
        row = replace(
            row, state=state, ended_at_ms=now_ms(), failure=None if state == Outcome.SUCCEEDED.name else failed,
            facts=self._kept_facts(),
        )  # fmt: skip
        rows.put(self._connection, row)
        self._log.append_in(self._connection, "job.orphaned", row.job_id, {"state": state})
        others = tuple(party for party in self._flow.parties if party != me)
        return Orphan(row.job_id, others, told) if verdict and told else None

    def _verdict(self, failure: Failure) -> Signed:
        """The verdict on record, or one from the statements on record."""
        verdict = decode_signed(self._row.verdict) if self._row.verdict else self._new_verdict(failure)
        noted = log_rows.about(self._connection, self._row.job_id)
        if all(leaf.kind != VERDICT_KIND for leaf in noted):
            facts = {"outcome": job_wire.decode_verdict_outcome(verdict.statement).name}
            self._log.append_in(self._connection, VERDICT_KIND, self._row.job_id, facts, digest(verdict))
        return verdict

    def _new_verdict(self, failure: Failure) -> Signed:
        me = self._key.node
        if me not in self._statements:
            self._statements[me] = self._own_statement()
        heard = {
            party: signed
            for party, signed in sorted(self._statements.items())
            if wire.decode_statement(signed.statement).agreement_sha256 in {b"", self._digest}
        }
        missing = tuple(sorted(set(self._flow.parties) - heard.keys()))
        outcome = _outcome([wire.decode_statement(signed.statement) for signed in heard.values()], missing)
        cause = None if outcome is Outcome.SUCCEEDED else failure
        made = Verdict(
            self._row.job_id, outcome, self._digest, tuple(heard.values()), missing,
            cause.reason.name if cause else "",
        )  # fmt: skip
        return self._key.sign(identity.VERDICT, job_wire.encode_verdict(made, cause))

    def _own_statement(self) -> Signed:
        row, me = self._row, self._key.node
        made = Statement(
            row.job_id, me, Outcome.FAILED, self._digest, row.epoch, b"", now_ms(), row.coordinator
        )
        return self._key.sign(identity.STATEMENT, job_wire.encode_statement(made))

    def _kept_facts(self) -> dict[str, str]:
        """The facts; a result that was not stated as delivered goes away."""
        facts, own = dict(self._row.facts), self._statements.get(self._key.node)
        if own and wire.decode_statement(own.statement).outcome is Outcome.SUCCEEDED:
            return facts
        if file := facts.get("result_file"):
            Path(file).unlink(missing_ok=True)
        return {name: fact for name, fact in facts.items() if name not in RESULT_FACTS}


def _outcome(statements: list[Statement], missing: tuple[str, ...]) -> Outcome:
    said = {statement.outcome for statement in statements}
    if missing or Outcome.FAILED in said:
        return Outcome.FAILED
    return next(iter(said - {Outcome.SUCCEEDED}), Outcome.SUCCEEDED)
