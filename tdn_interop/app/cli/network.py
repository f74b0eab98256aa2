"""`tdn ping` and `tdn route`: whether and how another node is reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from tdn_interop.app.cli import arguments
from tdn_interop.app.cli.invocation import invocation

app = typer.Typer(help="See how another node is reached.", no_args_is_help=True)


def ping(
    context: typer.Context,
    node: arguments.Node,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=600, metavar="SECONDS", help="How long to wait.")
    ] = 10,
) -> None:
    """Open a channel to NODE, end to end, and measure the round trip."""
    tdn = invocation(context)
    tdn.output.data(tdn.ask(lambda client: client.ping(node, timeout)))
    tdn.output.note("fingerprint")


@app.command("lookup", epilog="Example: tdn route lookup bank-b.zhejiang.cn/loans")
def lookup(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NODE|RESOURCE",
            callback=arguments.usage(arguments.node_or_resource),
            help="Node or resource id.",
        ),
    ],
) -> None:
    """Find the route to a node or to the owner of a resource."""
    tdn = invocation(context)
    tdn.output.data(tdn.ask(lambda node: node.route(name)))


@app.command("show", epilog="Example: tdn route show --json")
def show(context: typer.Context) -> None:
    """Show the links of this node and the ways that its neighbours tell."""
    tdn = invocation(context)

    def tables(found: Mapping[str, Any]) -> None:
        links = [link | {"stands": link["linked"]} for link in found["links"]]
        tdn.output.table(links, ["node", "kept_by", "stands"], lambda link: not link["linked"])
        rows = [row | {"age": f"{row['age_ms'] / 1000:.0f} s"} for row in found["routes"]]
        if rows:
            tdn.output.table(rows, ["prefix", "next", "path", "state", "age", "expires_at_ms"])

    tdn.output.data(tdn.ask(lambda node: node.routes()), tables)
