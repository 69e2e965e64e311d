# SPDX-License-Identifier: MIT
"""YOLOv9's blocks by name, for NumPy: what each computes, as a graph.

Arguments and tensor names (`cv1.conv.weight`, `cv2.0.m.0.cv1.conv1.bn.running_mean`,
...) are those of the YOLOv9 modules (arXiv:2402.13616), so a state_dict fits.
"""

import math
from dataclasses import dataclass, field

from yolov9mem import _core
from yolov9mem._checks import (
    INT_MAX,
    as_float,
    check_flag,
    check_real,
    check_whole,
    is_whole,
)
from yolov9mem.block import Block, Norm

_FLOAT_MAX = 3.4028234663852886e38  # eps is a float32 in the core


@dataclass
class _Recipe:
    """A graph in the making and the names of its tensors."""

    eps: float
    momentum: float
    graph: _core.Graph = field(default_factory=_core.Graph)
    params: dict[str, tuple[int, ...]] = field(default_factory=dict)
    norms: list[Norm] = field(default_factory=list)
    channels: int = 0

    def __post_init__(self) -> None:
        check_real("eps", self.eps)
        check_real("momentum", self.momentum)
        if not 0 <= as_float(self.eps) <= _FLOAT_MAX:
            raise ValueError(
                f"eps: is {self.eps}, must be finite in float32 and at least 0"
            )
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum: is {self.momentum}, must be in [0, 1]")

    def input(self, channels: int) -> int:
        self.channels = channels
        return self.graph.input(channels)

    def param(self, name: str, *shape: int) -> int:
        if math.prod(shape) > INT_MAX:
            raise ValueError(
                f"{name}: shape is {shape}, {math.prod(shape)} elements, must be at most "
                f"{INT_MAX}"
            )
        self.params[name] = shape
        return self.graph.param(shape, name)

    def finish(self, kind: str, y: int) -> Block:
        self.graph.output(y)
        return Block(kind, self.graph, self.channels, self.params, self.norms)


def _check(kind: str, **sizes: int) -> list[int]:
    """The sizes as Python's integers: what is worked out from NumPy's would wrap."""
    for name, value in sizes.items():
        if not is_whole(value) or value < 1:
            raise ValueError(
                f"{kind}: {name}: is {value!r}, must be a positive integer"
            )
        if value > INT_MAX:
            raise ValueError(f"{kind}: {name}: is {value}, must be at most {INT_MAX}")
    return [int(value) for value in sizes.values()]


def _check_even(kind: str, **sizes: int) -> None:
    for name, value in sizes.items():
        if value % 2:
            raise ValueError(f"{kind}: {name}: is {value}, must be even")


