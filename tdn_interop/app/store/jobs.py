"""Jobs and what is known of their parties."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from tdn_interop.app.store import rows, tables


@dataclass(frozen=True, slots=True)
class JobRow:
    """One job. `failure` is JSON of a failure (any: it is stored as it comes), times are 0 before they happen."""

    job_id: str
    role: str
    coordinator: str
    flow: bytes
    flow_sha256: bytes
    state: str
    party_state: str
    created_at_ms: int
    updated_at_ms: int
    epoch: int = 0
    agreement: bytes | None = None
    algorithm: str = ""
    suite: str = ""
    failure: Mapping[str, Any] | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    hops: int = 0
    verdict: bytes | None = None
    bundle: bytes | None = None
    ended_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class JobPartyRow:
    """What one party has said in a job; serialized statements, absent until they come."""

    job_id: str
    party: str
    state: str
    decision: bytes | None = None
    offer: bytes | None = None
    record: bytes | None = None
    consent: bytes | None = None
    statement: bytes | None = None
    attestation: bytes | None = None


@dataclass(frozen=True, slots=True)
class JobEventRow:
    """One event that a machine of a job has taken; `idx` counts from 0 for each job."""

    job_id: str
    idx: int
    at_ms: int
    machine: str
    kind: str
    sender: str
    body: bytes


def put(connection: sa.Connection, job: JobRow) -> None:
    """Write a job."""
    rows.put(connection, tables.jobs, job)


def get(connection: sa.Connection, job_id: str) -> JobRow | None:
    """The job, or None."""
    return rows.first(connection, JobRow, sa.select(tables.jobs).where(tables.jobs.c.job_id == job_id))


def starting_with(connection: sa.Connection, start: str) -> list[JobRow]:
    """Jobs whose id starts with `start` (hexadecimal): an unambiguous start finds one."""
    j = tables.jobs.c
    query = sa.select(tables.jobs).where(j.job_id.startswith(start, autoescape=True)).order_by(j.job_id)
    return rows.select(connection, JobRow, query)


def every(connection: sa.Connection) -> list[JobRow]:
    """All jobs, newest first."""
    j = tables.jobs.c
    return rows.select(connection, JobRow, sa.select(tables.jobs).order_by(j.created_at_ms.desc(), j.job_id))


def unfinished(connection: sa.Connection) -> list[JobRow]:
    """Jobs that have not ended or still have a journal, oldest first: what a restarted node goes on with."""
    j = tables.jobs.c
    open_ = (j.ended_at_ms == 0) | j.job_id.in_(sa.select(tables.job_events.c.job_id))
    query = sa.select(tables.jobs).where(open_).order_by(j.created_at_ms, j.job_id)
    return rows.select(connection, JobRow, query)


def add_event(connection: sa.Connection, event: JobEventRow) -> None:
    """Append to the journal of a job. The job must be there."""
    rows.insert(connection, tables.job_events, event)


def events(connection: sa.Connection, job_id: str) -> list[JobEventRow]:
    """The journal of a job, in order."""
    e = tables.job_events.c
    query = sa.select(tables.job_events).where(e.job_id == job_id).order_by(e.idx)
    return rows.select(connection, JobEventRow, query)


def drop_events(connection: sa.Connection, job_id: str) -> None:
    """Delete the journal of a job with which nothing is left to do."""
    connection.execute(tables.job_events.delete().where(tables.job_events.c.job_id == job_id))


def put_party(connection: sa.Connection, party: JobPartyRow) -> None:
    """Write what is known of a party. The job must be there."""
    rows.put(connection, tables.job_parties, party)


def parties(connection: sa.Connection, job_id: str) -> list[JobPartyRow]:
    """The parties of a job, by node id."""
    p = tables.job_parties.c
    return rows.select(
        connection, JobPartyRow, sa.select(tables.job_parties).where(p.job_id == job_id).order_by(p.party)
    )
