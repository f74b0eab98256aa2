"""What parties of a task say to each other: frozen records and the limits that hold everywhere."""

from __future__ import annotations

from dataclasses import dataclass

DIGEST_BYTES = 32
TAG_BYTES = 16
MAX_ROWS = 16_384  # of one batch
MAX_MESSAGE_BYTES = 1 << 20  # a quarter of gRPC's default limit, so that every stock peer takes it
_ENVELOPE_BYTES = 1024  # more than everything in a TaskMessage that is not rows

MAX_STREAM_BYTES = 1 << 30  # of one stage; a receiver keeps them all until it can match


@dataclass(frozen=True, slots=True)
class PointBatch:
    """`count` points as the suite encodes them, one after the other."""

    count: int
    points: bytes


@dataclass(frozen=True, slots=True)
class SealedBatch:
    """`count` points and, in the same order, values of `sealed_bytes` each that only the receiver can open."""

    count: int
    points: bytes
    sealed: bytes
    sealed_bytes: int


@dataclass(frozen=True, slots=True)
class TagBatch:
    """`count` tags of 16 bytes and, in the same order, values of `value_bytes` each."""

    count: int
    tags: bytes
    values: bytes
    value_bytes: int


@dataclass(frozen=True, slots=True)
class KeyBody:
    """A public key or an encapsulated key."""

    key: bytes


Body = PointBatch | SealedBatch | TagBatch | KeyBody


@dataclass(frozen=True, slots=True)
class TaskMessage:
    """One batch of one stage. `agreement` is the digest of the choice everybody is bound to."""

    agreement: bytes
    epoch: int
    stage: str
    batch_index: int
    last: bool
    body: Body


def rows_per_batch(row_bytes: int) -> int:
    """How many rows of this size fit one message below both limits; at least one."""
    return max(1, min(MAX_ROWS, (MAX_MESSAGE_BYTES - _ENVELOPE_BYTES) // row_bytes))


def body_bytes(body: Body) -> int:
    """Bytes of all rows of a batch."""
    match body:
        case PointBatch(points=points):
            return len(points)
        case SealedBatch(points=points, sealed=sealed):
            return len(points) + len(sealed)
        case TagBatch(tags=tags, values=values):
            return len(tags) + len(values)
        case KeyBody(key=key):
            return len(key)


def row_count(body: Body) -> int:
    """Rows of a batch; a key counts as one."""
    return 1 if isinstance(body, KeyBody) else body.count
