"""What hubs cost: messages over no, one, two and three relays, and CPU of each process.

usage: python -m bench.relay [--json] [--rounds N] [--count N] [--out FOLDER]
"""

from __future__ import annotations

import asyncio
import statistics

from bench.mesh import WAYS, Round, mesh
from bench.result import Arguments, Row, arguments, report, rows

FLOOR = "raw gRPC stream"


def name(relays: int) -> str:
    """Of a row."""
    return f"{relays} relay{'' if relays == 1 else 's'}" if relays else "channel, direct"


async def measure(got: Arguments) -> dict[str, list[Round]]:
    """Rounds of each kind, taking turns; a first one of each is not counted."""
    found: dict[str, list[Round]] = {FLOOR: [], **{name(relays): [] for relays in WAYS}}
    async with mesh() as one:
        for number in range(got.rounds + 1):
            turn = {FLOOR: await one.raw(got.count)}
            for relays in WAYS:
                turn[name(relays)] = await one.messages(relays, got.count)
            for kind, result in turn.items() if number else ():
                found[kind].append(result)
    return found


def facts(found: list[Row]) -> dict[str, float]:
    """CPU of a relay for a gigabyte, and what the second relay takes of the rate."""
    by_name = {row.name: row for row in found}
    per_hop = [by_name[name(relays)].cpu_s_per_gb[hub] for relays, (_, path) in WAYS.items() for hub in path]
    rates = [by_name[name(relays)].mb_per_s for relays in WAYS]
    return {
        "relay_cpu_s_per_gb": statistics.median(per_hop),
        "relay_gb_per_s_per_core": 1 / statistics.median(per_hop),
        "second_hop_costs": 1 - rates[2] / rates[1],
    }


def main() -> None:
    """Measure and report."""
    got = arguments("Messages over relays.")
    found = rows(asyncio.run(measure(got)), FLOOR)
    report("relay", "Messages over relays", got, found, facts(found))


if __name__ == "__main__":
    main()
