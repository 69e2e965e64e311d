# SPDX-License-Identifier: MIT
"""The GPU memory of a training step from plans alone: no GPU is needed, none was used.

The plan is that of the CUDA backend with cuDNN's rules (packed tensors and weights, at most
32 MiB of cuDNN's workspace), made by its emulation on the CPU. What the loss takes is
PyTorch's own; its peak is counted tensor by tensor while it runs on the CPU, for 4 images,
and is in proportion to the batch.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves

from benchmarks.models import detection_loss, detection_model, make_importable

TITLE = (
    "Planned, not measured: GPU memory of a training step, yolov9-s, 640 px, AMP fp16 "
    "(targets: 12 GB conv, 7 GB min at batch 64)"
)
COLUMNS = [
    ("batch", "batch", ""),
    ("keep", "keep", ""),
    ("saved_gb", "held for backward, GB", ".2f"),
    ("weights_gb", "of it weights in fp16", ".2f"),
    ("workspace_gb", "workspace, GB", ".2f"),
    ("images_gb", "images in fp16", ".2f"),
    ("outputs_gb", "outputs, or their gradients", ".2f"),
    ("state_gb", "parameters, gradients, momentum, average", ".2f"),
    ("in_forward_gb", "during forward, GB", ".2f"),
    ("in_loss_gb", "during the loss, GB", ".2f"),
    ("in_backward_gb", "during backward, GB", ".2f"),
    ("peak_gb", "peak, GB", ".2f"),
    ("verdict", "target", ""),
]
CUDNN_WORKSPACE = 32 << 20
TARGETS = {"conv": 12.0, "min": 7.0}
OBJECTS, LOSS_BATCH = 7, 4
GB = 1e9


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages made inside, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def __torch_dispatch__(
        self, call: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = {
            x.untyped_storage()._cdata
            for x in tree_leaves((args, kwargs))
            if isinstance(x, Tensor)
        }
        result = call(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if not isinstance(x, Tensor):
                continue
            storage = x.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in given or key in self._known:
                continue
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key, size)
        return result


def loss_bytes(model: nn.Module, size: int) -> float:
    """Peak bytes an image while the loss and its backward run, with the gradients that
    reach the network's outputs; the outputs themselves are not counted."""
    from benchmarks.gpu.step import targets

    shapes = [(LOSS_BATCH, 144, size // s, size // s) for s in (8, 16, 32)]
    branches = [
        [torch.randn(shape).half().requires_grad_() for shape in shapes]
        for _ in range(2)
    ]
    loss = detection_loss(model)
    with LiveBytes() as live:
        loss(branches, targets(LOSS_BATCH, OBJECTS))[0].backward()
    return live.peak / LOSS_BATCH


def cuda_table() -> Any:
    """The CUDA backend's table, emulated."""
    make_importable("tests")
    import cuda_emulation

    return cuda_emulation.capsule("ym_cuda_backend")


def plan(model: nn.Module, batch: int, size: int, keep: str, backend: Any) -> Any:
    """The plan of a training step under fp16 autocast, the image needing no gradient."""
    from yolov9mem._keep import parse_keep
    from yolov9mem.torch.recording.fakes import FakeCopy
    from yolov9mem.torch.recording.record import record
    from yolov9mem.torch.running.lower import lower
    from yolov9mem.torch.running.planned import TorchPlan, Wanted

    image = torch.empty(batch, 3, size, size)
    leaves, spec = tree_flatten(((image,), {}))
    with torch.autocast("cpu", torch.float16):
        (program,) = lower(record(FakeCopy(model), leaves, spec, True), model)
    program.dtype = torch.float16  # as for a model on a GPU
    wanted = Wanted((False,), (True,) * len(program.params), (torch.float32,))
    given = program, parse_keep(keep), wanted
    return TorchPlan(*given, segments=None, backend=backend, cuda_graphs=True)


def row(
    model: nn.Module, batch: int, size: int, keep: str, backend: Any, loss: float
) -> dict[str, Any]:
    made = plan(model, batch, size, keep, backend)
    workspace = max(made.forward_workspace_bytes, made.core.backward_workspace_bytes)
    floats = [v.numel() for v in model.state_dict().values() if v.is_floating_point()]
    state = 4 * 4 * sum(floats)
    # Those of float32, for autocast, end with forward; the plan has them packed in fp16.
    numbers = batch * 3 * size * size
    images = 2 * numbers
    shapes = [shape for shape, _ in made.program.outputs]
    outputs = 2 * sum(n * c * h * w for n, c, h, w in shapes)
    always = made.saved_bytes + images + state
    in_forward = made.forward_workspace_bytes + CUDNN_WORKSPACE + 4 * numbers
    in_loss = made.forward_workspace_bytes if made.keeps_workspace else 0
    in_backward = made.core.backward_workspace_bytes + CUDNN_WORKSPACE
    phases = {
        "in_forward_gb": always + outputs + in_forward,
        "in_loss_gb": always + outputs + in_loss + batch * loss,
        "in_backward_gb": always + outputs + in_backward,
    }
    phases = {name: size / GB for name, size in phases.items()}
    peak = max(phases.values())
    met = peak <= TARGETS[keep]
    return (
        {
            "batch": batch,
            "keep": keep,
            "saved_gb": made.saved_bytes / GB,
            "weights_gb": made.core.weight_bytes / GB,
            "workspace_gb": (workspace + CUDNN_WORKSPACE) / GB,
            "images_gb": images / GB,
            "outputs_gb": outputs / GB,
            "state_gb": state / GB,
            "peak_gb": peak,
        }
        | phases
        | ({"verdict": "met" if met else "not met"} if batch == 64 else {})
    )


def rows(quick: bool) -> list[dict[str, Any]]:
    """quick: 320 px, batch 8 alone."""
    torch.manual_seed(0)
    size, batches = (320, (8,)) if quick else (640, (8, 16, 32, 64))
    model, backend = detection_model("yolov9-s"), cuda_table()
    loss = loss_bytes(model, size)
    return [
        row(model, batch, size, keep, backend, loss)
        for batch in batches
        for keep in TARGETS
    ]
