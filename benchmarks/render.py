# SPDX-License-Identifier: MIT
"""From records to the tables and pictures of README.md and benchmarks/RESULTS.md.

In README.md a table stands between `<!-- table:cpu -->` and `<!-- /table -->`;
`<!-- table:cpu/sgd -->` asks for one suite only, and `<!-- table:gpu/step|cpu/step -->`
for the first that some record has. `picture:` instead of `table:` is the suite's
picture. Figures are never typed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu import suites
from benchmarks.pictures import PICTURES, draw
from benchmarks.record import RESULTS, ROOT, read_all

MARKER = re.compile(
    r"(<!-- (table|picture):([\w/|-]+) -->\n)(.*?)(<!-- /\2 -->)", re.DOTALL
)
FOLDER = "pictures"  # beside RESULTS.md
LACKING = "of an earlier run that it lacks"
SHORT_OF_TIME = {  # suites that a call on a GPU may end before: what rows of theirs are
    "step": "Cases",
    "step_alone": "Cases",
    "checks": "Checks",
}


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
    gpu = ""
    if "gpu" in record:
        found = record["gpu"]
        gpu = f"{found['name']}, driver {found.get('driver')}, "
        gpu += f"CUDA {found.get('cuda')}, cuDNN {found.get('cudnn')}; "
    if record.get("rehearsal"):
        gpu = "A REHEARSAL, NO MEASUREMENT; "
    threads = "/".join(str(count) for count in record["threads"].values())
    return (
        f"{gpu}{threads} threads ({'/'.join(record['threads'])}) "
        f"on {record['cores']} cores of {record['cpu']} "
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


def is_found(row: dict[str, Any]) -> bool:
    """Of a row of such a suite: was there time for it, and did it not fail?"""
    return "images_per_s" in row or row.get("outcome") == "done"


def fails(row: dict[str, Any]) -> bool:
    """Of a row of checks: an earlier record's is not shown in its place."""
    return bool(row.get("outcome") == "failed")


def missing_cases(
    records: list[dict[str, Any]], device: str, name: str
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(record, suite) of earlier records on a GPU: a call there may end before all cases
    of the training step are measured, and all checks are made."""
    if device != "gpu" or name not in SHORT_OF_TIME:
        return
    seen: set[str] = set()
    of_device = [r for r in records if r["device"] == device and name in r["suites"]]
    for record in reversed(of_device):
        suite = record["suites"][name]
        rows = [row for row in suite["rows"] if is_found(row)]
        rows = [row for row in rows if row["case"] not in seen]
        if seen and rows:
            title = f"{SHORT_OF_TIME[name]} {LACKING}"
            yield record, suite | {"title": title, "rows": rows}
        seen |= {row["case"] for row in suite["rows"] if is_found(row) or fails(row)}


def first_of(records: list[dict[str, Any]], choice: str) -> str:
    """Of "gpu/step|cpu/step" the first that a record has.

    Raises:
        ValueError: none has any.
    """
    for what in choice.split("|"):
        device, _, only = what.partition("/")
        newest = latest(records, device)
        if newest and (not only or only in newest):
            return what
    raise ValueError(f"table:{choice}: no record in {RESULTS} has it")


def picture(records: list[dict[str, Any]], what: str, below: str) -> str:
    """The line that shows a suite's picture; `below`: the way to the pictures."""
    device, _, only = what.partition("/")
    title = latest(records, device)[only]["suites"][only]["title"]
    return f"![{title}]({below}{FOLDER}/{what.replace('/', '-')}.svg)\n"


def all_cases(records: list[dict[str, Any]], device: str, name: str) -> dict[str, Any]:
    """The newest record's suite with the cases that it lacks, by their numbers: what a
    row is compared with is of the row's own record."""
    suite = latest(records, device)[name]["suites"][name]
    others = [lacking["rows"] for _, lacking in missing_cases(records, device, name)]
    if not others:
        return suite
    rows = [row for some in (suite["rows"], *others) for row in some]
    rows.sort(key=lambda row: [int(n) for n in re.findall(r"\d+", row["case"])])
    return suite | {"rows": rows}


def drawings(records: list[dict[str, Any]]) -> dict[str, str]:
    """File name -> SVG of every suite that has a picture."""
    made = {}
    for what, how in PICTURES.items():
        device, _, only = what.partition("/")
        newest = latest(records, device)
        if only in newest:
            suite = all_cases(records, device, only)
            made[f"{what.replace('/', '-')}.svg"] = draw(suite, how)
    return made


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
        if not only and f"{device}/{name}" in PICTURES:
            parts.append(picture(records, f"{device}/{name}", ""))
        following = names[names.index(name) + 1 :]
        others = list(missing_cases(records, device, name))
        if others or not following or newest[following[0]] is not newest[name]:
            parts.append(f"<sub>{machine(newest[name])}</sub>\n")
        for record, suite in others:
            parts += [table(suite), f"<sub>{machine(record)}</sub>\n"]
    return "\n".join(parts)


def fill(text: str, records: list[dict[str, Any]]) -> str:
    """Replaces what stands between the markers."""

    def replace(match: re.Match[str]) -> str:
        what = first_of(records, match[3])
        if match[2] == "picture":
            return match[1] + picture(records, what, "benchmarks/") + match[5]
        return match[1] + block(records, what) + match[5]

    return MARKER.sub(replace, text)


def render(readme: Path = ROOT / "README.md", results: Path = RESULTS) -> list[Path]:
    """Writes README.md's tables and RESULTS.md; returns the files that changed."""
    records = read_all(results)
    for record in records:
        if "tasks" in record:
            # Of a GPU: as tables are made now, not when it was written.
            record["suites"] = suites.from_tasks(record["tasks"])
    changed = []
    whole = ["# Results", "", "Made by `python -m benchmarks render`; do not edit.", ""]
    for device in sorted({record["device"] for record in records}):
        whole += [f"## {device}", "", block(records, device)]
    texts = {results.parent / "RESULTS.md": "\n".join(whole).rstrip() + "\n"}
    if readme.exists():
        texts[readme] = fill(readme.read_text(), records)
    for name, drawn in drawings(records).items():
        texts[results.parent / FOLDER / name] = drawn
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            changed.append(path)
    return changed
