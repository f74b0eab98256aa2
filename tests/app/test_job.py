"""Jobs: one order of things, one verdict, and no message that changes anything it should not."""

import itertools

import pytest

from tdn_interop.app.evidence.statements import Outcome
from tdn_interop.app.jobs import job as jobs
from tdn_interop.app.jobs import party as parties
from tdn_interop.app.jobs.job import Job, JobState
from tdn_interop.app.jobs.job_protocol import (
    Abort,
    Approval,
    Attested,
    Cancel,
    Computed,
    Conclude,
    DeadlinePassed,
    Fail,
    Prepared,
    Propose,
    Refusal,
    Release,
    Start,
    Stated,
    Stored,
    WakeAfter,
)
from tdn_interop.app.jobs.party import PartyState
from tdn_interop.errors import LocalProtocolError, PeerProtocolError, Reason, Refused, TdnError
from tests.app.job_world import BROKEN, ENDED, NODES, PART_ENDED, World, signed

A, B, C = NODES
LIVE = [
    JobState.INITIALIZED,
    JobState.AWAITING_APPROVAL,
    JobState.ADMITTING,
    JobState.READY,
    JobState.RUNNING,
    JobState.VERIFYING,
]
STOPPING = [JobState.REJECTING, JobState.FAILING, JobState.CANCELLING]


def begun(**more) -> World:
    world = World(**more)
    world.feed(world.job, jobs.Begun())
    return world


def at(state: JobState) -> World:
    world = begun()
    world.run_until(state)
    return world


def refusal(machine, event, kind: type[TdnError]) -> tuple[Reason, str]:
    """(reason, requirement) of the refusal of `event`, which must have changed nothing."""
    before = (machine.state, machine.epoch)
    with pytest.raises(kind) as caught:
        machine.step(event)
    assert (machine.state, machine.epoch) == before
    return caught.value.reason, caught.value.requirement


def assert_alike(world: World, outcome: Outcome):
    """Everybody has the same verdict, and results are where it says."""
    world.settle()
    assert world.job.state is JobState[outcome.name]
    assert world.accepted == dict.fromkeys(world.nodes, outcome)
    assert {machine.state for machine in world.parties.values()} <= PART_ENDED
    assert len(world.verdicts) == 1
    assert (world.job.failure is None) == (outcome is Outcome.SUCCEEDED)
    stated = {each.sender: each.outcome for each in world.verdicts[0].statements}
    assert world.outputs == {node for node, said in stated.items() if said is Outcome.SUCCEEDED}


class TestTheOrder:
    def test_a_job_runs_through_all_states_to_one_verdict(self):
        world = begun()
        seen = [world.job.state]
        while world.mail or world.work:
            world.perform() if world.work else world.deliver()
            seen.append(world.job.state)
        assert [state for state, _ in itertools.groupby(seen)] == [*LIVE, JobState.SUCCEEDED]
        assert_alike(world, Outcome.SUCCEEDED)
        assert world.refusals == []
        assert world.runs == dict.fromkeys(((node, 1) for node in NODES), 1)
        kinds = [type(send.message).__name__ for send in world.log if B in (send.to, send.message.sender)]
        assert kinds == [
            "Propose", "Stored", "Approval", "Admit", "Admitted", "Prepare", "Prepared",
            "Start", "Computed", "Release", "Stated", "Conclude", "Attested",
        ]  # fmt: skip

    def test_the_verdict_holds_every_statement_sorted(self):
        world = begun()
        world.settle()
        (verdict,) = world.verdicts
        assert [each.sender for each in verdict.statements] == [A, B, C]
        assert (verdict.outcome, verdict.missing, verdict.failure) == (Outcome.SUCCEEDED, (), None)

    def test_a_party_may_decide_before_another_has_stored(self):
        world = begun()
        machine = world.job
        for node in (A, B):
            machine.step(Stored(node, 0))
            machine.step(Approval(node, 0, signed(node, "o"), signed(node, "r")))
        assert machine.state is JobState.INITIALIZED
        machine.step(Stored(C, 0))
        assert machine.state is JobState.AWAITING_APPROVAL
        (negotiate, _) = machine.step(Approval(C, 0, signed(C, "o"), signed(C, "r")))
        assert [each.sender for each in negotiate.approvals] == [A, B, C]

    def test_nothing_starts_before_all_have_prepared(self):
        machine = at(JobState.READY).job
        for node in (A, B):
            assert machine.step(Prepared(node, 0)) == []
        started = [effect.message for effect in machine.step(Prepared(C, 0))[:3]]
        assert all(isinstance(message, Start) and message.epoch == 1 for message in started)

    def test_each_stage_has_its_time(self):
        world = begun()
        world.settle()
        limits = [
            (timer.stage.name, timer.seconds) for machine, timer in world.timers if machine is world.job
        ]
        assert limits == [
            ("INITIALIZED", 3600), ("AWAITING_APPROVAL", 3600), ("ADMITTING", 300),
            ("READY", 300), ("RUNNING", 3600), ("VERIFYING", 300),
        ]  # fmt: skip


