# SPDX-License-Identifier: MIT
"""results.csv, results.png and the table printed at the end."""

import csv
import io
from pathlib import Path

from .files import replacing
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
    """One row an epoch; the rows of the first `keep` epochs of an earlier run stay.

    Each epoch replaces the file by a complete one, so that a full disk loses none of
    its rows; those that could not be written come with the next that can.
    """

    def __init__(self, folder: Path, keep: int = 0) -> None:
        self.path = folder / "results.csv"
        self.rows = self._rows(keep) if keep and self.path.is_file() else []
        self._write()

    def _write(self) -> None:
        text = io.StringIO(newline="")
        csv.writer(text).writerows([COLUMNS, *self.rows])
        with replacing(self.path) as file:
            file.write(text.getvalue().encode())

    def _rows(self, keep: int) -> list[list]:
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
        self.rows.append(row)
        self._write()

    def plot(self) -> None:
        """Draws every column but the rates into results.png."""
        from .plots import plot_results

        plot_results([COLUMNS, *self.rows], self.path.with_suffix(".png"))


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
