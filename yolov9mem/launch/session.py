# SPDX-License-Identifier: MIT
"""One training: a model and the optimizer that owns its parameters, swapped."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from yolov9mem.torch import (
    AccumulatingSGD,
    checkpoint,
    deferred,
    release,
    report,
    use_expandable_segments,
)
from yolov9mem.torch.optimizer.averages import unwrap
from yolov9mem.torch.recording.closures import redirect
from yolov9mem.torch.running.registry import runner_of

from . import averages, banner
from .cli import Settings
from .measure import Measure
from .patches import Patches
from .sgd import StockSGD, is_swapped
from .validation import Slices, Watcher, is_wrapped, wrap_forward


class Session:
    """What was found and swapped at the first training forward.

    Holds model and optimizer weakly: a script that trains again (--evolve) must be able
    to let go of the model before.
    """

    def __init__(self, settings: Settings, module: nn.Module, optimizer: Any) -> None:
        self.settings = settings
        self.model = weakref.ref(unwrap(module))
        self.optimizer = weakref.ref(optimizer)
        self.devices = _devices(module)
        self.is_compiled = is_compiled(module)
        self.measure = Measure()
        self.slices = Slices()
        self.lines: list[banner.Line] = []
        self.swapped: list[str] = []
        self.shape: tuple[int, ...] = ()
        self._checkpointed = False
        self._rows: tuple[Any, ...] = ()

    # Swapping

    def begin(
        self, patches: Patches, images: Any, watcher: Callable[[], Watcher | None]
    ) -> None:
        """Right before the first training forward, which gets these images."""
        model, optimizer = self.model(), self.optimizer()
        assert model is not None
        assert optimizer is not None
        self.measure.begin(next(model.parameters()).device)
        self._swap_forward(model, patches, watcher)
        self._swap_step(model, optimizer, patches)
        if isinstance(images, Tensor) and images.ndim == 4:
            self.saw(images)
            kind = str(images.dtype).removeprefix("torch.")
            self.lines += banner.image_lines(self.shape, images.element_size(), kind)

    @property
    def is_there(self) -> bool:
        """Is something left that `end` would change?"""
        return self.model() is not None or self.optimizer() is not None

    def end(self) -> None:
        """Model and optimizer are stock again."""
        model, optimizer = self.model(), self.optimizer()
        if model is not None and self._checkpointed:
            release(model)
        if optimizer is not None and hasattr(optimizer, "yolov9mem_deferred"):
            optimizer.yolov9mem_deferred.stop()
            del optimizer.yolov9mem_deferred

    def saw(self, images: Tensor) -> None:
        """A training batch, before DataParallel splits it."""
        self.shape = tuple(images.shape)
        most = -(-len(images) // self.devices)
        self.slices.trained = max(self.slices.trained or 0, most)

    def _swap_forward(
        self, model: nn.Module, patches: Patches, watcher: Callable[[], Watcher | None]
    ) -> None:
        cls: Any = type(model)
        stock = cls.forward
        if runner_of(model) is not None:
            self.lines.append(("model", "checkpointed by the script itself"))
        elif self.settings.keep == "off":
            self.lines.append(("model, stock", "--ckpt off"))
        elif self.is_compiled:
            self.lines.append(("model, stock", "torch.compile runs it"))
        else:
            try:
                use_expandable_segments()
                checkpoint(model, keep=self.settings.keep, strict=self.settings.strict)
                self._checkpointed = True
            except TypeError as error:
                self.lines.append(("model, stock", str(error)))
        if not is_wrapped(cls.forward):
            swapped = cls.forward
            wrapped = wrap_forward(stock, swapped, watcher)
            patches.set(cls, "forward", wrapped)
            redirect(model, swapped, wrapped)

    def trained(self, module: Any, images: Tensor) -> None:
        """A training forward of the model, or of a replica of it, begins."""
        if module is self.model():
            self.saw(images)
        elif not getattr(module, "_is_replica", False):
            return
        self.measure.training(len(images))

    def evaluates(self) -> None:
        """A forward in eval mode begins."""
        self.measure.evaluation()

    def evaluated(self) -> None:
        """It is done."""
        self.measure.evaluated()

    def _swap_step(self, model: nn.Module, optimizer: Any, patches: Patches) -> None:
        name = type(optimizer).__name__
        if isinstance(optimizer, AccumulatingSGD) and not is_swapped(optimizer):
            self.lines.append(("optimizer", f"the script's own {name}"))
            return
        if not isinstance(optimizer, AccumulatingSGD):
            self.lines.append(("optimizer, stock", f"{name}: {_why_stock(optimizer)}"))
            ema = averages.find(model)
            if ema is not None:
                text = f"{type(ema).__name__}: its update is part of our step of SGD"
                self.lines.append(("average, stock", text))
            return
        waiting = deferred(optimizer)
        waiting.start()
        # Lives as long as the optimizer.
        optimizer.yolov9mem_deferred = waiting
        self.swapped.append("optimizer")
        text = "swapped: unscale, clip and SGD in two passes"
        ema = averages.find(model)
        reason = self._swap_average(ema, model, patches)
        if reason is None:
            self.swapped.append("moving average")
            text += f", {type(ema).__name__} in a third"
        else:
            self.lines.append(("average, stock", reason))
        self.lines.append(("optimizer", text))

    @staticmethod
    def _swap_average(ema: Any, model: nn.Module, patches: Patches) -> str | None:
        """Why its update is stock; None: it is ours."""
        if ema is None:
            return averages.why_none()
        reason = averages.why_not(ema)
        if reason is None:
            try:
                averages.swap(ema, model, patches)
            except (TypeError, ValueError) as error:
                reason = f"{type(ema).__name__}: {error}"
        return reason

    # Reporting

    def model_lines(self) -> list[banner.Line]:
        """After the first training forward: what runs in C, and the bytes."""
        rows = self._read_rows()
        if any(row.state == "swapped" for row in rows):
            self.swapped.append("model")
        batch = f"a batch of {self.slices.trained or 'unknown size'}"
        if self.devices > 1:
            batch += f" on each of {self.devices} devices"
        lines = banner.model_lines(rows, batch)
        if rows and not lines:
            text = (
                f"{rows[0].kind}: its forward did not go on to the images in its batch"
            )
            lines.append(("model, stock", text))
        return lines

    def _read_rows(self) -> tuple[Any, ...]:
        model = self.model()
        if model is not None and runner_of(model) is not None:
            self._rows = report(model).rows
        return self._rows

    def rate_line(self, accumulate: int) -> banner.Line | None:
        """What the linear rule would give for the learning rate."""
        optimizer = self.optimizer()
        if optimizer is None or not self.shape:
            return None
        group = optimizer.param_groups[-1]
        rate = group.get("initial_lr", group.get("lr"))
        return banner.rate_line(float(rate), self.shape[0], accumulate)

    @property
    def saved_bytes(self) -> int:
        """Held for backward by stock PyTorch, but not by us."""
        rows = [row for row in self._read_rows() if row.state == "swapped"]
        return sum(row.stock_bytes - row.held_bytes for row in rows)

    def figures(self) -> dict[str, Any]:
        """For --report."""
        rows = self._read_rows()
        swapped = [row for row in rows if row.state == "swapped"]
        return {
            "swapped": self.swapped,
            "model": [
                {
                    name: getattr(row, name)
                    for name in ("path", "kind", "state", "detail")
                }
                for row in rows
            ],
            "image_batch": list(self.shape),
            "held_bytes": sum(row.held_bytes for row in swapped),
            "stock_held_bytes": sum(row.stock_bytes for row in swapped),
            "predicted_peak_bytes": max((row.peak_bytes for row in swapped), default=0),
            "measured_training_peak_bytes": self.measure.training_peak,
            "measured_validation_peak_bytes": self.measure.validation_peak,
            "measured_validation_growth_bytes": self.measure.validation_growth,
            "measured_other_peak_bytes": self.measure.other_peak,
            "seconds_per_image": self.measure.per_image,
            "training_forwards": self.measure.forwards,
            "sliced_validation_forwards": self.slices.count,
        }


def _devices(module: nn.Module) -> int:
    """Over how many devices does DataParallel split a batch?"""
    if not isinstance(module, nn.DataParallel):
        return 1
    found: Any = module.device_ids
    return max(len(found or ()), 1)


def is_compiled(module: nn.Module) -> bool:
    """Does torch.compile run the model that is called by this module?"""
    model = unwrap(module)
    return any(
        "_orig_mod" in part._modules or part._compiled_call_impl is not None
        for part in module.modules()
        if unwrap(part) is model
    )


def _why_stock(optimizer: Any) -> str:
    if not isinstance(optimizer, StockSGD):
        return "only SGD has a counterpart"
    for name in ("fused", "differentiable"):
        if any(group[name] for group in optimizer.param_groups):
            return f"{name}=True has other bits than the loop"
    return "its class was not taken from torch.optim, or before the launch"


def owns(module: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
    """Are all parameters of the optimizer in the module?"""
    wanted = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return bool(wanted) and wanted <= {id(p) for p in module.parameters()}


def is_trained_by(module: Any, optimizer: torch.optim.Optimizer) -> bool:
    """Is this forward the one of the model that the optimizer trains?

    Lightning's module wraps the model and has its own training_step.
    """
    if hasattr(type(module), "training_step"):
        return False
    return owns(module, optimizer)
