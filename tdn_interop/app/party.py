"""A job as one of its parties lives it: decide, admit, prepare, run, deliver, state the outcome.

The state says how this party's part went; how the job ended says the verdict alone. A party states an
outcome once: success when it has delivered, otherwise whatever the coordinator's abort asks for. What
it has delivered and stated, nothing takes back, not even a verdict that the job failed: another party may
have failed after it. A party waits for the verdict, but not for ever: its coordinator may be lost.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from tdn_interop.algo.machine import Effect, LocalEvent, Table
from tdn_interop.app.evidence.statements import Outcome
from tdn_interop.app.flow import Timeouts
from tdn_interop.app.job_protocol import (
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
    JobMachine,
    Message,
    Prepare,
    Prepared,
    Propose,
    Racing,
    Refusal,
    Release,
    Send,
    Start,
    Stated,
    Stored,
)
from tdn_interop.errors import PeerProtocolError, Reason, Refused, guard
from tdn_interop.identity import Signed
from tdn_interop.transport.frame import Failure

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
    COMPUTED = enum.auto()
    SUCCESS = enum.auto()
    REJECTED = enum.auto()
    FAILED = enum.auto()
    CANCELLED = enum.auto()


P = PartyState
_LIVE = (P.PENDING, P.AWAITING_APPROVAL, P.APPROVED, P.RESERVED, P.READY, P.RUNNING, P.COMPUTED)
_ENDED = (P.SUCCESS, P.REJECTED, P.FAILED, P.CANCELLED)
_STOPPED_AS = {
    Outcome.REJECTED: P.REJECTED,
    Outcome.FAILED: P.FAILED,
    Outcome.CANCELLED: P.CANCELLED,
}


@dataclass(frozen=True, slots=True)
class Approved(LocalEvent):
    """An answer to `Decide`: the signed Offer and the NodeRecord of this node."""

    offer: Signed
    record: Signed


@dataclass(frozen=True, slots=True)
class Declined(LocalEvent):
    """The other answer to `Decide`."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class CancelAsked(LocalEvent):
    """The owner of this node wants the job cancelled."""

    comment: str


@dataclass(frozen=True, slots=True)
class AgreementAccepted(Racing):
    """The answer to `CheckAgreement`: the signed Consent and the digest it is for."""

    consent: Signed
    agreement_sha256: bytes


@dataclass(frozen=True, slots=True)
class InputLoaded(Racing):
    """The answer to `LoadInput`."""


@dataclass(frozen=True, slots=True)
class TaskDone(Racing):
    """The answer to `RunTask`."""

    hops: int


@dataclass(frozen=True, slots=True)
class Delivered(Racing):
    """The answer to `DeliverResult`: the result is in its place, or there is none for this party."""


@dataclass(frozen=True, slots=True)
class Failed(Racing):
    """Work for this job failed on this node, or the coordinator is lost."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class StatementSigned(Racing):
    """The answer to `SignStatement`, with the NodeRecord of this node."""

    statement: Signed
    record: Signed | None = None


@dataclass(frozen=True, slots=True)
class VerdictAccepted(Racing):
    """The answer to `AcceptVerdict`: the serialized Attestation of this node."""

    attestation: bytes


@dataclass(frozen=True, slots=True)
class Decide(Effect):
    """Store the flow; ask the rules or wait for a human; answer `Approved` or `Declined`."""

    flow: bytes


@dataclass(frozen=True, slots=True)
class CheckAgreement(Effect):
    """Make the agreement again from the offers and compare; answer `AgreementAccepted` or `Failed`."""

    agreement: bytes
    records: tuple[Signed, ...]


@dataclass(frozen=True, slots=True)
class LoadInput(Effect):
    """Load the input, if this party has one; answer `InputLoaded` or `Failed`."""


@dataclass(frozen=True, slots=True)
class RunTask(Effect):
    """Run this party's part of the task; answer `TaskDone` or `Failed`."""

    epoch: int


@dataclass(frozen=True, slots=True)
class DeliverResult(Effect):
    """Put the result in its place, if this party receives one; answer `Delivered` or `Failed`."""


@dataclass(frozen=True, slots=True)
class StopTask(Effect):
    """Stop all work for this job, wait until it has stopped, and remove what it has put out. May repeat."""


@dataclass(frozen=True, slots=True)
class SignStatement(Effect):
    """Record and sign the outcome; answer `StatementSigned`. At most one for each party and job."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class GiveUp(Effect):
    """End the record of the job without a verdict, unless one has been accepted."""


@dataclass(frozen=True, slots=True)
class AcceptVerdict(Effect):
    """Verify the verdict and record it as the end of the job; answer `VerdictAccepted`."""

    verdict: Signed
    records: tuple[Signed, ...] = ()


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

    def vet_sender(self, message: Message) -> None:
        """Only the coordinator has a say. Errors: IDENTITY_MISMATCH."""
        told = f"{type(message).__name__} from {message.sender}, who does not coordinate this job"
        _forged.check(message.sender == self.coordinator, Reason.IDENTITY_MISMATCH, told, Refused)

    def vet_content(self, message: Message) -> None:
        """What was not consented to is not run, and nobody else tells this party that it succeeded.

        Errors: STALE, DIGEST_MISMATCH, STATE_CONFLICT.
        """
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

    def _prepared(self, _: InputLoaded) -> Iterator[Effect]:
        """Say so."""
        yield self._send(Prepared(self.node, self.epoch))

    def _run(self, event: Start) -> Iterator[Effect]:
        """Run the task."""
        yield RunTask(event.epoch)

    def _computed(self, event: TaskDone) -> Iterator[Effect]:
        """Say so."""
        yield self._send(Computed(self.node, self.epoch, event.hops))

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
        (P.COMPUTED, Release): (_deliver, None),
        (P.COMPUTED, Delivered): (_delivered, P.SUCCESS),
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
