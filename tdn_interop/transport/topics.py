"""All topics of one session, both directions: what may be queued, what is owed, what comes next. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from tdn_interop.errors import LocalProtocolError, Reason, Refused, Unavailable, guard
from tdn_interop.transport.delivery import Receiving, Sending
from tdn_interop.transport.frame import Ack, Credit, Data, Limits, TopicPosition


class Topics:
    """`limits` are ours; the peer's are known from its first hello on. `owed` counts unacknowledged frames."""

    def __init__(self, limits: Limits, admits: Callable[[str], bool]) -> None:
        self.peer: Limits | None = None
        self.owed = 0
        self._limits = limits
        self._admits = admits
        self._sending: dict[str, Sending] = {}
        self._receiving: dict[str, Receiving] = {}
        self._ready: deque[Sending] = deque()  # topics with unsent frames; they take turns
        self._acks_due: dict[str, None] = {}
        self._credits_due: dict[str, None] = {}

    # -- figures -------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """Topics used in either direction."""
        return len(self._sending.keys() | self._receiving.keys())

    @property
    def kept_bytes(self) -> int:
        """Bytes of messages that were queued and that the peer has not acknowledged."""
        return sum(sending.kept_bytes for sending in self._sending.values())

    @property
    def least_credit(self) -> int:
        """Credit in bytes that is left on the topic that has least; that of a new topic when there is none."""
        first = self.peer.topic_credit_bytes if self.peer else 0
        return min((sending.credit_bytes for sending in self._sending.values()), default=first)

    # -- sending -------------------------------------------------------------------------------

    def fits(self, topic: str, size_bytes: int) -> bool:
        """True when a message of this size may be queued now; False when it has to wait for credit.

        Errors, when waiting is in vain: TOO_LARGE (LocalProtocolError), RESOURCE_EXHAUSTED (Unavailable).
        """
        if self.peer is None:
            return False
        largest = min(self.peer.message_bytes, self._limits.message_bytes)
        guard("TDN-T-LIM-01").check(
            size_bytes <= largest, Reason.TOO_LARGE, f"a message of {size_bytes} bytes, the limit is {largest}",
            LocalProtocolError, limitBytes=largest,
        )  # fmt: skip
        sending = self._sending.get(topic)
        if sending is None:
            guard("TDN-T-LIM-03").check(
                len(self._sending) < self.peer.topics, Reason.RESOURCE_EXHAUSTED,
                f"the peer takes {self.peer.topics} topics in a session", Unavailable,
            )  # fmt: skip
            return True  # both the first credit and what we keep cover any message
        return sending.fits(size_bytes)

    def queue(self, topic: str, message: bytes) -> None:
        """Queue a message. Errors: FLOW_VIOLATION (LocalProtocolError) unless it fits, and those of `fits`."""
        if self.peer is None or not self.fits(topic, len(message)):
            guard("TDN-T-LIM-02").refuse(
                Reason.FLOW_VIOLATION, f"no credit for {len(message)} bytes on {topic}", LocalProtocolError
            )
        sending = self._sending.get(topic)
        if sending is None:
            sending = self._sending[topic] = Sending(topic, self.peer, self._limits.topic_credit_bytes)
        if not sending.has_unsent:
            self._ready.append(sending)
        self.owed += sending.queue(message)

    def next_data(self) -> Data | None:
        """The next data frame; topics take turns."""
        if not self._ready:
            return None
        sending = self._ready.popleft()
        data = sending.pull()
        if sending.has_unsent:
            self._ready.append(sending)
        return data

    def acknowledge(self, topic: str, next_seq: int) -> int:
        """The peer has received `topic` up to `next_seq`; returns the frames released. Errors: SEQ_RANGE."""
        released = self._sent_on(topic).acknowledge(next_seq)
        self.owed -= released
        return released

    def allow(self, topic: str, limit_bytes: int) -> None:
        """The peer has given credit. Errors: SEQ_RANGE."""
        self._sent_on(topic).allow(limit_bytes)

    def owed_on(self, topic: str) -> int:
        """Number of frames on `topic` that the peer has not acknowledged."""
        sending = self._sending.get(topic)
        return sending.owed if sending else 0

    def owed_topics(self) -> list[str]:
        """Topics with frames that the peer has not acknowledged."""
        return [topic for topic, sending in self._sending.items() if sending.owed]

    def _sent_on(self, topic: str) -> Sending:
        sending = self._sending.get(topic)
        if sending is None:
            guard("TDN-T-DLV-02").refuse(Reason.SEQ_RANGE, f"nothing was ever sent on {topic}", topic=topic)
        return sending

    # -- receiving -----------------------------------------------------------------------------

    def misses_before(self, data: Data) -> bool:
        """True when frames before `data` are missing: the connection has to be given up.

        Errors: TOO_LARGE, RESOURCE_EXHAUSTED (too many topics), POLICY_DENIED (topic), SEQ_GAP.
        """
        size, limit = len(data.payload), self._limits.frame_bytes
        guard("TDN-T-LIM-01").check(
            size <= limit,
            Reason.TOO_LARGE,
            f"a frame of {size} bytes, the limit is {limit}",
            limitBytes=limit,
        )
        receiving = self._receiving.get(data.topic) or self._admit(data.topic)
        return receiving.misses_before(data)

    def take(self, data: Data) -> tuple[bytes, int] | None:
        """Take a frame that is next or a duplicate; (message, credit it used) if it completes one.

        Errors: FLOW_VIOLATION, TOO_LARGE, CHUNK_META.
        """
        self._acks_due[data.topic] = None
        return self._receiving[data.topic].take(data)

    def consumed(self, topic: str, cost: int) -> None:
        """The consumer has taken `cost` on `topic`: the sender gets that much credit again."""
        self._receiving[topic].consumed(cost)
        self._credits_due[topic] = None

    def next_receipt(self) -> Ack | Credit | None:
        """The next acknowledgement or credit that is due, the latest state of a topic each."""
        if self._acks_due:
            return self._receiving[self._acks_due.popitem()[0]].ack()
        if self._credits_due:
            return self._receiving[self._credits_due.popitem()[0]].credit()
        return None

    def _admit(self, topic: str) -> Receiving:
        guard("TDN-T-LIM-03").check(
            len(self._receiving) < self._limits.topics, Reason.RESOURCE_EXHAUSTED,
            f"more than {self._limits.topics} topics in a session",
        )  # fmt: skip
        guard("TDN-T-DLV-07").check(
            self._admits(topic),
            Reason.POLICY_DENIED,
            f"topic {topic} is not served here",
            Refused,
            topic=topic,
        )
        return self._receiving.setdefault(topic, Receiving(topic, self._limits))

    # -- resuming ------------------------------------------------------------------------------

    def positions(self) -> tuple[TopicPosition, ...]:
        """Where we stand as receiver. Whoever tells them owes no single receipt any more."""
        self._acks_due.clear()
        self._credits_due.clear()
        return tuple(receiving.position() for receiving in self._receiving.values())

    def refresh(self, positions: Iterable[TopicPosition]) -> int:
        """Take the peer's positions in the middle of a connection; returns frames released. Errors: SEQ_RANGE."""
        released = 0
        for there in positions:
            released += self.acknowledge(there.topic, there.next_seq)
            self.allow(there.topic, there.credit_bytes)
        return released

    def resume(self, peer: Limits, positions: tuple[TopicPosition, ...]) -> None:
        """Start over from the peer's positions on a new connection; a topic it does not name stands at 0.

        Errors: SEQ_RANGE; INVALID_REQUEST when the peer's limits are not those of its first hello.
        """
        guard("TDN-T-LIM-05").check(
            self.peer in (None, peer), Reason.INVALID_REQUEST, "limits changed within a session"
        )
        self.peer = peer
        there = {position.topic: position.next_seq for position in positions}
        for topic, sending in self._sending.items():
            self.owed -= sending.resume(there.get(topic, 0))
        self.refresh(positions)
        self._ready = deque(sending for sending in self._sending.values() if sending.has_unsent)
