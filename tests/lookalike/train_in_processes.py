# SPDX-License-Identifier: MIT
"""Trains a small net in two processes that torch.multiprocessing starts, as scripts for
several GPUs do; each leaves its weights, and what runs its model, in a file."""

import json
import sys
from pathlib import Path

import torch
import torch.multiprocessing
from torch import nn


def train(rank: int, folder: Path) -> None:
    torch.manual_seed(rank)
    torch.set_num_threads(1)
    layers = (nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.SiLU())
    model = nn.Sequential(*layers, nn.Conv2d(8, 4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(3):
        model(torch.randn(2, 3, 16, 16)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    ours = sys.modules.get("yolov9mem.torch")
    states = [row.state for row in ours.report(model).rows] if ours else []
    weights = {name: x.tolist() for name, x in model.state_dict().items()}
    text = json.dumps({"states": states, "weights": weights})
    (folder / f"rank{rank}.json").write_text(text)


if __name__ == "__main__":
    torch.multiprocessing.start_processes(
        train, (Path(sys.argv[1]),), nprocs=2, start_method=sys.argv[2]
    )
    torch.multiprocessing.spawn(print, ("a function of another kind",), nprocs=1)
