"""A node believes no receipt that does not fit what it has counted, and no receipt takes the place of another."""

import dataclasses

import pytest

from tdn_interop.app.evidence.log import EvidenceLog
from tdn_interop.app.receipts import Receipts, check
from tdn_interop.app.store import receipts
from tdn_interop.app.store.engine import Store
from tdn_interop.errors import Reason, TdnError
from tdn_interop.identity import RECEIPT
from tdn_interop.transport.link import Carried
from tdn_interop.transport.records_wire import Receipt, decode_signed, encode_receipt
from tests.app.evidence_mesh import identity

ME, HUB, FAR, ID = "a.b.cn", identity("b.cn"), "x.g.cn", b"t" * 16
OURS = Receipt(ID, "b.cn", ME, FAR, ME, "cn", 100, 70, 1, 2)
THEIRS = Receipt(ID, "b.cn", FAR, ME, "cn", ME, 70, 100, 1, 2)
OPENED, JOINED = Carried(ME, "b.cn", ID, True, 100, 70), Carried(ME, "b.cn", ID, False, 100, 70)


def signed(receipt, by=HUB, **changes):
    return by.sign(RECEIPT, encode_receipt(dataclasses.replace(receipt, **changes)))


@pytest.mark.parametrize(("receipt", "carried"), [(OURS, OPENED), (THEIRS, JOINED)])
def test_what_was_carried_is_believed(receipt, carried):
    check(signed(receipt), HUB.public_key, carried)
    # What was lost on the way is not counted by the relay, or by us.
    check(signed(receipt, forward_bytes=0, backward_bytes=0), HUB.public_key, carried)
    broken = dataclasses.replace(carried, received=None)
    more = {"backward_bytes": 1 << 20} if carried.opened else {"forward_bytes": 1 << 20}
    check(signed(receipt, **more), HUB.public_key, broken)


WRONG = {
    "another key": (signed(OURS, by=identity("b.cn", b"other")), OPENED, Reason.SIGNATURE_INVALID),
    "another relay": (signed(OURS, relay="c.cn"), OPENED, Reason.IDENTITY_MISMATCH),
    "another tunnel": (signed(OURS, tunnel_id=b"u" * 16), OPENED, Reason.IDENTITY_MISMATCH),
    "another caller": (signed(OURS, previous="c.b.cn"), OPENED, Reason.IDENTITY_MISMATCH),
    "another callee": (signed(THEIRS, next="c.b.cn"), JOINED, Reason.IDENTITY_MISMATCH),
    "more than we sent": (signed(OURS, forward_bytes=101), OPENED, Reason.COUNT_MISMATCH),
    "more than we got": (signed(OURS, backward_bytes=71), OPENED, Reason.COUNT_MISMATCH),
    "more than we sent back": (signed(THEIRS, backward_bytes=101), JOINED, Reason.COUNT_MISMATCH),
    "more than came": (signed(THEIRS, forward_bytes=71), JOINED, Reason.COUNT_MISMATCH),
}


@pytest.fixture
async def kept():
    """(receipts of the node, its store, what it refused)."""
    store, refused = Store.open("sqlite://"), []
    log = await EvidenceLog.open(store, identity(ME), lambda: 100)
    yield Receipts(store, log, lambda _relay: HUB.public_key, refused.append), store, refused
    store.close()


@pytest.mark.parametrize("which", WRONG)
async def test_a_receipt_that_does_not_fit_is_refused_and_not_kept(kept, which):
    own, _, refused = kept
    receipt, carried, reason = WRONG[which]
    with pytest.raises(TdnError) as caught:
        check(receipt, HUB.public_key, carried)
    assert (caught.value.reason, caught.value.requirement) == (reason, "TDN-T-RTE-08")
    await own.got(receipt, carried)
    assert [error.reason for error in refused] == [reason]
    assert not await own.knows(ID)
    assert not await own.knows(b"u" * 16)


async def test_a_second_receipt_does_not_replace_the_first(kept):
    own, store, _ = kept
    await own.gave(signed(OURS))
    await own.gave(signed(OURS, forward_bytes=1))
    assert await own.knows(ID)
    [row] = await store.run(lambda c: receipts.of_tunnel(c, ID))
    assert decode_signed(row.signed) == signed(OURS)
    assert len(await own._log.about(ID.hex())) == 1
