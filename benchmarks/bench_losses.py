# SPDX-License-Identifier: MIT
"""Do the losses agree? Ours beside stock on the same photographs and weights.

`step by step`: at each iteration of a stock run ours is loaded with stock's weights and
buffers and given the same batch (made twice, by both augmentation chains, and compared
byte for byte). `running freely`: both train on their own from the same start; training is
chaotic, so the yardstick is how far stock channels_last drifts from stock.

Data: YOLOV9MEM_BENCH_DATA (a data.yaml), else shapes drawn on the spot.
"""

from __future__ import annotations

import copy
import math
import os
import random
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.exactness import pooled_error
from benchmarks.gpu.names import EAGER, LAST
from benchmarks.gpu.ways import plan_bytes
from benchmarks.models import detection_loss, detection_model, make_importable
from benchmarks.record import ROOT

TITLE = "Losses and gradients of yolov9-t beside stock PyTorch, fp32, augmentation on"
SEEDS = 5  # running freely: one alone is chance
COLUMNS = [
    ("case", "case", ""),
    ("implementation", "implementation", ""),
    ("iterations", "iterations", ""),
    ("loss_median", "loss, relative, median", ".1e"),
    ("loss_max", "loss, relative, max", ".1e"),
    ("gradient_error", "gradient error, of float64", ".1e"),
    ("images_differ", "bytes of images that differ", ""),
]
NAME = "yolov9-t"
FLOAT64_EVERY = 10  # iterations between comparisons of gradients with float64


def data_yaml() -> Path:
    """A relative path is one from here or, for a process elsewhere, in the repository."""
    given = os.environ.get("YOLOV9MEM_BENCH_DATA")
    if given:
        return Path(given) if Path(given).exists() else ROOT / given
    from yolov9.synthetic import make_shapes

    return make_shapes(Path(tempfile.gettempdir()) / "yolov9mem-shapes")


class Batches:
    """The same augmented batches by both chains: (images in [0, 1], targets).

    Each is made once. differ: bytes of images in which the chains differ, so far.
    """

    def __init__(self, size: int, batch: int) -> None:
        make_importable("examples")
        import yaml

        from yolov9 import swap
        from yolov9.dataset import DetectionDataset
        from yolov9.labels import list_images, read_data_yaml, read_records
        from yolov9.options import HYP_FOLDER

        hyp = yaml.safe_load((HYP_FOLDER / "hyp.scratch-high.yaml").read_text())
        data = read_data_yaml(str(data_yaml()))
        records = read_records(list_images(data["train"]), data["nc"], "train", True)
        self.classes, self.batch, self.differ = data["nc"], batch, 0
        self.known: dict[int, tuple[Tensor, Tensor]] = {}
        self.chains = [
            DetectionDataset(records, size, hyp, True, batch, sample=sample)
            for sample in (None, swap.training_sample())
        ]

    def __getitem__(self, iteration: int) -> tuple[Tensor, Tensor]:
        if iteration not in self.known:
            self.known[iteration] = self._made(iteration)
        return self.known[iteration]

    def _made(self, iteration: int) -> tuple[Tensor, Tensor]:
        from yolov9.dataset import collate

        made = []
        for chain in self.chains:
            random.seed(iteration)
            np.random.seed(iteration)
            first = iteration * self.batch
            made.append(
                collate([chain[(first + i) % len(chain)] for i in range(self.batch)])
            )
        (images, targets, *_), (ours, our_targets, *_) = made
        self.differ += int((images != ours).sum())
        if not torch.allclose(targets, our_targets, atol=1e-6):
            raise AssertionError(f"targets of iteration {iteration} differ")
        return images.float() / 255, targets


class Runner:
    """A model with its loss and stock SGD, as train_dual.py begins."""

    def __init__(self, model: nn.Module, channels_last: bool = False) -> None:
        if channels_last:
            model = model.to(memory_format=torch.channels_last)
        self.model, self.channels_last = model, channels_last
        self.loss = detection_loss(model)
        self.optimizer = torch.optim.SGD(
            model.parameters(), 0.01, 0.9, weight_decay=5e-4, nesterov=True
        )

    def gradients(self, batch: tuple[Tensor, Tensor]) -> float:
        p = next(self.model.parameters())
        images, targets = batch[0].to(p.device, p.dtype), batch[1].to(p.device)
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        self.optimizer.zero_grad()
        loss = self.loss(self.model(images), targets)[0]
        loss.backward()
        return float(loss.detach())

    def step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 10.0)
        self.optimizer.step()


