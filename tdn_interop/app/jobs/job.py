"""The job as its coordinator drives it: from the proposal to the one verdict.

Each stage waits until every party has given its answer (`gates`), then an event of the machine's own
opens the next one. A run that is interrupted is not the end: everybody prepares again and the next epoch
starts, as often as `MAX_EPOCHS` allows and within the time of the first run. The three ways to stop are alike: tell everybody, collect statements until all are
there or time is up, give the verdict. The verdict follows from the statements: SUCCEEDED exactly when
every party states that it delivered, whatever was asked meanwhile; so a cancellation that comes after
the last delivery has no effect, and no two nodes end a job differently.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, cast

from tdn_interop.algo.machine import Effect, Event, LocalEvent, Table
from tdn_interop.app.evidence.statements import Outcome
from tdn_interop.app.jobs.flow import Timeouts
from tdn_interop.app.jobs.job_events import (
    Agreed,
    Begun,
    KeepAttestation,
    Negotiate,
    NotAgreed,
    PartyLost,
    SignVerdict,
    VerdictSigned,
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
    MessageT,
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

_members = guard("TDN-F-TSK-02")
_stops = guard("TDN-F-TSK-04")
_order = guard("TDN-F-TSK-01")
_same = guard("TDN-F-RCV-01")
# Runs of one job: each that is interrupted costs one.
MAX_EPOCHS = 16


class JobState(enum.Enum):
    """States of a job; the last four are its outcomes."""

    INITIALIZED = enum.auto()  # proposed, not yet stored by all
    AWAITING_APPROVAL = enum.auto()
    ADMITTING = enum.auto()  # one agreement is made and consented to
    READY = enum.auto()  # inputs are loaded
    RUNNING = enum.auto()
    RECOVERING = enum.auto()  # the run was interrupted; everybody prepares for the next epoch
    VERIFYING = enum.auto()  # results are delivered
    REJECTING = enum.auto()
    FAILING = enum.auto()
    CANCELLING = enum.auto()
    SUCCEEDED = enum.auto()
    REJECTED = enum.auto()
    FAILED = enum.auto()
    CANCELLED = enum.auto()


J = JobState
_LIVE = (
    J.INITIALIZED, J.AWAITING_APPROVAL, J.ADMITTING, J.READY, J.RUNNING, J.RECOVERING, J.VERIFYING,
)  # fmt: skip
_ENDED = (J.SUCCEEDED, J.REJECTED, J.FAILED, J.CANCELLED)
_STOPS = {  # stopping state -> the outcome it leads to, and its state
    J.REJECTING: (Outcome.REJECTED, J.REJECTED),
    J.FAILING: (Outcome.FAILED, J.FAILED),
    J.CANCELLING: (Outcome.CANCELLED, J.CANCELLED),
}


@dataclass(frozen=True, slots=True)
class Complete(LocalEvent):
    """Every party has answered; the machine itself feeds the subclasses, nobody else may."""


class AllStored(Complete):
    """Every party has stored the flow."""


class AllApproved(Complete):
    """Every party has approved."""


class AllAdmitted(Complete):
    """Every party has consented to the agreement."""


class AllPrepared(Complete):
    """Every party has loaded its inputs."""


class AllComputed(Complete):
    """Every party has computed its part."""


class AllDelivered(Complete):
    """Every party states success."""


class AllStated(Complete):
    """Every party has stated an outcome, not all of them success."""


class Exhausted(Complete):
    """The last epoch was interrupted, too."""


class Job(JobMachine):
    """The coordinator's machine of one job."""

    initial = J.INITIALIZED
    failed = J.FAILED
    stopped = frozenset({*_STOPS, *_ENDED})
    limits: ClassVar = {
        J.INITIALIZED: "approval_s",  # the proposal waits for a party that is away
        J.AWAITING_APPROVAL: "approval_s",
        J.ADMITTING: "step_s",
        J.READY: "step_s",
        J.RUNNING: "run_s",  # over all epochs
        J.RECOVERING: "lease_s",
        J.VERIFYING: "step_s",
        J.REJECTING: "stop_s",
        J.FAILING: "stop_s",
        J.CANCELLING: "stop_s",
    }
    unfenced = (Fail, Cancel)  # sent before the sender has seen the start; the stop must not be lost

    # stage -> the answer it waits for, and the event when every party has given it
    gates: ClassVar[dict[J, tuple[type[Message], type[Complete]]]] = {
        J.INITIALIZED: (Stored, AllStored),
        J.AWAITING_APPROVAL: (Approval, AllApproved),
        J.ADMITTING: (Admitted, AllAdmitted),
        J.READY: (Prepared, AllPrepared),
        J.RUNNING: (Computed, AllComputed),
        J.RECOVERING: (Prepared, AllPrepared),
        J.VERIFYING: (Stated, AllStated),
        J.REJECTING: (Stated, AllStated),
        J.FAILING: (Stated, AllStated),
        J.CANCELLING: (Stated, AllStated),
    }

    def __init__(self, node: str, parties: tuple[str, ...], flow: bytes, timeouts: Timeouts) -> None:
        super().__init__(node, timeouts)
        self.parties = tuple(sorted(parties))
        self.failure: Failure | None = None
        self._flow = flow
        self._agreement_sha256 = b""
        self._lost: set[str] = set()
        self._results: dict[str, bytes] = {}  # what each party's result is committed to

    def step(self, event: Event) -> list[Effect]:
        """Feed one event. Errors: as JobMachine, POLICY_DENIED when the sender is not a party."""
        if isinstance(event, Complete):
            told = f"{type(event).__name__} comes from the machine itself"
            _order.refuse(Reason.STATE_CONFLICT, told, LocalProtocolError)
        effects = super().step(event)
        while complete := self._complete():
            effects += super().step(complete)
        return effects

    def vet_sender(self, message: Message) -> None:
        """Only parties have a say. Errors: POLICY_DENIED."""
        gate = _stops if isinstance(message, Cancel) else _members
        told = f"{message.sender} is not a party of this job"
        gate.check(message.sender in self.parties, Reason.POLICY_DENIED, told, Refused)

    def vet_content(self, message: Message) -> None:
        """The same inputs have the same result in every epoch. Errors: DIGEST_MISMATCH."""
        if isinstance(message, Computed):
            known = self._results.get(message.sender, message.commitment)
            told = f"{message.sender} has computed another result than in an epoch before"
            _same.check(message.commitment == known, Reason.DIGEST_MISMATCH, told, PeerProtocolError)
            self._results[message.sender] = message.commitment

    def comes_too_late(self, event: Event) -> bool:
        """As JobMachine; and a party that has stated its outcome may leave."""
        leaves = isinstance(event, PartyLost) and self._said(event.party, Stated)
        return bool(leaves) or super().comes_too_late(event)

    def lasts(self, event: DeadlinePassed) -> bool:
        """As JobMachine; but the time of the run passes while it recovers, and each recovery has its own."""
        if event.stage is J.RUNNING:
            return self.state in (J.RUNNING, J.RECOVERING)
        return super().lasts(event) and (event.stage is not J.RECOVERING or event.epoch == self.epoch)

    def is_timed(self) -> bool:
        """As JobMachine; a run has one time, whatever the number of its epochs."""
        return super().is_timed() and not (self.state is J.RUNNING and self.epoch > 1)

    def expected(self) -> tuple[str, ...]:
        """The parties that have yet to answer in the present stage, once all have approved."""
        if self.state in (J.INITIALIZED, J.AWAITING_APPROVAL, *_ENDED):
            return ()
        return self._silent(self.gates[cast("J", self.state)][0])

    def _complete(self) -> Complete | None:
        if self.state is J.RECOVERING and self.epoch >= MAX_EPOCHS:
            return Exhausted()
        answer, complete = self.gates.get(cast("J", self.state), (None, None))
        if answer is None or complete is None:
            return None
        silent = set(self._silent(answer))
        if not silent and answer is Stated and self._all_succeeded():
            return AllDelivered()
        waits = silent - self._lost if self.state in _STOPS else silent
        return None if waits else complete()

    def _all_succeeded(self) -> bool:
        return all(each.outcome is Outcome.SUCCEEDED for each in self._heard(Stated))

    def _heard(self, answer: type[MessageT]) -> list[MessageT]:
        """The answers of this type so far, sorted by party."""
        found = (self._said(party, answer) for party in self.parties)
        return [message for message in found if message is not None]

    def _silent(self, answer: type[Message]) -> tuple[str, ...]:
        return tuple(party for party in self.parties if self._said(party, answer) is None)

    def _to_all(self, message: Message) -> Iterator[Effect]:
        return (Send(party, message) for party in self.parties)

    def _propose(self, _: Begun) -> Iterator[Effect]:
        """Propose the flow to every party."""
        yield from self._to_all(Propose(self.node, self.epoch, self._flow))
        yield self.timer()

    def _negotiate(self, _: AllApproved) -> Iterator[Effect]:
        """Negotiate the agreement."""
        yield Negotiate(tuple(self._heard(Approval)))

    def _admit(self, event: Agreed) -> Iterator[Effect]:
        """Send the agreement to every party."""
        self._agreement_sha256 = event.agreement_sha256
        yield from self._to_all(Admit(self.node, self.epoch, event.agreement, event.records))

    def _prepare(self, _: AllAdmitted | Interrupted) -> Iterator[Effect]:
        """Tell every party to load its inputs."""
        yield from self._to_all(Prepare(self.node, self.epoch))

    def _start(self, _: AllPrepared) -> Iterator[Effect]:
        """Open the next epoch and start every party."""
        self.epoch += 1
        yield from self._to_all(Start(self.node, self.epoch, self._agreement_sha256))

    def _exhaust(self, _: Exhausted) -> Iterator[Effect]:
        """Abort everywhere as FAILED."""
        told = f"interrupted in each of {self.epoch} epochs"
        yield from self._abort(Outcome.FAILED, Failure(Reason.PARTY_LOST, told, self.node))

    def _release(self, _: AllComputed) -> Iterator[Effect]:
        """Tell every party to deliver."""
        yield from self._to_all(Release(self.node, self.epoch))

    def _fail(self, event: Fail | NotAgreed) -> Iterator[Effect]:
        """Abort everywhere as FAILED."""
        yield from self._abort(Outcome.FAILED, event.failure)

    def _reject(self, event: Refusal) -> Iterator[Effect]:
        """Abort everywhere as REJECTED."""
        yield from self._abort(Outcome.REJECTED, event.failure)

    def _cancel(self, event: Cancel) -> Iterator[Effect]:
        """Abort everywhere as CANCELLED."""
        failure = Failure(Reason.JOB_CANCELLED, event.comment or "cancelled without a comment", event.sender)
        yield from self._abort(Outcome.CANCELLED, failure)

    def _lose(self, event: PartyLost) -> Iterator[Effect]:
        """Abort everywhere as FAILED, the party is lost."""
        self._lost.add(event.party)
        failure = Failure(Reason.PARTY_LOST, f"{event.party} cannot be reached", self.node)
        yield from self._abort(Outcome.FAILED, failure)

    def _miss(self, event: PartyLost) -> Iterator[Effect]:
        """Wait for its statement no longer."""
        self._lost.add(event.party)
        yield from ()

    def _expire(self, event: DeadlinePassed) -> Iterator[Effect]:
        """Abort everywhere as FAILED, or as REJECTED while decisions are awaited; name who did not answer."""
        answer, _ = self.gates[cast("J", event.stage)]
        silent = ", ".join(self._silent(answer)) or "nobody"
        told = f"{event.stage.name}: time is up, no {answer.__name__} from: {silent}"
        outcome = Outcome.REJECTED if event.stage is J.AWAITING_APPROVAL else Outcome.FAILED
        reason = Reason.PARTY_LOST if event.stage is J.RECOVERING else Reason.DEADLINE
        yield from self._abort(outcome, Failure(reason, told, self.node))

    def _contradict(self, _: AllStated) -> Iterator[Effect]:
        """Abort as FAILED: a party does not state success, and did not say before that it failed."""
        others = [each.sender for each in self._heard(Stated) if each.outcome is not Outcome.SUCCEEDED]
        told = f"no success stated by: {', '.join(others)}"
        yield from self._abort(Outcome.FAILED, Failure(Reason.UNEXPECTED_MESSAGE, told, self.node))

    def _abort(self, outcome: Outcome, failure: Failure) -> Iterator[Effect]:
        self.failure = failure
        yield from self._to_all(Abort(self.node, self.epoch, outcome, failure))

    def _succeed(self, _: AllDelivered) -> Iterator[Effect]:
        """Give the verdict SUCCEEDED."""
        self.failure = None
        yield SignVerdict(Outcome.SUCCEEDED, tuple(self._heard(Stated)), (), None)

    def _end(self, _: AllStated | DeadlinePassed) -> Iterator[Effect]:
        """Give the verdict with the statements there are."""
        outcome = _STOPS[cast("J", self.state)][0]
        yield SignVerdict(outcome, tuple(self._heard(Stated)), self._silent(Stated), self.failure)

    def _conclude(self, event: VerdictSigned) -> Iterator[Effect]:
        """Send the verdict to every party."""
        end = Conclude(self.node, self.epoch, event.verdict, event.outcome, event.records)
        yield from self._to_all(end)

    def _keep(self, event: Attested) -> Iterator[Effect]:
        """Keep the attestation."""
        yield KeepAttestation(event.sender, event.attestation)

    table: ClassVar[Table] = {
        (J.INITIALIZED, Begun): (_propose, None),
        (J.INITIALIZED, Stored): (None, None),
        (J.INITIALIZED, Approval): (None, None),  # quick parties decide before slow ones have stored
        (J.INITIALIZED, Refusal): (_reject, J.REJECTING),
        (J.INITIALIZED, AllStored): (None, J.AWAITING_APPROVAL),
        (J.AWAITING_APPROVAL, Approval): (None, None),
        (J.AWAITING_APPROVAL, Refusal): (_reject, J.REJECTING),
        (J.AWAITING_APPROVAL, AllApproved): (_negotiate, J.ADMITTING),
        (J.ADMITTING, Agreed): (_admit, None),
        (J.ADMITTING, NotAgreed): (_fail, J.FAILING),
        (J.ADMITTING, Admitted): (None, None),
        (J.ADMITTING, AllAdmitted): (_prepare, J.READY),
        (J.READY, Prepared): (None, None),
        (J.READY, AllPrepared): (_start, J.RUNNING),
        (J.RUNNING, Computed): (None, None),
        (J.RUNNING, Interrupted): (_prepare, J.RECOVERING),
        (J.RUNNING, AllComputed): (_release, J.VERIFYING),
        (J.RECOVERING, Interrupted): (None, None),
        (J.RECOVERING, Computed): (None, None),  # of the run that was interrupted
        (J.RECOVERING, Prepared): (None, None),
        (J.RECOVERING, AllPrepared): (_start, J.RUNNING),
        (J.RECOVERING, Exhausted): (_exhaust, J.FAILING),
        (J.VERIFYING, Stated): (None, None),
        (J.VERIFYING, AllDelivered): (_succeed, J.SUCCEEDED),
        (J.VERIFYING, AllStated): (_contradict, J.FAILING),
    }
    for _state in _LIVE:
        _stop = J.REJECTING if _state is J.AWAITING_APPROVAL else J.FAILING
        table[_state, DeadlinePassed] = (_expire, _stop)
        table[_state, PartyLost] = (_lose, J.FAILING)
        table[_state, Fail] = (_fail, J.FAILING)
        table[_state, Cancel] = (_cancel, J.CANCELLING)
    for _state, (_, _ended) in _STOPS.items():
        for _late in (
            Stored, Approval, Refusal, Admitted, Prepared, Computed, Interrupted, Stated, Fail, Cancel,
        ):  # fmt: skip
            table[_state, _late] = (None, None)  # was on its way when the stop began
        table[_state, AllDelivered] = (_succeed, J.SUCCEEDED)
        table[_state, AllStated] = (_end, _ended)
        table[_state, DeadlinePassed] = (_end, _ended)
        table[_state, PartyLost] = (_miss, None)
    del table[J.REJECTING, Approval]  # nobody approves what is rejected
    for _state in _ENDED:
        table[_state, VerdictSigned] = (_conclude, None)
        table[_state, Attested] = (_keep, None)
