# SPDX-License-Identifier: MIT
"""What a recording is made of: the calls of one forward, written down.

A *value* is a 4-D activation that the C core can compute; values are numbered and value
``i`` is made by ``nodes[i]``. What follows them and cannot be lowered is the *tail*: torch
calls that are replayed on the values that the node hands out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch


class CannotLower(NotImplementedError):
    """A call that yolov9mem cannot run; says which, where and why."""

    def __init__(self, call: str, path: str, reason: str) -> None:
        self.call, self.path, self.reason = call, path, reason
        super().__init__(f"{call} in {path or 'the module itself'}: {reason}")

    def again(self) -> CannotLower:
        """The same, not yet raised. What was raised holds its frames, and they hold the
        module and its arguments."""
        return type(self)(self.call, self.path, self.reason)


class NothingToRun(CannotLower):
    """No value is computed, as in nn.Identity: stock, and no error."""


class Node(NamedTuple):
    """One call. ``attributes`` are hashable, in the order that lower.py expects."""

    op: str
    operands: tuple[int, ...]
    attributes: tuple[Any, ...]
    shape: tuple[int, int, int, int]  # (N, C, H, W) of the value that it makes
    dtype: torch.dtype
    path: str  # of the module that made the call
    in_place: bool = False


class Ref(NamedTuple):
    """Stands for a tensor in an argument or a result of the tail."""

    kind: str  # "value", "input", "tail", "path" or "constant"
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


class Write(NamedTuple):
    """forward puts a tensor into a list or dict that it was given."""

    path: tuple[Any, ...]  # of the container in (args, kwargs)
    key: Any
    ref: Ref


@dataclass
class TailCall:
    """A torch call made on the node's outputs, as the module made it."""

    function: Callable[..., Any]
    args: Any  # pytrees with Ref in place of tensors
    kwargs: Any
    name: str
    path: str
    cause: str  # the first call in its past that could not be lowered
    autocast: torch.dtype | None  # of autocast, None: it was off
    refs: tuple[Ref, ...] = ()
    made: tuple[tuple[str, int], ...] = ()  # ("result", leaf) or ("argument", tensor)


@dataclass
class Recording:
    """One forward of a module for one signature of its arguments."""

    nodes: list[Node] = field(default_factory=list)
    norms: list[NormCall] = field(default_factory=list)
    input_leaves: list[int] = field(default_factory=list)  # of the arguments, by input
    tail: list[TailCall] = field(default_factory=list)  # only what outputs need
    outputs: list[int] = field(default_factory=list)  # values handed out, no inputs
    out_leaves: list[Any] = field(default_factory=list)  # Ref or a plain object
    out_spec: Any = None
    writes: list[Write] = field(default_factory=list)
    out_path: tuple[Any, ...] | None = None  # the result is this container of arguments
    bumps: dict[str, int] = field(default_factory=dict)  # num_batches_tracked: calls
