# SPDX-License-Identifier: MIT
"""The fused optimizer step on NumPy arrays; PyTorch users want yolov9mem.torch."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from yolov9mem import _core

_GRADIENT = {"keep": 0, "zero": 1, "write": 2}


@dataclass
class SGDGroup:
    """Arrays that share hyper-parameters; element i of each list is one tensor.

    All arrays are float32, and those of one tensor have the same shape and strides
    without gaps (C order, Fortran order or any permutation).

    Args:
        params: updated in place.
        grads: same length; None where a parameter has no gradient (left alone).
        momentum_buffers: same length, updated in place; needed if momentum is not 0.
        averages: same length or None; exponential moving averages, updated in place.
        lr, momentum, dampening, weight_decay, nesterov, maximize: as torch.optim.SGD.
        first_step: True (or one bool per tensor) where no step was made yet; the
            momentum buffer then becomes the gradient and its content is not read.
    """

    params: Sequence[np.ndarray]
    grads: Sequence[np.ndarray | None]
    momentum_buffers: Sequence[np.ndarray] | None = None
    averages: Sequence[np.ndarray | None] | None = None
    lr: float = 1e-3
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    maximize: bool = False
    first_step: bool | Sequence[bool] = False


@dataclass(frozen=True)
class SGDResult:
    """What a step found and did.

    Attributes:
        norm: L2 norm of all unscaled gradients before clipping; None if neither
            max_norm nor loss_scale asked for it.
        stepped: False if loss_scale was given and a gradient was not finite.
    """

    norm: float | None
    stepped: bool


def clip_coefficient(norm: float, max_norm: float) -> float:
    """The float32 factor of clip_grad_norm_, at most 1; NaN stays NaN."""
    with np.errstate(all="ignore"):
        reciprocal = np.float32(1) / (np.float32(norm) + np.float32(1e-6))
        return float(np.minimum(reciprocal * np.float32(max_norm), np.float32(1)))


def inverse_scale(scale: float) -> float:
    """1 / scale in double, rounded to float32, as torch.amp.GradScaler unscales.

    A scale that was halved down to 0 gives infinity, as there.
    """
    with np.errstate(all="ignore"):
        return float(np.float32(1.0 / np.float64(scale)))


def sgd_step(
    groups: SGDGroup | Sequence[SGDGroup],
    *,
    max_norm: float | None = None,
    loss_scale: float | None = None,
    ema_decay: float | None = None,
    gradient: str = "zero",
    backend: str = "cpu",
) -> SGDResult:
    """One step of SGD in two passes over memory, bit-equal to torch.optim.SGD's loop.

    Pass 1 (only with max_norm or loss_scale) reads every gradient; pass 2 unscales,
    clips, decays, updates momentum, parameter and average, and zeroes the gradient.

    Args:
        groups: one group or several; all share one gradient norm.
        max_norm: clip the L2 norm of all gradients, as clip_grad_norm_ does.
        loss_scale: the loss was multiplied by this; a non-finite gradient then skips
            the update of parameters and momentum (averages still move).
        ema_decay: averages become average * ema_decay + param * (1 - ema_decay).
        gradient: "zero", "keep" or "write" (left unscaled and clipped).
        backend: "cpu", or "ref" for the plain loops that define the result.

    Returns:
        SGDResult(norm, stepped).

    Raises:
        TypeError: an array is not float32.
        ValueError: shapes or strides differ, memory overlaps, a value breaks its rule.
    """
    members = [groups] if isinstance(groups, SGDGroup) else list(groups)
    if gradient not in _GRADIENT:
        raise ValueError(f"gradient is {gradient!r}, must be one of {list(_GRADIENT)}")
    _check_settings(max_norm, loss_scale)
    table = array("q")
    hyper = array("d")
    for number, group in enumerate(members):
        _check_group(group, number)
        table.extend(_rows(group, number))
        hyper.extend(_hyper(group))
    inverse = 1.0 if loss_scale is None else inverse_scale(loss_scale)
    norm = None
    if max_norm is not None or loss_scale is not None:
        norm = _core.sgd_norm(table, inverse, backend)
    stepped = loss_scale is None or math.isfinite(norm or 0.0)
    clip = 1.0 if max_norm is None else clip_coefficient(norm or 0.0, max_norm)
    _core.sgd_step(
        table,
        hyper,
        inverse_scale=inverse,
        clip=clip,
        update=stepped,
        gradient=_GRADIENT[gradient],
        ema_decay=ema_decay,
        backend=backend,
    )
    return SGDResult(norm, stepped)


def _check_settings(max_norm: float | None, loss_scale: float | None) -> None:
    if max_norm is not None and not max_norm >= 0:
        raise ValueError(f"max_norm is {max_norm}, must be at least 0")
    if loss_scale is not None and not (math.isfinite(loss_scale) and loss_scale > 0):
        raise ValueError(f"loss_scale is {loss_scale}, must be finite and above 0")


def _check_group(group: SGDGroup, number: int) -> None:
    where = f"group {number}"
    for name in ("lr", "momentum", "weight_decay"):
        value = getattr(group, name)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(
                f"{where}: {name} is {value}, must be finite and at least 0"
            )
    if group.nesterov and (group.momentum == 0 or group.dampening != 0):
        raise ValueError(f"{where}: nesterov needs a momentum and zero dampening")
    if group.momentum != 0 and group.momentum_buffers is None:
        raise ValueError(
            f"{where}: momentum is {group.momentum}, needs momentum_buffers"
        )
    for name in ("grads", "momentum_buffers", "averages"):
        arrays = getattr(group, name)
        if arrays is not None and len(arrays) != len(group.params):
            raise ValueError(
                f"{where}: {len(arrays)} {name} for {len(group.params)} params"
            )


def _hyper(group: SGDGroup) -> list[float]:
    return [
        group.lr,
        group.momentum,
        group.dampening,
        group.weight_decay,
        bool(group.nesterov),
        bool(group.maximize),
    ]


def _is_dense(x: np.ndarray) -> bool:
    expected = x.itemsize
    for stride, size in sorted(zip(x.strides, x.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _address(x: np.ndarray | None, like: np.ndarray, name: str) -> int:
    if x is None:
        return 0
    if not isinstance(x, np.ndarray):
        raise TypeError(f"{name}: expected a NumPy array, got {type(x).__name__}")
    if x.dtype != np.float32 or not x.dtype.isnative:
        raise TypeError(f"{name}: dtype is {x.dtype}, must be float32")
    if not x.flags.writeable:
        raise ValueError(f"{name}: is read-only, must be writable")
    if not x.flags.aligned:
        raise ValueError(f"{name}: is not aligned to 4 bytes")
    if x.shape != like.shape:
        raise ValueError(f"{name}: shape is {x.shape}, must be {like.shape}")
    if x.flags.c_contiguous and like.flags.c_contiguous:
        return x.__array_interface__["data"][0] if x.size else 0
    if x.strides != like.strides or not _is_dense(x):
        raise ValueError(
            f"{name}: strides are {x.strides}, must have no gaps and be those of the "
            f"parameter, {like.strides}"
        )
    return x.__array_interface__["data"][0] if x.size else 0


def _rows(group: SGDGroup, number: int) -> list[int]:
    rows: list[int] = []
    count = len(group.params)
    buffers = group.momentum_buffers if group.momentum != 0 else None
    first = group.first_step
    firsts = [first] * count if isinstance(first, (bool, np.bool_)) else list(first)
    if len(firsts) != count:
        raise ValueError(f"group {number}: {len(firsts)} first_step for {count} params")
    for i, param in enumerate(group.params):
        name = f"group {number} params[{i}]"
        if param is None:
            raise TypeError(f"{name}: expected a NumPy array, got None")
        grad = group.grads[i]
        rows += [
            _address(param, param, name),
            _address(grad, param, f"group {number} grads[{i}]"),
            _address(buffers[i], param, f"group {number} momentum_buffers[{i}]")
            if buffers is not None and grad is not None
            else 0,
            _address(group.averages[i], param, f"group {number} averages[{i}]")
            if group.averages is not None
            else 0,
            param.size,
            number,
            int(firsts[i]),
        ]
    return rows
