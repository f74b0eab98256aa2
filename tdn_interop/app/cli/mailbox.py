"""`tdn mailbox`: the letters that a hub or top keeps for the nodes below."""

from __future__ import annotations

import typer

from tdn_interop.app.cli.invocation import invocation

app = typer.Typer(
    help="See the letters that this hub keeps for nodes that are offline.", no_args_is_help=True
)


@app.command("ls", epilog="Example: tdn mailbox ls")
def ls(context: typer.Context) -> None:
    """List how many letters wait for whom, how large they are, and since when."""
    tdn = invocation(context)
    tdn.output.data(
        tdn.ask(lambda node: node.mailboxes()),
        lambda found: tdn.output.table(found["mailboxes"], ["node_id", "letters", "bytes", "oldest_at_ms"]),
    )
