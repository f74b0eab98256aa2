"""How documents, tables, progress and errors look: JSON for programs, tables for people.

Data goes to stdout, everything else to stderr. Text that comes from other nodes cannot steer the
terminal: control characters are shown, not sent.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from tdn_interop.app.cli.words import Words
from tdn_interop.errors import TdnError

Document = Mapping[str, Any]

# What a pipe gets is never wrapped: a digest in two halves helps nobody.
_UNLIMITED = 100_000
# Metadata of an error that another node has noticed: whose operator is meant, depends on it.
NOTICED_BY = "noticed_by"
# Columns of a bar that leave room for size, rate and remaining time in 80.
_BAR = 24
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class _Moved(ProgressColumn):
    """What is there, of how much, and how fast; in the units of everything else."""

    def render(self, task: Task) -> Text:
        """`12.0 MiB of 1.0 GiB  3.1 MiB/s`; only what is known."""
        size = "" if task.total is None else f"{_size(int(task.completed))} / {_size(int(task.total))}"
        speed = task.finished_speed or task.speed
        return Text(f"{size}  {_size(int(speed))}/s" if speed else size)


class Output:
    """Prints in one language, as JSON or for people."""

    def __init__(self, words: Words, *, as_json: bool) -> None:
        self.words = words
        self.as_json = as_json
        self._out = _console(stderr=False)
        self._err = _console(stderr=True)

    def data(self, document: Document, show: Callable[[Document], None] | None = None) -> None:
        """One document: a JSON line, or `show`, or one line per field."""
        if self.as_json:
            self._out.out(as_line(document), highlight=False)
        else:
            (show or self.record)(document)

    def record(self, document: Document) -> None:
        """One field per line, without those that say nothing; the fields of a field stand below it."""
        grid = _columns()
        for name, value in document.items():
            label = Text(self.words.label(name), style="bold")
            if isinstance(value, Mapping) and value and name != "failure":
                grid.add_row(label)
                for part, content in value.items():
                    grid.add_row(Text(f"  {visible(self.words.label(part))}"), self._cell(part, content))
            elif value not in (None, "", [], {}):
                grid.add_row(label, self._cell(name, value))
        _lay_out(self._out, grid)

    def line(self, text: str) -> None:
        """A value alone on its line, ready for a pipe."""
        self._out.out(visible(text), highlight=False)

    def table(
        self, rows: Sequence[Document], columns: Sequence[str], bad: Callable[[Document], bool] | None = None
    ) -> None:
        """One row per document; `bad` rows are red."""
        if rows:
            _lay_out(self._out, self.grid(rows, columns, bad))
        else:
            self.note("none")

    def grid(
        self, rows: Sequence[Document], columns: Sequence[str], bad: Callable[[Document], bool] | None = None
    ) -> Table:
        """One row per document; `bad` rows are red."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in columns:
            table.add_column(Text(self.words.label(name)), overflow="fold", no_wrap=name == "job_id")
        for row in rows:
            style = "red" if bad and bad(row) else ""
            cells = (
                Text(_minute(row[name])) if name.endswith("at_ms") else self._cell(name, row[name])
                for name in columns
            )
            table.add_row(*cells, style=style)
        return table

    def lay_out(self, content: RenderableType) -> None:
        """Print tables and texts below each other."""
        _lay_out(self._out, content)

    @property
    def on_terminal(self) -> bool:
        """True when data goes to a terminal and not to a program."""
        return self._out.is_terminal and not self.as_json

    @property
    def width(self) -> int:
        """Columns of the terminal; without one, more than anything needs."""
        return self._out.width

    @contextlib.contextmanager
    def screen(self) -> Iterator[Callable[[RenderableType], None]]:
        """The whole terminal; call it with what stands there now. Afterwards everything is as before."""
        with Live(console=self._out, screen=True, auto_refresh=False) as live:
            yield lambda content: live.update(content, refresh=True)

    def note(self, key: str, **values: str) -> None:
        """A sentence of the catalogue on stderr; programs do not get it. A command in it can be copied whole."""
        if not self.as_json:
            self._err.print(Text(visible(self.words.say(key, **values))), soft_wrap=True)

    def interrupted(self) -> None:
        """The one line after Ctrl-C."""
        self._err.print(Text(self.words.say("interrupted"), style="yellow"))

    def error(self, error: TdnError) -> None:
        """What, why, whose fault, what to do next."""
        if self.as_json:
            self._err.out(as_line({"error": error_document(error, self.words)}), highlight=False)
            return
        say, spec = self.words.say, error.reason.value
        head = f"{say('error')} {error.reason.name}: {self.words.pick(spec.summary)}"
        self._err.print(Text(head, style="bold red"))
        metadata = dict(error.metadata)
        node = metadata.pop(NOTICED_BY, "")
        details = "  ".join(f"{key}={value}" for key, value in metadata.items())
        lines = {
            "why": error.message,
            "noticed": node,
            "blame": self.words.blame(spec.blame, node),
            "next": self.words.pick(spec.advice),
            "rule": error.requirement,
            "details": details,
        }
        grid = _columns()
        for key, value in lines.items():
            if value:
                grid.add_row(Text(f"  {say(key)}", style="bold"), Text(visible(value)))
        _lay_out(self._err, grid)

    def traceback(self) -> None:
        """The exception being handled, for `-v`; local variables stay hidden."""
        self._err.print_exception(show_locals=False)

    @contextlib.contextmanager
    def transfer(self, key: str) -> Iterator[Callable[[int, int], None]]:
        """A bar with rate and remaining time; call it with (bytes done, bytes in all).

        Only on a terminal, and not under NO_COLOR or CI.
        """
        columns = BarColumn(_BAR), _Moved(table_column=Column(no_wrap=True)), TimeRemainingColumn()
        label = TextColumn("{task.description}", markup=False)
        with Progress(label, *columns, console=self._err, disable=not self._lively()) as progress:
            task = progress.add_task(self.words.say(key), total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total or None)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[Callable[[str, float], None]]:
        """A bar for a job; call it with (state, part done from 0 to 1)."""
        text = TextColumn("{task.description}", markup=False)
        with Progress(text, BarColumn(), console=self._err, disable=not self._lively()) as progress:
            task = progress.add_task("", total=1.0)
            yield lambda state, part: progress.update(task, description=visible(state), completed=part)

    def _lively(self) -> bool:
        # Conventions between terminals and programs, not configuration of the node.
        quiet = any(os.environ.get(name) for name in ("NO_COLOR", "CI"))  # noqa: TID251
        return self._err.is_terminal and not quiet and not self.as_json

    def _cell(self, name: str, value: Any) -> Text:
        return Text(visible(self.text(name, value)))

    def text(self, name: str, value: Any) -> str:
        """The value of a field for people; the suffix of its name is its unit."""
        if value is None:
            return "-"
        if isinstance(value, bool):
            return self.words.say("yes" if value else "no")
        if isinstance(value, list):
            return ", ".join(self.text(name, item) for item in value)
        if isinstance(value, Mapping) and name == "failure":
            who = f" ({value['noticed_by']})" if value["noticed_by"] else ""
            return f"{value['reason']}: {value['message']}{who}"
        if isinstance(value, Mapping):
            return "  ".join(f"{self.words.label(k)}={self.text(k, v)}" for k, v in value.items())
        unit = next((shown for suffix, shown in _UNITS.items() if name.endswith(suffix)), str)
        return unit(value)


