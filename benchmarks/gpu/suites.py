# SPDX-License-Identifier: MIT
"""From the tasks of a record to its tables; each figure with a target beside it says
whether that is met.

The targets are those of the issue "The CUDA backend: less memory and faster than stock
PyTorch"; `of stock` is a part of "torch eager" of the same batch, sizes and objects.
"""

from __future__ import annotations

from typing import Any

from benchmarks.exactness import ROUNDINGS, holds
from benchmarks.gpu.names import COMPILED, CONV, EAGER, GRAPHS, MIN, MIN_GRAPHS, WAYS

Row = dict[str, Any]
GB = 1e9
# At batch 16 and above: part of stock's peak allocated, times its images a second; at 64
# the device's peak, GB.
OF_CONV, OF_MIN = (0.40, 1.5, 12.0), (0.20, 1.0, 7.0)
STEP = {CONV: OF_CONV, GRAPHS: OF_CONV, MIN: OF_MIN, MIN_GRAPHS: OF_MIN}
SAME_BITS = ("outputs", "weights", "state")
LEAST_BATCH, FULL_BATCH = 16, 64
MOST_RESERVED = 1.15  # of allocated
LEAST_OF_COPY, LEAST_TENSOR_MB = 0.80, 240.0
MOST_LOSS_APART = 5e-4  # relative, at any iteration that begins with stock's weights
MOST_OF_FLOOR, LEAST_SGD_SPEEDUP, LEAST_MOSAIC_SPEEDUP = 1.5, 8.0, 20.0

# torch.compile is measured in these rows alone, for a deterministic one is not what its
# users have.
NOT_DETERMINISTIC = "PyTorch's own settings (not deterministic)"
FULL_TITLE = "Training step on the GPU: forward, loss, backward, optimizer, average"
ALONE_TITLE = "The same without optimizer and average: forward, loss, backward"
STEP_COLUMNS = [
    ("case", "yolov9-s, 640 px, AMP fp16", ""),
    ("implementation", "implementation", ""),
    ("allocated_gb", "peak allocated, GB", ".2f"),
    ("allocated_ratio", "of stock", ".2f"),
    ("reserved_gb", "peak reserved, GB", ".2f"),
    ("device_gb", "device peak, GB", ".2f"),
    ("images_per_s", "images/s", ".0f"),
    ("speedup", "times stock", ".2f"),
    ("verdict", "targets", ""),
]
BANDWIDTH_COLUMNS = [
    ("dtype", "case", ""),
    ("kernel", "kernel or pass", ""),
    ("milliseconds", "ms", ".3f"),
    ("gb_s", "GB/s", ".0f"),
    ("copy_gb_s", "copy, GB/s", ".0f"),
    ("of_copy", "of copy", ".2f"),
    ("verdict", "target: 0.80", ""),
]
SGD_COLUMNS = [
    ("implementation", "implementation", ""),
    ("gpu_ms", "GPU time by events, ms", ".2f"),
    ("floor_ms", "floor, ms", ".2f"),
    ("of_floor", "of the floor", ".2f"),
    ("host_ms", "host time, ms", ".2f"),
    ("whole_ms", "until done, ms", ".2f"),
    ("speedup", "slower than ours", ".1f"),
    ("verdict", "targets", ""),
]
WAITS = "no GPU time: scaler.step waits inside, events would count the host's"
KERNELS_COLUMNS = [
    ("implementation", "implementation", ""),
    ("kind", "kernels", ""),
    ("launches", "a step", ".0f"),
    ("ms", "GPU time, ms", ".2f"),
    ("waits_ms", "the GPU waits, ms", ".2f"),
]
MOSAIC_COLUMNS = [
    ("case", "64 samples of 640 px", ""),
    ("cpu_ms", "one CPU core, ms a sample", ".3f"),
    ("kernel_ms", "kernel, tiles on the GPU", ".4f"),
    ("speedup", "times as fast", ".0f"),
    ("upload_ms", "upload from pinned memory", ".4f"),
    ("upload_mb", "MB uploaded", ".2f"),
    ("host_ms", "host time", ".4f"),
    ("bytes_that_differ", "bytes that differ", ""),
    ("verdict", "target: 20", ""),
]
LOSSES_COLUMNS = [
    ("case", "case", ""),
    ("implementation", "implementation", ""),
    ("iterations", "iterations", ""),
    ("loss_median", "loss, from stock's, relative, median", ".1e"),
    ("loss_max", "largest", ".1e"),
    ("gradient_error", "gradient error, of float64", ".1e"),
    ("images_differ", "bytes of images that differ", ""),
    ("verdict", "targets", ""),
]
DETERMINISM_COLUMNS = [
    ("case", "case", ""),
    ("implementation", "implementation", ""),
    ("steps", "steps", ""),
    ("outputs_differ", "bytes that differ: outputs", ""),
    ("weights_differ", "weights", ""),
    ("state_differ", "batch norm state", ""),
    ("verdict", "target: 0", ""),
]
RULE_COLUMNS = [
    ("case", "model", ""),
    ("implementation", "implementation", ""),
    ("kind", "of", ""),
    ("seeds", "seeds", ""),
    ("ours", "ours, median of seeds", ".2e"),
    ("stock", "stock PyTorch", ".2e"),
    ("ratio", "ratio", ".2f"),
    ("verdict", "target: 2", ""),
]
CHECK_COLUMNS = [
    ("case", "check", ""),
    ("outcome", "outcome", ""),
    ("detail", "detail", ""),
]


