# SPDX-License-Identifier: MIT
"""results.csv, results.png and the table printed at the end."""

import csv
from pathlib import Path

from .val import Metrics

COLUMNS = (
    "epoch",
    "train/box_loss",
    "train/cls_loss",
    "train/dfl_loss",
    "metrics/precision",
    "metrics/recall",
    "metrics/mAP_0.5",
    "metrics/mAP_0.5:0.95",
    "val/box_loss",
    "val/cls_loss",
    "val/dfl_loss",
    "x/lr0",
    "x/lr1",
    "x/lr2",
    "memory/peak_MB",
)


class ResultsFile:
    """One row an epoch; the first `keep` rows of an earlier run stay."""

    def __init__(self, folder: Path, keep: int = 0) -> None:
        self.path = folder / "results.csv"
        rows = self._rows(keep) if keep and self.path.is_file() else []
        with open(self.path, "w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *rows])

    def _rows(self, keep: int) -> list[list[str]]:
        """Rows of the epochs before `keep`, but for damaged ones."""
        text = self.path.read_text(errors="replace")
        lines = [line for line in text.splitlines() if "\0" not in line]
        rows = list(csv.reader(lines))
        return [row for row in rows if _is_whole(row) and int(row[0]) < keep]

    def add(
        self,
        epoch: int,
        losses: list[float],
        metrics: Metrics,
        rates: list[float],
        peak_bytes: int,
    ) -> None:
        m = metrics
        values = [*losses, m.precision, m.recall, m.map50, m.map, *m.losses, *rates]
        row = [epoch, *(f"{v:.6g}" for v in values), f"{peak_bytes / 1e6:.1f}"]
        with open(self.path, "a", newline="") as file:
            csv.writer(file).writerow(row)

    def plot(self) -> None:
        """Draws every column but the rates into results.png."""
        from .plots import plot_results

        plot_results(self.path, self.path.with_suffix(".png"))


def _is_whole(row: list[str]) -> bool:
    try:
        int(row[0])
        return len([float(value) for value in row]) == len(COLUMNS)
    except (ValueError, IndexError):
        return False


def final_table(metrics: Metrics, names: dict, seconds: float, peak: int) -> str:
    """mAP by class, training time and peak memory."""
    width = max(5, *(len(n) for n in names.values()))
    lines = [f"{'class':{width}}  mAP50  mAP50-95"]
    rows = [("all", metrics.map50, metrics.map)]
    rows += [(names[c], *metrics.per_class[c]) for c in sorted(metrics.per_class)]
    lines += [f"{name:{width}}  {a:5.3f}  {b:8.3f}" for name, a, b in rows]
    lines.append(f"{seconds:.0f} s, peak memory {peak / 1e6:.0f} MB")
    return "\n".join(lines)
