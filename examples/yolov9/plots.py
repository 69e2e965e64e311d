# SPDX-License-Identifier: MIT
"""Pictures: training curves and memory timelines."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from .files import replacing


def plot_results(table: list, target: Path) -> None:
    """Curves of the rows of results.csv, its header first: one axes a column."""
    header, data = table[0], [[float(v) for v in row] for row in table[1:]]
    if not data:
        return
    shown = [i for i, name in enumerate(header) if i and not name.startswith("x/")]
    figure, axes = plt.subplots(3, 4, figsize=(13, 8), layout="constrained")
    epochs = [row[0] + 1 for row in data]
    for axis, column in zip(axes.flat, shown, strict=False):
        axis.plot(epochs, [row[column] for row in data], marker=".")
        axis.set_title(header[column], fontsize=9)
        axis.set_xlabel("epoch", fontsize=8)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    _write(figure, target)


def plot_memory(probes: dict[str, dict], title: str, target: Path) -> None:
    """Memory above the idle level over one training step, one curve a probe."""
    figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, probe in probes.items():
        seconds = [s for s, _ in probe["samples"]]
        used = [(b - probe["idle_bytes"]) / 1e6 for _, b in probe["samples"]]
        peak = max(used)
        (line,) = axis.plot(seconds, used, label=f"{name}: peak {peak:.0f} MB")
        axis.fill_between(seconds, used, alpha=0.12, color=line.get_color())
        end = probe["marks"].get("forward")
        if end is not None:
            axis.axvline(end, color=line.get_color(), linestyle=":", linewidth=1)
    axis.set_xlabel("seconds within one training step (dotted: end of forward)")
    axis.set_ylabel("MB above idle")
    axis.set_ylim(bottom=0)
    axis.set_title(title)
    axis.legend()
    axis.grid(alpha=0.3)
    _write(figure, target)


def _write(figure: plt.Figure, target: Path) -> None:
    """Where the picture can't be written, a warning: what was trained is kept."""
    try:
        with replacing(target) as file:
            figure.savefig(file, format="png", dpi=110)
    except OSError as error:
        print(f"WARNING {target} was not written: {error}")
    plt.close(figure)
