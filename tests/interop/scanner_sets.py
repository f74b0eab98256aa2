"""What a holder of a private set intersection could find out with everything it held.

With P = H(x)^ab for the items of holder a and Q = H(y)^ab for those of holder b: a may form Q, b may form P.
Whoever had both could match. Neither can, if it never *received* a double-masked point, nor the tag or the
key derived from one, and nothing it received becomes equal to what it makes from its own items alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tdn_interop.algo.curve25519 import Points, not_canonical
from tdn_interop.algo.kernel import Kernel
from tdn_interop.algo.message import PointBatch, SealedBatch, TagBatch, TaskMessage, row_count
from tdn_interop.algo.psi.sealing import tag_and_key
from tdn_interop.algo.wire import encode_message
from tests.interop.scanner import Scanner


@dataclass(frozen=True)
class View:
    """Everything that one holder held: its items, its scalar, the messages it received."""

    items: Sequence[bytes]
    scalar: bytes
    received: Sequence[TaskMessage]


def stages(received: Iterable[TaskMessage]) -> dict[str, int]:
    """How many rows came in each stage."""
    counts: Counter[str] = Counter()
    for message in received:
        counts[message.stage] += row_count(message.body)
    return dict(counts)


def points(received: Iterable[TaskMessage]) -> set[bytes]:
    """Every point, tag and value of the messages."""
    shown: set[bytes] = set()
    for message in received:
        match message.body:
            case PointBatch(points=data):
                shown |= cut(data, 32)
            case SealedBatch(points=data, sealed=values, sealed_bytes=width):
                shown |= cut(data, 32) | cut(values, width)
            case TagBatch(tags=data, values=values, value_bytes=width):
                shown |= cut(data, 16) | cut(values, width)
    return shown


def cut(data: bytes, width: int) -> set[bytes]:
    return {data[at : at + width] for at in range(0, len(data), width)}


def what_helps(kernel: Kernel, a: View, b: View) -> list[str]:
    """What either holder could use to match, in words; nothing is found in an honest run."""
    scanner = Scanner(_double(kernel, "P", a, b) | _double(kernel, "Q", b, a))
    found = []
    for name, me in (("a", a), ("b", b)):
        heard = b"\n".join(map(encode_message, me.received))
        found += sorted({f"{name} received {what.split()[0]}" for what in scanner.names(heard)})
        if matches(kernel, me):
            found.append(f"{name} matches")
    return found


def _double(kernel: Kernel, name: str, owner: View, other: View) -> dict[str, bytes]:
    """The double-masked points of the owner's items, and what is derived from each."""
    once = kernel.mask(owner.scalar, kernel.hash(owner.items))
    twice = kernel.mask(other.scalar, once)
    message = owner.received[0]
    binding = message.agreement + message.epoch.to_bytes(4, "big") + kernel.suite.id.encode()
    tags, keys = tag_and_key(kernel, other.scalar, once, binding)
    return {
        f"{form.format(name)} {number}": row.tobytes()
        for form, made in (("{}", twice), ("tag({})", tags), ("key({})", keys))
        for number, row in enumerate(made)
    }


def matches(kernel: Kernel, me: View) -> set[bytes]:
    """Values that `me` gets both from received points and from its own items, masking each up to twice."""
    got = [row for row in points(me.received) if len(row) == 32]
    theirs = np.frombuffer(b"".join(got), np.uint8).reshape(-1, 32)
    theirs = theirs[~not_canonical(theirs)]  # what is no point cannot be masked
    return powers(kernel, theirs, me.scalar) & powers(kernel, kernel.hash(me.items), me.scalar)


def powers(kernel: Kernel, values: Points, scalar: bytes) -> set[bytes]:
    once = kernel.mask(scalar, values)
    return {row.tobytes() for made in (values, once, kernel.mask(scalar, once)) for row in made}
