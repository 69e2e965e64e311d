# SPDX-License-Identifier: MIT
"""Small cases of every kernel, for compute-sanitizer: `python -m benchmarks.gpu.small`.

Convolutions are those without cuDNN, so that what the sanitizer sees of ours is ours.

--without NAME leaves a case out. racecheck has no use for REPEATED, whose kernels it has
seen in the other cases: it took minutes there without an end.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.names import REPEATED
from benchmarks.models import make_importable, moving_average

TRAINED = (
    (torch.float32, "conv"),
    (torch.float16, "min"),
    (torch.bfloat16, "all"),
)


def network() -> nn.Module:
    """Every kind of call that a plan knows, on odd numbers of channels and pixels."""
    make_importable("examples")
    from yolov9 import blocks

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = blocks.Conv(3, 16, 3, 2)
            self.prelu, self.gain = nn.PReLU(16), nn.Parameter(torch.ones(()))
            self.elan = blocks.RepNCSPELAN4(16, 24, 16, 8, 1)
            self.down = blocks.ADown(24, 24)
            self.pool = blocks.SPPELAN(24, 16, 8)
            self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(24, 24, 1))
            self.spatial = nn.Conv2d(2, 1, 3, padding=1, bias=False)
            self.scale = nn.BatchNorm2d(24)
            self.up = nn.ConvTranspose2d(16, 7, 3, 2, 1, 1)
            self.head = nn.Conv2d(40, 5, 1)
            self.last = nn.Conv2d(12, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.prelu(self.first(x)) * self.gain
            x = nn.functional.gelu(self.scale(self.elan(x)))
            x = x * self.squeeze(x).sigmoid()  # the gates of attention
            most = nn.functional.adaptive_max_pool2d(x, 1)
            x = x * self.squeeze[1](most).sigmoid()
            both = torch.cat((x.mean(1, True), x.max(1, True).values), 1)
            x = x * self.spatial(both).sigmoid()
            y = self.pool(self.down(x))
            z = self.up(y) * 0.5
            y = nn.functional.interpolate(y, size=x.shape[2:], mode="nearest")
            x = self.head(torch.cat((x, y), 1))
            z = nn.functional.interpolate(z, size=x.shape[2:], mode="bilinear")
            return self.last(torch.cat((x, 1 - z), 1))

    return Net().train()


def train(
    device: str, backend: Any, dtype: torch.dtype, keep: str, graphs: bool = False
) -> None:
    """Two micro-batches: a forward and a backward each; with CUDA graphs four."""
    from yolov9mem.torch import checkpoint

    torch.manual_seed(0)
    model = network().to(device)
    checkpoint(model, keep=keep, backend=backend, cuda_graphs=graphs)
    x = torch.randn(2, 3, 26, 34, device=device)
    mixed = dtype is not torch.float32
    for _ in range(4 if graphs else 2):
        with torch.autocast(torch.device(device).type, dtype, enabled=mixed):
            y = model(x)
        y.float().square().mean().backward()
    for name, p in model.named_parameters():
        if p.grad is None or not torch.isfinite(p.grad).all():
            raise RuntimeError(f"{name}: its gradient is missing or not finite")


def optimize(device: str, good: bool) -> None:
    """A step with a scaler, clip and average; not `good`: a gradient overflows."""
    from yolov9mem.torch import AccumulatingSGD

    model = network().to(device)
    options: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "nesterov": True}
    optimizer = AccumulatingSGD(
        model.parameters(),
        **options,
        max_norm=1.0,
        ema=moving_average(model),
        model=model,
    )
    scaler = torch.amp.GradScaler(device)
    for _ in range(2):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        if not good:
            next(model.parameters()).grad.view(-1)[0] = float("inf")
        scaler.scale(torch.ones((), device=device))
        optimizer.step(scaler=scaler)
        scaler.update()


def augment(device: str) -> None:
    """A batch of mosaics with mixup and copy-paste."""
    from benchmarks.bench_mosaic import make_data
    from benchmarks.gpu.jobs import DeviceBatch, drawn
    from yolov9mem.augment import HYP_SCRATCH_HIGH, Mosaic

    hyp = dict(HYP_SCRATCH_HIGH) | {
        "mixup": 0.5,
        "copy_paste": 0.5,
        "perspective": 5e-4,
    }
    jobs = drawn(Mosaic(*make_data(64, True), image_size=64, hyp=hyp), 4, seed=3)
    batch = DeviceBatch(jobs, 64, torch.device(device, 0))
    if int(batch.render().max()) == 7:
        raise RuntimeError("the mosaic wrote nothing")


def cases(device: str, backend: Any) -> dict[str, Callable[[], None]]:
    kinds = TRAINED if device == "cuda" else TRAINED[:1]
    made: dict[str, Callable[[], None]] = {
        f"{keep} {dtype}": partial(train, device, backend, dtype, keep)
        for dtype, keep in kinds
    }
    made["sgd"] = partial(optimize, device, True)
    made["sgd, overflow"] = partial(optimize, device, False)
    if device == "cuda":
        made[REPEATED] = partial(train, device, backend, *kinds[0], graphs=True)
        made["mosaic"] = partial(augment, device)
    return made


def main(
    words: Sequence[str] = (), device: str = "cuda", backend: Any = "cuda:plain"
) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.small")
    parser.add_argument("--without", default="", metavar="NAME")
    without = parser.parse_args(words).without
    for name, work in cases(device, backend).items():
        if name == without:
            continue
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        print(f"{name}: ran", flush=True)
    print("small cases: all ran", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
