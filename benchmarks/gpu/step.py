# SPDX-License-Identifier: MIT
"""One configuration of the table of training steps, alone in its process.

First forward, loss and backward by themselves, before there is an optimizer; then full
steps as examples/train_dual.py makes them: forward, loss, backward of the scaled loss,
unscale, clip, SGD, zero and moving average. Stock ways take torch.optim.SGD with the
example's StockStep, ours AccumulatingSGD. Images lie on the GPU as uint8.

A request names: way, model, batch, size (pixels), objects (an image), deterministic (the
settings of the script, else PyTorch's own with cuDNN's search), multi_scale; it may name
seconds (of timing, for each half) and steps (timed at least).

fixed_segments: torch's allocator as it is by itself; else our ways have the segments
that grow which the example and the launcher ask for, as has one stock way beside them.

multi_scale: the sides of SCALES one after the other, twice: a first time with all that a
new size costs, for the peaks of memory, and a second time for the times as well.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu import names, ways
from benchmarks.gpu.clock import Clock, forget_blocks, forget_peaks, memory, spread
from benchmarks.models import detection_loss, detection_model, make_importable

CLASSES = 80
# Rates that move the weights without letting them run away on random pictures.
HYP = {"lr0": 1e-4, "momentum": 0.937, "weight_decay": 5e-4}
# No overflow, so that no step is skipped: the loss counts every image, and at batch 64 and
# a scale of 128 the gradients of the stem's weights reach 90000, which is no float16.
LOSS_SCALE = 8.0
WARM_UP, FEWEST, MOST = 3, 7, 40  # steps; the last two are timed
STRIDE = 32
# Of a side: the range that the official script draws from, its ends included.
SCALES = (1.1, 0.6, 1.25, 0.9, 1.5, 0.7, 1.0, 0.5, 1.4, 0.8)


def targets(batch: int, objects: int, seed: int = 0) -> Tensor:
    """(batch * objects, 6) image number, class, xywh; sizes as in COCO's broad middle."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.rand(batch * objects, 6, generator=generator)
    made[:, 0] = torch.arange(batch).repeat_interleave(objects)
    made[:, 1] = (made[:, 1] * CLASSES).floor()
    sides = 0.03 + 0.4 * made[:, 4:] ** 2
    made[:, 2:4] = sides / 2 + made[:, 2:4] * (1 - sides)
    made[:, 4:] = sides
    return made


def sides(request: dict[str, Any]) -> list[int]:
    """Of the images of one step after the other, again and again."""
    size = request["size"]
    if not request["multi_scale"]:
        return [size]
    made = [int(size * scale) // STRIDE * STRIDE for scale in SCALES]
    return made[: request.get("steps", len(made))]


class Training:
    """A model in one of the ways, with its data.

    Args:
        request: see above. make_loss: of the model, called as benchmarks.models has it.
    """

    def __init__(
        self,
        request: dict[str, Any],
        make_loss: Callable[[nn.Module], Any] = detection_loss,
    ) -> None:
        make_importable("examples")
        from yolov9.environment import seed_everything

        self.request, self.device = request, torch.device(request["device"])
        seed_everything(0)
        torch.use_deterministic_algorithms(request["deterministic"], warn_only=True)
        torch.backends.cudnn.benchmark = not request["deterministic"]
        half = torch.float16 if self.device.type == "cuda" else torch.bfloat16
        self.autocast = {"device_type": self.device.type, "dtype": half}
        batch, size = request["batch"], request["size"]
        self.model = detection_model(request["model"], CLASSES).to(self.device)
        self.loss = make_loss(self.model)
        self.runner = ways.prepare(request["way"], self.model, request.get("backend"))
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (batch, 3, size, size), generator=generator)
        self.images = images.to(self.device, torch.uint8)
        self.targets = targets(batch, request["objects"])  # on the host, as a loader's
        self.sides: Iterator[int] = itertools.cycle(sides(request))
        scale = LOSS_SCALE
        self.scaler = torch.amp.GradScaler(self.device.type, init_scale=scale)
        self.step: Callable[[int], bool] | None = None
        self.last: Tensor | None = None

    def add_optimizer(self) -> None:
        from yolov9.ema import ModelEMA
        from yolov9.optim import make_optimizer, make_step

        stock = self.request["way"] not in names.OURS
        ema = ModelEMA(self.model)
        optimizer = make_optimizer(self.model, "SGD", HYP, ema, stock)
        self.step = make_step(self.model, optimizer, self.scaler, ema)

    def forward_backward(self) -> None:
        images = self.images.float().div_(255)
        side = next(self.sides)
        if side != images.shape[-1]:
            images = nn.functional.interpolate(
                images, size=(side, side), mode="bilinear"
            )
        if self.request["way"] in (names.LAST, *names.COMPILED_WAYS):
            images = images.contiguous(memory_format=torch.channels_last)
        if self.request["way"] == names.REDUCED:
            torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(**self.autocast):
            output = self.runner(images)
        del images
        loss, _ = self.loss(output, self.targets)
        del output
        self.scaler.scale(loss).backward()
        self.last = loss.detach()

    def alone(self) -> None:
        """Forward, loss and backward; gradients do not pile up."""
        for p in self.model.parameters():
            p.grad = None
        self.forward_backward()

    def full(self) -> None:
        self.forward_backward()
        assert self.step is not None
        self.step(1)


