"""`tdn`, the command line of a node: nouns and verbs, data on stdout, everything else on stderr.

A new group of commands is a module with a `typer.Typer` named `app` and one line in `_GROUPS`. Modules
here import nothing slow; what a command alone needs, it imports itself.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from tdn_interop.app.cli import (
    adapters,
    backups,
    ca,
    channels,
    demo,
    enrolment,
    evidence,
    federation,
    jobs,
    lab,
    mailbox,
    network,
    nodes,
    registry,
    resources,
    top,
)
from tdn_interop.app.cli.invocation import Invocation, invocation
from tdn_interop.app.cli.options import Options, in_front
from tdn_interop.errors import LocalProtocolError, Reason, TdnError

INTERRUPTED = 130  # what a shell reports after SIGINT

_GROUPS = {
    "node": nodes.app,
    "enrol": enrolment.app,
    "registry": registry.app,
    "ca": ca.app,
    "route": network.app,
    "resource": resources.app,
    "job": jobs.app,
    "evidence": evidence.app,
    "channel": channels.app,
    "adapter": adapters.app,
    "mailbox": mailbox.app,
    "lab": lab.app,
}

app = typer.Typer(
    name="tdn", no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False,
    epilog="The options of this page may stand anywhere on the command line.",
)  # fmt: skip
for _name, _group in _GROUPS.items():
    app.add_typer(_group, name=_name)
nodes.app.command("backup", epilog="Example: tdn node backup bank-a.tdn --passphrase-file secret.txt")(
    backups.backup
)
nodes.app.command("restore", epilog="Example: tdn node restore bank-a.tdn --dir bank-a")(backups.restore)
federation.add_to(registry.app)
app.command("ping", epilog="Example: tdn ping bank-b.zhejiang.cn")(network.ping)
app.command("top", epilog="Example: tdn top --once --json")(top.top)
app.command("demo", epilog="Example: tdn demo --json")(demo.demo)


@app.callback()
def root(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Configuration of the node; node.toml here if not given."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout, errors as JSON on stderr.")] = False,
    lang: Annotated[Literal["en", "zh"], typer.Option(metavar="en|zh", help="Language of messages.")] = "en",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show where an error comes from.")] = False,
) -> None:
    """Interoperation of privacy-computing platforms: one node, its data, its jobs, its evidence."""
    invocation(context).options = Options(config, json, lang, verbose)


def main() -> None:
    """Entry point of the command `tdn`."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command; its exit code. Errors end here: they are printed, none is raised."""
    tdn = Invocation()
    try:
        typer.main.get_command(app).main(in_front(arguments), prog_name="tdn", obj=tdn)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code == INTERRUPTED:
            tdn.output.interrupted()
        return code
    except TdnError as error:
        return _report(tdn, error)
    except Exception as error:  # noqa: BLE001  the boundary: whatever it is, the user gets one clear message
        words = f"{type(error).__name__}; run the command again with -v to see where"
        return _report(tdn, LocalProtocolError(Reason.INTERNAL, words))
    return 0


def _report(tdn: Invocation, error: TdnError) -> int:
    if tdn.options.verbose:
        tdn.output.traceback()
    tdn.output.error(error)
    return error.exit_code
