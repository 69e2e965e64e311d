# SPDX-License-Identifier: MIT
"""Arguments and results as trees: PyTorch's, but sizes and Refs, tuples too, are whole.

PyTorch puts a torch.Size together again as a plain tuple: `x.new(x.size())` would be a
vector of the sizes then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree

from .ir import Ref


def _is_whole(tree: Any) -> bool:
    return isinstance(tree, (Ref, torch.Size))


def flatten(tree: Any) -> tuple[list[Any], Any]:
    """The leaves, and what puts them together again: `_pytree.tree_unflatten`."""
    return _pytree.tree_flatten(tree, is_leaf=_is_whole)


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """The tree with what ``function`` makes of each leaf."""
    return _pytree.tree_map(function, tree, is_leaf=_is_whole)
