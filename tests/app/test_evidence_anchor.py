"""Anchoring: a hub takes the heads of its children, once and without contradiction."""

import dataclasses

import pytest

from tdn_interop.app.evidence import wire
from tdn_interop.app.evidence.anchor import take_head
from tdn_interop.app.evidence.log import EvidenceLog
from tdn_interop.app.evidence.merkle import leaf_hash, verify_inclusion
from tdn_interop.app.evidence.statements import AnchorOffer, TreeHead
from tdn_interop.app.store.engine import Store
from tdn_interop.app.store.members import MemberRow, put
from tdn_interop.errors import Reason, TdnError
from tdn_interop.identity import TREE_HEAD
from tdn_interop.transport.records_wire import encode_signed
from tests.app.evidence_mesh import identity

CHILD, HUB = identity("a.b.cn"), identity("b.cn")


@pytest.fixture
async def logs():
    """(log of the child, log of the hub), the child being a member with three records."""
    stores = [Store.open("sqlite://"), Store.open("sqlite://")]
    child, hub = [
        await EvidenceLog.open(s, who, lambda: 100) for s, who in zip(stores, (CHILD, HUB), strict=True)
    ]
    member = MemberRow("a.b.cn", "child", CHILD.public_key, "ACTIVE", None, 1)
    await stores[1].run(lambda c: put(c, member))
    for n in range(3):
        await child.append("job.started", f"job-{n}")
    yield child, hub
    for store in stores:
        store.close()


async def offer_of(child, since=0):
    return await child.offer(await child.head(), since)


async def refused(hub, offer, caller="a.b.cn"):
    before = await hub.head()
    with pytest.raises(TdnError) as error:
        await take_head(hub, caller, offer)
    assert await hub.head() == before, "a refused head left a trace in the log"
    return error.value


def signed_head(size, root, node="a.b.cn", by=CHILD):
    return by.sign(TREE_HEAD, wire.encode_tree_head(TreeHead(node, size, root, 100)))


async def test_a_head_becomes_a_leaf_with_a_proof(logs):
    child, hub = logs
    await hub.append("node.started", "b.cn")
    offer = await offer_of(child)
    inclusion = await take_head(hub, "a.b.cn", offer)
    assert inclusion.index == 1
    head = wire.decode_tree_head(inclusion.head.statement)
    assert (head.node, head.size) == ("b.cn", 2)
    assert verify_inclusion(leaf_hash(encode_signed(offer.head)), 1, 2, inclusion.path, head.root)
    assert await hub.audit() == 2


async def test_the_next_head_continues_the_last(logs):
    child, hub = logs
    await take_head(hub, "a.b.cn", await offer_of(child))
    await child.append("job.ended", "job-0")
    assert (await take_head(hub, "a.b.cn", await offer_of(child, 3))).index == 1


async def test_the_same_head_again_gets_the_same_place(logs):
    child, hub = logs
    first = await take_head(hub, "a.b.cn", await offer_of(child))
    for since in (0, 3):
        again = await take_head(hub, "a.b.cn", await offer_of(child, since))
        assert again.index == first.index
    assert await hub.audit() == 1


async def test_another_head_of_the_same_size_adds_nothing(logs):
    """Signed a moment later, it says the same: a member cannot grow the logs above without growing its own."""
    child, hub = logs
    first = await offer_of(child)
    await take_head(hub, "a.b.cn", first)
    head = wire.decode_tree_head(first.head.statement)
    later = CHILD.sign(TREE_HEAD, wire.encode_tree_head(dataclasses.replace(head, at_ms=head.at_ms + 1)))
    error = await refused(hub, AnchorOffer(later, 3, ()))
    assert (error.reason, error.requirement) == (Reason.ALREADY_EXISTS, "TDN-F-EVD-02")


