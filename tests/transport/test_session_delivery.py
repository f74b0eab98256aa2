import dataclasses
import tracemalloc

import pytest

from tdn_interop.errors import (
    LocalProtocolError,
    PeerProtocolError,
    Reason,
    Refused,
    Unavailable,
)
from tdn_interop.transport.event import (
    Connected,
    Consumed,
    Disconnect,
    Disconnected,
    Queued,
    Ticked,
)
from tdn_interop.transport.frame import (
    FRAME_COST,
    Ack,
    Credit,
    Data,
    Hello,
    Limits,
    Status,
    TopicPosition,
)
from tdn_interop.transport.session import State, Timing
from tests.transport.sessions import (
    MESSAGES,
    SMALL,
    Pair,
    TinyLimits,
    by_topic,
    greeted,
    hello,
    refusal,
    session,
)


class TestDelivery:
    def test_topics_have_their_own_numbers(self):
        pair = Pair().open()
        for topic in ("x", "y", "x"):
            pair.send(pair.a, topic, topic.encode())
        pair.a.pull()
        assert sorted((d.topic, d.seq) for d in pair.a.out) == [("x", 0), ("x", 1), ("y", 0)]

    def test_topics_take_turns_so_that_a_long_message_does_not_hold_up_a_short_one(self):
        pair = Pair().open()
        pair.send(pair.a, "long", bytes(1000))
        pair.send(pair.a, "short", b"s")
        pair.a.pull()
        assert [d.topic for d in pair.a.out][:3] == ["long", "short", "long"]

    def test_a_frame_captured_and_replayed_is_not_delivered(self):
        pair = Pair().open()
        pair.send(pair.a, "t", b"once")
        pair.a.pull()
        replay = pair.a.out[0]
        pair.run()
        assert pair.b.session.step(replay, 0) == []
        assert pair.b.session.next_frame() == Ack("t", 1), "a duplicate is acknowledged again"
        assert pair.b.delivered == [("t", b"once")]

    def test_a_gap_ends_the_connection_and_nothing_after_it_is_delivered(self):
        machine = greeted()
        assert machine.step(Data("t", 1, 1, 0, b"x"), 0) == [Disconnect()]
        assert machine.state is State.DETACHED
        with pytest.raises(PeerProtocolError):
            machine.step(Data("t", 0, 1, 0, b"x"), 0)

    def test_a_gap_wider_than_the_credit_is_refused(self):
        widest = SMALL.topic_credit_bytes // FRAME_COST - 1
        assert greeted().step(Data("t", widest, 1, 0, b"x"), 0) == [Disconnect()]
        assert refusal(greeted(), Data("t", widest + 1, 1, 0, b"x")).reason is Reason.SEQ_GAP
        assert refusal(greeted(), Data("t", 2**63, 1, 0, b"x")).reason is Reason.SEQ_GAP

    def test_a_frame_left_out_again_and_again_is_refused(self):
        machine = greeted(dialled=False)
        for _ in range(15):
            assert machine.step(Data("t", 1, 1, 0, b"x"), 0) == [Disconnect()]
            machine.step(hello(resume=True), 0)
            machine.next_frame()
        assert refusal(machine, Data("t", 1, 1, 0, b"x")).reason is Reason.SEQ_GAP

    @pytest.mark.parametrize(
        "frame",
        [
            Ack("t", 2),
            Ack("u", 0),
            Ack("t", 2**64 - 1),
            Credit("u", 10),
            Status(False, (TopicPosition("t", 2, 0),)),
        ],
    )
    def test_a_receipt_for_what_was_never_sent_is_refused(self, frame):
        machine = greeted()
        machine.step(Queued("t", b"x"), 0)
        machine.next_frame()
        assert refusal(machine, frame).reason is Reason.SEQ_RANGE

    def test_an_acknowledgement_of_a_queued_but_unsent_frame_is_refused(self):
        machine = greeted()
        machine.step(Queued("t", b"x"), 0)
        assert refusal(machine, Ack("t", 1)).reason is Reason.SEQ_RANGE

    def test_an_overtaken_acknowledgement_changes_nothing(self):
        machine = greeted()
        for _ in range(2):
            machine.step(Queued("t", b"x"), 0)
            machine.next_frame()
        machine.step(Ack("t", 2), 0)
        machine.step(Ack("t", 1), 0)
        assert machine.topics.owed_on("t") == machine.topics.owed == 0

    def test_overtaken_credit_changes_nothing(self):
        machine = greeted()
        machine.step(Queued("t", bytes(1000)), 0)
        machine.step(Queued("t", bytes(1000)), 0)
        assert not machine.topics.fits("t", 1000)
        machine.step(Credit("t", 2 * SMALL.topic_credit_bytes), 0)
        while machine.next_frame():
            pass
        machine.step(Ack("t", 20), 0)
        machine.step(Credit("t", SMALL.topic_credit_bytes), 0)
        assert machine.topics.fits("t", 1000)


