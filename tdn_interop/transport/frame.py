"""The frames of a channel as values: what two end nodes say to each other (`tdn.transport.v1.Frame`).

Values that came through `wire.decode` are checked; the session relies on it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from tdn_interop.errors import (
    NegotiationFailed,
    PeerProtocolError,
    Reason,
    Refused,
    TdnError,
    guard,
)
from tdn_interop.identity import Credentials

VERSIONS = (1,)
"""Protocol versions we speak."""

# Errors about what a peer has said or asked for. The words of all others may name files, columns and counts
# of our own, which are nobody's business.
ABOUT_PEERS = (PeerProtocolError, NegotiationFailed, Refused)

FRAME_COST = 256
"""Credit that a data frame uses besides its payload: about what one queued frame costs us in memory."""


def frame_count(size_bytes: int, frame_bytes: int) -> int:
    """Frames that a message of `size_bytes` takes; an empty one takes one."""
    return max(1, -(-size_bytes // frame_bytes))


def message_cost(size_bytes: int, frame_bytes: int) -> int:
    """Credit that a message of `size_bytes` uses when it is cut into frames of `frame_bytes`."""
    return size_bytes + FRAME_COST * frame_count(size_bytes, frame_bytes)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one side accepts. Sizes in bytes, idle time in milliseconds.

    Too small: latency and refusals; too large: a peer may fill `topics * topic_credit_bytes` of memory.
    """

    frame_bytes: int = 1 << 20  # the fastest size measured over gRPC
    message_bytes: int = 8 << 20
    topic_credit_bytes: int = 20 << 20  # two messages, so that one travels while one is consumed
    topics: int = 256
    idle_ms: int = 120_000

    # A peer that wants a message in tiny frames wants much work of us for little of its own.
    SMALLEST_FRAME_BYTES: ClassVar[int] = 16 << 10

    def check(self, kind: type[TdnError] = PeerProtocolError) -> None:
        """Errors: INVALID_REQUEST when a limit is absurd or the credit does not cover the largest message."""
        ok = (
            self.SMALLEST_FRAME_BYTES <= self.frame_bytes <= 64 << 20
            and 0 <= self.message_bytes <= 1 << 40
            and message_cost(self.message_bytes, self.frame_bytes) <= self.topic_credit_bytes <= 1 << 41
            and 1 <= self.topics <= 1 << 16
            and 1 <= self.idle_ms <= 1 << 31
        )
        guard("TDN-T-LIM-05").check(ok, Reason.INVALID_REQUEST, "the limits contradict each other", kind)


@dataclass(frozen=True, slots=True)
class TopicPosition:
    """How far the sender of this has received a topic, and the credit it has given on it so far."""

    topic: str
    next_seq: int
    credit_bytes: int


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a session, or a job, went wrong: names and sizes, never data."""

    reason: Reason
    message: str
    noticed_by: str = ""
    requirement: str = ""
    metadata: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, error: TdnError, noticed_by: str) -> Failure:
        """The failure that tells a peer about `error`: in its words only if it is about what peers did."""
        full = isinstance(error, ABOUT_PEERS)
        return cls.in_full(error, noticed_by) if full else cls.bare(error, noticed_by)

    @classmethod
    def in_full(cls, error: TdnError, noticed_by: str) -> Failure:
        """The failure that tells the owner of this node."""
        return cls(error.reason, error.message, noticed_by, error.requirement, dict(error.metadata))

    @classmethod
    def bare(cls, error: TdnError, noticed_by: str) -> Failure:
        """The reason, and what the table says of it: nothing about this node."""
        return cls(error.reason, error.reason.value.summary[0], noticed_by, error.requirement)

    def error(self) -> Refused:
        """The error that tells our side. The keys of the metadata are the peer's choice, so they are no arguments."""
        error = Refused(self.reason, self.message, self.requirement)
        error.metadata = dict(self.metadata)
        return error


@dataclass(frozen=True, slots=True)
class Frame:
    """One thing said on a connection."""


@dataclass(frozen=True, slots=True)
class Hello(Frame):
    """First frame of each direction on every connection."""

    versions: tuple[int, ...]
    session_id: bytes
    resume: bool
    credentials: Credentials
    limits: Limits
    positions: tuple[TopicPosition, ...] = ()
    features: tuple[str, ...] = ()  # carried and checked; version 1 defines none, so nobody acts on it


@dataclass(frozen=True, slots=True)
class Data(Frame):
    """A part of a message; `payload` may be a view into the message it was cut from."""

    topic: str
    seq: int
    message_bytes: int
    offset: int
    payload: bytes | memoryview

    @property
    def cost(self) -> int:
        """Credit this frame uses."""
        return len(self.payload) + FRAME_COST


@dataclass(frozen=True, slots=True)
class Ack(Frame):
    """Everything below `next_seq` has been handed over."""

    topic: str
    next_seq: int


@dataclass(frozen=True, slots=True)
class Credit(Frame):
    """What may have been sent on the topic since the start of the session."""

    topic: str
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class Status(Frame):
    """Positions again; `ask` wants the other side's in return."""

    ask: bool
    positions: tuple[TopicPosition, ...]


@dataclass(frozen=True, slots=True)
class Reset(Frame):
    """End by error."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Goodbye(Frame):
    """Orderly end: the sender has no more data, and all it sent was acknowledged."""
