"""ECDH-PSI with a receiver that holds no data, `psi.ecdh-external/1`.

With P = H(x)^ab for an item x of holder a and Q = H(y)^ab for an item y of holder b, every set shuffled:

- receiver → holder_b `receiver-key`: a fresh public key; holder_b → receiver `item-key`: the key that seals items.
- holder_b → holder_a `sealed`: (H(y)^b, sealed y).
- holder_a → holder_b `masked`: H(x)^a.
- holder_a → receiver `tagged-sealed`: (tag(Q), sealed y locked with key(Q)).
- holder_b → receiver `tagged-keys`: (tag(P), key(P)).

Equal tags mean P = Q, and then key(P) opens the lock. Holder a forms the Q only, holder b the P only,
so neither can compare. Holder a relays sealed items that it cannot open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import ClassVar

import numpy as np

from tdn_interop.algo.curve25519 import Points
from tdn_interop.algo.machine import Effect, Table
from tdn_interop.algo.message import TAG_BYTES, KeyBody, PointBatch, SealedBatch, TagBatch
from tdn_interop.algo.psi import sealing
from tdn_interop.algo.psi.sets import (
    SHUFFLE_KEY_BYTES,
    Indices,
    Rows,
    batches,
    common_rows,
    mask_items,
    point_batch,
    shuffle_items,
    shuffle_rows,
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

HOLDER_A, HOLDER_B, RECEIVER = "holder_a", "holder_b", "receiver"
RECEIVER_KEY, ITEM_KEY = "receiver-key", "item-key"
SEALED, MASKED = "sealed", "masked"
TAGGED_SEALED, TAGGED_KEYS = "tagged-sealed", "tagged-keys"


class _Holder(TaskMachine):
    """What both holders do: shuffle, mask, and pass tagged rows to the receiver in a second shuffled order."""

    role: ClassVar[str]
    peer: ClassVar[str]
    passes: ClassVar[str]  # stage towards the receiver

    def __init__(self, task: Task, items: Sequence[bytes]) -> None:
        super().__init__(task)
        check_items(items, task.max_items)
        self._items = items
        self._tags: list[Rows] = []
        self._values: list[Rows] = []

    def _shuffle_keys(self, count: int) -> bytes:
        return self.task.entropy(SHUFFLE_KEY_BYTES * count)

    def _shuffle_items(
        self, then: Callable[[tuple[Indices, list[bytes]]], Iterator[Effect]]
    ) -> Iterator[Effect]:
        yield from self._compute(then, shuffle_items, self._shuffle_keys(len(self._items)), self._items)

    def _on_tagged(self, rows: tuple[Rows, Rows]) -> Iterator[Effect]:
        self._tags.append(rows[0])
        self._values.append(rows[1])
        yield Progress(self.passes, len(rows[0]))

    def shuffle_again(self, _: Settled) -> Iterator[Effect]:
        """Shuffle the tagged rows afresh: not even the order of the other holder shows."""
        keys = self._shuffle_keys(sum(map(len, self._tags)))
        yield from self._compute(self._pass_on, shuffle_rows, keys, self._tags, self._values)

    def _pass_on(self, rows: tuple[Rows, Rows]) -> Iterator[Effect]:
        tags, values = rows
        width = values.shape[1]
        out = Outbound(self.task, RECEIVER, self.passes)
        for index, part, last in batches(len(tags), TAG_BYTES + width):
            batch = TagBatch(len(tags[part]), tags[part].tobytes(), values[part].tobytes(), width)
            yield from out.put(index, batch, last)
        yield Report({f"items.{self.role}": len(self._items), f"items.{self.peer}": len(tags)})


class HolderA(_Holder):
    """Holder a: locks the other holder's sealed items under their double-masked points."""

    role, peer, passes = HOLDER_A, HOLDER_B, TAGGED_SEALED
    _width: int  # of a sealed value, fixed by the first batch

    def _start(self, _: Started) -> Iterator[Effect]:
        task = self.task
        self._scalar = self._secret(task.entropy(32))
        self._out = Outbound(task, HOLDER_B, MASKED)
        self._await(HOLDER_B, SEALED, SealedBatch, self._on_sealed)
        yield from self._shuffle_items(self._on_shuffled)

    def _on_shuffled(self, shuffled: tuple[Indices, list[bytes]]) -> Iterator[Effect]:
        items, kernel = shuffled[1], self.task.kernel
        for index, part, last in batches(len(items), kernel.suite.point_bytes):
            then = partial(self._send_masked, index, last)
            yield from self._compute(then, mask_items, kernel, self._scalar, items[part])

    def _send_masked(self, index: int, last: bool, points: Points) -> Iterator[Effect]:
        yield from self._out.put(index, point_batch(points), last)
        yield Progress(MASKED, len(points))

    def _on_sealed(self, index: int, batch: SealedBatch, _last: bool) -> Iterator[Effect]:
        points = self._points(batch.points, batch.count)
        if index == 0:
            self._width = batch.sealed_bytes
        guard("TDN-A-PSI-12").check(
            batch.sealed_bytes == self._width,
            Reason.COUNT_MISMATCH,
            f"{SEALED}: values of {batch.sealed_bytes} bytes after values of {self._width}",
        )
        sealed = np.frombuffer(batch.sealed, np.uint8).reshape(-1, batch.sealed_bytes)
        task = self.task
        yield from self._compute(
            self._on_tagged, sealing.tag_and_lock, task.kernel, self._scalar, points, sealed, task.binding
        )

    table: ClassVar[Table] = {
        **COMMON_ROWS,
        (State.IDLE, Started): (_start, State.EXCHANGING),
        (State.EXCHANGING, Settled): (_Holder.shuffle_again, State.SHUFFLING),
        (State.SHUFFLING, Settled): (None, State.DONE),
    }


