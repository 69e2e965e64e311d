# SPDX-License-Identifier: MIT
"""Exponential moving average of a model's float state."""

import math
from copy import deepcopy

import torch
from torch import nn


class ModelEMA:
    """Keeps `ema`, an eval copy whose float parameters and buffers follow the model.

    After update number n the weight of the old value is decay(n) =
    0.9999 * (1 - exp(-n / 2000)). Integer buffers stay as they are.
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float = 0.9999,
        tau: float = 2000,
        updates: int = 0,
    ) -> None:
        self.ema = deepcopy(model).eval()
        for p in self.ema.parameters():
            p.requires_grad_(False)
        self.updates = updates
        self.limit = decay
        self.tau = tau

    def decay(self, updates: int) -> float:
        return self.limit * (1 - math.exp(-updates / self.tau))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        d = self.decay(self.updates)
        state = model.state_dict()
        for name, value in self.ema.state_dict().items():
            if value.dtype.is_floating_point:
                value.mul_(d).add_((1 - d) * state[name].detach())
