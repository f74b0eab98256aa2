"""Tunnels of one relay without a network: limits, waiting, receipts, back-pressure, what is left behind."""

import asyncio
import contextlib
import errno
import os

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tdn_interop import identity
from tdn_interop.errors import Reason, Refused, TdnError
from tdn_interop.identity import Identity
from tdn_interop.transport import descriptors, records_wire
from tdn_interop.transport.records_wire import Join, Opening
from tdn_interop.transport.relay import MAX_WAITING, Tunnels
from tdn_interop.transport.route import Table
from tdn_interop.transport.tunnel import Counter, splice
from tests.interop.forge import until

HUB, CHILD, SIBLING, TOP, FAR = "h.cn", "a.h.cn", "b.h.cn", "cn", "x.g.cn"
KEY = Identity(HUB, Ed25519PrivateKey.generate())


class Pipe:
    """One end of a tunnel in memory; `room` messages may wait unread."""

    def __init__(self, room=1):
        self.incoming = asyncio.Queue()
        self.outgoing = asyncio.Queue(room)
        self.closed = self.dropped = False

    async def read(self):
        return await self.incoming.get()

    async def write(self, message):
        await self.outgoing.put(message)

    async def close(self):
        self.closed = True
        self.incoming.put_nowait(b"")

    async def settle(self):
        assert not self.dropped

    def drop(self):
        self.dropped = True


class Parent:
    """The link to the parent."""

    node, is_linked = TOP, True

    def __init__(self):
        self.opened, self.joined = [], []
        self.leg = Pipe(100)
        self.refusal = None

    async def open(self, opening):
        if self.refusal:
            raise self.refusal
        self.opened.append(opening)
        return self.leg, (TOP, "g.cn")

    async def join(self, join):
        self.joined.append(join)
        return None if join.refusal else self.leg


class Ledger:
    """Receipts in memory."""

    def __init__(self):
        self.receipts = []

    async def knows(self, tunnel_id):
        return any(records_wire.decode_receipt(r.statement).tunnel_id == tunnel_id for r in self.receipts)

    async def gave(self, receipt):
        self.receipts.append(receipt)


@pytest.fixture
async def hub():
    ledger = Ledger()
    up = Parent()
    made = Tunnels(KEY, Table(HUB, TOP), {TOP: up}, None, ledger)
    made.kept, made.up = ledger.receipts, up
    yield made
    await made.close()


def opening(number=0, destination=FAR, source=CHILD, visited=(), deadline_ms=5000):
    return Opening(number.to_bytes(16), source, destination, 8, deadline_ms, visited)


async def ready(_path):
    """The caller hears that the tunnel is open."""


def start(hub, what, leg=None, previous=CHILD):
    return asyncio.create_task(hub.relay(what, previous, leg or Pipe(100), ready))


async def refusal(work):
    with pytest.raises(TdnError) as caught:
        async with asyncio.timeout(10):
            await work
    return caught.value


# -- carrying


async def test_a_tunnel_upwards_and_its_receipt(hub):
    caller, paths = Pipe(100), []

    async def note(path):
        paths.append(path)

    running = asyncio.create_task(hub.relay(opening(), CHILD, caller, note))
    for message in (b"one", b"three", b""):
        caller.incoming.put_nowait(message)
    hub.up.leg.incoming.put_nowait(b"back")
    signed = await running
    assert paths == [(HUB, TOP, "g.cn")]
    assert [hub.up.leg.outgoing.get_nowait() for _ in range(2)] == [b"one", b"three"]
    assert caller.outgoing.get_nowait() == b"back"
    assert identity.verify(identity.RECEIPT, signed, KEY.public_key)
    receipt = records_wire.decode_receipt(signed.statement)
    assert (receipt.forward_bytes, receipt.backward_bytes) == (8, 4)
    assert (receipt.relay, receipt.source, receipt.destination) == (HUB, CHILD, FAR)
    assert (receipt.previous, receipt.next) == (CHILD, TOP)
    assert receipt.started_at_ms <= receipt.ended_at_ms
    assert hub.kept == [signed]
    assert (hub.count, caller.dropped, hub.up.leg.dropped) == (0, True, True)
    [passed] = hub.up.opened
    assert (passed.hop_limit, passed.visited) == (7, (HUB,))
    assert passed.deadline_ms < 5000


async def test_a_caller_that_vanishes_does_not_take_the_receipt_along(hub):
    caller = Pipe(100)
    running = start(hub, opening(), caller)
    caller.incoming.put_nowait(b"12345")
    await until(lambda: not hub.up.leg.outgoing.empty())
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    [signed] = hub.kept
    assert records_wire.decode_receipt(signed.statement).forward_bytes == 5
    assert (hub.count, hub.up.leg.dropped) == (0, True)


