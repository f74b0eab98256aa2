"""The evidence log over a real database: appends, restarts, proofs, and every kind of damage."""

import asyncio
import hashlib

import pytest

from tdn_interop.app.evidence import wire
from tdn_interop.app.evidence.log import EvidenceLog
from tdn_interop.app.evidence.merkle import (
    EMPTY_ROOT,
    leaf_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)
from tdn_interop.app.evidence.statements import commitment
from tdn_interop.app.store import log as rows
from tdn_interop.app.store.engine import Store
from tdn_interop.errors import LocalProtocolError, PeerProtocolError, Reason, TdnError
from tdn_interop.identity import EVENT, TREE_HEAD, verify
from tdn_interop.transport.records_wire import encode_signed
from tests.app.evidence_mesh import identity

ME = identity("a.b.cn")


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/node.db"


@pytest.fixture
def store(url):
    store = Store.open(url)
    yield store
    store.close()


def ticking(*times):
    """A clock that reads `times`, then keeps the last."""
    left = list(times)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


async def filled(store, count=5, clock=lambda: 100):
    log = await EvidenceLog.open(store, ME, clock)
    for n in range(count):
        assert await log.append("job.started", f"job-{n % 2}", {"size": str(n)}) == n
    return log


async def test_an_event_is_signed_and_in_the_head(store):
    log = await filled(store)
    index = await log.append("job.verdict", "job-7", {"rows": "3"}, b"d" * 32)
    signed, inclusion = await log.event(index), await log.inclusion(index)
    assert verify(EVENT, signed, ME.public_key)
    event = wire.decode_event(signed.statement)
    assert (event.node, event.kind, event.subject, event.facts) == (
        "a.b.cn",
        "job.verdict",
        "job-7",
        {"rows": "3"},
    )
    assert event.statement_sha256 == b"d" * 32
    assert verify(TREE_HEAD, inclusion.head, ME.public_key)
    head = wire.decode_tree_head(inclusion.head.statement)
    assert (head.node, head.size) == ("a.b.cn", 6)
    assert verify_inclusion(leaf_hash(encode_signed(signed)), index, 6, inclusion.path, head.root)
    assert inclusion.head == await log.head()


async def test_the_empty_log_has_a_head(store):
    log = await EvidenceLog.open(store, ME)
    head = wire.decode_tree_head((await log.head()).statement)
    assert (head.size, head.root) == (0, EMPTY_ROOT)
    assert await log.audit() == 0


async def test_a_size_has_one_head_also_after_a_restart(store):
    log = await filled(store, clock=ticking(*range(100, 200)))
    head = await log.head()
    assert head == await log.head() == await (await EvidenceLog.open(store, ME, lambda: 999)).head()


async def test_the_log_goes_on_after_a_restart(url):
    store = Store.open(url)
    await filled(store)
    store.close()
    store = Store.open(url)
    log = await EvidenceLog.open(store, ME)
    assert await log.append("job.ended", "job-9") == 5
    leaves = [row.leaf for row in await store.run(lambda c: list(rows.leaves(c)))]
    assert wire.decode_tree_head((await log.head()).statement).root == root_of(leaves)
    assert await log.audit() == 6
    store.close()


async def test_a_transaction_that_is_undone_leaves_no_event(store):
    log = await filled(store, 3)
    before = await log.head()

    def broken(connection):
        for n in range(4):
            log.append_in(connection, "job.started", f"gone-{n}")
        raise KeyError("undone")

    with pytest.raises(KeyError):
        await store.run(broken)
    assert await log.head() == before
    assert await log.about("gone-0") == []
    assert await log.append("job.started", "kept") == 3
    assert await log.audit() == 4


async def test_an_event_commits_with_the_change_it_is_about(store):
    log = await filled(store, 1)

    def change(connection):
        rows.put_anchor(connection, rows.AnchorRow("x.cn", 1, b"r" * 32, 0))
        return log.append_in(connection, "thing.changed", "x.cn")

    assert await store.run(change) == 1
    assert [event.kind for _, event in await log.about("x.cn")] == ["thing.changed"]
    assert await log.audit() == 2