async def test_a_caller_that_forgot_is_told_where_the_proof_must_start(logs):
    child, hub = logs
    await take_head(hub, "a.b.cn", await offer_of(child))
    await child.append("job.ended", "job-0")
    error = await refused(hub, await offer_of(child, 2))
    assert (error.reason, error.metadata["lastSize"]) == (Reason.STATE_CONFLICT, "3")
    again = await offer_of(child, int(error.metadata["lastSize"]))
    assert (await take_head(hub, "a.b.cn", again)).index == 1


async def test_two_logs_of_one_size_are_found(logs):
    child, hub = logs
    await take_head(hub, "a.b.cn", await offer_of(child))
    error = await refused(hub, AnchorOffer(signed_head(3, b"x" * 32), 3, ()))
    assert error.reason is Reason.EQUIVOCATION


async def test_a_rewritten_log_is_found(logs):
    child, hub = logs
    await take_head(hub, "a.b.cn", await offer_of(child))
    other = await EvidenceLog.open(Store.open("sqlite://"), CHILD, lambda: 100)
    for n in range(5):
        await other.append("job.started", f"other-{n}")
    error = await refused(hub, await offer_of(other, 3))
    assert error.reason is Reason.EQUIVOCATION
    other.store.close()


async def test_a_log_that_became_shorter_is_found(logs):
    child, hub = logs
    await child.append("job.ended", "job-0")
    await take_head(hub, "a.b.cn", await offer_of(child))
    error = await refused(hub, AnchorOffer(signed_head(2, b"x" * 32), 0, ()))
    assert error.reason is Reason.EVIDENCE_BROKEN
    assert "had 4 leaves and now has 2" in error.message


@pytest.mark.parametrize("byte", range(0, 32, 7))
async def test_an_altered_proof_is_refused(logs, byte):
    child, hub = logs
    await take_head(hub, "a.b.cn", await offer_of(child))
    await child.append("job.ended", "job-0")
    offer = await offer_of(child, 3)
    wrong = bytearray(offer.consistency[0])
    wrong[byte] ^= 1
    changed = dataclasses.replace(offer, consistency=(bytes(wrong), *offer.consistency[1:]))
    assert (await refused(hub, changed)).reason is Reason.EQUIVOCATION


async def test_a_first_head_needs_no_proof_and_takes_none(logs):
    child, hub = logs
    offer = dataclasses.replace(await offer_of(child), consistency=(b"x" * 32,))
    assert (await refused(hub, offer)).reason is Reason.EQUIVOCATION


@pytest.mark.parametrize(("head", "caller", "reason"), [
    (signed_head(9, b"r" * 32), "c.b.cn", Reason.UNAUTHENTICATED),
    (signed_head(9, b"r" * 32, node="c.b.cn"), "a.b.cn", Reason.IDENTITY_MISMATCH),
    (signed_head(9, b"r" * 32, by=HUB), "a.b.cn", Reason.IDENTITY_MISMATCH),
    (signed_head(9, b"r" * 32, by=identity("a.b.cn", b"other")), "a.b.cn", Reason.SIGNATURE_INVALID),
    (CHILD.sign("tdn/v1/event", signed_head(9, b"r" * 32).statement), "a.b.cn", Reason.SIGNATURE_INVALID),
], ids=["stranger", "head of another", "signed by another", "wrong key", "wrong context"])  # fmt: skip
async def test_only_a_member_anchors_its_own_head(logs, head, caller, reason):
    assert (await refused(logs[1], AnchorOffer(head, 0, ()), caller)).reason is reason


async def test_a_forged_anchor_in_the_database_is_found(logs):
    """The hub's own operator exchanges the key of the child: the leaf no longer fits."""
    child, hub = logs
    await take_head(hub, "a.b.cn", await offer_of(child))
    assert await hub.audit() == 1
    await hub.store.run(lambda c: put(c, MemberRow("a.b.cn", "child", HUB.public_key, "ACTIVE", None, 1)))
    with pytest.raises(TdnError) as error:
        await hub.audit()
    assert (error.value.reason, error.value.metadata["index"]) == (Reason.SIGNATURE_INVALID, "0")
