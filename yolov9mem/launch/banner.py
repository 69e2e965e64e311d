# SPDX-License-Identifier: MIT
"""The tables shown when training starts and when the run ends."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

from yolov9mem.plan_table import readable_bytes as size

Line = tuple[str, str]


def table(title: str, lines: Sequence[Line]) -> str:
    """Two columns under a title."""
    width = max((len(name) for name, _ in lines), default=0)
    rows = [f"  {name:{width}}  {text}" for name, text in lines]
    return "\n".join([f"yolov9mem: {title}", *rows])


def say(text: str) -> None:
    """Prints to stderr, if that is open, without tearing a progress bar of tqdm."""
    if sys.stderr is None:  # print would take stdout instead
        return
    bar = getattr(sys.modules.get("tqdm"), "tqdm", None)
    with contextlib.suppress(OSError, ValueError):
        if bar is not None and getattr(bar, "_instances", None):
            bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)


def image_lines(shape: Sequence[int], item_bytes: int, kind: str) -> list[Line]:
    """The image batch: it is nobody's activation, and not small."""
    count = 1
    for length in shape:
        count *= length
    dims = "x".join(str(length) for length in shape)
    text = (
        f"{dims}: uint8 {size(count)}, {kind} {size(count * item_bytes)}, and that "
        "once more while the script scales it to 0..1"
    )
    return [("image batch", text)]


def model_lines(rows: Sequence[Any], batch: str) -> list[Line]:
    """Of yolov9mem.torch.report: what runs in C, what stays stock, the bytes.

    batch: what the bytes are for, in words.
    """
    swapped = [row for row in rows if row.state == "swapped"]
    stock = [row for row in rows if row.state == "stock"]
    lines: list[Line] = []
    if swapped:
        names = ", ".join(_name(row) for row in swapped[:3])
        more = f" and {len(swapped) - 3} more" if len(swapped) > 3 else ""
        lines.append(("model", f"swapped: {names}{more}; {swapped[0].detail}"))
        held = sum(row.held_bytes for row in swapped)
        before = sum(row.stock_bytes for row in swapped)
        peak = max(held - row.held_bytes + row.peak_bytes for row in swapped)
        part = f" ({held / before:.0%})" if before else ""
        text = f"{size(held)}, stock PyTorch {size(before)}{part}"
        lines.append(("held for backward", f"{text}, for {batch}"))
        text = f"{size(peak)}, beside parameters, gradients, images and the loss"
        lines.append(("predicted peak", text))
    for row in stock[:5]:
        lines.append(("model, stock", f"{_name(row)}: {row.detail}"))
    if len(stock) > 5:
        lines.append(("model, stock", f"and {len(stock) - 5} more modules"))
    return lines


def _name(row: Any) -> str:
    return f"{row.path} ({row.kind})" if row.path else str(row.kind)


def rate_line(lr: float, batch: int, accumulate: int, nominal: int = 64) -> Line:
    """What the linear rule says of the learning rate, which nobody changes."""
    ratio = batch * accumulate / nominal
    text = (
        f"{lr:g}, as the script has it; the linear rule would give {lr * ratio:g} "
        f"for {batch} x {accumulate} images a step, if {lr:g} is meant for {nominal}"
    )
    return ("learning rate", text)


def end_lines(measure: Any, saved_bytes: int) -> list[Line]:
    """Measured peaks, time and bytes saved."""
    peaks = []
    if measure.training_peak is not None:
        peaks.append(f"{size(measure.training_peak)} in training")
    if measure.validation_peak is not None:
        text = f"{size(measure.validation_peak)} in the model in validation"
        if measure.validation_growth is not None:
            text += f", which adds {size(measure.validation_growth)} at most"
        peaks.append(text)
    if measure.other_peak is not None:
        peaks.append(f"{size(measure.other_peak)} in matching, plots and checkpoints")
    lines = [("" if i else "measured peak", text) for i, text in enumerate(peaks)]
    if measure.per_image is not None:
        lines.append(("time per image", f"{measure.per_image * 1e3:.3g} ms"))
    if saved_bytes:
        text = f"{size(saved_bytes)} less held for backward than stock PyTorch"
        lines.append(("saved", text))
    return lines
