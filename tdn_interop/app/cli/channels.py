"""`tdn channel`: files between nodes, exactly once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tdn_interop.app.cli import arguments
from tdn_interop.app.cli.invocation import Invocation, invocation

if TYPE_CHECKING:
    from tdn_interop.app.control_client import NodeClient

app = typer.Typer(help="Send and receive files over a channel.", no_args_is_help=True)


@app.command("send", epilog="Example: tdn channel send bank-b.zhejiang.cn files/march march.zip")
def send(
    context: typer.Context,
    node: arguments.Node,
    topic: arguments.Topic,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to send.")],
) -> None:
    """Send FILE to NODE on TOPIC; done means that NODE has all of it."""
    path = str(file.absolute())
    _transfer(
        invocation(context), "sending", "sent_bytes", lambda client: client.send_file(node, topic, path)
    )


@app.command("recv", epilog="Example: tdn channel recv files/march --out march.zip")
def recv(
    context: typer.Context,
    topic: arguments.Topic,
    out: arguments.NewFile,
    timeout: Annotated[
        float,
        typer.Option(min=0, metavar="SECONDS", help="How long to wait for the first byte; 0 is for ever."),
    ] = 0,
) -> None:
    """Receive one file on TOPIC; it appears only when it is complete."""
    path = str(out.absolute())
    _transfer(
        invocation(context), "receiving", "received_bytes",
        lambda client: client.receive_file(topic, path, timeout),
    )  # fmt: skip


def _transfer(
    tdn: Invocation, verb: str, counter: str, question: Callable[[NodeClient], AsyncIterator[dict[str, Any]]]
) -> None:
    """Follow a transfer: every step as a JSON line, or a bar and then the last step."""
    with tdn.output.transfer(verb) as show:
        last = tdn.follow(
            question,
            tdn.output.data if tdn.options.json else lambda step: show(step[counter], step["total_bytes"]),
            complete=lambda step: step["done"],
        )
    if not tdn.options.json:
        tdn.output.data(last)
