"""One run of the command: its options, its output, its configuration, its node.

What takes long to import is imported by the command that needs it, so that `tdn --help` is quick.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import typer

from tdn_interop.app.cli.options import Options
from tdn_interop.app.cli.output import Output
from tdn_interop.app.cli.words import Words
from tdn_interop.errors import ConfigError, Reason, guard

if TYPE_CHECKING:
    from tdn_interop.app.control.control_client import NodeClient
    from tdn_interop.config import NodeConfig

T = TypeVar("T")


class Invocation:
    """What every command is handed as `context.obj`."""

    def __init__(self) -> None:
        self.options = Options()

    @cached_property
    def output(self) -> Output:
        """The output; the options are known when it is first used."""
        return Output(Words(self.options.lang), as_json=self.options.json)

    @cached_property
    def config(self) -> NodeConfig:
        """The configuration of the node. Errors: CONFIG_INVALID."""
        from tdn_interop.config import load_config  # noqa: PLC0415  see the module docstring

        return load_config(self.options.config)

    def ask(self, question: Callable[[NodeClient], Awaitable[T]]) -> T:
        """The node's answer to `question`. Errors: those of the node, NODE_DOWN."""
        return asyncio.run(self.answer(question))

    def follow(
        self,
        question: Callable[[NodeClient], AsyncIterator[T]],
        each: Callable[[T], None],
        complete: Callable[[T], bool],
    ) -> T:
        """Call `each` with every answer of a stream; the last one.

        Errors: those of the node, NODE_DOWN; INTERNAL when the last answer is not the `complete` one.
        """

        async def answers(node: NodeClient) -> T:
            last = None
            async for last in question(node):
                each(last)
            ended = last is not None and complete(last)
            guard("TDN-X-CLI-03").check(ended, Reason.INTERNAL, "the node stopped answering before the end")
            return cast("T", last)

        return self.ask(answers)

    def trusted_top_keys(self) -> list[bytes]:
        """The identity keys of the tops that this node trusts. Errors: NOT_ENROLLED."""
        from tdn_interop.app.members.federation import trusted_keys  # noqa: PLC0415  see the module docstring

        return trusted_keys(self.config)

    async def answer(self, question: Callable[[NodeClient], Awaitable[T]]) -> T:
        """See `ask`; for those that run a loop of their own."""
        from tdn_interop.app.control.control_client import connected  # noqa: PLC0415  see the module docstring
        from tdn_interop.config import control_socket  # noqa: PLC0415  see the module docstring

        where = f"{self.config.id}, configured in {self.options.config or self.config.dir}"
        async with connected(control_socket(self.config), where) as node:
            return await question(node)


def invocation(context: typer.Context) -> Invocation:
    """The invocation a command belongs to."""
    found = context.obj
    assert isinstance(found, Invocation)  # noqa: S101  narrows the type
    return found


def read_file(path: Path) -> bytes:
    """The content of an input. Errors: INPUT_INVALID."""
    try:
        return path.read_bytes()
    except OSError as error:
        words = f"{path} cannot be read: {error.strerror}"
        guard("TDN-X-CLI-01").refuse(Reason.INPUT_INVALID, words, ConfigError)


def write_new_file(path: Path, content: bytes) -> None:
    """Write a file that does not exist yet. Errors: OUTPUT_EXISTS, INPUT_INVALID."""
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        words = f"{path} exists"
        guard("TDN-X-CLI-01").refuse(Reason.OUTPUT_EXISTS, words, ConfigError)
    except OSError as error:
        words = f"{path} cannot be written: {error.strerror}"
        guard("TDN-X-CLI-01").refuse(Reason.INPUT_INVALID, words, ConfigError)
