"""`tdn node backup` and `tdn node restore`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from tdn_interop.app.cli.invocation import invocation, read_file
from tdn_interop.errors import ConfigError, Reason, TdnError, guard

_PassphraseFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="File whose first line encrypts the backup.")
]


def backup(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="New file; nothing is overwritten.")],
    passphrase_file: _PassphraseFile = None,
) -> None:
    """Write keys, membership, configuration and database of this node, running or not, into one file."""
    from tdn_interop.app.backup.backup import back_up_stopped  # noqa: PLC0415  loads the cryptography

    tdn = invocation(context)
    secret, path = _passphrase(passphrase_file), file.absolute()
    try:
        done = tdn.ask(lambda node: node.registry.back_up(str(path), secret))
    except TdnError as error:
        if error.reason is not Reason.NODE_DOWN:
            raise
        done = back_up_stopped(tdn.config, path, secret)
    tdn.output.data(done)
    tdn.output.note("backup_sealed" if secret else "backup_open")


def restore(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="From node backup.")],
    directory: Annotated[
        Path, typer.Option("--dir", metavar="DIR", help="Folder of the node; new or empty.")
    ],
    passphrase_file: _PassphraseFile = None,
) -> None:
    """Make the folder of a node from a backup. The old copy must never run again."""
    from tdn_interop.app.backup import backup as backups  # noqa: PLC0415  loads the cryptography

    tdn = invocation(context)
    about = backups.restore(file.absolute(), directory.absolute(), _passphrase(passphrase_file))
    tdn.output.data(dataclasses.asdict(about))
    tdn.output.note("restored", dir=str(directory))


def _passphrase(file: Path | None) -> str:
    """The first line of a file; empty without a file. Errors: INPUT_INVALID, also for an empty line."""
    if file is None:
        return ""
    line = read_file(file).decode(errors="replace").partition("\n")[0].strip()
    guard("TDN-X-CLI-01").check(line, Reason.INPUT_INVALID, f"the first line of {file} is empty", ConfigError)
    return line
