"""Every table of a node, in one place. Portable column types only: SQLite by default, PostgreSQL by URL.

Ids are text, times integer milliseconds since the epoch, signed statements serialized
`tdn.common.v1.Signed`. The migrations build the same schema; a test compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

METADATA = sa.MetaData(naming_convention={
    "pk": "pk_%(table_name)s", "uq": "uq_%(table_name)s_%(column_0_name)s", "ix": "ix_%(table_name)s_%(column_0_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
})  # fmt: skip


class JsonText(sa.types.TypeDecorator[Any]):
    """JSON as text, the same bytes for the same value; lists come back as tuples, so that rows can be frozen."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> str | None:
        """To the database."""
        del dialect
        return None if value is None else json.dumps(value, sort_keys=True, ensure_ascii=False)

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> Any:
        """From the database."""
        del dialect
        found = None if value is None else json.loads(value)
        return tuple(found) if isinstance(found, list) else found


def _column(kind: Any, **fixed: Any) -> Callable[..., sa.Column[Any]]:
    return lambda name, *args, **more: sa.Column(name, kind, *args, **{"nullable": False, **fixed, **more})


_text, _blob, _json = _column(sa.Text), _column(sa.LargeBinary), _column(JsonText)
_number, _moment = _column(sa.Integer), _column(sa.BigInteger)
_count = _column(sa.BigInteger)

# Who enrolled at this hub or top. `record` is the NodeRecord signed by the top, null before it exists.
members = sa.Table(
    "members", METADATA,
    _text("node_id", primary_key=True), _text("role"), _blob("identity_key"), _text("state"),
    _blob("record", nullable=True), _moment("enrolled_at_ms"),
)  # fmt: skip

# Enrolment tokens; only the digest of a secret is kept.
tokens = sa.Table(
    "tokens", METADATA,
    _blob("secret_sha256", primary_key=True), _text("node_id"), _text("role"), _moment("expires_at_ms"),
    _moment("used_at_ms", nullable=True),
)  # fmt: skip

# Identity keys seen once; they stay.
pins = sa.Table(
    "pins", METADATA,
    _text("node_id", primary_key=True), _blob("identity_key"), _moment("pinned_at_ms"),
)  # fmt: skip

# Versions of resources; immutable. `salt` never leaves the node: it hides `sha256` in commitments.
resources = sa.Table(
    "resources", METADATA,
    _text("id", primary_key=True), _text("name"), _number("version"), _text("path"), _text("encoding"),
    _text("delimiter"), _json("columns"), _json("keys"), _count("rows"), _count("size_bytes"), _text("sha256"),
    _blob("salt"), _moment("registered_at_ms"), _count("distinct_keys"), _count("duplicate_rows"),
    _count("empty_rows"), sa.UniqueConstraint("name", "version"),
)  # fmt: skip

# Jobs as this node sees them. `role` is coordinator (which is also a party) or party.
jobs = sa.Table(
    "jobs", METADATA,
    _text("job_id", primary_key=True), _text("role"), _text("coordinator"), _blob("flow"), _blob("flow_sha256"),
    _text("state"), _text("party_state"), _number("epoch"), _blob("agreement", nullable=True), _text("algorithm"),
    _text("suite"), _json("failure", nullable=True), _json("facts"), _number("hops"),
    _blob("verdict", nullable=True), _blob("bundle", nullable=True), _moment("created_at_ms"),
    _moment("updated_at_ms"), _moment("ended_at_ms"),
    sa.Index(None, "state"),
)  # fmt: skip

# What the coordinator, or an observer of the agreement, holds of each party.
job_parties = sa.Table(
    "job_parties", METADATA,
    _text("job_id", sa.ForeignKey("jobs.job_id"), primary_key=True), _text("party", primary_key=True),
    _text("state"), *(_blob(name, nullable=True) for name in (
        "decision", "offer", "record", "consent", "statement", "attestation",
    )),
)  # fmt: skip

# The events that made the machines of a job what they are, in order; deleted when nothing is left to do.
job_events = sa.Table(
    "job_events", METADATA,
    _text("job_id", sa.ForeignKey("jobs.job_id"), primary_key=True),
    _number("idx", primary_key=True, autoincrement=False), _moment("at_ms"), _text("machine"), _text("kind"),
    _text("sender"), _blob("body"),
)  # fmt: skip

