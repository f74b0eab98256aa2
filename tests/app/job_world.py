"""One coordinator, its parties, and a bag of messages and of work: whoever uses it decides what happens when."""

import hashlib
from dataclasses import dataclass, field

from tdn_interop.app.evidence.statements import Outcome
from tdn_interop.app.jobs import job as jobs
from tdn_interop.app.jobs import party as parties
from tdn_interop.app.jobs.flow import Timeouts
from tdn_interop.app.jobs.job import Job, JobState
from tdn_interop.app.jobs.job_protocol import Send, WakeAfter
from tdn_interop.app.jobs.party import PartyState, PartyTask
from tdn_interop.errors import Reason, TdnError
from tdn_interop.identity import Signed
from tdn_interop.transport.frame import Failure

NODES = ("a.x.cn", "b.y.cn", "c.x.cn")
FLOW = b'{"name":"f"}'
ENDED = {JobState.SUCCEEDED, JobState.REJECTED, JobState.FAILED, JobState.CANCELLED}
PART_ENDED = {PartyState.SUCCESS, PartyState.REJECTED, PartyState.FAILED, PartyState.CANCELLED}
BROKEN = Failure(Reason.INTERNAL, "broken")


def signed(by: str, text: object) -> Signed:
    return Signed(str(text).encode(), by, b"signature")


@dataclass
class World:
    """`mail` and `work` are what could happen next; `log` is everything that was sent, in order."""

    nodes: tuple[str, ...] = NODES
    declining: frozenset[str] = frozenset()
    mail: list[Send] = field(default_factory=list)
    work: list[tuple[object, object]] = field(default_factory=list)  # machine, effect
    timers: list[tuple[object, WakeAfter]] = field(default_factory=list)
    log: list[Send] = field(default_factory=list)
    verdicts: list[jobs.SignVerdict] = field(default_factory=list)
    accepted: dict[str, Outcome] = field(default_factory=dict)  # by party, from AcceptVerdict
    runs: dict[tuple[str, int], int] = field(default_factory=dict)  # by node and epoch
    interrupted: set[str] = field(default_factory=set)  # whose next run is
    outputs: set[str] = field(default_factory=set)
    gave_up: set[str] = field(default_factory=set)
    refusals: list[TdnError] = field(default_factory=list)

    def __post_init__(self):
        self.job = Job(self.nodes[0], self.nodes, FLOW, Timeouts())
        self.parties = {node: PartyTask(node, self.nodes[0], Timeouts()) for node in self.nodes}

    def feed(self, machine, event):
        """Step; a refusal is kept and must have changed nothing."""
        before = (machine.state, machine.epoch)
        try:
            effects = machine.step(event)
        except TdnError as error:
            assert (machine.state, machine.epoch) == before, "a refused event changed the machine"
            self.refusals.append(error)
            return
        for effect in effects:
            if isinstance(effect, Send):
                self.mail.append(effect)
                self.log.append(effect)
            elif isinstance(effect, WakeAfter):
                self.timers.append((machine, effect))
            else:
                self.work.append((machine, effect))

    def deliver(self, index=0, *, keep=False):
        send = self.mail[index] if keep else self.mail.pop(index)
        to_job = isinstance(send.message, FROM_PARTY)
        self.feed(self.job if to_job else self.parties[send.to], send.message)

    def perform(self, index=0):
        machine, effect = self.work.pop(index)
        for event in self.answer(machine, effect):
            self.feed(machine, event)

    def answer(self, machine, effect):
        node = machine.node
        match effect:
            case parties.Decide():
                if node in self.declining:
                    yield parties.Declined(Failure(Reason.APPROVAL_REFUSED, "no", node))
                else:
                    yield parties.Approved(signed(node, "offer"), signed("top.cn", node))
            case jobs.Negotiate(approvals):
                agreement = repr([each.offer for each in approvals]).encode()
                yield jobs.Agreed(agreement, hashlib.sha256(agreement).digest(), ())
            case parties.CheckAgreement(agreement):
                yield parties.AgreementAccepted(signed(node, "consent"), hashlib.sha256(agreement).digest())
            case parties.LoadInput():
                yield parties.InputLoaded()
            case parties.RunTask():
                self.runs[node, effect.epoch] = self.runs.get((node, effect.epoch), 0) + 1
                if node in self.interrupted:
                    self.interrupted.discard(node)
                    yield parties.RunInterrupted(effect.epoch)
                else:
                    yield parties.TaskDone(effect.epoch, 2, hashlib.sha256(node.encode()).digest())
            case parties.DeliverResult():
                if machine.state is PartyState.COMPUTED:  # else StopTask has stopped the work
                    self.outputs.add(node)
                    yield parties.Delivered()
            case parties.StopRun():
                pass
            case parties.StopTask():
                self.outputs.discard(node)
            case parties.SignStatement(outcome):
                yield parties.StatementSigned(signed(node, outcome.name))
            case jobs.SignVerdict(outcome):
                self.verdicts.append(effect)
                yield jobs.VerdictSigned(signed(node, outcome.name), outcome)
            case parties.AcceptVerdict(verdict):
                self.accepted[node] = Outcome[verdict.statement.decode()]
                yield parties.VerdictAccepted(b"attestation of " + node.encode())
            case parties.GiveUp():
                self.gave_up.add(node)
            case jobs.KeepAttestation():
                pass
            case _:
                raise AssertionError(effect)

    def fire(self, index=0):
        machine, timer = self.timers.pop(index)
        self.feed(machine, jobs.DeadlinePassed(timer.stage, timer.epoch))

    def settle(self):
        """Let everything happen that can, in order, but let no time pass."""
        while self.mail or self.work:
            if self.work:
                self.perform()
            else:
                self.deliver()

    def run_until(self, state):
        """Deliver and perform in order until the job is in `state`."""
        while self.job.state is not state:
            if self.work:
                self.perform()
            else:
                self.deliver()

    def sent(self, message_type, to=None):
        return [s.message for s in self.log if type(s.message) is message_type and to in (None, s.to)]


FROM_PARTY = tuple(
    getattr(parties, name)
    for name in (
        "Stored", "Approval", "Refusal", "Admitted", "Prepared", "Computed", "Interrupted", "Stated", "Attested", "Fail", "Cancel",
    )
)  # fmt: skip
