"""Enrolment tokens: made once, spent once."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from tdn_interop.app.store import rows, tables
from tdn_interop.errors import Reason, Refused, guard


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A token by the SHA-256 of its secret, good for one node and role."""

    secret_sha256: bytes
    node_id: str
    role: str
    expires_at_ms: int
    used_at_ms: int | None = None


def add(connection: sa.Connection, token: TokenRow) -> None:
    """Keep a new token."""
    rows.insert(connection, tables.tokens, token)


def spend(connection: sa.Connection, secret_sha256: bytes, node_id: str, role: str, now_ms: int) -> None:
    """Use a token; exactly one caller can. Errors: TOKEN_INVALID, the same for every cause."""
    good = _usable(secret_sha256, node_id, role, now_ms)
    spent = connection.execute(tables.tokens.update().where(*good).values(used_at_ms=now_ms)).rowcount
    guard("TDN-T-IDN-07").check(
        spent == 1, Reason.TOKEN_INVALID, f"no usable token for {node_id} as {role}", Refused
    )


def usable(connection: sa.Connection, secret_sha256: bytes, node_id: str, role: str, now_ms: int) -> bool:
    """True when `spend` would succeed now."""
    found = sa.select(tables.tokens.c.node_id).where(*_usable(secret_sha256, node_id, role, now_ms))
    return connection.scalar(found) is not None


def _usable(secret_sha256: bytes, node_id: str, role: str, now_ms: int) -> tuple[sa.ColumnElement[bool], ...]:
    t = tables.tokens.c
    return (
        t.secret_sha256 == secret_sha256,
        t.node_id == node_id,
        t.role == role,
        t.expires_at_ms > now_ms,
        t.used_at_ms.is_(None),
    )
