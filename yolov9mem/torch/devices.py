# SPDX-License-Identifier: MIT
"""Where tensors lie, and the CUDA extension for those on a GPU.

The only file that decides what a GPU's tensor is. Call its functions through the module:
tests replace them, and then host memory stands for a GPU's (tests/emulated_gpu.py).
"""

from __future__ import annotations

import importlib.util
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from yolov9mem import _core


def kind(device: torch.device) -> str:
    """ "cpu", "cuda" or what else torch has."""
    return device.type


def index(device: torch.device) -> int:
    """The number of a GPU; -1: the CPU."""
    if device.type == "cpu":
        return -1
    return torch.cuda.current_device() if device.index is None else device.index


def of(leaves: list[Any]) -> torch.device:
    """Of arguments, which are all on one."""
    found = (leaf.device for leaf in leaves if isinstance(leaf, Tensor))
    return next(found, torch.device("cpu"))


# Of a tensor: the number of its GPU; -1: the CPU. Torch's own method, without a function
# of ours around it, because it is asked of every parameter at every call.
number = Tensor.get_device


def current(device: torch.device) -> AbstractContextManager[Any]:
    """The device is the current one inside; nothing on the CPU.

    Only torch goes back without opening a context on a GPU that the process has not used.
    """
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def use_threads_of_torch() -> None:
    """On the CPU the core runs on as many threads as PyTorch does by now, unless it was
    told how many: torch.set_num_threads is what a program says it with, and
    OMP_NUM_THREADS may be another number (ultralytics sets that to 1)."""
    _core.set_usual_num_threads(torch.get_num_threads())


def stream(device: torch.device) -> int:
    """The handle of torch's current stream; 0 on the CPU."""
    if device.type != "cuda":
        return 0
    return torch.cuda.current_stream(device).cuda_stream


def keep_for_stream(tensor: Tensor) -> None:
    """Work on the tensor's bare address was queued on the current stream: torch does not
    hand its memory out again before that is done."""
    if tensor.is_cuda:
        tensor.record_stream(torch.cuda.current_stream(tensor.device))


def is_capturing(device: torch.device) -> bool:
    """Is the current stream being captured into a CUDA graph?"""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def generators(device: torch.device) -> list[torch.Generator]:
    """PyTorch's default ones, of the CPU and of the device: without that of a GPU whose
    stream is being captured, for then it does not tell its state."""
    if device.type != "cuda" or is_capturing(device):
        return [torch.default_generator]
    return [torch.default_generator, torch.cuda.default_generators[index(device)]]


def extension() -> Any:
    """yolov9mem._cuda, without a CUDA call. Raises ImportError where it was not built."""
    from yolov9mem import _cuda  # type: ignore[attr-defined, unused-ignore]

    return _cuda


def why_not_built() -> str | None:
    """What to do about a build without CUDA; None: it was built with it."""
    if importlib.util.find_spec("yolov9mem._cuda") is not None:
        return None
    return (
        "yolov9mem was built without CUDA (no nvcc was found): build it again with "
        "YOLOV9MEM_CUDA=1 pip install --no-build-isolation ."
    )


class CudnnSettings(NamedTuple):
    """What torch says of cuDNN's convolutions.

    tf32: float32 may be rounded to TF32. trials: engines are tried, and the fastest kept.
    """

    tf32: bool
    trials: bool


def cudnn_settings() -> CudnnSettings:
    """Those of torch.backends.cudnn, as they are now."""
    cudnn = torch.backends.cudnn
    try:
        tf32 = bool(cudnn.allow_tf32)
    except RuntimeError:  # the newer fp32_precision settings were used
        tf32 = bool(cudnn.conv.fp32_precision == "tf32")
    return CudnnSettings(tf32, bool(cudnn.benchmark))


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What autocast computes in on this kind of device; None: it is off."""
    if not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device, without waiting for that: by pinned memory, as CUDA copies
    more than 64 KB of other memory only after what was queued before is done."""
    from_host = tensor.device.type == "cpu" and device.type == "cuda"
    return (tensor.pin_memory() if from_host else tensor).to(device, non_blocking=True)


def to_device(made: Tensor, place: Tensor) -> Tensor:
    """Copies bytes from host memory into ``place`` without waiting.

    Returns what has to stay alive until the copy is done: pinned memory, which torch
    does not hand out again before that.
    """
    pinned = made.pin_memory() if place.is_cuda else made
    place.copy_(pinned, non_blocking=True)
    return pinned
