"""`tdn top`: what a node, or every node of a lab, is doing now."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import termios
import tty
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from tdn_interop.app.cli.invocation import Invocation, invocation
from tdn_interop.app.cli.lab import complete
from tdn_interop.app.cli.output import Document
from tdn_interop.app.cli.top_view import view
from tdn_interop.errors import Reason, TdnError

REFRESH_S = 1.0
# Rows of a section on the screen; in a pipe there are all.
ROWS = 12

Look = Callable[[], Awaitable[list[Document]]]


def top(
    context: typer.Context,
    directory: Annotated[
        Path | None, typer.Option("--dir", metavar="DIR", help="Every node of the lab in DIR.")
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Print once, as it is in a pipe; do not stay.")
    ] = False,
) -> None:
    """Watch links, tunnels, sessions, transfers, jobs and refusals live. Leave with q."""
    tdn = invocation(context)
    look = _lab(directory) if directory else _one(tdn)
    if once or not tdn.output.on_terminal:
        found = complete(_all(look))
        tdn.output.data({"nodes": found}, lambda _: tdn.output.lay_out(view(tdn.output, found, {}, None)))
    else:
        complete(_watch(tdn, look))


def _one(tdn: Invocation) -> Look:
    async def look() -> list[Document]:
        return [await tdn.answer(lambda node: node.snapshot()) | {"runs": True}]

    return look


def _lab(directory: Path) -> Look:
    from tdn_interop.app.lab.lab import Lab  # noqa: PLC0415  loads the cryptography

    lab = Lab(directory)

    async def snapshot(name: str, role: str) -> Document:
        try:
            async with lab.client(name) as node:
                return await node.snapshot() | {"runs": True}
        except TdnError as error:
            if error.reason is not Reason.NODE_DOWN:
                raise
            return {"node_id": name, "role": role, "runs": False}

    async def look() -> list[Document]:
        return list(await asyncio.gather(*(snapshot(node.id, node.role) for node in lab.nodes)))

    return look


async def _all(look: Look) -> list[Document]:
    return await look()


async def _watch(tdn: Invocation, look: Look) -> None:
    """Look again and again until somebody types q. A node that answers no more is shown so, it may come back."""
    now = await look()
    before: dict[str, Document] = {}
    with _keys() as typed, tdn.output.screen() as show:
        while not typed.is_set():
            show(view(tdn.output, now, before, ROWS))
            before = {one["node_id"]: one for one in now if one["runs"]} or before
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(typed.wait(), REFRESH_S)
            try:
                now = await look()
            except TdnError as error:
                if error.reason is not Reason.NODE_DOWN:
                    raise
                now = [{**one, "runs": False} for one in now]


@contextlib.contextmanager
def _keys() -> Iterator[asyncio.Event]:
    """Set when q is typed, or nothing can be typed any more; typed keys are not shown."""
    leave, loop = asyncio.Event(), asyncio.get_running_loop()
    if not sys.stdin.isatty():
        yield leave
        return
    number = sys.stdin.fileno()
    kept = termios.tcgetattr(number)

    def typed() -> None:
        if sys.stdin.read(1) in {"q", "Q", ""}:
            leave.set()

    tty.setcbreak(number)
    loop.add_reader(number, typed)
    try:
        yield leave
    finally:
        loop.remove_reader(number)
        termios.tcsetattr(number, termios.TCSADRAIN, kept)
