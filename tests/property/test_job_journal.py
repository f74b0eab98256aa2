"""The journal of a job: what is written comes back, what was damaged is refused, and replaying makes the same machines."""

import dataclasses
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdn_interop.app.evidence.statements import Outcome
from tdn_interop.app.jobs import job as jobs
from tdn_interop.app.jobs import job_events, journal
from tdn_interop.app.jobs.flow import Timeouts
from tdn_interop.app.jobs.job import Job, JobState
from tdn_interop.app.jobs.job_protocol import LocalEvent, WakeAfter
from tdn_interop.app.jobs.job_replay import Past, replay
from tdn_interop.app.jobs.journal import Entry
from tdn_interop.app.jobs.party import PartyState, PartyTask
from tdn_interop.errors import Reason, TdnError
from tdn_interop.identity import Signed
from tdn_interop.transport.frame import Failure
from tests.app.job_world import FLOW, NODES, World
from tests.app.test_job_wire import messages

JOB = "0123456789abcdef" * 2
signed = st.builds(
    Signed, st.binary(min_size=1, max_size=50), st.just("b.y.cn"), st.binary(min_size=64, max_size=64)
)
VALUES = {
    "int": st.integers(0, 2**40),
    "str": st.text(max_size=30),
    "bytes": st.binary(max_size=60),
    "Outcome": st.sampled_from(Outcome),
    "Signed": signed,
    "Signed | None": st.none() | signed,
    "tuple[Signed, ...]": st.lists(signed, max_size=3).map(tuple),
    "Failure": st.builds(
        Failure, st.sampled_from(Reason), st.text(max_size=30), st.text(max_size=10), st.text(max_size=10),
        st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    ),
}  # fmt: skip


def locals_of(machine, stages):
    values = VALUES | {"enum.Enum": st.sampled_from(stages)}
    kinds = [
        st.builds(kind, **{field.name: values[field.type] for field in dataclasses.fields(kind)})
        for kind in journal._LOCAL.values()
    ]
    return st.builds(Entry, st.integers(0, 2**45), st.just(machine), st.one_of(kinds))


entries = st.one_of(
    locals_of("job", JobState),
    locals_of("party", PartyState),
    st.builds(Entry, st.integers(0, 2**45), st.sampled_from(["job", "party"]), messages),
)


def test_every_local_event_can_be_kept():
    """By name: a class with slots is a second one."""
    kinds = {
        event.__name__
        for machine in (Job, PartyTask)
        for _, event in machine.table
        if issubclass(event, LocalEvent)
    }
    of_the_machine = {kind.__name__ for kind in jobs.Complete.__subclasses__()}
    assert set(journal._LOCAL) == kinds - of_the_machine


@given(entries)
def test_what_is_written_comes_back(entry):
    assert journal.decode(journal.encode(JOB, 3, entry)) == entry


@given(entries, st.data())
def test_what_was_damaged_is_refused_or_still_an_event(entry, data):
    row = journal.encode(JOB, 3, entry)
    field = data.draw(st.sampled_from(["body", "kind", "machine", "cut"]))
    if field == "body":
        at = data.draw(st.integers(0, max(0, len(row.body) - 1)))
        changed = bytearray(row.body or b"x")
        changed[at] ^= data.draw(st.integers(1, 255))
        row = dataclasses.replace(row, body=bytes(changed))
    elif field == "cut":
        row = dataclasses.replace(row, body=row.body[: data.draw(st.integers(0, len(row.body)))])
    else:
        row = dataclasses.replace(row, **{field: data.draw(st.text(max_size=8))})
    read, refused = None, None
    try:
        read = journal.decode(row)
    except TdnError as error:
        refused = error.reason
    assert isinstance(read, Entry) or refused is Reason.JOURNAL_BROKEN


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values | {"more": 1},
        lambda values: {name: value for name, value in values.items() if name != "hops"},
        lambda values: values | {"hops": "2"},
        lambda values: values | {"hops": True},
        lambda values: values | {"commitment": "xyz"},
        lambda values: values | {"commitment": None},
    ],
)
def test_fields_are_checked(change):
    row = journal.encode(JOB, 0, Entry(1, "party", job_events.TaskDone(1, 2, b"x")))
    row = dataclasses.replace(row, body=json.dumps(change(json.loads(row.body))).encode())
    with pytest.raises(TdnError) as error:
        journal.decode(row)
    assert error.value.reason is Reason.JOURNAL_BROKEN


@dataclasses.dataclass(frozen=True)
class Kept:
    """A row that needs no codec: what a world's machines say to each other is not signed."""

    job_id: str
    idx: int
    entry: Entry


class Journalled(World):
    """A world that writes down what its machines take, and may make any of them anew from that."""

    def __post_init__(self):
        super().__post_init__()
        self.journals = {id(machine): [] for machine in (self.job, *self.parties.values())}

    def feed(self, machine, event):
        before = machine.taken
        super().feed(machine, event)
        if machine.taken != before:
            name = "job" if machine is self.job else "party"
            rows = self.journals[id(machine)]
            rows.append(Kept(JOB, len(rows), Entry(1, name, event)))

    def kill(self, machine):
        """Make the machine again; the work that is left to do must be what was not done yet."""
        rows = self.journals.pop(id(machine))
        is_job = machine is self.job
        made = (
            Job(NODES[0], NODES, FLOW, Timeouts())
            if is_job
            else PartyTask(machine.node, NODES[0], Timeouts())
        )
        self.journals[id(made)] = rows
        left = replay(
            Past(None, tuple(rows), (), None), {"job" if is_job else "party": made}, lambda *_: None
        )
        assert {k: v for k, v in vars(made).items() if k != "_timeouts"} == {
            k: v for k, v in vars(machine).items() if k != "_timeouts"
        }
        if is_job:
            self.job = made
        else:
            self.parties[machine.node] = made
        self.timers = [(made if m is machine else m, timer) for m, timer in self.timers]
        waiting = [effect for m, effect in self.work if m is machine]
        self.work = [pair for pair in self.work if pair[0] is not machine]
        again = [asked.effect for asked in left if not isinstance(asked.effect, WakeAfter)]
        needed = [effect for effect in waiting if not isinstance(effect, job_events.StopRun)]
        assert all(effect in again or self.is_idle(made) for effect in needed)
        repeated = {type(effect) for effect in again if effect not in waiting}
        assert repeated <= {job_events.StopTask, job_events.KeepAttestation, job_events.GiveUp}
        self.work += [(made, effect) for effect in again]

    @staticmethod
    def is_idle(machine):
        """Work whose answer the machine would ignore: a stop has come meanwhile."""
        return machine.state in machine.stopped


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.05, 0.5))
def test_machines_made_anew_at_any_moment_come_to_the_same_end(seed, often):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "decode", lambda row: row.entry)
        world = lived(random.Random(seed), often)
    assert world.job.state is JobState.SUCCEEDED
    assert {machine.state for machine in world.parties.values()} == {PartyState.SUCCESS}
    assert len({verdict.outcome for verdict in world.verdicts}) == 1


def lived(chance, often):
    """A world in which machines die and come back until nothing is left to do."""
    world = Journalled()
    world.feed(world.job, jobs.Begun())
    while world.mail or world.work:
        if chance.random() < often:
            world.kill(chance.choice([world.job, *world.parties.values()]))
        if world.work and chance.random() < 0.6:
            world.perform(chance.randrange(len(world.work)))
        elif world.mail:
            world.deliver()
    return world
