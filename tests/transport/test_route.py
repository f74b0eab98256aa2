"""Without adverts the way follows from names: properties over whole trees, and every refusal of an opening."""

import dataclasses

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tdn_interop import ids
from tdn_interop.errors import Reason, TdnError
from tdn_interop.transport import route
from tdn_interop.transport.records_wire import MAX_HOPS, Opening
from tdn_interop.transport.route import HOP_COST_MS, MAX_DEADLINE_MS, Table

labels = st.lists(st.sampled_from(["a", "b", "ab", "x-1"]), max_size=4)
nodes = labels.map(lambda found: ".".join([*found, "cn"]))


def walk(source, destination):
    """What relays do, one after another: the nodes a tunnel visits after its source."""
    visited, opening, here = [], Opening(bytes(16), source, destination, 16, 9000, ()), source
    while here != destination:
        [way] = route.choose(opening, Table(here, ids.parent(here)), lambda _node: True)
        visited.append(way[0])
        here, opening = way[0], route.passed(opening, here) if here != source else opening
    return visited


@given(nodes, nodes)
def test_the_relays_on_the_way_are_the_ones_that_hops_names(source, destination):
    assume(source != destination)
    visited = walk(source, destination)
    assert visited[-1] == destination
    assert tuple(visited[:-1]) == route.hops(source, destination)


@given(nodes, nodes)
def test_the_way_back_is_the_same_way(source, destination):
    assert route.hops(destination, source) == tuple(reversed(route.hops(source, destination)))


@given(nodes, nodes)
def test_a_way_passes_nobody_twice_and_is_never_longer_than_the_names_say(source, destination):
    found = route.hops(source, destination)
    assert len(set(found)) == len(found)
    assert not {source, destination} & set(found)
    assert len(found) <= source.count(".") + destination.count(".") - 1 or not found


@given(nodes, nodes)
def test_each_step_leads_to_an_adjacent_node(me, destination):
    assume(me != destination)
    table = Table(me, ids.parent(me))
    ways = table.ways(destination)
    assert all(table.adjacent(way[0]) for way in ways)
    assert ways or me == "cn"


@given(nodes, nodes.map(lambda node: node.removesuffix("cn") + "us"))
def test_there_is_no_way_out_of_the_hierarchy(source, foreign):
    for find in (walk, route.hops):
        with pytest.raises(TdnError) as caught:
            find(source, foreign)
        error = caught.value
        assert (error.reason, error.requirement) == (Reason.NO_ROUTE, "TDN-T-RTE-03")
        assert error.message == f"there is no way to {foreign}"


# -- openings. I am the hub `h.cn`; `a.h.cn` is below, `cn` above.

ME, PARENT, CHILD = "h.cn", "cn", "a.h.cn"
TABLE = Table(ME, PARENT)
FROM_BELOW = Opening(bytes(16), CHILD, "x.g.cn", 8, 10_000, ())
FROM_ABOVE = Opening(bytes(16), "x.g.cn", CHILD, 6, 9_980, ("g.cn", PARENT))


def admit(opening, previous, **changes):
    route.admit(dataclasses.replace(opening, **changes), previous, TABLE)


def test_honest_openings():
    admit(FROM_BELOW, CHILD)
    admit(FROM_ABOVE, PARENT)
    admit(FROM_BELOW, CHILD, hop_limit=1, deadline_ms=HOP_COST_MS + 1)
    admit(FROM_BELOW, CHILD, deadline_ms=MAX_DEADLINE_MS)
    admit(FROM_BELOW, CHILD, source=f"x.{CHILD}", visited=(CHILD,))  # the child is a hub itself
    admit(FROM_ABOVE, PARENT, source=PARENT, visited=())  # the top itself dials


