"""The two halves of one topic: what its sender keeps, and where its receiver stands. Pure.

Numbers are those of `tdn.transport.v1`: sequence numbers count data frames from 0; credit counts
payload plus `FRAME_COST` per frame since the start of the session.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from tdn_interop.errors import Reason, guard
from tdn_interop.transport.chunk import Joiner, part
from tdn_interop.transport.frame import (
    FRAME_COST,
    Ack,
    Credit,
    Data,
    Limits,
    TopicPosition,
    frame_count,
    message_cost,
)

MAX_GAPS = 16
"""Connections in a row that may end by a gap in the same place. Bad links do not do that; a peer that
leaves a frame out on purpose does (with 15 % of frames lost or overtaken: once in 10^13)."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """A message whose frames have the numbers from `first` to below `end`."""

    message: bytes
    first: int
    end: int

    @property
    def cost(self) -> int:
        """What it costs us to keep: it is cut only when its frames are pulled."""
        return len(self.message) + FRAME_COST


class Sending:
    """Sender's half: messages queued and not acknowledged, in order, and how far they were sent.

    Never more than `keeps_bytes` of them, whatever credit the peer gives; this and the peer's first
    credit each cover a message of the largest size.
    """

    __slots__ = (
        "_acknowledged",
        "_frame_bytes",
        "_keeps",
        "_kept",
        "_limit",
        "_next",
        "_retained",
        "_to_send",
        "_unsent",
        "_used",
        "topic",
    )

    def __init__(self, topic: str, peer: Limits, keeps_bytes: int) -> None:
        self.topic = topic
        self._frame_bytes = peer.frame_bytes
        self._limit = peer.topic_credit_bytes
        self._keeps = keeps_bytes
        self._used = 0
        self._retained = 0
        self._acknowledged = self._to_send = self._next = 0  # frame numbers, in this order
        self._kept: deque[_Kept] = deque()
        self._unsent: deque[_Kept] = deque()  # its tail, from the message that `_to_send` is in

    @property
    def has_unsent(self) -> bool:
        """True while `pull` has a frame to give."""
        return self._to_send < self._next

    @property
    def owed(self) -> int:
        """Number of frames that were queued and are not acknowledged."""
        return self._next - self._acknowledged

    @property
    def kept_bytes(self) -> int:
        """Bytes that we keep until they are acknowledged."""
        return self._retained

    @property
    def credit_bytes(self) -> int:
        """Credit that is left."""
        return self._limit - self._used

    def fits(self, size_bytes: int) -> bool:
        """True when a message is within the peer's credit, and within what we keep for a slow peer."""
        kept = self._retained + size_bytes + FRAME_COST
        return kept <= self._keeps and self._used + message_cost(size_bytes, self._frame_bytes) <= self._limit

    def queue(self, message: bytes) -> int:
        """Keep `message` until it is acknowledged; returns the number of its frames."""
        frames = frame_count(len(message), self._frame_bytes)
        kept = _Kept(message, self._next, self._next + frames)
        self._kept.append(kept)
        self._unsent.append(kept)
        self._next = kept.end
        self._used += message_cost(len(message), self._frame_bytes)
        self._retained += kept.cost
        return frames

    def pull(self) -> Data:
        """The next frame to send."""
        kept, seq = self._unsent[0], self._to_send
        self._to_send += 1
        if self._to_send == kept.end:
            self._unsent.popleft()
        offset = (seq - kept.first) * self._frame_bytes
        payload = part(kept.message, offset, self._frame_bytes)
        return Data(self.topic, seq, len(kept.message), offset, payload)

    def acknowledge(self, next_seq: int) -> int:
        """Forget frames below `next_seq`; returns how many. An older acknowledgement changes nothing.

        Errors: SEQ_RANGE when a frame below `next_seq` was never sent.
        """
        guard("TDN-T-DLV-02").check(
            next_seq <= self._to_send, Reason.SEQ_RANGE,
            f"frame {next_seq - 1} of {self.topic} was never sent", topic=self.topic,
        )  # fmt: skip
        released = max(0, next_seq - self._acknowledged)
        self._acknowledged += released
        while self._kept and self._kept[0].end <= self._acknowledged:
            self._retained -= self._kept.popleft().cost
        return released

    def resume(self, next_seq: int) -> int:
        """Acknowledge up to `next_seq` and send everything from there again; returns frames released.

        Errors: SEQ_RANGE, also when the peer forgot what it had acknowledged.
        """
        released = self.acknowledge(next_seq)
        guard("TDN-T-DLV-02").check(
            next_seq == self._acknowledged, Reason.SEQ_RANGE,
            f"{self.topic} is to go on from {next_seq}, acknowledged was {self._acknowledged}", topic=self.topic,
        )  # fmt: skip
        self._to_send = next_seq
        self._unsent = self._kept.copy()
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
