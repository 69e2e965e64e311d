# SPDX-License-Identifier: MIT
"""Handlers of layers: convolution, batch norm, activation, pooling, upsampling.

A layer that cannot be lowered is refused by name: a strict recording ends there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .. import devices
from ..layout import follows_channels_last
from ..processes import sharing_of
from .calls import FLOATS, handles, identity, operand
from .calls_gates import reduced
from .ir import CannotLower, NormCall
from .names import name_of
from .sharing import check_in_place

if TYPE_CHECKING:
    from .recorder import Recorder

WHOLE_SCALES = range(1, 1025)  # of nearest upsampling: what the core takes


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, (tuple, list)):
        return (int(value[0]), int(value[-1]))
    return (int(value), int(value))


def _weight(rec: Recorder, tensor: Any, name: str, what: str) -> str | None:
    if tensor is None:
        return None
    path = rec.parameter_path(tensor)
    if path is None or id(tensor) in rec.ref:
        reason = f"its {what} is computed, not a parameter or buffer of the module"
        raise CannotLower(name, rec.path, reason)
    if tensor.dtype not in FLOATS:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise CannotLower(name, rec.path, f"its {what} is {kind}")
    return path


def _padding(
    padding: Any, kernel: tuple[int, ...], dilation: tuple[int, int]
) -> tuple[int, int] | None:
    """On each of both sides, or None: it is not the same on both."""
    if padding == "valid":
        return 0, 0
    if padding != "same":
        return _pair(padding)
    rows, columns = (d * (k - 1) for k, d in zip(kernel, dilation))
    return None if rows % 2 or columns % 2 else (rows // 2, columns // 2)


@handles("conv2d")
def _conv2d(
    rec: Recorder,
    func: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    x = operand(rec, input, "conv2d")
    weight_path = _weight(rec, weight, "conv2d", "weight")
    bias_path = _weight(rec, bias, "conv2d", "bias")
    kernel, step, dilated = tuple(weight.shape[2:]), _pair(stride), _pair(dilation)
    pad = _padding(padding, kernel, dilated)
    if pad is None:
        reason = f"padding='same' of kernel {kernel} is not symmetric"
        raise CannotLower("conv2d", rec.path, reason)
    n, c, h, w = input.shape
    out = tuple(
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, p, d, k, s in zip((h, w), pad, dilated, kernel, step)
    )
    casts = devices.autocast_dtype(input.device)
    dtype = casts or input.dtype
    fits = weight.shape[1] * groups == c and min(out) > 0 and n > 0
    if not fits or (casts is None and weight.dtype != dtype):
        # torch's own error, first
        func(input, weight, bias, stride, padding, dilation, groups)
        if fits:  # a fake does not look at dtypes
            raise TypeError(f"conv2d: input {input.dtype}, weight {weight.dtype}")
        reason = f"its input {tuple(input.shape)} is empty"
        raise CannotLower("conv2d", rec.path, reason)
    attributes = (weight_path, bias_path, step, pad, dilated, groups)
    shape = (n, weight.shape[0], *out)
    value = rec.add_node("conv", (x,), attributes, shape, dtype)
    like = weight if follows_channels_last(weight) else input
    return rec.bind(rec.fakes.empty(shape, dtype, like), value)


@handles("conv_transpose2d")
def _conv_transpose2d(
    rec: Recorder,
    func: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    x = operand(rec, input, "conv_transpose2d")
    weight_path = _weight(rec, weight, "conv_transpose2d", "weight")
    bias_path = _weight(rec, bias, "conv_transpose2d", "bias")
    step, more = _pair(stride), _pair(output_padding)
    out = func(input, weight, bias, step, padding, more, groups, dilation)
    if more[0] >= step[0] or more[1] >= step[1]:
        reason = f"its output_padding {more} is not less than its stride {step}"
        raise CannotLower("conv_transpose2d", rec.path, reason)
    if 0 in out.shape:
        raise CannotLower("conv_transpose2d", rec.path, "its result is empty")
    shape, dtype = tuple(out.shape), out.dtype
    attributes = (weight_path, step, _pair(padding), more, _pair(dilation), groups)
    value = rec.add_node("conv_transpose", (x,), attributes, shape, dtype)
    if bias_path is not None:
        value = rec.add_node(
            "affine", (value,), (1.0, 0.0, None, bias_path), shape, dtype
        )
    return rec.bind(out, value)


@handles("batch_norm")
def _batch_norm(
    rec: Recorder,
    func: Any,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    x = operand(rec, input, "batch_norm")
    if weight is bias is not None:
        raise CannotLower("batch_norm", rec.path, "its weight is its bias as well")
    n, c, h, w = input.shape
    path, module = rec.modules[-1]
    is_synced = training and id(module) in rec.fakes.synced
    sharing = sharing_of(module) if is_synced else None
    if training and n * h * w <= 1 and sharing is None:
        func(input, running_mean, running_var, weight, bias, training, momentum, eps)
    own = (
        isinstance(module, nn.modules.batchnorm._BatchNorm)
        and weight is module.weight
        and bias is module.bias
        and (eps, momentum) == (module.eps, module.momentum)
    )
    call = 0
    if own and id(module) in rec.fakes.cumulative:
        call = rec.norm_calls.setdefault(path, 0)
        rec.norm_calls[path] += 1
    made = NormCall(
        path=path,
        mean=_weight(rec, running_mean, "batch_norm", "running mean"),
        variance=_weight(rec, running_var, "batch_norm", "running variance"),
        gamma=_weight(rec, weight, "batch_norm", "weight"),
        beta=_weight(rec, bias, "batch_norm", "bias"),
        batch_statistics=bool(training),
        eps=None if own else float(eps),
        momentum=None if own else float(momentum),
        call=call,
        sharing=sharing,
    )
    shape = (n, c, h, w)
    value = rec.add_node("norm", (x,), (rec.norm_index(made),), shape, input.dtype)
    return rec.bind(rec.fakes.empty(shape, input.dtype, input), value)


def _activation(
    rec: Recorder,
    func: Any,
    x: Tensor,
    inplace: bool,
    kind: str,
    slope: float = 0.0,
    bounds: tuple[float, float] = (0.0, 0.0),
) -> Any:
    value = rec.derived.value(x)
    value = operand(rec, x, kind) if value is None else value
    in_place = inplace or name_of(func).endswith("_")
    if in_place:
        check_in_place(rec, x, kind)
    shape = rec.shape(value)
    attributes = (kind, slope, *bounds)
    made = rec.add_node("activation", (value,), attributes, shape, x.dtype, in_place)
    out = x if in_place else rec.fakes.empty(tuple(x.shape), x.dtype, x)
    return rec.derived.bind(out, made)


@handles("silu", "relu", "relu_", "hardswish", "mish")
def _plain_activation(
    rec: Recorder, func: Any, input: Tensor, inplace: bool = False
) -> Any:
    return _activation(rec, func, input, inplace, name_of(func).removesuffix("_"))


@handles("sigmoid", "sigmoid_", "hardsigmoid")
def _gate(
    rec: Recorder, func: Any, input: Tensor, inplace: bool = False, **more: Any
) -> Any:
    """Also called on scores and flattened maps: of what is no value it stays stock."""
    if rec.derived.value(input) is None or more:
        return None
    kind = name_of(func).removesuffix("_")
    return _activation(rec, func, input, inplace, kind)


@handles("gelu")
def _gelu(
    rec: Recorder, func: Any, input: Tensor, *, approximate: str = "none", **more: Any
) -> Any:
    """As sigmoids: transformers call it on sequences."""
    if rec.derived.value(input) is None or more:
        return None
    if approximate not in ("none", "tanh"):
        func(input, approximate=approximate)  # torch's own error
    kind = "gelu" if approximate == "none" else "gelu_tanh"
    return _activation(rec, func, input, False, kind)


@handles("leaky_relu", "leaky_relu_")
def _leaky_relu(
    rec: Recorder,
    func: Any,
    input: Tensor,
    negative_slope: float = 0.01,
    inplace: bool = False,
) -> Any:
    slope = float(negative_slope)
    return _activation(rec, func, input, inplace, "leaky_relu", slope)


@handles("hardtanh", "hardtanh_")
def _hardtanh(
    rec: Recorder,
    func: Any,
    input: Tensor,
    min_val: float = -1.0,
    max_val: float = 1.0,
    inplace: bool = False,
) -> Any:
    if min_val > max_val:
        func(input, min_val, max_val)  # torch's own error
    bounds = float(min_val), float(max_val)
    return _activation(rec, func, input, inplace, "hardtanh", bounds=bounds)


@handles("relu6")
def _relu6(rec: Recorder, func: Any, input: Tensor, inplace: bool = False) -> Any:
    return _activation(rec, func, input, inplace, "hardtanh", bounds=(0.0, 6.0))


def _made(
    rec: Recorder, op: str, x: int, attributes: tuple[Any, ...], out: Tensor
) -> Any:
    """``out``, which is made of x."""
    made = rec.add_node(op, (x,), attributes, tuple(out.shape), out.dtype)
    return rec.bind(out, made)


def _window(kernel_size: Any, stride: Any, padding: Any) -> Any:
    """Of a pooling: kernel, stride and padding, each of both sides."""
    kernel = _pair(kernel_size)
    step = kernel if stride in (None, (), []) else _pair(stride)
    return kernel, step, _pair(padding)


@handles("max_pool2d")
def _max_pool2d(
    rec: Recorder,
    func: Any,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    x = operand(rec, input, "max_pool2d")
    if return_indices or _pair(dilation) != (1, 1):
        reason = "return_indices and dilation are not done"
        raise CannotLower("max_pool2d", rec.path, reason)
    kernel, step, pad = _window(kernel_size, stride, padding)
    out = func(input, kernel, step, padding, dilation, ceil_mode)
    if (kernel, pad) == (rec.shape(x)[2:], (0, 0)):
        return reduced(rec, "maximum", x, "hw", out)  # of all pixels
    return _made(rec, "max_pool", x, (kernel, step, pad, bool(ceil_mode)), out)


@handles("avg_pool2d")
def _avg_pool2d(
    rec: Recorder,
    func: Any,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    x = operand(rec, input, "avg_pool2d")
    if divisor_override is not None:
        raise CannotLower("avg_pool2d", rec.path, "divisor_override is not done")
    kernel, step, pad = _window(kernel_size, stride, padding)
    out = func(input, kernel, step, padding, ceil_mode, count_include_pad)
    if (kernel, pad) == (rec.shape(x)[2:], (0, 0)):
        return reduced(rec, "mean", x, "hw", out)  # of all pixels
    attributes = (kernel, step, pad, bool(ceil_mode), bool(count_include_pad))
    return _made(rec, "avg_pool", x, attributes, out)


def _scales(factor: Any) -> tuple[float, float] | None:
    if factor is None:
        return None
    pair = factor if isinstance(factor, (tuple, list)) else (factor, factor)
    return float(pair[0]), float(pair[-1])


def _not_done(
    mode: str, antialias: bool, align_corners: Any, scale: tuple[float, float] | None
) -> str | None:
    """Why an interpolation has no place in a graph, or None: it has one."""
    if mode not in ("nearest", "bilinear") or antialias:
        return f"mode {mode!r}{' with antialias' * antialias} is not done"
    if mode == "nearest" and align_corners is not None:
        return f"mode {mode!r} has no align_corners"  # torch's own error is next
    if scale is None:
        return None
    most = WHOLE_SCALES[-1]
    if mode == "bilinear":
        return None if max(scale) <= most else f"its scale is {scale}, above {most}"
    if all(s in WHOLE_SCALES for s in scale):
        return None
    return f"its scale is {scale}, not whole numbers from 1 to {most}"


@handles("interpolate")
def _interpolate(
    rec: Recorder,
    func: Any,
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: Any = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Any:
    corners = bool(align_corners)
    scale = None if recompute_scale_factor or corners else _scales(scale_factor)
    reason = _not_done(mode, antialias, align_corners, scale)
    if reason is not None:
        if rec.value(input) is None:
            return None
        raise CannotLower("interpolate", rec.path, reason)
    if mode == "bilinear" and rec.import_value(input) is None:
        return None  # in the tail of a strict recording, as over logits
    x = operand(rec, input, "interpolate")
    out = func(input, size, scale_factor, mode, align_corners, recompute_scale_factor)
    if 0 in out.shape:
        raise CannotLower("interpolate", rec.path, "its result is empty")
    if out.shape == input.shape and out.dtype == input.dtype:
        return identity(rec, input)
    sides = zip(scale or (), input.shape[2:], out.shape[2:])
    if mode == "bilinear" and any(s != 1 and a == b > 1 for s, a, b in sides):
        reason = f"its scale {scale} keeps a side, which only PyTorch's CPU code copies"
        raise CannotLower("interpolate", rec.path, reason)
    attributes = (scale, tuple(out.shape[2:]), mode, corners)
    return _made(rec, "upsample", x, attributes, out)