class TestResume:
    def test_the_hello_tells_all_receipts_at_once(self):
        pair = Pair().open()
        pair.send(pair.a, "t", b"x")
        pair.a.pull()
        pair.b.step(pair.a.out.popleft(), 0)  # received and consumed, but no receipt was sent
        pair.cut()
        pair.connect()
        pair.move(pair.a, pair.b)
        assert [type(frame) for frame in pair.b.out] == [Hello]
        pair.run()
        assert pair.a.session.topics.owed == 0

    @pytest.mark.parametrize("consumes", [True, False])
    def test_a_reset_at_every_cut_point_of_64_messages(self, consumes):
        limits = dataclasses.replace(SMALL, topic_credit_bytes=64 * 1000)
        whole = self.exchange(limits, cut_after=None, consumes=consumes)
        total = sum(len(message) for _, message in MESSAGES)
        assert whole.a.sent_bytes == whole.b.sent_bytes == total
        assert whole.moved > 2 * len(MESSAGES)
        for cut in range(whole.moved + 1):
            pair = self.exchange(limits, cut_after=cut, consumes=consumes)
            for side in (pair.a, pair.b):
                assert by_topic(side.delivered) == by_topic(MESSAGES)
                # Each message is moved and acknowledged before the next: at most one is sent again.
                assert side.sent_bytes - total <= max(len(message) for _, message in MESSAGES)

    @staticmethod
    def exchange(limits, cut_after, consumes):
        pair = Pair(limits)
        pair.a.consumes = pair.b.consumes = consumes
        budget = cut_after

        def run():
            nonlocal budget
            if budget is None:
                pair.run()
                return
            budget -= pair.run(budget)
            if budget == 0:
                budget = None
                pair.cut()
                pair.connect()
                pair.run()

        pair.connect()
        run()
        for topic, message in MESSAGES:
            if pair.a.session.topics.peer is None or pair.b.session.topics.peer is None:
                run()
            pair.send(pair.a, topic, message)
            pair.send(pair.b, topic, message)
            run()
        pair.run()
        return pair

    def test_only_what_was_not_received_is_sent_again(self):
        pair = Pair().open()
        for number in range(6):
            pair.send(pair.a, "t", bytes([number]) * 100)
        for _ in range(4):
            pair.move(pair.a, pair.b)  # received, and every acknowledgement will be lost
        pair.cut()
        before = pair.a.sent_bytes
        pair.connect()
        pair.run()
        assert pair.a.sent_bytes - before == 200
        assert [message[0] for _, message in pair.b.delivered] == [0, 1, 2, 3, 4, 5]

    def test_messages_queued_without_a_connection_are_delivered_after_it_is_back(self):
        pair = Pair().open()
        pair.cut()
        pair.send(pair.a, "t", b"later")
        assert pair.b.delivered == []
        pair.connect()
        pair.run()
        assert pair.b.delivered == [("t", b"later")]

    def test_credit_given_while_detached_arrives_with_the_hello(self):
        pair = Pair().open()
        pair.b.consumes = False
        for _ in range(6):
            pair.send(pair.a, "t", bytes(1000))
            if not pair.a.session.topics.fits("t", 1000):
                break
        pair.run()
        assert not pair.a.session.topics.fits("t", 1000)
        pair.cut()
        pair.b.consume(pair.now)
        pair.connect()
        pair.run()
        assert pair.a.session.topics.fits("t", 1000)

    @pytest.mark.parametrize("position", [3, 2**64 - 1])
    def test_resume_from_a_position_never_sent_is_refused(self, position):
        machine = greeted(dialled=False)
        for _ in range(2):
            machine.step(Queued("t", b"x"), 0)
            machine.next_frame()
        machine.step(Disconnected(), 0)
        back = hello(resume=True, positions=(TopicPosition("t", position, 8000),))
        assert refusal(machine, back).reason is Reason.SEQ_RANGE

    def test_a_peer_that_forgot_what_it_acknowledged_is_refused(self):
        machine = greeted(dialled=False)
        machine.step(Queued("t", b"x"), 0)
        machine.next_frame()
        machine.step(Ack("t", 1), 0)
        machine.step(Disconnected(), 0)
        assert refusal(machine, hello(resume=True)).reason is Reason.SEQ_RANGE


