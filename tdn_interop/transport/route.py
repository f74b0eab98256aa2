"""Where a tunnel goes next: longest suffix on hierarchical names. Pure.

Names are read right to left, so a node needs to know only itself, the nodes directly below it and
its parent: O(depth) relays, O(children) state.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import NoReturn

from tdn_interop import ids
from tdn_interop.errors import Reason, Refused, guard
from tdn_interop.transport.records_wire import Opening

# What one relay needs of the remaining time for itself, in milliseconds.
HOP_COST_MS = 10
# Nobody may keep a relay waiting for longer; the largest `timeouts.dial_s` of the configuration.
MAX_DEADLINE_MS = 300_000


class Way(enum.Enum):
    """The direction of the next step."""

    HERE = "here"
    DOWN = "down"
    UP = "up"


@dataclass(frozen=True, slots=True)
class Step:
    """The next step; `node` is the adjacent node it leads to (this node itself for HERE)."""

    way: Way
    node: str


def no_route(destination: str) -> NoReturn:
    """One answer for nodes that are unknown, forbidden or away, wherever it is given: the asker learns no more."""
    guard("TDN-T-RTE-03").refuse(Reason.NO_ROUTE, f"there is no way to {destination}", Refused)


def next_step(me: str, parent: str, destination: str) -> Step:
    """The step from `me` towards `destination`. Errors: NO_ROUTE at a top that is not above it."""
    if destination == me:
        return Step(Way.HERE, me)
    if ids.is_below(destination, me):
        labels = destination[: -len(me) - 1].rsplit(".", 1)
        return Step(Way.DOWN, f"{labels[-1]}.{me}")
    if not parent:
        no_route(destination)
    return Step(Way.UP, parent)


def admit(opening: Opening, previous: str, me: str, parent: str) -> None:
    """Refuse an opening that cannot be right. `previous` is the adjacent node by its certificate.

    Errors: IDENTITY_MISMATCH, POLICY_DENIED, ROUTE_LOOP, DEADLINE, INVALID_REQUEST.
    """
    claimed = opening.visited[-1] if opening.visited else opening.source
    guard("TDN-T-IDN-02").check(
        claimed == previous and _from_there(opening, previous, me, parent),
        Reason.IDENTITY_MISMATCH,
        f"{previous} opens a tunnel from {opening.source} in the name of {claimed}",
        Refused,
    )
    adjacent = previous == parent or ids.parent(previous) == me
    guard("TDN-T-RTE-05").check(
        adjacent, Reason.POLICY_DENIED, f"{previous} is not adjacent to {me}", Refused
    )
    circle = me in opening.visited or len(set(opening.visited)) != len(opening.visited)
    guard("TDN-T-RTE-03").check(not circle, Reason.ROUTE_LOOP, f"the tunnel has passed {me} before", Refused)
    guard("TDN-T-RTE-03").check(opening.hop_limit > 0, Reason.ROUTE_LOOP, "the hop limit is used up", Refused)
    back = previous == parent and not (opening.destination == me or ids.is_below(opening.destination, me))
    guard("TDN-T-RTE-03").check(
        not back, Reason.ROUTE_LOOP, f"{parent} sends down what has to go up", Refused
    )
    guard("TDN-T-DDL-03").check(
        opening.deadline_ms <= MAX_DEADLINE_MS,
        Reason.INVALID_REQUEST,
        f"a tunnel may take at most {MAX_DEADLINE_MS // 1000} s to open",
    )
    guard("TDN-T-DDL-01").check(
        opening.deadline_ms > HOP_COST_MS, Reason.DEADLINE, "no time is left", Refused
    )


def _from_there(opening: Opening, previous: str, me: str, parent: str) -> bool:
    """True when the source is where `previous` is.

    The parent speaks for everybody but us and those below us, a node below for itself and, as a relay, for those
    below it.
    """
    source = opening.source
    if previous == parent:
        return source != me and not ids.is_below(source, me)
    return source == previous if not opening.visited else ids.is_below(source, previous)


def passed(opening: Opening, me: str) -> Opening:
    """The opening as this relay hands it on: one hop less, less time, itself among the visited."""
    return replace(
        opening, hop_limit=opening.hop_limit - 1, deadline_ms=opening.deadline_ms - HOP_COST_MS,
        visited=(*opening.visited, me),
    )  # fmt: skip


def hops(me: str, destination: str) -> tuple[str, ...]:
    """The relays between `me` and `destination`, by their names alone: up to the common ancestor, then down."""
    up = [me]
    while up[-1] and not (destination == up[-1] or ids.is_below(destination, up[-1])):
        up.append(ids.parent(up[-1]))
    if not up[-1]:
        no_route(destination)
    down: list[str] = []
    node = destination
    while node != up[-1]:
        down.append(node)
        node = ids.parent(node)
    return tuple(n for n in (*up, *reversed(down)) if n not in {me, destination})
