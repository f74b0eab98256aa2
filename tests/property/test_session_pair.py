"""Two sessions under every mixture of loss, duplication, reordering, resets, stalls and passing time."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tdn_interop.transport.session import State, Timing
from tests.transport.sessions import Pair, Side, by_topic

TIMING = Timing(quiet_s=1, stall_s=3)
sides = st.sampled_from(["a", "b"])
topics = st.sampled_from(["one", "two", "three"])
sizes = st.sampled_from([0, 1, 99, 100, 101, 950])


class SessionPair(RuleBasedStateMachine):
    @initialize()
    def start(self):
        self.pair = Pair(timing=TIMING)
        self.sent = {"a": {}, "b": {}}
        self.count = 0
        self.pair.connect()

    def ends(self, name) -> tuple[Side, Side]:
        pair = self.pair
        return (pair.a, pair.b) if name == "a" else (pair.b, pair.a)

    @rule(name=sides, topic=topics, size=sizes)
    def send(self, name, topic, size):
        side, _ = self.ends(name)
        if side.session.state is State.NEW or not side.session.topics.fits(topic, size):
            return
        self.count += 1
        message = (self.count.to_bytes(2, "big") * size)[:size]
        self.pair.send(side, topic, message)
        self.sent[name].setdefault(topic, []).append(message)

    @rule(name=sides, count=st.integers(1, 30))
    def deliver(self, name, count):
        for _ in range(count):
            self.pair.move(*self.ends(name))

    @rule(name=sides, count=st.integers(1, 30))
    def exchange(self, name, count):
        self.pair.run(count)

    @rule(name=sides)
    def lose(self, name):
        side, _ = self.ends(name)
        side.pull()
        if side.out:
            side.out.popleft()

    @rule(name=sides)
    def duplicate(self, name):
        side, _ = self.ends(name)
        side.pull()
        if side.out:
            side.out.insert(1, side.out[0])

    @rule(name=sides, distance=st.integers(1, 3))
    def overtake(self, name, distance):
        side, _ = self.ends(name)
        side.pull()
        if len(side.out) > distance:
            frame = side.out[distance]
            del side.out[distance]
            side.out.appendleft(frame)

    @rule()
    def cut(self):
        self.pair.cut()

    @rule()
    def reconnect(self):
        self.pair.cut()
        self.pair.connect()

    @rule(name=sides, on=st.booleans())
    def stall(self, name, on):
        side, _ = self.ends(name)
        side.consumes = not on
        if side.consumes:
            side.consume(self.pair.now)

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0]))
    def wait(self, seconds):
        self.pair.tick(seconds)

    @invariant()
    def delivered_is_a_prefix_of_sent(self):
        if not hasattr(self, "pair"):
            return
        for name in "ab":
            _, receiver = self.ends(name)
            assert receiver.errors == []
            for topic, messages in by_topic(receiver.delivered).items():
                assert self.sent[name][topic][: len(messages)] == messages

    def teardown(self):
        if not hasattr(self, "pair"):
            return
        pair = self.pair
        if State.FAILED in (pair.a.session.state, pair.b.session.state):
            # Nothing but the idle time ends a session here.
            assert pair.now >= pair.a.session.idle_s
            return
        for side in (pair.a, pair.b):
            side.consumes = True
            side.consume(pair.now)
        self.reconnect()
        pair.run()
        for name in "ab":
            side, receiver = self.ends(name)
            assert by_topic(receiver.delivered) == self.sent[name]
            assert side.session.topics.owed == 0
            assert all(side.session.topics.fits(topic, 1000) for topic in self.sent[name])


TestSessionPair = SessionPair.TestCase
TestSessionPair.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
