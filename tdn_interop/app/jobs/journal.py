"""The journal of a job: every event that its machines have taken, as rows and back.

The machines are pure, so that the same events make the same states again after a restart. Messages are kept as
they travel; local events as JSON of their fields. What was written by us is not trusted more than what a
peer sends: reading is validation.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, NoReturn

from tdn_interop.algo.machine import Event, LocalEvent
from tdn_interop.app.evidence.statements import Outcome
from tdn_interop.app.jobs import job_events as steps
from tdn_interop.app.jobs import job_protocol as words
from tdn_interop.app.jobs import job_wire
from tdn_interop.app.jobs.job import JobState
from tdn_interop.app.jobs.party import PartyState
from tdn_interop.app.store.jobs import JobEventRow
from tdn_interop.errors import LocalProtocolError, Reason, TdnError, guard
from tdn_interop.identity import Signed
from tdn_interop.transport.frame import Failure
from tdn_interop.transport.records_wire import decode_signed, encode_signed

_read_back = guard("TDN-F-RCV-01")
MESSAGE = "Message"
JOB, PARTY = "job", "party"
_STAGES: dict[str, type[enum.Enum]] = {JOB: JobState, PARTY: PartyState}
_LOCAL: dict[str, type[LocalEvent]] = {
    kind.__name__: kind
    for kind in (
        words.DeadlinePassed, steps.Begun, steps.Agreed, steps.NotAgreed, steps.PartyLost, steps.VerdictSigned,
        steps.Approved, steps.Declined, steps.CancelAsked, steps.AgreementAccepted, steps.InputLoaded,
        steps.TaskDone, steps.RunInterrupted, steps.Delivered, steps.Failed, steps.StatementSigned,
        steps.VerdictAccepted,
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """One event, when it was taken (milliseconds since the epoch) and by which machine: `job` or `party`."""

    at_ms: int
    machine: str
    event: Event


def encode(job_id: str, index: int, entry: Entry) -> JobEventRow:
    """The row of an entry."""
    event = entry.event
    if isinstance(event, words.Message):
        body = job_wire.encode_message(job_id, event)
        return JobEventRow(job_id, index, entry.at_ms, entry.machine, MESSAGE, event.sender, body)
    kind = type(event)
    assert isinstance(event, _LOCAL[kind.__name__])  # noqa: S101  every local event is in the table
    values = {field.name: _CODECS[str(field.type)][0](getattr(event, field.name)) for field in fields(event)}
    body = json.dumps(values, sort_keys=True, ensure_ascii=False).encode()
    return JobEventRow(job_id, index, entry.at_ms, entry.machine, kind.__name__, "", body)


def decode(row: JobEventRow) -> Entry:
    """The entry of a row. Errors: JOURNAL_BROKEN."""
    try:
        return Entry(row.at_ms, row.machine, _event(row))
    except (TdnError, ValueError, LookupError, TypeError, AttributeError):
        broken(row.job_id, row.idx)


def broken(job_id: str, index: int) -> NoReturn:
    """Refuse to go on from a journal."""
    told = f"entry {index} of the journal of job {job_id[:12]} cannot be taken"
    _read_back.refuse(Reason.JOURNAL_BROKEN, told, LocalProtocolError)


def _event(row: JobEventRow) -> Event:
    stages = _STAGES[row.machine]
    if row.kind == MESSAGE:
        return job_wire.decode_message(row.sender, row.body)[1]
    kind, values = _LOCAL[row.kind], json.loads(row.body)
    known = {}
    for field in fields(kind):
        value = values.pop(field.name)
        name = str(field.type)
        known[field.name] = stages[value] if name == "enum.Enum" else _CODECS[name][1](value)
    if values:
        raise ValueError(row.kind)
    return kind(**known)


def _of_type(kind: type) -> Callable[[Any], Any]:
    def checked(value: Any) -> Any:
        if type(value) is not kind:
            raise TypeError(kind.__name__)
        return value

    return checked


def _signed_to_text(signed: Signed | None) -> str | None:
    return encode_signed(signed).hex() if signed else None


def _signed_from_text(text: str | None) -> Signed | None:
    return None if text is None else decode_signed(bytes.fromhex(text))


def _certainly(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def checked(value: Any) -> Any:
        if value is None:
            raise TypeError
        return read(value)

    return checked


def _failure_to_json(failure: Failure) -> dict[str, Any]:
    return asdict(failure) | {"reason": failure.reason.name}


def _failure_from_json(value: dict[str, Any]) -> Failure:
    return Failure(**value | {"reason": Reason[value["reason"]]})


# By the annotation of the field: (to JSON, from JSON). Any: values of JSON.
_CODECS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "int": (int, _of_type(int)),
    "str": (str, _of_type(str)),
    "bytes": (bytes.hex, bytes.fromhex),
    "enum.Enum": (lambda stage: stage.name, str),
    "Outcome": (lambda outcome: outcome.name, lambda name: Outcome[name]),
    "Failure": (_failure_to_json, _failure_from_json),
    "Signed": (_signed_to_text, _certainly(_signed_from_text)),
    "Signed | None": (_signed_to_text, _signed_from_text),
    "tuple[Signed, ...]": (
        lambda many: [_signed_to_text(one) for one in many],
        lambda many: tuple(map(_certainly(_signed_from_text), many)),
    ),
}