def verdict(checks: list[tuple[str, bool]]) -> str:
    """ "met", or what is not."""
    missed = [name for name, met in checks if not met]
    if not checks:
        return ""
    return f"not met: {', '.join(missed)}" if missed else "met"


def step_case(request: Row) -> str:
    words = [f"batch {request['batch']}"]
    words += [] if request["objects"] == 7 else [f"{request['objects']} objects"]
    words += ["multi-scale"] if request["multi_scale"] else []
    words += ["torch's own segments"] if request.get("fixed_segments") else []
    words += [] if request["deterministic"] else [NOT_DETERMINISTIC]
    return ", ".join(words)


def one_line(text: str, most: int) -> str:
    """Without what would end a cell of a table."""
    return " ".join(text.replace("|", "/").split())[:most]


def step_row(request: Row, task: Row, part: str) -> Row:
    """Figures of one configuration, without those that need another one's.

    part: "full" or "alone".
    """
    row: Row = {"case": step_case(request), "implementation": request["way"]}
    if task["outcome"] != "done":
        told = one_line(task.get("reason", ""), 90)
        return row | {"verdict": f"{task['outcome']}: {told}"}
    found = task["result"][part]
    memory = found["memory"]
    row |= {f"{k}_gb": memory[k] / GB for k in ("allocated", "reserved", "device")}
    return row | {"images_per_s": found["images_per_s"]}


def is_of_the_table(request: Row) -> bool:
    """As the targets have it, not one of the special rows."""
    special = request["multi_scale"] or request.get("fixed_segments", False)
    return request["deterministic"] and not special and request["objects"] == 7


def stock_checks(row: Row, way: str) -> list[tuple[str, bool]]:
    """What is asked of us beside stock's row; a row that lacks meets nothing."""
    if "speedup" not in row:
        return [("no stock row", False)]
    part, speed, _ = STEP[way]
    return [
        (f"memory {part}", row["allocated_ratio"] <= part),
        (f"speed {speed}", row["speedup"] >= speed),
    ]


def step_checks(row: Row, request: Row, compiled: Row | None) -> list[tuple[str, bool]]:
    """(target, met) of one of our rows."""
    way, batch = request["way"], request["batch"]
    checks = []
    reserved = row["reserved_gb"] / max(row["allocated_gb"], 1e-9)
    checks.append((f"reserved {reserved:.2f} of allocated", reserved <= MOST_RESERVED))
    if is_of_the_table(request) and batch >= LEAST_BATCH:
        checks += stock_checks(row, way)
    if is_of_the_table(request) and batch == FULL_BATCH:
        _, _, most = STEP[way]
        checks.append((f"{most:.0f} GB", row["device_gb"] <= most))
    if way in (CONV, GRAPHS) and not request["deterministic"]:
        if compiled is None:
            checks.append(("no torch.compile row", False))
        else:
            met = row["images_per_s"] >= compiled["images_per_s"]
            checks.append(("as fast as torch.compile", met))
    return checks


