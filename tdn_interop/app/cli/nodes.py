"""`tdn node`: make, check, run and look at the node of this machine."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from tdn_interop.app.cli import arguments
from tdn_interop.app.cli.arguments import RoleName
from tdn_interop.app.cli.invocation import Invocation, invocation

CHECK_FAILED = 3  # the exit code of configuration errors

app = typer.Typer(help="Make, check, run and look at the node of this machine.", no_args_is_help=True)


@app.command("init", epilog="Example: tdn node init bank-a.shandong.cn --role child --dir bank-a")
def init(
    context: typer.Context,
    node: arguments.Node,
    directory: Annotated[
        Path, typer.Option("--dir", metavar="DIR", help="Folder of the node; made if needed.")
    ],
    role: Annotated[
        RoleName, typer.Option(metavar="child|hub|top", help="Place in the mesh.")
    ] = RoleName.CHILD,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where other nodes connect.")
    ] = None,
    enrolment: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where new members join.")
    ] = None,
) -> None:
    """Make the identity key and a commented configuration of a new node."""
    from tdn_interop.app.members.setup import init_node  # noqa: PLC0415  loads the cryptography

    file = init_node(directory, node, role.value, listen=listen, enrolment=enrolment)
    invocation(context).output.data({"node_id": node, "role": role.value, "path": str(file)})


@app.command("check", epilog="Example: tdn node check --config node.toml")
def check(context: typer.Context) -> None:
    """Say what the node would do, and what stands in its way."""
    from tdn_interop.app.check import check_node  # noqa: PLC0415  loads the cryptography

    tdn = invocation(context)
    findings = [dataclasses.asdict(finding) for finding in check_node(tdn.config)]
    tdn.output.data({"findings": findings}, lambda found: tdn.output.table(
        found["findings"], ["name", "ok", "detail", "advice"], lambda finding: not finding["ok"]))  # fmt: skip
    if not all(finding["ok"] for finding in findings):
        raise typer.Exit(CHECK_FAILED)


@app.command("run", epilog="Example: tdn node run --config node.toml")
def run(context: typer.Context) -> None:
    """Run the node until it is told to stop."""
    from tdn_interop.app.node import run_node  # noqa: PLC0415  loads everything
    from tdn_interop.app.telemetry import set_up_logging  # noqa: PLC0415  loads everything

    tdn = invocation(context)
    set_up_logging(tdn.config.log, verbose=tdn.options.verbose)
    asyncio.run(run_node(tdn.config))


@app.command("status", epilog="Example: tdn node status --json")
def status(context: typer.Context) -> None:
    """Show who the running node is and how it is."""
    tdn = invocation(context)
    tdn.output.data(tdn.ask(lambda node: node.status()))


@app.command("drain", epilog="Example: tdn node drain --timeout 10m")
def drain(
    context: typer.Context,
    timeout: Annotated[
        str,
        typer.Option(
            metavar="TIME", callback=arguments.usage(arguments.seconds),
            help="Stop after so long even if something is under way.",
        ),
    ] = "60s",
) -> None:  # fmt: skip
    """Take nothing new, wait for what is under way, then stop the node: nobody notices."""
    tdn, wait_s = invocation(context), arguments.seconds(timeout)
    with tdn.output.waiting() as show:
        try:
            last = tdn.follow(
                lambda node: node.drain(wait_s),
                lambda seen: show(_remaining(tdn, seen), 1 - seen["left_s"] / wait_s),
                complete=lambda _: True,
            )
        except KeyboardInterrupt:
            tdn.output.note("drain_goes_on")
            raise
    tdn.output.data(last, lambda _: tdn.output.note("drained" if last["stops"] else "undrained"))
    if not last["stops"]:
        raise typer.Exit(1)


@app.command("undrain", epilog="Example: tdn node undrain")
def undrain(context: typer.Context) -> None:
    """Take a drain back: the node takes new things again."""
    tdn = invocation(context)
    tdn.ask(lambda node: node.undrain())
    tdn.output.data({"node_id": tdn.config.id}, lambda _: tdn.output.note("undrained"))


def _remaining(tdn: Invocation, seen: dict[str, Any]) -> str:
    numbers = {name: str(seen[name]) for name in ("moving", "quiet", "jobs")}
    return tdn.output.words.say("draining", **numbers)
