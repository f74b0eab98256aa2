"""Cut a message into parts of a frame's size, and join the parts again. Pure.

The parts of a message arrive in order, because their frames are numbered. Nothing is allocated from
a declared length: memory grows with what has arrived.
"""

from __future__ import annotations

from tdn_interop.errors import Reason, guard


def part(message: bytes, offset: int, frame_bytes: int) -> bytes | memoryview:
    """The part of `message` from `offset` on, at most `frame_bytes` long.

    It is a view into `message`, or the message itself if it fits; no bytes are copied.
    """
    if len(message) <= frame_bytes:
        return message
    return memoryview(message)[offset : offset + frame_bytes]


class Joiner:
    """Joins the parts of one message after another, up to `limit_bytes` per message."""

    __slots__ = ("_held", "_limit", "_parts", "_total")

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._total = 0
        self._held = 0
        self._parts: list[bytes | memoryview] = []

    def add(self, total: int, offset: int, part: bytes | memoryview) -> bytes | None:
        """The message when `part` completes it, else None. `total` is its declared length in bytes.

        Errors: TOO_LARGE (declared length over the limit), CHUNK_META (the parts contradict each other).
        """
        guard("TDN-T-LIM-01").check(
            total <= self._limit, Reason.TOO_LARGE,
            f"a message of {total} bytes, the limit is {self._limit}", limitBytes=self._limit,
        )  # fmt: skip
        held, size = self._held, len(part)
        agrees = (
            offset == held
            and held + size <= total
            and (held == 0 or total == self._total)
            and (size > 0 or total == 0)  # an empty part of a longer message would never get us further
        )
        guard("TDN-T-CHK-02").check(
            agrees, Reason.CHUNK_META,
            f"a part of {size} bytes at {offset} of {total}, after {held} of {self._total if held else total}",
        )  # fmt: skip
        self._total, self._held = total, held + size
        self._parts.append(part)
        return self._finish() if self._held == total else None

    def _finish(self) -> bytes:
        parts, self._parts, self._held = self._parts, [], 0
        if len(parts) == 1 and isinstance(parts[0], bytes):
            return parts[0]
        return b"".join(parts)
