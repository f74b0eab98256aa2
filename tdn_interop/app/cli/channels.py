"""`tdn channel`: files between nodes, exactly once."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated

import typer

from tdn_interop.app.cli import arguments
from tdn_interop.app.cli.insisting import Document, Question, insist
from tdn_interop.app.cli.invocation import Invocation, invocation

app = typer.Typer(help="Send and receive files over a channel.", no_args_is_help=True)
SHORT_ID = 12
_COLUMNS = (
    "transfer_id", "direction", "peer", "topic", "state", "stored_bytes", "total_bytes", "created_at_ms",
)  # fmt: skip

Patience = Annotated[
    float,
    typer.Option(
        min=0, metavar="SECONDS", help="How long to wait for this node when it goes away meanwhile."
    ),
]


@app.command("send", epilog="Example: tdn channel send bank-b.zhejiang.cn files/march march.zip")
def send(
    context: typer.Context,
    node: arguments.Node,
    topic: arguments.Topic,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to send.")],
    patience: Patience = 300,
) -> None:
    """Send FILE to NODE on TOPIC; done means that NODE has all of it, safely on its disk."""
    path, name = str(file.absolute()), secrets.token_hex(16)
    _transfer(
        invocation(context), "sending", "sent_bytes",
        lambda client: client.send_file(node, topic, path, name), patience,
    )  # fmt: skip


@app.command("recv", epilog="Example: tdn channel recv files/march --out march.zip")
def recv(
    context: typer.Context,
    topic: arguments.Topic,
    out: arguments.NewFile,
    timeout: Annotated[
        float,
        typer.Option(min=0, metavar="SECONDS", help="How long to wait for the first byte; 0 is for ever."),
    ] = 0,
    patience: Patience = 300,
) -> None:
    """Receive one file on TOPIC; it appears only when it is complete."""
    path, name = str(out.absolute()), secrets.token_hex(16)
    _transfer(
        invocation(context), "receiving", "received_bytes",
        lambda client: client.receive_file(topic, path, timeout, name), patience,
    )  # fmt: skip


@app.command("ls", epilog="Example: tdn channel ls --json")
def ls(context: typer.Context) -> None:
    """List the files that this node sends and receives, newest first."""
    tdn = invocation(context)
    tdn.output.data(
        tdn.ask(lambda node: node.transfers()),
        lambda found: tdn.output.table(
            [_row(each) for each in found["transfers"]],
            _COLUMNS,
            lambda each: each["failure"] is not None,
        ),
    )


@app.command("cancel", epilog="Example: tdn channel cancel 3f2a")
def cancel(
    context: typer.Context,
    transfer: Annotated[
        str, typer.Argument(metavar="ID", help="Transfer id or an unambiguous start of it, see `ls`.")
    ],
) -> None:
    """Give up a file that is being sent or received; the other node is told."""
    tdn = invocation(context)
    tdn.ask(lambda node: node.cancel_transfer(transfer))
    tdn.output.data({"transfer_id": transfer}, lambda _: tdn.output.note("transfer_given_up"))


def _row(transfer: Document) -> Document:
    """In a table: a short id, and of a failure its reason."""
    failure = transfer["failure"]
    state = f"{transfer['state']} {failure['reason']}" if failure else transfer["state"]
    return transfer | {"transfer_id": transfer["transfer_id"][:SHORT_ID], "state": state}


def _transfer(tdn: Invocation, verb: str, counter: str, question: Question, patience_s: float) -> None:
    """Follow a transfer: every step as a JSON line, or a bar; the last step says how it went."""
    with tdn.output.transfer(verb) as show:

        def step(now: Document) -> None:
            if now["done"]:
                return
            if tdn.options.json:
                tdn.output.data(now)
            else:
                show(now[counter], now["total_bytes"])

        last = insist(tdn, question, step, lambda now: bool(now["done"]), patience_s)
        show(last[counter], last["total_bytes"])
    if tdn.options.json:
        tdn.output.data({**last, "bytes": last["total_bytes"]})
    else:
        names = ("transfer_id", "sender", "sha256", "resumes", "resent_bytes", "seconds")
        tdn.output.data({"bytes": last["total_bytes"]} | {name: last[name] for name in names if name in last})
