# SPDX-License-Identifier: MIT
"""Threads: how many the core runs on beside PyTorch, and recordings in several."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
from models_for_tests import TELLS_OF_RETAINING
from torch import Tensor, nn

import yolov9mem.torch as ym
from yolov9mem.torch.recording import isolation

CPUS = len(os.sched_getaffinity(0))
PROGRAM = """
import torch, yolov9mem
import yolov9mem.torch as ym

torch.set_num_threads({torch})
if {own}:
    yolov9mem.set_num_threads({own})
model = ym.checkpoint(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.SiLU()))
optimizer = ym.AccumulatingSGD(model.parameters(), lr=0.1)
{work}
print(yolov9mem.get_num_threads())
"""
FORWARD = "model(torch.rand(1, 3, 8, 8))"
STEP = "model[0].weight.grad = torch.ones(8, 3, 3, 3); optimizer.step()"


@pytest.mark.parametrize("work", [FORWARD, STEP], ids=["forward", "step"])
@pytest.mark.parametrize(
    "variables, own, threads",
    [
        ({"OMP_NUM_THREADS": "1"}, 0, min(2, CPUS)),
        ({"YOLOV9MEM_NUM_THREADS": "1"}, 0, 1),
        ({"OMP_NUM_THREADS": "1"}, 3, 3),
    ],
    ids=["as PyTorch", "variable", "set"],
)
def test_threads_are_those_of_pytorch(
    variables: dict[str, str], own: int, threads: int, work: str
) -> None:
    """ultralytics sets OMP_NUM_THREADS to 1 and tells PyTorch another number."""
    program = PROGRAM.format(torch=2, own=own, work=work)
    environment = {k: v for k, v in os.environ.items() if not k.endswith("NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == threads


class SeenLock:
    """Tells by ``asked`` when a second thread has come to it."""

    def __init__(self) -> None:
        self.lock, self.asked = threading.Lock(), threading.Event()

    def __enter__(self) -> None:
        if not self.lock.acquire(blocking=False):
            self.asked.set()
            self.lock.acquire()

    def __exit__(self, *error: Any) -> None:
        self.lock.release()


def test_a_recording_that_waits_for_another_takes_none_of_its_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lock, seeded = SeenLock(), list[bool]()
    monkeypatch.setattr(isolation, "_lock", lock)
    before = random.getstate(), torch.get_rng_state()

    def second() -> None:
        with isolation.undisturbed():
            seeded.append(isolation.is_seeded())

    thread = threading.Thread(target=second)
    with isolation.undisturbed():
        torch.manual_seed(5), random.seed(5)
        thread.start()
        assert lock.asked.wait(60)
    thread.join()
    assert seeded == [False]
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def trained(**how: Any) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(3, 3, 3), nn.SiLU()) for _ in range(4)]
    module = ym.checkpoint(nn.Sequential(*layers), **how)
    return module, module(torch.rand(1, 3, 16, 16)).square().mean()


@TELLS_OF_RETAINING
def test_two_backwards_of_one_forward_at_once_are_refused() -> None:
    """One begins while another is between two segments, or within one."""
    module, loss = trained(segments=4)
    others: list[BaseException | None] = []

    def another() -> None:
        try:
            torch.autograd.grad(loss, module[3][0].weight, retain_graph=True)
        except RuntimeError as error:
            others.append(error)

    def in_between(_: Tensor) -> None:
        thread = threading.Thread(target=another)
        thread.start()
        thread.join()

    handle = module[3][0].weight.register_post_accumulate_grad_hook(in_between)
    with pytest.raises(RuntimeError, match="two backwards of one forward"):
        loss.backward(retain_graph=True)
    handle.remove()
    assert not others
    node: Any = loss.grad_fn
    while not hasattr(node, "call"):
        node = node.next_functions[0][0]
    with node.call.alone():
        another()
    assert "two backwards of one forward" in str(others)


@TELLS_OF_RETAINING
def test_backwards_after_each_other_are_not() -> None:
    module, loss = trained(segments=4)
    thread = threading.Thread(target=lambda: loss.backward(retain_graph=True))
    thread.start()
    thread.join()
    grads = [p.grad.clone() for p in module.parameters()]
    loss.backward()
    for p, grad in zip(module.parameters(), grads):
        torch.testing.assert_close(p.grad, 2 * grad)