class HolderB(_Holder):
    """Holder b: seals its items to the receiver, gives the receiver the keys for holder a's points."""

    role, peer, passes = HOLDER_B, HOLDER_A, TAGGED_KEYS

    def __init__(self, task: Task, items: Sequence[bytes]) -> None:
        super().__init__(task, items)
        self._block = sealing.block_bytes(items)

    def _start(self, _: Started) -> Iterator[Effect]:
        task = self.task
        self._scalar = self._secret(task.entropy(32))
        self._item_key = self._secret(task.entropy(sealing.ITEM_KEY_BYTES))
        self._out = Outbound(task, HOLDER_A, SEALED)
        self._await(RECEIVER, RECEIVER_KEY, KeyBody, self._on_receiver_key, 1)
        self._await(HOLDER_A, MASKED, PointBatch, self._on_masked)
        yield from self._shuffle_items(self._on_shuffled)

    def _on_shuffled(self, shuffled: tuple[Indices, list[bytes]]) -> Iterator[Effect]:
        items, task = shuffled[1], self.task
        lock = partial(sealing.mask_and_seal, task.kernel, self._scalar, self._item_key)
        row_bytes = task.kernel.suite.point_bytes + sealing.sealed_bytes(self._block)
        for index, part, last in batches(len(items), row_bytes):
            then = partial(self._send_sealed, index, last)
            yield from self._compute(then, lock, items[part], part.start, self._block, task.binding)

    def _send_sealed(self, index: int, last: bool, rows: tuple[Points, bytes]) -> Iterator[Effect]:
        points, sealed = rows
        batch = SealedBatch(len(points), points.tobytes(), sealed, sealing.sealed_bytes(self._block))
        yield from self._out.put(index, batch, last)
        yield Progress(SEALED, len(points))

    def _on_receiver_key(self, _index: int, body: KeyBody, _last: bool) -> Iterator[Effect]:
        sealed_key = sealing.encapsulate(self._item_key, body.key, self.task.binding)
        yield from Outbound(self.task, RECEIVER, ITEM_KEY).put(0, KeyBody(sealed_key), last=True)

    def _on_masked(self, _index: int, batch: PointBatch, _last: bool) -> Iterator[Effect]:
        points, task = self._points(batch.points, batch.count), self.task
        yield from self._compute(
            self._on_tagged, sealing.tag_and_key, task.kernel, self._scalar, points, task.binding
        )

    table: ClassVar[Table] = {
        **COMMON_ROWS,
        (State.IDLE, Started): (_start, State.EXCHANGING),
        (State.EXCHANGING, Settled): (_Holder.shuffle_again, State.SHUFFLING),
        (State.SHUFFLING, Settled): (None, State.DONE),
    }


