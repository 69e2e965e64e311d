# SPDX-License-Identifier: MIT
"""Processes, devices, seeds and autocast of a training run."""

import os
import random
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.distributed as dist

from .options import OptionError


@dataclass(frozen=True)
class Processes:
    """This process among those that torchrun started; rank -1: it is alone."""

    rank: int
    local_rank: int
    world: int

    @classmethod
    def from_environment(cls) -> "Processes":
        def read(name: str, default: int) -> int:
            text = os.environ.get(name) or str(default)
            try:
                return int(text)
            except ValueError:
                raise OptionError(f"{name} is {text!r}: no whole number") from None

        return cls(read("RANK", -1), read("LOCAL_RANK", -1), read("WORLD_SIZE", 1))

    @property
    def is_main(self) -> bool:
        return self.rank in (-1, 0)

    @property
    def is_distributed(self) -> bool:
        return self.rank != -1


def select_devices(text: str, processes: Processes) -> list[torch.device]:
    """Devices of this process; the first holds the model."""
    wanted = text.lower().replace("cuda:", "").strip()
    if wanted == "cpu" or (not wanted and not torch.cuda.is_available()):
        return [torch.device("cpu")]
    if not torch.cuda.is_available():
        raise OptionError(f"--device {text}: this PyTorch sees no CUDA device")
    try:
        numbers = [int(n) for n in (wanted or "0").split(",")]
    except ValueError:
        raise OptionError(f"--device {text!r}: cpu or numbers such as 0,1") from None
    count = torch.cuda.device_count()
    if max(numbers) >= count or min(numbers) < 0:
        raise OptionError(f"--device {text}: there are CUDA devices 0 to {count - 1}")
    if processes.is_distributed:
        if processes.local_rank >= len(numbers) and len(numbers) > 1:
            raise OptionError(
                f"--device {text}: fewer devices than processes on this machine"
            )
        number = processes.local_rank
        numbers = [numbers[number] if len(numbers) > 1 else number]
    return [torch.device("cuda", n) for n in numbers]


def join_processes(processes: Processes, device: torch.device) -> None:
    if processes.is_distributed and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def seed_everything(seed: int) -> None:
    """Seeds all generators and asks for deterministic algorithms.

    torch.empty is not filled as PyTorch would do by default then: it costs a pass over
    all memory and no result depends on it.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    cv2.setNumThreads(0)


def autocast_options(amp: bool | None, device: torch.device) -> dict:
    """Arguments of torch.autocast: fp16 on CUDA, bf16 on the CPU if asked for."""
    if device.type == "cuda":
        return {"enabled": amp is not False, "dtype": torch.float16}
    return {"enabled": bool(amp), "dtype": torch.bfloat16}
