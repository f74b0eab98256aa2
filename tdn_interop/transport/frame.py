"""The frames of a channel as values: what two end nodes say to each other (`tdn.transport.v1.Frame`).

Values that came through `wire.decode` are checked; the session relies on it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tdn_interop.errors import PeerProtocolError, Reason, Refused, TdnError, guard
from tdn_interop.identity import Credentials

VERSIONS = (1,)
"""Protocol versions we speak."""

FRAME_COST = 256
"""Credit that a data frame uses besides its payload: about what one queued frame costs us in memory."""


def message_cost(size_bytes: int, frame_bytes: int) -> int:
    """Credit that a message of `size_bytes` uses when it is cut into frames of `frame_bytes`."""
    return size_bytes + FRAME_COST * max(1, -(-size_bytes // frame_bytes))


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

    def check(self, kind: type[TdnError] = PeerProtocolError) -> None:
        """Errors: INVALID_REQUEST when a limit is absurd or the credit does not cover the largest message."""
        ok = (
            1 <= self.frame_bytes <= 64 << 20
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
    """Why a side ended the session, in words that may travel: names and sizes, never data."""

    reason: Reason
    message: str
    noticed_by: str = ""
    requirement: str = ""
    metadata: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, error: TdnError, noticed_by: str) -> Failure:
        """The failure that tells a peer about `error`."""
        return cls(error.reason, error.message, noticed_by, error.requirement, dict(error.metadata))

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
    features: tuple[str, ...] = ()


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