class TestWhoMaySpeak:
    def test_a_stranger_has_no_say(self):
        machine = at(JobState.AWAITING_APPROVAL).job
        approval = Approval("x.cn", 0, signed("x.cn", 1), signed("x.cn", 2))
        for message, requirement in ((approval, "TDN-F-TSK-02"), (Cancel("x.cn", 0, ""), "TDN-F-TSK-04")):
            assert refusal(machine, message, Refused) == (Reason.POLICY_DENIED, requirement)

    @pytest.mark.parametrize("sender", [B, "x.cn"])
    @pytest.mark.parametrize("state", [JobState.RUNNING, JobState.VERIFYING])
    def test_only_the_coordinator_commands_or_concludes(self, sender, state):
        machine = at(state).parties[C]
        for message in (
            Conclude(sender, 1, signed(sender, "v"), Outcome.SUCCEEDED),
            Abort(sender, 1, Outcome.FAILED, BROKEN),
            Release(sender, 1),
        ):
            assert refusal(machine, message, Refused) == (Reason.IDENTITY_MISMATCH, "TDN-F-TSK-07")

    def test_a_success_that_the_party_has_no_part_in_is_refused(self):
        machine = at(JobState.RUNNING).parties[C]
        for message in (
            Conclude(A, 1, signed(A, "v"), Outcome.SUCCEEDED),
            Abort(A, 1, Outcome.SUCCEEDED, BROKEN),
        ):
            assert refusal(machine, message, PeerProtocolError) == (Reason.STATE_CONFLICT, "TDN-F-TSK-07")

    def test_only_the_machine_itself_says_that_all_have_answered(self):
        for event in jobs.Complete.__subclasses__():
            for state in JobState:
                machine = Job(A, NODES, b"", World().job._timeouts)
                machine.state = state
                assert refusal(machine, event(), LocalProtocolError)[0] is Reason.STATE_CONFLICT


class TestRepetitionsAndEpochs:
    def test_every_message_may_come_twice(self):
        world = begun()
        while world.mail or world.work:
            if world.work:
                world.perform()
            else:
                world.deliver(keep=True)
                once = list(world.work), len(world.mail)
                world.deliver()
                assert (world.work, len(world.mail)) == (once[0], once[1] - 1)
        assert world.refusals == []
        assert world.runs == dict.fromkeys(((node, 1) for node in NODES), 1)
        assert_alike(world, Outcome.SUCCEEDED)

    def test_every_message_may_come_again_at_the_end(self):
        world = begun()
        world.settle()
        sent = list(world.log)
        world.mail = list(sent)
        world.settle()
        assert world.log == sent
        assert world.refusals == []

    def test_a_second_proposal_with_other_content_is_refused(self):
        machine = at(JobState.INITIALIZED).parties[B]
        machine.step(Propose(A, 0, b"one"))
        assert machine.step(Propose(A, 0, b"one")) == []
        assert refusal(machine, Propose(A, 0, b"two"), PeerProtocolError) == (
            Reason.STATE_CONFLICT,
            "TDN-F-TSK-03",
        )

    def test_older_epochs_are_fenced_at_the_coordinator(self):
        machine = at(JobState.RUNNING).job
        for message in (Computed(B, 0, 1), Stated(B, 0, signed(B, "s"), Outcome.SUCCEEDED)):
            assert refusal(machine, message, PeerProtocolError) == (Reason.STALE, "TDN-F-TSK-08")

    def test_older_epochs_are_fenced_at_a_party(self):
        machine = at(JobState.READY).parties[B]
        machine.state = PartyState.READY
        digest = machine._agreement_sha256
        machine.step(Start(A, 2, digest))
        machine.step(parties.TaskDone(2, 0))
        for message in (Release(A, 1), Abort(A, 1, Outcome.FAILED, BROKEN), Start(A, 1, digest)):
            assert refusal(machine, message, PeerProtocolError) == (Reason.STALE, "TDN-F-TSK-08")

    def test_epoch_0_cannot_be_started(self):
        machine = at(JobState.READY).parties[B]
        machine.state = PartyState.READY
        message = Start(A, 0, machine._agreement_sha256)
        assert refusal(machine, message, PeerProtocolError) == (Reason.STALE, "TDN-F-TSK-08")

    def test_an_epoch_that_has_not_started_is_out_of_place(self):
        world = at(JobState.RUNNING)
        for machine, message in (
            (world.job, Computed(B, 2, 1)),
            (world.job, Fail(B, 2, BROKEN)),
            (world.parties[B], Release(A, 2)),
        ):
            assert refusal(machine, message, PeerProtocolError) == (Reason.STATE_CONFLICT, "TDN-F-TSK-08")

    def test_a_failure_from_before_the_start_still_stops_the_job(self):
        machine = at(JobState.RUNNING).job
        machine.step(Fail(B, 0, BROKEN))
        assert machine.state is JobState.FAILING

    def test_a_party_that_missed_the_start_states_in_the_epoch_of_the_abort(self):
        world = at(JobState.READY)
        machine = world.parties[B]
        _, sign, _ = machine.step(Abort(A, 1, Outcome.FAILED, BROKEN))
        assert sign == parties.SignStatement(Outcome.FAILED)
        (send,) = machine.step(parties.StatementSigned(signed(B, "s")))
        assert send.message == Stated(B, 1, signed(B, "s"), Outcome.FAILED)


