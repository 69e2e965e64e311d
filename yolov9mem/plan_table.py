# SPDX-License-Identifier: MIT
"""A plan as text: what is kept, what is rebuilt, and what that makes in bytes."""

from typing import Any

from yolov9mem import _core


def readable_bytes(count: int) -> str:
    """Bytes with a decimal unit, three figures."""
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def value_lines(table: list[dict[str, Any]]) -> list[str]:
    """A heading, a rule, and one line per value of ``Plan.table()``."""
    rows = [("value", "made by", "shape (N, H, W, C)", "bytes", "state")]
    for row in table:
        shape = " x ".join(str(size) for size in row["shape"])
        again = f" x {row['rebuilds']}" if row["rebuilds"] > 1 else ""
        size = readable_bytes(row["bytes"])
        rows.append((row["name"], row["op"], shape, size, row["state"] + again))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = []
    for name, op, shape, size, state in rows:
        text = f"{name:{widths[0]}}  {op:{widths[1]}}  {shape:{widths[2]}}"
        lines.append(f"{text}  {size:>{widths[3]}}  {state}".rstrip())
    lines.insert(1, "-" * max(len(line) for line in lines))
    return lines


def plan_table(plan: _core.Plan) -> str:
    """One line per value in the order of forward, then the totals."""
    lines = value_lines(plan.table())
    lines += [
        "",
        f"saved from forward to backward  {readable_bytes(plan.saved_bytes):>9}",
    ]
    if plan.weight_bytes:
        size = readable_bytes(plan.weight_bytes)
        lines.append(f"  of it weights in 16 bits      {size:>9}")
    lines += [
        f"workspace of forward            "
        f"{readable_bytes(plan.forward_workspace_bytes):>9}",
        f"workspace of backward           "
        f"{readable_bytes(plan.backward_workspace_bytes):>9}",
        f"peak                            {readable_bytes(plan.peak_bytes):>9}",
        f"convolutions run again          {plan.rerun_convolutions:>6}",
    ]
    return "\n".join(lines)