async def test_appends_at_the_same_time_get_different_places(store):
    log = await EvidenceLog.open(store, ME)
    indices = await asyncio.gather(*(log.append("job.started", f"job-{n}") for n in range(20)))
    assert sorted(indices) == list(range(20))
    assert await log.audit() == 20


async def test_times_never_go_back(store):
    log = await filled(store, 4, clock=ticking(100, 100, 300, 50, 200))
    times = [row.at_ms for row in await store.run(lambda c: list(rows.leaves(c)))]
    assert times == [100, 300, 300, 300]
    assert [event.at_ms for _, event in await log.about("job-1")] == [300, 300]
    assert await log.audit() == 4


async def test_offers_prove_that_the_log_continues(store):
    log = await filled(store, 3)
    old = wire.decode_tree_head((await log.head()).statement)
    for n in range(4):
        await log.append("job.ended", f"job-{n}")
    head = await log.head()
    await log.append("job.ended", "later")
    offer = await log.offer(head, since=3)
    new = wire.decode_tree_head(offer.head.statement)
    assert (offer.head, offer.consistency_from, new.size) == (head, 3, 7)
    assert verify_consistency(3, 7, old.root, new.root, offer.consistency)
    assert (await log.offer(head)).consistency == ()


async def test_a_log_that_was_rolled_back_learns_it_from_above(store):
    log = await filled(store, 3)
    with pytest.raises(LocalProtocolError, match="9 leaves are anchored, 3 are here") as error:
        await log.offer(await log.head(), since=9)
    assert error.value.reason is Reason.EVIDENCE_BROKEN


async def test_there_is_no_proof_of_a_leaf_that_is_not_there(store):
    log = await filled(store, 2)
    for ask in (log.inclusion, log.event):
        with pytest.raises(LocalProtocolError, match="no leaf 2"):
            await ask(2)


