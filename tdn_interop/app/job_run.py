"""One job on one node: the machine of this party, at the coordinator also that of the job, and their effects."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog
import tenacity

from tdn_interop.algo.machine import Effect, Event
from tdn_interop.app import flow as flows
from tdn_interop.app import job, job_wire, party
from tdn_interop.app import job_protocol as words
from tdn_interop.app.evidence import wire
from tdn_interop.app.evidence.statements import Attestation, Outcome
from tdn_interop.app.flow import FlowSpec
from tdn_interop.app.job import Job
from tdn_interop.app.job_answers import TOPIC
from tdn_interop.app.job_loop import JobLoop
from tdn_interop.app.job_protocol import JobMachine, Message
from tdn_interop.app.job_work import Part, Work
from tdn_interop.app.mesh import Mesh
from tdn_interop.app.papers import Papers
from tdn_interop.app.party import PartyState, PartyTask
from tdn_interop.errors import ConfigError, Reason, Refused, TdnError, guard
from tdn_interop.identity import Signed
from tdn_interop.transport.frame import Failure

_log = structlog.get_logger("tdn.job")
ATTEST_S = 20.0
TO_PARTY = (
    words.Propose,
    words.Admit,
    words.Prepare,
    words.Start,
    words.Release,
    words.Conclude,
    words.Abort,
)


class JobRun(JobLoop):
    """Runs until the verdict is accepted and, at the coordinator, the bundle is made. `keep` writes the record."""

    def __init__(
        self, job_id: str, flow: FlowSpec, coordinator: str, mesh: Mesh, work: Work,
        keep: Callable[[JobRun], Coroutine[Any, Any, None]],
    ) -> None:  # fmt: skip
        super().__init__(mesh.refused)
        self.part = Part(job_id, flow, coordinator)
        self.party = PartyTask(mesh.me, coordinator, flow.timeouts)
        self.job = (
            Job(mesh.me, flow.parties, flows.canonical(flow), flow.timeouts)
            if coordinator == mesh.me
            else None
        )
        self.papers = Papers(mesh, self.part)
        self.progress_items = 0
        self.over = False
        self.recording = asyncio.Lock()
        self._failure: Failure | None = None  # in the words that everybody hears
        self._own: Failure | None = None  # the first that happened here, in full
        self._mesh = mesh
        self._work = work
        self._keep = keep
        self._out: dict[str, asyncio.Queue[Message]] = {}

    @property
    def failure(self) -> Failure | None:
        """Why the job does not succeed; in full if it is because of this node."""
        told, own = self._failure, self._own
        same = told is None or (own and (told.reason, told.noticed_by) == (own.reason, own.noticed_by))
        return own if same else told

    # -- from outside --------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to work through events."""
        self._beside(self._loop(), self._aside)
        if self.job:
            self.feed(self.job, job.Begun())

    def receive(self, message: Message) -> None:
        """A message of a peer or of this node itself. Errors: why it is refused."""
        if isinstance(message, TO_PARTY):
            self.feed(self.party, message)
            return
        if self.job is None:
            guard("TDN-F-TSK-07").refuse(
                Reason.IDENTITY_MISMATCH,
                f"{message.sender} reports to a node that does not coordinate this job",
                Refused,
            )
        self.papers.check(message)
        self.feed(self.job, message)

    def decide(self, approve: bool, comment: str) -> None:
        """The decision of a human. Errors: STATE_CONFLICT unless one is awaited, what stands against an approval."""
        waits = self.party.state is PartyState.AWAITING_APPROVAL
        guard("TDN-F-TSK-02").check(
            waits,
            Reason.STATE_CONFLICT,
            f"the job does not wait for a decision, it is {self.party.state.name}",
            Refused,
        )
        if approve:
            problem = self.part.problem
            guard("TDN-F-TSK-02").check(
                problem is None,
                problem.reason if problem else Reason.INTERNAL,
                f"this cannot be approved: {problem.message if problem else ''}",
                ConfigError,
            )
            self._approve("human")
        else:
            failure = Failure(Reason.APPROVAL_REFUSED, comment or "no comment", self._mesh.me)
            self.feed(self.party, party.Declined(failure))

    def cancel(self, comment: str) -> None:
        """The owner of this node wants an end. Errors: STATE_CONFLICT when it has ended."""
        open_ = (self.party.state, party.CancelAsked) in self.party.table
        guard("TDN-F-TSK-04").check(
            open_, Reason.STATE_CONFLICT, f"this node's part has ended as {self.party.state.name}", Refused
        )
        self.feed(self.party, party.CancelAsked(comment))

    def lost(self, peer: str) -> None:
        """A session with `peer` failed."""
        if peer not in self.part.flow.parties or self.over:
            return
        if self.job:
            self.feed(self.job, job.PartyLost(peer))
        elif peer == self.part.coordinator:
            failure = Failure(Reason.PARTY_LOST, f"{peer} cannot be reached", self._mesh.me)
            self.feed(self.party, party.Failed(failure))

    # -- what the loop asks for ----------------------------------------------------------------

    async def _write(self) -> None:
        await self._keep(self)

    def _note(self, event: Event) -> None:
        """Keep what the parties said for the bundle, and why things went wrong."""
        if isinstance(event, Message) and not isinstance(event, TO_PARTY):
            self.papers.keep(event)
        match event:
            case words.Abort(failure=failure) | words.Fail(failure=failure) | words.Refusal(failure=failure):
                self._failure = self._failure or failure
            case (
                party.Failed(failure=failure)
                | party.Declined(failure=failure)
                | job.NotAgreed(failure=failure)
            ):
                self._failure = self._failure or failure
        if self.job and self.job.failure:
            self._failure = self.job.failure

    async def _perform(self, machine: JobMachine, effect: Effect) -> None:
        match effect:
            case words.Send(to=to, message=message):
                self._send(to, message)
            case words.WakeAfter(stage=stage, seconds=seconds):
                self._wake(seconds, self.feed, machine, words.DeadlinePassed(stage))
            case party.StopTask():
                await self._stop()
            case _:
                await self._perform_own(effect)

    async def _perform_own(self, effect: Effect) -> None:
        match effect:
            case job.Negotiate(approvals=approvals):
                self._negotiate(approvals)
            case job.SignVerdict():
                self._sign_verdict(effect)
            case job.KeepAttestation(party=sender, attestation=attestation):
                self._keep_attestation(sender, attestation)
            case party.SignStatement(outcome=outcome):
                self._sign_statement(outcome)
            case party.AcceptVerdict(verdict=verdict, records=records):
                self._beside(self._accept_verdict(verdict, records), self._aside)
            case party.GiveUp():
                await self._give_up()
            case _:
                self._do_work(effect)

    def _do_work(self, effect: Effect) -> None:
        match effect:
            case party.Decide():
                self._working(self._decide())
            case party.CheckAgreement(agreement=agreement, records=records):
                self._check_agreement(agreement, records)
            case party.LoadInput():
                self._working(self._load())
            case party.RunTask(epoch=epoch):
                self._working(self._run(epoch))
            case party.DeliverResult():
                self._working(self._deliver())

    # -- messages ------------------------------------------------------------------------------

    def _send(self, to: str, message: Message) -> None:
        if to == self._mesh.me:
            self.receive(message)
            return
        if to not in self._out:
            self._out[to] = asyncio.Queue()
            self._beside(self._deliver_to(to), self._aside)
        self._out[to].put_nowait(message)

    async def _deliver_to(self, peer: str) -> None:
        queue, channels = self._out[peer], self._mesh.channels
        limit_s = self.part.flow.timeouts.step_s
        while True:
            message = await queue.get()
            try:
                await channels.send(peer, TOPIC, job_wire.encode_message(self.part.job_id, message), limit_s)
                await channels.flush(peer, TOPIC, limit_s)
            except TdnError as error:
                self._mesh.refused(error)
                self.lost(peer)
            queue.task_done()

    # -- the coordinator's effects -------------------------------------------------------------

    def _negotiate(self, approvals: tuple[words.Approval, ...]) -> None:
        assert self.job is not None  # noqa: S101  only the job machine asks
        try:
            answer: Event = self.papers.agree(approvals)
        except TdnError as error:
            answer = job.NotAgreed(self._told(error))
        self.feed(self.job, answer)

    def _sign_verdict(self, effect: job.SignVerdict) -> None:
        assert self.job is not None  # noqa: S101  only the job machine asks
        self._wake(ATTEST_S, self._make_bundle)
        verdict = self.papers.sign_verdict(effect)
        self.feed(self.job, job.VerdictSigned(verdict, effect.outcome, self.papers.records()))

    def _keep_attestation(self, sender: str, data: bytes) -> None:
        try:
            complete = self.papers.keep_attestation(sender, data)
        except TdnError as error:
            self._mesh.refused(error)
            return
        if complete:
            self._make_bundle()

    def _make_bundle(self) -> None:
        """With every attestation, or with those there are when time is up."""
        if self.over:
            return
        try:
            self.papers.make_bundle()
        except TdnError as error:
            self._mesh.refused(error)
        self._finish()
        self._beside(self._record(), self._aside)

    # -- the party's effects -------------------------------------------------------------------

    async def _decide(self) -> None:
        try:
            by = await self._work.decide(self.part)
        except TdnError as error:
            self._told(error)
            self.feed(self.party, party.Declined(Failure.bare(error, self._mesh.me)))
            return
        if by:
            self._approve(by)
        elif self.part.problem:
            self._told(self.part.problem)
            await self._record()

    def _approve(self, by: str) -> None:
        offer = self._work.approve(self.part, by)
        self.feed(self.party, party.Approved(offer, self.papers.record))

    def _check_agreement(self, agreement: bytes, records: tuple[Signed, ...]) -> None:
        try:
            found = self._work.check_agreement(self.part, agreement, records)
        except TdnError as error:
            self._failed(error)
            return
        self.feed(self.party, party.AgreementAccepted(self.papers.consent(), found))

    async def _load(self) -> None:
        await self._work.load(self.part)
        self.feed(self.party, party.InputLoaded())

    async def _run(self, epoch: int) -> None:
        await self._work.run(self.part, epoch, self._progress)
        self.feed(self.party, party.TaskDone(self.part.hops))

    async def _deliver(self) -> None:
        await self._work.deliver(self.part)
        self.feed(self.party, party.Delivered())

    async def _stop(self) -> None:
        tasks = list(self._busy)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._work.discard(self.part)

    def _sign_statement(self, outcome: Outcome) -> None:
        statement = self.papers.statement(outcome, self.party.epoch)
        self.feed(self.party, party.StatementSigned(statement, self.papers.record))

    async def _accept_verdict(self, verdict: Signed, records: tuple[Signed, ...]) -> None:
        """Check, record, attest. An unreachable hub delays only the evidence, not the end of the job."""
        try:
            failure = job_wire.decode_verdict_failure(verdict.statement)
            self.papers.accept(verdict, records)
        except TdnError as error:
            self._mesh.refused(error)
            return
        self._failure = failure
        if job_wire.decode_verdict_outcome(verdict.statement) is Outcome.SUCCEEDED:
            self._own = None
        if self.job is None:
            self._finish()
        await self._record()
        assert self.papers.verdict_index is not None  # noqa: S101  the record holds the verdict and its event
        try:
            attestation = await self._attest(self.papers.verdict_index)
        except TdnError as error:
            self._mesh.refused(error)
            return
        self.feed(self.party, party.VerdictAccepted(wire.encode_attestation(attestation)))

    async def _give_up(self) -> None:
        """The coordinator is lost. Its own part waits for its own job, which always ends."""
        if self.job or self.papers.verdict:
            return
        coordinator = self.part.coordinator
        lost = Failure(Reason.PARTY_LOST, f"no verdict from {coordinator}", self._mesh.me)
        self._failure = self._failure or lost
        self._finish()
        await self._recorded()

    @tenacity.retry(
        wait=tenacity.wait_fixed(1), stop=tenacity.stop_after_delay(ATTEST_S / 2), reraise=True,
        retry=tenacity.retry_if_exception_type(TdnError),
    )  # fmt: skip
    async def _attest(self, index: int) -> Attestation:
        return await self._mesh.anchoring.attest(index)

    def _finish(self) -> None:
        self.over = True
        self._forget_timers()

    # -- work beside the loop ------------------------------------------------------------------

    def _progress(self, items: int) -> None:
        self.progress_items += items

    def _working(self, work: Coroutine[Any, Any, None]) -> None:
        async def guarded() -> None:
            try:
                await work
            except TdnError as error:
                self._failed(error)
            except (OSError, MemoryError) as error:  # the disk is full, the memory is used up
                _log.exception("work failed", job=self.part.job_id)
                failure = Failure(
                    Reason.INTERNAL, f"{type(error).__name__} on {self._mesh.me}", self._mesh.me
                )
                self.feed(self.party, party.Failed(failure))

        self._beside(guarded(), self._busy)

    def _failed(self, error: TdnError) -> None:
        self.feed(self.party, party.Failed(self._told(error)))

    def _told(self, error: TdnError) -> Failure:
        """The failure as others may hear it; the owner of this node is told in full."""
        self._own = self._own or Failure.in_full(error, self._mesh.me)
        return Failure.of(error, self._mesh.me)

    def _broken(self, error: BaseException) -> None:
        _log.error("job work failed", job=self.part.job_id, exc_info=error)
        if (self.party.state, party.Failed) in self.party.table:
            failure = Failure(Reason.INTERNAL, f"a defect on {self._mesh.me}", self._mesh.me)
            self.feed(self.party, party.Failed(failure))
