"""Tables of durable delivery: mailbox."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make every table."""
    op.create_table(
        "mailbox_keys",
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("signed", sa.LargeBinary(), nullable=False),
        sa.Column("key_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("not_after_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_mailbox_keys")),
    )
    op.create_table(
        "mailbox_letters",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("sender", sa.Text(), nullable=False),
        sa.Column("letter_id", sa.LargeBinary(), nullable=False),
        sa.Column("recipient", sa.Text(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("deposited_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("letter", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_mailbox_letters")),
        sa.UniqueConstraint("sender", "letter_id", name=op.f("uq_mailbox_letters_sender")),
    )
    op.create_index(op.f("ix_mailbox_letters_recipient"), "mailbox_letters", ["recipient"], unique=False)
    op.create_index(
        op.f("ix_mailbox_letters_expires_at_ms"), "mailbox_letters", ["expires_at_ms"], unique=False
    )
