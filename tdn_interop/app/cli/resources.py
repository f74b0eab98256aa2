"""`tdn resource`: the data this node offers to jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tdn_interop import ids
from tdn_interop.app.cli import arguments
from tdn_interop.app.cli.invocation import invocation

_COLUMNS = ["id", "rows", "bytes", "keys", "registered_at_ms"]

app = typer.Typer(help="Register and see the data this node offers to jobs.", no_args_is_help=True)


@app.command("register", epilog="Example: tdn resource register loans.csv --name loans --key phone")
def register(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV file with a header line.")],
    name: Annotated[
        str, typer.Option(metavar="NAME", callback=arguments.usage(ids.resource_name), help="Its name.")
    ],
    key: Annotated[list[str], typer.Option(metavar="COL", help="Column that may be a key; may be repeated.")],
    encoding: Annotated[str, typer.Option(metavar="CODEC", help="How its text is encoded.")] = "utf-8",
    delimiter: Annotated[str, typer.Option(metavar="CHAR", help="What separates its columns.")] = ",",
) -> None:
    """Register FILE as a new version of a resource. The file stays where it is."""
    tdn = invocation(context)
    path = str(file.absolute())
    tdn.output.data(tdn.ask(lambda node: node.register(name, path, key, encoding, delimiter)))


@app.command("ls", epilog="Example: tdn resource ls --json")
def ls(context: typer.Context) -> None:
    """List the resources of this node."""
    tdn = invocation(context)
    tdn.output.data(
        tdn.ask(lambda node: node.resources()), lambda found: tdn.output.table(found["resources"], _COLUMNS)
    )


@app.command("show", epilog="Example: tdn resource show bank-a.shandong.cn/loans@1")
def show(context: typer.Context, resource: arguments.Resource) -> None:
    """Show one resource of this node."""
    tdn = invocation(context)
    tdn.output.data(tdn.ask(lambda node: node.resource(resource)))
