"""The two halves of one topic: what its sender keeps, and where its receiver stands. Pure.

Numbers are those of `tdn.transport.v1`: sequence numbers count data frames from 0; credit counts
payload plus `FRAME_COST` per frame since the start of the session.
"""

from __future__ import annotations

from collections import deque

from tdn_interop.errors import Reason, guard
from tdn_interop.transport.chunk import Joiner, split
from tdn_interop.transport.frame import FRAME_COST, Ack, Credit, Data, Limits, TopicPosition

MAX_GAPS = 16
"""Connections in a row that may end by a gap in the same place. Bad links do not do that; a peer that
leaves a frame out on purpose does (with 15 % of frames lost or overtaken: once in 10^13)."""


class Sending:
    """Sender's half: frames queued and not acknowledged, in order, the sent ones before the unsent."""

    __slots__ = ("_limit", "_next", "_retained", "_sent", "_unsent", "_used", "topic")

    def __init__(self, topic: str, credit_bytes: int) -> None:
        self.topic = topic
        self._limit = credit_bytes
        self._used = 0
        self._next = 0
        self._retained = 0
        self._sent: deque[Data] = deque()
        self._unsent: deque[Data] = deque()

    @property
    def has_unsent(self) -> bool:
        """True while `pull` has a frame to give."""
        return bool(self._unsent)

    @property
    def owed(self) -> int:
        """Number of frames that were queued and are not acknowledged."""
        return len(self._sent) + len(self._unsent)

    def fits(self, cost: int, retained_limit: int) -> bool:
        """True when `cost` more is within the peer's credit, and within what we keep for a slow peer."""
        kept = self._retained == 0 or self._retained + cost <= retained_limit
        return kept and self._used + cost <= self._limit

    def queue(self, message: bytes, frame_bytes: int) -> int:
        """Cut `message` into frames and keep them until they are acknowledged; returns their number."""
        first = self._next
        for offset, part in split(message, frame_bytes):
            data = Data(self.topic, self._next, len(message), offset, part)
            self._unsent.append(data)
            self._next += 1
            self._used += data.cost
            self._retained += data.cost
        return self._next - first

    def pull(self) -> Data:
        """The next frame to send."""
        data = self._unsent.popleft()
        self._sent.append(data)
        return data

    def acknowledge(self, next_seq: int) -> int:
        """Forget frames below `next_seq`; returns how many. An older acknowledgement changes nothing.

        Errors: SEQ_RANGE when a frame below `next_seq` was never sent.
        """
        first_unsent = self._next - len(self._unsent)
        guard("TDN-T-DLV-02").check(
            next_seq <= first_unsent, Reason.SEQ_RANGE,
            f"frame {next_seq - 1} of {self.topic} was never sent", topic=self.topic,
        )  # fmt: skip
        released = 0
        while self._sent and self._sent[0].seq < next_seq:
            self._retained -= self._sent.popleft().cost
            released += 1
        return released

    def resume(self, next_seq: int) -> int:
        """Acknowledge up to `next_seq` and send everything from there again; returns frames released.

        Errors: SEQ_RANGE, also when the peer forgot what it had acknowledged.
        """
        released = self.acknowledge(next_seq)
        first_kept = self._next - self.owed
        guard("TDN-T-DLV-02").check(
            next_seq == first_kept, Reason.SEQ_RANGE,
            f"{self.topic} is to go on from {next_seq}, acknowledged was {first_kept}", topic=self.topic,
        )  # fmt: skip
        self._unsent.extendleft(reversed(self._sent))
        self._sent.clear()
        return released

    def allow(self, limit_bytes: int) -> None:
        """Take the peer's credit; credit never falls."""
        self._limit = max(self._limit, limit_bytes)


class Receiving:
    """Receiver's half: the next frame expected, the credit given and used, the message being joined."""

    __slots__ = ("_gaps", "_joiner", "_limit", "_message_cost", "_next", "_used", "topic")

    def __init__(self, topic: str, limits: Limits) -> None:
        self.topic = topic
        self._next = 0
        self._used = 0
        self._limit = limits.topic_credit_bytes
        self._gaps = 0
        self._message_cost = 0
        self._joiner = Joiner(limits.message_bytes)

    def misses_before(self, data: Data) -> bool:
        """True when frames before this one are missing; the connection ends then.

        Errors: SEQ_GAP when more are missing than the credit allows to be on their way, or when
        connection after connection ended here without progress.
        """
        missing = data.seq - self._next
        if missing <= 0:
            return False
        self._gaps += 1
        on_their_way = (self._limit - self._used) // FRAME_COST
        guard("TDN-T-DLV-04").check(
            missing < on_their_way and self._gaps < MAX_GAPS, Reason.SEQ_GAP,
            f"{missing} frames are missing on {self.topic}, {self._gaps} times in a row", topic=self.topic,
        )  # fmt: skip
        return True

    def take(self, data: Data) -> tuple[bytes, int] | None:
        """Take the next frame; (message, credit it used) if this completes it. A duplicate is dropped.

        Errors: FLOW_VIOLATION (over the credit), TOO_LARGE, CHUNK_META.
        """
        if data.seq < self._next:
            return None
        guard("TDN-T-LIM-02").check(
            self._used + data.cost <= self._limit, Reason.FLOW_VIOLATION,
            f"{self._used + data.cost} bytes on {self.topic}, the credit is {self._limit}", topic=self.topic,
        )  # fmt: skip
        message = self._joiner.add(data.message_bytes, data.offset, data.payload)
        self._used += data.cost
        self._next += 1
        self._gaps = 0
        self._message_cost += data.cost
        if message is None:
            return None
        cost, self._message_cost = self._message_cost, 0
        return message, cost

    def consumed(self, cost: int) -> None:
        """The consumer has taken `cost`: give that much credit again."""
        self._limit += cost

    def ack(self) -> Ack:
        """Receipt of everything taken so far."""
        return Ack(self.topic, self._next)

    def credit(self) -> Credit:
        """The credit given so far."""
        return Credit(self.topic, self._limit)

    def position(self) -> TopicPosition:
        """Both, for hello and status."""
        return TopicPosition(self.topic, self._next, self._limit)
