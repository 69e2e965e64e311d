# SPDX-License-Identifier: MIT
"""What a recording is made of: the calls of one forward, written down.

A *value* is a 4-D activation that the C core can compute; values are numbered and value
``i`` is made by ``nodes[i]``. Calls that cannot be lowered are *stock calls*: torch calls
that are replayed. In a strict recording they are a tail, which only follows the values;
else values may be made of their results, and parts.py divides the recording into *stages*
with the stock calls before, between and after them. Stages that compute in the same dtype
make one *part*, which is one graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..processes import Sharing
from .names import cuts_gradients

if TYPE_CHECKING:
    from .gaps import Gap


class CannotLower(NotImplementedError):
    """A call that yolov9mem cannot run; says which, where and why."""

    def __init__(self, call: str, path: str, reason: str) -> None:
        self.call, self.path, self.reason = call, path, reason
        super().__init__(f"{call} in {path or 'the module itself'}: {reason}")

    def fresh(self) -> CannotLower:
        """The same, not yet raised. What was raised holds its frames, and they hold the
        module and its arguments."""
        return type(self)(self.call, self.path, self.reason)


class NothingToRun(CannotLower):
    """No value is computed, as in nn.Identity: stock, and no error."""


# Which attributes of a node are paths of parameters; those of a norm are in its NormCall.
_PARAMS = {
    "conv": slice(0, 2),
    "conv_transpose": slice(0, 1),
    "affine": slice(2, 4),
    "prelu": slice(0, 1),
}


class Node(NamedTuple):
    """One call. ``attributes`` are hashable, in the order that lower.py expects."""

    op: str
    operands: tuple[int, ...]
    attributes: tuple[Any, ...]  # of an input: the Ref of what it is
    shape: tuple[int, int, int, int]  # (N, C, H, W) of the value that it makes
    dtype: torch.dtype
    path: str  # of the module that made the call
    in_place: bool = False

    @property
    def is_convolution(self) -> bool:
        """Also a transposed one."""
        return self.op in ("conv", "conv_transpose")

    @property
    def params(self) -> list[str]:
        """Paths of the parameters that it reads, but for a norm."""
        own = self.attributes[_PARAMS.get(self.op, slice(0))]
        return [path for path in own if path is not None]

    @property
    def nbytes(self) -> int:
        """Of the value."""
        return math.prod(self.shape) * self.dtype.itemsize


class Ref(NamedTuple):
    """Stands for a tensor in an argument or a result of a stock call."""

    kind: str  # "value", "input", "stock", "path" or "constant"
    key: Any  # number of a value; leaf of the arguments; (call, leaf); path; tensor


class NormCall(NamedTuple):
    """One kind of call of a batch norm: where its tensors and settings are read."""

    path: str  # of the module, or ""
    mean: str | None
    variance: str | None
    gamma: str | None
    beta: str | None
    batch_statistics: bool
    eps: float | None  # None: read from the module
    momentum: float | None  # None: read from the module
    call: int  # tells calls of one module apart where each has its own momentum
    sharing: Sharing | None  # of the batch's statistics with other processes
    in_products: bool = False  # a product and a sum of vectors, no call of a norm

    @property
    def running(self) -> list[str]:
        """Paths of the running mean and variance, if it has them."""
        return [path for path in (self.mean, self.variance) if path is not None]


class Write(NamedTuple):
    """forward puts a tensor into a list or dict that it was given."""

    path: tuple[Any, ...]  # of the container in (args, kwargs)
    key: Any
    ref: Ref


def items_of(container: Any) -> dict[Any, Any]:
    """Of a list or a dict, by key."""
    if isinstance(container, dict):
        return dict(container)
    return dict(enumerate(container))


def containers_in(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, Any]]:
    """The lists and dicts in a tree of arguments, by path."""
    if isinstance(tree, (list, tuple, dict)):
        if not isinstance(tree, tuple):
            yield path, tree
        for key, item in items_of(tree).items():
            yield from containers_in(item, (*path, key))


class Effects(NamedTuple):
    """Of one stock call."""

    draws: bool = False  # from PyTorch's default generators
    work: int = 0  # of products and convolutions: FLOP times the bytes of a number
    from_its_own: bool = False  # draws from a generator that it is given
    lasting: bool = False  # it moves statistics, or may do so
    exchanges: bool = False  # tensors with other processes
    inner_bytes: int = 0  # made on the way to its result
    saved_bytes: int = 0  # of these: autograd keeps them for backward
    # What else it keeps: ("argument", tensor) and ("result", leaf), as in StockCall.made.
    saves: frozenset[tuple[str, int]] = frozenset()
    # Of the tensors that it is given, by place: those that it changes without a sign of it.
    writes: frozenset[int] = frozenset()
    strides: tuple[tuple[int, ...], ...] = ()  # of the tensors that it is given


NO_EFFECTS = Effects()


@dataclass
class StockCall:
    """A torch call that is replayed, as the module made it."""

    function: Callable[..., Any]
    args: Any  # pytrees with Ref in place of tensors
    kwargs: Any
    name: str
    path: str
    cause: tuple[str, str]  # name and path of the first call that could not be lowered
    autocast: torch.dtype | None  # of autocast, None: it was off
    nodes_before: int = 0
    refs: tuple[Ref, ...] = ()
    made: tuple[tuple[str, int], ...] = ()  # ("result", leaf) or ("argument", tensor)
    changes: tuple[Ref, ...] = ()  # beside arguments: what they are views of
    memory: tuple[int | None, ...] = ()  # of what it makes: equal numbers, the same
    after: int = 0  # the stage that it follows, counted from 1; 0: it comes before all
    carries: bool = True  # could a gradient flow through its result, as recorded?
    cuts: bool = False  # none does, whatever it reads
    done_with: tuple[Ref, ...] = ()  # what nobody reads after it
    bytes: tuple[int, ...] = ()  # of that memory
    effects: Effects = NO_EFFECTS
    fill: Any = None  # of its arguments (trees.filler), once it has been replayed

    def note_gradients(self, made: list[Tensor], carries: bool) -> None:
        """Of what it has made, where what it reads ``carries`` one, as recorded."""
        learns = carries or (not self.refs and any(x.requires_grad for x in made))
        numbers = any(x.is_floating_point() or x.is_complex() for x in made)
        self.cuts = not numbers or cuts_gradients(self.function)
        self.carries = learns and not self.cuts

    def results(self, number: int) -> list[Ref]:
        """What it makes, if it has this number."""
        return [Ref("stock", (number, leaf)) for leaf in range(len(self.made))]

    @property
    def changed(self) -> tuple[Ref, ...]:
        """What it changes in place: arguments, and what shares their memory."""
        arguments = (self.refs[i] for kind, i in self.made if kind == "argument")
        return (*arguments, *self.changes)


@dataclass
class Stage:
    """What of a part runs at once; stock calls may come between stages."""

    nodes: slice  # of the part's
    sources: list[Ref] = field(default_factory=list)  # what its inputs are
    outputs: list[int] = field(default_factory=list)  # numbers within the part
    values: list[int] = field(default_factory=list)  # those of the outputs in the whole
    # By source: does nobody else read it?
    alone: list[bool] = field(default_factory=list)
    done_with: tuple[Ref, ...] = ()  # what nobody reads after it


@dataclass
class Part:
    """Nodes that one graph computes; operands are numbers within the part."""

    nodes: list[Node] = field(default_factory=list)
    norms: list[NormCall] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)

    @property
    def sources(self) -> list[Ref]:
        """What its inputs are."""
        return [ref for stage in self.stages for ref in stage.sources]

    @property
    def outputs(self) -> list[int]:
        """Numbers within the part."""
        return [value for stage in self.stages for value in stage.outputs]


@dataclass
class Recording:
    """One forward of a module for one signature of its arguments."""

    nodes: list[Node] = field(default_factory=list)
    norms: list[NormCall] = field(default_factory=list)
    calls: list[StockCall] = field(default_factory=list)  # only what results need
    parts: list[Part] = field(default_factory=list)
    # Stock calls that can be recomputed, by their first.
    gaps: dict[int, Gap] = field(default_factory=dict)
    light_gaps: dict[int, Gap] = field(default_factory=dict)  # what is cheap of them
    out_leaves: list[Any] = field(default_factory=list)  # Ref or a plain object
    out_spec: Any = None
    writes: list[Write] = field(default_factory=list)
    out_path: tuple[Any, ...] | None = None  # the result is this container of arguments
    bumps: dict[str, int] = field(default_factory=dict)  # num_batches_tracked: calls
    left: dict[str, CannotLower] = field(default_factory=dict)  # stays stock, by text

    def leave(self, failure: CannotLower) -> None:
        """Notes what stays in stock PyTorch, for the report."""
        self.left.setdefault(str(failure), failure.fresh())

    def is_left(self, call: str, path: str) -> bool:
        """Is there a reason already why this call of that module stays stock?"""
        return any((x.call, x.path) == (call, path) for x in self.left.values())

    @property
    def stages(self) -> list[Stage]:
        """Of all parts, in the order in which they run."""
        return [stage for part in self.parts for stage in part.stages]
