# SPDX-License-Identifier: MIT
"""From the parts' outputs to what forward returns: stock calls are replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only, tree_unflatten

from .. import devices
from ..recording.ir import Recording, Ref, Stage, StockCall
from .binding import Outside, is_channels_last


@contextmanager
def _autocast(kind: str, dtype: torch.dtype | None) -> Iterator[None]:
    """Autocast to ``dtype``, or none, as the call had it when it was recorded."""
    if devices.autocast_dtype(torch.device(kind)) == dtype:
        yield
        return
    with torch.autocast(kind, dtype=dtype, enabled=dtype is not None):
        yield


def _view(tensor: Tensor, *shape: Any, **named: Any) -> Tensor:
    given = (*shape, *named.values())
    if any(isinstance(value, torch.dtype) for value in given):
        return tensor.contiguous().view(*shape, **named)
    return tensor.reshape(*shape, **{_RESHAPES.get(k, k): v for k, v in named.items()})


def _view_as(tensor: Tensor, other: Tensor) -> Tensor:
    return tensor.reshape(other.shape)


def _view_as_complex(input: Tensor) -> Tensor:
    return torch.view_as_complex(input.contiguous())


_RESHAPES = {"size": "shape"}  # the names of view's arguments, and of reshape's
# Values are channels_last, which many views cannot be.
_VIEWS: dict[str, Callable[..., Any]] = {
    "view": _view,
    "_unsafe_view": _view,
    "view_as": _view_as,
    "view_as_complex": _view_as_complex,
}


def _instance_norm(function: Callable[..., Tensor], *args: Any, **named: Any) -> Tensor:
    """PyTorch's backward of one image reads a channels_last gradient, as ours are, in
    the wrong order."""
    made = function(*args, **named)
    if made.requires_grad:
        made.register_hook(lambda grad: None if grad is None else grad.contiguous())
    return made


def _group_norm(
    function: Callable[..., Tensor], input: Tensor, *args: Any, **named: Any
) -> Tensor:
    """On a CPU, PyTorch's backward crashes where a channels_last input, as our values are,
    wants no gradient and a weight does."""
    given = input if input.requires_grad else input.contiguous()
    return function(given, *args, **named)


# What PyTorch does wrong only in layouts that stock forwards seldom have.
_AROUND = {"instance_norm": _instance_norm, "group_norm": _group_norm}

# They draw a number for each element in the order of memory, or make what others fill so.
_DRAWS = {
    "alpha_dropout", "bernoulli", "dropout", "empty_like", "multinomial", "poisson",
    "rand_like", "randint_like", "randn_like", "rrelu",
}  # fmt: skip


def _function(call: StockCall) -> Callable[..., Any]:
    """What replays the call."""
    name, _, _ = call.name.partition(".")  # of torch.ops.aten: the overload follows
    if name in _AROUND:
        return partial(_AROUND[name], call.function)
    return _VIEWS.get(name, call.function)


def _say_where(error: Exception, call: StockCall) -> None:
    """An error of a replay does not come from the module's own line."""
    where = f"yolov9mem replayed {call.name} of {call.path or 'the module itself'}"
    if hasattr(error, "add_note"):
        error.add_note(where)
    else:  # Python 3.10
        error.args = (f"{error}\n{where}",)


class Replay:
    """One forward: what the graphs and the stock calls have made so far."""

    def __init__(
        self,
        recording: Recording,
        outside: Outside,
        arguments: tuple[Any, Any],
        leaves: list[Any],
        params: list[list[Tensor]],
    ) -> None:
        """``leaves``: of ``arguments``, which are (args, kwargs). ``params``: by graph."""
        self._recording, self._outside = recording, outside
        self._arguments, self._leaves, self._params = arguments, leaves, params
        self._made: dict[Any, Tensor] = {}  # by number of a value, by (call, leaf)
        self._call = self._stages = 0  # how many have run
        self._replay(0)

    def inputs(self, stage: Stage) -> list[Tensor]:
        """What the stage reads."""
        return [self._resolve(ref) for ref in stage.sources]

    def learns(self, ref: Ref) -> bool:
        """Could what a later stage reads want a gradient?"""
        if ref.kind == "stock" and ref.key not in self._made:
            return self._recording.calls[ref.key[0]].carries
        learns: bool = self._resolve(ref).requires_grad
        return learns

    def add(self, stage: Stage, outputs: list[Tensor]) -> None:
        """What the next stage has made."""
        self._made.update(zip(stage.values, outputs))
        self._let_go(stage)

    def go_on(self) -> None:
        """The stock calls that follow the stage."""
        self._stages += 1
        self._replay(self._stages)

    def result(self) -> Any:
        """What forward returns, after the last part."""
        done = self._recording
        for write in done.writes:
            self._container(write.path)[write.key] = self._resolve(write.ref)
        if done.out_path is not None:
            return self._container(done.out_path)
        return tree_unflatten(
            [self._resolve(x) for x in done.out_leaves], done.out_spec
        )

    def _container(self, path: tuple[Any, ...]) -> Any:
        found: Any = self._arguments
        for key in path:
            found = found[key]
        return found

    def _resolve(self, leaf: Any) -> Any:
        if not isinstance(leaf, Ref):
            return leaf
        if leaf.kind in ("value", "stock"):
            return self._made[leaf.key]
        if leaf.kind == "input":
            return self._leaves[leaf.key]
        return self._outside.tensor(leaf.key) if leaf.kind == "path" else leaf.key

    def _resolved(self, call: StockCall) -> tuple[Any, Any]:
        """Its (args, kwargs) now."""
        tree = call.args, call.kwargs
        given = tree_map(self._given, tree, is_leaf=lambda leaf: isinstance(leaf, Ref))
        if call.name in _DRAWS and not self._is_channels_last():
            given = tree_map_only(Tensor, Tensor.contiguous, given)
        return given

    def _is_channels_last(self) -> bool:
        """Would values be, in stock PyTorch?"""
        tensors = [leaf for leaf in self._leaves if isinstance(leaf, Tensor)]
        return any(map(is_channels_last, chain(tensors, *self._params)))

    def _given(self, leaf: Any) -> Any:
        """An argument of a stock call. A GPU is the one that this forward runs on: the
        recording may be that of a replica on another one."""
        if isinstance(leaf, torch.device) and leaf.index is not None:
            here = devices.of(self._leaves)
            return here if here.type == leaf.type else leaf
        return self._resolve(leaf)

    def _replay(self, after: int) -> None:
        """The next stock calls, as far as they follow that many stages."""
        calls = self._recording.calls
        try:
            self._replay_calls(calls, after)
        except Exception as error:
            _say_where(error, calls[self._call])
            raise

    def _replay_calls(self, calls: list[StockCall], after: int) -> None:
        while self._call < len(calls) and calls[self._call].after == after:
            self._replay_call(calls[self._call])
            self._let_go(calls[self._call])
            self._call += 1

    def _replay_call(self, call: StockCall) -> None:
        given = [self._resolve(ref) for ref in call.refs]
        with _autocast(devices.of(self._leaves).type, call.autocast):
            args, kwargs = self._resolved(call)
            made = _function(call)(*args, **kwargs)
        flat = tree_flatten(made)[0]
        for leaf, (kind, i) in enumerate(call.made):
            self._made[self._call, leaf] = flat[i] if kind == "result" else given[i]

    def _let_go(self, step: Stage | StockCall) -> None:
        for ref in step.done_with:
            del self._made[ref.key]
