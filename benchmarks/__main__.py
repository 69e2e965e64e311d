# SPDX-License-Identifier: MIT
"""Command line of the benchmarks; see benchmarks/__init__.py."""

from __future__ import annotations

import argparse
import importlib
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import record, render

SUITES = (
    "plan",
    "gpu_plan",
    "peak",
    "step",
    "memory",
    "sgd",
    "mosaic",
    "loader",
    "losses",
    "rule",
)
HIDDEN = argparse.SUPPRESS


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


def measure_gpu(options: argparse.Namespace) -> int:
    """Runs the stages on this machine's GPU; 1 if something has no result, 3: no GPU."""
    from benchmarks.gpu import stages
    from benchmarks.gpu.session import CALL_SECONDS, STAGE_SECONDS, NoGpuError, Session

    one = options.stage is not None and len(options.stage) == 1
    seconds = STAGE_SECONDS if one else CALL_SECONDS
    if options.minutes is not None:
        seconds = 60 * options.minutes
    chosen = {"first": options.first, "without": options.without}
    session = Session(options.out, options.device, options.quick, seconds, **chosen)
    try:
        path = stages.run(session, options.stage or list(stages.STAGES))
    except NoGpuError as error:
        print(f"python -m benchmarks gpu: {error}", file=sys.stderr)
        return 3
    print(stages.summary(session))
    print(f"wrote {path}")
    return 0 if stages.all_well(session) else 1


def record_folder(text: str) -> Path:
    """Made at once: what was measured would be lost where it can't be written."""
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no folder: {error}") from None
    if not os.access(path, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} can't be written")
    return path


def positive_minutes(text: str) -> float:
    """Above 0; NaN would never be over."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"is {text!r}, must be finite and above 0")
    return value


def add_gpu(commands: Any) -> None:
    gpu = commands.add_parser("gpu", help="measure on this machine's GPU")
    gpu.add_argument(
        "--out", type=record_folder, required=True, help="the record's folder"
    )
    gpu.add_argument(
        "--stage",
        action="append",
        choices=("build-test", "step", "rest"),
        help="only this one; may be given again",
    )
    gpu.add_argument(
        "--minutes",
        type=positive_minutes,
        metavar="M",
        help="of the whole call: what has no time is measured by the next one (9; 7.5 for "
        "one stage)",
    )
    for name, words in (
        ("--first", "begin what is timed with the tasks whose name has this part"),
        ("--without", "leave out the tasks whose name has this part"),
    ):
        told = f"{words}; may be given again"
        gpu.add_argument(name, action="append", default=[], metavar="PART", help=told)
    # A rehearsal: everything but the build, on the CPU; its figures mean nothing.
    gpu.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help=HIDDEN)
    gpu.add_argument("--quick", action="store_true", help=HIDDEN)


def available() -> list[str]:
    here = Path(__file__).parent
    return [name for name in SUITES if (here / f"bench_{name}.py").exists()]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    cpu = commands.add_parser("cpu", help="measure on this machine's CPU")
    cpu.add_argument(
        "--out", type=record_folder, default=record.RESULTS, help="record's folder"
    )
    cpu.add_argument("--only", nargs="+", choices=available(), default=available())
    cpu.add_argument(
        "--quick", action="store_true", help="small cases, for a smoke run"
    )
    add_gpu(commands)
    commands.add_parser("render", help="records to README.md and RESULTS.md")
    options = parser.parse_args()
    try:
        if options.command == "gpu":
            return measure_gpu(options)
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
