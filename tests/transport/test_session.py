import dataclasses

import pytest

from tdn_interop.errors import (
    LocalProtocolError,
    NegotiationFailed,
    PeerProtocolError,
    Reason,
    Refused,
)
from tdn_interop.transport.event import (
    Aborted,
    Connected,
    Disconnect,
    Disconnected,
    Left,
    Queued,
    Ticked,
)
from tdn_interop.transport.frame import (
    Ack,
    Data,
    Goodbye,
    Hello,
    Status,
    TopicPosition,
)
from tdn_interop.transport.session import State, Timing
from tests.transport.sessions import (
    MESSAGES,
    SESSION_ID,
    SMALL,
    Pair,
    by_topic,
    greeted,
    hello,
    refusal,
    session,
)


class TestGreeting:
    def test_both_directions_open_and_deliver(self):
        pair = Pair().open()
        for source, target in ((pair.a, pair.b), (pair.b, pair.a)):
            for topic, message in MESSAGES[:8]:
                pair.send(source, topic, message)
                pair.run()
            assert target.delivered == MESSAGES[:8]

    def test_highest_common_version_and_grease_is_ignored(self):
        machine = session(dialled=False)
        machine.step(hello(versions=(0x1A1A, 1, 999), features=("unheard-of",)), 0)
        answer = machine.next_frame()
        assert answer.versions == (1,)
        assert answer.session_id == SESSION_ID

    def test_no_common_version_lists_what_is_supported(self):
        error = refusal(session(dialled=False), hello(versions=(2, 3)), NegotiationFailed)
        assert error.reason is Reason.UNSUPPORTED_VERSION
        assert error.metadata["supported"] == "1"

    @pytest.mark.parametrize("versions", [(2,), (1, 1), ()])
    def test_the_answer_must_choose_one_offered_version(self, versions):
        machine = session()
        machine.step(Connected(), 0)
        assert (
            refusal(machine, hello(versions=versions), NegotiationFailed).reason is Reason.UNSUPPORTED_VERSION
        )

    def test_an_answer_for_another_session_is_refused(self):
        machine = session()
        machine.step(Connected(), 0)
        assert refusal(machine, hello(session_id=bytes(16))).reason is Reason.SESSION_UNKNOWN

    def test_resume_of_an_unknown_session_is_refused(self):
        assert refusal(session(dialled=False), hello(resume=True), Refused).reason is Reason.SESSION_UNKNOWN

    def test_hello_is_the_first_frame_of_a_connection_even_with_much_to_send(self):
        pair = Pair().open()
        pair.send(pair.b, "t", b"x")
        pair.cut()
        pair.send(pair.a, "t", b"y")
        pair.connect()
        assert isinstance(pair.a.out[0], Hello)
        assert pair.a.out[0].resume
        assert len(pair.a.out) == 1, "nothing before the answer"
        pair.move(pair.a, pair.b)
        assert isinstance(pair.b.out[0], Hello)

    def test_a_repeated_hello_is_dropped_and_another_one_is_refused(self):
        machine = greeted()
        assert machine.step(hello(), 0) == []
        assert refusal(machine, hello(resume=True)).reason is Reason.UNEXPECTED_MESSAGE

    @pytest.mark.parametrize("frame", [Data("t", 0, 0, 0, b""), Ack("t", 0), Status(True, ()), Goodbye()])
    def test_a_frame_that_overtakes_the_hello_ends_the_connection_not_the_session(self, frame):
        machine = session()
        machine.step(Connected(), 0)
        assert machine.step(frame, 0) == [Disconnect()]
        assert machine.state is State.DETACHED

    def test_a_greeting_without_answer_is_given_up(self):
        machine = session(timing=Timing(stall_s=5))
        machine.step(Connected(), 0)
        assert machine.wake_at() == 5
        assert machine.step(Ticked(), 4.9) == []
        assert machine.step(Ticked(), 5) == [Disconnect()]

    def test_limits_must_not_change_when_resuming(self):
        machine = greeted(dialled=False)
        machine.step(Disconnected(), 0)
        with pytest.raises(PeerProtocolError) as caught:
            machine.step(hello(resume=True, limits=dataclasses.replace(SMALL, topics=5)), 0)
        assert caught.value.reason is Reason.INVALID_REQUEST


