# SPDX-License-Identifier: MIT
"""report(module): what runs through yolov9mem, what stays stock and why, and the bytes."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from yolov9mem.plan_table import readable_bytes, value_lines

from .checks import check_module
from .recording.fakes import join
from .running import registry
from .running.arenas import kept_bytes
from .running.byte_counts import held_bytes
from .running.entry import Entry
from .running.lowered import Graph
from .running.planned import TorchPlan


@dataclass(frozen=True)
class Row:
    """One checkpointed module."""

    path: str  # below the module reported on; "" is the module itself
    kind: str  # its class
    state: str  # "swapped", "stock" or "waiting" for its first training forward
    detail: str  # keep rule, or the reasons for running stock
    calls: int = 0  # forwards that ran through the core
    held_bytes: int = 0  # kept from forward to backward, inputs included
    workspace_bytes: int = 0  # of forward or backward; a small one stays with graphs
    peak_bytes: int = 0  # most at any time: held, workspace and converted inputs
    stock_bytes: int = 0  # what stock PyTorch keeps from forward to backward
    recordings: int = 0
    plans: int = 0
    inputs_converted: int = 0  # copies of tensors that no plan can read as they lie
    gradients_converted: int = 0
    graphs_repeated: int = 0  # CUDA graphs launched by the plans of the latest forward
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
            size = [
                readable_bytes(n) if row.state == "swapped" else "" for n in figures
            ]
            stock = readable_bytes(row.stock_bytes) if row.stock_bytes else ""
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
                f"kept between calls: {readable_bytes(self.kept_workspace_bytes)} workspace"
            )
        return "\n".join(text)

    def plan(self, path: str = "") -> str:
        """The latest plan of a swapped module: every value, its bytes and its state."""
        if path not in self.tables:
            raise KeyError(f"{path!r} has no plan; there are {sorted(self.tables)}")
        return "\n".join(value_lines(self.tables[path]))


def report(module: nn.Module) -> Report:
    """What yolov9mem does for the module and all below it; TypeError for what is none."""
    check_module("module", module)
    rows: list[Row] = []
    tables: dict[str, list[dict[str, object]]] = {}
    runners = (
        (path, registry.runner_of(part)) for path, part in module.named_modules()
    )
    entries = {path: entry for path, entry in runners if isinstance(entry, Entry)}
    for path, entry in entries.items():
        if _is_overtaken(path, entries):
            rows.append(_stock_row(path, entry))
            continue
        part = module.get_submodule(path)
        row = _row(path, part, entry)
        if row.state == "waiting" and path and rows:
            continue  # inside a swapped module, or never called
        if entry.below_stock and _ran_within(path, entries):
            continue  # it ran by itself before that did
        rows.append(row)
        rows += _left_rows(path, part, entry)
        for _, plan in _planned(entry):
            tables.setdefault(path, []).extend(plan.core.table())
    return Report(tuple(rows), kept_bytes(), tables)


def _ran(entry: Entry) -> int:
    """Which run in the core was its latest; 0: it has not run there."""
    return 0 if entry.latest is None else entry.latest.ran


def _is_in(path: str, around: str) -> bool:
    return path != around and f"{path}.".startswith(join(around, ""))


def _ran_within(path: str, entries: dict[str, Entry]) -> bool:
    """Has a module around this one run in the core since this one did?"""
    around = (entry for name, entry in entries.items() if _is_in(path, name))
    return any(_ran(entry) > _ran(entries[path]) for entry in around)


def _is_overtaken(path: str, entries: dict[str, Entry]) -> bool:
    """Has it run stock since it ran in the core, where parts of it have run since?"""
    own = entries[path]
    below = (entry for name, entry in entries.items() if _is_in(name, path))
    since = any(e.below_stock and _ran(e) > _ran(own) for e in below)
    return since and _ran(own) > 0 and bool(own.reasons)


def _planned(entry: Entry) -> list[tuple[Graph, TorchPlan]]:
    """The graphs of the latest training forward with their plans."""
    graphs = entry.latest.graphs if entry.latest is not None else []
    return [(graph, graph.last) for graph in graphs if graph.last is not None]


def _left_rows(path: str, module: nn.Module, entry: Entry) -> list[Row]:
    """What stays stock inside a swapped module, by the part of it that makes the calls."""
    left: dict[str, list[str]] = {}
    if entry.latest is not None:
        for failure in entry.latest.recording.left.values():
            left.setdefault(failure.path, []).append(str(failure))
    parts = dict(module.named_modules(remove_duplicate=False))  # some may have gone
    return [
        Row(
            join(path, inner) if inner else path,
            type(parts[inner]).__name__,
            "stock",
            "; ".join(reasons),
            reasons=tuple(reasons),
        )
        for inner, reasons in left.items()
        if inner in parts
    ]


def _stock_row(path: str, entry: Entry) -> Row:
    reasons = tuple(entry.reasons)
    return Row(path, entry.cls.__name__, "stock", "; ".join(reasons), reasons=reasons)


def _row(path: str, module: nn.Module, entry: Entry) -> Row:
    reasons = tuple(entry.reasons)
    kind, counts = entry.cls.__name__, entry.counts
    planned = _planned(entry)
    if not planned and reasons:
        return _stock_row(path, entry)
    if not planned:
        detail = "no training forward yet"
        if "forward" in vars(module):
            detail += " that came here: the instance has a forward of its own"
        return Row(path, kind, "waiting", detail)
    detail = f"keep={entry.keep}"
    stages = sum(len(graph.program.part.stages) for graph, _ in planned)
    if stages > 1:
        detail += f", in {stages} stages"
    plans = [plan for _, plan in planned]
    assert entry.latest is not None  # as there are plans
    recording = entry.latest.recording
    held = held_bytes(recording, entry.keep, plans)
    if held.gaps:
        pieces = f"{held.gaps} pieces" if held.gaps > 1 else "a piece"
        detail += f", {pieces} of stock calls made again"
    replays = [plan.core.replays for _, plan in planned]
    repeated = sum(found[1] for found in replays if found)
    if any(replays):
        detail += f", CUDA graphs repeated {repeated} times"
    if any(found and found[2] for found in replays):
        detail += ", given up since one could not be recorded"
    if reasons:
        detail += "; sometimes stock: " + "; ".join(reasons)
    return Row(
        path,
        kind,
        "swapped",
        detail,
        calls=counts["calls"],
        held_bytes=held.ours,
        workspace_bytes=max(plan.core.workspace_bytes for _, plan in planned),
        peak_bytes=held.peak,
        stock_bytes=held.stock,
        recordings=counts["recordings"],
        plans=counts["plans"],
        inputs_converted=counts["inputs converted"],
        gradients_converted=counts["gradients converted"],
        graphs_repeated=repeated,
        reasons=reasons,
    )
