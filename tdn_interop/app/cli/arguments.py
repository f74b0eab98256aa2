"""Arguments and option values that several commands share."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tdn_interop import ids
from tdn_interop.errors import TdnError

_DURATION = re.compile(r"([1-9]\d{0,6})([smhd]?)\Z")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}


class RoleName(enum.StrEnum):
    """Place of a node in the mesh."""

    CHILD = "child"
    HUB = "hub"
    TOP = "top"


def usage(parse: Callable[[str], Any]) -> Callable[[str], str]:
    """A callback for an argument: what `parse` refuses was typed wrong, so it is a mistake of usage."""

    def callback(text: str) -> str:
        try:
            parse(text)
        except TdnError as error:
            raise typer.BadParameter(error.message) from error
        return text

    return callback


def seconds(text: str) -> int:
    """Seconds of a duration such as `90`, `15m`, `24h` or `7d`."""
    match = _DURATION.match(text)
    if match is None:
        raise typer.BadParameter(f"not a duration such as 90s, 15m, 24h or 7d: {text!r}")
    return int(match[1]) * _SECONDS[match[2]]


def node_or_resource(name: str) -> None:
    """Check a node id or, with a slash, a resource id."""
    (ids.resource_id if "/" in name else ids.node_id)(name)


Node = Annotated[str, typer.Argument(metavar="NODE", callback=usage(ids.node_id), help="Node id.")]
Job = Annotated[str, typer.Argument(metavar="JOB", help="Job id or an unambiguous start of it.")]
Topic = Annotated[str, typer.Argument(metavar="TOPIC", callback=usage(ids.topic), help="Topic name.")]
Resource = Annotated[
    str,
    typer.Argument(metavar="ID", callback=usage(ids.resource_id), help="Resource id: node/name[@version]."),
]
NewFile = Annotated[Path, typer.Option("--out", metavar="FILE", help="New file; nothing is overwritten.")]
Comment = Annotated[str, typer.Option(metavar="TEXT", help="Why; the other parties are told.")]