def step_suite(
    tasks: dict[str, Row], requests: dict[str, Row], part: str, title: str
) -> Row | None:
    # What had no time is among the checks, and no row without a figure here.
    found = [
        (requests[key], tasks[key])
        for key in requests
        if key in tasks and tasks[key]["outcome"] != "not measured"
    ]
    if not found:
        return None
    found.sort(key=lambda pair: step_order(pair[0]))
    made = [(request, step_row(request, task, part)) for request, task in found]
    by_case = {(row["case"], row["implementation"]): row for _, row in made}
    for request, row in made:
        if "images_per_s" not in row:
            continue
        stock = by_case.get((row["case"], EAGER), {})
        if "images_per_s" in stock:
            row["allocated_ratio"] = row["allocated_gb"] / max(
                stock["allocated_gb"], 1e-9
            )
            row["speedup"] = row["images_per_s"] / stock["images_per_s"]
        if request["way"] in STEP:
            compiled = by_case.get((row["case"], COMPILED))
            compiled = compiled if compiled and "images_per_s" in compiled else None
            row["verdict"] = verdict(step_checks(row, request, compiled))
    rows = [row for _, row in made]
    return {"title": title, "columns": STEP_COLUMNS, "rows": rows}


def step_order(request: Row) -> tuple[Any, ...]:
    """The table proper first, by batch; then the special rows."""
    special = (not request["deterministic"], request["multi_scale"])
    special = (*special, request.get("fixed_segments", False))
    way = WAYS.index(request["way"])
    return (*special, request["objects"] != 7, request["batch"], way)


def bandwidth_suite(task: Row) -> Row:
    rows = []
    for found in task["result"]["rows"]:
        large = found["tensor_mb"] >= LEAST_TENSOR_MB
        checks = [("", found["of_copy"] >= LEAST_OF_COPY)] if large else []
        rows.append(found | {"verdict": verdict(checks).removesuffix(": ")})
    title = "Kernels of batch norms and gates: bytes a second, beside a copy on the GPU"
    return {"title": title, "columns": BANDWIDTH_COLUMNS, "rows": rows}


def sgd_suite(task: Row) -> Row:
    result = task["result"]
    rows = [dict(row) for row in result["rows"]]
    mine = next(r for r in rows if r["implementation"].startswith("yolov9mem"))
    for row in rows:
        row["speedup"] = row["whole_ms"] / mine["whole_ms"]
        if row is not mine:
            row.pop("gpu_ms", None)  # of a record that still has it
            row["verdict"] = WAITS
    mine["floor_ms"] = mine["bytes"] / result["copy_gb_s"] / 1e6
    mine["of_floor"] = mine["gpu_ms"] / mine["floor_ms"]
    checks = [(f"{MOST_OF_FLOOR} of the floor", mine["of_floor"] <= MOST_OF_FLOOR)]
    for row in rows:
        if row is not mine:
            name = f"{LEAST_SGD_SPEEDUP:.0f} x {row['implementation']}"
            checks.append((name, row["speedup"] >= LEAST_SGD_SPEEDUP))
    mine["verdict"] = verdict(checks)
    title = (
        f"Optimizer step on the GPU, {result['case']}, {mine['tensors']} float tensors: "
        "unscale, clip, SGD, average, zero"
    )
    return {"title": title, "columns": SGD_COLUMNS, "rows": rows}


def kernels_suite(tasks: dict[str, Row]) -> Row | None:
    found = [
        task
        for key, task in tasks.items()
        if key.startswith("kernels of a step") and task["outcome"] == "done"
    ]
    if not found:
        return None
    case = step_case(found[0]["request"])
    title = f"Where the GPU's time goes in a training step, {case}"
    rows = [row for task in found for row in task["result"]["rows"]]
    return {"title": title, "columns": KERNELS_COLUMNS, "rows": rows}


