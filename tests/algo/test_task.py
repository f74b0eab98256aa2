"""How much one stage may bring."""

import os

import pytest

from tdn_interop.algo.message import MAX_STREAM_BYTES, PointBatch, SealedBatch, TagBatch, TaskMessage
from tdn_interop.algo.psi import sealing
from tdn_interop.algo.task import Inbound
from tdn_interop.algo.wire import decode_message, encode_message
from tdn_interop.errors import Reason, TdnError

BLOB = bytes(1 << 20)
BATCHES = {
    "points": PointBatch(1, BLOB),
    "sealed": SealedBatch(1, b"", BLOB, len(BLOB)),
    "tags": TagBatch(1, b"", BLOB, len(BLOB)),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_a_stage_has_a_budget_of_bytes(kind):
    """Far fewer rows than allowed; a receiver would keep them all."""
    body = BATCHES[kind]
    stream = Inbound(type(body), lambda *_: (), limit=1 << 24)
    fits = MAX_STREAM_BYTES // len(BLOB)
    for index in range(fits):
        stream.receive(TaskMessage(b"", 1, "stage", index, False, body))
    with pytest.raises(TdnError) as error:
        stream.receive(TaskMessage(b"", 1, "stage", fits, True, body))
    assert error.value.reason is Reason.TOO_LARGE


def test_values_are_as_wide_as_the_longest_item_and_no_wider():
    item = os.urandom(sealing.LONGEST_ITEM)
    width = sealing.sealed_bytes(sealing.block_bytes([item])) + 16  # sealed, then locked
    for extra in (0, 1):
        body = TagBatch(1, bytes(16), bytes(width + extra), width + extra)
        data = encode_message(TaskMessage(bytes(32), 1, "tagged-sealed", 0, True, body))
        if not extra:
            assert decode_message(data).body == body
            continue
        with pytest.raises(TdnError) as error:
            decode_message(data)
        assert error.value.reason is Reason.INVALID_REQUEST
