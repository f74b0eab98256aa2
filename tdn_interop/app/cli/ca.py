"""`tdn ca`: the CA of a hub or top, and the one that follows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from tdn_interop.app.cli import arguments
from tdn_interop.app.cli.invocation import Invocation, invocation

_MEMBER = ["node_id", "role", "certificate_expires_at_ms", "current"]

app = typer.Typer(help="See the CA of a hub or top, and replace it.", no_args_is_help=True)


@app.command("show", epilog="Example: tdn ca show")
def show(context: typer.Context) -> None:
    """Show the CA and which members have certificates of it, not of the one before."""
    tdn = invocation(context)
    _show(tdn, tdn.ask(lambda node: node.trust.ca()))


@app.command("rollover", epilog="Example: tdn ca rollover --overlap 24h")
def rollover(
    context: typer.Context,
    overlap: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            callback=arguments.usage(arguments.seconds),
            help="How long the old root of a top still counts.",
        ),
    ] = "24h",
) -> None:
    """Make a new CA: at a top a new root, at a hub a new key. Members follow by themselves."""
    tdn = invocation(context)
    _show(tdn, tdn.ask(lambda node: node.trust.roll_over(arguments.seconds(overlap))))


@app.command("retire", epilog="Example: tdn ca retire")
def retire(context: typer.Context) -> None:
    """End the overlap now: what hangs on the old root is refused from now on. At tops."""
    tdn = invocation(context)
    _show(tdn, tdn.ask(lambda node: node.trust.retire()))


def _show(tdn: Invocation, ca: Mapping[str, Any]) -> None:
    def lines(found: Mapping[str, Any]) -> None:
        tdn.output.record({name: value for name, value in found.items() if value and name != "members"})
        tdn.output.table(found["members"], _MEMBER, lambda one: not one["current"])

    tdn.output.data(ca, lines)
