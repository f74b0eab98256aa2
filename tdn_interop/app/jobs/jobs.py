"""Every job of this node: proposals in and out, decisions, records, watchers."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable

import structlog
import tenacity

from tdn_interop.app.data import results
from tdn_interop.app.evidence.log import EvidenceLog
from tdn_interop.app.jobs import flow as flows
from tdn_interop.app.jobs import job_protocol as words
from tdn_interop.app.jobs import job_wire
from tdn_interop.app.jobs.flow import FlowSpec
from tdn_interop.app.jobs.job_case import TO_PARTY
from tdn_interop.app.jobs.job_record import Records
from tdn_interop.app.jobs.job_replay import Past
from tdn_interop.app.jobs.job_run import JobRun
from tdn_interop.app.jobs.job_work import Work
from tdn_interop.app.jobs.lease import Leases
from tdn_interop.app.jobs.party import PartyState
from tdn_interop.app.mesh import Mesh
from tdn_interop.app.post.post import Parcel
from tdn_interop.app.resources import Resources
from tdn_interop.app.store import jobs as rows
from tdn_interop.app.store.engine import Store
from tdn_interop.app.store.jobs import JobRow
from tdn_interop.app.telemetry import Metrics
from tdn_interop.errors import ConfigError, Reason, Refused, TdnError, Unavailable, guard
from tdn_interop.transport.channel import ChannelEvent, within
from tdn_interop.transport.frame import Failure

_log = structlog.get_logger("tdn.jobs")
# Jobs that one coordinator may have open at this node.
MAX_OPEN = 64
BUNDLE_S = 30.0
# A verdict that could not be attested is tried again after so long.
ATTEST_AGAIN_S = 300.0
# A message that meets a database that fails is taken again after so long.
AGAIN_S = 0.5


class Jobs:
    """The job engine of one node."""

    def __init__(
        self, mesh: Mesh, store: Store, log: EvidenceLog, resources: Resources, metrics: Metrics
    ) -> None:
        self._mesh = mesh
        self._store = store
        self._work = Work(mesh, resources)
        self._records = Records(mesh, store, log, metrics)
        self._runs: dict[str, JobRun] = {}
        self._opening = asyncio.Lock()
        self._watchers: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._leases = Leases(self._runs.values, mesh.pings.ping, time.monotonic)
        self._parties: dict[str, tuple[str, ...]] = {}  # whose data is admitted, by job
        self._pasts: list[Past] = []
        self._timers: dict[str, asyncio.TimerHandle] = {}  # of jobs that have ended

    async def recall(self) -> None:
        """Read what an earlier process left open; before peers are served, which may go on with it at once."""
        self._pasts = await self._records.unfinished()
        for past in self._pasts:
            try:
                self._parties[past.row.job_id] = flows.flow_from_json(past.row.flow).parties
            except TdnError as error:  # not even its flow can be read
                self._mesh.refused(error)
        self._mesh.admits = self._admits
        self._mesh.post.consumer = self._arrived
        self._mesh.listeners.append(self._on_channel)

    async def start(self) -> None:
        """Go on with what was left open; the post may start after this."""
        await asyncio.to_thread(results.sweep, self._mesh.config.results)
        await asyncio.to_thread(self._work.spool.sweep, set(self._parties))
        pasts, self._pasts = self._pasts, []
        for past in pasts:
            if past.row.job_id in self._parties:
                self._resume(past)
        self._mesh.spawn(self._leases.watch())

    async def close(self) -> None:
        """Stop every job where it is."""
        for run in list(self._runs.values()):
            await run.close()
        for timer in self._timers.values():
            timer.cancel()
        self._work.close()

    # -- the owner's verbs ---------------------------------------------------------------------

    async def run(self, flow_toml: str) -> str:
        """Propose a job; its id.

        Errors, before there is a job: those of the flow, POLICY_DENIED unless this node is a party, and
        why a party is not known.
        """
        flow = flows.flow_from_toml(flow_toml)
        flows.only_task(flow)
        guard("TDN-F-TSK-02").check(
            self._mesh.me in flow.parties, Reason.POLICY_DENIED,
            f"{self._mesh.me} is no party of the flow, so it cannot propose it", ConfigError,
        )  # fmt: skip
        for node in flow.parties:
            await self._known(node)
        job_id = secrets.token_hex(16)
        await self._begin(job_id, flow, self._mesh.me)
        return job_id

    async def _known(self, node: str) -> None:
        """A name that nobody has is the author's mistake; a party that is away finds the proposal when it is back."""
        if node == self._mesh.me:
            return
        try:
            await self._mesh.resolve(node)
        except TdnError as error:
            if error.reason is not Reason.NO_ROUTE and self._mesh.key_of(node):
                return  # nobody can be asked now, but we have met it
            guard("TDN-F-TSK-02").refuse(error.reason, f"{node} is not known: {error.message}", Unavailable)

    def decide(self, job_id: str, comment: str, *, approve: bool) -> None:
        """A human decides. Errors: STATE_CONFLICT, JOB_UNKNOWN."""
        self._open(job_id).decide(approve, comment)

    async def settled(self, job_id: str, timeout_s: float) -> None:
        """Wait until what was asked of a job is on record. Errors: DEADLINE, STORE_UNAVAILABLE."""
        if run := self._runs.get(job_id):
            async with within(timeout_s, "writing it down"):
                await run.settled()

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

    @tenacity.retry(
        wait=tenacity.wait_fixed(AGAIN_S), retry=tenacity.retry_if_exception_type(TdnError)
    )  # fmt: skip
    async def _arrived(self, parcel: Parcel) -> None:
        """Take a parcel or be done with it; while the database fails, those behind it wait, too."""
        try:
            job_id, message = job_wire.decode_message(parcel.peer, parcel.body)
            self._leases.heard(parcel.peer)
            (await self._addressed(job_id, message)).receive(message, parcel)
        except TdnError as error:
            self._mesh.refused(error)
            if error.reason is Reason.STORE_UNAVAILABLE:
                raise
            await self._records.done(parcel)
        except Exception:  # noqa: BLE001  a defect that one message meets must not make the node deaf for all others
            _log.exception("job message failed", peer=parcel.peer)
            await self._records.done(parcel)

    async def _addressed(self, job_id: str, message: words.Message) -> JobRun:
        """The job that a message is for. Errors: JOB_UNKNOWN, and why a proposal is refused."""
        async with self._opening:
            run = self._runs.get(job_id) or await self._opened(job_id, message)
        if run is None:
            if not isinstance(message, (*TO_PARTY, words.Attested)):
                answer = await self._records.conclusion(job_id, message.epoch)
                await self._records.say(message.sender, job_id, answer)
            guard("TDN-F-TSK-05").refuse(
                Reason.JOB_UNKNOWN,
                f"{type(message).__name__} from {message.sender} for a job that is not open here",
                Refused,
            )
        return run

    async def _opened(self, job_id: str, message: words.Message) -> JobRun | None:
        """A job that begins with this message, or one that has given up and may still take a verdict."""
        past = await self._records.past(job_id)
        if past and past.events:
            return self._resume(past)
        if not isinstance(message, words.Propose):
            return None
        guard("TDN-F-TSK-03").check(
            past is None,
            Reason.STATE_CONFLICT,
            f"{message.sender} proposes a job that has ended here",
            Refused,
        )
        try:
            flow = self._acceptable(message)
        except TdnError as error:
            refusal = words.Refusal(self._mesh.me, 0, Failure.of(error, self._mesh.me))
            await self._records.say(message.sender, job_id, refusal)
            raise
        return await self._begin(job_id, flow, message.sender)

    def _acceptable(self, proposal: words.Propose) -> FlowSpec:
        sender = proposal.sender
        mine = sum(run.part.coordinator == sender and not run.over for run in self._runs.values())
        guard("TDN-T-LIM-03").check(
            mine < MAX_OPEN, Reason.RESOURCE_EXHAUSTED, f"{sender} has {mine} open jobs here", Refused
        )
        flow = flows.flow_from_json(proposal.flow)
        flows.check_limits(flow, self._mesh.config.timeouts)
        for node in (self._mesh.me, sender):
            guard("TDN-F-TSK-02").check(
                node in flow.parties, Reason.POLICY_DENIED, f"{node} is no party of the flow", Refused
            )
        return flow

    def _admits(self, peer: str, topic: str) -> bool:
        kind, _, rest = topic.partition("/")
        return kind == "task" and peer in self._parties.get(rest.partition("/")[0], ())

    def _on_channel(self, event: ChannelEvent) -> None:
        if event.kind in ("opened", "resumed", "received"):
            self._leases.heard(event.peer)

    def refused(self, refusal: Callable[[str], TdnError | None]) -> None:
        """A party that is refused by now does not come back."""
        for run in list(self._runs.values()):
            for party in run.part.flow.parties:
                if party != self._mesh.me and refusal(party):
                    run.lost(party)

    # -- runs ----------------------------------------------------------------------------------

    async def _begin(self, job_id: str, flow: FlowSpec, coordinator: str) -> JobRun:
        run = self._new(job_id, flow, coordinator)
        try:
            await self._keep(run)
        except TdnError:  # what is not on record is no job
            self._forget(job_id)
            raise
        run.start()
        return run

    def _new(self, job_id: str, flow: FlowSpec, coordinator: str) -> JobRun:
        self._parties[job_id] = flow.parties
        self._runs[job_id] = JobRun(job_id, flow, coordinator, self._mesh, self._work, self._keep)
        return self._runs[job_id]

    def _resume(self, past: Past) -> JobRun:
        """The job as it was; if its journal cannot be taken, it fails."""
        row = past.row
        flow = flows.flow_from_json(row.flow)
        run = self._new(row.job_id, flow, row.coordinator)
        try:
            run.resume(past)
        except TdnError as error:
            self._mesh.refused(error)
            run = self._new(row.job_id, flow, row.coordinator)
            run.salvage(past, error)
        if run.over:
            self._ended(run)
        run.start()
        return run

    def _open(self, job_id: str) -> JobRun:
        run = self._runs.get(job_id)
        if run is None:
            guard("TDN-F-TSK-04").refuse(
                Reason.STATE_CONFLICT, "the job has ended or is not run by this process", Refused
            )
        return run

    async def _keep(self, run: JobRun) -> None:
        """Write the record."""
        if run.over and not run.leaving:
            self._ended(run)
        async with run.recording:
            await self._records.write(run)
        for watcher in self._watchers.get(run.part.job_id, ()):
            watcher.set()

    def _ended(self, run: JobRun) -> None:
        """Once for each job: it has ended, and only evidence may still come."""
        run.leaving = True
        self._mesh.channels.discard(f"task/{run.part.job_id}/")
        job_id = run.part.job_id
        self._timers[job_id] = asyncio.get_running_loop().call_later(BUNDLE_S, self._drop, job_id)

    def _drop(self, job_id: str) -> None:
        self._mesh.spawn(self._leave(self._runs[job_id]))

    async def _leave(self, run: JobRun) -> None:
        """Let go of a job that has ended, once all of it is on record; its journal and parcels stay until then."""
        job_id = run.part.job_id
        async with self._opening:
            try:
                await self._keep(run)
            except TdnError as error:
                self._mesh.refused(error)
                self._timers[job_id] = asyncio.get_running_loop().call_later(BUNDLE_S, self._drop, job_id)
                return
            self._forget(job_id)
            await run.close()
            if run.proven:  # if not, a late verdict or attestation is still taken
                await self._records.close(job_id)
            elif run.papers.verdict and not run.attested:
                loop = asyncio.get_running_loop()
                self._timers[job_id] = loop.call_later(ATTEST_AGAIN_S, self._attest_late, job_id)
        for parcel in run.undone():
            await self._arrived(parcel)

    def _attest_late(self, job_id: str) -> None:
        self._mesh.spawn(self._attesting(job_id))

    async def _attesting(self, job_id: str) -> None:
        """The hub was away when the verdict was to be attested: try again."""
        async with self._opening:
            past = await self._records.past(job_id)
            if job_id not in self._runs and past and past.events:
                self._resume(past)

    def _forget(self, job_id: str) -> None:
        self._parties.pop(job_id, None)
        if timer := self._timers.pop(job_id, None):
            timer.cancel()
        del self._runs[job_id]
