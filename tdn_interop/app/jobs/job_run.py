"""One job on one node: the machine of this party, at the coordinator also that of the job, and their effects."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog
import tenacity

from tdn_interop.algo.machine import Effect, Event
from tdn_interop.app.evidence import wire
from tdn_interop.app.evidence.statements import Attestation, Outcome
from tdn_interop.app.jobs import job_events as steps
from tdn_interop.app.jobs import job_protocol as words
from tdn_interop.app.jobs import job_wire
from tdn_interop.app.jobs.driver import Interruption
from tdn_interop.app.jobs.flow import FlowSpec
from tdn_interop.app.jobs.job_case import TO_PARTY, JobCase
from tdn_interop.app.jobs.job_protocol import JobMachine, Message
from tdn_interop.app.jobs.job_replay import Asked
from tdn_interop.app.jobs.job_work import Work, pause_s
from tdn_interop.app.jobs.party import PartyState
from tdn_interop.app.mesh import Mesh
from tdn_interop.app.post.post import Parcel
from tdn_interop.errors import ConfigError, Reason, Refused, TdnError, guard
from tdn_interop.identity import Signed
from tdn_interop.transport.frame import Failure
from tdn_interop.transport.trust import now_ms

_log = structlog.get_logger("tdn.job")
ATTEST_S = 20.0


class JobRun(JobCase):
    """Runs until the verdict is accepted and, at the coordinator, the bundle is made. `keep` writes the record."""

    def __init__(
        self, job_id: str, flow: FlowSpec, coordinator: str, mesh: Mesh, work: Work,
        keep: Callable[[JobRun], Coroutine[Any, Any, None]],
    ) -> None:  # fmt: skip
        super().__init__(job_id, flow, coordinator, mesh, work)
        self.progress_items = 0
        self._keep = keep

    # -- from outside --------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to work through events."""
        if self.job and not self.job.taken and self._events.empty():
            self.feed(self.job, steps.Begun())
        self._beside(self._run_loop(), self._aside)

    async def _run_loop(self) -> None:
        await self._go_on()
        await self._loop()

    async def _go_on(self) -> None:
        """Do what an earlier process has left to do."""
        left, self._left = self._left, []
        if self.papers.given and not self.over:
            self._wake(ATTEST_S, self._make_bundle)
        for asked in left:
            async with self._surviving():
                await self._do_late(asked)

    async def _do_late(self, asked: Asked) -> None:
        match asked.effect:
            case words.WakeAfter(stage=stage, epoch=epoch):
                if not self.over:
                    late = words.DeadlinePassed(stage, epoch)
                    self._wake(asked.remaining_s, self.feed, asked.machine, late)
            case steps.RunTask(epoch=epoch):  # what the others have sent is gone with the process
                self.feed(self.party, steps.RunInterrupted(epoch))
            case _:
                await self._perform(asked.machine, asked.effect)

    def receive(self, message: Message, parcel: Parcel | None = None) -> None:
        """A message of a peer, in a parcel of the post. Errors: why it is refused."""
        if self.job is None and not isinstance(message, TO_PARTY):
            guard("TDN-F-TSK-07").refuse(
                Reason.IDENTITY_MISMATCH,
                f"{message.sender} reports to a node that does not coordinate this job",
                Refused,
            )
        if not isinstance(message, TO_PARTY):
            self.papers.check(message)
        self.feed(self._hears(message), message, parcel)

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
            failure = Failure(Reason.APPROVAL_REFUSED, comment or "refused without a comment", self._mesh.me)
            self.feed(self.party, steps.Declined(failure))

    def cancel(self, comment: str) -> None:
        """The owner of this node wants an end; the verdict decides. Errors: STATE_CONFLICT when that is given."""
        if verdict := self.papers.verdict or self.papers.given:
            outcome = job_wire.decode_verdict_outcome(verdict.statement).name
            told = f"it is too late to cancel, the job has ended as {outcome}"
            guard("TDN-F-TSK-04").refuse(Reason.STATE_CONFLICT, told, Refused)
        open_ = (self.party.state, steps.CancelAsked) in self.party.table
        told = f"the job is being stopped, this node's part has ended as {self.party.state.name}"
        guard("TDN-F-TSK-04").check(open_, Reason.STATE_CONFLICT, told, Refused)
        self.feed(self.party, steps.CancelAsked(comment))

    def lost(self, peer: str) -> None:
        """Nothing was heard of `peer` for too long, or nothing can be sent to it."""
        if peer not in self.part.flow.parties or self.over:
            return
        if self.job:
            self.feed(self.job, steps.PartyLost(peer))
        elif peer == self.part.coordinator:
            failure = Failure(Reason.PARTY_LOST, f"nothing is heard of {peer}", self._mesh.me)
            self.feed(self.party, steps.Failed(failure))

    # -- what the loop asks for ----------------------------------------------------------------

    async def _write(self) -> None:
        await self._keep(self)

    async def _perform(self, machine: JobMachine, effect: Effect) -> None:
        match effect:
            case words.WakeAfter(stage=stage, seconds=seconds, epoch=epoch):
                self._wake(seconds, self.feed, machine, words.DeadlinePassed(stage, epoch))
            case steps.StopRun():
                await self._stop()
                self._work.stop(self.part)
            case steps.StopTask():
                await self._stop()
                self._work.discard(self.part)
            case _:
                await self._perform_own(effect)

    async def _perform_own(self, effect: Effect) -> None:
        match effect:
            case steps.Negotiate(approvals=approvals):
                self._negotiate(approvals)
            case steps.SignVerdict():
                self._sign_verdict(effect)
            case steps.KeepAttestation(party=sender, attestation=attestation):
                self._keep_attestation(sender, attestation)
            case steps.SignStatement(outcome=outcome):
                self._sign_statement(outcome)
            case steps.AcceptVerdict(verdict=verdict, records=records):
                self._beside(self._accept_verdict(verdict, records), self._aside)
            case steps.GiveUp():
                await self._give_up()
            case _:
                self._do_work(effect)

    def _do_work(self, effect: Effect) -> None:
        match effect:
            case steps.Decide():
                self._working(self._decide)
            case steps.CheckAgreement(agreement=agreement, records=records):
                self._check_agreement(agreement, records)
            case steps.LoadInput():
                self._working(self._load)
            case steps.RunTask(epoch=epoch) if epoch == self._bereft:
                self.feed(self.party, steps.RunInterrupted(epoch))
            case steps.RunTask(epoch=epoch):
                self._working(self._run, epoch)
            case steps.DeliverResult():
                self._working(self._deliver)

    # -- the coordinator's effects -------------------------------------------------------------

    def _negotiate(self, approvals: tuple[words.Approval, ...]) -> None:
        assert self.job is not None  # noqa: S101  only the job machine asks
        try:
            answer: Event = self.papers.agree(approvals)
        except TdnError as error:
            answer = steps.NotAgreed(self._told(error))
        self.feed(self.job, answer)

    def _sign_verdict(self, effect: steps.SignVerdict) -> None:
        assert self.job is not None  # noqa: S101  only the job machine asks
        self._wake(ATTEST_S, self._make_bundle)
        verdict = self.papers.sign_verdict(effect)
        self.feed(self.job, steps.VerdictSigned(verdict, effect.outcome, self.papers.records()))

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
        if self.papers.bundle:
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
            self.feed(self.party, steps.Declined(Failure.bare(error, self._mesh.me)))
            return
        if by:
            self._approve(by)
        elif self.part.problem:
            self._told(self.part.problem)
            await self._record()

    def _approve(self, by: str) -> None:
        offer = self._work.approve(self.part, by)
        self.feed(self.party, steps.Approved(offer, self.papers.record))

    def _check_agreement(self, agreement: bytes, records: tuple[Signed, ...]) -> None:
        try:
            found = self._work.check_agreement(self.part, agreement, records)
        except TdnError as error:
            self._failed(error)
            return
        self.feed(self.party, steps.AgreementAccepted(self.papers.consent(), found))

    async def _load(self) -> None:
        await self._work.load(self.part)
        self.feed(self.party, steps.InputLoaded())

    async def _run(self, epoch: int) -> None:
        try:
            await self._work.run(self.part, epoch, self._progress)
        except Interruption as error:
            self._mesh.refused(error)
            await asyncio.sleep(pause_s(epoch))
            self.feed(self.party, steps.RunInterrupted(epoch))
            return
        self.feed(self.party, steps.TaskDone(epoch, self.part.hops, self.part.commitment))

    async def _deliver(self) -> None:
        await self._work.deliver(self.part)
        self.feed(self.party, steps.Delivered())

    async def _stop(self) -> None:
        tasks = list(self._busy)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _sign_statement(self, outcome: Outcome) -> None:
        statement = self.papers.statement(outcome, self.party.epoch)
        self.feed(self.party, steps.StatementSigned(statement, self.papers.record))

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
        self.feed(self.party, steps.VerdictAccepted(wire.encode_attestation(attestation)))

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
        self.ended_at_ms = self.ended_at_ms or now_ms()
        self._forget_timers()
        self._work.forget(self.part)

    # -- work beside the loop ------------------------------------------------------------------

    def _progress(self, items: int) -> None:
        self.progress_items += items

    def _working(self, work: Callable[..., Coroutine[Any, Any, None]], *arguments: object) -> None:
        async def guarded() -> None:
            try:
                await work(*arguments)
            except TdnError as error:
                self._failed(error)
            except (OSError, MemoryError) as error:  # the disk is full, the memory is used up
                _log.exception("work failed", job=self.part.job_id)
                failure = Failure(
                    Reason.INTERNAL, f"{type(error).__name__} on {self._mesh.me}", self._mesh.me
                )
                self.feed(self.party, steps.Failed(failure))

        self._beside(guarded(), self._busy)

    def _failed(self, error: TdnError) -> None:
        self.feed(self.party, steps.Failed(self._told(error)))

    def _broken(self, error: BaseException) -> None:
        _log.error("job work failed", job=self.part.job_id, exc_info=error)
        if (self.party.state, steps.Failed) in self.party.table:
            failure = Failure(Reason.INTERNAL, f"a defect on {self._mesh.me}", self._mesh.me)
            self.feed(self.party, steps.Failed(failure))
