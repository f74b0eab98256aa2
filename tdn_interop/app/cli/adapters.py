"""`tdn adapter`: the platforms this node can speak with."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer

from tdn_interop.app.cli.invocation import invocation

GROUP = "tdn_interop.adapters"
BROKEN = 3  # the exit code of configuration errors

app = typer.Typer(help="See the platforms this node can speak with.", no_args_is_help=True)


@app.command("ls", epilog="Example: tdn adapter ls")
def ls(context: typer.Context) -> None:
    """List the adapters that are installed; a broken one is red and the exit code is 3."""
    tdn = invocation(context)
    found = [_load(point) for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)]
    tdn.output.data({"adapters": found}, lambda document: tdn.output.table(
        document["adapters"], ["name", "value", "ok", "detail"], lambda adapter: not adapter["ok"]))  # fmt: skip
    if not all(adapter["ok"] for adapter in found):
        raise typer.Exit(BROKEN)


def _load(point: EntryPoint) -> dict[str, Any]:
    try:
        point.load()
    except Exception as error:  # noqa: BLE001  other people's code runs at import; whatever it raises is the finding
        detail = f"{type(error).__name__}: {error}"
        return {"name": point.name, "value": point.value, "ok": False, "detail": detail}
    return {"name": point.name, "value": point.value, "ok": True, "detail": ""}
