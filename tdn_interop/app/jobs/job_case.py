"""What a node knows of one job: its machines and papers, why it fails, and how it goes on after a restart."""

from __future__ import annotations

import asyncio

from tdn_interop.algo.machine import Effect, Event
from tdn_interop.app.jobs import flow as flows
from tdn_interop.app.jobs import job_events as steps
from tdn_interop.app.jobs import job_protocol as words
from tdn_interop.app.jobs import job_wire, journal
from tdn_interop.app.jobs.flow import FlowSpec
from tdn_interop.app.jobs.job import Job, JobState
from tdn_interop.app.jobs.job_loop import JobLoop
from tdn_interop.app.jobs.job_protocol import JobMachine, Message
from tdn_interop.app.jobs.job_replay import Asked, Past, replay
from tdn_interop.app.jobs.job_work import Part, Work
from tdn_interop.app.jobs.papers import Papers
from tdn_interop.app.jobs.party import PartyState, PartyTask
from tdn_interop.app.mesh import Mesh
from tdn_interop.errors import Reason, TdnError
from tdn_interop.transport.frame import Failure
from tdn_interop.transport.records_wire import decode_signed
from tdn_interop.transport.trust import now_ms

TO_PARTY = (
    words.Propose,
    words.Admit,
    words.Prepare,
    words.Start,
    words.Release,
    words.Conclude,
    words.Abort,
)
# What a party does while it may expect to hear from its coordinator within a lease.
_HURRIES = {PartyState.RESERVED, PartyState.READY, PartyState.RUNNING, PartyState.LOST, PartyState.COMPUTED}


class JobCase(JobLoop):
    """The state of one job on one node; what it does, a subclass says."""

    def __init__(self, job_id: str, flow: FlowSpec, coordinator: str, mesh: Mesh, work: Work) -> None:
        super().__init__(mesh.me, mesh.refused)
        self.part = Part(job_id, flow, coordinator)
        self.party = PartyTask(mesh.me, coordinator, flow.timeouts)
        self.job = (
            Job(mesh.me, flow.parties, flows.canonical(flow), flow.timeouts)
            if coordinator == mesh.me
            else None
        )
        self.papers = Papers(mesh, self.part)
        self.created_at_ms, self.ended_at_ms = now_ms(), 0
        self.noted = ("", "")  # the states that the evidence log knows
        self.written = 0  # entries of the journal
        self.leaving = False  # the end has been noticed
        self.attested = False  # by this node
        self.recording = asyncio.Lock()
        self._left: list[Asked] = []  # by an earlier process
        self._bereft = 0  # the epoch of which an earlier process may have had messages
        self._failure: Failure | None = None  # in the words that everybody hears
        self._own: Failure | None = None  # the first that happened here, in full
        self._mesh = mesh
        self._work = work

    @property
    def over(self) -> bool:
        """True when the job has ended here; only evidence may still come."""
        return self.ended_at_ms > 0

    @property
    def proven(self) -> bool:
        """True when the verdict is here and nothing is missing of its evidence, as far as this node makes it."""
        whole = self.job is None or self.papers.bundle is not None
        return self.papers.verdict is not None and self.attested and whole

    @property
    def failure(self) -> Failure | None:
        """Why the job does not succeed; in full if it is because of this node."""
        told, own = self._failure, self._own
        same = told is None or (own and (told.reason, told.noticed_by) == (own.reason, own.noticed_by))
        return own if same else told

    @property
    def lease_s(self) -> float:
        """How long a node from which something is expected may be silent, in seconds."""
        return self.part.flow.timeouts.lease_s

    def expects(self) -> tuple[str, ...]:
        """The other nodes from which something is expected now."""
        if self.over:
            return ()
        if self.job:
            return tuple(party for party in self.job.expected() if party != self._me)
        return (self.part.coordinator,) if self.party.state in _HURRIES else ()

    # -- after a restart -----------------------------------------------------------------------

    def resume(self, past: Past) -> None:
        """Become what an earlier process was. Errors: JOURNAL_BROKEN; then this object is of no use."""
        self._find(past)
        machines: dict[str, JobMachine] = {journal.PARTY: self.party}
        if self.job:
            machines[journal.JOB] = self.job
        self._left = replay(past, machines, self._recall)
        if (
            self.party.state is PartyState.READY
        ):  # others may have begun what it does not know to have started
            self._bereft = self.party.epoch + 1
        if past.verdict_index is not None and past.row.verdict:
            self.papers.verdict = decode_signed(past.row.verdict)  # accepted, whether attested or not
        self._work.recall(self.part, past.row.facts)

    def salvage(self, past: Past, error: TdnError) -> None:
        """End a job whose journal cannot be taken, by what is on record: nobody states or decides twice."""
        self._find(past)
        failure, row, me = self._told(error), past.row, self._me
        self.papers.recall_record(past)
        self._work.recall(self.part, row.facts)
        stated = {each.sender: each.outcome for each in self.papers.stated(row.epoch)}.get(me)
        self.party.salvaged(row.epoch, stated)
        if stated is None:
            self.feed(self.party, steps.Failed(failure))
        if self.job and self.papers.given:
            outcome = job_wire.decode_verdict_outcome(self.papers.given.statement)
            self.job.found(row.epoch, JobState[outcome.name])
            verdict = steps.VerdictSigned(self.papers.given, outcome, self.papers.records())
            self.feed(self.job, verdict)
        elif self.job:
            self.job.found(row.epoch, None)
            self.feed(self.job, words.Fail(me, row.epoch, failure))
            for message in self.papers.stated(row.epoch):
                self.feed(self.job, message)
        machines = [machine for machine in (self.party, self.job) if machine and machine.is_timed()]
        self._left = [Asked(machine, machine.timer(), now_ms()) for machine in machines]

    def _find(self, past: Past) -> None:
        row = past.row
        self.created_at_ms, self.ended_at_ms = row.created_at_ms, row.ended_at_ms
        self.noted = (row.state, row.party_state)
        self.written = past.events[-1].idx + 1 if past.events else 0
        self.part.hops = row.hops
        self.papers.bundle, self.papers.verdict_index = row.bundle, past.verdict_index
        if row.failure and row.failure["noticed_by"] == self._me:
            self._own = Failure(**dict(row.failure) | {"reason": Reason[row.failure["reason"]]})

    def _recall(self, event: Event, answered: Effect | None) -> None:
        self._note(event)
        self.papers.recall(event, answered)

    # -- events --------------------------------------------------------------------------------

    def _hears(self, message: Message) -> JobMachine:
        return self.party if self.job is None or isinstance(message, TO_PARTY) else self.job

    def _name(self, machine: JobMachine) -> str:
        return journal.JOB if machine is self.job else journal.PARTY

    def _note(self, event: Event) -> None:
        """Keep what the parties said for the bundle, and why things went wrong."""
        if isinstance(event, Message) and not isinstance(event, TO_PARTY):
            self.papers.keep(event)
        match event:
            case steps.VerdictAccepted():
                self.attested = True
            case words.Abort(failure=failure) | words.Fail(failure=failure) | words.Refusal(failure=failure):
                self._failure = self._failure or failure
            case (
                steps.Failed(failure=failure)
                | steps.Declined(failure=failure)
                | steps.NotAgreed(failure=failure)
            ):
                self._failure = self._failure or failure
        if self.job and self.job.failure:
            self._failure = self.job.failure

    def _told(self, error: TdnError) -> Failure:
        """The failure as others may hear it; the owner of this node is told in full."""
        self._own = self._own or Failure.in_full(error, self._mesh.me)
        return Failure.of(error, self._mesh.me)