class TestLimits:
    def test_exactly_the_limit_passes_and_one_byte_more_is_refused_at_our_own_api(self):
        pair = Pair().open()
        pair.send(pair.a, "t", bytes(1000))
        with pytest.raises(LocalProtocolError) as caught:
            pair.send(pair.a, "t", bytes(1001))
        assert caught.value.reason is Reason.TOO_LARGE
        pair.run()
        assert pair.a.session.state is State.OPEN
        assert [len(message) for _, message in pair.b.delivered] == [1000]

    def test_no_frame_is_larger_than_the_peer_allows(self):
        machine = session()
        machine.step(Connected(), 0)
        machine.next_frame()
        machine.step(hello(limits=dataclasses.replace(SMALL, frame_bytes=33)), 0)
        machine.step(Queued("t", bytes(range(100))), 0)
        frames = [machine.next_frame() for _ in range(4)]
        assert [len(frame.payload) for frame in frames] == [33, 33, 33, 1]
        assert machine.next_frame() is None

    def test_an_oversize_frame_and_an_oversize_declaration_are_refused(self):
        assert refusal(greeted(), Data("t", 0, 101, 0, bytes(101))).reason is Reason.TOO_LARGE
        assert refusal(greeted(), Data("t", 0, 1001, 0, bytes(100))).reason is Reason.TOO_LARGE
        assert refusal(greeted(), Data("t", 0, 2**63, 0, bytes(100))).reason is Reason.TOO_LARGE

    def test_a_peer_that_ignores_credit_is_cut_off(self):
        machine = greeted()
        fit = SMALL.topic_credit_bytes // (100 + FRAME_COST)
        for seq in range(fit):
            machine.step(Data("t", seq, 100, 0, bytes(100)), 0)
        assert refusal(machine, Data("t", fit, 100, 0, bytes(100))).reason is Reason.FLOW_VIOLATION

    def test_empty_messages_use_credit(self):
        machine = greeted()
        for seq in range(SMALL.topic_credit_bytes // FRAME_COST):
            machine.step(Data("t", seq, 0, 0, b""), 0)
        with pytest.raises(PeerProtocolError) as caught:
            machine.step(Data("t", SMALL.topic_credit_bytes // FRAME_COST, 0, 0, b""), 0)
        assert caught.value.reason is Reason.FLOW_VIOLATION

    def test_consuming_gives_the_credit_back(self):
        machine = greeted()
        machine.step(Data("t", 0, 3, 0, b"abc"), 0)
        machine.step(Consumed("t", 3 + FRAME_COST), 0)
        assert {machine.next_frame(), machine.next_frame()} == {
            Ack("t", 1), Credit("t", SMALL.topic_credit_bytes + 3 + FRAME_COST),
        }  # fmt: skip

    def test_a_stalled_topic_does_not_block_another(self):
        pair = Pair().open()
        pair.b.consumes = False
        while pair.a.session.topics.fits("stalled", 1000):
            pair.send(pair.a, "stalled", bytes(1000))
        pair.run()
        for number in range(3):
            pair.send(pair.a, "free", bytes([number]))
            pair.run()
        assert [message for topic, message in pair.b.delivered if topic == "free"] == [b"\0", b"\1", b"\2"]
        assert not pair.a.session.topics.fits("stalled", 1000)
        with pytest.raises(LocalProtocolError) as caught:
            pair.send(pair.a, "stalled", bytes(1000))
        assert caught.value.reason is Reason.FLOW_VIOLATION

    def test_our_memory_is_bounded_even_if_the_peer_gives_endless_credit_and_never_acknowledges(self):
        machine = greeted()
        machine.step(Queued("t", b""), 0)
        machine.next_frame()
        machine.step(Credit("t", 2**64 - 1), 0)
        count = 1
        while machine.topics.fits("t", 1000):
            machine.step(Queued("t", bytes(1000)), 0)
            count += 1
        assert 1000 * count <= SMALL.topic_credit_bytes

    def test_however_often_a_peer_asks_the_answer_waits_once_and_tells_the_latest(self):
        machine = greeted(dialled=False, timing=Timing(quiet_s=10, stall_s=30))
        machine.step(Data("t", 0, 1, 0, b"x"), 0)
        for now in range(1000):
            machine.step(Status(True, ()), now)
        machine.step(Data("t", 1, 1, 0, b"x"), 1000)
        assert machine.next_frame() == Status(False, (TopicPosition("t", 2, SMALL.topic_credit_bytes),))
        assert machine.next_frame() is None, "the status was the receipt, too"

    def test_our_own_questions_do_not_pile_up_either(self):
        machine = greeted(timing=Timing(quiet_s=10, stall_s=30))
        for now in range(10, 1000, 20):
            machine.step(Ticked(), now)
            machine.step(Status(True, ()), now + 9)
        assert machine.next_frame() == Status(True, ()), "one status asks and answers"
        assert machine.next_frame() is None

    def test_a_peer_that_never_reads_costs_frames_by_topic_not_by_what_it_sends(self):
        machine = greeted(dialled=False)
        for number in range(1000):
            machine.step(Data("t", number, 0, 0, b""), 0)
            machine.step(Consumed("t", FRAME_COST), 0)
            machine.step(hello(), 0)
            machine.step(Data("t", number, 0, 0, b""), 0)  # a duplicate
        waiting = []
        while frame := machine.next_frame():
            waiting.append(frame)
        assert waiting == [Ack("t", 1000), Credit("t", SMALL.topic_credit_bytes + 1000 * FRAME_COST)]

    def test_a_message_that_small_frames_make_expensive_is_not_stuck_in_our_own_bound(self):
        machine = session(limits=dataclasses.replace(SMALL, frame_bytes=1000, topic_credit_bytes=1256))
        machine.step(Connected(), 0)
        machine.step(hello(limits=dataclasses.replace(SMALL, frame_bytes=10, topic_credit_bytes=90_000)), 0)
        for acknowledged in (100, 200):
            machine.step(Queued("t", bytes(1000)), 0)
            machine.next_frame()
            assert not machine.topics.fits("t", 1)
            while machine.next_frame():
                pass
            machine.step(Ack("t", acknowledged), 0)
            assert machine.topics.fits("t", 1000)

    def test_a_message_is_cut_when_it_is_sent_not_when_it_is_queued(self):
        machine = session(limits=Limits())
        machine.step(Connected(), 0)
        machine.step(hello(limits=TinyLimits(frame_bytes=1, topic_credit_bytes=4 << 30)), 0)
        tracemalloc.start()
        try:
            machine.step(Queued("t", bytes(1 << 20)), 0)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert machine.topics.owed == 1 << 20
        assert peak < (1 << 20) + 10_000

    def test_number_of_topics(self):
        pair = Pair().open()
        for number in range(SMALL.topics):
            pair.send(pair.a, f"t{number}", b"x")
        with pytest.raises(Unavailable) as caught:
            pair.send(pair.a, "one-more", b"x")
        assert caught.value.reason is Reason.RESOURCE_EXHAUSTED
        pair.run()
        assert len(pair.b.delivered) == SMALL.topics
        error = refusal(pair.b.session, Data("one-more", 0, 1, 0, b"x"))
        assert error.reason is Reason.RESOURCE_EXHAUSTED

    def test_topics_that_are_not_served_are_refused(self):
        machine = greeted(admits=lambda topic: topic.startswith("job/"))
        machine.step(Data("job/1", 0, 1, 0, b"x"), 0)
        assert refusal(machine, Data("other", 0, 1, 0, b"x"), Refused).reason is Reason.POLICY_DENIED
