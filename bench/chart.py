"""A bar chart as SVG: one bar for each row, made of what each process took of the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Protocol

COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2")
LEFT, WIDTH, STEP, BAR = 190, 520, 46, 20
LEGEND = (
    "One colour for each process, the sender at the left, the receiver at the right; at the end the rate."
)


class Bar(Protocol):
    """What a row has to have."""

    @property
    def name(self) -> str:
        """Its label."""

    @property
    def mb_per_s(self) -> float:
        """10^6 bytes a second, wall."""

    @property
    def cpu_s_per_gb(self) -> dict[str, float]:
        """CPU seconds for 10^9 bytes, by process."""


def bars(title: str, rows: Sequence[Bar]) -> str:
    """The document. The length of a bar is CPU time for a gigabyte; the rate stands at its end."""
    longest = max(sum(row.cpu_s_per_gb.values()) for row in rows) or 1.0
    height = 74 + STEP * len(rows)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 {height}" font-family="sans-serif" font-size="13">',
        f'<rect width="900" height="{height}" fill="white"/>',
        f'<text x="16" y="26" font-size="16">{escape(title)}: CPU seconds for a gigabyte, by process</text>',
        f'<text x="16" y="46" fill="#555">{LEGEND}</text>',
    ]
    for number, row in enumerate(rows):
        parts += _bar(row, 62 + STEP * number, WIDTH / longest)
    return "\n".join([*parts, "</svg>", ""])


def _bar(row: Bar, y: int, scale: float) -> list[str]:
    parts = [f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">{escape(row.name)}</text>']
    x = float(LEFT)
    for number, (process, used) in enumerate(row.cpu_s_per_gb.items()):
        colour = COLOURS[number % len(COLOURS)]
        parts.append(
            f'<rect x="{x:.1f}" y="{y}" width="{used * scale:.1f}" height="{BAR}" fill="{colour}">'
            f"<title>{escape(process)}: {used:.2f} s/GB</title></rect>"
        )
        if used * scale > 30:
            parts.append(
                f'<text x="{x + used * scale / 2:.1f}" y="{y + 15}" text-anchor="middle" fill="white">{used:.2f}</text>'
            )
        x += used * scale
    parts.append(f'<text x="{x + 8:.1f}" y="{y + 15}">{row.mb_per_s:.0f} MB/s</text>')
    return parts