def mosaic_suite(task: Row) -> Row:
    rows = []
    for found in task["result"]["rows"]:
        checks = []
        if "speedup" in found:
            checks.append(("speed", found["speedup"] >= LEAST_MOSAIC_SPEEDUP))
            checks.append(("equal bytes", found["bytes_that_differ"] == 0))
        rows.append(found | {"verdict": verdict(checks)})
    title = "Mosaic on the GPU, milliseconds a sample, one launch a batch"
    return {"title": title, "columns": MOSAIC_COLUMNS, "rows": rows}


def losses_suite(task: Row) -> Row:
    """Targets are of the runs step by step; running freely is chaotic, and has none."""
    rows = [dict(row) for row in task["result"]["rows"]]
    stock = next((r for r in rows if r["implementation"] == EAGER), None)
    for row in rows:
        if row["implementation"] in STEP and "gradient_error" in row:
            checks = [
                (f"loss {MOST_LOSS_APART:.0e}", row["loss_max"] <= MOST_LOSS_APART),
                ("equal images", row["images_differ"] == 0),
            ]
            if stock is None:
                checks.append(("no stock row", False))
            else:
                errors = row["gradient_error"], stock["gradient_error"]
                checks.append(("gradients", holds(*errors, ROUNDINGS)))
            row["verdict"] = verdict(checks)
    title = f"Losses and gradients on the GPU beside stock's, {task['result']['case']}"
    return {"title": title, "columns": LOSSES_COLUMNS, "rows": rows}


def determinism_suite(task: Row) -> Row:
    rows = []
    for found in task["result"]["rows"]:
        checks = [(k, found[f"{k}_differ"] == 0) for k in SAME_BITS]
        rows.append(found | {"verdict": verdict(checks)})
    title = "Two trainings on the GPU from the same state, deterministic algorithms on"
    return {"title": title, "columns": DETERMINISM_COLUMNS, "rows": rows}


def rule_suite(tasks: dict[str, Row]) -> Row | None:
    rows = [
        row | {"verdict": "met" if row["holds"] else "not met"}
        for key, task in tasks.items()
        if key.startswith("rule ") and task["outcome"] == "done"
        for row in task["result"]["rows"]
    ]
    title = "Error on the GPU against float64, 128 px, batch 2"
    return {"title": title, "columns": RULE_COLUMNS, "rows": rows} if rows else None


def check_suite(tasks: dict[str, Row]) -> Row | None:
    """Build, tests, compute-sanitizer, and whatever gave no figure."""
    rows = []
    for key, task in tasks.items():
        about_step = key.startswith("step ")
        if about_step and task["outcome"] in ("done", "out of memory"):
            continue
        if (
            task["stage"] != "build-test"
            and task["outcome"] == "done"
            and key != "build"
        ):
            continue
        result = task.get("result", {})
        words = [f"{v} {k}" for k, v in result.items() if isinstance(v, int)]
        detail = result.get("summary") or ", ".join(words) or task.get("reason", "")
        detail = detail or f"{task.get('seconds', 0):.0f} s"
        row = {"case": key, "outcome": task["outcome"]}
        rows.append(row | {"detail": one_line(detail, 160)})
    title = "Checks on the GPU machine, and what was not measured"
    return {"title": title, "columns": CHECK_COLUMNS, "rows": rows} if rows else None


def from_tasks(tasks: dict[str, Row]) -> dict[str, Row]:
    """Suite name -> {"title", "columns", "rows"}, of what there is."""
    requests = {
        key: task["request"] for key, task in tasks.items() if key.startswith("step ")
    }
    made: dict[str, Row | None] = {
        "step": step_suite(tasks, requests, "full", FULL_TITLE),
        "step_alone": step_suite(tasks, requests, "alone", ALONE_TITLE),
    }
    others = {
        "bandwidth": bandwidth_suite,
        "sgd": sgd_suite,
        "mosaic": mosaic_suite,
        "losses": losses_suite,
        "determinism": determinism_suite,
    }
    for name, suite in others.items():
        if tasks.get(name, {}).get("outcome") == "done":
            made[name] = suite(tasks[name])
    made["step_kernels"] = kernels_suite(tasks)
    made["rule"] = rule_suite(tasks)
    made["checks"] = check_suite(tasks)
    return {name: suite for name, suite in made.items() if suite is not None}
