"""`tdn registry export|federate|part|tops`: which tops are trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tdn_interop import ids
from tdn_interop.app.cli import arguments
from tdn_interop.app.cli.invocation import invocation, read_file

_TOP = ["top", "identity_sha256", "root_sha256"]
# A card is longer: it holds a certificate and signatures.
_LONGEST_PATH = 255
_Top = Annotated[
    str,
    typer.Argument(metavar="TOP", callback=arguments.usage(ids.node_id), help="Node id of the other top."),
]


def export(context: typer.Context) -> None:
    """Print the text by which another top gets to know this one."""
    tdn = invocation(context)
    made = tdn.ask(lambda node: node.trust.export())
    tdn.output.data(made, lambda document: tdn.output.line(document["card"]))
    tdn.output.note("federate_both")


def federate(
    context: typer.Context,
    text: Annotated[str, typer.Argument(metavar="TEXT|FILE", help="From registry export on the other top.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask: the fingerprints were compared.")] = False,
) -> None:
    """Trust the other top, and each node below it, here and everywhere below."""
    from tdn_interop.app.members.federation import fingerprints, read_card  # noqa: PLC0415  loads the cryptography

    tdn = invocation(context)
    card = text if len(text) > _LONGEST_PATH else read_file(Path(text)).decode("utf-8", "replace")
    other = read_card(card)
    identity_sha256, roots = fingerprints(other)
    shown = {"top": other.top, "identity_sha256": identity_sha256, "root_sha256": roots}
    if not yes:
        for name, value in shown.items():
            typer.echo(f"{tdn.output.words.label(name)}: {tdn.output.text(name, value)}", err=True)
        typer.confirm(tdn.output.words.say("federate_ask", top=other.top), abort=True, err=True)
    tdn.ask(lambda node: node.trust.federate(card))
    tdn.output.data(shown)


def part(context: typer.Context, top: _Top) -> None:
    """Trust the other top no longer; its nodes are refused from now on."""
    tdn = invocation(context)
    tdn.ask(lambda node: node.trust.part(top))
    tdn.output.data({"top": top}, lambda _: tdn.output.note("parted", top=top))


def tops(context: typer.Context) -> None:
    """List the tops that this node trusts, its own first."""
    tdn = invocation(context)
    tdn.output.data(
        tdn.ask(lambda node: node.trust.tops()), lambda found: tdn.output.table(found["tops"], _TOP)
    )


def add_to(app: typer.Typer) -> None:
    """As commands of a group."""
    app.command("export", epilog="Example: tdn registry export")(export)
    app.command("federate", epilog="Example: tdn registry federate hk.card --yes")(federate)
    app.command("part", epilog="Example: tdn registry part hk")(part)
    app.command("tops", epilog="Example: tdn registry tops")(tops)
