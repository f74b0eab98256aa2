"""A job as one of its parties lives it: decide, admit, prepare, run, deliver, state the outcome.

The state says how this party's part went; how the job ended says the verdict alone. A party states an
outcome once: success when it has delivered, otherwise whatever the coordinator's abort asks for. What
it has delivered and stated, nothing takes back, not even a verdict that the job failed: another party may
have failed after it. A run that is interrupted leaves the party LOST until the coordinator lets everybody prepare
for the next epoch. A party waits for the verdict, but not for ever: its coordinator may be lost.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from typing import ClassVar

from tdn_interop.algo.machine import Effect, Event, Table
from tdn_interop.app.evidence.statements import Outcome
from tdn_interop.app.jobs.flow import Timeouts
from tdn_interop.app.jobs.job_events import (
    AcceptVerdict,
    AgreementAccepted,
    Approved,
    CancelAsked,
    CheckAgreement,
    Decide,
    Declined,
    Delivered,
    DeliverResult,
    Failed,
    GiveUp,
    InputLoaded,
    LoadInput,
    OfRun,
    RunInterrupted,
    RunTask,
    SignStatement,
    StatementSigned,
    StopRun,
    StopTask,
    TaskDone,
    VerdictAccepted,
)
from tdn_interop.app.jobs.job_protocol import (
    Abort,
    Admit,
    Admitted,
    Approval,
    Attested,
    Cancel,
    Computed,
    Conclude,
    DeadlinePassed,
    Fail,
    Interrupted,
    JobMachine,
    Message,
    Prepare,
    Prepared,
    Propose,
    Refusal,
    Release,
    Send,
    Start,
    Stated,
    Stored,
)
from tdn_interop.errors import LocalProtocolError, PeerProtocolError, Reason, Refused, guard
from tdn_interop.transport.frame import Failure

_order = guard("TDN-F-TSK-01")
_agreed = guard("TDN-F-TSK-02")
_forged = guard("TDN-F-TSK-07")
_epochs = guard("TDN-F-TSK-08")


class PartyState(enum.Enum):
    """States of one party's part; the last four end it."""

    PENDING = enum.auto()  # nothing is known yet
    AWAITING_APPROVAL = enum.auto()  # a rule or a human decides
    APPROVED = enum.auto()
    RESERVED = enum.auto()  # the agreement is consented to
    READY = enum.auto()  # the input is loaded
    RUNNING = enum.auto()
    LOST = enum.auto()  # the run was interrupted
    COMPUTED = enum.auto()
    SUCCESS = enum.auto()
    REJECTED = enum.auto()
    FAILED = enum.auto()
    CANCELLED = enum.auto()


P = PartyState
_LIVE = (
    P.PENDING, P.AWAITING_APPROVAL, P.APPROVED, P.RESERVED, P.READY, P.RUNNING, P.LOST, P.COMPUTED,
)  # fmt: skip
_ENDED = (P.SUCCESS, P.REJECTED, P.FAILED, P.CANCELLED)
_BEFORE_RUN = (P.RESERVED, P.READY, P.LOST)
_STOPPED_AS = {
    Outcome.REJECTED: P.REJECTED,
    Outcome.FAILED: P.FAILED,
    Outcome.CANCELLED: P.CANCELLED,
}


