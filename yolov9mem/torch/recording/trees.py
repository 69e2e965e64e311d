# SPDX-License-Identifier: MIT
"""Arguments and results as trees: PyTorch's, but sizes and Refs, tuples too, are whole.

PyTorch puts a torch.Size together again as a plain tuple: `x.new(x.size())` would be a
vector of the sizes then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils import _pytree

from .ir import Ref


def _is_whole(tree: Any) -> bool:
    return isinstance(tree, (Ref, torch.Size))


def flatten(tree: Any) -> tuple[list[Any], Any]:
    """The leaves, and what puts them together again: `_pytree.tree_unflatten`."""
    return _pytree.tree_flatten(tree, is_leaf=_is_whole)


def tensors_in(tree: Any) -> list[torch.Tensor]:
    """Those among the leaves, in their order."""
    return [leaf for leaf in flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """The tree with what ``function`` makes of each leaf."""
    return _pytree.tree_map(function, tree, is_leaf=_is_whole)


Filler = Callable[[Iterator[Any], torch.device], Any]


def filler(tree: Any) -> Filler:
    """Makes the tree with what follows in place of its Refs, in their order, and with the
    device in place of one that has a number and is of the same kind. As `map_leaves` does,
    many times as fast."""
    if isinstance(tree, Ref):
        return lambda following, device: next(following)
    if isinstance(tree, torch.device) and tree.index is not None:
        return lambda following, device: device if device.type == tree.type else tree
    kind = type(tree)
    if kind in (tuple, list):
        items = [filler(item) for item in tree]
        if kind is tuple:
            return lambda following, device: tuple(
                [item(following, device) for item in items]
            )
        return lambda following, device: [item(following, device) for item in items]
    if kind is dict:
        values = {key: filler(item) for key, item in tree.items()}
        return lambda following, device: {
            key: item(following, device) for key, item in values.items()
        }
    leaves, spec = flatten(tree)
    if len(leaves) == 1 and leaves[0] is tree:
        return lambda following, device: tree
    others = [filler(leaf) for leaf in leaves]
    return lambda following, device: _pytree.tree_unflatten(
        [other(following, device) for other in others], spec
    )
