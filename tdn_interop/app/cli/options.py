"""The options every command has. They may stand anywhere on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_FLAGS = frozenset({"--json", "-v", "--verbose"})
_VALUED = frozenset({"--config", "--lang"})


@dataclass(slots=True)
class Options:
    """What the command line said, for every command alike."""

    config: Path | None = None
    json: bool = False
    lang: str = "en"
    verbose: bool = False


def in_front(arguments: Sequence[str]) -> list[str]:
    """`arguments` with the global options moved before the subcommand, where the root command reads them.

    Nothing moves after `--`. `tdn job ls --json --config f` becomes `tdn --json --config f job ls`. No
    command may have an option of the same name.
    """
    front: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            return [*front, *rest, word, *words]
        name, equals, _ = word.partition("=")
        if word in _FLAGS or (name in _VALUED and equals):
            front.append(word)
        elif word in _VALUED:
            front += [word, *[value for value in [next(words, None)] if value is not None]]
        else:
            rest.append(word)
    return front + rest
