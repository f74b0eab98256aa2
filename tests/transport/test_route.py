"""The way through the hierarchy follows from names: properties over whole trees, and every refusal."""

import dataclasses

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tdn_interop import ids
from tdn_interop.errors import Reason, TdnError
from tdn_interop.transport import route
from tdn_interop.transport.records_wire import MAX_HOPS, Opening
from tdn_interop.transport.route import HOP_COST_MS, MAX_DEADLINE_MS, Way

labels = st.lists(st.sampled_from(["a", "b", "ab", "x-1"]), max_size=4)
nodes = labels.map(lambda found: ".".join([*found, "cn"]))


def walk(source, destination):
    """What relays do, one after another: the nodes a tunnel visits after its source."""
    visited, here = [], source
    while True:
        step = route.next_step(here, ids.parent(here), destination)
        if step.way is Way.HERE:
            return visited
        here = step.node
        visited.append(here)
        assert len(visited) <= 16


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
    assume(me != "cn" or destination != "cn")
    step = route.next_step(me, ids.parent(me), destination)
    adjacent = {Way.HERE: me, Way.UP: ids.parent(me)}
    assert step.node == adjacent.get(step.way, step.node)
    assert step.way is not Way.DOWN or ids.parent(step.node) == me


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
FROM_BELOW = Opening(bytes(16), CHILD, "x.g.cn", 8, 10_000, ())
FROM_ABOVE = Opening(bytes(16), "x.g.cn", CHILD, 6, 9_980, ("g.cn", PARENT))


def admit(opening, previous, **changes):
    route.admit(dataclasses.replace(opening, **changes), previous, ME, PARENT)


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
    "down what has to go up": (FROM_ABOVE, PARENT, {"destination": "x.g.cn"}, LOOP),
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


@given(st.integers(1, MAX_HOPS), st.integers(1, MAX_DEADLINE_MS))
def test_deadline_and_hop_limit_shrink_at_every_hop_until_somebody_refuses(hop_limit, deadline_ms):
    me = "n." * (MAX_HOPS + 1) + "cn"  # a deep tree, climbed from its lowest leaf
    opening = Opening(bytes(16), me, "us", hop_limit, deadline_ms, ())
    while opening.hop_limit and opening.deadline_ms > HOP_COST_MS:
        previous, me = me, ids.parent(me)
        route.admit(opening, previous, me, ids.parent(me))
        after = route.passed(opening, me)
        assert after == dataclasses.replace(
            opening, hop_limit=opening.hop_limit - 1, deadline_ms=opening.deadline_ms - HOP_COST_MS,
            visited=(*opening.visited, me),
        )  # fmt: skip
        opening = after
    previous, me = me, ids.parent(me)
    with pytest.raises(TdnError) as caught:
        route.admit(opening, previous, me, ids.parent(me))
    assert caught.value.reason is (Reason.DEADLINE if opening.hop_limit else Reason.ROUTE_LOOP)