class PartyTask(JobMachine):
    """The machine of one party in one job. `stated` is the outcome it has stated, if any."""

    initial = P.PENDING
    failed = P.FAILED
    stopped = frozenset(_ENDED)
    # The coordinator watches the stages; this is only for the case that it is gone.
    limits: ClassVar[Mapping[enum.Enum, str]] = {
        **dict.fromkeys(_LIVE, "total_s"),
        **dict.fromkeys(_ENDED, "verdict_s"),
    }
    opening = (Start, Abort, Conclude)

    def __init__(self, node: str, coordinator: str, timeouts: Timeouts) -> None:
        super().__init__(node, timeouts)
        self.coordinator = coordinator
        self.stated: Outcome | None = None
        self._agreement_sha256 = b""

    def salvaged(self, epoch: int, stated: Outcome | None) -> None:
        """Go on from what a record says, for want of a journal; what was stated stays."""
        self.stated = stated
        state = _STOPPED_AS.get(stated, P.SUCCESS) if stated else None
        self.found(epoch, state)

    def vet_sender(self, message: Message) -> None:
        """Only the coordinator has a say. Errors: IDENTITY_MISMATCH."""
        told = f"{type(message).__name__} from {message.sender}, who does not coordinate this job"
        _forged.check(message.sender == self.coordinator, Reason.IDENTITY_MISMATCH, told, Refused)

    def vet_content(self, message: Message) -> None:
        """Refuse to run what was not consented to or is delivered, and to hear of a success of ours from others.

        Errors: STALE, DIGEST_MISMATCH, STATE_CONFLICT.
        """
        if isinstance(message, Prepare):
            told = "the result is being delivered, it is not computed again"
            _epochs.check(not self._said(self.coordinator, Release), Reason.STATE_CONFLICT, told)
        if isinstance(message, Start):
            _epochs.check(
                message.epoch > self.epoch, Reason.STALE, f"epoch {message.epoch} cannot start again"
            )
            same = message.agreement_sha256 == self._agreement_sha256
            told = "the start names another agreement than the one consented to"
            _agreed.check(same, Reason.DIGEST_MISMATCH, told, PeerProtocolError)
        if isinstance(message, Abort | Conclude) and message.outcome is Outcome.SUCCEEDED:
            honest = isinstance(message, Conclude) and self.stated is Outcome.SUCCEEDED
            told = f"{type(message).__name__} claims a success that this party has not stated"
            _forged.check(honest, Reason.STATE_CONFLICT, told, PeerProtocolError)

    def comes_too_late(self, event: Event) -> bool:
        """As JobMachine; and what became of a run that has been stopped, or will be, does not matter."""
        if isinstance(event, OfRun) and (event.epoch < self.epoch or self.state in _BEFORE_RUN):
            return True
        return super().comes_too_late(event)

    def _vet_state(self, event: Event) -> None:
        super()._vet_state(event)
        if isinstance(event, CancelAsked):
            told = "it is too late to cancel, the verdict is given"
            given = self._said(self.coordinator, Conclude)
            _order.check(not given, Reason.STATE_CONFLICT, told, LocalProtocolError)

    def _send(self, message: Message) -> Effect:
        return Send(self.coordinator, message)

    def _propose(self, event: Propose) -> Iterator[Effect]:
        """Confirm, then decide."""
        yield self._send(Stored(self.node, self.epoch))
        yield Decide(event.flow)

    def _approve(self, event: Approved) -> Iterator[Effect]:
        """Send the offer."""
        yield self._send(Approval(self.node, self.epoch, event.offer, event.record))

    def _decline(self, event: Declined) -> Iterator[Effect]:
        """Send the refusal."""
        yield self._send(Refusal(self.node, self.epoch, event.failure))

    def _check(self, event: Admit) -> Iterator[Effect]:
        """Check the agreement."""
        yield CheckAgreement(event.agreement, event.records)

    def _admit(self, event: AgreementAccepted) -> Iterator[Effect]:
        """Send the consent."""
        self._agreement_sha256 = event.agreement_sha256
        yield self._send(Admitted(self.node, self.epoch, event.consent))

    def _load(self, _: Prepare) -> Iterator[Effect]:
        """Load the input."""
        yield LoadInput()

    def _again(self, _: Prepare) -> Iterator[Effect]:
        """Stop the run that is over and load the input."""
        yield StopRun()
        yield LoadInput()

    def _prepared(self, _: InputLoaded) -> Iterator[Effect]:
        """Say so."""
        yield self._send(Prepared(self.node, self.epoch))

    def _run(self, event: Start) -> Iterator[Effect]:
        """Run the task."""
        yield RunTask(event.epoch)

    def _computed(self, event: TaskDone) -> Iterator[Effect]:
        """Say so."""
        yield self._send(Computed(self.node, self.epoch, event.hops, event.commitment))

    def _interrupted(self, _: RunInterrupted) -> Iterator[Effect]:
        """Say so."""
        yield self._send(Interrupted(self.node, self.epoch))

    def _deliver(self, _: Release) -> Iterator[Effect]:
        """Deliver the result."""
        yield DeliverResult()

    def _delivered(self, _: Delivered) -> Iterator[Effect]:
        """State success."""
        yield self._state(Outcome.SUCCEEDED)

    def _state(self, outcome: Outcome) -> Effect:
        self.stated = outcome
        return SignStatement(outcome)

    def _stated(self, event: StatementSigned) -> Iterator[Effect]:
        """Send the statement."""
        if self.stated is not None:
            yield self._send(Stated(self.node, self.epoch, event.statement, self.stated, event.record))

    def _fail(self, event: Failed) -> Iterator[Effect]:
        """Stop, and report the failure."""
        yield StopTask()
        yield self._send(Fail(self.node, self.epoch, event.failure))

    def _expire(self, event: DeadlinePassed) -> Iterator[Effect]:
        """Stop, and report that time is up."""
        failure = Failure(Reason.DEADLINE, f"{event.stage.name}: no word from {self.coordinator}", self.node)
        yield from self._fail(Failed(failure))

    def _give_up(self, _: DeadlinePassed) -> Iterator[Effect]:
        """Wait for the verdict no longer."""
        yield GiveUp()

    def _cancel(self, event: CancelAsked) -> Iterator[Effect]:
        """Ask the coordinator to cancel."""
        yield self._send(Cancel(self.node, self.epoch, event.comment))

    def _abort(self, event: Abort) -> Iterator[Effect]:
        """Stop, state the outcome that is asked for, and end as that."""
        self.state = _STOPPED_AS[event.outcome]
        yield StopTask()
        yield self._state(event.outcome)

    def _abort_again(self, event: Abort) -> Iterator[Effect]:
        """State the outcome that is asked for, unless one is stated."""
        if self.stated is None:
            yield self._state(event.outcome)

    def _conclude_early(self, event: Conclude) -> Iterator[Effect]:
        """Stop, accept the verdict, and end as it says."""
        self.state = _STOPPED_AS[event.outcome]
        yield StopTask()
        yield AcceptVerdict(event.verdict, event.records)

    def _conclude(self, event: Conclude) -> Iterator[Effect]:
        """Accept the verdict."""
        yield AcceptVerdict(event.verdict, event.records)

    def _attest(self, event: VerdictAccepted) -> Iterator[Effect]:
        """Send the attestation."""
        yield self._send(Attested(self.node, self.epoch, event.attestation))

    table: ClassVar[Table] = {
        (P.PENDING, Propose): (_propose, P.AWAITING_APPROVAL),
        (P.AWAITING_APPROVAL, Approved): (_approve, P.APPROVED),
        (P.AWAITING_APPROVAL, Declined): (_decline, P.REJECTED),
        (P.APPROVED, Admit): (_check, None),
        (P.APPROVED, AgreementAccepted): (_admit, P.RESERVED),
        (P.RESERVED, Prepare): (_load, None),
        (P.RESERVED, InputLoaded): (_prepared, P.READY),
        (P.READY, Start): (_run, P.RUNNING),
        (P.RUNNING, TaskDone): (_computed, P.COMPUTED),
        (P.RUNNING, RunInterrupted): (_interrupted, P.LOST),
        (P.RUNNING, Prepare): (_again, P.RESERVED),
        (P.LOST, Prepare): (_again, P.RESERVED),
        (P.COMPUTED, Prepare): (_again, P.RESERVED),
        (P.COMPUTED, Release): (_deliver, None),
        (P.COMPUTED, Delivered): (_delivered, P.SUCCESS),
        (P.SUCCESS, CancelAsked): (_cancel, None),  # the verdict decides
    }
    for _at in _LIVE:
        table[_at, Failed] = (_fail, P.FAILED)
        table[_at, DeadlinePassed] = (_expire, P.FAILED)
        table[_at, CancelAsked] = (_cancel, None)
        table[_at, Abort] = (_abort, None)
        table[_at, Conclude] = (_conclude_early, None)
    for _at in _ENDED:
        table[_at, Abort] = (_abort_again, None)
        table[_at, DeadlinePassed] = (_give_up, None)
        table[_at, StatementSigned] = (_stated, None)
        table[_at, Conclude] = (_conclude, None)
        table[_at, VerdictAccepted] = (_attest, None)
