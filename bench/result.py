"""What a bench found: rounds in, a table, JSON and a picture out.

Wall time depends on what else the machine does; CPU time does so much less. Every figure stands beside the floor of
the same run, and rounds of all kinds take turns, so that a disturbance meets all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import ssl
import statistics
from dataclasses import dataclass
from pathlib import Path

import google.protobuf
import grpc
from rich.console import Console
from rich.table import Table

from bench.chart import bars
from bench.mesh import Round


@dataclass(frozen=True, slots=True)
class Arguments:
    """Of the command line."""

    as_json: bool
    out: Path
    rounds: int
    count: int


@dataclass(frozen=True, slots=True)
class Row:
    """All rounds of one kind: the median rate, its share of the floor's, CPU by process at its least."""

    name: str
    mb_per_s: float
    of_floor: float
    cpu_s_per_gb: dict[str, float]


def arguments(what: str) -> Arguments:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--json", action="store_true", help="JSON on standard output instead of a table")
    parser.add_argument(
        "--out", type=Path, default=Path("bench/out"), help="folder for the JSON and the picture"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each kind")
    parser.add_argument("--count", type=int, default=256, help="messages of 1 MiB in a round")
    got = parser.parse_args()
    return Arguments(got.json, got.out, got.rounds, got.count)


def rows(rounds: dict[str, list[Round]], floor: str) -> list[Row]:
    """One row for each kind."""
    rates = {name: statistics.median(one.mb_per_s for one in of) for name, of in rounds.items()}
    return [
        Row(
            name,
            round(rates[name], 1),
            round(rates[name] / rates[floor], 3),
            {process: round(min(one.cpu_s_per_gb(process) for one in of), 3) for process in of[0].cpu_s},
        )
        for name, of in rounds.items()
    ]


def machine() -> dict[str, object]:
    """Where it ran."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown"
    )
    return {
        "cpu": model, "cores": os.cpu_count(), "load": [round(one, 2) for one in os.getloadavg()],
        "kernel": platform.release(), "python": platform.python_version(), "openssl": ssl.OPENSSL_VERSION,
        "grpc": grpc.__version__, "protobuf": google.protobuf.__version__,
    }  # fmt: skip


def report(name: str, title: str, got: Arguments, found: list[Row], facts: dict[str, float]) -> None:
    """Print, and write `<name>.json` and `<name>.svg`. `facts` are single numbers with their unit in the name."""
    document = {
        "bench": name, "machine": machine(), "rounds": got.rounds, "message_bytes": 1 << 20, "messages": got.count,
        "rows": [
            {"name": row.name, "mb_per_s": row.mb_per_s, "of_floor": row.of_floor, "cpu_s_per_gb": row.cpu_s_per_gb}
            for row in found
        ],
        "facts": facts,
    }  # fmt: skip
    got.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=1) + "\n"
    (got.out / f"{name}.json").write_text(text)
    (got.out / f"{name}.svg").write_text(bars(title, found))
    if got.as_json:
        print(text, end="")
    else:
        _print(title, found, facts)


def _print(title: str, found: list[Row], facts: dict[str, float]) -> None:
    table = Table("", "MB/s", "of the floor", "CPU s/GB by process", title=title)
    for row in found:
        shares = ", ".join(f"{process} {used:.2f}" for process, used in row.cpu_s_per_gb.items())
        table.add_row(row.name, f"{row.mb_per_s:.0f}", f"{row.of_floor:.0%}", shares)
    console = Console()
    console.print(table)
    for name, value in facts.items():
        console.print(f"{name}: {value:.2f}")
