"""`tdn registry`: the members of a hub or top, and who is revoked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from tdn_interop.app.cli import arguments
from tdn_interop.app.cli.invocation import invocation

_MEMBER = ["node_id", "role", "state", "enrolled_at_ms", "certificate_expires_at_ms"]
_LIST = ["top", "version", "issued_at_ms", "age_s", "stale"]
_REVOKED = ["node_id", "at_ms", "reason"]

app = typer.Typer(help="See the members of a hub or top, revoke, and trust other tops.", no_args_is_help=True)


@app.command("ls", epilog="Example: tdn registry ls --json")
def ls(context: typer.Context) -> None:
    """List the members of this hub or top; at a top also those of its hubs."""
    tdn = invocation(context)
    tdn.output.data(
        tdn.ask(lambda node: node.registry.members()),
        lambda found: tdn.output.table(found["members"], _MEMBER, lambda one: one["state"] == "REVOKED"),
    )


@app.command("status", epilog="Example: tdn registry status")
def status(context: typer.Context) -> None:
    """Show who is revoked, and how old the lists are that say so."""
    tdn = invocation(context)

    def show(found: Mapping[str, Any]) -> None:
        tdn.output.table(found["lists"], _LIST, lambda one: one["stale"])
        tdn.output.table(found["revoked"], _REVOKED)

    tdn.output.data(tdn.ask(lambda node: node.registry.standing()), show)


@app.command("revoke", epilog="Example: tdn registry revoke bank-a.shandong.cn --reason 'key lost' --yes")
def revoke(
    context: typer.Context,
    node: arguments.Node,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; everybody is told.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Refuse NODE and everybody below it, everywhere and for ever."""
    tdn = invocation(context)
    if not yes:
        typer.confirm(tdn.output.words.say("revoke_ask", node=node), abort=True, err=True)
    done = tdn.ask(lambda client: client.registry.revoke(node, reason))
    key = "revoked_listed" if done["listed"] else "revoked_waits"
    tdn.output.data(done, lambda _: tdn.output.note(key, node=node))
