"""Where a tunnel goes next: adverts that were heard, longest name first, and names alone as the last word. Pure.

Names are read right to left, so even a node that has heard nothing knows a step: to the node directly
below that leads to the destination, or to its parent. Adverts add the ways besides the hierarchy and take
away those that are broken. O(depth) look-ups, O(children + hubs + tops) state.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NoReturn

from tdn_interop import ids
from tdn_interop.errors import Reason, Refused, Unavailable, guard
from tdn_interop.transport.adverts import Advert
from tdn_interop.transport.records_wire import Opening

# What one relay needs of the remaining time for itself, in milliseconds.
HOP_COST_MS = 10
# Nobody may keep a relay waiting for longer; the largest `timeouts.dial_s` of the configuration.
MAX_DEADLINE_MS = 300_000
# Adverts that one neighbour may tell; each takes about 3 KiB.
MAX_HEARD = 4096

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Teller:
    """One conversation with a neighbour; what was heard in it counts until it ends."""

    node: str
    number: int


@dataclass(frozen=True, slots=True)
class _Floor:
    """The newest that a teller has said of a prefix: nothing older counts until that has expired."""

    sequence: int
    expires_at_ms: int


class Table:
    """What one node knows of ways: its place in the hierarchy, its neighbours, and the adverts it has heard."""

    def __init__(self, me: str, parent: str, neighbours: Iterable[str] = ()) -> None:
        self.me = me
        self.parent = parent
        self._neighbours = frozenset(neighbours)
        self._heard: dict[str, dict[Teller, Advert]] = {}
        self._floors: dict[Teller, dict[str, _Floor]] = {}
        self._numbers = 0

    # -- what is heard ---------------------------------------------------------------------------

    def join(self, node: str) -> Teller:
        """A conversation with `node` begins."""
        self._numbers += 1
        teller = Teller(node, self._numbers)
        self._floors[teller] = {}
        return teller

    def leave(self, teller: Teller) -> None:
        """It has ended, and with it what was heard in it."""
        for prefix in self._floors.pop(teller, {}):
            self.withdraw(teller, prefix)

    def learn(self, teller: Teller, advert: Advert) -> None:
        """Keep a checked advert in place of an older one of this teller.

        Errors: ROUTE_INVALID when the teller has told a newer one before, RESOURCE_EXHAUSTED when it tells too many.
        """
        floors = self._floors[teller]
        floor = floors.get(advert.prefix)
        guard("TDN-T-RTE-09").check(
            floor is None or advert.sequence >= floor.sequence,
            Reason.ROUTE_INVALID,
            f"{teller.node} tells an old advert of {advert.prefix} again",
        )
        guard("TDN-T-LIM-03").check(
            floor is not None or len(floors) < MAX_HEARD,
            Reason.RESOURCE_EXHAUSTED,
            f"{teller.node} tells more than {MAX_HEARD} adverts",
            Unavailable,
        )
        floors[advert.prefix] = _Floor(advert.sequence, advert.expires_at_ms)
        self._heard.setdefault(advert.prefix, {})[teller] = advert

    def withdraw(self, teller: Teller, prefix: str) -> None:
        """What this teller said of `prefix` does not count any more."""
        heard = self._heard.get(prefix, {})
        heard.pop(teller, None)
        if not heard:
            self._heard.pop(prefix, None)

    def expire(self, now_ms: int) -> bool:
        """Drop what has expired; True when that changes anything."""
        gone = [(t, advert) for t, advert in self._each() if advert.expires_at_ms <= now_ms]
        for teller, advert in gone:
            self.withdraw(teller, advert.prefix)
        for floors in self._floors.values():
            for prefix in [p for p, floor in floors.items() if floor.expires_at_ms <= now_ms]:
                del floors[prefix]
        return bool(gone)

    def best(self, apart_from: str = "") -> dict[str, Advert]:
        """The best advert for each prefix whose path does not pass `apart_from`: what that neighbour is told."""
        found: dict[str, Advert] = {}
        for _, advert in self._each():
            known = found.get(advert.prefix)
            if apart_from not in advert.path and (known is None or advert.preference < known.preference):
                found[advert.prefix] = advert
        return found

    def every(self) -> list[Advert]:
        """All adverts, by prefix, the best one of each prefix first."""
        return sorted((advert for _, advert in self._each()), key=lambda a: (a.prefix, a.preference))

    def _each(self) -> Iterator[tuple[Teller, Advert]]:
        return ((t, advert) for heard in self._heard.values() for t, advert in heard.items())

    # -- what follows ----------------------------------------------------------------------------

    def ways(self, destination: str, passed: Collection[str] = ()) -> list[Path]:
        """Paths towards `destination`, best first, one for each adjacent node; none passes a node of `passed`.

        1. The destination itself when it is adjacent.
        2. Adverts that cover it, by `Advert.preference`; for what is below us nobody above us knows better.
        3. The step by names.

        A path begins with the adjacent node and ends at the destination or at a node that is above it or leads
        to it by names.
        """
        paths: list[Path] = [(destination,)] if self.adjacent(destination) else []
        ours = ids.is_below(destination, self.me)
        covering = [
            advert
            for prefix in _and_above(destination)
            for advert in self._heard.get(prefix, {}).values()
            if advert.covers(destination) and not (ours and ids.is_below(self.me, prefix))
        ]
        paths += [advert.path for advert in sorted(covering, key=lambda advert: advert.preference)]
        if step := next_step(self.me, self.parent, destination):
            paths.append((step,))
        first: dict[str, Path] = {}
        for path in paths:
            if not any(node in passed for node in path):
                first.setdefault(path[0], path)
        return list(first.values())

    def adjacent(self, node: str) -> bool:
        """True for the parent, the nodes directly below, and the neighbours of the configuration."""
        return node == self.parent or ids.parent(node) == self.me or node in self._neighbours

    def speaks(self, node: str, source: str) -> bool:
        """True when the adjacent `node` may hand on what comes from `source`, as a relay.

        Whoever is below us comes from the node that is above it, or from one that has told us a way there. All
        others come from the parent and from other neighbours as they like, since a way may be newer than what we
        have heard; from nodes below us only when those have told a way there. Nobody hands on what is ours.
        """
        told = [
            advert.prefix
            for prefix in _and_above(source)
            for teller, advert in self._heard.get(prefix, {}).items()
            if teller.node == node and advert.covers(source)
        ]
        if ids.is_below(source, self.me):
            above = ids.is_below(source, node) and ids.is_below(node, self.me)
            return above or any(ids.is_below(prefix, self.me) for prefix in told)
        return source != self.me and (bool(told) or ids.parent(node) != self.me)


def _and_above(node: str) -> Iterator[str]:
    while node:
        yield node
        node = ids.parent(node)


def no_route(destination: str) -> NoReturn:
    """One answer for nodes that are unknown, forbidden or away, wherever it is given: the asker learns no more."""
    guard("TDN-T-RTE-03").refuse(Reason.NO_ROUTE, f"there is no way to {destination}", Refused)


def next_step(me: str, parent: str, destination: str) -> str:
    """The adjacent node towards `destination` by names alone; empty at a top that is not above it."""
    if ids.is_below(destination, me):
        labels = destination[: -len(me) - 1].rsplit(".", 1)
        return f"{labels[-1]}.{me}"
    return parent


def admit(opening: Opening, previous: str, table: Table) -> None:
    """Refuse an opening that cannot be right. `previous` is the neighbour that it comes from, by its certificate.

    Errors: IDENTITY_MISMATCH, POLICY_DENIED, ROUTE_LOOP, DEADLINE, INVALID_REQUEST.
    """
    me, source = table.me, opening.source
    claimed = opening.visited[-1] if opening.visited else source
    speaks = claimed == previous and (not opening.visited or table.speaks(previous, source))
    guard("TDN-T-IDN-02").check(
        speaks, Reason.IDENTITY_MISMATCH, f"{previous} opens a tunnel from {source} in the name of {claimed}", Refused
    )  # fmt: skip
    guard("TDN-T-RTE-05").check(
        table.adjacent(previous), Reason.POLICY_DENIED, f"{previous} is not adjacent to {me}", Refused
    )
    circle = me in opening.visited or len(set(opening.visited)) != len(opening.visited)
    guard("TDN-T-RTE-03").check(not circle, Reason.ROUTE_LOOP, f"the tunnel has passed {me} before", Refused)
    guard("TDN-T-RTE-03").check(opening.hop_limit > 0, Reason.ROUTE_LOOP, "the hop limit is used up", Refused)
    guard("TDN-T-DDL-03").check(
        opening.deadline_ms <= MAX_DEADLINE_MS,
        Reason.INVALID_REQUEST,
        f"a tunnel may take at most {MAX_DEADLINE_MS // 1000} s to open",
    )
    guard("TDN-T-DDL-01").check(
        opening.deadline_ms > HOP_COST_MS, Reason.DEADLINE, "no time is left", Refused
    )


def choose(opening: Opening, table: Table, is_linked: Callable[[str], bool]) -> list[Path]:
    """The ways of an opening over neighbours that are linked now, best first; without one, those over all others.

    Errors: NO_ROUTE, ROUTE_LOOP when every way leads back.
    """
    paths = table.ways(opening.destination, {opening.source, *opening.visited} - {table.me})
    guard("TDN-T-RTE-03").check(
        paths or not table.ways(opening.destination),
        Reason.ROUTE_LOOP,
        f"every way to {opening.destination} leads back",
        Refused,
    )
    if not paths:
        no_route(opening.destination)
    return [path for path in paths if is_linked(path[0])] or paths


def passed(opening: Opening, me: str) -> Opening:
    """The opening as this relay hands it on: one hop less, less time, itself among the visited."""
    return replace(
        opening, hop_limit=opening.hop_limit - 1, deadline_ms=opening.deadline_ms - HOP_COST_MS,
        visited=(*opening.visited, me),
    )  # fmt: skip


def relays(path: Path, destination: str) -> Path:
    """The relays on a path of `Table.ways`, completed by names."""
    return path[:-1] if path[-1] == destination else (*path, *hops(path[-1], destination))


def hops(me: str, destination: str) -> Path:
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
