"""What `tdn top` shows: snapshots of nodes as tables. Rates come from two snapshots of the same node."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from tdn_interop.app.cli.output import Document, Output

SHORT_ID = 8
# The certificate of a node that renews in time never gets here.
SOON_S = 3_600.0

# Columns of each section; with several nodes, the node comes first.
_SECTIONS = {
    "links": ("neighbour", "direction", "stands", "since_s"),
    "transfers": ("id", "direction", "peer", "topic", "state", "moved", "rate"),
    "jobs": ("job_id", "coordinator", "state", "party_state", "progress"),
    "tunnels": ("source", "destination", "forward_bytes", "forward_rate", "backward_bytes", "backward_rate"),
    "sessions": ("peer", "state", "topics", "queued_bytes", "credit_bytes"),
    "mailboxes": ("to", "letters", "bytes", "age_s"),
    "refusals": ("reason", "count"),
}  # fmt: skip
_NODES = ("node_id", "role", "runs", "links", "tunnels", "rate", "sessions", "transfers", "jobs", "refusals", "ends_s")  # fmt: skip
# What is left of it where the others find no room; they have a section of their own.
_NODES_NARROW = ("node_id", "role", "runs", "links", "rate", "refusals", "ends_s")
_NARROW = 110
_BAD: Mapping[str, Callable[[Document], bool]] = {
    "links": lambda row: not row["linked"],
    "sessions": lambda row: row["state"] == "detached",
    "refusals": lambda _row: True,
    "nodes": lambda row: not row["runs"] or row["draining"] or (row["ends_s"] or 0) < SOON_S,
}


def view(
    output: Output, now: list[Document], before: Mapping[str, Document], limit: int | None
) -> RenderableType:
    """Everything of `now`; `before` holds the snapshots of the last look, `limit` is the most rows of a section."""
    rows = {name: list(_rows(name, now, before)) for name in _SECTIONS}
    blocks: list[list[RenderableType]] = [[_head(output, now[0])]]
    leading: tuple[str, ...] = ()
    if len(now) > 1:
        leading = ("node_id",)
        rows["links"] = [
            row for row in rows["links"] if not row["stands"]
        ]  # the others are in the row of the node
        columns = _NODES if output.width >= _NARROW else _NODES_NARROW
        blocks = [_section(output, "nodes", [_node(one, before) for one in now], columns, None)]
    blocks += [
        _section(output, name, rows[name], leading + columns, limit)
        for name, columns in _SECTIONS.items()
        if rows[name]
    ]
    return Group(*[part for block in blocks for part in (Text(""), *block)][1:])


def _head(output: Output, one: Document) -> Text:
    """The node itself in one line."""
    say = output.words.say
    if not one["runs"]:
        return Text(say("top_down", node=one["node_id"]), style="bold red")
    ends_s = _left_s(one)
    key = "top_draining" if one["draining"] else "top_runs"
    words = say(key, node=one["node_id"], role=one["role"], up=output.text("up_s", one["uptime_s"]))
    line = Text(words, style="bold yellow" if one["draining"] else "bold")
    ends = say("top_certificate", left=output.text("left_s", ends_s))
    return line.append(f"  {ends}", style="red" if ends_s < SOON_S else "not bold")


def _section(
    output: Output, name: str, rows: list[Document], columns: tuple[str, ...], limit: int | None
) -> list[RenderableType]:
    title = Text(f"{output.words.say(f'top_{name}')} ({len(rows)})", style="bold cyan")
    more = len(rows) - limit if limit is not None else 0
    rest = [Text(output.words.say("top_more", count=str(more)), style="dim")] if more > 0 else []
    return [title, output.grid(rows[:limit], columns, _BAD.get(name)), *rest]


def _node(one: Document, before: Mapping[str, Document]) -> Document:
    """The row of a node among others; a dash for what a node that is down does not tell."""
    facts: dict[str, Any] = {"node_id": one["node_id"], "role": one["role"], "runs": one["runs"]}
    if not one["runs"]:
        return dict.fromkeys(_NODES) | facts | {"draining": False}
    counts = {name: len(one[name]) for name in ("tunnels", "sessions", "transfers", "jobs")}
    standing = sum(link["linked"] for link in one["links"])
    moved = [row["forward_rate"] + row["backward_rate"] for row in _moved(one, before)]
    return {
        **facts, **counts, "links": f"{standing}/{len(one['links'])}", "rate": sum(moved), "draining": one["draining"],
        "refusals": sum(row["count"] for row in one["refusals"]), "ends_s": _left_s(one),
    }  # fmt: skip


def _rows(name: str, now: list[Document], before: Mapping[str, Document]) -> Iterator[Document]:
    for one in now:
        if one["runs"]:
            for row in _ROWS[name](one, before) if name in _ROWS else one[name]:
                yield {"node_id": one["node_id"], **row}


def _moved(one: Document, before: Mapping[str, Document]) -> list[dict[str, Any]]:
    """Tunnels with bytes a second each way, the busiest first."""
    last = before.get(one["node_id"], {"at_ms": 0, "tunnels": []})
    were = {row["id"]: row for row in last["tunnels"]}
    found = []
    for row in one["tunnels"]:
        was = were.get(row["id"], {"forward_bytes": 0, "backward_bytes": 0})
        since_ms = one["at_ms"] - max(last["at_ms"], row["started_at_ms"])
        rates = {
            f"{way}_rate": (row[f"{way}_bytes"] - was[f"{way}_bytes"]) * 1000 / max(since_ms, 1)
            for way in ("forward", "backward")
        }
        found.append({**row, **rates})
    return sorted(found, key=lambda row: -row["forward_rate"] - row["backward_rate"])


def _transfers(one: Document, before: Mapping[str, Document]) -> Iterator[Document]:
    last = before.get(one["node_id"], {"at_ms": one["at_ms"], "transfers": []})
    were = {(row["id"], row["direction"]): row["moved_bytes"] for row in last["transfers"]}
    for row in one["transfers"]:
        moved = row["moved_bytes"] - were.get((row["id"], row["direction"]), row["moved_bytes"])
        rate = moved * 1000 / max(one["at_ms"] - last["at_ms"], 1)
        part = row["moved_bytes"] / row["total_bytes"] if row["total_bytes"] else 1.0
        yield {**row, "id": row["id"][:SHORT_ID], "moved": f"{part:.0%}", "rate": rate}


_ROWS: Mapping[str, Callable[[Document, Mapping[str, Document]], Any]] = {
    "links": lambda one, _: [
        row | {"stands": row["linked"], "since_s": _age_s(one, row["since_at_ms"])} for row in one["links"]
    ],
    "transfers": _transfers,
    "jobs": lambda one, _: [row | {"job_id": row["job_id"][:SHORT_ID]} for row in one["jobs"]],
    "tunnels": _moved,
    "mailboxes": lambda one, _: [
        row | {"to": row["recipient"], "age_s": _age_s(one, row["oldest_at_ms"])} for row in one["mailboxes"]
    ],
}


def _age_s(one: Document, at_ms: int) -> float | None:
    return (one["at_ms"] - at_ms) / 1000 if at_ms else None


def _left_s(one: Document) -> float:
    left_ms: int = one["certificate_expires_at_ms"] - one["at_ms"]
    return max(0, left_ms) / 1000