def _columns() -> Table:
    """Two columns; what is too long for the second goes on in the next line, nothing is cut off."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column()
    grid.add_column(overflow="fold")
    return grid


def _lay_out(console: Console, grid: RenderableType) -> None:
    """Print columns; a pipe does not get the blanks that fill up the last one."""
    if console.is_terminal:
        console.print(grid)
        return
    with console.capture() as filled:
        console.print(grid)
    for line in filled.get().splitlines():
        console.out(line.rstrip(), highlight=False)


def as_line(document: Document) -> str:
    """`document` as one line of JSON; readable Chinese, escaped control characters."""
    text = json.dumps(document, ensure_ascii=False)
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def visible(text: str) -> str:
    """`text` with every control and direction character written out, the way Python source has it."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def error_document(error: TdnError, words: Words) -> dict[str, Any]:
    """The JSON of an error."""
    spec = error.reason.value
    return {
        "reason": error.reason.name,
        "summary": words.pick(spec.summary),
        "message": error.message,
        "blame": spec.blame.value,
        "retry": spec.retry.value,
        "advice": words.pick(spec.advice),
        "requirement": error.requirement,
        "exit_code": error.exit_code,
        "metadata": error.metadata,
    }


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console.width = _UNLIMITED
    return console


def _moment(ms: int) -> str:
    if not ms:
        return "-"
    moment = dt.datetime.fromtimestamp(ms / 1000, dt.UTC).astimezone()
    return moment.isoformat(sep=" ", timespec="seconds")


def _minute(ms: int) -> str:
    """The moment in a table, where room is scarce."""
    return _moment(ms)[:16]


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else str(dt.timedelta(seconds=int(seconds)))


def _size(size: int) -> str:
    amount, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{size} B" if unit == "B" else f"{amount:.1f} {unit}"


# The suffix of a field name is its unit.
_UNITS: dict[str, Callable[[Any], str]] = {
    "at_ms": _moment,
    "_ms": lambda value: f"{value:.2f} ms",
    "_s": _duration,
    "bytes": _size,
    "rate": lambda value: f"{_size(int(value))}/s" if value else "-",
    "progress": lambda value: f"{value:.0%}",
}
