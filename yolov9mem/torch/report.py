# SPDX-License-Identifier: MIT
"""report(module): what runs through yolov9mem, what stays stock and why, and the bytes."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from . import registry
from .arenas import kept_bytes
from .entry import Entry
from .ir import Node
from .lower import Program, TorchPlan, flows


@dataclass(frozen=True)
class Row:
    """One checkpointed module."""

    path: str  # below the module reported on; "" is the module itself
    kind: str  # its class
    state: str  # "swapped", "stock" or "waiting" for its first training forward
    detail: str  # keep rule, or the reasons for running stock
    calls: int = 0  # forwards that ran through the core
    held_bytes: int = 0  # kept from forward to backward, inputs included
    workspace_bytes: int = 0  # used during forward or backward only
    peak_bytes: int = 0  # most at any time: held, workspace and converted inputs
    stock_bytes: int = 0  # what stock PyTorch keeps from forward to backward
    recordings: int = 0
    plans: int = 0
    inputs_converted: int = 0  # tensors brought to packed channels-last in the dtype
    gradients_converted: int = 0
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """Prints as a table; ``rows`` has the figures, of the latest training forward."""

    rows: tuple[Row, ...]
    kept_workspace_bytes: int = 0  # between calls, shared by all modules
    tables: dict[str, list[dict[str, object]]] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        if not self.rows:
            return "nothing is checkpointed: yolov9mem.torch.checkpoint(module) does it"
        head = ("module", "state", "held", "workspace", "peak", "stock", "detail")
        lines = [head]
        for row in self.rows:
            figures = (row.held_bytes, row.workspace_bytes, row.peak_bytes)
            size = [_size(n) if row.state == "swapped" else "" for n in figures]
            stock = _size(row.stock_bytes) if row.stock_bytes else ""
            name = f"{row.path} {row.kind}".strip()
            lines.append((name, row.state, *size, stock, row.detail))  # type: ignore[arg-type]
        width = [max(len(line[k]) for line in lines) for k in range(6)]
        text = []
        for line in lines:
            cells = [line[0].ljust(width[0]), line[1].ljust(width[1])]
            cells += [line[k].rjust(width[k]) for k in range(2, 6)]
            text.append("  ".join([*cells, line[6]]).rstrip())
        if self.kept_workspace_bytes:
            text.append(
                f"kept between calls: {_size(self.kept_workspace_bytes)} workspace"
            )
        return "\n".join(text)

    def plan(self, path: str = "") -> str:
        """The latest plan of a swapped module: every value, its bytes and its state."""
        if path not in self.tables:
            raise KeyError(f"{path!r} has no plan; there are {sorted(self.tables)}")
        lines = []
        for value in self.tables[path]:
            shape = "x".join(str(size) for size in value["shape"])
            lines.append((str(value["name"]), str(value["op"]), shape,
                          _size(int(value["bytes"])), str(value["state"])))  # type: ignore[call-overload]  # fmt: skip
        width = [max(len(line[k]) for line in lines) for k in range(5)]
        return "\n".join(
            "  ".join(cell.ljust(w) for cell, w in zip(line, width)).rstrip()
            for line in lines
        )


def _size(count: int) -> str:
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"


def report(module: nn.Module) -> Report:
    """What yolov9mem does for the module and all below it."""
    rows: list[Row] = []
    tables: dict[str, list[dict[str, object]]] = {}
    for path, part in module.named_modules():
        runner = registry.runner_of(part)
        if isinstance(runner, Entry):
            row = _row(path, runner)
            if row.state == "waiting" and path and rows:
                continue  # inside a swapped module, or never called
            rows.append(row)
            if runner.latest is not None and runner.latest.last is not None:
                tables[path] = runner.latest.last.core.table()
    return Report(tuple(rows), kept_bytes(), tables)


def _row(path: str, entry: Entry) -> Row:
    reasons = tuple(entry.reasons)
    kind, counts = entry.cls.__name__, entry.counts
    latest = entry.latest
    if latest is None or latest.last is None:
        state = "stock" if reasons else "waiting"
        detail = "; ".join(reasons) or "no training forward yet"
        return Row(path, kind, state, detail, reasons=reasons)
    plan = latest.last
    inputs = _input_bytes(latest.program)
    workspace = plan.core.workspace_bytes
    detail = f"keep={entry.keep}"
    if reasons:
        detail += "; sometimes stock: " + "; ".join(reasons)
    return Row(
        path,
        kind,
        "swapped",
        detail,
        calls=counts["calls"],
        held_bytes=plan.saved_bytes + inputs,
        workspace_bytes=workspace,
        peak_bytes=plan.core.peak_bytes + inputs,
        stock_bytes=stock_bytes(latest.program, plan),
        recordings=counts["recordings"],
        plans=counts["plans"],
        inputs_converted=counts["inputs converted"],
        gradients_converted=counts["gradients converted"],
        reasons=reasons,
    )


def _input_bytes(program: Program) -> int:
    nodes = program.recording.nodes
    return sum(_bytes(node) for node in nodes if node.op == "input")


def _bytes(node: Node, dtype: torch.dtype | None = None) -> int:
    n, c, h, w = node.shape
    return n * c * h * w * (dtype or node.dtype).itemsize


def stock_bytes(program: Program, plan: TorchPlan) -> int:
    """What eager autograd keeps for this graph from forward to backward.

    Counted by storage: a convolution keeps its input (a channel slice keeps its whole
    parent), batch norm its input and 2 C floats, an activation its input (in place: a copy
    of it), max pooling its input and int64 indices. Parameters are not counted.
    """
    nodes = program.recording.nodes
    wanted = {p for p, grad in zip(program.params, plan.param_grads) if grad}
    flowing = flows(program, plan.input_grads, plan.param_grads)
    kept: dict[object, int] = {}

    def keep(value: int, dtype: torch.dtype | None = None) -> None:
        if dtype not in (None, nodes[value].dtype):
            kept[value, dtype] = _bytes(nodes[value], dtype)  # autocast's copy
            return
        while nodes[value].op == "slice":
            value = nodes[value].operands[0]
        kept[value] = _bytes(nodes[value])

    for number, node in enumerate(nodes):
        if not flowing[number]:
            continue
        if node.op == "conv" and node.attributes[0] in wanted:
            keep(node.operands[0], node.dtype)
        elif node.op == "norm":
            keep(node.operands[0])
            kept["statistics", number] = 2 * 4 * node.shape[1]
        elif node.op == "activation":
            keep(number if _keeps_result(node) else node.operands[0])
        elif node.op in ("max_pool", "avg_pool"):
            keep(node.operands[0])
            if node.op == "max_pool":
                kept["indices", number] = _bytes(node, torch.int64)
    return sum(kept.values())


def _keeps_result(node: Node) -> bool:
    return node.attributes[0] == "relu" or (
        node.attributes[0] == "leaky_relu" and node.in_place
    )
