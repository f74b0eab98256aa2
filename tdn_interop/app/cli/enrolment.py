"""`tdn enrol`: take new members in, and join."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from tdn_interop.app.cli import arguments
from tdn_interop.app.cli.arguments import RoleName
from tdn_interop.app.cli.invocation import invocation

app = typer.Typer(help="Take new members in, and join.", no_args_is_help=True)


@app.command("invite", epilog="Example: tdn enrol invite bank-a.shandong.cn --valid 2h")
def invite(
    context: typer.Context,
    node: arguments.Node,
    role: Annotated[
        RoleName, typer.Option(metavar="child|hub|top", help="Role of the new member.")
    ] = RoleName.CHILD,
    valid: Annotated[
        str,
        typer.Option(metavar="TIME", callback=arguments.usage(arguments.seconds), help="Life of the token."),
    ] = "24h",
) -> None:
    """Make a single-use token for a new member. At hubs and tops."""
    tdn = invocation(context)
    made = tdn.ask(lambda client: client.invite(node, role.value, arguments.seconds(valid)))
    tdn.output.data(made, lambda document: tdn.output.line(document["token"]))
    tdn.output.note("token_once")


@app.command("join", epilog="Example: tdn enrol join TOKEN --config bank-a/node.toml")
def join(
    context: typer.Context, token: Annotated[str, typer.Argument(metavar="TOKEN", help="From enrol invite.")]
) -> None:
    """Get this node's certificate from the hub or top that made TOKEN."""
    from tdn_interop.app.members import setup  # noqa: PLC0415  loads the cryptography

    tdn = invocation(context)
    asyncio.run(setup.join(tdn.config, token))
    tdn.output.data({"node_id": tdn.config.id}, lambda _: tdn.output.note("joined"))
