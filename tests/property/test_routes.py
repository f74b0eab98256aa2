"""Adverts over random meshes whose links fail and return: every node finds its way, and nobody runs in circles.

Nodes are real (tables, signatures, conversations), the network between them is not: messages wait in queues and
are delivered in an order that hypothesis chooses.
"""

import contextlib
import functools
import itertools

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from tdn_interop import ids
from tdn_interop.errors import Reason, TdnError
from tdn_interop.identity import Identity, Signed
from tdn_interop.transport import records_wire, route
from tdn_interop.transport.neighbours import Neighbours
from tdn_interop.transport.records_wire import NodeRecord, Opening
from tdn_interop.transport.relay import HOP_LIMIT
from tdn_interop.transport.route import Table

ROLES = {
    "t": "top", "u": "top", "g.t": "hub", "h.t": "hub", "k.u": "hub", "a.g.t": "child", "b.g.t": "child",
    "c.h.t": "child", "d.k.u": "child",
}  # fmt: skip
RELAYS = [node for node, role in ROLES.items() if role != "child"]
UP = {frozenset((node, ids.parent(node))) for node in ROLES if ids.parent(node)}
MORE = sorted(
    sorted(edge) for edge in
     {frozenset((a, b)) for a in ROLES for b in RELAYS if a != b} - UP
)  # fmt: skip


@functools.cache
def key(node):
    return Identity(node, Ed25519PrivateKey.generate())


def record(node):
    """Whether a top signs records is not in question here."""
    statement = records_wire.encode_record(
        NodeRecord(node, ROLES[node], key(node).public_key, ids.parent(node), 1)
    )
    return Signed(statement, node, bytes(64))


class World:
    """Nodes, the links that stand, and what is on its way."""

    def __init__(self, edges, choose):
        self.edges = [tuple(edge) for edge in edges]
        self.choose = choose
        self.now = 1_000_000
        self.refused = []
        self.nodes = {node: self.make(node) for node in ROLES}
        self.links = {}
        for edge in self.edges:
            self.connect(edge)

    def make(self, node):
        beside = {other for edge in self.edges if node in edge for other in edge if other != node}
        return Neighbours(
            key(node), record(node), Table(node, ids.parent(node), beside), relays=ROLES[node] != "child",
            record_of=lambda signed: records_wire.decode_record(signed.statement),
            on_refusal=self.refused.append, clock=lambda: self.now,
        )  # fmt: skip

    def connect(self, edge):
        stack = contextlib.ExitStack()
        ends = {
            (node, other): [stack.enter_context(self.nodes[node].conversation(other)), []]
            for node, other in (edge, edge[::-1])
        }
        for conversation, _ in ends.values():
            conversation.changed.set()
        self.links[edge] = (stack, ends)
        self.parents(edge, linked=True)

    def cut(self, edge):
        self.links.pop(edge)[0].close()
        self.parents(edge, linked=False)

    def parents(self, edge, *, linked):
        for node, other in (edge, edge[::-1]):
            if ids.parent(node) == other:
                self.nodes[node].parent_linked(linked)

    def settle(self):
        """Deliver until nobody has anything to say."""
        for _ in range(20_000):
            waiting = [end for _, ends in self.links.values() for end in ends.items() if self.pending(*end)]
            if not waiting:
                return
            (node, other), (_, queue) = waiting[self.choose(len(waiting))]
            [(_, ends)] = [link for edge, link in self.links.items() if {node, other} == set(edge)]
            self.nodes[other].hear(ends[other, node][0], queue.pop(0))
        raise AssertionError("they talk for ever")

    def pending(self, end, state):
        conversation, queue = state
        if conversation.changed.is_set():
            conversation.changed.clear()
            queue.extend(self.nodes[end[0]].news(conversation))
        return queue

    def linked(self, node, other):
        return (node, other) in self.links or (other, node) in self.links

    def walk(self, source, destination):
        """The nodes that an opening passes when every node takes its first choice."""
        opening, here, seen = Opening(bytes(16), source, destination, HOP_LIMIT, 10_000, ()), source, [source]
        while here != destination:
            table = self.nodes[here].table
            if here != source:
                route.admit(opening, seen[-2], table)
                opening = route.passed(opening, here)
            before = here
            here = route.choose(opening, table, lambda node, here=here: self.linked(here, node))[0][0]
            if not self.linked(before, here):
                route.no_route(destination)
            seen.append(here)
        return seen

    def reach(self, source):
        """Nodes that are connected with `source` over relays."""
        found, edge = {source}, [source]
        while edge:
            here = edge.pop()
            if here != source and ROLES[here] == "child":
                continue
            fresh = {node for node in ROLES if self.linked(here, node)} - found
            found |= fresh
            edge += fresh
        return found

    def check(self):
        for source, destination in itertools.permutations(ROLES, 2):
            reason, path = self.outcome(source, destination)
            assert (reason is None) == (destination in self.reach(source)), (source, destination, reason)
            assert reason in {None, Reason.NO_ROUTE, Reason.ROUTE_LOOP}
            assert len(set(path)) == len(path) <= HOP_LIMIT + 2
            assert all(self.linked(*step) for step in itertools.pairwise(path))
            assert all(ROLES[node] != "child" for node in path[1:-1])
        assert self.refused == []

    def outcome(self, source, destination):
        try:
            return None, self.walk(source, destination)
        except TdnError as error:
            return error.reason, ()


@settings(max_examples=50, deadline=None)
@given(st.sets(st.sampled_from([tuple(e) for e in MORE]), max_size=6), st.data())
def test_every_pair_that_is_connected_has_a_way_whatever_fails(more, data):
    chance = data.draw(st.randoms(use_true_random=False))
    world = World([tuple(sorted(e)) for e in UP] + sorted(more), chance.randrange)
    world.settle()
    world.check()
    down = chance.sample(world.edges, chance.randrange(len(world.edges)))
    for edge in down:
        world.cut(edge)
    world.settle()
    world.check()
    world.now += 25_000  # everything is told anew
    for node in world.nodes.values():
        node.tick()
    for edge in down[::2]:
        world.connect(edge)
    world.settle()
    world.check()
    world.now += 70_000  # nothing is told anew: what was heard has ended
    for node in world.nodes.values():
        node.table.expire(world.now)
        assert node.table.best() == {}
