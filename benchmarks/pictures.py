# SPDX-License-Identifier: MIT
"""Bars of a suite as an SVG file, written by hand: the same record gives the same file."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

BAR, GAP, LEFT, RIGHT, ROOM = 16, 3, 190, 60, 26  # pixels
PANEL, LETTER = 300, 7  # width of the bars of one panel, of a bold letter
COLOURS = {"yolov9mem conv": "#1b7f5c", "yolov9mem min": "#0f5fa6"}
OURS, STOCK = "#1b7f5c", "#9aa0a6"
TEXT = 'font-family="sans-serif" font-size="12"'


@dataclass(frozen=True)
class Picture:
    """What is drawn of a suite: a group of bars for each case, a panel for each value.

    case, name: keys of the rows. panels: (key, heading, format). only: cases that are
    drawn, None: all.
    """

    case: str
    name: str
    panels: tuple[tuple[str, str, str], ...]
    only: tuple[str, ...] | None = None


# DEVICE/SUITE -> its picture.
PICTURES = {
    "gpu/step": Picture(
        "case",
        "implementation",
        (
            ("allocated_gb", "peak allocated, GB", ".1f"),
            ("images_per_s", "images/s", ".0f"),
        ),
        ("batch 8", "batch 16", "batch 32", "batch 64"),
    ),
    "gpu/sgd": Picture("case", "implementation", (("whole_ms", "ms", ".2f"),)),
    "cpu/plan": Picture(
        "case",
        "implementation",
        (("held_mb", "held between forward and backward, MB", ".0f"),),
    ),
    "cpu/step": Picture("case", "implementation", (("median_ms", "ms a step", ".0f"),)),
    "cpu/gpu_plan": Picture(
        "batch", "keep", (("peak_gb", "planned peak on a GPU, GB", ".1f"),)
    ),
}


def _colour(name: str) -> str:
    return COLOURS.get(name, OURS if "yolov9mem" in name else STOCK)


def _text(x: float, y: float, words: str, more: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" {TEXT} {more}>{escape(words)}</text>'


def _groups(rows: list[dict[str, Any]], picture: Picture) -> dict[str, list[Any]]:
    groups: dict[str, list[Any]] = {}
    for row in rows:
        case = str(row.get(picture.case, ""))
        if picture.only is None or case in picture.only:
            groups.setdefault(case, []).append(row)
    return groups


def _bar(row: dict[str, Any], panel: tuple[str, str, str], most: float) -> tuple:
    """(length in pixels, text behind it) of one value."""
    key, _, form = panel
    if not isinstance(row.get(key), (int, float)):
        return 0.0, str(row.get("verdict") or "not measured").split(":")[0]
    return row[key] / most * PANEL, format(row[key], form)


def draw(suite: dict[str, Any], picture: Picture) -> str:
    """The SVG file's text."""
    groups = _groups(suite["rows"], picture)
    count = sum(len(rows) for rows in groups.values())
    height = 62 + count * (BAR + GAP) + len(groups) * ROOM
    width = LEFT + len(picture.panels) * (PANEL + RIGHT)
    width = max(width, 16 + LETTER * len(suite["title"]))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">',
        '<rect width="100%" height="100%" fill="white"/>',
        _text(8, 20, suite["title"], 'font-weight="bold"'),
    ]
    for number, panel in enumerate(picture.panels):
        left = LEFT + number * (PANEL + RIGHT)
        parts.append(_text(left, 42, panel[1], 'fill="#444"'))
        values = [r.get(panel[0]) for rows in groups.values() for r in rows]
        numbers = [v for v in values if isinstance(v, (int, float))]
        most = max([*numbers, 1e-9])
        y = 52
        for case, rows in groups.items():
            y += ROOM
            if number == 0:
                parts.append(_text(8, y - 8, case, 'font-weight="bold"'))
            for row in rows:
                name = str(row.get(picture.name, ""))
                length, words = _bar(row, panel, most)
                if number == 0:
                    parts.append(_text(20, y + 12, name))
                parts.append(
                    f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{BAR}" '
                    f'fill="{_colour(name)}"/>'
                )
                parts.append(_text(left + length + 4, y + 12, words))
                y += BAR + GAP
    return "\n".join([*parts, "</svg>"]) + "\n"
