"""`tdn evidence`: verify what others show, offline."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tdn_interop.app.cli.invocation import invocation, read_file
from tdn_interop.app.cli.output import Output
from tdn_interop.errors import ConfigError, Reason, guard

_FIELDS = [
    "job_id", "outcome", "failure", "coordinator", "confirmed_by", "agreement_sha256", "top", "top_identity_sha256", "size_bytes",
]  # fmt: skip
_COLUMNS = ["node", "stated", "consented", "noted_at_ms", "logs"]
_KEY = re.compile(r"[0-9a-fA-F]{64}\Z")

app = typer.Typer(help="Verify evidence, offline.", no_args_is_help=True)


@app.command("verify", epilog="Example: tdn evidence verify job.bundle --top-key top.key")
def verify(
    context: typer.Context,
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="File from job bundle.")],
    top_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE_OR_HEX",
            help="Identity key of the top: 64 hexadecimal digits, or a file with them; once for each top.",
        ),
    ] = None,
) -> None:
    """Verify an evidence bundle with the key of its top; without --top-key, with the keys this node trusts."""
    from tdn_interop.app.evidence import bundle as bundles  # noqa: PLC0415  loads the cryptography

    tdn = invocation(context)
    keys = [_key(text) for text in top_key] if top_key else tdn.trusted_top_keys()
    verified = bundles.verify(read_file(bundle), *keys)
    tdn.output.data(bundles.describe(verified), lambda document: _show(tdn.output, document))
    tdn.output.note("bundle_verified")


def _show(output: Output, document: Mapping[str, Any]) -> None:
    """The verdict, then one row per party with the logs that hold its event."""
    output.record({name: document[name] for name in _FIELDS})
    parties = [party | {"logs": [log["node"] for log in party["logs"]]} for party in document["parties"]]
    output.table(parties, _COLUMNS, lambda party: not party["consented"])


def _key(text: str) -> bytes:
    """The 32 bytes of an identity key. Errors: INPUT_INVALID."""
    digits = text if _KEY.match(text) else read_file(Path(text)).decode("ascii", "replace").strip()
    guard("TDN-X-CLI-01").check(
        _KEY.match(digits), Reason.INPUT_INVALID, f"{text} holds no 64 hexadecimal digits", ConfigError
    )
    return bytes.fromhex(digits)