class Receiver(TaskMachine):
    """The receiver: matches tags, opens what matches, learns nothing else but sizes."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._batches: dict[str, list[TagBatch]] = {TAGGED_SEALED: [], TAGGED_KEYS: []}
        self._opened: list[bytes] = []

    def _start(self, _: Started) -> Iterator[Effect]:
        self._seed = self._secret(self.task.entropy(sealing.SEED_BYTES))
        self._await(HOLDER_B, ITEM_KEY, KeyBody, self._on_item_key, 1)
        self._await(HOLDER_A, TAGGED_SEALED, TagBatch, partial(self._on_tags, TAGGED_SEALED))
        self._await(HOLDER_B, TAGGED_KEYS, TagBatch, partial(self._on_tags, TAGGED_KEYS))
        key = KeyBody(sealing.public_key(self._seed))
        yield from Outbound(self.task, HOLDER_B, RECEIVER_KEY).put(0, key, last=True)

    def _on_item_key(self, _index: int, body: KeyBody, _last: bool) -> Iterator[Effect]:
        self._item_key = self._secret(sealing.decapsulate(body.key, self._seed, self.task.binding))
        yield from ()

    def _on_tags(self, stage: str, _index: int, batch: TagBatch, _last: bool) -> Iterator[Effect]:
        width = sealing.ITEM_KEY_BYTES if stage == TAGGED_KEYS else batch.value_bytes
        same = not self._batches[stage] or self._batches[stage][0].value_bytes == batch.value_bytes
        guard("TDN-A-PSI-12").check(
            same and batch.value_bytes == width,
            Reason.COUNT_MISMATCH,
            f"{stage}: values of {batch.value_bytes} bytes do not fit here",
        )
        self._batches[stage].append(batch)
        yield Progress(stage, batch.count)

    def _match(self, _: Settled) -> Iterator[Effect]:
        self._locked_tags, self._locked = _rows(self._batches[TAGGED_SEALED])
        self._key_tags, self._keys = _rows(self._batches[TAGGED_KEYS])
        yield from self._compute(self._on_found, common_rows, self._locked_tags, self._key_tags)

    def _on_found(self, found: tuple[Indices, Indices]) -> Iterator[Effect]:
        self._found = found
        yield from ()

    def _open(self, _event: Settled) -> Iterator[Effect]:
        at_locked, at_key = self._found
        for _, part, _ in batches(len(at_key), self._locked.shape[1]):
            locked, keys = self._locked[at_locked[part]], self._keys[at_key[part]]
            args = (locked, keys, self._item_key, self.task.binding)
            yield from self._compute(self._on_opened, sealing.unlock, *args)

    def _on_opened(self, items: list[bytes]) -> Iterator[Effect]:
        self._opened += items
        yield Progress("opened", len(items))

    def _conclude(self, _: Settled) -> Iterator[Effect]:
        yield Report(
            {
                f"items.{HOLDER_A}": len(self._key_tags),
                f"items.{HOLDER_B}": len(self._locked_tags),
                "matches": len(self._opened),
            }
        )
        yield Output(tuple(sorted(self._opened)))

    table: ClassVar[Table] = {
        **COMMON_ROWS,
        (State.IDLE, Started): (_start, State.EXCHANGING),
        (State.EXCHANGING, Settled): (_match, State.MATCHING),
        (State.MATCHING, Settled): (_open, State.OPENING),
        (State.OPENING, Settled): (_conclude, State.DONE),
    }


def _rows(received: list[TagBatch]) -> tuple[Rows, Rows]:
    """All tags (n, 16) and all values (n, k) of a stage, in the order of arrival."""
    width = received[0].value_bytes
    tags = np.frombuffer(b"".join(batch.tags for batch in received), np.uint8)
    values = np.frombuffer(b"".join(batch.values for batch in received), np.uint8)
    return tags.reshape(-1, TAG_BYTES), values.reshape(-1, width)
