# SPDX-License-Identifier: MIT
"""Block: one graph of yolov9mem on NumPy arrays, forward and backward.

block = yolov9mem.elan1(64, 128, 64, 32)
params = block.initial_params(seed=0)
print(block.plan((4, 80, 80)))           # what is kept, what is rebuilt, in bytes
y = block.forward(x, params)             # x (4, 80, 80, 64), y (4, 80, 80, 128)
dx, grads = block.backward(dy)           # grads["cv1.conv.weight"], ...
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from yolov9mem import _core
from yolov9mem._keep import parse_keep
from yolov9mem.plan_table import plan_table

Array = npt.NDArray[Any]
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


def _check_apart(written: Mapping[str, Array], read: Mapping[str, Array]) -> None:
    """Raises ValueError where an array to be written shares memory with another."""
    seen = {name: a for name, a in read.items() if isinstance(a, np.ndarray)}
    for name, array in written.items():
        for other, known in seen.items():
            if isinstance(array, np.ndarray) and np.may_share_memory(array, known):
                raise ValueError(
                    f"{name}: shares memory with {other}, must have its own"
                )
        seen[name] = array


def _dtype_name(x: Array) -> str:
    """float32, or bfloat16 for ml_dtypes.bfloat16 and for its bits as uint16."""
    name = "bfloat16" if x.dtype == np.uint16 else str(x.dtype)
    if name not in ("float32", "bfloat16"):
        raise TypeError(
            f"x: dtype is {name}, must be float32 or bfloat16 (or its bits, uint16)"
        )
    return name


class Block:
    """A module on NumPy arrays, (N, H, W, C); made by the builders of blocks.py.

    Attributes: `param_shapes`, by name, of all trained tensors; `norms`.
    A block holds at most one forward at a time and is not for several threads at once.
    """

    def __init__(
        self,
        kind: str,
        graph: _core.Graph,
        param_shapes: Mapping[str, tuple[int, ...]],
        norms: list[Norm],
    ) -> None:
        self.kind = kind
        self.param_shapes = dict(param_shapes)
        self.norms = list(norms)
        self._graph = graph
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

        Raises ValueError naming the value and the rule it breaks.
        """
        unknown = set(frozen) - set(self.param_shapes)
        if unknown:
            raise ValueError(f"frozen: {min(unknown)!r} is no parameter of {self.kind}")
        rule = parse_keep(keep)
        n, h, w = input_size
        key = ((n, h, w), dtype, rule, input_grad, frozenset(frozen), backend)
        if key not in self._plans:
            trained = [name not in frozen for name in self.param_shapes]
            core = _core.Plan(
                self._graph,
                [(n, h, w)],
                dtype=dtype,
                keep=rule.rule,
                budget=rule.budget,
                backend=backend,
                input_grads=[input_grad],
                param_grads=trained,
            )
            self._plans[key] = BlockPlan(core, set(self.param_shapes) - set(frozen))
        return self._plans[key]

    def initial_params(self, seed: int = 0) -> dict[str, Array]:
        """All tensors by state_dict name: weights as PyTorch draws them, norms at rest.

        A convolution's weight is uniform in +-1 / sqrt(fan in).
        """
        random = np.random.default_rng(seed)
        params: dict[str, Array] = {}
        for name, shape in self.param_shapes.items():
            if len(shape) == 4:
                bound = float(np.prod(shape[1:])) ** -0.5
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
                given) are moved in place, once.
            training: normalise by the batch; False: by the running buffers.
            keep, input_grad, frozen, backend: see `plan`.
            out: the output (N, H', W', C'), of the dtype of x; made if not given.

        Returns the output. Raises ValueError or TypeError naming tensor and rule. A
        value that is not finite goes through, as in PyTorch.
        """
        if not isinstance(x, np.ndarray):
            raise TypeError(f"x: is a {type(x).__name__}, must be a NumPy array")
        if x.ndim != 4:
            raise ValueError(f"x: shape is {x.shape}, must be (N, H, W, C)")
        if not x.flags.c_contiguous:
            raise ValueError(f"x: strides are {x.strides}, must be packed (C order)")
        n, h, w, _ = x.shape
        plan = self.plan(
            (n, h, w),
            _dtype_name(x),
            keep,
            input_grad=input_grad,
            frozen=frozen,
            backend=backend,
        )
        self._check_names(params)
        if training:
            self._check_counters(params)
        if out is not None:
            _check_apart({"out": out}, {"x": x, **params})
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
        Raises RuntimeError when no forward is there to go back through.
        """
        run = self._run
        if run is None:
            raise RuntimeError(
                "backward: no forward to go back through; backward consumes what its "
                "forward kept, so it runs once per forward"
            )
        given = dict(out or {})
        unknown = set(given) - run.plan.trained - ({"x"} if run.input_grad else set())
        if unknown:
            raise ValueError(f"out: no gradient of {min(unknown)!r} is computed")
        if given:
            read = dict(zip(self.param_shapes, run.params), dy=dy, x=run.x)
            _check_apart({f"gradient of {name}": a for name, a in given.items()}, read)
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

    def __repr__(self) -> str:
        count = sum(int(np.prod(shape)) for shape in self.param_shapes.values())
        return f"<yolov9mem {self.kind}, {count} parameters>"

    def _check_names(self, params: Mapping[str, Array]) -> None:
        buffers = {name for norm in self.norms for name in norm.running}
        needed = [*self.param_shapes, *sorted(buffers)]
        for name in needed:
            if name not in params:
                raise ValueError(f"params: {name!r} is missing")
        unknown = set(params) - set(needed) - {norm.counter for norm in self.norms}
        if unknown:
            raise ValueError(f"params: {min(unknown)!r} is no tensor of {self.kind}")

    def _check_counters(self, params: Mapping[str, Array]) -> None:
        """Before anything has moved."""
        for norm in self.norms:
            count = params.get(norm.counter)
            if count is None:
                continue
            if not isinstance(count, np.ndarray) or count.dtype.kind not in "iu":
                kind = getattr(count, "dtype", type(count).__name__)
                raise TypeError(f"{norm.counter}: is {kind}, must be an integer array")
            if not count.flags.writeable:
                raise ValueError(f"{norm.counter}: is read-only, must be writable")

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
