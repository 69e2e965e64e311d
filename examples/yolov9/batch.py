# SPDX-License-Identifier: MIT
"""--batch-size -1: the largest batch that fits, by steps of a model made for that alone.

What is measured is all that training does with a batch: the step of step.py at the
largest size that --multi-scale draws, with the gradients of a batch before and the
optimizer's state, and the forward pass of validation. The model, and all else that the
steps change, is let go before the run makes its own.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch

from . import detector, swap
from .ema import ModelEMA
from .environment import Processes
from .labels import Record
from .optim import make_optimizer, make_step
from .options import AUTO_BATCH, OptionError
from .step import STRIDE, TrainingStep, sides_of_multi_scale
from .val import predict

WITHOUT_GPU = 16  # images, as in the field
MOST = 1024
TILES = 4  # of a mosaic
LOSS_SCALE = 128.0  # so that no step overflows and is skipped


@dataclass(frozen=True)
class Run:
    """What decides over the memory of a run."""

    opt: argparse.Namespace
    hyp: dict
    name: str
    nc: int
    size: int  # pixels
    processes: Processes
    devices: list[torch.device]
    autocast: dict
    images: list[Record]  # to train on


def check(size: int, world: int) -> None:
    """Raises OptionError for a --batch-size that so many processes can't share."""
    if size == AUTO_BATCH and world > 1:
        raise OptionError(
            "--batch-size -1 is for one process: without torchrun, on one GPU, it says "
            f"a number; give {world} times that, as there are {world} processes"
        )
    if size % world:
        raise OptionError(
            f"--batch-size {size} is not a multiple of the {world} processes"
        )


def choose(run: Run) -> int:
    """Images a batch, over all devices; says what was measured.

    Raises OptionError where not even one for each device fits.
    """
    measures = meter(run.devices)
    if run.devices[0].type == "cpu" and measures is None:
        print(f"--batch-size -1: {WITHOUT_GPU}, as there is no GPU to fill")
        return WITHOUT_GPU
    gpus = len(run.devices)
    try:
        found = swap.largest_batch(
            lambda: _Trial(run),
            devices=run.devices,
            most=max(min(len(run.images), MOST), gpus),
            multiple=gpus,
            meter=measures,
        )
    except MemoryError as error:
        raise OptionError(f"--batch-size -1: {error}. {_advice(run.opt)}") from error
    whole = "" if found.batch < len(run.images) else "; there are no more images"
    print(f"--batch-size -1: {found}{whole}")
    return found.batch


def meter(devices: list[torch.device]) -> Callable | None:
    """yolov9mem.torch.largest_batch's own, for GPUs. Tests put another here."""
    return None


def _advice(opt: argparse.Namespace) -> str:
    ways = ["a smaller --img"]
    if opt.multi_scale:
        ways.append("no --multi-scale")
    if opt.ckpt != "min":
        ways.append("--ckpt min without --stock" if opt.stock else "--ckpt min")
    return f"Less is taken with {' or '.join(ways)}"


class _Trial:
    """Callable: one step of so many images, and their validation."""

    def __init__(self, run: Run) -> None:
        opt, device = run.opt, run.devices[0]
        self.run, self.device = run, device
        model = detector.make(run.name, run.nc, opt.freeze).to(device)
        self.ema = ModelEMA(model)
        # Weights stay: random images must not lead to a loss that is not finite.
        hyp = run.hyp | {"lr0": 0.0}
        optimizer = make_optimizer(model, opt.optimizer, hyp, self.ema, opt.stock)
        fp16 = run.autocast["enabled"] and device.type == "cuda"
        scaler = torch.amp.GradScaler(device.type, LOSS_SCALE, enabled=fp16)
        finish = make_step(model, optimizer, scaler, self.ema)
        wrapped = detector.wrap(model, opt, run.processes, run.devices).train()
        self.loss = swap.detection_loss(model.model[-1], run.hyp)
        self.step = TrainingStep(
            wrapped, self.loss, scaler, finish, device, run.autocast
        )
        counts = [len(record.labels) for record in run.images]
        self.densest = max(counts, default=0)
        self.mean = sum(counts) / max(len(counts), 1)
        self.side = None
        if opt.multi_scale:
            self.side = sides_of_multi_scale(run.size)[-1]
        # From here on the optimizer has its state, and the GPU its kernels.
        gpus = len(run.devices)
        self.step(self._images(gpus, 2 * STRIDE), self._targets(gpus), 1)

    def __call__(self, batch: int) -> None:
        targets = self._targets(batch)
        # The second of two batches a step finds the gradients of the first.
        accumulate = min(self.run.opt.accumulate or 2, 2)
        images = self._images(batch, self.run.size)
        self.step(images, targets, accumulate, self.side)
        # Rectangles of validation are padded by half a stride, and then to a whole one.
        images = self._images(batch, self.run.size + STRIDE)
        predict(
            self.ema.ema, images, targets, self.loss, self.device, self.run.autocast
        )

    def _images(self, batch: int, size: int) -> torch.Tensor:
        image = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8)
        return image.expand(batch, -1, -1, -1).contiguous()

    def _targets(self, batch: int) -> torch.Tensor:
        """In each image as many objects as four have; the first has the densest, too."""
        usual = max(round(TILES * self.mean), 1)
        counts = [usual] * batch
        counts[0] += max(self.densest - round(self.mean), 0)
        targets = torch.rand(sum(counts), 6) * 0.2 + 0.3  # boxes in the middle
        targets[:, 0] = torch.arange(batch).repeat_interleave(torch.tensor(counts))
        targets[:, 1] = 0
        return targets
