"""Runs that are interrupted: everybody prepares, the next epoch starts, and the job ends as if nothing had happened."""

import hashlib

import pytest

from tdn_interop.app.evidence.statements import Outcome
from tdn_interop.app.jobs import job as jobs
from tdn_interop.app.jobs import party as parties
from tdn_interop.app.jobs.job import MAX_EPOCHS, JobState
from tdn_interop.app.jobs.job_protocol import (
    Abort,
    Cancel,
    Computed,
    DeadlinePassed,
    Interrupted,
    Prepare,
    Prepared,
    Release,
    Start,
    WakeAfter,
)
from tdn_interop.app.jobs.party import PartyState
from tdn_interop.errors import PeerProtocolError, Reason
from tests.app.job_world import BROKEN, NODES
from tests.app.test_job import assert_alike, at, refusal

A, B, C = NODES


def recovering():
    """A job of which B was interrupted in its run."""
    world = at(JobState.RUNNING)
    world.interrupted = {B}
    world.run_until(JobState.RECOVERING)
    return world


@pytest.mark.parametrize("victim", NODES)
def test_an_interrupted_run_is_repeated(victim):
    world = at(JobState.RUNNING)
    world.interrupted = {victim}
    world.settle()
    assert_alike(world, Outcome.SUCCEEDED)
    assert world.refusals == []
    assert world.job.epoch == 2
    assert {epoch for _, epoch in world.runs} == {1, 2}
    assert set(world.runs.values()) == {1}
    assert {machine.epoch for machine in world.parties.values()} == {2}


def test_everybody_is_interrupted_again_and_again():
    world = at(JobState.RUNNING)
    for _ in range(5):
        world.interrupted = set(NODES)
        while world.interrupted:
            world.perform() if world.work else world.deliver()
    world.settle()
    assert_alike(world, Outcome.SUCCEEDED)
    assert world.refusals == []
    assert world.job.epoch == 6


def test_a_party_that_had_computed_computes_again():
    world = at(JobState.RUNNING)
    world.run_until(JobState.RUNNING)
    machine = world.parties[C]
    while machine.state is not PartyState.COMPUTED:
        world.perform() if world.work else world.deliver()
    world.feed(world.job, Interrupted(B, 1))
    world.parties[B].state = PartyState.LOST
    world.settle()
    assert_alike(world, Outcome.SUCCEEDED)
    assert (C, 2) in world.runs


def test_the_parties_stop_their_run_and_keep_their_input():
    machine = at(JobState.VERIFYING).parties[B]
    machine.state, machine._accepted = PartyState.RUNNING, {}
    effects = machine.step(Prepare(A, 1))
    assert effects[:2] == [parties.StopRun(), parties.LoadInput()]
    assert machine.state is PartyState.RESERVED
    assert machine.step(parties.TaskDone(1, 3)) == []  # was on its way
    assert machine.step(parties.RunInterrupted(1)) == []
    (send, _) = machine.step(parties.InputLoaded())
    assert send.message == Prepared(B, 1)


def test_what_is_of_an_older_epoch_changes_nothing():
    world = recovering()
    while world.job.state is not JobState.RUNNING:
        world.perform() if world.work else world.deliver()
    for message in (Computed(B, 1, 1), Interrupted(C, 1)):
        assert refusal(world.job, message, PeerProtocolError) == (Reason.STALE, "TDN-F-TSK-08")
    machine = world.parties[B]
    world.settle()
    for message in (Prepare(A, 1), Start(A, 1, machine._agreement_sha256)):
        assert machine.step(message) == []  # repetitions
    assert refusal(machine, Release(A, 1), PeerProtocolError)[0] is Reason.STALE


def test_a_delivery_is_not_undone_by_another_epoch():
    world = at(JobState.VERIFYING)
    machine = world.parties[C]
    machine.step(Release(A, 1))
    assert refusal(machine, Prepare(A, 1), PeerProtocolError) == (Reason.STATE_CONFLICT, "TDN-F-TSK-08")


def test_another_result_in_another_epoch_is_refused():
    world = at(JobState.RUNNING)
    world.job.step(Computed(B, 1, 1, bytes(32)))
    world.feed(world.job, Interrupted(C, 1))
    for node in NODES:
        world.job.step(Prepared(node, 1))
    other = hashlib.sha256(b"other").digest()
    message = Computed(B, 2, 1, other)
    assert refusal(world.job, message, PeerProtocolError) == (Reason.DIGEST_MISMATCH, "TDN-F-RCV-01")
    world.job.step(Computed(B, 2, 1, bytes(32)))


