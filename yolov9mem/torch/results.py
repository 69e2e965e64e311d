# SPDX-License-Identifier: MIT
"""From the node's outputs to what the module's forward returns: the tail is replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from . import devices
from .binding import Binding
from .ir import Recording, Ref, TailCall


def _container(arguments: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        arguments = arguments[key]
    return arguments


@contextmanager
def _autocast(kind: str, dtype: torch.dtype | None) -> Iterator[None]:
    """Autocast to ``dtype``, or none, as the call had it when it was recorded."""
    if devices.autocast_dtype(torch.device(kind)) == dtype:
        yield
        return
    with torch.autocast(kind, dtype=dtype, enabled=dtype is not None):
        yield


def _function(call: TailCall) -> Callable[..., Any]:
    """What replays the call: outputs are channels_last, which many views cannot be."""
    if call.name != "view":
        return call.function
    given = (*call.args, *call.kwargs.values())
    of_bits = any(isinstance(value, torch.dtype) for value in given)
    return _view_of_bits if of_bits else torch.Tensor.reshape


def _view_of_bits(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.contiguous().view(dtype)


def assemble(
    recording: Recording,
    binding: Binding,
    arguments: tuple[Any, Any],
    leaves: list[Any],
    outputs: list[Tensor],
) -> Any:
    """What the module's forward returns, the tail replayed."""
    place = {value: i for i, value in enumerate(recording.outputs)}
    made: list[list[Any]] = []

    def resolve(leaf: Any) -> Any:
        if not isinstance(leaf, Ref):
            return leaf
        if leaf.kind == "value" and leaf.key in place:
            return outputs[place[leaf.key]]
        if leaf.kind == "value":
            return leaves[recording.nodes[leaf.key].attributes[0]]
        if leaf.kind == "input":
            return leaves[leaf.key]
        if leaf.kind == "tail":
            return made[leaf.key[0]][leaf.key[1]]
        return binding.tensor(leaf.key) if leaf.kind == "path" else leaf.key

    def resolved(tree: Any) -> Any:
        return tree_map(resolve, tree, is_leaf=lambda leaf: isinstance(leaf, Ref))

    for call in recording.tail:
        given = [resolve(ref) for ref in call.refs]
        with _autocast(devices.of(leaves).type, call.autocast):
            result = _function(call)(*resolved(call.args), **resolved(call.kwargs))
        flat = tree_flatten(result)[0]
        made.append(
            [flat[i] if kind == "result" else given[i] for kind, i in call.made]
        )
    for write in recording.writes:
        _container(arguments, write.path)[write.key] = resolve(write.ref)
    if recording.out_path is not None:
        return _container(arguments, recording.out_path)
    return tree_unflatten(
        [resolve(leaf) for leaf in recording.out_leaves], recording.out_spec
    )