def gradient_error(model: nn.Module, exact: nn.Module) -> float:
    pairs = zip(model.parameters(), exact.parameters(), strict=True)
    grads = [(p.grad, q.grad) for p, q in pairs if q.grad is not None]
    return pooled_error(*zip(*grads))


@dataclass(frozen=True)
class Case:
    """What is compared, and where: keep and backend as ym.checkpoint takes them."""

    iterations: int
    keep: str = "conv"
    device: str = "cpu"
    backend: str = "auto"

    @property
    def ours(self) -> str:
        return f"yolov9mem {self.keep}"

    def runners(self, classes: int, seed: int = 0) -> dict[str, Runner]:
        """The three ways, all from the same weights."""
        from yolov9mem.torch import checkpoint

        torch.manual_seed(seed)
        model = detection_model(NAME, classes).to(self.device)
        mine = checkpoint(copy.deepcopy(model), self.keep, backend=self.backend)
        return {
            EAGER: Runner(copy.deepcopy(model)),
            LAST: Runner(copy.deepcopy(model), channels_last=True),
            self.ours: Runner(mine),
        }


def step_by_step(batches: Batches, case: Case) -> list[dict[str, Any]]:
    ways = case.runners(batches.classes)
    stock = ways[EAGER]
    others = {name: way for name, way in ways.items() if way is not stock}
    exact = Runner(copy.deepcopy(stock.model).double())
    differences: dict[str, list[float]] = {name: [] for name in others}
    errors: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(case.iterations):
        batch = batches[i]
        before = copy.deepcopy(stock.model.state_dict())
        loss = stock.gradients(batch)
        for name, way in others.items():
            way.model.load_state_dict(before)
            differences[name].append(abs(way.gradients(batch) - loss) / abs(loss))
        if i % FLOAT64_EVERY == 0:
            exact.model.load_state_dict(before)
            exact.gradients(batch)
            for name, way in ways.items():
                errors[name].append(gradient_error(way.model, exact.model))
        stock.step()
    plan_bytes(ways[case.ours].model)  # raises where it did not run through us
    made = []
    for name in ways:
        row: dict[str, Any] = {
            "case": "step by step",
            "implementation": name,
            "iterations": case.iterations,
            "gradient_error": statistics.median(errors[name]),
        }
        if name in differences:
            row["loss_median"] = statistics.median(differences[name])
            row["loss_max"] = max(differences[name])
        made.append(row)
    made[-1]["images_differ"] = batches.differ
    return made


def drift(batches: Batches, case: Case, seed: int) -> dict[str, list[float]]:
    """Of each way but stock's how far its last losses are from stock's, relative."""
    ways = case.runners(batches.classes, seed)
    losses: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(case.iterations):
        batch = batches[i]
        for name, way in ways.items():
            losses[name].append(way.gradients(batch))
            way.step()
    plan_bytes(ways[case.ours].model)
    stock = losses.pop(EAGER)
    return {
        name: [abs(a - b) / abs(b) for a, b in zip(found, stock, strict=True)][
            -max(case.iterations // 5, 1) :
        ]
        for name, found in losses.items()
    }


def running_freely(
    batches: Batches, case: Case, seeds: int = 1, seconds: float = math.inf
) -> list[dict[str, Any]]:
    """Medians over seeds of the weights; begins none that would end after `seconds`."""
    found: list[dict[str, list[float]]] = []
    begin = time.perf_counter()
    while len(found) < seeds:
        found.append(drift(batches, case, seed=len(found)))
        each = (time.perf_counter() - begin) / len(found)
        if each * (len(found) + 1) > seconds:
            break
    made = []
    for name, last in found[0].items():
        words = f"running freely, last {len(last)}"
        words += f", median of {len(found)} seeds" if len(found) > 1 else ""
        row = {"case": words, "implementation": name, "iterations": case.iterations}
        medians = [statistics.median(apart[name]) for apart in found]
        row["loss_median"] = statistics.median(medians)
        row["loss_max"] = max(max(apart[name]) for apart in found)
        made.append(row)
    return made


def sizes(quick: bool) -> tuple[int, int, int]:
    """(pixels, images a batch, iterations)."""
    return (96, 2, 4) if quick else (160, 4, 50)


def rows(quick: bool) -> list[dict[str, Any]]:
    """quick: 4 iterations of 2 images at 96 px instead of 50 of 4 at 160 px."""
    size, batch, iterations = sizes(quick)
    batches, case = Batches(size, batch), Case(iterations)
    seeds = 1 if quick else SEEDS
    return [*step_by_step(batches, case), *running_freely(batches, case, seeds)]