DAMAGE = {
    "edited": ["UPDATE log_leaves SET leaf = CAST(leaf || 'x' AS BLOB) WHERE idx = {i}"],
    "edited with its hash": ["UPDATE log_leaves SET leaf_hash = randomblob(32) WHERE idx = {i}"],
    "removed": ["DELETE FROM log_leaves WHERE idx = {i}"],
    "removed and closed": [
        "DELETE FROM log_leaves WHERE idx = {i}",
        "UPDATE log_leaves SET idx = -idx WHERE idx > {i}",
        "UPDATE log_leaves SET idx = -idx - 1 WHERE idx < 0",
    ],
    "inserted": [
        "UPDATE log_leaves SET idx = -idx - 1 WHERE idx >= {i}",
        "UPDATE log_leaves SET idx = -idx WHERE idx < 0",
        "INSERT INTO log_leaves SELECT {i}, leaf, leaf_hash, root, kind, subject, at_ms FROM log_leaves WHERE idx = 9",
    ],
    "swapped": [
        "UPDATE log_leaves SET idx = -1 WHERE idx = {i}",
        "UPDATE log_leaves SET idx = {i} WHERE idx = {i} + 1",
        "UPDATE log_leaves SET idx = {i} + 1 WHERE idx = -1",
    ],
    "filed under another kind": ["UPDATE log_leaves SET kind = 'job.ended' WHERE idx = {i}"],
    "filed under another subject": ["UPDATE log_leaves SET subject = 'job-9' WHERE idx = {i}"],
    "given another time": ["UPDATE log_leaves SET at_ms = 101 WHERE idx >= {i}"],
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("index", [0, 3, 6])
async def test_damage_is_found_at_its_index(store, damage, index):
    await filled(store, 9)

    def harm(connection):
        for statement in DAMAGE[damage]:
            connection.exec_driver_sql(statement.format(i=index))

    await store.run(harm)
    found = [await blame(EvidenceLog(store, ME).audit())]
    if damage not in CONTENT_ONLY:
        found.append(await blame(EvidenceLog.open(store, ME)))
    assert found == [(Reason.EVIDENCE_BROKEN, "TDN-F-EVD-01", str(index))] * len(found)


# `open` reads hashes, not contents: a million records must not be read at every start.
CONTENT_ONLY = ("edited", "filed under another kind", "filed under another subject", "given another time")


async def blame(work):
    with pytest.raises(TdnError) as error:
        await work
    return error.value.reason, error.value.requirement, error.value.metadata.get("index")


async def test_a_gap_in_the_numbers_is_found(store):
    """Every hash is right; only the last record claims a later place, as if others had stood before it."""
    await filled(store, 4)
    await store.run(lambda c: c.exec_driver_sql("UPDATE log_leaves SET idx = 9 WHERE idx = 3"))
    for work in (EvidenceLog(store, ME).audit(), EvidenceLog.open(store, ME)):
        assert await blame(work) == (Reason.EVIDENCE_BROKEN, "TDN-F-EVD-01", "3")


async def test_a_tail_that_was_cut_off_is_found_against_the_last_head(store):
    await filled(store, 5)
    await store.run(lambda c: c.exec_driver_sql("DELETE FROM log_leaves WHERE idx >= 3"))
    with pytest.raises(TdnError) as error:
        await EvidenceLog.open(store, ME)
    assert (error.value.reason, error.value.metadata["index"]) == (Reason.EVIDENCE_BROKEN, "3")


async def test_a_lost_head_is_found(store):
    await filled(store, 2)
    await store.run(lambda c: c.exec_driver_sql("DELETE FROM log_heads"))
    with pytest.raises(TdnError, match="no head") as error:
        await EvidenceLog.open(store, ME)
    assert error.value.reason is Reason.EVIDENCE_BROKEN


async def test_a_record_out_of_time_is_found(store):
    """A clock that goes back behind the log's own rule, signed with the right key: the order of times is checked."""
    log = await filled(store, 2)
    log._next = lambda connection: (2, 40)
    await log.append("job.ended", "early")
    with pytest.raises(TdnError, match="record 2 is older") as error:
        await log.audit()
    assert (error.value.requirement, error.value.metadata["index"]) == ("TDN-F-EVD-05", "2")


async def test_another_identity_key_cannot_continue_the_log(store):
    await filled(store, 2)
    with pytest.raises(TdnError) as error:
        await EvidenceLog.open(store, identity("a.b.cn", b"other"))
    assert error.value.reason is Reason.SIGNATURE_INVALID


async def test_a_record_signed_with_another_key_is_found(store):
    """Everything around the record is right, down to the head: only its signature is not."""
    log = await filled(store, 3)
    stranger = EvidenceLog(store, identity("a.b.cn", b"other"), lambda: 100)
    await stranger.append("job.ended", "forged")
    await log.append("job.ended", "mine")
    with pytest.raises(TdnError, match="record 3 is not signed") as error:
        await log.audit()
    assert (error.value.reason, error.value.metadata["index"]) == (Reason.SIGNATURE_INVALID, "3")


@pytest.mark.parametrize("facts", [
    {"item": "x" * 201}, {"Bad Key": "x"}, {"": "x"}, {f"f{n}": "x" for n in range(17)},
], ids=["long", "key", "empty key", "many"])  # fmt: skip
async def test_facts_that_could_be_data_do_not_get_into_the_log(store, facts):
    log = await filled(store, 1)
    with pytest.raises(PeerProtocolError, match="facts") as error:
        await log.append("job.ended", "job-1", facts)
    assert error.value.requirement == "TDN-F-EVD-03"
    assert await log.audit() == 1


@pytest.mark.parametrize(("kind", "subject", "sha"), [
    ("Job Ended", "s", b""), ("", "s", b""), ("k", "", b""), ("k", "s" * 201, b""), ("k", "s", b"short"),
])  # fmt: skip
async def test_malformed_events_do_not_get_into_the_log(store, kind, subject, sha):
    log = await filled(store, 1)
    with pytest.raises(PeerProtocolError) as error:
        await log.append(kind, subject, statement_sha256=sha)
    assert error.value.reason is Reason.INVALID_REQUEST
    assert await log.audit() == 1


def test_a_commitment_hides_what_could_be_guessed():
    content = hashlib.sha256(b"13800000000").digest()
    salted = commitment(b"s" * 16, content)
    assert salted == commitment(b"s" * 16, content)
    assert salted not in {content, hashlib.sha256(content).digest(), commitment(b"t" * 16, content)}
    for salt, digest in ((b"short", content), (b"s" * 16, b"13800000000")):
        with pytest.raises(LocalProtocolError):
            commitment(salt, digest)
