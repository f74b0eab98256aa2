"""Both job machines under every event in every state, and together under any order, loss and repetition."""

import copy
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tdn_interop.algo.machine import LocalEvent
from tdn_interop.app.evidence.statements import Outcome
from tdn_interop.app.jobs import job as jobs
from tdn_interop.app.jobs import party as parties
from tdn_interop.app.jobs.flow import Timeouts
from tdn_interop.app.jobs.job import Job, JobState
from tdn_interop.app.jobs.job_protocol import (
    Approval,
    Conclude,
    DeadlinePassed,
    Message,
    Racing,
    Start,
    describe,
)
from tdn_interop.app.jobs.party import PartyState, PartyTask
from tdn_interop.errors import LocalProtocolError, PeerProtocolError, Reason, TdnError
from tests.app.job_world import BROKEN, ENDED, NODES, PART_ENDED, World, signed

A, B, C = NODES
TABLES = Path(__file__).parents[1] / "vectors" / "job_tables.md"


def subclasses(cls):
    return {cls}.union(*map(subclasses, cls.__subclasses__()))


EVENTS = sorted(
    (
        cls
        for cls in subclasses(Message) | subclasses(LocalEvent)
        if cls.__module__.startswith("tdn_interop.app")
    ),
    key=lambda cls: cls.__name__,
)
ABSTRACT = {Message, Racing, jobs.Complete, parties.OfRun}
BETWEEN_RUNS = {PartyState.RESERVED, PartyState.READY, PartyState.LOST}
VALUES = {
    "bytes": b"x",
    "Signed": signed(B, "x"),
    "Failure": BROKEN,
    "Outcome": Outcome.FAILED,
    "str": B,
    "int": 0,
    "tuple[Signed, ...]": (),
}


def example(cls, machine, sender):
    """An event of this class that says nothing false about sender, epoch and stage."""
    known = {"sender": sender, "epoch": machine.epoch, "stage": machine.state}
    if cls is Start:
        known |= {"epoch": machine.epoch + 1, "agreement_sha256": machine._agreement_sha256}
    return cls(**{field.name: known.get(field.name, VALUES.get(field.type)) for field in fields(cls)})


def attempt(machine, event):
    """(effects, None) or ([], the refusal)."""
    try:
        return machine.step(event), None
    except TdnError as error:
        return [], error


def job() -> Job:
    return Job(A, NODES, b"flow", Timeouts())


def part() -> PartyTask:
    return PartyTask(B, A, Timeouts())


CELLS = [
    (make, sender, state, cls)
    for make, sender, states in ((job, B, JobState), (part, A, PartyState))
    for state in states
    for cls in EVENTS
    if cls not in ABSTRACT
]


def test_the_sweep_sees_every_event_of_the_tables():
    named = {event for machine in (Job, PartyTask) for _, event in machine.table}
    assert named <= set(EVENTS)
    assert len(CELLS) > 700


def test_every_cell_does_what_its_table_says_and_nothing_else():
    for make, sender, state, cls in CELLS:
        machine = make()
        machine.state = state
        event = example(cls, machine, sender)
        before = copy.deepcopy(vars(machine))
        row = machine.table.get((state, cls))
        effects, error = attempt(machine, event)
        if error is not None:
            assert row is None or issubclass(cls, jobs.Complete), (state, cls)
            assert error.reason is Reason.STATE_CONFLICT
            assert isinstance(error, PeerProtocolError if issubclass(cls, Message) else LocalProtocolError)
            assert vars(machine) == before, (state, cls)
            continue
        if row is None:
            assert issubclass(cls, Racing), (state, cls)
            between_runs = issubclass(cls, parties.OfRun) and state in BETWEEN_RUNS
            assert state in machine.stopped or between_runs
            assert (effects, vars(machine)) == ([], before), (state, cls)
        elif row[1] is not None:
            assert machine.state is row[1], (state, cls)


def test_what_has_ended_stays_ended():
    for make, sender, state, cls in CELLS:
        if state in ENDED | PART_ENDED:
            machine = make()
            machine.state = state
            attempt(machine, example(cls, machine, sender))
            assert machine.state is state


def test_the_tables_are_the_published_ones():
    """The file is what another implementation reads; write it anew on purpose only."""
    text = f"# Job\n\n{describe(Job.table)}\n# Party task\n\n{describe(PartyTask.table)}"
    assert TABLES.read_text() == text


@pytest.mark.parametrize("table", [Job.table, PartyTask.table])
def test_every_state_can_be_reached_and_left(table):
    targets = {target for _, target in table.values()}
    states = {state for state, _ in table}
    assert targets - {None} <= states