class TestTime:
    def test_the_time_of_a_run_is_that_of_all_its_epochs(self):
        world = recovering()
        timers = [timer for machine, timer in world.timers if machine is world.job]
        world.settle()
        later = [t for machine, t in world.timers if machine is world.job][len(timers) :]
        assert [timer.stage for timer in later] == [JobState.VERIFYING]

    @pytest.mark.parametrize("state", [JobState.RUNNING, JobState.RECOVERING])
    def test_it_passes_while_the_job_recovers(self, state):
        world = recovering()
        world.run_until(state)
        world.feed(world.job, DeadlinePassed(JobState.RUNNING, 1))
        assert_alike(world, Outcome.FAILED)
        assert world.verdicts[0].failure.reason is Reason.DEADLINE

    def test_whoever_does_not_prepare_in_time_is_lost(self):
        world = recovering()
        (timer,) = [t for m, t in world.timers if m is world.job and t.stage is JobState.RECOVERING]
        assert timer == WakeAfter(JobState.RECOVERING, 120, 1)
        world.job.step(Prepared(A, 1))
        world.job.step(Prepared(B, 1))
        world.feed(world.job, DeadlinePassed(JobState.RECOVERING, 1))
        failure = world.job.failure
        assert (failure.reason, C in failure.message, B in failure.message) == (
            Reason.PARTY_LOST,
            True,
            False,
        )

    def test_each_recovery_has_its_own_time(self):
        world = recovering()
        for node in NODES:
            world.job.step(Prepared(node, 1))
        world.feed(world.job, Interrupted(B, 2))
        assert world.job.state is JobState.RECOVERING
        assert world.job.step(DeadlinePassed(JobState.RECOVERING, 1)) == []
        assert world.job.state is JobState.RECOVERING

    def test_there_is_an_end_to_it(self):
        world = at(JobState.RUNNING)
        machine = world.job
        for epoch in range(1, MAX_EPOCHS):
            machine.step(Interrupted(B, epoch))
            for node in NODES:
                machine.step(Prepared(node, epoch))
            assert machine.state is JobState.RUNNING
        effects = machine.step(Interrupted(B, MAX_EPOCHS))
        assert machine.state is JobState.FAILING
        assert machine.failure.reason is Reason.PARTY_LOST
        assert any(isinstance(getattr(effect, "message", None), Abort) for effect in effects)


class TestStopping:
    @pytest.mark.parametrize("node", NODES)
    def test_cancelled_while_it_recovers(self, node):
        world = recovering()
        world.feed(world.parties[node], parties.CancelAsked("enough"))
        assert_alike(world, Outcome.CANCELLED)

    @pytest.mark.parametrize("node", NODES)
    def test_failed_while_it_recovers(self, node):
        world = recovering()
        world.feed(world.parties[node], parties.Failed(BROKEN))
        assert_alike(world, Outcome.FAILED)

    def test_a_party_that_is_lost_while_it_recovers(self):
        world = recovering()
        world.feed(world.job, jobs.PartyLost(B))
        assert world.job.state is JobState.FAILING

    def test_whoever_has_delivered_may_still_ask_for_an_end(self):
        """The verdict decides: here somebody has not delivered yet."""
        world = at(JobState.VERIFYING)
        machine = world.parties[A]
        while machine.state is not PartyState.SUCCESS:
            world.perform() if world.work else world.deliver()
        world.parties[B].state = PartyState.COMPUTED
        world.feed(machine, parties.CancelAsked("enough"))
        assert world.sent(Cancel, A) == [Cancel(A, 1, "enough")]

    def test_once_the_verdict_is_given_it_is_too_late(self):
        world = at(JobState.VERIFYING)
        world.settle()
        for node in NODES:
            world.feed(world.parties[node], parties.CancelAsked("enough"))
        assert [error.reason for error in world.refusals] == [Reason.STATE_CONFLICT] * 3
        assert_alike(world, Outcome.SUCCEEDED)

    def test_only_what_is_waited_for_has_a_lease(self):
        assert at(JobState.AWAITING_APPROVAL).job.expected() == ()
        world = recovering()
        world.job.step(Prepared(A, 1))
        assert world.job.expected() == (B, C)
        world.settle()
        assert world.job.expected() == ()
