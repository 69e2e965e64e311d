# SPDX-License-Identifier: MIT
"""Command line of the benchmarks; see benchmarks/__init__.py."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

from benchmarks import record, render

SUITES = ("plan", "peak", "step", "memory", "sgd", "mosaic", "losses", "rule")


def measure(names: list[str], quick: bool, folder: Path) -> Path:
    """Runs the suites and writes one record."""
    made = record.facts("cpu") | {"quick": quick, "suites": {}}
    for name in names:
        suite = importlib.import_module(f"benchmarks.bench_{name}")
        begin = time.perf_counter()
        print(f"{name}: {suite.TITLE} ...", flush=True)
        made["suites"][name] = {
            "title": suite.TITLE,
            "columns": suite.COLUMNS,
            "rows": suite.rows(quick),
        }
        print(render.table(made["suites"][name]))
        print(f"{name}: {time.perf_counter() - begin:.0f} s", flush=True)
    return record.write(made, folder)


def available() -> list[str]:
    here = Path(__file__).parent
    return [name for name in SUITES if (here / f"bench_{name}.py").exists()]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    cpu = commands.add_parser("cpu", help="measure on this machine's CPU")
    cpu.add_argument("--out", type=Path, default=record.RESULTS, help="record's folder")
    cpu.add_argument("--only", nargs="+", choices=available(), default=available())
    cpu.add_argument(
        "--quick", action="store_true", help="small cases, for a smoke run"
    )
    commands.add_parser("render", help="records to README.md and RESULTS.md")
    options = parser.parse_args()
    try:
        if options.command == "cpu":
            print(f"wrote {measure(options.only, options.quick, options.out)}")
        else:
            for path in render.render():
                print(f"wrote {path}")
    except ValueError as error:
        print(f"python -m benchmarks: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
