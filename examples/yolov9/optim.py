# SPDX-License-Identifier: MIT
"""Parameter groups, learning-rate schedule, warm-up and the two kinds of step."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from . import swap
from .ema import ModelEMA

NOMINAL_BATCH = 64
MAX_NORM = 10.0


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Three groups in the field's order: biases, weights with decay, norm weights."""
    norms = tuple(v for k, v in vars(nn).items() if "Norm" in k and isinstance(v, type))
    biases, weights, scales = [], [], []
    for module in model.modules():
        if isinstance(getattr(module, "bias", None), nn.Parameter):
            biases.append(module.bias)
        if isinstance(getattr(module, "weight", None), nn.Parameter):
            (scales if isinstance(module, norms) else weights).append(module.weight)
    return [
        {"params": biases, "weight_decay": 0.0},
        {"params": weights, "weight_decay": weight_decay},
        {"params": scales, "weight_decay": 0.0},
    ]


def schedule(kind: str, last: float, epochs: int) -> Callable[[float], float]:
    """Factor of lr0 by epoch, from 1 to `last`: linear, cos, flat-cos or fixed."""
    half = epochs // 2

    def cosine(x: float, steps: int) -> float:
        return (1 - math.cos(x * math.pi / max(steps, 1))) / 2 * (last - 1) + 1

    return {
        "linear": lambda x: (1 - x / epochs) * (1 - last) + last,
        "cos": lambda x: cosine(x, epochs),
        "flat-cos": lambda x: cosine(x - half, half) if x > half else 1.0,
        "fixed": lambda x: 1.0,
    }[kind]


class Warmup:
    """Ramps of the first iterations: rates, momentum and, if not fixed, accumulation.

    `accumulate`: batches a step; None: as many as make a nominal batch of 64, reached
    gradually during warm-up.
    """

    def __init__(
        self, hyp: dict, batches: int, batch_size: int, accumulate: int | None
    ) -> None:
        self.hyp = hyp
        minimum = int(hyp.get("warmup_min_iterations", 100))
        self.iterations = max(round(hyp["warmup_epochs"] * batches), minimum)
        self.ratio = NOMINAL_BATCH / batch_size
        self.fixed = accumulate
        self.accumulate = accumulate or max(round(self.ratio), 1)

    def apply(
        self, optimizer: torch.optim.Optimizer, iteration: int, factor: float
    ) -> None:
        """Sets the groups for an iteration; group 0 holds the biases."""
        if iteration > self.iterations:
            return
        span = [0, self.iterations]
        hyp = self.hyp
        if self.fixed is None:
            ramp = np.interp(iteration, span, [1, self.ratio])
            self.accumulate = max(1, int(ramp.round()))
        for i, group in enumerate(optimizer.param_groups):
            start = hyp["warmup_bias_lr"] if i == 0 else 0.0
            goal = group["initial_lr"] * factor
            group["lr"] = float(np.interp(iteration, span, [start, goal]))
            if "momentum" in group:
                ramp = [hyp["warmup_momentum"], hyp["momentum"]]
                group["momentum"] = float(np.interp(iteration, span, ramp))


class StockStep:
    """unscale, clip, step, zero, EMA as separate passes of stock PyTorch."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        ema: ModelEMA | None,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.scaler, self.ema = scaler, ema
        self.waiting = 0

    def __call__(self, accumulate: int) -> bool:
        """After each batch's backward; True where the parameters were stepped."""
        self.waiting += 1
        if self.waiting < accumulate:
            return False
        self.waiting = 0
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.model)
        return True


class FusedStep:
    """The same step by yolov9mem.torch.AccumulatingSGD, which owns clip and EMA."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> None:
        self.optimizer, self.scaler = optimizer, scaler

    def __call__(self, accumulate: int) -> bool:
        self.optimizer.accumulate = accumulate
        self.optimizer.step(scaler=self.scaler, max_norm=MAX_NORM)
        if self.optimizer.stepped:
            self.scaler.update()
        return self.optimizer.stepped


def make_optimizer(
    model: nn.Module, kind: str, hyp: dict, ema: ModelEMA | None, stock: bool
) -> torch.optim.Optimizer:
    """SGD (ours unless `stock`), Adam or AdamW; hyp["weight_decay"] is final."""
    groups = parameter_groups(model, hyp["weight_decay"])
    lr, momentum = hyp["lr0"], hyp["momentum"]
    if kind == "Adam":
        return torch.optim.Adam(groups, lr=lr, betas=(momentum, 0.999))
    if kind == "AdamW":
        return torch.optim.AdamW(groups, lr=lr, betas=(momentum, 0.999))
    # Without momentum there is no look-ahead, and PyTorch refuses to be asked for it.
    options = {"lr": lr, "momentum": momentum, "nesterov": momentum > 0}
    if stock:
        return torch.optim.SGD(groups, **options)
    return swap.sgd(groups, **options, ema=ema, model=model)


def make_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    ema: ModelEMA | None,
) -> Callable[[int], bool]:
    """The step that fits the optimizer."""
    if hasattr(optimizer, "accumulate"):
        return FusedStep(optimizer, scaler)
    return StockStep(model, optimizer, scaler, ema)
