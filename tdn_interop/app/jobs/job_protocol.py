"""The words of the job protocol, and the rules that its two machines share.

The coordinator (`job.py`) and each party (`party.py`) speak `tdn.app.v1.JobMessage`; the coordinator is
a party itself and sends to itself like to the others. Signatures are made and verified by the driver:
here they are opaque. Rules for every message, in this order; a refused one changes nothing:

1. The sender must have a say in this job.
2. A repetition of a message that was accepted has no effect. What belongs to a run is said once per epoch.
3. A message of an older epoch is STALE, one of an epoch that has not started is out of place.
4. Other content under the same name from the same sender is a STATE_CONFLICT.
5. The table must have an entry; if not, STATE_CONFLICT.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeVar, cast

from tdn_interop.algo.machine import Effect, Event, LocalEvent, Machine, Table
from tdn_interop.app.evidence.statements import Outcome
from tdn_interop.app.jobs.flow import Timeouts
from tdn_interop.errors import LocalProtocolError, PeerProtocolError, Reason, guard
from tdn_interop.identity import Signed
from tdn_interop.transport.frame import Failure

MessageT = TypeVar("MessageT", bound="Message")

_order = guard("TDN-F-TSK-01")
_repeats = guard("TDN-F-TSK-03")
_epochs = guard("TDN-F-TSK-08")


@dataclass(frozen=True, slots=True)
class Message(Event):
    """One job message. `sender` comes from the channel; `epoch` is 0 before the first start."""

    sender: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Propose(Message):
    """To the parties: the flow to agree on, canonical JSON."""

    flow: bytes


@dataclass(frozen=True, slots=True)
class Stored(Message):
    """From a party: the flow is stored, a decision follows."""


@dataclass(frozen=True, slots=True)
class Approval(Message):
    """From a party: a decision for the flow, with the signed Offer and the party's NodeRecord."""

    offer: Signed
    record: Signed


@dataclass(frozen=True, slots=True)
class Refusal(Message):
    """From a party: a decision against the flow."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Admit(Message):
    """To the parties: the serialized Agreement, and the NodeRecords of all parties."""

    agreement: bytes
    records: tuple[Signed, ...]


@dataclass(frozen=True, slots=True)
class Admitted(Message):
    """From a party: the signed Consent to the agreement."""

    consent: Signed


@dataclass(frozen=True, slots=True)
class Prepare(Message):
    """To the parties: load the inputs; a run of this epoch, if there was one, is over."""


@dataclass(frozen=True, slots=True)
class Prepared(Message):
    """From a party: the inputs are loaded."""


@dataclass(frozen=True, slots=True)
class Start(Message):
    """To the parties: run under this agreement; opens the epoch of the message."""

    agreement_sha256: bytes


@dataclass(frozen=True, slots=True)
class Computed(Message):
    """From a party: its part is computed, over at most `hops` relays; a receiver commits to its result."""

    hops: int
    commitment: bytes = b""


@dataclass(frozen=True, slots=True)
class Interrupted(Message):
    """From a party: its run of this epoch was interrupted; it can run again."""


@dataclass(frozen=True, slots=True)
class Release(Message):
    """To the parties: deliver, and state the outcome."""


@dataclass(frozen=True, slots=True)
class Stated(Message):
    """From a party: its signed Statement, the outcome in it, and the party's NodeRecord."""

    statement: Signed
    outcome: Outcome
    record: Signed | None = None


@dataclass(frozen=True, slots=True)
class Conclude(Message):
    """To the parties: the signed Verdict, the outcome in it, and the NodeRecords of who made statements."""

    verdict: Signed
    outcome: Outcome
    records: tuple[Signed, ...] = ()


@dataclass(frozen=True, slots=True)
class Attested(Message):
    """From a party: the serialized Attestation that its events are in the logs."""

    attestation: bytes