def measure(
    clock: Clock, work: Callable[[], None], warmup: int, request: dict[str, Any]
) -> dict[str, Any]:
    """Times of single steps and peaks of memory after the warm-up; with sizes that
    change, peaks of the warm-up too: that is when memory grows."""
    device, seconds = request["device"], request.get("seconds", 1.0)
    fewest, most = request.get("steps", FEWEST), MOST
    if request["multi_scale"]:
        fewest = most = warmup
    forget_blocks(device)
    forget_peaks(device)
    begin = time.perf_counter()
    for _ in range(warmup):
        work()
    clock.wait()
    warm_s = time.perf_counter() - begin
    if not request["multi_scale"]:
        forget_peaks(device)
    marks = [clock.mark()]
    begin = time.perf_counter()
    while len(marks) <= fewest or (
        time.perf_counter() - begin < seconds and len(marks) <= most
    ):
        work()
        marks.append(clock.mark())
    clock.wait()
    whole_s = time.perf_counter() - begin
    times = [clock.between(a, b) for a, b in itertools.pairwise(marks)]
    found = spread(times) | {"mean_ms": whole_s * 1e3 / len(times), "warm_s": warm_s}
    # torch's allocator gives nothing back, unless it had to try again (noted).
    return found | {"memory": memory(device)}


def prepare_allocator(request: dict[str, Any]) -> None:
    """Before anything lies on the GPU."""
    growing = request["way"] in (*names.OURS, names.GROWING)
    if growing and not request.get("fixed_segments"):
        from yolov9mem.torch import use_expandable_segments

        use_expandable_segments()


def run(request: dict[str, Any]) -> dict[str, Any]:
    prepare_allocator(request)
    clock, training = Clock(request["device"]), Training(request)
    warmup = len(sides(request)) if request["multi_scale"] else WARM_UP
    alone = measure(clock, training.alone, warmup, request)
    training.add_optimizer()
    full = measure(clock, training.full, warmup, request)
    loss = float(training.last) if training.last is not None else float("nan")
    if not math.isfinite(loss):
        raise RuntimeError(f"the loss is {loss}: its figures would mean nothing")
    if training.scaler.get_scale() != LOSS_SCALE:
        raise RuntimeError(
            "a step was skipped (overflow): its times would be too short"
        )
    batch = request["batch"]
    found: dict[str, Any] = {"loss": loss}
    typical = "mean_ms" if request["multi_scale"] else "median_ms"
    for name, part in (("alone", alone), ("full", full)):
        found[name] = part | {"images_per_s": batch * 1e3 / part[typical]}
    if request["way"] in names.OURS:
        found["plan"] = ways.plan_bytes(training.model)
    return found
