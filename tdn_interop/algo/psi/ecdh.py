"""ECDH-PSI of two holders, `psi.ecdh/1`, result to one of them or to both.

With H the suite's hash to the curve and a, b fresh scalars:

- `masked`, both ways: the own set, shuffled, once masked: H(x)^a, H(y)^b.
- `double-masked`, only towards a receiver of the result: the receiver's own points in the order it
  sent them, masked again.

A receiver compares its returned points with the other set that it masked itself. A party that is
no receiver never gets its own points back, hence holds one of the two double-masked sets only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import ClassVar

from tdn_interop.algo.curve25519 import Points
from tdn_interop.algo.kernel import check_encoding
from tdn_interop.algo.machine import Effect, Table
from tdn_interop.algo.message import PointBatch
from tdn_interop.algo.psi.sets import (
    SHUFFLE_KEY_BYTES,
    Indices,
    batches,
    common_rows,
    join,
    mask_items,
    point_batch,
    shuffle_items,
)
from tdn_interop.algo.task import (
    COMMON_ROWS,
    Outbound,
    Output,
    Progress,
    Report,
    Settled,
    Started,
    State,
    Task,
    TaskMachine,
    check_items,
)
from tdn_interop.errors import Reason, guard

MASKED = "masked"
DOUBLE_MASKED = "double-masked"
_OTHER = {"a": "b", "b": "a"}


class EcdhPsi(TaskMachine):
    """Role `a` or `b` with its distinct items; `receivers` holds the roles that get the result."""

    def __init__(self, role: str, task: Task, items: Sequence[bytes], receivers: frozenset[str]) -> None:
        super().__init__(task)
        check_items(items, task.max_items)
        self.role, self.peer = role, _OTHER[role]
        self._items = items
        self._receives, self._returns = role in receivers, self.peer in receivers
        self._returned: list[Points] = []  # own set, double-masked, in the order of _order
        self._theirs: list[Points] = []  # the other set, double-masked
        self._matches: tuple[int, ...] = ()

    def _start(self, _: Started) -> Iterator[Effect]:
        task = self.task
        self._scalar = self._secret(task.entropy(32))
        self._masked = Outbound(task, self.peer, MASKED)
        self._back = Outbound(task, self.peer, DOUBLE_MASKED)
        self._peer_set = self._await(self.peer, MASKED, PointBatch, self._on_masked)
        if self._receives:
            self._await(self.peer, DOUBLE_MASKED, PointBatch, self._on_returned, len(self._items))
        keys = task.entropy(SHUFFLE_KEY_BYTES * len(self._items))
        yield from self._compute(self._on_shuffled, shuffle_items, keys, self._items)

    def _on_shuffled(self, shuffled: tuple[Indices, list[bytes]]) -> Iterator[Effect]:
        self._order, items = shuffled
        kernel = self.task.kernel
        for index, part, last in batches(len(items), kernel.suite.point_bytes):
            then = partial(self._send_masked, index, last)
            yield from self._compute(then, mask_items, kernel, self._scalar, items[part])

    def _send_masked(self, index: int, last: bool, points: Points) -> Iterator[Effect]:
        yield from self._masked.put(index, point_batch(points), last)
        yield Progress(MASKED, len(points))

    def _on_masked(self, index: int, batch: PointBatch, last: bool) -> Iterator[Effect]:
        points = self._points(batch.points, batch.count)
        then = partial(self._on_double_masked, index, last)
        yield from self._compute(then, self.task.kernel.mask, self._scalar, points)

    def _on_double_masked(self, index: int, last: bool, points: Points) -> Iterator[Effect]:
        if self._receives:
            self._theirs.append(points)
        if self._returns:
            yield from self._back.put(index, point_batch(points), last)
        yield Progress(DOUBLE_MASKED, len(points))

    def _on_returned(self, _index: int, batch: PointBatch, _last: bool) -> Iterator[Effect]:
        points = self._points(batch.points, batch.count)
        guard("TDN-A-PSI-05").check(
            sum(map(len, self._returned)) + len(points) <= self._masked.rows,
            Reason.UNEXPECTED_MESSAGE,
            f"{DOUBLE_MASKED}: points come back that were never sent",
        )
        check_encoding(points)
        self._returned.append(points)
        yield from ()

    def _match(self, _: Settled) -> Iterator[Effect]:
        if self._receives:
            size = self.task.kernel.suite.point_bytes
            own, theirs = join(self._returned, size), join(self._theirs, size)
            yield from self._compute(self._on_found, common_rows, own, theirs)

    def _on_found(self, found: tuple[Indices, Indices]) -> Iterator[Effect]:
        self._matches = tuple(sorted(self._order[found[0]].tolist()))
        yield from ()

    def _conclude(self, _: Settled) -> Iterator[Effect]:
        facts = {f"items.{self.role}": len(self._items), f"items.{self.peer}": self._peer_set.rows}
        if self._receives:
            yield Report({**facts, "matches": len(self._matches)})
            yield Output(self._matches)
        else:
            yield Report(facts)

    table: ClassVar[Table] = {
        **COMMON_ROWS,
        (State.IDLE, Started): (_start, State.EXCHANGING),
        (State.EXCHANGING, Settled): (_match, State.MATCHING),
        (State.MATCHING, Settled): (_conclude, State.DONE),
    }
