"""Runs the migrations inside the transaction of the store that asks for them."""

from __future__ import annotations

from alembic import context

from tdn_interop.app.store.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"], target_metadata=METADATA, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
