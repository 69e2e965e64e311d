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
import os
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.models import _examples, detection_loss, detection_model

TITLE = "Losses and gradients of yolov9-t beside stock PyTorch, fp32, augmentation on"
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
    given = os.environ.get("YOLOV9MEM_BENCH_DATA")
    if given:
        return Path(given)
    from yolov9.synthetic import make_shapes

    return make_shapes(Path(tempfile.gettempdir()) / "yolov9mem-shapes")


class Batches:
    """The same augmented batches by both chains: (images uint8, targets)."""

    def __init__(self, size: int, batch: int) -> None:
        _examples()
        import yaml

        from yolov9 import swap
        from yolov9.dataset import DetectionDataset
        from yolov9.labels import list_images, read_data_yaml, read_records
        from yolov9.options import HYP_FOLDER

        hyp = yaml.safe_load((HYP_FOLDER / "hyp.scratch-high.yaml").read_text())
        data = read_data_yaml(str(data_yaml()))
        records = read_records(list_images(data["train"]), data["nc"], "train", True)
        self.classes, self.batch, self.differ = data["nc"], batch, 0
        self.chains = [
            DetectionDataset(records, size, hyp, True, batch, sample=sample)
            for sample in (None, swap.training_sample())
        ]

    def __getitem__(self, iteration: int) -> tuple[Tensor, Tensor]:
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
        images, targets = batch
        dtype = next(self.model.parameters()).dtype
        images = images.to(dtype)
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        self.optimizer.zero_grad()
        loss = self.loss(self.model(images), targets)[0]
        loss.backward()
        return float(loss.detach())

    def step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 10.0)
        self.optimizer.step()

    def load(self, other: Runner) -> None:
        state = other.model.state_dict()
        self.model.load_state_dict(state)


def pooled_error(model: nn.Module, exact: nn.Module) -> float:
    wrong = size = 0.0
    for p, q in zip(model.parameters(), exact.parameters(), strict=True):
        if q.grad is not None:
            wrong += float((p.grad.double() - q.grad).square().sum())
            size += float(q.grad.square().sum())
    return (wrong / size) ** 0.5


def runners(classes: int, keep: str) -> dict[str, Runner]:
    from yolov9mem.torch import checkpoint

    torch.manual_seed(0)
    model = detection_model(NAME, classes)
    return {
        "torch eager": Runner(copy.deepcopy(model)),
        "torch channels_last": Runner(copy.deepcopy(model), channels_last=True),
        f"yolov9mem {keep}": Runner(checkpoint(copy.deepcopy(model), keep=keep)),
    }


def step_by_step(batches: Batches, iterations: int, keep: str) -> list[dict[str, Any]]:
    ways = runners(batches.classes, keep)
    stock = ways["torch eager"]
    others = {name: way for name, way in ways.items() if way is not stock}
    exact = Runner(copy.deepcopy(stock.model).double())
    differences: dict[str, list[float]] = {name: [] for name in others}
    errors: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(iterations):
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
                errors[name].append(pooled_error(way.model, exact.model))
        stock.step()
    made = []
    for name in ways:
        row: dict[str, Any] = {
            "case": "step by step",
            "implementation": name,
            "iterations": iterations,
            "gradient_error": statistics.median(errors[name]),
        }
        if name in differences:
            row["loss_median"] = statistics.median(differences[name])
            row["loss_max"] = max(differences[name])
        made.append(row)
    made[-1]["images_differ"] = batches.differ
    return made


def running_freely(
    batches: Batches, iterations: int, keep: str
) -> list[dict[str, Any]]:
    ways = runners(batches.classes, keep)
    losses: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(iterations):
        batch = batches[i]
        for name, way in ways.items():
            losses[name].append(way.gradients(batch))
            way.step()
    made = []
    for name, found in losses.items():
        if name == "torch eager":
            continue
        apart = [
            abs(a - b) / abs(b)
            for a, b in zip(found, losses["torch eager"], strict=True)
        ]
        last = apart[-max(iterations // 5, 1) :]
        made.append(
            {
                "case": f"running freely, last {len(last)}",
                "implementation": name,
                "iterations": iterations,
                "loss_median": statistics.median(last),
                "loss_max": max(last),
            }
        )
    return made


def rows(quick: bool) -> list[dict[str, Any]]:
    """quick: 4 iterations of 2 images at 96 px instead of 50 of 4 at 160 px."""
    size, batch, iterations = (96, 2, 4) if quick else (160, 4, 50)
    batches = Batches(size, batch)
    return [
        *step_by_step(batches, iterations, "conv"),
        *running_freely(batches, iterations, "conv"),
    ]
