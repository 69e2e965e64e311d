# SPDX-License-Identifier: MIT
"""The fused optimizer step on NumPy arrays; PyTorch users want yolov9mem.torch."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolov9mem import _core
from yolov9mem._checks import (
    as_float,
    check_flag,
    check_float32,
    check_sequence,
    check_text,
)

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


def clip_coefficient(
    norm: float, max_norm: float, dtype: type[np.floating[Any]] = np.float32
) -> float:
    """The factor of clip_grad_norm_ in the gradients' dtype, at most 1; NaN stays NaN."""
    with np.errstate(all="ignore"):
        reciprocal = dtype(1) / (dtype(norm) + dtype(1e-6))
        return float(np.minimum(reciprocal * dtype(max_norm), dtype(1)))


def inverse_scale(scale: float) -> float:
    """1 / scale in double, rounded to float32, as torch.amp.GradScaler unscales.

    A scale that was halved down to 0 gives infinity, as there.
    """
    with np.errstate(all="ignore"):
        return float(np.float32(1.0 / np.float64(scale)))


def is_finite(name: str, value: Any) -> bool:
    """Is this number, which a message calls `name`, neither infinite nor NaN?

    Raises:
        TypeError: it is no number.
    """
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False
    except (TypeError, ValueError, RuntimeError):  # the last two: several numbers
        kind = type(value).__name__
        raise TypeError(f"{name}: expected a number, got {kind}: {value!r}") from None