async def test_closing_ends_tunnels_and_gives_receipts(hub):
    running = start(hub, opening())
    await until(lambda: hub.up.opened)
    await hub.close()
    assert running.done()
    assert len(hub.kept) == 1


async def test_an_end_gives_no_receipt(hub):
    """The dialling node is no relay of its own tunnel."""
    stream, path = await hub.dial(FAR, 5)
    assert path == (TOP, "g.cn")
    stream.close()
    await until(lambda: hub.up.leg.dropped)
    assert hub.kept == []


async def test_a_reader_that_does_not_read_stops_the_relay(hub):
    """At most one message is inside the relay, however much the caller sends."""
    caller = Pipe()
    hub.up.leg = Pipe(room=3)
    running = start(hub, opening(), caller)
    for number in range(100):
        caller.incoming.put_nowait(b"%03d" % number)
    await until(hub.up.leg.outgoing.full)
    for _ in range(20):
        await asyncio.sleep(0)
    assert caller.incoming.qsize() == 100 - 3 - 1
    got = []
    while len(got) < 100:
        got.append(await hub.up.leg.outgoing.get())
    assert got == [b"%03d" % number for number in range(100)]
    running.cancel()


async def test_a_defect_of_a_leg_is_not_hidden():
    class Broken(Pipe):
        async def write(self, message):
            raise ZeroDivisionError

    source = Pipe()
    source.incoming.put_nowait(b"x")
    with pytest.raises(ZeroDivisionError):
        await splice(source, Broken(), Counter())


# -- limits


FULL = (Reason.RESOURCE_EXHAUSTED, "TDN-T-LIM-03")


async def test_a_full_relay_refuses_and_recovers(hub):
    hub._places = 40
    running = [start(hub, opening(n), previous=CHILD) for n in range(20)]
    running += [start(hub, opening(20 + n, source=SIBLING), previous=SIBLING) for n in range(20)]
    await until(lambda: len(hub.up.opened) == 40)
    late = await asyncio.gather(
        *(start(hub, opening(9999 + n, source="c.h.cn"), previous="c.h.cn") for n in range(76)),
        return_exceptions=True,
    )
    assert {(e.reason, e.requirement) for e in late} == {FULL}
    assert len(hub.up.opened) == 40
    running[0].cancel()
    await asyncio.wait(running[:1])
    one_more = start(hub, opening(5000))
    await until(lambda: len(hub.up.opened) == 41)
    for task in (*running, one_more):
        task.cancel()
    await asyncio.wait([*running, one_more])
    assert hub.count == 0


async def test_nobody_holds_more_than_half_of_the_places(hub):
    """Below, whose certificate the link has shown; from above, the source."""
    hub._places = 8
    for number in range(4):
        start(hub, opening(number, source=f"x{number}.{CHILD}", visited=(CHILD,)))
    await until(lambda: hub.count == 4)
    error = await refusal(start(hub, opening(5)))
    assert (error.reason, error.requirement) == FULL
    with hub.attach(SIBLING) as told:
        for number in range(10, 14):
            hub.spawn(hub.arrived(hub.up, opening(number, SIBLING, FAR, ("g.cn", TOP))))
        await until(lambda: told.qsize() == 4)
        await hub.arrived(hub.up, opening(14, SIBLING, FAR, ("g.cn", TOP)))
        assert hub.up.joined == [Join((14).to_bytes(16), (), "RESOURCE_EXHAUSTED")]
        assert hub.count == 8


def test_places_follow_the_limit_of_open_files(monkeypatch):
    for soft, places in ((1024, 128), (1 << 20, 1024), (4, 1), (-1, 1024)):
        monkeypatch.setattr(descriptors.resource, "getrlimit", lambda _, soft=soft: (soft, -1))
        assert Tunnels(KEY, Table(HUB, TOP), {}, None, None)._places == places


async def test_tunnels_that_are_still_opening_count(hub):
    """A caller cannot pile up openings for a node that never joins."""
    hub._places = 10
    with hub.attach(SIBLING) as told:
        running = []
        for number in range(5):
            running.append(start(hub, opening(number, SIBLING)))
            await until(lambda: not told.empty())
            told.get_nowait()
        error = await refusal(start(hub, opening(5000, SIBLING)))
        assert error.reason is Reason.RESOURCE_EXHAUSTED
    await hub.close()
    assert hub._waiting == {}
    assert all(task.cancelled() for task in running)


