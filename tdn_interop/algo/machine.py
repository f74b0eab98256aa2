"""The base of every protocol machine: a table, and nothing it was not handed.

A machine has no clock, no socket and no randomness of its own. It is fed an event and gives back
effects; the driver performs them. A missing entry of the table is a protocol error and the end.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from tdn_interop.errors import LocalProtocolError, PeerProtocolError, Reason, TdnError, guard


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened; named in the past tense. `Local` events come from our own side."""


@dataclass(frozen=True, slots=True)
class LocalEvent(Event):
    """An event our own side caused: an illegal one is our fault."""


@dataclass(frozen=True, slots=True)
class Effect:
    """Something to be done by the driver; named in the imperative."""


MachineT = TypeVar("MachineT", bound="Machine")
# Any: each machine narrows events and states by itself; the sweep test feeds every combination.
Handler = Callable[[Any, Any], Iterable[Effect] | None]
Table = dict[tuple[enum.Enum, type[Event]], tuple[Handler | None, enum.Enum | None]]


class Machine:
    """Drive `table`: (state, event type) -> (handler, next state); next state None keeps the state.

    A handler may raise a TdnError: the machine is then in `failed` and stays there. `terminal`
    states accept nothing.
    """

    table: ClassVar[Table]
    initial: ClassVar[enum.Enum]
    failed: ClassVar[enum.Enum]
    requirement: ClassVar[str]  # the clause that orders this machine's messages

    def __init__(self) -> None:
        self.state: enum.Enum = self.initial

    def step(self, event: Event) -> list[Effect]:
        """Feed one event. Errors: UNEXPECTED_MESSAGE (peer) or STATE_CONFLICT (local), and the handlers' own."""
        row = self.table.get((self.state, type(event)))
        if row is None:
            here, local = self.state.name, isinstance(event, LocalEvent)
            if not local:
                self.state = (
                    self.failed
                )  # a peer that breaks the order ends the run; our own mistake does not
            guard(self.requirement).refuse(
                Reason.STATE_CONFLICT if local else Reason.UNEXPECTED_MESSAGE,
                f"{type(event).__name__} is not allowed in state {here}",
                LocalProtocolError if local else PeerProtocolError,
            )
        handler, target = row
        try:
            effects = list(handler(self, event) or ()) if handler else []
        except TdnError:
            self.state = self.failed
            raise
        if target is not None:
            self.state = target
        return effects