IDENTITY = (Reason.IDENTITY_MISMATCH, "TDN-T-IDN-02")
LOOP = (Reason.ROUTE_LOOP, "TDN-T-RTE-03")
REFUSED = {
    "in the name of a sibling": (FROM_BELOW, CHILD, {"source": "b.h.cn"}, IDENTITY),
    "in the name of a relay": (FROM_BELOW, CHILD, {"visited": ("b.h.cn",)}, IDENTITY),
    "a victim as source, itself as relay": (
        FROM_BELOW, CHILD, {"source": "b.h.cn", "visited": (CHILD,)}, IDENTITY,
    ),
    "me as source, itself as relay": (FROM_BELOW, CHILD, {"source": ME, "visited": (CHILD,)}, IDENTITY),
    "itself as source and as relay": (FROM_BELOW, CHILD, {"visited": (CHILD,)}, IDENTITY),
    "from above in my name": (FROM_ABOVE, PARENT, {"source": ME}, IDENTITY),
    "from above in the name of a node below me": (FROM_ABOVE, PARENT, {"source": "b.h.cn"}, IDENTITY),
    "a visited node that is not the caller": (FROM_ABOVE, PARENT, {"visited": ("g.cn",)}, IDENTITY),
    "by a node that is not adjacent": (
        FROM_BELOW, "x.g.cn", {"source": "x.g.cn"}, (Reason.POLICY_DENIED, "TDN-T-RTE-05"),
    ),
    "by a grandchild": (
        FROM_BELOW, "c.a.h.cn", {"source": "c.a.h.cn"}, (Reason.POLICY_DENIED, "TDN-T-RTE-05"),
    ),
    "a circle through me": (FROM_ABOVE, PARENT, {"visited": ("g.cn", ME, PARENT)}, LOOP),
    "a circle among others": (FROM_ABOVE, PARENT, {"visited": (PARENT, "g.cn", PARENT)}, LOOP),
    "no hop left": (FROM_BELOW, CHILD, {"hop_limit": 0}, LOOP),
    "no time left": (FROM_BELOW, CHILD, {"deadline_ms": HOP_COST_MS}, (Reason.DEADLINE, "TDN-T-DDL-01")),
    "an absurd time": (
        FROM_BELOW, CHILD, {"deadline_ms": MAX_DEADLINE_MS + 1}, (Reason.INVALID_REQUEST, "TDN-T-DDL-03"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("which", REFUSED)
def test_an_opening_that_cannot_be_right(which):
    opening, previous, changes, expected = REFUSED[which]
    with pytest.raises(TdnError) as caught:
        admit(opening, previous, **changes)
    assert (caught.value.reason, caught.value.requirement) == expected


def test_what_has_to_go_up_is_not_sent_down():
    with pytest.raises(TdnError) as caught:
        route.choose(dataclasses.replace(FROM_ABOVE, destination="y.g.cn"), TABLE, lambda _node: True)
    assert (caught.value.reason, caught.value.requirement) == LOOP


@given(st.integers(1, MAX_HOPS), st.integers(1, MAX_DEADLINE_MS))
def test_deadline_and_hop_limit_shrink_at_every_hop_until_somebody_refuses(hop_limit, deadline_ms):
    me = "n." * (MAX_HOPS + 1) + "cn"  # a deep tree, climbed from its lowest leaf
    opening = Opening(bytes(16), me, "us", hop_limit, deadline_ms, ())
    while opening.hop_limit and opening.deadline_ms > HOP_COST_MS:
        previous, me = me, ids.parent(me)
        route.admit(opening, previous, Table(me, ids.parent(me)))
        after = route.passed(opening, me)
        assert after == dataclasses.replace(
            opening, hop_limit=opening.hop_limit - 1, deadline_ms=opening.deadline_ms - HOP_COST_MS,
            visited=(*opening.visited, me),
        )  # fmt: skip
        opening = after
    previous, me = me, ids.parent(me)
    with pytest.raises(TdnError) as caught:
        route.admit(opening, previous, Table(me, ids.parent(me)))
    assert caught.value.reason is (Reason.DEADLINE if opening.hop_limit else Reason.ROUTE_LOOP)