async def test_a_tunnel_id_serves_once(hub):
    """A second tunnel of the same id would take the place of the first one in the evidence."""
    caller = Pipe(100)
    running = start(hub, opening(1), caller)
    await until(lambda: hub.up.opened)
    again = (Reason.ALREADY_EXISTS, "TDN-T-RTE-08")
    error = await refusal(start(hub, opening(1, source=SIBLING), previous=SIBLING))
    assert (error.reason, error.requirement) == again
    caller.incoming.put_nowait(b"")
    await running
    error = await refusal(start(hub, opening(1)))
    assert (error.reason, error.requirement) == again
    assert len(hub.kept) == 1
    assert hub.count == 0


async def test_a_node_that_reads_none_of_its_openings(hub):
    with hub.attach(SIBLING) as told:
        running = [start(hub, opening(number, SIBLING)) for number in range(MAX_WAITING)]
        await until(told.qsize)
        await until(lambda: told.qsize() == MAX_WAITING)
        error = await refusal(start(hub, opening(5000, SIBLING)))
        assert (error.reason, error.requirement) == (Reason.RESOURCE_EXHAUSTED, "TDN-T-LIM-03")
        assert told.qsize() == MAX_WAITING
    await hub.close()
    assert all(task.done() for task in running)


async def test_a_full_node_refuses_tunnels_from_above(hub):
    hub._places = 0
    await hub.arrived(hub.up, opening(1, SIBLING, FAR, ("g.cn", TOP)))
    assert hub.up.joined == [Join((1).to_bytes(16), (), "RESOURCE_EXHAUSTED")]


async def no_descriptors(work, monkeypatch):
    """Run `work` where no socket can be made."""

    def fail():
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr("tdn_interop.transport.front.socket.socketpair", fail)
        return await work


async def test_a_node_without_descriptors_says_so_at_once(hub, monkeypatch):
    """Above nobody has to wait for the deadline."""
    await no_descriptors(hub.arrived(hub.up, opening(1, HUB, FAR, ("g.cn", TOP))), monkeypatch)
    assert hub.up.joined == [Join((1).to_bytes(16), (), "RESOURCE_EXHAUSTED")]
    error = await no_descriptors(refusal(hub.relay(opening(2, HUB), CHILD, Pipe(), ready)), monkeypatch)
    assert (error.reason, error.requirement) == FULL
    error = await no_descriptors(refusal(hub.dial(FAR, 5)), monkeypatch)
    assert (error.reason, error.requirement) == FULL
    assert (hub.up.opened, hub.count) == ([], 0)


# -- refusals


async def test_unknown_away_and_foreign_destinations_look_the_same(hub):
    hub.up.refusal = None
    seen = {}
    with hub.attach(SIBLING) as told:
        running = start(hub, opening(1, f"ghost.{SIBLING}"))
        await until(lambda: not told.empty())
        await hub.joined(Join((1).to_bytes(16), (), "NO_ROUTE"), SIBLING, Pipe())
        seen[f"ghost.{SIBLING}"] = await refusal(running)
    for destination in (SIBLING, "ghost.h.cn"):
        seen[destination] = await refusal(start(hub, opening(2, destination)))
    top = Tunnels(Identity(TOP, Ed25519PrivateKey.generate()), Table(TOP, ""), {}, None, Ledger())
    seen["x.us"] = await refusal(top.relay(opening(3, "x.us", HUB), HUB, Pipe(), ready))
    shapes = {
        (type(e), e.reason, e.requirement, e.message.replace(name, "NAME"), tuple(e.metadata))
        for name, e in seen.items()
    }
    assert shapes == {(Refused, Reason.NO_ROUTE, "TDN-T-RTE-03", "there is no way to NAME", ())}


async def test_a_node_that_refuses_is_quoted(hub):
    with hub.attach(SIBLING) as told:
        running = start(hub, opening(1, SIBLING))
        await until(lambda: not told.empty())
        await hub.joined(Join((1).to_bytes(16), (), "RESOURCE_EXHAUSTED"), SIBLING, Pipe())
        error = await refusal(running)
    assert (error.reason, error.message) == (Reason.RESOURCE_EXHAUSTED, f"{SIBLING} did not take the tunnel")


async def test_a_node_that_never_joins(hub):
    with hub.attach(SIBLING):
        error = await refusal(start(hub, opening(1, SIBLING, deadline_ms=30)))
        assert (error.reason, error.requirement) == (Reason.DEADLINE, "TDN-T-DDL-02")
        assert (hub._waiting, hub.count) == ({}, 0)
        late = await refusal(hub.joined(Join((1).to_bytes(16), (), ""), SIBLING, Pipe()))
        assert late.reason is Reason.NO_ROUTE


