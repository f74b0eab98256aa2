"""`tdn lab`: a whole network on this machine, to try things out."""

from __future__ import annotations

import asyncio
import enum
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from tdn_interop.app.cli.arguments import Node, usage
from tdn_interop.app.cli.invocation import Invocation, invocation
from tdn_interop.ids import node_id

if TYPE_CHECKING:
    from tdn_interop.app.lab.lab import Lab

T = TypeVar("T")
_COLUMNS = ["id", "role", "runs", "linked", "pid", "config"]

app = typer.Typer(help="Run a whole network on this machine.", no_args_is_help=True)


_TOPOLOGIES = "mini: a top, two hubs, three children; region: two tops, four hubs, twelve children, any top or hub may fail."


class Topology(enum.StrEnum):
    """The networks a lab can be."""

    MINI = "mini"
    REGION = "region"


Folder = Annotated[Path, typer.Option("--dir", metavar="DIR", help="Folder of the lab.")]


@app.command("up", epilog="Example: tdn lab up mini --dir lab")
def up(
    context: typer.Context,
    topology: Annotated[Topology, typer.Argument(metavar="TOPOLOGY", help=_TOPOLOGIES)],
    directory: Folder,
) -> None:
    """Make a network in a new folder and start it; every node is a process that goes on after this command."""
    tdn, lab = invocation(context), _lab(directory)
    with tdn.output.waiting() as show:
        complete(lab.up(topology.value, show))
    _show(tdn, lab)
    tdn.output.note("lab_up", dir=str(directory))


@app.command("status", epilog="Example: tdn lab status --dir lab")
def status(context: typer.Context, directory: Folder) -> None:
    """Show every node, whether it runs and whether it is linked to its parent."""
    _show(invocation(context), _lab(directory))


@app.command("kill", epilog="Example: tdn lab kill shandong.cn --dir lab")
def kill(context: typer.Context, node: Node, directory: Folder) -> None:
    """Kill a node as a crash would (SIGKILL)."""
    lab = _lab(directory)
    complete(lab.kill(node))
    _show(invocation(context), lab)


@app.command("start", epilog="Example: tdn lab start shandong.cn --dir lab")
def start(
    context: typer.Context,
    directory: Folder,
    node: Annotated[
        str | None,
        typer.Argument(
            metavar="[NODE]",
            callback=lambda name: name and usage(node_id)(name),
            help="Node id; every node if not given.",
        ),
    ] = None,
) -> None:
    """Start a node from its folder; nothing happens if it runs."""
    lab = _lab(directory)
    complete(lab.start(*([node] if node else [])))
    _show(invocation(context), lab)


@app.command("down", epilog="Example: tdn lab down --dir lab")
def down(context: typer.Context, directory: Folder) -> None:
    """Stop every node. The folder stays: tdn lab start brings the network back."""
    lab = _lab(directory)
    complete(lab.down())
    _show(invocation(context), lab)


def complete(work: Coroutine[Any, Any, T]) -> T:
    """Run `work`; Ctrl-C and a request to terminate let it clean up first, then count as interrupted."""

    async def main() -> T:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  narrows the type
        for number in (signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        return await work

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def _lab(directory: Path) -> Lab:
    from tdn_interop.app.lab.lab import Lab  # noqa: PLC0415  loads the cryptography

    return Lab(directory)


def _show(tdn: Invocation, lab: Lab) -> None:
    nodes = complete(lab.status())
    tdn.output.data({"nodes": nodes}, lambda found: tdn.output.table(
        found["nodes"], _COLUMNS, lambda node: not node["runs"]))  # fmt: skip
