"""What a node has on record of its jobs: one transaction per turn, and how to find it again.

The row of the job, what its parties have said, the events its machines have taken, what they make other nodes
hear, the parcels all that came in, and the evidence of it: together or not at all.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import sqlalchemy as sa
import structlog

from tdn_interop.app.evidence.log import EvidenceLog
from tdn_interop.app.evidence.statements import VERDICT_KIND, Outcome, digest
from tdn_interop.app.jobs import flow as flows
from tdn_interop.app.jobs import job_protocol as words
from tdn_interop.app.jobs import job_wire, journal
from tdn_interop.app.jobs.job import JobState
from tdn_interop.app.jobs.job_replay import Past
from tdn_interop.app.jobs.party import PartyState
from tdn_interop.app.mesh import Mesh
from tdn_interop.app.post.post import Parcel
from tdn_interop.app.store import jobs as rows
from tdn_interop.app.store import log as log_rows
from tdn_interop.app.store.engine import Store
from tdn_interop.app.store.jobs import JobRow
from tdn_interop.app.telemetry import Metrics
from tdn_interop.errors import Reason, Unavailable
from tdn_interop.identity import Signed
from tdn_interop.transport.frame import Failure
from tdn_interop.transport.records_wire import decode_signed, encode_signed
from tdn_interop.transport.trust import now_ms

if TYPE_CHECKING:
    from tdn_interop.app.jobs.job_run import JobRun

_log = structlog.get_logger("tdn.jobs")
# How long the post tries to deliver the end of a job, and a party without a verdict would still take one.
LATE_S = 7 * 86_400
# What a party can say about the job before it has heard the verdict.
_SEEN = {
    PartyState.PENDING: JobState.INITIALIZED,
    PartyState.AWAITING_APPROVAL: JobState.AWAITING_APPROVAL,
    PartyState.APPROVED: JobState.AWAITING_APPROVAL,
    PartyState.RESERVED: JobState.ADMITTING,
    PartyState.READY: JobState.READY,
    PartyState.RUNNING: JobState.RUNNING,
    PartyState.LOST: JobState.RECOVERING,
    PartyState.COMPUTED: JobState.RUNNING,
    PartyState.SUCCESS: JobState.VERIFYING,
    PartyState.REJECTED: JobState.REJECTING,
    PartyState.FAILED: JobState.FAILING,
    PartyState.CANCELLED: JobState.CANCELLING,
}
# How the job has ended for a party whose coordinator never gave the verdict.
_ALONE = {
    PartyState.SUCCESS: JobState.FAILED,
    PartyState.REJECTED: JobState.REJECTED,
    PartyState.FAILED: JobState.FAILED,
    PartyState.CANCELLED: JobState.CANCELLED,
}


class Records:
    """Writes and finds the records of one node."""

    def __init__(self, mesh: Mesh, store: Store, log: EvidenceLog, metrics: Metrics) -> None:
        self._me, self._post, self._refused = mesh.me, mesh.post, mesh.refused
        self._store, self._log, self._metrics = store, log, metrics

    async def write(self, run: JobRun) -> None:
        """Write the turn of `run`. Errors: STORE_UNAVAILABLE; the turn then waits for the next time."""
        row, turn = job_row(run), run.pending.copy()
        states, parties = (row.state, row.party_state), list(run.papers.parties.values())
        verdict = run.papers.verdict if run.papers.verdict_index is None else None

        def write(connection: sa.Connection) -> tuple[int | None, dict[str, Unavailable]]:
            rows.put(connection, row)
            for party in parties:
                rows.put_party(connection, party)
            for number, entry in enumerate(turn.entries, run.written):
                rows.add_event(connection, journal.encode(row.job_id, number, entry))
            for parcel in turn.parcels:
                self._post.done_in(connection, parcel)
            index = self._note(connection, row, verdict, changed=run.noted != states)
            return index, self._send(connection, run, turn.sends)

        index, full = await self._store.run(write)
        run.pending.written(turn)
        run.written += len(turn.entries)
        if verdict:
            run.papers.verdict_index = index
        for peer in {send.to for send in turn.sends}:
            self._post.wake(peer)
        for peer, error in full.items():
            self._refused(error)
            run.lost(peer)
        if run.noted != states:
            run.noted = states
            self._metrics.job.labels(row.state).inc()
            _log.info("job", job=row.job_id, state=row.state, party_state=row.party_state)

    def _send(
        self, connection: sa.Connection, run: JobRun, sends: list[words.Send]
    ) -> dict[str, Unavailable]:
        """Give messages to the post; why it does not take some. Whoever has so much to fetch is as good as lost."""
        times, full = run.part.flow.timeouts, {}
        for send in sends:
            body = job_wire.encode_message(run.part.job_id, send.message)
            last = isinstance(send.message, words.Conclude)
            try:
                self._post.send_in(connection, send.to, body, LATE_S if last else times.total_s)
            except Unavailable as error:
                full[send.to] = error
        return full

    def _note(
        self, connection: sa.Connection, row: JobRow, verdict: Signed | None, *, changed: bool
    ) -> int | None:
        """Events of the evidence log: one of the verdict, when it has been accepted, and one of every change of state."""
        index = None
        if verdict:
            facts = {"outcome": row.state}
            index = self._log.append_in(connection, VERDICT_KIND, row.job_id, facts, digest(verdict))
        if changed:
            facts = {
                "state": row.state,
                "partyState": row.party_state,
                "epoch": str(row.epoch),
                "flowSha256": row.flow_sha256.hex(),
            }
            self._log.append_in(connection, "job.state", row.job_id, facts)
        return index

    async def done(self, parcel: Parcel) -> None:
        """Nothing comes of a parcel."""
        await self._store.run(lambda c: self._post.done_in(c, parcel))

    async def say(self, peer: str, job_id: str, message: words.Message) -> None:
        """Tell a node something about a job that is not open here. Errors: RESOURCE_EXHAUSTED."""
        body = job_wire.encode_message(job_id, message)
        await self._store.run(lambda c: self._post.send_in(c, peer, body, LATE_S))
        self._post.wake(peer)

    async def conclusion(self, job_id: str, epoch: int) -> words.Message:
        """What a party that still reports about a job hears: how it has ended, or that it has no coordinator here."""

        def find(connection: sa.Connection) -> words.Message | None:
            row = rows.get(connection, job_id)
            if row is None or row.coordinator != self._me or row.verdict is None:
                return None
            verdict = decode_signed(row.verdict)
            records = [each.record for each in rows.parties(connection, job_id) if each.record]
            outcome = job_wire.decode_verdict_outcome(verdict.statement)
            return words.Conclude(self._me, epoch, verdict, outcome, tuple(map(decode_signed, records)))

        lost = Failure(Reason.JOB_UNKNOWN, "the job is not open here", self._me)
        return await self._store.run(find) or words.Abort(self._me, epoch, Outcome.FAILED, lost)

    async def past(self, job_id: str) -> Past | None:
        """What is on record of one job."""

        def find(connection: sa.Connection) -> Past | None:
            row = rows.get(connection, job_id)
            return _past(connection, row) if row else None

        return await self._store.run(find)

    async def unfinished(self) -> list[Past]:
        """What is on record of every job with which something is left to do; journals nobody will ask for go."""

        def find(connection: sa.Connection) -> list[Past]:
            for row in rows.unfinished(connection):
                if row.ended_at_ms and row.ended_at_ms + LATE_S * 1000 < now_ms():
                    rows.drop_events(connection, row.job_id)
            return [_past(connection, row) for row in rows.unfinished(connection)]

        return await self._store.run(find)

    async def close(self, job_id: str) -> None:
        """Nothing is left to do with a job."""
        await self._store.run(lambda c: rows.drop_events(c, job_id))


def _past(connection: sa.Connection, row: JobRow) -> Past:
    noted = [leaf.idx for leaf in log_rows.about(connection, row.job_id) if leaf.kind == VERDICT_KIND]
    events = tuple(rows.events(connection, row.job_id))
    return Past(row, events, tuple(rows.parties(connection, row.job_id)), noted[0] if noted else None)


def job_row(run: JobRun) -> JobRow:
    """The row of a job as it stands."""
    part, flow, state = run.part, run.part.flow, _state(run)
    choice = part.agreement.choice if part.agreement else None
    verdict = run.papers.verdict or run.papers.given
    return JobRow(
        part.job_id, "coordinator" if run.job else "party", part.coordinator, flows.canonical(flow),
        flows.flow_sha256(flow), state.name, run.party.state.name, run.created_at_ms, now_ms(), run.party.epoch,
        job_wire.encode_agreement(part.agreement) if part.agreement else None,
        choice.algorithm if choice else "", choice.suite if choice else "",
        None if run.failure is None else asdict(run.failure) | {"reason": run.failure.reason.name},
        dict(part.facts), part.hops, encode_signed(verdict) if verdict else None, run.papers.bundle,
        run.ended_at_ms,
    )  # fmt: skip


def _state(run: JobRun) -> JobState:
    """The state of the job, as far as this node knows."""
    if run.papers.verdict:
        return JobState[job_wire.decode_verdict_outcome(run.papers.verdict.statement).name]
    if run.job:
        return JobState[run.job.state.name]
    state = PartyState[run.party.state.name]
    if run.over:
        return _ALONE[state]
    again = run.party.epoch and state in {PartyState.RESERVED, PartyState.READY}
    return JobState.RECOVERING if again else _SEEN[state]
