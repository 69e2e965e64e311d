# SPDX-License-Identifier: MIT
"""One training step: images to the device, forward, loss, backward, optimizer."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

STRIDE = 32


def sides_of_multi_scale(size: int) -> range:
    """What --multi-scale draws from, before it is cut to a multiple of the stride."""
    return range(int(size * 0.5), int(size * 1.5) + STRIDE)


def rescaled(images: Tensor, side: int) -> Tensor:
    """The longer side becomes `side`, each a multiple of the stride; all in pixels."""
    factor = side // STRIDE * STRIDE / max(images.shape[2:])
    size = [math.ceil(x * factor / STRIDE) * STRIDE for x in images.shape[2:]]
    return nn.functional.interpolate(images, size=size, mode="bilinear")


class TrainingStep:
    """Callable; what a run does with each batch.

    finish: `optim.make_step`'s, called after each backward. world: processes whose
    gradients are averaged.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable,
        scaler: torch.amp.GradScaler,
        finish: Callable[[int], bool],
        device: torch.device,
        autocast: dict,
        world: int = 1,
    ) -> None:
        self.model, self.loss = model, loss
        self.scaler, self.finish = scaler, finish
        self.device, self.autocast, self.world = device, autocast, world

    def __call__(
        self, images: Tensor, targets: Tensor, accumulate: int, side: int | None = None
    ) -> Tensor:
        """(box, cls, dfl) losses, on the device.

        images (N, 3, H, W) uint8 and targets (n, 6) on the host; side: of multi-scale.
        Raises FloatingPointError where the loss is not finite and no scaler skips that,
        ValueError where the model's budget is too small.
        """
        images = images.to(self.device, non_blocking=True).float().div_(255)
        if side is not None:
            images = rescaled(images, side)
        with torch.autocast(self.device.type, **self.autocast):
            output = self.model(images)
        del images
        loss, parts = self.loss(output, targets)
        del output
        if not self.scaler.is_enabled() and not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()}")
        self.scaler.scale(loss * self.world).backward()
        self.finish(accumulate)
        return parts
