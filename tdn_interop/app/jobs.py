"""Every job of this node: proposals in and out, decisions, records, watchers."""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import asdict

import sqlalchemy as sa
import structlog
import tenacity

from tdn_interop.app import flow as flows
from tdn_interop.app import job_protocol as words
from tdn_interop.app import job_wire, orphans
from tdn_interop.app.data import results
from tdn_interop.app.evidence.log import EvidenceLog
from tdn_interop.app.evidence.statements import VERDICT_KIND, Outcome, digest
from tdn_interop.app.flow import FlowSpec
from tdn_interop.app.job import JobState
from tdn_interop.app.job_answers import TOPIC, Answers
from tdn_interop.app.job_run import TO_PARTY, JobRun
from tdn_interop.app.job_work import Work
from tdn_interop.app.mesh import Mesh
from tdn_interop.app.party import PartyState
from tdn_interop.app.resources import Resources
from tdn_interop.app.store import jobs as rows
from tdn_interop.app.store.engine import Store
from tdn_interop.app.store.jobs import JobRow
from tdn_interop.app.telemetry import Metrics
from tdn_interop.errors import ConfigError, Reason, Refused, TdnError, Unavailable, guard
from tdn_interop.reasons import Retry
from tdn_interop.transport.channel import ChannelEvent
from tdn_interop.transport.frame import Failure
from tdn_interop.transport.records_wire import encode_signed
from tdn_interop.transport.trust import now_ms

