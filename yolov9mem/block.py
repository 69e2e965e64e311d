# SPDX-License-Identifier: MIT
"""Block: one graph of yolov9mem on NumPy arrays, forward and backward.

block = yolov9mem.elan1(64, 128, 64, 32)
params = block.initial_params(seed=0)
print(block.plan((4, 80, 80)))           # what is kept, what is rebuilt, in bytes
y = block.forward(x, params)             # x (4, 80, 80, 64), y (4, 80, 80, 128)
dx, grads = block.backward(dy)           # grads["cv1.conv.weight"], ...
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from yolov9mem import _core
from yolov9mem._checks import (
    Array,
    check_apart,
    check_array,
    check_counter,
    check_flag,
    check_float32,
    check_mapping,
    check_names,
    check_size,
    check_text,
    check_value,
    check_whole,
    check_writable,
    dtype_name,
)
from yolov9mem._keep import parse_keep
from yolov9mem.plan_table import plan_table

Size = tuple[int, int, int]
NormState = tuple[Array, Array, float, float, bool, bool]
ALIGNMENT = 64  # bytes, of the arenas


@dataclass(frozen=True)
class Norm:
    """A batch norm module of a graph."""

    path: str
    channels: int
    eps: float
    momentum: float

    @property
    def running(self) -> tuple[str, str]:
        """Names of its buffers, (channels,) float32, moved in place by forward."""
        return f"{self.path}.running_mean", f"{self.path}.running_var"

    @property
    def counter(self) -> str:
        """Name of its count of calls, int64, moved in place where it is given."""
        return f"{self.path}.num_batches_tracked"


class BlockPlan:
    """How a block is run for one input size; `print` shows it as a table."""

    def __init__(self, core: _core.Plan, trained: Collection[str]) -> None:
        self.core = core
        self.trained = frozenset(trained)

    @property
    def saved_bytes(self) -> int:
        """Held from forward to backward."""
        return self.core.saved_bytes

    @property
    def workspace_bytes(self) -> int:
        """Beside that, during forward or backward."""
        return self.core.workspace_bytes

    @property
    def peak_bytes(self) -> int:
        """The most at any time; input, output, parameters and gradients not counted."""
        return self.core.peak_bytes

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, C) of the output."""
        return self.core.output_shapes[0]

    def __str__(self) -> str:
        return plan_table(self.core)


@dataclass
class _Run:
    """What backward needs of a forward."""

    plan: BlockPlan
    x: Array
    params: list[Array]
    norms: list[NormState]
    saved: Array
    input_grad: bool