@dataclass(frozen=True, slots=True)
class Fail(Message):
    """From a party: it cannot go on."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Cancel(Message):
    """From a party: it wants the job cancelled."""

    comment: str


@dataclass(frozen=True, slots=True)
class Abort(Message):
    """To the parties: stop, and state this outcome unless the result is delivered already."""

    outcome: Outcome
    failure: Failure


@dataclass(frozen=True, slots=True)
class Send(Effect):
    """Send a job message to a node, in order; `to` may be this node."""

    to: str
    message: Message


@dataclass(frozen=True, slots=True)
class WakeAfter(Effect):
    """Feed `DeadlinePassed(stage, epoch)` in so many seconds."""

    stage: enum.Enum
    seconds: int
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Racing(LocalEvent):
    """What may come too late by no fault of ours, such as the end of work that was stopped meanwhile.

    Without an entry in the table it is ignored once the machine is stopping or has ended.
    """


@dataclass(frozen=True, slots=True)
class DeadlinePassed(Racing):
    """The time of a stage has passed; ignored if the machine has left the stage, which it entered in `epoch`."""

    stage: enum.Enum
    epoch: int = 0


# A run may be repeated under a new epoch, and these are said in each.
PER_EPOCH = (Prepare, Prepared, Start, Computed, Interrupted)


class JobMachine(Machine):
    """The base of the two machines: it enforces the five rules and asks for the timer of each stage.

    `taken` counts the events that were neither refused nor ignored: those make the machine what it is.
    """

    requirement = "TDN-F-TSK-01"
    stopped: ClassVar[frozenset[enum.Enum]]  # states in which a Racing event may come too late
    limits: ClassVar[Mapping[enum.Enum, str]]  # stage -> the field of Timeouts that limits it
    unfenced: ClassVar[tuple[type[Message], ...]] = ()  # accepted from an older epoch too
    opening: ClassVar[tuple[type[Message], ...]] = ()  # may bring a newer epoch

    def __init__(self, node: str, timeouts: Timeouts) -> None:
        super().__init__()
        self.node = node
        self.epoch = 0
        self.taken = 0
        self._timeouts = timeouts
        self._accepted: dict[tuple[str, type[Message], int], Message] = {}

    def vet_sender(self, message: Message) -> None:
        """Refuse a message whose sender has no say."""

    def vet_content(self, message: Message) -> None:
        """Refuse a message that the table allows and that contradicts what is known."""

    def comes_too_late(self, event: Event) -> bool:
        """True for what happened to a stage, or to work, that is over: it is ignored."""
        if isinstance(event, DeadlinePassed) and not self.lasts(event):
            return True
        late = isinstance(event, Racing) and self.state in self.stopped
        return late and (self.state, type(event)) not in self.table

    def lasts(self, event: DeadlinePassed) -> bool:
        """True when the machine is still in the stage whose time has passed."""
        return event.stage is self.state

    def step(self, event: Event) -> list[Effect]:
        """Feed one event. Errors: STATE_CONFLICT, STALE and those of the vets; a refused event changes nothing."""
        if isinstance(event, Message):
            self.vet_sender(event)
            if self._accepted.get(_key(event)) == event:
                return []
            self._vet_epoch(event)
            self._vet_repetition(event)
        elif self.comes_too_late(event):
            return []
        self._vet_state(event)
        if isinstance(event, Message):
            self.vet_content(event)
            self._accepted[_key(event)] = event
            self.epoch = max(self.epoch, event.epoch)
        before = self.state
        effects = super().step(event)
        self.taken += 1
        if self.state is not before and self.is_timed():
            effects.append(self.timer())
        return effects

    def is_timed(self) -> bool:
        """True when a timer starts with the stage that the machine has just entered."""
        return self.state in self.limits

    def timer(self) -> WakeAfter:
        """The wish to be woken when the time of the present stage is over."""
        return WakeAfter(self.state, getattr(self._timeouts, self.limits[self.state]), self.epoch)

    def found(self, epoch: int, state: enum.Enum | None) -> None:
        """Go on from what a record says, for want of a journal."""
        self.epoch, self.state = epoch, state or self.state

    def _said(self, sender: str, kind: type[MessageT]) -> MessageT | None:
        """What `sender` has said of this kind, in this epoch if it is said in each."""
        found = self._accepted.get((sender, kind, self.epoch if issubclass(kind, PER_EPOCH) else 0))
        return cast("MessageT | None", found)

    def _vet_epoch(self, message: Message) -> None:
        told = f"{_name(message)} of epoch {message.epoch}, now is {self.epoch}"
        fresh = message.epoch >= self.epoch or isinstance(message, self.unfenced)
        _epochs.check(fresh, Reason.STALE, told)
        open_ = message.epoch <= self.epoch or isinstance(message, self.opening)
        _epochs.check(open_, Reason.STATE_CONFLICT, told)

    def _vet_repetition(self, message: Message) -> None:
        known = _key(message) in self._accepted
        told = f"{message.sender} sent {_name(message)} before, with other content"
        _repeats.check(not known, Reason.STATE_CONFLICT, told)

    def _vet_state(self, event: Event) -> None:
        if (self.state, type(event)) not in self.table:
            kind = PeerProtocolError if isinstance(event, Message) else LocalProtocolError
            told = f"{_name(event)} is not possible in state {self.state.name}"
            _order.refuse(Reason.STATE_CONFLICT, told, kind)


def describe(table: Table) -> str:
    """A Markdown table of the entries: state, event, what is done, next state (— stays, or as told)."""
    lines = ["| state | event | does | next |", "|---|---|---|---|"]
    for (state, event), (handler, target) in table.items():
        does = (handler.__doc__ or "").strip() if handler else ""
        lines.append(f"| {state.name} | {event.__name__} | {does} | {target.name if target else '—'} |")
    return "\n".join(lines) + "\n"


def _key(message: Message) -> tuple[str, type[Message], int]:
    return message.sender, type(message), message.epoch if isinstance(message, PER_EPOCH) else 0


def _name(event: Event) -> str:
    return type(event).__name__
