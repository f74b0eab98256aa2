"""`tdn demo`: the main job in one command."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tdn_interop.app.cli.invocation import Invocation, invocation
from tdn_interop.app.cli.lab import complete

if TYPE_CHECKING:
    from tdn_interop.app.lab.demo import Report

_FIELDS = ["intersection", "recipient", "hops", "suite", "seconds"]


def demo(
    context: typer.Context,
    directory: Annotated[
        Path | None,
        typer.Option("--dir", metavar="DIR", help="Keep the stopped network here; removed if not given."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where the result and the evidence go, by job.")
    ] = Path("tdn-demo"),
) -> None:
    """Start a top, two hubs and three children, match two real tables for a third party, verify the evidence."""
    from tdn_interop.app.lab import demo as main_job  # noqa: PLC0415  loads everything
    from tdn_interop.app.lab.lab import Lab  # noqa: PLC0415  loads everything

    tdn = invocation(context)
    say = tdn.output.words.say
    with tdn.output.waiting() as show:
        lab = Lab(directory or Path(tempfile.mkdtemp(prefix="tdn-demo-")))
        try:
            note = lambda phase, part: show(say(f"demo_{phase}"), part)  # noqa: E731  one line, one use
            report = complete(main_job.run(lab, out, note))
        finally:
            if directory is None:
                lab.remove()
    tdn.output.data(report.document, lambda _: _show(tdn, report))


def _show(tdn: Invocation, report: Report) -> None:
    """The result, who learned what, the evidence, where the time went, and how to check all that."""
    output, found = tdn.output, report.document
    output.record({name: found[name] for name in _FIELDS})
    output.line("")
    output.table(found["nodes"], ["id", "role", "learned"])
    output.line("")
    output.record(found["evidence"] | {"result": str(report.result)})
    phases = (f"{output.words.say(f'demo_{name}')} {spent:.1f} s" for name, spent in report.seconds.items())
    output.note("demo_phases", phases=", ".join(phases))
    output.note("demo_verify", bundle=found["evidence"]["bundle"], top=str(report.top_key))