class TestRefusals:
    def test_a_refusal_rejects_the_job_for_all(self):
        world = begun(declining=frozenset({B}))
        assert_alike(world, Outcome.REJECTED)
        assert world.verdicts[0].failure.reason is Reason.APPROVAL_REFUSED
        assert world.runs == {}

    def test_approval_after_rejection_is_refused(self):
        machine = begun().job
        for node in NODES:
            machine.step(Stored(node, 0))
        machine.step(Refusal(B, 0, BROKEN))
        for node in (B, C):
            message = Approval(node, 0, signed(node, 3), signed(node, 4))
            assert refusal(machine, message, PeerProtocolError) == (Reason.STATE_CONFLICT, "TDN-F-TSK-01")

    def test_a_human_who_approves_too_late_is_told(self):
        machine = begun().parties[B]
        machine.step(Propose(A, 0, b"flow"))
        machine.step(Abort(A, 0, Outcome.CANCELLED, BROKEN))
        approve = parties.Approved(signed(B, "offer"), signed(B, "record"))
        assert refusal(machine, approve, LocalProtocolError) == (Reason.STATE_CONFLICT, "TDN-F-TSK-01")

    def test_a_start_before_the_approval_is_refused(self):
        machine = begun().parties[B]
        machine.step(Propose(A, 0, b"flow"))
        message = Start(A, 1, b"")
        assert refusal(machine, message, PeerProtocolError) == (Reason.STATE_CONFLICT, "TDN-F-TSK-01")

    def test_a_start_under_another_agreement_is_refused(self):
        world = at(JobState.RUNNING)
        machine = next(m for m in world.parties.values() if m.state is PartyState.READY)
        message = Start(A, 1, bytes(32))
        assert refusal(machine, message, PeerProtocolError) == (Reason.DIGEST_MISMATCH, "TDN-F-TSK-02")
        world.settle()
        assert_alike(world, Outcome.SUCCEEDED)


