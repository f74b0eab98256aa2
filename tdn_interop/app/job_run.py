"""One job on one node: the machine of this party, at the coordinator also that of the job, and their effects.

One task feeds the machines, event after event; work that takes time runs beside it and comes back as an
event. The record of the job is written before the effects of a step are performed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import structlog
import tenacity

from tdn_interop import identity
from tdn_interop.algo.machine import Effect, Event
from tdn_interop.app import agreement as agreements
from tdn_interop.app import flow as flows
from tdn_interop.app import job, job_wire, party
from tdn_interop.app import job_protocol as words
from tdn_interop.app.agreement import Approved
from tdn_interop.app.evidence import bundle, wire
from tdn_interop.app.evidence.statements import VERDICT_KIND, Attestation, Consent, Statement, Verdict, digest
from tdn_interop.app.evidence.statements import Outcome as EvidenceOutcome
from tdn_interop.app.flow import FlowSpec
from tdn_interop.app.job import Job, JobState
from tdn_interop.app.job_protocol import JobMachine, Message, Outcome
from tdn_interop.app.job_work import Part, Work
from tdn_interop.app.mesh import Mesh
from tdn_interop.app.party import PartyState, PartyTask
from tdn_interop.errors import PeerProtocolError, Reason, Refused, TdnError, guard
from tdn_interop.identity import Signed
from tdn_interop.transport.frame import Failure
from tdn_interop.transport.trust import now_ms

_log = structlog.get_logger("tdn.job")
TOPIC = "job"
ATTEST_S = 20.0
_TO_PARTY = (
    words.Propose,
    words.Admit,
    words.Prepare,
    words.Start,
    words.Release,
    words.Conclude,
    words.Abort,
)


@dataclass(frozen=True, slots=True)
class Change:
    """What a step changed: for the record, the evidence log and the watchers."""

    run: JobRun
    state_before: JobState | None
    party_before: PartyState


class JobRun:
    """Runs until the verdict is accepted and, at the coordinator, the bundle is made. `keep` writes the record."""

    def __init__(
        self, job_id: str, flow: FlowSpec, coordinator: str, mesh: Mesh, work: Work,
        keep: Callable[[JobRun], Awaitable[None]],
    ) -> None:  # fmt: skip
        self.part = Part(job_id, flow, coordinator)
        self.party = PartyTask(mesh.me, coordinator, flow.timeouts)
        self.job = (
            Job(mesh.me, flow.parties, flows.canonical(flow), flow.timeouts)
            if coordinator == mesh.me
            else None
        )
        self.failure: Failure | None = None
        self.verdict: Signed | None = None
        self.bundle: bytes | None = None
        self.progress_items = 0
        self.over = False
        self._mesh = mesh
        self._work = work
        self._keep = keep
        self._events: asyncio.Queue[tuple[JobMachine, Event]] = asyncio.Queue()
        self._out: dict[str, asyncio.Queue[Message]] = {}
        self._busy: set[asyncio.Task[None]] = set()
        self._aside: set[asyncio.Task[None]] = set()
        self._timers: list[asyncio.TimerHandle] = []
        self._records: dict[str, Signed] = {}
        self._consents: dict[str, Signed] = {}
        self._attestations: dict[str, Attestation] = {}

    # -- from outside --------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to work through events."""
        self._beside(self._loop(), self._aside)
        if self.job:
            self.feed(self.job, job.Begun())

    def receive(self, message: Message) -> None:
        """A message of a peer or of this node itself. Errors: why it is refused."""
        if isinstance(message, _TO_PARTY):
            self.feed(self.party, message)
            return
        if self.job is None:
            guard("TDN-F-TSK-07").refuse(
                Reason.IDENTITY_MISMATCH,
                f"{message.sender} reports to a node that does not coordinate this job",
                Refused,
            )
        self._vet(message)
        self.feed(self.job, message)

    def decide(self, approve: bool, comment: str) -> None:
        """The decision of a human. Errors: STATE_CONFLICT unless one is awaited."""
        waits = self.party.state is PartyState.AWAITING_APPROVAL
        guard("TDN-F-TSK-02").check(
            waits,
            Reason.STATE_CONFLICT,
            f"the job does not wait for a decision, it is {self.party.state.name}",
            Refused,
        )
        if approve:
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

    async def close(self) -> None:
        """Stop everything; the record stays as it is."""
        for timer in self._timers:
            timer.cancel()
        tasks = [*self._busy, *self._aside]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- the loop ------------------------------------------------------------------------------

    def feed(self, machine: JobMachine, event: Event) -> None:
        """Queue an event."""
        self._events.put_nowait((machine, event))

    async def _loop(self) -> None:
        while True:
            machine, event = await self._events.get()
            try:
                effects = machine.step(event)
            except TdnError as error:  # a refused event changes nothing
                self._mesh.refused(error)
                continue
            self._note(event)
            await self._keep(self)
            for effect in effects:
                await self._perform(machine, effect)

    def _note(self, event: Event) -> None:
        """Keep what the parties said for the bundle, and why things went wrong."""
        match event:
            case words.Approval(sender=sender, record=record):
                self._records[sender] = record
            case words.Admitted(sender=sender, consent=consent):
                self._consents[sender] = consent
            case words.Abort(failure=failure) | words.Fail(failure=failure) | words.Refusal(failure=failure):
                self.failure = self.failure or failure
            case (
                party.Failed(failure=failure)
                | party.Declined(failure=failure)
                | job.NotAgreed(failure=failure)
            ):
                self.failure = self.failure or failure
        if self.job and self.job.failure:
            self.failure = self.job.failure

    async def _perform(self, machine: JobMachine, effect: Effect) -> None:
        match effect:
            case words.Send(to=to, message=message):
                self._send(to, message)
            case words.WakeAfter(stage=stage, seconds=seconds):
                wake = asyncio.get_running_loop().call_later
                self._timers.append(wake(seconds, self.feed, machine, words.DeadlinePassed(stage)))
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
            case party.AcceptVerdict(verdict=verdict):
                self._beside(self._accept_verdict(verdict), self._aside)
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

    def _vet(self, message: Message) -> None:
        """Signatures of what parties say to the coordinator; the machine takes them as they are."""
        match message:
            case words.Admitted(sender=sender, consent=signed):
                self._vet_signature(identity.CONSENT, sender, signed)
                same = wire.decode_consent(signed.statement).agreement_sha256 == self.part.agreement_digest
                guard("TDN-F-TSK-02").check(
                    same or not self.part.agreement_digest,
                    Reason.DIGEST_MISMATCH,
                    f"{sender} consents to another agreement",
                )
            case words.Stated(sender=sender, statement=signed):
                self._vet_signature(identity.STATEMENT, sender, signed)
                found = wire.decode_statement(signed.statement)
                ours = (found.job_id, found.party) == (self.part.job_id, sender)
                guard("TDN-F-TSK-07").check(
                    ours, Reason.IDENTITY_MISMATCH, f"the statement of {sender} is about another job"
                )

    def _vet_signature(self, context: str, sender: str, signed: Signed) -> None:
        good = signed.signer == sender and identity.verify(context, signed, self._mesh.key_of(sender))
        guard("TDN-F-EVD-01").check(good, Reason.SIGNATURE_INVALID, f"{sender} did not sign its {context}")

    # -- the coordinator's effects -------------------------------------------------------------

    def _negotiate(self, approvals: tuple[words.Approval, ...]) -> None:
        assert self.job is not None  # noqa: S101  only the job machine asks
        try:
            approved = [Approved(each.offer, each.record) for each in approvals]
            made = agreements.agree(self.part.job_id, self.part.flow, approved, self._mesh.trust.record)
        except TdnError as error:
            self.feed(self.job, job.NotAgreed(Failure.of(error, self._mesh.me)))
            return
        data = job_wire.encode_agreement(made)
        records = tuple(self._records[offer.signer] for offer in made.offers)
        self.feed(self.job, job.Agreed(data, agreements.digest(data), records))

    def _sign_verdict(self, effect: job.SignVerdict) -> None:
        assert self.job is not None  # noqa: S101  only the job machine asks
        statements = tuple(stated.statement for stated in effect.statements)
        outcome = EvidenceOutcome[effect.outcome.name]
        reason = effect.failure.reason.name if effect.failure else ""
        verdict = Verdict(
            self.part.job_id, outcome, self.part.agreement_digest, statements, effect.missing, reason
        )
        data = job_wire.encode_verdict(verdict, effect.outcome, effect.failure)
        signed = self._mesh.standing.key.sign(identity.VERDICT, data)
        self.feed(self.job, job.VerdictSigned(signed, effect.outcome))
        timer = asyncio.get_running_loop().call_later(ATTEST_S, self._make_bundle)
        self._timers.append(timer)

    def _keep_attestation(self, sender: str, data: bytes) -> None:
        try:
            self._attestations[sender] = wire.decode_attestation(data)
        except TdnError as error:
            self._mesh.refused(error)
        if len(self._attestations) == len(self.part.flow.parties):
            self._make_bundle()

    def _make_bundle(self) -> None:
        if self.bundle is not None or self.verdict is None:
            return
        records = [*self._records.values(), self._mesh.standing.membership.record]
        try:
            made = bundle.build(self.verdict, self._consents.values(), self._attestations.values(), records)
            bundle.verify(made, self._mesh.standing.membership.top_identity_key)
            self.bundle = made
        except TdnError as error:
            self._mesh.refused(error)
        self.over = True
        self._beside(self._finish(), self._aside)

    # -- the party's effects -------------------------------------------------------------------

    async def _decide(self) -> None:
        try:
            by = await self._work.decide(self.part)
        except TdnError as error:
            self.feed(self.party, party.Declined(Failure.of(error, self._mesh.me)))
            return
        if by:
            self._approve(by)

    def _approve(self, by: str) -> None:
        offer = self._work.approve(self.part, by)
        self.feed(self.party, party.Approved(offer, self._mesh.standing.membership.record))

    def _check_agreement(self, agreement: bytes, records: tuple[Signed, ...]) -> None:
        try:
            found = self._work.check_agreement(self.part, agreement, records)
        except TdnError as error:
            self._failed(error)
            return
        consent = job_wire.encode_consent(Consent(self.part.job_id, found))
        signed = self._mesh.standing.key.sign(identity.CONSENT, consent)
        self.feed(self.party, party.AgreementAccepted(signed, found))

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
        part = self.part
        statement = Statement(
            part.job_id, self._mesh.me, EvidenceOutcome[outcome.name], part.agreement_digest, self.party.epoch,
            part.commitment, now_ms(),
        )  # fmt: skip
        data = job_wire.encode_statement(statement, outcome)
        self.feed(self.party, party.StatementSigned(self._mesh.standing.key.sign(identity.STATEMENT, data)))

    async def _accept_verdict(self, verdict: Signed) -> None:
        """Verify, record, attest. An unreachable hub delays only the evidence, not the end of the job."""
        try:
            self._vet_verdict(verdict)
        except TdnError as error:
            self._mesh.refused(error)
            return
        self.verdict = verdict
        self.failure = job_wire.decode_verdict_failure(verdict.statement)
        outcome = job_wire.decode_verdict_outcome(verdict.statement)
        index = await self._mesh.note(
            VERDICT_KIND, self.part.job_id, {"outcome": outcome.name}, digest(verdict)
        )
        self.over = self.job is None
        await self._keep(self)
        try:
            attestation = await self._attest(index)
        except TdnError as error:
            self._mesh.refused(error)
            return
        self.feed(self.party, party.VerdictAccepted(wire.encode_attestation(attestation)))

    @tenacity.retry(
        wait=tenacity.wait_fixed(1), stop=tenacity.stop_after_delay(ATTEST_S / 2), reraise=True,
        retry=tenacity.retry_if_exception_type(TdnError),
    )  # fmt: skip
    async def _attest(self, index: int) -> Attestation:
        return await self._mesh.anchoring.attest(index)

    def _vet_verdict(self, verdict: Signed) -> None:
        self._vet_signature(identity.VERDICT, self.part.coordinator, verdict)
        found = wire.decode_verdict(verdict.statement)
        guard("TDN-F-TSK-07").check(
            found.job_id == self.part.job_id, Reason.IDENTITY_MISMATCH, "the verdict is about another job"
        )
        said = [s for s in found.statements if s.signer == self._mesh.me]
        honest = all(identity.verify(identity.STATEMENT, s, self._mesh.standing.key.public_key) for s in said)
        guard("TDN-F-TSK-07").check(
            honest and (said or self._mesh.me in found.missing), Reason.SIGNATURE_INVALID,
            "the verdict does not hold what this node stated", PeerProtocolError,
        )  # fmt: skip

    async def _finish(self) -> None:
        await self._keep(self)

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
        self.feed(self.party, party.Failed(Failure.of(error, self._mesh.me)))

    def _beside(self, work: Coroutine[Any, Any, None], group: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(work)
        group.add(task)
        task.add_done_callback(group.discard)
        task.add_done_callback(self._defect)

    def _defect(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception():
            _log.error("job work failed", job=self.part.job_id, exc_info=task.exception())
            failure = Failure(Reason.INTERNAL, f"a defect on {self._mesh.me}", self._mesh.me)
            self.feed(self.party, party.Failed(failure))
