"""Adverts that do not hold are refused and change nothing; what a table does with those that hold."""

import dataclasses

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tdn_interop import identity, ids
from tdn_interop.errors import PeerProtocolError, Reason, TdnError
from tdn_interop.identity import Identity
from tdn_interop.transport import adverts, records_wire, route, route_wire
from tdn_interop.transport.records_wire import NodeRecord
from tdn_interop.transport.route import Table
from tdn_interop.transport.route_wire import MAX_PATH, Hop, Origin, SignedPath, Withdrawn
from tdn_interop.transport.trust import Trust

NOW = 10_000_000
ME, TELLER, FAR = "h.t", "t", "g.t"
ROLES = {"t": "top", "g.t": "hub", "h.t": "hub", "k.t": "hub", "c.g.t": "child", "x": "top"} | {
    f"n{i}.t": "hub" for i in range(9)
}
KEYS = {node: Identity(node, Ed25519PrivateKey.generate()) for node in ROLES}


def record(node, by="t"):
    statement = NodeRecord(node, ROLES[node], KEYS[node].public_key, ids.parent(node), 1)
    return KEYS[by].sign(identity.NODE_RECORD, records_wire.encode_record(statement))


TRUST = Trust("t", KEYS["t"].public_key, lambda _node, key: key)


def origin(prefix=FAR, sequence=7, issued=NOW, life=60_000, backup=False):
    return Origin(prefix, sequence, issued, issued + life, backup)


def path(*nodes, to=ME, of=None, records=None):
    """The advert of nodes[0], handed on by the others."""
    ends = [*nodes[1:], to]
    told = adverts.originate(KEYS[nodes[0]], record(nodes[0]), ends[0], of or origin(nodes[0]))
    for node, end in zip(nodes[1:], ends[1:], strict=True):
        told = adverts.extend(KEYS[node], record(node), end, told)
    return dataclasses.replace(told, records=records) if records else told


def sign(node, hop):
    return KEYS[node].sign(identity.ADVERT, route_wire.encode_hop(hop))


def check(told, teller=TELLER):
    return adverts.check(told, teller, ME, NOW, TRUST.record)


def test_an_honest_advert():
    found = check(path(FAR, TELLER))
    assert (found.prefix, found.path, found.sequence) == (FAR, (TELLER, FAR), 7)
    assert found.covers("x.g.t")
    assert found.covers(FAR)
    assert not found.covers("g.t.t")
    assert not found.covers("k.t")
    child = check(path("c.g.t", FAR, TELLER))
    assert child.covers("c.g.t")
    assert not child.covers("d.c.g.t")
    own = check(path(TELLER))
    assert (own.path, own.covers("anybody.g.t")) == ((TELLER,), True)
    assert check(route_wire.change_from_pb(route_wire.change_to_pb(path(FAR, TELLER)))) == found
    assert len(check(path(*(f"n{i}.t" for i in range(MAX_PATH - 1)), TELLER)).path) == MAX_PATH


honest = path(FAR, TELLER)
foreign = sign("x", Hop(ME, b"", origin("x")))
bad_signature = dataclasses.replace(honest.hops[1], signature=bytes(64))
POISONED = {
    "somebody else's prefix": (path("k.t", TELLER, of=origin(FAR)), TELLER),
    "a relay left out": (SignedPath(honest.hops[:1], honest.records[:1]), FAR),
    "told to another node": (path(FAR, TELLER, to="k.t"), TELLER),
    "a hop told to another relay": (
        SignedPath((path(FAR, to="k.t").hops[0], honest.hops[1]), honest.records), TELLER,
    ),
    "a relay put in": (
        SignedPath(
            (honest.hops[0], sign("k.t", Hop(ME, b"", None))), (honest.records[0], record("k.t"))
        ),
        "k.t",
    ),
    "the path of another advert": (
        SignedPath((path(FAR, TELLER, of=origin(sequence=8)).hops[0], honest.hops[1]), honest.records), TELLER,
    ),
    "a path through me": (path(FAR, ME, TELLER), TELLER),
    "a circle": (path(FAR, TELLER, "k.t", TELLER), TELLER),
    "told by another node": (honest, "k.t"),
    "a child as a relay": (path(FAR, "c.g.t", TELLER), TELLER),
    "another signature": (dataclasses.replace(honest, hops=(honest.hops[0], bad_signature)), TELLER),
    "records in another order": (dataclasses.replace(honest, records=honest.records[::-1]), TELLER),
    "the record of another node": (path(FAR, TELLER, records=(record("k.t"), record(TELLER))), TELLER),
    "a record that a foreign top signed": (path(FAR, TELLER, records=(record(FAR, by="x"), record(TELLER))), TELLER),
    "a node of a foreign top": (SignedPath((foreign,), (record("x", by="x"),)), "x"),
    "two origins": (
        SignedPath((honest.hops[0], sign(TELLER, Hop(ME, b"", origin()))), honest.records), TELLER,
    ),
    "no origin": (SignedPath((sign(TELLER, Hop(ME, b"", None)),), (record(TELLER),)), TELLER),
    "expired": (path(FAR, TELLER, of=origin(issued=NOW - 60_000)), TELLER),
    "from the future": (path(FAR, TELLER, of=origin(issued=NOW + 30_001)), TELLER),
    "a long life": (path(FAR, TELLER, of=origin(life=120_001)), TELLER),
    "no life": (path(FAR, TELLER, of=origin(issued=NOW + 10, life=0)), TELLER),
    "too long": (path(*(f"n{i}.t" for i in range(MAX_PATH)), TELLER), TELLER),
    "another purpose": (
        SignedPath(
            (KEYS[TELLER].sign(identity.ROUTE, route_wire.encode_hop(Hop(ME, b"", origin(TELLER)))),),
            (record(TELLER),),
        ),
        TELLER,
    ),
}  # fmt: skip


