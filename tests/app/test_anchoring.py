"""A hub anchors for many children: one call upwards carries them all, and nobody anchors without end."""

import asyncio

import pytest

from tdn_interop.app.anchoring import PACE, RATE, Anchoring
from tdn_interop.app.evidence import wire
from tdn_interop.app.evidence.log import EvidenceLog
from tdn_interop.app.evidence.merkle import leaf_hash, verify_inclusion
from tdn_interop.app.store.engine import Store
from tdn_interop.app.store.members import MemberRow, put
from tdn_interop.errors import Reason, TdnError
from tdn_interop.identity import Signed
from tdn_interop.transport.rates import Bucket
from tdn_interop.transport.records_wire import encode_signed
from tests.app.evidence_mesh import identity
from tests.interop.forge import until

CHILDREN = [f"c{number}.b.cn" for number in range(20)]
RECORD = Signed(b"record", "cn", b"signature")


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Hub(Anchoring):
    """A hub whose calls upwards are counted and wait for `up`."""

    def __init__(self, log, clock):
        super().__init__(log, RECORD, None, clock)
        self.heads, self.up = [], asyncio.Event()

    async def _upwards(self, head):
        self.heads.append(wire.decode_tree_head(head.statement))
        await self.up.wait()
        return (), ()


async def log_of(node):
    return await EvidenceLog.open(Store.open("sqlite://"), identity(node), lambda: 100)


@pytest.fixture
async def mesh():
    """(hub, logs of its children, clock)."""
    clock, children = Clock(), {name: await log_of(name) for name in CHILDREN}
    hub = Hub(await log_of("b.cn"), clock)
    for name, log in children.items():
        row = MemberRow(name, "child", identity(name).public_key, "ACTIVE", None, 1)
        await hub.log.store.run(lambda c, row=row: put(c, row))
        await log.append("job.ended", "job")
    yield hub, children, clock
    await hub.close()
    for log in (hub.log, *children.values()):
        log.store.close()


async def test_whoever_comes_meanwhile_shares_the_next_call(mesh):
    hub, children, _ = mesh
    offers = {name: await log.offer(await log.head()) for name, log in children.items()}
    taking = {CHILDREN[0]: asyncio.create_task(hub.take(CHILDREN[0], offers[CHILDREN[0]]))}
    await until(lambda: hub.heads)
    taking |= {name: asyncio.create_task(hub.take(name, offers[name])) for name in CHILDREN[1:]}
    await until(lambda: len(hub._leaves) == len(CHILDREN) - 1)
    hub.up.set()
    for name, task in taking.items():
        (here,), (record,) = await task
        head = wire.decode_tree_head(here.head.statement)
        assert record == RECORD
        assert head in hub.heads
        leaf = leaf_hash(encode_signed(offers[name].head))
        assert verify_inclusion(leaf, here.index, head.size, here.path, head.root)
    assert len(hub.heads) == 2
    assert hub.heads[1].size == len(CHILDREN)


async def test_a_failure_above_is_told_to_everybody_and_does_not_stay(mesh):
    hub, children, _ = mesh
    honest = hub._upwards

    async def broken(_head):
        raise TdnError(Reason.UNREACHABLE, "no parent", "TDN-T-ENC-03")

    hub._upwards = broken
    offers = [(name, await log.offer(await log.head())) for name, log in children.items()]
    failed = await asyncio.gather(*(hub.take(*offer) for offer in offers), return_exceptions=True)
    assert {error.reason for error in failed} == {Reason.UNREACHABLE}
    hub._upwards = honest
    hub.up.set()
    assert await asyncio.gather(*(hub.take(*offer) for offer in offers))


async def test_a_caller_that_gives_up_takes_nothing_from_the_others(mesh):
    hub, children, _ = mesh
    offers = [(name, await log.offer(await log.head())) for name, log in list(children.items())[:2]]
    first, second = [asyncio.create_task(hub.take(*offer)) for offer in offers]
    await until(lambda: hub.heads)
    first.cancel()
    hub.up.set()
    assert (await second)[0]
    assert first.cancelled()


async def test_a_child_that_anchors_in_a_loop_is_slowed_down_and_nobody_else(mesh):
    hub, children, clock = mesh
    hub.up.set()
    greedy, modest = CHILDREN[:2]
    offer = await children[greedy].offer(await children[greedy].head())
    for _ in range(int(RATE.burst)):
        await hub.take(greedy, offer)
    with pytest.raises(TdnError) as caught:
        await hub.take(greedy, offer)
    assert (caught.value.reason, caught.value.requirement) == (Reason.RATE_LIMITED, "TDN-T-LIM-06")
    assert await hub.take(modest, await children[modest].offer(await children[modest].head()))
    clock.now += 1 / RATE.per_s
    assert await hub.take(greedy, offer)


def test_a_hundred_jobs_a_minute_meet_no_limit():
    clock = Clock()
    bucket = Bucket(RATE, clock)
    for number in range(100 * 10):
        clock.now = number * 0.6
        assert [bucket.wait_s() for _ in range(4)] == [0] * 4


def test_a_node_that_keeps_the_pace_is_never_refused():
    clock = Clock()
    mine, theirs = Bucket(PACE, clock), Bucket(RATE, clock)
    for _ in range(2000):
        while wait_s := mine.wait_s():
            clock.now += wait_s + 1e-9
        assert theirs.wait_s() == 0
    assert clock.now == pytest.approx((2000 - PACE.burst) / PACE.per_s, rel=0.01)
