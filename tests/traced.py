# SPDX-License-Identifier: MIT
"""What PyTorch does in a block: operations by name, and bytes alive at the peak."""

import weakref
from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

VIEWS = frozenset(
    ("_unsafe_view", "alias", "detach", "expand", "permute", "select", "slice", "split")
    + ("split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view")
)


class Traced(TorchDispatchMode):
    """calls: how often each operation ran, views left out, as they launch nothing.

    peak: most bytes of storages that were made in the block and not yet freed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.live, self.peak = Counter(), {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        self.calls[name] += name not in VIEWS
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        known = {t.untyped_storage()._cdata for t in given} | self.live.keys()
        for tensor in tree_leaves(out):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in known:
                self.live[key] = storage.nbytes()
                weakref.finalize(storage, self.live.pop, key)
        self.peak = max(self.peak, sum(self.live.values()))
        return out
