"""Tables of durable delivery: transfers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Files on their way out and in."""
    op.create_table(
        "transfers_out",
        sa.Column("transfer_id", sa.Text(), nullable=False),
        sa.Column("peer", sa.Text(), nullable=False),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=False),
        sa.Column("inode", sa.BigInteger(), nullable=False),
        sa.Column("acknowledged", sa.BigInteger(), nullable=False),
        *_progress(),
        sa.PrimaryKeyConstraint("transfer_id", name=op.f("pk_transfers_out")),
    )
    op.create_table(
        "transfers_in",
        sa.Column("transfer_id", sa.Text(), nullable=False),
        sa.Column("sender", sa.Text(), nullable=False),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("receive_id", sa.Text(), nullable=False),
        sa.Column("out", sa.Text(), nullable=False),
        sa.Column("part", sa.Text(), nullable=False),
        sa.Column("stored", sa.BigInteger(), nullable=False),
        *_progress(),
        sa.PrimaryKeyConstraint("transfer_id", name=op.f("pk_transfers_in")),
        sa.UniqueConstraint("receive_id", name=op.f("uq_transfers_in_receive_id")),
    )


def _progress() -> list[sa.Column[object]]:
    """What both ends keep."""
    return [
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("resumes", sa.Integer(), nullable=False),
        sa.Column("resent_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("failure", sa.Text(), nullable=True),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("ended_at_ms", sa.BigInteger(), nullable=False),
    ]
