"""Receipts of relays for tunnels."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from tdn_interop.app.store import rows, tables


@dataclass(frozen=True, slots=True)
class ReceiptRow:
    """A Receipt signed by `relay` for one tunnel."""

    tunnel_id: bytes
    relay: str
    signed: bytes


def add(connection: sa.Connection, receipt: ReceiptRow) -> bool:
    """Keep a receipt; False when that relay has one for the tunnel already, and then nothing changes."""
    if any(known.relay == receipt.relay for known in of_tunnel(connection, receipt.tunnel_id)):
        return False
    rows.insert(connection, tables.receipts, receipt)
    return True


def of_tunnel(connection: sa.Connection, tunnel_id: bytes) -> list[ReceiptRow]:
    """The receipts for a tunnel, by relay."""
    r = tables.receipts.c
    return rows.select(
        connection, ReceiptRow, sa.select(tables.receipts).where(r.tunnel_id == tunnel_id).order_by(r.relay)
    )