class TestEnd:
    def test_goodbye_drains_both_ways(self):
        pair = Pair().open()
        for side in (pair.a, pair.b):
            for topic, message in MESSAGES[:10]:
                pair.send(side, topic, message)
        pair.leave(pair.a)
        assert pair.a.session.state is State.CLOSING
        pair.run()
        for side in (pair.a, pair.b):
            assert side.session.state is State.CLOSED
            assert side.session.error is None
            assert by_topic(side.delivered) == by_topic(MESSAGES[:10])

    def test_goodbye_waits_for_the_last_acknowledgement(self):
        machine = greeted()
        machine.step(Queued("t", b"x"), 0)
        machine.step(Left(), 0)
        assert isinstance(machine.next_frame(), Data)
        assert machine.next_frame() is None
        machine.step(Ack("t", 1), 0)
        assert machine.next_frame() == Goodbye()

    @pytest.mark.parametrize("cut", range(12))
    def test_a_reset_while_closing_does_not_lose_what_was_queued(self, cut):
        pair = Pair().open()
        pair.send(pair.a, "t", bytes(250))
        pair.send(pair.b, "t", bytes(150))
        pair.leave(pair.a)
        pair.run(cut)
        pair.cut()
        if pair.a.session.state is State.DETACHED and pair.b.session.state is State.DETACHED:
            pair.connect()
            pair.run()
        assert [len(message) for _, message in pair.b.delivered] == [250]
        assert [len(message) for _, message in pair.a.delivered] == [150]
        pair.tick(SMALL.idle_ms / 1000)
        assert pair.a.session.state is pair.b.session.state is State.CLOSED

    def test_a_loss_after_the_peer_s_goodbye_ends_a_session_with_nothing_owed(self):
        machine = greeted()
        machine.step(Goodbye(), 0)
        machine.step(Disconnected(), 0)
        assert machine.state is State.CLOSED
        machine = greeted()
        machine.step(Queued("t", b"owed"), 0)
        machine.step(Goodbye(), 0)
        machine.step(Disconnected(), 0)
        assert machine.state is State.DETACHED

    def test_nothing_is_queued_once_either_side_leaves(self):
        for leaver in ("a", "b"):
            pair = Pair().open()
            pair.leave(getattr(pair, leaver))
            pair.b.pull(), pair.a.pull()
            pair.move(getattr(pair, leaver), pair.b if leaver == "a" else pair.a)
            with pytest.raises(LocalProtocolError) as caught:
                pair.send(pair.a, "t", b"x")
            assert caught.value.reason is Reason.SESSION_CLOSED

    def test_nothing_is_queued_by_a_session_that_leaves_without_a_connection(self):
        pair = Pair().open()
        pair.cut()
        pair.leave(pair.a)
        with pytest.raises(LocalProtocolError) as caught:
            pair.send(pair.a, "t", b"x")
        assert caught.value.reason is Reason.SESSION_CLOSED
        pair.connect()
        pair.run()
        assert pair.a.session.state is pair.b.session.state is State.CLOSED

    @pytest.mark.parametrize("state", [State.CLOSED, State.FAILED])
    def test_a_message_after_the_end_is_refused_and_not_delivered(self, state):
        machine = greeted()
        machine.state = state
        with pytest.raises(PeerProtocolError) as caught:
            machine.step(Data("t", 0, 1, 0, b"x"), 0)
        assert caught.value.reason is Reason.SESSION_CLOSED
        assert machine.state is state

    def test_a_reset_tells_the_reason(self):
        pair = Pair().open()
        why = Refused(Reason.UNAUTHENTICATED, "revoked", "TDN-T-IDN-01")
        why.metadata = {"reason": "x", "message": "y"}  # keys that are also names of arguments
        pair.a.step(Aborted(why), 0)
        pair.run()
        error = pair.b.session.error
        assert (error.reason, error.message) == (Reason.UNAUTHENTICATED, "revoked")
        assert error.metadata == {"reason": "x", "message": "y"}