@pytest.mark.parametrize("which", POISONED)
def test_an_advert_that_does_not_hold(which):
    with pytest.raises(PeerProtocolError) as caught:
        check(*POISONED[which])
    assert (caught.value.reason, caught.value.requirement) == (Reason.ROUTE_INVALID, "TDN-T-RTE-09")


@pytest.mark.parametrize(
    "damage",
    [
        lambda m: m.advert.ClearField("hops"),
        lambda m: m.advert.records.pop(),
        lambda m: m.ClearField("advert"),
        lambda m: m.advert.hops.extend(list(m.advert.hops) * 4),
        lambda m: setattr(m.advert.hops[0], "statement", bytes(1025)),
        lambda m: setattr(m, "withdrawn", "NOT A NODE"),
    ],
)
def test_a_change_that_is_malformed(damage):
    message = route_wire.change_to_pb(path(FAR, TELLER))
    damage(message)
    with pytest.raises(PeerProtocolError) as caught:
        route_wire.change_from_pb(message)
    assert (caught.value.reason, caught.value.requirement) == (Reason.INVALID_REQUEST, "TDN-T-ENC-01")


@pytest.mark.parametrize("data", [b"\xff", b"", route_wire.encode_hop(Hop(ME, b"short", None))])
def test_a_hop_that_is_malformed(data):
    with pytest.raises(PeerProtocolError):
        route_wire.decode_hop(data)


# -- the table


@pytest.fixture
def table():
    return Table(ME, "t", {"k.t"})


def learn(table, teller, *nodes, **of):
    told = path(*nodes, of=origin(nodes[0], **of))
    table.learn(teller, adverts.check(told, teller.node, ME, NOW, TRUST.record))


def test_the_best_way_first(table):
    top, beside = table.join("t"), table.join("k.t")
    learn(table, top, "t")
    learn(table, top, FAR, "t")
    learn(table, top, "c.g.t", FAR, "t", backup=True)
    learn(table, beside, "k.t")
    learn(table, beside, FAR, "n1.t", "k.t")
    assert table.ways("c.g.t") == [("t", FAR), ("k.t", "n1.t", FAR)]  # its hub, then the shorter path
    assert table.ways("c.g.t", {"n1.t"}) == [("t", FAR)]
    assert table.ways("c.g.t", {"t"}) == [("k.t", "n1.t", FAR)]
    assert table.ways("k.t") == [("k.t",), ("t",)]
    table.withdraw(top, FAR)
    assert table.ways("c.g.t") == [("k.t", "n1.t", FAR), ("t", FAR, "c.g.t")]
    learn(table, top, "c.g.t", FAR, "t", sequence=8)  # its hub does not reach it any more
    assert table.ways("c.g.t")[0] == ("t", FAR, "c.g.t")
    table.leave(beside)
    assert table.ways("z.g.t") == [("t",)]
    assert table.ways("a.h.t") == [("a.h.t",)]


def test_nothing_older_is_learned_until_it_has_expired(table):
    teller, other = table.join("t"), table.join("k.t")
    learn(table, teller, FAR, "t", sequence=7)
    learn(table, other, FAR, "k.t", sequence=6)  # another way may be slower
    for _ in range(2):
        with pytest.raises(TdnError) as caught:
            learn(table, teller, FAR, "n1.t", "t", sequence=6)
        assert (caught.value.reason, caught.value.requirement) == (Reason.ROUTE_INVALID, "TDN-T-RTE-09")
        assert table.ways(FAR)[0] in {("k.t", FAR), ("t", FAR)}
        table.withdraw(teller, FAR)
    learn(table, teller, FAR, "n1.t", "t", sequence=7)  # the same one on another path
    assert table.expire(NOW + 60_000)
    assert not table.expire(NOW + 60_000)
    learn(table, teller, FAR, "t", sequence=6)


def test_a_neighbour_tells_only_so_much(table, monkeypatch):
    monkeypatch.setattr(route, "MAX_HEARD", 2)
    teller = table.join("t")
    for node in ("t", FAR):
        learn(table, teller, node, *(["t"] if node != "t" else []))
    with pytest.raises(TdnError) as caught:
        learn(table, teller, "n1.t", "t")
    assert (caught.value.reason, caught.value.requirement) == (Reason.RESOURCE_EXHAUSTED, "TDN-T-LIM-03")
    learn(table, teller, FAR, "t", sequence=8)  # news of what is known are welcome


def test_who_may_hand_on_what(table):
    assert table.speaks("t", "x.g.t")
    assert table.speaks("k.t", "x.k.t")
    assert table.speaks("k.t", "x.g.t")
    assert table.speaks("a.h.t", "x.a.h.t")
    for node in ("t", "k.t", "a.h.t"):
        assert not table.speaks(node, ME)
        assert not table.speaks(node, "b.h.t")
    assert not table.speaks("a.h.t", "x.g.t")
    at_top, hub = Table("t", ""), "g.t"
    teller = at_top.join(hub)
    assert not at_top.speaks(hub, "c.h.t")
    told = adverts.check(path("h.t", hub, to="t"), hub, "t", NOW, TRUST.record)
    at_top.learn(teller, told)
    assert at_top.speaks(hub, "c.h.t")
    assert not at_top.speaks(hub, "c.k.t")


def test_a_withdrawal_passes_the_wire():
    assert route_wire.change_from_pb(route_wire.change_to_pb(Withdrawn(FAR))) == Withdrawn(FAR)