def _conv(
    r: _Recipe,
    x: int,
    path: str,
    c1: int,
    c2: int,
    k: int = 1,
    s: int = 1,
    p: int | None = None,
    g: int = 1,
    d: int = 1,
    act: bool = True,
) -> int:
    """Convolution without bias, batch norm, SiLU."""
    if c1 % g or c2 % g:
        raise ValueError(
            f"{path}conv: g: is {g}, must divide the channels {c1} and {c2}"
        )
    pad = (d * (k - 1) + 1) // 2 if p is None else p
    if pad > INT_MAX:
        raise ValueError(
            f"{path}conv: k is {k} and d is {d}, a padding of {pad}, must be at most "
            f"{INT_MAX}"
        )
    weight = r.param(f"{path}conv.weight", c2, c1 // g, k, k)
    gamma = r.param(f"{path}bn.weight", c2)
    beta = r.param(f"{path}bn.bias", c2)
    norm = r.graph.norm(c2, gamma, beta, f"{path}bn")
    r.norms.append(Norm(f"{path}bn", c2, r.eps, r.momentum))
    y = r.graph.conv(
        x, weight, -1, (s, s), (pad, pad), (d, d), groups=g, name=f"{path}conv"
    )
    y = r.graph.batch_norm(y, norm, name=f"{path}bn")
    return r.graph.activation(y, "silu", name=f"{path}act") if act else y


def _rep_conv(r: _Recipe, x: int, path: str, c: int) -> int:
    """RepConvN in training: SiLU of a 3x3 and a 1x1 convolution, added."""
    wide = _conv(r, x, f"{path}conv1.", c, c, 3, act=False)
    narrow = _conv(r, x, f"{path}conv2.", c, c, 1, act=False)
    both = r.graph.add((wide, narrow), name=f"{path}add")
    return r.graph.activation(both, "silu", name=f"{path}act")


def _rep_ncsp(r: _Recipe, x: int, path: str, c1: int, c2: int, n: int) -> int:
    """RepNCSP: a 1x1 path through n residual bottlenecks beside a plain 1x1 path."""
    half = c2 // 2
    deep = _conv(r, x, f"{path}cv1.", c1, half)
    for i in range(n):
        inner = _rep_conv(r, deep, f"{path}m.{i}.cv1.", half)
        inner = _conv(r, inner, f"{path}m.{i}.cv2.", half, half, 3)
        deep = r.graph.add((deep, inner), name=f"{path}m.{i}.add")
    plain = _conv(r, x, f"{path}cv2.", c1, half)
    joined = r.graph.concat((deep, plain), name=f"{path}cat")
    return _conv(r, joined, f"{path}cv3.", 2 * half, c2)


def _halves(r: _Recipe, x: int, path: str, channels: int) -> list[int]:
    """chunk(2, 1): the first half is the larger one."""
    first = (channels + 1) // 2
    return [
        r.graph.slice(x, 0, first, name=f"{path}.0"),
        r.graph.slice(x, first, channels - first, name=f"{path}.1"),
    ]


def conv(
    c1: int,
    c2: int,
    k: int = 1,
    s: int = 1,
    p: int | None = None,
    g: int = 1,
    d: int = 1,
    act: bool = True,
    *,
    eps: float = 1e-5,
    momentum: float = 0.1,
) -> Block:
    """Conv: convolution (c1 -> c2, kernel k, stride s), batch norm, SiLU if `act`.

    p: padding, None for "same" at stride 1; g: groups; d: dilation.
    """
    c1, c2, k, s, g, d = _check("conv", c1=c1, c2=c2, k=k, s=s, g=g, d=d)
    if p is not None:
        p = check_whole("conv: p", p, 0, INT_MAX)
    check_flag("conv: act", act)
    r = _Recipe(eps, momentum)
    return r.finish("Conv", _conv(r, r.input(c1), "", c1, c2, k, s, p, g, d, act))


def aconv(c1: int, c2: int, *, eps: float = 1e-5, momentum: float = 0.1) -> Block:
    """AConv: 2x2 mean at stride 1, then a 3x3 Conv at stride 2."""
    c1, c2 = _check("aconv", c1=c1, c2=c2)
    r = _Recipe(eps, momentum)
    x = r.graph.avg_pool(r.input(c1), (2, 2), (1, 1), name="mean")
    return r.finish("AConv", _conv(r, x, "cv1.", c1, c2, 3, 2, 1))


def adown(c1: int, c2: int, *, eps: float = 1e-5, momentum: float = 0.1) -> Block:
    """ADown: half of the channels by a 3x3 Conv at stride 2, half by pool and Conv."""
    c1, c2 = _check("adown", c1=c1, c2=c2)
    _check_even("adown", c1=c1, c2=c2)
    r = _Recipe(eps, momentum)
    x = r.graph.avg_pool(r.input(c1), (2, 2), (1, 1), name="mean")
    left, right = _halves(r, x, "chunk", c1)
    left = _conv(r, left, "cv1.", c1 // 2, c2 // 2, 3, 2, 1)
    right = r.graph.max_pool(right, (3, 3), (2, 2), (1, 1), name="pool")
    right = _conv(r, right, "cv2.", c1 // 2, c2 // 2)
    return r.finish("ADown", r.graph.concat((left, right), name="cat"))


def elan1(
    c1: int, c2: int, c3: int, c4: int, *, eps: float = 1e-5, momentum: float = 0.1
) -> Block:
    """ELAN1: c1 -> c3 by 1x1, two 3x3 Convs of c4 from its second half, all to c2."""
    c1, c2, c3, c4 = _check("elan1", c1=c1, c2=c2, c3=c3, c4=c4)
    _check_even("elan1", c3=c3)
    r = _Recipe(eps, momentum)
    parts = _halves(r, _conv(r, r.input(c1), "cv1.", c1, c3), "chunk", c3)
    parts.append(_conv(r, parts[-1], "cv2.", c3 // 2, c4, 3))
    parts.append(_conv(r, parts[-1], "cv3.", c4, c4, 3))
    joined = r.graph.concat(parts, name="cat")
    return r.finish("ELAN1", _conv(r, joined, "cv4.", c3 + 2 * c4, c2))


def rep_ncsp_elan4(
    c1: int,
    c2: int,
    c3: int,
    c4: int,
    c5: int = 1,
    *,
    eps: float = 1e-5,
    momentum: float = 0.1,
) -> Block:
    """RepNCSPELAN4: ELAN whose two branches are RepNCSP (c5 deep) and a 3x3 Conv."""
    sizes = _check("rep_ncsp_elan4", c1=c1, c2=c2, c3=c3, c4=c4, c5=c5)
    c1, c2, c3, c4, c5 = sizes
    _check_even("rep_ncsp_elan4", c3=c3, c4=c4)
    r = _Recipe(eps, momentum)
    parts = _halves(r, _conv(r, r.input(c1), "cv1.", c1, c3), "chunk", c3)
    for path, width in (("cv2", c3 // 2), ("cv3", c4)):
        branch = _rep_ncsp(r, parts[-1], f"{path}.0.", width, c4, c5)
        parts.append(_conv(r, branch, f"{path}.1.", c4, c4, 3))
    joined = r.graph.concat(parts, name="cat")
    return r.finish("RepNCSPELAN4", _conv(r, joined, "cv4.", c3 + 2 * c4, c2))


def sppelan(
    c1: int, c2: int, c3: int, *, eps: float = 1e-5, momentum: float = 0.1
) -> Block:
    """SPPELAN: a 1x1 Conv to c3 and three 5x5 max pools in a row, all to c2."""
    c1, c2, c3 = _check("sppelan", c1=c1, c2=c2, c3=c3)
    r = _Recipe(eps, momentum)
    parts = [_conv(r, r.input(c1), "cv1.", c1, c3)]
    for i in (2, 3, 4):
        parts.append(
            r.graph.max_pool(parts[-1], (5, 5), (1, 1), (2, 2), name=f"cv{i}.m")
        )
    joined = r.graph.concat(parts, name="cat")
    return r.finish("SPPELAN", _conv(r, joined, "cv5.", 4 * c3, c2))