def _arena(size: int) -> Array:
    memory = np.empty(size + ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % ALIGNMENT
    return memory[first : first + size]


class Block:
    """A module on NumPy arrays, (N, H, W, C); made by the builders of blocks.py.

    Attributes: `param_shapes`, by name, of all trained tensors; `norms`.
    A block holds at most one forward at a time and is not for several threads at once.
    A copy, shallow or deep, is the same module without that forward; there are no pickles.
    """

    def __init__(
        self,
        kind: str,
        graph: _core.Graph,
        channels: int,
        param_shapes: Mapping[str, tuple[int, ...]],
        norms: list[Norm],
    ) -> None:
        self.kind = kind
        self.param_shapes = dict(param_shapes)
        self.norms = list(norms)
        self._graph, self._channels = graph, channels
        buffers = {name for norm in self.norms for name in norm.running}
        self._needed = (*self.param_shapes, *sorted(buffers))
        self._plans: dict[tuple[Any, ...], BlockPlan] = {}
        self._run: _Run | None = None

    def plan(
        self,
        input_size: Size,
        dtype: str = "float32",
        keep: str | int = "conv",
        *,
        input_grad: bool = True,
        frozen: Collection[str] = (),
        backend: str = "cpu",
    ) -> BlockPlan:
        """The plan for an input of (N, H, W); nothing is run.

        Args:
            dtype: of every value: "float32" or "bfloat16"; parameters are float32.
            keep: "conv", "min", "all", or bytes such as "6GB": what is kept.
            input_grad: whether backward gives the gradient of the input.
            frozen: names of parameters that need no gradient.
            backend: "cpu", or "ref" for the slow and plain reference.

        Raises ValueError or TypeError naming the value and the rule it breaks.
        """
        fixed = check_names("frozen", frozen)
        unknown = fixed - set(self.param_shapes)
        if unknown:
            raise ValueError(f"frozen: {min(unknown)!r} is no parameter of {self.kind}")
        rule = parse_keep(keep)
        size = check_size("input_size", input_size)
        check_flag("input_grad", input_grad)
        check_text("dtype", dtype)
        check_text("backend", backend)
        if backend not in ("cpu", "ref"):
            raise ValueError(
                f"backend: is {backend!r}, must be cpu or ref; modules of PyTorch run on "
                "a GPU, by yolov9mem.torch.checkpoint"
            )
        key = (size, dtype, rule, bool(input_grad), fixed, backend)
        if key not in self._plans:
            core = _core.Plan(
                self._graph,
                [size],
                dtype=dtype,
                keep=rule.rule,
                budget=rule.budget,
                backend=backend,
                input_grads=[input_grad],
                param_grads=[name not in fixed for name in self.param_shapes],
            )
            self._plans[key] = BlockPlan(core, set(self.param_shapes) - fixed)
        return self._plans[key]

    def initial_params(self, seed: int = 0) -> dict[str, Array]:
        """All tensors by state_dict name: norms at rest, weights as PyTorch draws them,
        uniform in +-1 / sqrt(fan in). Raises TypeError or ValueError for a seed that is
        no whole number from 0 to 2**64 - 1."""
        random = np.random.default_rng(check_whole("seed", seed, 0, 2**64 - 1))
        params: dict[str, Array] = {}
        for name, shape in self.param_shapes.items():
            if len(shape) == 4:
                bound = float(math.prod(shape[1:])) ** -0.5
                params[name] = random.uniform(-bound, bound, shape).astype(np.float32)
            else:
                fill = 1 if name.endswith("bn.weight") else 0
                params[name] = np.full(shape, fill, np.float32)
        for norm in self.norms:
            mean, variance = norm.running
            params[mean] = np.zeros(norm.channels, np.float32)
            params[variance] = np.ones(norm.channels, np.float32)
            params[norm.counter] = np.zeros((), np.int64)
        return params

    def forward(
        self,
        x: Array,
        params: Mapping[str, Array],
        *,
        keep: str | int = "conv",
        training: bool = True,
        input_grad: bool = True,
        frozen: Collection[str] = (),
        backend: str = "cpu",
        out: Array | None = None,
    ) -> Array:
        """Runs forward and remembers what backward needs.

        Args:
            x: (N, H, W, C), packed, float32 or bfloat16. Neither it nor params may be
                changed before backward has run.
            params: by state_dict name, float32: `param_shapes` and the running buffers.
                With `training` the running buffers (and num_batches_tracked, where
                given) are moved in place, once, and share no memory with another tensor.
            training: normalise by the batch; False: by the running buffers.
            keep, input_grad, frozen, backend: see `plan`.
            out: the output (N, H', W', C'), of the dtype of x; made if not given.

        Returns the output. Raises ValueError or TypeError naming tensor and rule. A
        value that is not finite goes through, as in PyTorch; but of an infinity, or of
        values beyond a quarter of float32's largest, 3x3 convolutions on the CPU may
        make NaN, as Winograd's transforms subtract them from one another.
        """
        check_array("x", x)
        if x.ndim != 4 or 0 in x.shape:
            raise ValueError(
                f"x: shape is {x.shape}, must be (N, H, W, C) and not empty"
            )
        dtype = dtype_name("x", x)
        check_value("x", x, (*x.shape[:3], self._channels), dtype)
        plan = self.plan(
            x.shape[:3],
            dtype,
            keep,
            input_grad=input_grad,
            frozen=frozen,
            backend=backend,
        )
        check_flag("training", training)
        self._check_params(params)
        if out is not None:
            check_value("out", out, plan.output_shape, dtype)
            check_writable("out", out)
        self._check_written(x, params, out, training)
        weights = [params[name] for name in self.param_shapes]
        norms = [self._norm_state(norm, params, training) for norm in self.norms]
        y = np.empty(plan.output_shape, x.dtype) if out is None else out
        self._run = None
        saved = _arena(plan.saved_bytes)
        workspace = _arena(plan.core.forward_workspace_bytes)
        plan.core.forward([x], weights, norms, [y], saved, workspace)
        if training:
            self._count(params)
        self._run = _Run(plan, x, weights, norms, saved, input_grad)
        return y

    def backward(
        self, dy: Array, out: Mapping[str, Array] | None = None
    ) -> tuple[Array | None, dict[str, Array]]:
        """Gradients of sum(y * dy) of the last forward, which it consumes.

        Args:
            dy: the gradient of the output, of its shape and dtype, packed.
            out: arrays to write into, by parameter name; "x" for the input's gradient.
                They are overwritten; what is not given is made.

        Returns (dx, or None if it was not wanted; gradients by name, float32).
        Raises RuntimeError when no forward is there to go back through; ValueError or
        TypeError naming tensor and rule, which consumes nothing.
        """
        run = self._run
        if run is None:
            raise RuntimeError(
                "backward: no forward to go back through; backward consumes what its "
                "forward kept, so it runs once per forward"
            )
        dtype = dtype_name("x", run.x)
        check_value("dy", dy, run.plan.output_shape, dtype)
        given = self._given_gradients(out, run, dy)
        dx = given.pop("x", None)
        if dx is None and run.input_grad:
            dx = np.empty(run.x.shape, run.x.dtype)
        grads: dict[str, Array] = {}
        for name, shape in self.param_shapes.items():
            if name in run.plan.trained:
                made = given.get(name)
                grads[name] = np.empty(shape, np.float32) if made is None else made
        run.plan.core.backward(
            0,
            [run.x],
            run.params,
            run.norms,
            [dy],
            [dx],
            [grads.get(name) for name in self.param_shapes],
            run.saved,
            _arena(run.plan.core.backward_workspace_bytes),
        )
        self._run = None
        return dx, grads

    def release(self) -> None:
        """Lets go of what the last forward kept."""
        self._run = None

    def __copy__(self) -> "Block":
        graph, channels = self._graph, self._channels  # neither is ever changed
        return Block(self.kind, graph, channels, self.param_shapes, self.norms)

    def __deepcopy__(self, memo: object) -> "Block":
        return self.__copy__()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self!r}: can't be pickled; pickle its parameters, build it anew"
        )

    def __repr__(self) -> str:
        count = sum(math.prod(shape) for shape in self.param_shapes.values())
        return f"<yolov9mem {self.kind}, {count} parameters>"

    def _given_gradients(
        self, out: Mapping[str, Array] | None, run: _Run, dy: Array
    ) -> dict[str, Array]:
        """What the caller wants written, checked."""
        check_mapping("out", {} if out is None else out)
        given = {name: a for name, a in (out or {}).items() if a is not None}
        inputs = {"x"} if run.input_grad else set()
        unknown = set(given) - run.plan.trained - inputs
        if unknown:
            worst = min(unknown, key=str)
            fixed = "frozen" if worst in self.param_shapes else "no parameter"
            why = "not wanted, by input_grad" if worst == "x" else fixed
            raise ValueError(f"out: no gradient of {worst!r} is computed: it is {why}")
        for name, array in given.items():
            if name != "x":
                check_float32(f"gradient of {name}", array)
            else:
                check_value("gradient of x", array, run.x.shape, dtype_name("x", run.x))
            check_writable(f"gradient of {name}", array)
        if given:
            read = dict(zip(self.param_shapes, run.params, strict=True), dy=dy, x=run.x)
            for norm, state in zip(self.norms, run.norms, strict=True):
                read |= zip(norm.running, state[:2], strict=True)
            check_apart({f"gradient of {name}": a for name, a in given.items()}, read)
        return given

    def _check_params(self, params: Mapping[str, Array]) -> None:
        """All that is needed is there, nothing else is, and all are arrays."""
        check_mapping("params", params)
        for name in self._needed:
            if name not in params:
                raise ValueError(f"params: {name!r} is missing")
            array = params[name]
            if not isinstance(array, np.ndarray) or array.dtype != np.float32:
                check_float32(f"params: {name!r}", array)  # no message made in vain
        counters = {norm.counter for norm in self.norms}
        unknown = set(params).difference(self._needed, counters)
        if unknown:
            worst = min(unknown, key=str)
            raise ValueError(f"params: {worst!r} is no tensor of {self.kind}")

    def _check_written(
        self, x: Array, params: Mapping[str, Array], out: Array | None, training: bool
    ) -> None:
        """What forward writes lies apart from all else, before anything has moved."""
        written = {} if out is None else {"out": out}
        if training:
            for norm in self.norms:
                if norm.counter in params:
                    check_counter(norm.counter, params[norm.counter])
                moved = (*norm.running, norm.counter)
                written |= {name: params[name] for name in moved if name in params}
        if written:
            rest = {name: a for name, a in params.items() if name not in written}
            check_apart(written, {"x": x} | rest)

    def _norm_state(
        self, norm: Norm, params: Mapping[str, Array], training: bool
    ) -> NormState:
        """As `_core.Plan` takes it: the last two, by the batch and move the buffers."""
        mean, variance = (params[name] for name in norm.running)
        return (mean, variance, norm.eps, norm.momentum, training, training)

    def _count(self, params: Mapping[str, Array]) -> None:
        for norm in self.norms:
            if norm.counter in params:
                params[norm.counter][...] += 1