def named(error: ValueError, name: Callable[[int], str]) -> ValueError:
    """The same error, where C's "tensor 7", a row of its table, is called name(7)."""
    text = re.sub(r"\btensor (\d+)", lambda found: name(int(found[1])), str(error))
    return ValueError(text)


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
        loss_scale: the loss was multiplied by this; a gradient that is not finite, as
            it is, then skips the update of parameters and momentum (averages still
            move).
        ema_decay: averages become average * ema_decay + param * (1 - ema_decay).
        gradient: "zero", "keep" or "write" (left unscaled and clipped).
        backend: "cpu", or "ref" for the plain loops that define the result.

    Returns:
        SGDResult(norm, stepped).

    Raises:
        TypeError: an array is not float32, or an argument is of another type.
        ValueError: shapes or strides differ, memory overlaps, a value breaks its rule.
    """
    members = _members(groups)
    check_text("backend", backend)
    check_text("gradient", gradient)
    if gradient not in _GRADIENT:
        raise ValueError(f"gradient: is {gradient!r}, must be one of {list(_GRADIENT)}")
    max_norm = checked_max_norm(max_norm)
    _check_settings(loss_scale, ema_decay)
    table = array("q")
    hyper = array("d")
    for number, group in enumerate(members):
        _check_group(group, number)
        table.extend(_rows(group, number))
        hyper.extend(_hyper(group))
    inverse = 1.0 if loss_scale is None else inverse_scale(loss_scale)
    norm, stepped, clip = None, True, 1.0
    if max_norm is not None or loss_scale is not None:
        scaled_norm = _core.sgd_norm(table, backend)
        stepped = loss_scale is None or math.isfinite(scaled_norm)
        norm = scaled_norm * inverse
    if max_norm is not None and norm is not None:
        clip = clip_coefficient(norm, max_norm)
    try:
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
    except ValueError as error:
        raise named(error, _names(members)) from None
    return SGDResult(norm, stepped)


def _members(groups: SGDGroup | Sequence[SGDGroup]) -> list[SGDGroup]:
    if isinstance(groups, SGDGroup):
        return [groups]
    check_sequence("groups", groups)
    for number, group in enumerate(groups):
        if not isinstance(group, SGDGroup):
            kind = type(group).__name__
            raise TypeError(f"group {number}: is a {kind}, must be an SGDGroup")
    return list(groups)


def _names(groups: Sequence[SGDGroup]) -> Callable[[int], str]:
    """What a row of all groups is called in messages."""
    places = [
        (n, i) for n, group in enumerate(groups) for i in range(len(group.params))
    ]
    return lambda row: "tensor {1} of group {0}".format(*places[row])


def checked_max_norm(max_norm: float | None) -> float | None:
    """As a float; None, which means no clip, stays.

    Raises:
        TypeError: it is no number.
        ValueError: it is below 0 or NaN.
    """
    if max_norm is None:
        return None
    is_finite("max_norm", max_norm)  # raises for what is no number
    limit = as_float(max_norm)
    if not limit >= 0:
        raise ValueError(f"max_norm: is {max_norm}, must be at least 0")
    return limit


def _check_settings(loss_scale: float | None, ema_decay: float | None) -> None:
    if loss_scale is not None and not (
        is_finite("loss_scale", loss_scale) and loss_scale > 0
    ):
        raise ValueError(f"loss_scale: is {loss_scale}, must be finite and above 0")
    if ema_decay is not None and not is_finite("ema_decay", ema_decay):
        raise ValueError(f"ema_decay is {ema_decay}, must be in [0, 1]")


def _check_group(group: SGDGroup, number: int) -> None:
    where = f"group {number}"
    for name in ("lr", "momentum", "weight_decay"):
        value = getattr(group, name)
        if not (is_finite(f"{where}: {name}", value) and value >= 0):
            raise ValueError(
                f"{where}: {name} is {value}, must be finite and at least 0"
            )
    if not is_finite(f"{where}: dampening", group.dampening):
        raise ValueError(f"{where}: dampening is {group.dampening}, must be finite")
    for name in ("nesterov", "maximize"):
        check_flag(f"{where}: {name}", getattr(group, name))
    if group.nesterov and (group.momentum == 0 or group.dampening != 0):
        raise ValueError(
            f"{where}: nesterov: momentum is {group.momentum} and dampening "
            f"{group.dampening}, must be above 0 and 0"
        )
    if group.momentum != 0 and group.momentum_buffers is None:
        raise ValueError(
            f"{where}: momentum is {group.momentum}, needs momentum_buffers"
        )
    check_sequence(f"{where}: params", group.params)
    check_sequence(f"{where}: grads", group.grads)
    for name in ("grads", "momentum_buffers", "averages"):
        arrays = getattr(group, name)
        if arrays is None:
            continue
        check_sequence(f"{where}: {name}", arrays)
        if len(arrays) != len(group.params):
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
    check_float32(name, x)
    if not x.flags.writeable:
        raise ValueError(f"{name}: is read-only, must be writable")
    address = x.__array_interface__["data"][0]
    if not x.flags.aligned:
        raise ValueError(f"{name}: address is {address:#x}, must be aligned to 4 bytes")
    if x.shape != like.shape:
        raise ValueError(f"{name}: shape is {x.shape}, must be {like.shape}")
    both_packed = x.flags.c_contiguous and like.flags.c_contiguous
    if not both_packed and (x.strides != like.strides or not _is_dense(x)):
        raise ValueError(
            f"{name}: strides are {x.strides}, must have no gaps and be those of the "
            f"parameter, {like.strides}"
        )
    return address if x.size else 0


def _firsts(group: SGDGroup, number: int) -> list[bool]:
    """first_step of each tensor."""
    first, count = group.first_step, len(group.params)
    if isinstance(first, (bool, np.bool_)):
        return [bool(first)] * count
    try:
        firsts = list(first)
    except TypeError:
        raise TypeError(
            f"group {number}: first_step: expected a bool or one for each tensor, got "
            f"{type(first).__name__}: {first!r}"
        ) from None
    if len(firsts) != count:
        raise ValueError(f"group {number}: {len(firsts)} first_step for {count} params")
    for i, value in enumerate(firsts):
        check_flag(f"group {number}: first_step[{i}]", value)
    return firsts


def _rows(group: SGDGroup, number: int) -> list[int]:
    rows: list[int] = []
    buffers = group.momentum_buffers if group.momentum != 0 else None
    firsts = _firsts(group, number)
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
