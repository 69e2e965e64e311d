# SPDX-License-Identifier: MIT
"""From records to the tables of README.md and benchmarks/RESULTS.md.

In README.md a table stands between `<!-- table:cpu -->` and `<!-- /table -->`;
`<!-- table:cpu/sgd -->` asks for one suite only. Figures are never typed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, ROOT, read_all

MARKER = re.compile(r"(<!-- table:([\w/-]+) -->\n)(.*?)(<!-- /table -->)", re.DOTALL)


def table(suite: dict[str, Any]) -> str:
    """A suite as a Markdown table with its title."""
    columns = suite["columns"]
    lines = [
        "| " + " | ".join(heading for _, heading, _ in columns) + " |",
        "|" + "|".join("---:" if form else "---" for _, _, form in columns) + "|",
    ]
    for row in suite["rows"]:
        # A figure that a case does not have is an empty cell.
        cells = (
            format(row[key], form) if key in row else "" for key, _, form in columns
        )
        lines.append("| " + " | ".join(cells) + " |")
    return f"**{suite['title']}**\n\n" + "\n".join(lines) + "\n"


def machine(record: dict[str, Any]) -> str:
    """One line that says where the figures come from."""
    versions = ", ".join(f"{k} {v}" for k, v in record["versions"].items() if v)
    threads = "/".join(str(count) for count in record["threads"].values())
    return (
        f"{threads} threads ({'/'.join(record['threads'])}) on {record['cores']} cores "
        f"of {record['cpu']} "
        f"({', '.join(record['instruction_sets'])}), {record['memory_gib']} GiB, "
        f"Python {record['python']}, {versions}, commit {record['commit']}, "
        f"{record['date'][:10]}."
    )


def latest(records: list[dict[str, Any]], device: str) -> dict[str, dict[str, Any]]:
    """Suite name -> newest record of the device that has it."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        if record["device"] == device:
            found.update(dict.fromkeys(record["suites"], record))
    return found


def block(records: list[dict[str, Any]], what: str) -> str:
    """The text for one marker: DEVICE or DEVICE/SUITE.

    Raises:
        ValueError: no record has it.
    """
    device, _, only = what.partition("/")
    newest = latest(records, device)
    names = [only] if only else sorted(newest)
    if not names or any(name not in newest for name in names):
        raise ValueError(f"table:{what}: no record in {RESULTS} has it")
    parts = []
    for name in names:
        parts.append(table(newest[name]["suites"][name]))
        following = names[names.index(name) + 1 :]
        if not following or newest[following[0]] is not newest[name]:
            parts.append(f"<sub>{machine(newest[name])}</sub>\n")
    return "\n".join(parts)


def fill(text: str, records: list[dict[str, Any]]) -> str:
    """Replaces what stands between the markers."""

    def replace(match: re.Match[str]) -> str:
        return match[1] + block(records, match[2]) + match[4]

    return MARKER.sub(replace, text)


def render(readme: Path = ROOT / "README.md", results: Path = RESULTS) -> list[Path]:
    """Writes README.md's tables and RESULTS.md; returns the files that changed."""
    records = read_all(results)
    changed = []
    whole = ["# Results", "", "Made by `python -m benchmarks render`; do not edit.", ""]
    for device in sorted({record["device"] for record in records}):
        whole += [f"## {device}", "", block(records, device)]
    texts = {results.parent / "RESULTS.md": "\n".join(whole).rstrip() + "\n"}
    if readme.exists():
        texts[readme] = fill(readme.read_text(), records)
    for path, text in texts.items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            changed.append(path)
    return changed