_log = structlog.get_logger("tdn.jobs")
# Jobs that one coordinator may have open at this node.
MAX_OPEN = 64
BUNDLE_S = 30.0
# What a party can say about the job before it has heard the verdict.
_SEEN = {
    PartyState.PENDING: JobState.INITIALIZED,
    PartyState.AWAITING_APPROVAL: JobState.AWAITING_APPROVAL,
    PartyState.APPROVED: JobState.AWAITING_APPROVAL,
    PartyState.RESERVED: JobState.ADMITTING,
    PartyState.READY: JobState.READY,
    PartyState.RUNNING: JobState.RUNNING,
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


def _needs_new_session(error: BaseException) -> bool:
    return isinstance(error, TdnError) and error.reason.value.retry is Retry.NEW_SESSION


class Jobs:
    """The job engine of one node."""

    def __init__(
        self, mesh: Mesh, store: Store, log: EvidenceLog, resources: Resources, metrics: Metrics
    ) -> None:
        self._mesh = mesh
        self._store = store
        self._log = log
        self._metrics = metrics
        self._work = Work(mesh, resources)
        self._runs: dict[str, JobRun] = {}
        self._created: dict[str, int] = {}
        self._ended: dict[str, int] = {}
        self._noted: dict[str, tuple[str, str]] = {}
        self._answers = Answers(mesh)
        self._watchers: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        mesh.admits = self._admits
        mesh.on_channel = self._on_channel

    async def start(self) -> None:
        """End what an earlier process left open, then listen for job messages."""
        await asyncio.to_thread(results.sweep, self._mesh.config.results)
        key = self._mesh.standing.key
        for orphan in await self._store.run(lambda c: orphans.end_all(c, key, self._log)):
            for party in orphan.parties:
                self._mesh.spawn(self._answers.insist(party, orphan.job_id, orphan.message))
        self._mesh.spawn(self._listen())

    async def close(self) -> None:
        """Stop every job where it is."""
        for run in list(self._runs.values()):
            await run.close()
        self._work.close()

    # -- the owner's verbs ---------------------------------------------------------------------

    async def run(self, flow_toml: str) -> str:
        """Propose a job; its id.

        Errors, before there is a job: those of the flow, POLICY_DENIED unless this node is a party, and
        why a party cannot be reached.
        """
        flow = flows.flow_from_toml(flow_toml)
        flows.only_task(flow)
        guard("TDN-F-TSK-02").check(
            self._mesh.me in flow.parties, Reason.POLICY_DENIED,
            f"{self._mesh.me} is no party of the flow, so it cannot propose it", ConfigError,
        )  # fmt: skip
        for node in flow.parties:
            await self._reach(node)
        job_id = secrets.token_hex(16)
        await self._begin(job_id, flow, self._mesh.me)
        return job_id

    async def _reach(self, node: str) -> None:
        """A name that nobody has is the author's mistake; and a job cannot start with a party that is away."""
        if node == self._mesh.me:
            return
        try:
            await self._mesh.resolve(node)
            await self._call(node)
        except TdnError as error:
            guard("TDN-F-TSK-02").refuse(
                error.reason, f"{node} cannot be reached: {error.message}", Unavailable
            )

    @tenacity.retry(
        stop=tenacity.stop_after_attempt(2),
        retry=tenacity.retry_if_exception(_needs_new_session),
        reraise=True,
    )
    async def _call(self, node: str) -> None:
        """Hear the node itself: a session from before it restarted looks alive until something is said on it."""
        await self._mesh.pings.ping(node, self._mesh.config.timeouts.dial_s)

    def decide(self, job_id: str, comment: str, *, approve: bool) -> None:
        """A human decides. Errors: STATE_CONFLICT, JOB_UNKNOWN."""
        self._open(job_id).decide(approve, comment)

    def cancel(self, job_id: str, comment: str) -> None:
        """Ask for an end. Errors: STATE_CONFLICT, JOB_UNKNOWN."""
        self._open(job_id).cancel(comment)

    async def find(self, start: str) -> JobRow:
        """The job whose id starts so. Errors: JOB_UNKNOWN, also when several do."""
        found = await self._store.run(lambda c: rows.starting_with(c, start)) if start else []
        guard("TDN-F-TSK-05").check(
            len(found) == 1,
            Reason.JOB_UNKNOWN,
            f"{len(found)} jobs here start with {start[:32]!r}",
            ConfigError,
        )
        return found[0]

    async def parties(self, job_id: str) -> dict[str, str]:
        """At the coordinator: the last thing that each party has said."""
        found = await self._store.run(lambda c: rows.parties(c, job_id))
        return {row.party: row.state for row in found if row.state}

    async def every(self) -> list[JobRow]:
        """All jobs."""
        return await self._store.run(rows.every)

    def progress(self, row: JobRow) -> float:
        """How far this node's part is, 0 to 1; within the run by the items that have passed."""
        if row.ended_at_ms:
            return 1.0
        order = list(PartyState)
        done = order.index(PartyState[row.party_state]) / (len(order) - 3)
        run = self._runs.get(row.job_id)
        if run and run.party.state is PartyState.RUNNING:
            own = int(run.part.facts.get("distinct_keys", "1000"))
            done += 0.15 * (1 - own / (own + run.progress_items))
        return min(done, 0.99)

    async def watch(self, job_id: str) -> AsyncIterator[JobRow]:
        """The job now and at each change, until it has ended."""
        changed = asyncio.Event()
        self._watchers[job_id].add(changed)
        try:
            while True:
                changed.clear()
                row = await self.find(job_id)
                yield row
                if row.ended_at_ms:
                    return
                await changed.wait()
        finally:
            self._watchers[job_id].discard(changed)

    async def bundle(self, job_id: str) -> bytes:
        """The evidence bundle. Errors: STATE_CONFLICT at other nodes than the coordinator, and before the end."""
        row = await self.find(job_id)
        guard("TDN-F-EVD-04").check(
            row.coordinator == self._mesh.me,
            Reason.STATE_CONFLICT,
            f"the bundle is at {row.coordinator}",
            Refused,
        )
        guard("TDN-F-EVD-04").check(
            row.ended_at_ms,
            Reason.STATE_CONFLICT,
            f"the job is {row.state}, there is no verdict yet",
            Refused,
        )
        guard("TDN-F-EVD-06").check(
            row.bundle, Reason.RECEIPT_MISSING, "not every party has attested the verdict", Unavailable
        )
        return row.bundle or b""

    # -- messages ------------------------------------------------------------------------------

    async def _listen(self) -> None:
        while True:
            peer, data = await self._mesh.channels.receive(TOPIC)
            try:
                job_id, message = job_wire.decode_message(peer, data)
                await self._dispatch(job_id, message)
            except TdnError as error:
                self._mesh.refused(error)
            except Exception:  # noqa: BLE001  a defect that one message meets must not make the node deaf for all others
                _log.exception("job message failed", peer=peer)

    async def _dispatch(self, job_id: str, message: words.Message) -> None:
        run = self._runs.get(job_id)
        if run is None and isinstance(message, words.Propose):
            run = await self._proposed(job_id, message)
        if run is None:
            await self._answer(job_id, message)
            guard("TDN-F-TSK-05").refuse(
                Reason.JOB_UNKNOWN,
                f"{type(message).__name__} from {message.sender} for a job that is not open here",
                Refused,
            )
        run.receive(message)

    async def _proposed(self, job_id: str, message: words.Propose) -> JobRun:
        known = await self._store.run(lambda c: rows.get(c, job_id))
        guard("TDN-F-TSK-03").check(
            known is None,
            Reason.STATE_CONFLICT,
            f"{message.sender} proposes a job that has ended here",
            Refused,
        )
        try:
            mine = sum(run.part.coordinator == message.sender and not run.over for run in self._runs.values())
            guard("TDN-T-LIM-03").check(
                mine < MAX_OPEN,
                Reason.RESOURCE_EXHAUSTED,
                f"{message.sender} has {mine} open jobs here",
                Refused,
            )
            flow = flows.flow_from_json(message.flow)
            flows.check_limits(flow, self._mesh.config.timeouts)
            for node in (self._mesh.me, message.sender):
                guard("TDN-F-TSK-02").check(
                    node in flow.parties, Reason.POLICY_DENIED, f"{node} is no party of the flow", Refused
                )
        except TdnError as error:
            refusal = words.Refusal(self._mesh.me, 0, Failure.of(error, self._mesh.me))
            self._answers.give(message.sender, job_id, refusal)
            raise
        return await self._begin(job_id, flow, message.sender)

    async def _answer(self, job_id: str, message: words.Message) -> None:
        """Tell a party that reports to us how its job has ended, or that it has no coordinator any more."""
        if isinstance(message, (*TO_PARTY, words.Attested)):
            return
        me, epoch = self._mesh.me, message.epoch

        def ended(connection: sa.Connection) -> words.Message | None:
            row = rows.get(connection, job_id)
            return orphans.conclusion(connection, row, epoch) if row and row.coordinator == me else None

        lost = Failure(Reason.JOB_UNKNOWN, "the job is not open here", me)
        answer = await self._store.run(ended) or words.Abort(me, epoch, Outcome.FAILED, lost)
        self._answers.give(message.sender, job_id, answer)

    async def _begin(self, job_id: str, flow: FlowSpec, coordinator: str) -> JobRun:
        self._created[job_id] = now_ms()
        run = JobRun(job_id, flow, coordinator, self._mesh, self._work, self._keep)
        self._runs[job_id] = run
        await self._keep(run)
        run.start()
        return run

    def _open(self, job_id: str) -> JobRun:
        run = self._runs.get(job_id)
        if run is None:
            guard("TDN-F-TSK-04").refuse(
                Reason.STATE_CONFLICT, "the job has ended or is not run by this process", Refused
            )
        return run

    def _admits(self, peer: str, topic: str) -> bool:
        if topic == TOPIC or topic.startswith("user/"):
            return True
        kind, _, rest = topic.partition("/")
        run = self._runs.get(rest.partition("/")[0])
        return kind == "task" and run is not None and peer in run.part.flow.parties

    def _on_channel(self, event: ChannelEvent) -> None:
        if event.kind == "failed":
            for run in self._runs.values():
                run.lost(event.peer)

    # -- the record ----------------------------------------------------------------------------

    async def _keep(self, run: JobRun) -> None:
        """Write the record and, in the same transaction, the events that belong to it.

        One tells of the verdict, when it has been accepted, and one of every change of state.
        """
        if run.over:
            self._end(run.part.job_id)
        async with run.recording:
            await self._write(run)
        for watcher in self._watchers.get(run.part.job_id, ()):
            watcher.set()

    async def _write(self, run: JobRun) -> None:
        row = self._row(run)
        states = (row.state, row.party_state)
        changed = self._noted.get(row.job_id) != states
        verdict = run.papers.verdict if run.papers.verdict_index is None else None

        def write(connection: sa.Connection) -> int | None:
            rows.put(connection, row)
            for party in run.papers.parties.values():
                rows.put_party(connection, party)
            index = None
            if verdict:
                outcome = {"outcome": row.state}
                index = self._log.append_in(connection, VERDICT_KIND, row.job_id, outcome, digest(verdict))
            if changed:
                facts = {
                    "state": row.state,
                    "partyState": row.party_state,
                    "epoch": str(row.epoch),
                    "flowSha256": row.flow_sha256.hex(),
                }
                self._log.append_in(connection, "job.state", row.job_id, facts)
            return index

        index = await self._store.run(write)
        self._noted[row.job_id] = states
        if verdict:
            run.papers.verdict_index = index
        if changed:
            self._metrics.job.labels(row.state).inc()
            _log.info("job", job=row.job_id, state=row.state, party_state=row.party_state)

    def _end(self, job_id: str) -> None:
        """Once for each job: it has ended, and only evidence may still come."""
        if job_id not in self._ended:
            self._ended[job_id] = now_ms()
            self._mesh.channels.discard(f"task/{job_id}/")
            asyncio.get_running_loop().call_later(BUNDLE_S, self._drop, job_id)

    def _drop(self, job_id: str) -> None:
        for memory in (self._noted, self._created, self._ended):
            memory.pop(job_id, None)
        run = self._runs.pop(job_id, None)
        if run:
            self._mesh.spawn(run.close())

    def _row(self, run: JobRun) -> JobRow:
        part, flow = run.part, run.part.flow
        choice = part.agreement.choice if part.agreement else None
        if run.papers.verdict:
            state = job_wire.decode_verdict_outcome(run.papers.verdict.statement).name
        elif run.job:
            state = run.job.state.name
        else:
            party = PartyState[run.party.state.name]
            state = (_ALONE if run.over else _SEEN)[party].name
        verdict = run.papers.verdict or run.papers.given
        created = self._created[part.job_id]
        return JobRow(
            part.job_id, "coordinator" if run.job else "party", part.coordinator, flows.canonical(flow),
            flows.flow_sha256(flow), state, run.party.state.name, created, now_ms(), run.party.epoch,
            job_wire.encode_agreement(part.agreement) if part.agreement else None,
            choice.algorithm if choice else "", choice.suite if choice else "",
            None if run.failure is None else asdict(run.failure) | {"reason": run.failure.reason.name},
            dict(part.facts), part.hops, encode_signed(verdict) if verdict else None, run.papers.bundle,
            self._ended.get(part.job_id, 0),
        )  # fmt: skip