class TestFailure:
    @pytest.mark.parametrize("state", LIVE)
    @pytest.mark.parametrize("node", NODES)
    def test_a_party_that_fails_ends_the_job_everywhere(self, state, node):
        world = at(state)
        world.feed(world.parties[node], parties.Failed(BROKEN))
        assert_alike(world, Outcome.FAILED)
        assert world.verdicts[0].failure == BROKEN
        assert world.outputs < set(NODES)

    def test_offers_with_nothing_in_common_fail_the_job(self):
        world = begun()
        while not any(isinstance(effect, jobs.Negotiate) for _, effect in world.work):
            world.perform() if world.work else world.deliver()
        world.work.clear()
        world.feed(world.job, jobs.NotAgreed(BROKEN))
        assert_alike(world, Outcome.FAILED)

    @pytest.mark.parametrize("state", LIVE)
    def test_a_lost_party_is_listed_as_missing(self, state):
        world = at(state)
        world.feed(world.job, jobs.PartyLost(C))
        world.parties[C].step = lambda _: []  # gone
        world.settle()
        (verdict,) = world.verdicts
        assert (verdict.outcome, verdict.missing) == (Outcome.FAILED, (C,))
        assert (verdict.failure.reason, C in verdict.failure.message) == (Reason.PARTY_LOST, True)
        assert world.accepted == {A: Outcome.FAILED, B: Outcome.FAILED}

    @pytest.mark.parametrize("stop", [JobState.REJECTING, JobState.FAILING, JobState.CANCELLING])
    def test_a_stop_waits_for_nobody_who_is_lost(self, stop):
        """Nor does it take the silence of the lost one for success."""
        machine = at(JobState.VERIFYING).job
        machine.state = stop
        machine.step(Stated(A, 1, signed(A, "s"), Outcome.SUCCEEDED))
        machine.step(jobs.PartyLost(C))
        assert machine.state is stop
        effects = machine.step(Stated(B, 1, signed(B, "s"), Outcome.SUCCEEDED))
        (verdict,) = [effect for effect in effects if isinstance(effect, jobs.SignVerdict)]
        assert (verdict.outcome.name, verdict.missing) == (machine.state.name, (C,))
        assert machine.state not in {stop, JobState.SUCCEEDED}

    def test_a_party_that_has_delivered_and_stated_may_leave(self):
        machine = at(JobState.VERIFYING).job
        machine.step(Stated(B, 1, signed(B, "s"), Outcome.SUCCEEDED))
        assert machine.step(jobs.PartyLost(B)) == []
        assert machine.state is JobState.VERIFYING
        machine.step(jobs.PartyLost(C))
        assert machine.state is JobState.FAILING

    @pytest.mark.parametrize("state", LIVE)
    def test_a_silent_party_is_named_when_time_is_up(self, state):
        world = at(state)
        world.mail = [send for send in world.mail if send.message.sender != C and send.to != C]
        world.parties[C].step = lambda _: []  # silent
        world.settle()
        stuck = world.job.state
        world.feed(world.job, DeadlinePassed(stuck))
        world.settle()
        outcome = Outcome.REJECTED if stuck is JobState.AWAITING_APPROVAL else Outcome.FAILED
        world.feed(world.job, DeadlinePassed(world.job.state))
        world.settle()
        (verdict,) = world.verdicts
        assert (verdict.outcome, verdict.missing, verdict.failure.reason) == (outcome, (C,), Reason.DEADLINE)
        assert f"from: {C}" in verdict.failure.message

    def test_a_timer_of_a_stage_that_is_over_does_nothing(self):
        for state in (*LIVE, *STOPPING, *ENDED):
            machine = Job(A, NODES, b"", World().job._timeouts)
            machine.state = state
            for stage in JobState:
                if stage is not state:
                    assert machine.step(DeadlinePassed(stage)) == []

    def test_a_party_that_delivered_says_so_in_a_failed_job(self):
        world = at(JobState.VERIFYING)
        world.feed(world.parties[C], parties.Failed(BROKEN))
        world.mail = [send for send in world.mail if send.to == B] + [s for s in world.mail if s.to != B]
        while world.parties[B].state is not PartyState.SUCCESS:
            world.perform() if world.work else world.deliver()
        assert_alike(world, Outcome.FAILED)
        said = {each.sender: each.outcome for each in world.verdicts[0].statements}
        assert (said[B], said[C]) == (Outcome.SUCCEEDED, Outcome.FAILED)
        assert world.parties[B].state is PartyState.SUCCESS

    def test_a_party_that_states_failure_without_a_word_before_fails_the_job(self):
        machine = at(JobState.VERIFYING).job
        for node, outcome in ((A, Outcome.SUCCEEDED), (B, Outcome.FAILED), (C, Outcome.SUCCEEDED)):
            effects = machine.step(Stated(node, 1, signed(node, outcome), outcome))
        assert machine.state is JobState.FAILED
        verdict = next(effect for effect in effects if isinstance(effect, jobs.SignVerdict))
        assert (verdict.outcome, verdict.missing) == (Outcome.FAILED, ())
        assert B in verdict.failure.message

    def test_a_party_gives_up_when_its_coordinator_is_gone(self):
        for state in PartyState:
            machine = at(JobState.INITIALIZED).parties[B]
            machine.state = state
            effects = machine.step(DeadlinePassed(state))
            if state in PART_ENDED:  # it waited for the verdict only
                assert effects == [parties.GiveUp()]
                assert machine.state is state
            else:
                assert machine.state is PartyState.FAILED
                assert effects[0] == parties.StopTask()
                assert effects[1].message.failure.reason is Reason.DEADLINE


