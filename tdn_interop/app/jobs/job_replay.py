"""From a journal back to a job: which effects of its machines are still to be done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tdn_interop.algo.machine import Effect, Event
from tdn_interop.app.jobs import job_events as steps
from tdn_interop.app.jobs import job_protocol as words
from tdn_interop.app.jobs import journal
from tdn_interop.app.jobs.job_protocol import JobMachine
from tdn_interop.app.store.jobs import JobEventRow, JobPartyRow, JobRow
from tdn_interop.errors import TdnError
from tdn_interop.transport.trust import now_ms

# Time that a stage has at least after a restart: what others have said meanwhile comes first.
GRACE_S = 5.0
# event -> the effect that it answers
_ANSWERED: dict[type[Event], type[Effect]] = {
    steps.Agreed: steps.Negotiate,
    steps.NotAgreed: steps.Negotiate,
    steps.VerdictSigned: steps.SignVerdict,
    steps.Approved: steps.Decide,
    steps.Declined: steps.Decide,
    steps.AgreementAccepted: steps.CheckAgreement,
    steps.InputLoaded: steps.LoadInput,
    steps.TaskDone: steps.RunTask,
    steps.RunInterrupted: steps.RunTask,
    steps.Delivered: steps.DeliverResult,
    steps.StatementSigned: steps.SignStatement,
    steps.VerdictAccepted: steps.AcceptVerdict,
}
# effect -> what it puts an end to
_ENDS: dict[type[Effect], tuple[type[Effect], ...]] = {
    steps.StopRun: (steps.RunTask,),
    steps.StopTask: (
        steps.Decide, steps.CheckAgreement, steps.LoadInput, steps.RunTask, steps.DeliverResult,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Past:
    """What an earlier process has written of a job. `verdict_index`: of the event about the verdict in our log."""

    row: JobRow
    events: tuple[JobEventRow, ...]
    parties: tuple[JobPartyRow, ...]
    verdict_index: int | None


@dataclass(frozen=True, slots=True)
class Asked:
    """An effect, of which machine, and when it was asked for (milliseconds since the epoch)."""

    machine: JobMachine
    effect: Effect
    at_ms: int

    @property
    def remaining_s(self) -> float:
        """Of a timer: how long it still runs."""
        assert isinstance(self.effect, words.WakeAfter)  # noqa: S101  nothing else has a time
        return max(self.at_ms / 1000 + self.effect.seconds - now_ms() / 1000, GRACE_S)


def replay(
    past: Past, machines: dict[str, JobMachine], recall: Callable[[Event, Effect | None], None]
) -> list[Asked]:
    """Feed the journal to fresh machines; what is left to do, in order.

    `recall` hears of each event, with the effect that it answers. Messages need not be sent again: they were
    given to the post in the transaction that wrote the event; no run outlives its process. Errors: JOURNAL_BROKEN.
    """
    left: list[Asked] = []
    for index, row in enumerate(past.events):
        entry = journal.decode(row)
        machine = machines.get(entry.machine) or journal.broken(row.job_id, index)
        before = machine.taken
        try:
            effects = machine.step(entry.event)
        except TdnError:
            effects = []
        if row.idx != index or machine.taken == before:  # it was taken once, or it was not like this
            journal.broken(row.job_id, index)
        recall(entry.event, _take_answered(left, entry.event))
        for effect in effects:
            _ask(left, Asked(machine, effect, entry.at_ms))
    return [asked for asked in left if not _has_passed(asked)]


def _take_answered(left: list[Asked], event: Event) -> Effect | None:
    wanted = _ANSWERED.get(type(event))
    for index, asked in enumerate(left):
        if type(asked.effect) is wanted:
            return left.pop(index).effect
    return None


def _ask(left: list[Asked], asked: Asked) -> None:
    ended = _ENDS.get(type(asked.effect), ())
    left[:] = [other for other in left if not isinstance(other.effect, ended)]
    if not isinstance(asked.effect, words.Send | steps.StopRun):
        left.append(asked)


def _has_passed(asked: Asked) -> bool:
    """A timer of a stage that the machine has left."""
    effect = asked.effect
    return isinstance(effect, words.WakeAfter) and not asked.machine.lasts(
        words.DeadlinePassed(effect.stage, effect.epoch)
    )