class Chaos(RuleBasedStateMachine):
    """One job of three parties; mail is lost, repeated and reordered, work ends in any order."""

    def __init__(self):
        super().__init__()
        self.world = World()
        self.world.feed(self.world.job, jobs.Begun())
        self.asked = False
        self.seen = {}

    index = st.integers(0, 40)
    node = st.sampled_from(NODES)

    @precondition(lambda self: self.world.mail)
    @rule(index=index)
    def deliver(self, index):
        self.world.deliver(index % len(self.world.mail))

    @precondition(lambda self: self.world.mail)
    @rule(count=st.integers(1, 12))
    def deliver_in_order(self, count):
        for _ in range(min(count, len(self.world.mail))):
            self.world.deliver()

    @precondition(lambda self: self.world.mail)
    @rule(index=index)
    def deliver_and_keep(self, index):
        self.world.deliver(index % len(self.world.mail), keep=True)

    @precondition(lambda self: self.world.mail)
    @rule(index=index)
    def lose(self, index):
        self.world.mail.pop(index % len(self.world.mail))

    @precondition(lambda self: self.world.work)
    @rule(index=index)
    def perform(self, index):
        self.world.perform(index % len(self.world.work))

    @rule()
    def let_things_go_well(self):
        for _ in range(12):
            if self.world.work:
                self.world.perform()
            elif self.world.mail:
                self.world.deliver()

    @precondition(lambda self: self.world.timers)
    @rule(index=index)
    def pass_time(self, index):
        self.world.fire(index % len(self.world.timers))

    @rule(node=node)
    def cancel(self, node):
        self.world.feed(self.world.parties[node], parties.CancelAsked("enough"))

    @rule(node=node)
    def decline(self, node):
        self.world.declining |= {node}

    @rule(node=node)
    def interrupt(self, node):
        self.world.interrupted |= {node}

    @rule(node=node)
    def kill_while_running(self, node):
        machine = self.world.parties[node]
        if machine.state is PartyState.RUNNING:
            self.world.feed(machine, parties.RunInterrupted(machine.epoch))

    @rule(node=node)
    def fail(self, node):
        self.world.feed(self.world.parties[node], parties.Failed(BROKEN))

    @rule(node=node)
    def lose_party(self, node):
        self.world.feed(self.world.job, jobs.PartyLost(node))

    @invariant()
    def there_is_at_most_one_verdict(self):
        assert len(self.world.verdicts) <= 1
        assert len({send.message for send in self.world.log if isinstance(send.message, Conclude)}) <= 1
        assert len(set(self.world.accepted.values())) <= 1

    @invariant()
    def nothing_starts_before_all_approvals(self):
        if self.world.sent(Start):
            assert {message.sender for message in self.world.sent(Approval)} == set(NODES)

    @invariant()
    def nothing_runs_twice_and_nothing_runs_without_consent(self):
        assert set(self.world.runs.values()) <= {1}, "an epoch runs once"
        for node, _ in self.world.runs:
            assert self.world.parties[node]._agreement_sha256

    @invariant()
    def nobody_leaves_an_end(self):
        for name, machine in {"job": self.world.job, **self.world.parties}.items():
            if name in self.seen:
                assert machine.state is self.seen[name]
            elif machine.state in ENDED | PART_ENDED:
                self.seen[name] = machine.state

    @invariant()
    def a_success_is_a_success_of_all(self):
        if self.world.job.state is JobState.SUCCEEDED:
            assert {machine.state for machine in self.world.parties.values()} == {PartyState.SUCCESS}

    @invariant()
    def refusals_are_typed(self):
        assert {error.reason for error in self.world.refusals} <= {Reason.STATE_CONFLICT, Reason.STALE}

    def teardown(self):
        """However it went so far: when the time is up, everybody has ended, and alike."""
        for _ in range(4):
            self.world.settle()
            for machine in (self.world.job, *self.world.parties.values()):
                self.world.feed(machine, DeadlinePassed(machine.state, machine.epoch))
        self.world.settle()
        self.there_is_at_most_one_verdict()
        self.a_success_is_a_success_of_all()
        (verdict,) = self.world.verdicts
        assert self.world.job.state is JobState[verdict.outcome.name]
        assert {machine.state for machine in self.world.parties.values()} <= PART_ENDED
        assert set(self.world.accepted.values()) <= {verdict.outcome}
        said = {statement.sender: statement.outcome for statement in verdict.statements}
        assert set(said) | set(verdict.missing) == set(NODES)
        assert set(said.values()) <= {Outcome.SUCCEEDED, verdict.outcome}
        assert (verdict.outcome is Outcome.SUCCEEDED) == (
            set(said.values()) == {Outcome.SUCCEEDED} and len(said) == 3
        )
        delivered = {
            node for node, machine in self.world.parties.items() if machine.state is PartyState.SUCCESS
        }
        assert self.world.outputs == delivered


Chaos.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestChaos = Chaos.TestCase