# The evidence log. `root` is the root of the tree that ends with this leaf: it tells which record was touched.
log_leaves = sa.Table(
    "log_leaves", METADATA,
    _count("idx", primary_key=True, autoincrement=False), _blob("leaf"), _blob("leaf_hash"), _blob("root"),
    _text("kind"), _text("subject", index=True), _moment("at_ms"),
)  # fmt: skip

# The last head of each log kept here; a node keeps one log, its own.
log_heads = sa.Table(
    "log_heads", METADATA,
    _text("node", primary_key=True), _count("size"), _blob("head"),
)  # fmt: skip

# Heads of children's logs that are leaves of ours.
log_anchors = sa.Table(
    "log_anchors", METADATA,
    _text("node", primary_key=True), _count("size", primary_key=True, autoincrement=False), _blob("root"),
    _count("leaf_index"),
)  # fmt: skip

# Whom this node has revoked, for ever; `by` decided it.
revocations = sa.Table(
    "revocations", METADATA,
    _text("node_id", primary_key=True), _moment("at_ms"), _text("reason"), _text("by"),
)  # fmt: skip

# What relays signed about tunnels.
receipts = sa.Table(
    "receipts", METADATA,
    _blob("tunnel_id", primary_key=True), _text("relay", primary_key=True), _blob("signed"),
)  # fmt: skip

# Post: parcels to other nodes until they have a receipt.
post_out = sa.Table(
    "post_out", METADATA,
    _text("peer", primary_key=True), _count("number", primary_key=True, autoincrement=False), _blob("body"),
    _moment("expires_at_ms"), _moment("created_at_ms"),
)  # fmt: skip

# Post: our stream to each node, and the number of its next parcel.
post_streams = sa.Table(
    "post_streams", METADATA,
    _text("peer", primary_key=True), _blob("stream_id"), _count("next_number"),
)  # fmt: skip

# Post: parcels that have arrived and are not done. `number` is the order of arrival over all nodes.
post_in = sa.Table(
    "post_in", METADATA,
    _count("number", primary_key=True, autoincrement=False), _text("peer", index=True), _blob("body"),
)  # fmt: skip

# Post: how far the streams of other nodes have come; this is what tells a copy from a new parcel.
post_positions = sa.Table(
    "post_positions", METADATA,
    _blob("stream_id", primary_key=True), _text("peer", index=True), _count("next_number"),
    _moment("moved_at_ms"),
)  # fmt: skip

# Files that go out; of the content only path and offset are kept.
transfers_out = sa.Table(
    "transfers_out", METADATA,
    _text("transfer_id", primary_key=True), _text("peer"), _text("topic"), _text("path"), _count("size_bytes"),
    _count("mtime_ns"), _count("inode"), _count("acknowledged"), _text("state"), _number("attempt"),
    _number("resumes"), _count("resent_bytes"), _text("sha256"), _json("failure", nullable=True),
    _moment("created_at_ms"), _moment("ended_at_ms"),
)  # fmt: skip

# Files that come in. The id is the sender's choice, so that the same file never comes twice.
transfers_in = sa.Table(
    "transfers_in", METADATA,
    _text("transfer_id", primary_key=True), _text("sender"), _text("topic"), _count("size_bytes"),
    _text("receive_id", unique=True), _text("out"), _text("part"), _count("stored"), _text("state"),
    _number("attempt"), _number("resumes"), _count("resent_bytes"), _text("sha256"),
    _json("failure", nullable=True), _moment("created_at_ms"), _moment("ended_at_ms"),
)  # fmt: skip

# Mailbox of a hub or top: the signed sealing keys of the nodes below.
mailbox_keys = sa.Table(
    "mailbox_keys", METADATA,
    _text("node_id", primary_key=True), _blob("signed"), _blob("key_sha256"), _moment("not_after_ms"),
)  # fmt: skip

# Mailbox of a hub or top: letters until they are acknowledged. `sha256` is that of the statement.
mailbox_letters = sa.Table(
    "mailbox_letters", METADATA,
    _count("number", primary_key=True, autoincrement=False), _text("sender"), _blob("letter_id"),
    _text("recipient", index=True), _blob("sha256"), _count("size_bytes"), _moment("expires_at_ms", index=True),
    _moment("deposited_at_ms"), _blob("letter"), sa.UniqueConstraint("sender", "letter_id"),
)  # fmt: skip
