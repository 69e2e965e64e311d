# SPDX-License-Identifier: MIT
"""Times of several implementations of one thing, measured side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

MINIMUM_REPETITIONS = 7


@dataclass
class Case:
    """One implementation: `run` is timed, `prepare` before it is not."""

    run: Callable[[], object]
    prepare: Callable[[], object] = lambda: None


@dataclass
class Timing:
    """Seconds of each repetition, in order."""

    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high


def compare(
    cases: dict[str, Case],
    repetitions: int = MINIMUM_REPETITIONS,
    warmup: int = 1,
    leading: int = 0,
) -> dict[str, Timing]:
    """Runs all cases once per repetition, each repetition starting with another case.

    Interleaving gives every case the same share of whatever else the machine does, so
    that their ratios mean something on a busy machine too.

    Args:
        leading: untimed runs right before each timed one, for work that is done again
            and again, as training steps are: it then finds the memory that its last
            run gave back, and not what another case left.

    Raises:
        ValueError: fewer than 7 repetitions.
    """
    if repetitions < MINIMUM_REPETITIONS:
        raise ValueError(
            f"repetitions is {repetitions}, must be at least {MINIMUM_REPETITIONS}"
        )
    for case in cases.values():
        for _ in range(warmup):
            case.prepare()
            case.run()
    timings = {name: Timing() for name in cases}
    names = list(cases)
    for repetition in range(repetitions):
        start = repetition % len(names)
        for name in names[start:] + names[:start]:
            for _ in range(leading):
                cases[name].prepare()
                cases[name].run()
            cases[name].prepare()
            begin = time.perf_counter()
            cases[name].run()
            timings[name].seconds.append(time.perf_counter() - begin)
    return timings


def paired_ratio(timing: Timing, base: Timing) -> float:
    """Median over the repetitions of timing / base."""
    pairs = zip(timing.seconds, base.seconds, strict=True)
    return statistics.median(mine / other for mine, other in pairs)


def rows(case: str, timings: dict[str, Timing], base: str) -> list[dict]:
    """Table rows in milliseconds; `ratio` is the time as a part of the base's."""
    made = []
    for name, timing in timings.items():
        low, high = timing.quartiles
        made.append(
            {
                "case": case,
                "implementation": name,
                "median_ms": timing.median * 1e3,
                "low_ms": low * 1e3,
                "high_ms": high * 1e3,
                "ratio": paired_ratio(timing, timings[base]),
                "repetitions": len(timing.seconds),
            }
        )
    return made


def at_least(row: dict, times: float, found: float) -> dict:
    """The row with the wanted speed, in times of the table's base, and if it is met."""
    met = "met" if found >= times else "not met"
    return row | {"target": f"{times:g} x", "met": met}


TARGET_COLUMNS = [("target", "target", ""), ("met", "met", "")]
COLUMNS = [
    ("case", "case", ""),
    ("implementation", "implementation", ""),
    ("median_ms", "median, ms", ".1f"),
    ("low_ms", "lower quartile", ".1f"),
    ("high_ms", "upper quartile", ".1f"),
    ("ratio", "of the first", ".2f"),
]
