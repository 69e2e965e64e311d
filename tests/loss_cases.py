# SPDX-License-Identifier: MIT
"""Outputs of a head and targets for the tests of the loss, and objects of random images."""

from types import SimpleNamespace

import numpy as np
import torch
from loss_by_loops import STRIDES


def make_case(seed: int, batch: int = 2, size: int = 96, nc: int = 3, count: int = 6):
    """Levels near some of the objects, so that overlaps are real; and targets."""
    rng = np.random.default_rng(seed)
    targets = np.zeros((count * batch, 6))
    targets[:, 0] = np.repeat(np.arange(batch), count)
    targets[:, 1] = rng.integers(0, nc, len(targets))
    targets[:, 2:4] = rng.uniform(0.2, 0.8, (len(targets), 2))
    targets[:, 4:] = rng.uniform(0.1, 0.4, (len(targets), 2))
    levels = []
    for s in STRIDES:
        z = rng.normal(0, 1, (batch, 64 + nc, size // s, size // s))
        bins = z[:, :64].reshape(batch, 4, 16, *z.shape[2:])
        bins[:, :, 1 : 1 + 32 // s] += 2.5
        levels.append(z)
    return levels, targets


def head(nc: int) -> SimpleNamespace:
    return SimpleNamespace(nc=nc, reg_max=16, stride=torch.tensor([8.0, 16.0, 32.0]))


def random_images(counts, nc, cells=320, seed=0):
    """(logits, boxes, points, objects) of images with that many objects."""
    torch.manual_seed(seed)
    points = torch.rand(cells, 2) * 100
    size = torch.rand(len(counts), cells, 4) * 25 + 2
    boxes = torch.cat((points - size[..., :2], points + size[..., 2:]), -1)
    objects = []
    for count in counts:
        low = torch.rand(count, 2) * 70
        gt = torch.cat((low, low + torch.rand(count, 2) * 35 + 4), 1)
        objects.append((torch.randint(0, nc, (count,)), gt))
    return torch.randn(len(counts), cells, nc), boxes, points, objects
