"""How fast a channel between two nodes is, against a raw gRPC stream with gRPC's own TLS in the same run.

usage: python -m bench.channel [--json] [--rounds N] [--count N] [--out FOLDER]
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from bench.mesh import Mesh, Round, mesh
from bench.peer import MESSAGE_BYTES
from bench.result import Arguments, arguments, report, rows

FLOOR, CHANNEL, FILE = "raw gRPC stream", "channel, direct", "file, direct"


async def measure(got: Arguments) -> dict[str, list[Round]]:
    """Rounds of each kind, taking turns; a first one of each is not counted."""
    found: dict[str, list[Round]] = {FLOOR: [], CHANNEL: [], FILE: []}
    async with mesh() as one:
        source = await asyncio.to_thread(_file, one, got.count)
        for number in range(got.rounds + 1):
            turn = {
                FLOOR: await one.raw(got.count),
                CHANNEL: await one.messages(0, got.count),
                FILE: await one.file(0, source),
            }
            for name, result in turn.items() if number else ():
                found[name].append(result)
    return found


def _file(one: Mesh, count: int) -> Path:
    source = one.folder / "source"
    source.write_bytes(bytes(MESSAGE_BYTES) * count)
    return source


def main() -> None:
    """Measure and report."""
    got = arguments("Channel, direct, against the floor.")
    found = rows(asyncio.run(measure(got)), FLOOR)
    report("channel", "A channel between two nodes", got, found, {"channel_of_floor": found[1].of_floor})


if __name__ == "__main__":
    main()
