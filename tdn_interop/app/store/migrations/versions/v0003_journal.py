"""Tables of durable delivery: journal."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make every table."""
    _post()
    _job_events()


def _post() -> None:
    """Durable messages between nodes, both ends."""
    op.create_table(
        "post_out",
        sa.Column("peer", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("peer", "number", name=op.f("pk_post_out")),
    )
    op.create_table(
        "post_streams",
        sa.Column("peer", sa.Text(), nullable=False),
        sa.Column("stream_id", sa.LargeBinary(), nullable=False),
        sa.Column("next_number", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("peer", name=op.f("pk_post_streams")),
    )
    op.create_table(
        "post_in",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("peer", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_post_in")),
    )
    op.create_index(op.f("ix_post_in_peer"), "post_in", ["peer"], unique=False)
    op.create_table(
        "post_positions",
        sa.Column("stream_id", sa.LargeBinary(), nullable=False),
        sa.Column("peer", sa.Text(), nullable=False),
        sa.Column("next_number", sa.BigInteger(), nullable=False),
        sa.Column("moved_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("stream_id", name=op.f("pk_post_positions")),
    )
    op.create_index(op.f("ix_post_positions_peer"), "post_positions", ["peer"], unique=False)


def _job_events() -> None:
    """What made the machines of a job what they are."""
    op.create_table(
        "job_events",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("idx", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("machine", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("sender", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.job_id"], name=op.f("fk_job_events_job_id")),
        sa.PrimaryKeyConstraint("job_id", "idx", name=op.f("pk_job_events")),
    )