class TestCancel:
    def steps(self, world: World, count: int):
        for _ in range(count):
            if not (world.mail or world.work):
                return False
            world.perform() if world.work else world.deliver()
        return True

    @pytest.mark.parametrize("node", NODES)
    def test_a_cancellation_at_any_moment_ends_alike_everywhere(self, node):
        outcomes = []
        for count in itertools.count():
            world = begun()
            if not self.steps(world, count):
                break
            world.feed(world.parties[node], parties.CancelAsked("enough"))
            world.settle()
            outcome = Outcome[world.job.state.name]
            outcomes.append(outcome)
            assert_alike(world, outcome)
        assert count > 60
        # Once it is too late it stays too late.
        assert [each for each, _ in itertools.groupby(outcomes)] == [Outcome.CANCELLED, Outcome.SUCCEEDED]

    @pytest.mark.parametrize("state", LIVE)
    def test_who_cancelled_and_why_is_in_the_verdict(self, state):
        machine = at(state).job
        machine.step(Cancel(B, 0, "budget is gone"))
        assert machine.state is JobState.CANCELLING
        assert (machine.failure.reason, machine.failure.noticed_by) == (Reason.JOB_CANCELLED, B)
        assert machine.failure.message == "budget is gone"

    def test_a_cancelled_party_leaves_no_output(self):
        world = at(JobState.VERIFYING)
        while not world.outputs:
            world.perform() if world.work else world.deliver()
        world.outputs.clear()
        machine = world.parties[B]
        effects = machine.step(Abort(A, 1, Outcome.CANCELLED, BROKEN))
        assert effects[:-1] == [parties.StopTask(), parties.SignStatement(Outcome.CANCELLED)]
        assert isinstance(effects[-1], WakeAfter)
        assert machine.step(parties.Delivered()) == []  # came too late
        assert machine.state is PartyState.CANCELLED


class TestTheEnd:
    @pytest.mark.parametrize("end", ["success", "reject", "fail", "cancel"])
    def test_nothing_changes_what_has_ended(self, end):
        world = begun(declining=frozenset({B} if end == "reject" else ()))
        if end == "fail":
            world.feed(world.parties[B], parties.Failed(BROKEN))
        if end == "cancel":
            world.feed(world.parties[B], parties.CancelAsked(""))
        world.settle()
        machine, state = world.job, world.job.state
        assert state in ENDED
        for message in (
            Fail(C, machine.epoch, BROKEN),
            Cancel(C, machine.epoch, "x"),
            Computed(C, machine.epoch, 9),
        ):
            if machine._said(C, type(message)) is None:
                assert refusal(machine, message, PeerProtocolError)[0] is Reason.STATE_CONFLICT
        assert machine.step(jobs.PartyLost(C)) == []
        assert machine.step(jobs.Agreed(b"", b"", ())) == []
        party = world.parties[C]
        ended = party.state
        assert party.step(parties.Failed(BROKEN)) == []
        assert party.step(parties.TaskDone(1, 1)) == []
        assert refusal(party, parties.CancelAsked(""), LocalProtocolError)[0] is Reason.STATE_CONFLICT
        assert (machine.state, party.state) == (state, ended)
        assert len(world.verdicts) == 1

    def test_a_second_verdict_is_refused(self):
        world = begun()
        world.settle()
        for outcome in Outcome:
            message = Conclude(A, 1, signed(A, "another"), outcome)
            assert refusal(world.parties[B], message, PeerProtocolError) == (
                Reason.STATE_CONFLICT,
                "TDN-F-TSK-03",
            )

    def test_a_verdict_stops_a_party_that_missed_the_abort(self):
        world = at(JobState.RUNNING)
        machine = world.parties[C]
        effects = machine.step(Conclude(A, 1, signed(A, "FAILED"), Outcome.FAILED))
        assert effects[:-1] == [parties.StopTask(), parties.AcceptVerdict(signed(A, "FAILED"))]
        assert isinstance(effects[-1], WakeAfter)
        assert machine.state is PartyState.FAILED

    def test_attestations_are_kept(self):
        world = begun()
        kept = []
        while world.mail or world.work:
            kept += [e for _, e in world.work if isinstance(e, jobs.KeepAttestation) and e not in kept]
            world.perform() if world.work else world.deliver()
        assert {(each.party, each.attestation) for each in kept} == {
            (node, b"attestation of " + node.encode()) for node in NODES
        }
        assert len(world.sent(Attested)) == 3