class TestTime:
    def test_idle_expiry_at_the_bound_and_not_before(self):
        pair = Pair().open()
        pair.now = 100.0
        pair.cut()
        for side in (pair.a, pair.b):
            assert side.session.wake_at() == 160
        pair.tick(59.999)
        assert pair.a.session.state is pair.b.session.state is State.DETACHED
        pair.tick(0.001)
        for side in (pair.a, pair.b):
            assert side.session.state is State.FAILED
            assert side.session.error.reason is Reason.SESSION_EXPIRED

    def test_the_lower_idle_time_counts(self):
        machine = session()
        machine.step(Connected(), 0)
        machine.step(hello(limits=dataclasses.replace(SMALL, idle_ms=7_000)), 0)
        machine.step(Disconnected(), 1)
        assert machine.wake_at() == 8

    def test_failed_greetings_do_not_prolong_the_wait(self):
        machine = greeted()
        machine.step(Disconnected(), 0)
        for now in (10, 30, 50):
            machine.step(Connected(), now)
            machine.step(Disconnected(), now + 5)
        assert machine.wake_at() == 60

    def test_silence_is_answered_with_a_question_and_then_by_hanging_up(self):
        pair = Pair(timing=Timing(quiet_s=10, stall_s=30)).open()
        assert pair.a.session.wake_at() == 10
        pair.tick(10)
        assert pair.a.session.next_frame() == Status(True, ())
        assert pair.a.session.next_frame() is None
        pair.b.session.next_frame()
        assert pair.a.session.wake_at() == 20
        pair.now = 30
        assert pair.a.session.step(Ticked(), 30) == [Disconnect()]

    def test_a_status_repeats_lost_receipts_and_lost_credit(self):
        pair = Pair(timing=Timing(quiet_s=10, stall_s=30)).open()
        while pair.a.session.topics.fits("t", 1000):
            pair.send(pair.a, "t", bytes(1000))
        while pair.move(pair.a, pair.b):
            pass
        pair.b.out.clear()  # all acknowledgements and all credit are lost
        assert pair.a.session.topics.owed > 0
        pair.tick(10)
        pair.run()
        assert pair.a.session.topics.owed == 0
        assert pair.a.session.topics.fits("t", 1000)

    def test_data_that_is_never_acknowledged_ends_the_connection_although_the_peer_talks(self):
        machine = greeted(timing=Timing(quiet_s=10, stall_s=30))
        machine.step(Queued("t", b"x"), 5)
        machine.next_frame()
        for now in (10, 20, 30):
            machine.step(Status(False, ()), now)
        assert machine.step(Ticked(), 34.9) == []
        assert machine.step(Ticked(), 35) == [Disconnect()]

    def test_patience_starts_again_with_every_acknowledgement_and_with_the_answer_to_a_greeting(self):
        machine = greeted(timing=Timing(quiet_s=100, stall_s=30))
        for _ in range(2):
            machine.step(Queued("t", b"x"), 0)
            machine.next_frame()
        machine.step(Ack("t", 1), 20)
        assert machine.step(Ticked(), 49.9) == []
        assert machine.step(Ticked(), 50) == [Disconnect()]
        machine.step(Connected(), 50)
        machine.step(hello(resume=True, positions=(TopicPosition("t", 1, 8000),)), 75)
        assert machine.step(Ticked(), 104.9) == []
        assert machine.step(Ticked(), 105) == [Disconnect()]

    def test_a_busy_session_does_not_ask(self):
        machine = greeted(timing=Timing(quiet_s=10, stall_s=30))
        for now in range(0, 100, 9):
            machine.step(Data("t", now // 9, 0, 0, b""), now)
            assert machine.step(Ticked(), now) == []
            assert machine.next_frame() == Ack("t", now // 9 + 1)
            assert machine.next_frame() is None