async def test_a_node_that_leaves_before_it_joins(hub):
    """Whoever waits for it hears so at once, not at the deadline."""
    with hub.attach(SIBLING) as told:
        running = start(hub, opening(1, SIBLING))
        await until(lambda: not told.empty())
    error = await refusal(running)
    assert (error.reason, error.requirement) == (Reason.UNREACHABLE, "TDN-T-RTE-04")
    assert (hub._waiting, hub.count) == ({}, 0)


async def test_only_the_node_that_was_told_may_join_and_only_once(hub):
    with hub.attach(SIBLING) as told:
        running = start(hub, opening(1, SIBLING))
        await until(lambda: not told.empty())
        join = Join((1).to_bytes(16), (), "")
        for wrong in (
            hub.joined(join, CHILD, Pipe()),
            hub.joined(Join((2).to_bytes(16), (), ""), SIBLING, Pipe()),
        ):
            error = await refusal(wrong)
            assert (error.reason, error.requirement) == (Reason.NO_ROUTE, "TDN-T-RTE-05")
        leg = Pipe(100)
        joined = asyncio.create_task(hub.joined(join, SIBLING, leg))
        await asyncio.sleep(0)
        assert (await refusal(hub.joined(join, SIBLING, Pipe()))).requirement == "TDN-T-RTE-05"
        leg.incoming.put_nowait(b"")
        assert await joined == await running  # the same receipt for both sides


async def test_a_second_opening_of_a_tunnel_that_waits(hub):
    with hub.attach(SIBLING) as told:
        first = start(hub, opening(1, SIBLING))
        await until(lambda: not told.empty())
        assert (await refusal(start(hub, opening(1, SIBLING)))).reason is Reason.ALREADY_EXISTS
        first.cancel()


async def test_a_join_in_the_moment_in_which_the_caller_leaves(hub):
    """Whoever joined is not left waiting for a tunnel that nobody wants any more."""
    with hub.attach(SIBLING) as told:
        running = start(hub, opening(1, SIBLING))
        await until(lambda: not told.empty())
        joined = asyncio.create_task(hub.joined(Join((1).to_bytes(16), (), ""), SIBLING, Pipe()))
        await asyncio.sleep(0)  # the join has been taken, the opener has not run again
        running.cancel()
        async with asyncio.timeout(5):
            await joined
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def test_a_caller_that_is_gone_when_the_way_is_open(hub):
    async def gone(_path):
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await hub.relay(opening(), CHILD, Pipe(), gone)
    assert (hub.up.leg.closed, hub.up.leg.dropped, hub.count) == (True, True, 0)


# -- attaching


async def test_a_newer_stream_replaces_an_older_one(hub):
    with hub.attach(CHILD) as older, hub.attach(CHILD) as newer:
        assert await older.get() is None
        running = start(hub, opening(1, CHILD, SIBLING), previous=SIBLING)
        assert (await newer.get()).destination == CHILD
        running.cancel()
    assert hub.attached == []


async def test_who_waits_for_a_node_waits_on_its_newer_stream(hub):
    older = hub.attach(CHILD)
    old = older.__enter__()
    running = start(hub, opening(1, CHILD, SIBLING), previous=SIBLING)
    await until(old.qsize)
    with hub.attach(CHILD) as newer:
        assert (newer.get_nowait().tunnel_id, old.get_nowait()) == ((1).to_bytes(16), None)
        older.__exit__(None, None, None)
        leg = Pipe(100)
        joined = asyncio.create_task(hub.joined(Join((1).to_bytes(16), (), ""), CHILD, leg))
        leg.incoming.put_nowait(b"")
        assert await joined == await running


async def test_the_end_of_an_older_stream_does_not_detach_the_newer_one(hub):
    older = hub.attach(CHILD)
    older.__enter__()
    with hub.attach(CHILD):
        older.__exit__(None, None, None)
        assert hub.attached == [CHILD]
    assert hub.attached == []


# -- from above


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (opening(1, SIBLING, FAR, ("g.cn", TOP)), "NO_ROUTE"),  # nobody is attached
        (opening(1, FAR, "y.g.cn", ("g.cn", TOP)), "ROUTE_LOOP"),
        (opening(1, SIBLING, FAR, ("g.cn", HUB, TOP)), "ROUTE_LOOP"),
        (opening(1, SIBLING, FAR, ("g.cn",)), "IDENTITY_MISMATCH"),
        (opening(1, SIBLING, FAR, ("g.cn", TOP), deadline_ms=1), "DEADLINE"),
    ],
)
async def test_a_tunnel_from_above_that_is_not_taken(hub, what, reason):
    await hub.arrived(hub.up, what)
    assert hub.up.joined == [Join(what.tunnel_id, (), reason)]
    assert hub.count == 0
