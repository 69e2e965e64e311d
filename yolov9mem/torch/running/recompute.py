# SPDX-License-Identifier: MIT
"""Gaps that are recomputed in backward, by torch.utils.checkpoint.

Between forward and backward nothing of such a gap is held but what it reads, of which the
core recomputes outputs of its stages where it can. It is recomputed when the first that
needs it comes in backward: the next stage, for its inputs, or the backward of one of its
own calls.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..recording.gaps import Gap
from ..recording.ir import Ref, StockCall
from ..versions import is_retained
from .promises import Promise, promised
from .stock_calls import Caller
from .surroundings import Surroundings

Made = Sequence[tuple[Ref, Tensor]]


class Remade(NamedTuple):
    """What a gap has made, by ref."""

    makes: Made  # for others
    shares: Made  # for stock calls, to which `SharedResult`s promise it
    feeds: Made  # for stages: `rebuilder` tells how to get it in backward


def recomputed_later(
    gap: Gap,
    calls: list[StockCall],
    caller: Caller,
    given: list[Any],
    feeds: Collection[Ref],
    promises: Collection[Promise],
    surroundings: Surroundings,
) -> Remade:
    """Runs the gap and holds none of its ``feeds`` nor what it shares; nor of what of
    ``given`` the ``promises`` are. ``surroundings``: of the forward."""
    fed = [ref for ref in gap.feeds if ref in feeds]
    others = gap.makes + [ref for ref in gap.feeds if ref not in feeds]
    makes = list(dict.fromkeys(ref for ref in others if ref not in gap.shares))
    given = [x if learns else x.detach() for x, learns in zip(given, gap.learns)]
    strides = [x.stride() if x.layout is torch.strided else None for x in given]
    runs = itertools.count()

    def make(*given: Any) -> list[Tensor]:
        if next(runs) == 0:  # in forward
            return make_in_them(*given)
        with surroundings.restored():
            return make_in_them(*map(_as_in_forward, given, strides))

    def make_in_them(*given: Any) -> list[Tensor]:
        made = dict(zip(gap.reads, given))

        def resolve(ref: Ref) -> Any:
            return ref.key if ref.kind == "constant" else made[ref]

        for number in gap.calls:
            results = caller.make(calls[number], resolve)
            made |= {Ref("stock", (number, i)): x for i, x in enumerate(results)}
            for ref in calls[number].done_with:
                made.pop(ref, None)
        found = [Fed.apply(made[ref]) for ref in (*gap.shares, *fed)]
        return [*(made[ref] for ref in makes), *found]

    with promised(promises):
        made = checkpoint(
            make, *given, use_reentrant=False, preserve_rng_state=gap.draws
        )
    each = iter(made)
    return Remade(*(list(zip(refs, each)) for refs in (makes, gap.shares, fed)))


def _as_in_forward(x: Tensor, strides: tuple[int, ...] | None) -> Tensor:
    """As forward has read it: a hook on what is saved may have made another layout of it,
    from which other layouts would be made."""
    if strides is None or x.stride() == strides:
        return x
    sizes = [size if stride else 1 for size, stride in zip(x.shape, strides)]
    with torch.no_grad():
        made = torch.empty_strided(sizes, strides, dtype=x.dtype, device=x.device)
        made.copy_(x[tuple(slice(size) for size in sizes)])
        made = made.expand(x.shape)
    return made.requires_grad_(x.requires_grad)


class Fed(torch.autograd.Function):
    """The same tensor; that of a gap is saved here, which is where it is found again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x)
        return x.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Tensor | None:
        shared = getattr(ctx, "shared", lambda: None)()
        if shared is not None:
            shared.end_backward()
        return grad


def rebuilder(tensor: Tensor) -> Any:
    """What `rebuilt` makes the tensor of, or None: it has to be held."""
    node = tensor.grad_fn
    return node if isinstance(node, Fed._backward_cls) else None


def rebuilt(node: Any) -> Tensor:
    """The tensor again, in a backward that has not come to the gap yet; once."""
    (tensor,) = node.saved_tensors
    found: Tensor = tensor.detach()
    return found


class SharedResult(Promise):
    """What a gap shares with stock calls, of which several may have saved it."""

    def __init__(self, tensor: Tensor, node: Any) -> None:
        """``node``: its `rebuilder`."""
        super().__init__(tensor)
        node.shared = weakref.ref(self)
        self._node = node
        self._pass = -1  # the backward in which it was made

    def tensor(self) -> Tensor:
        """Recomputed, for all: a gap is made again once in a backward."""
        self._pass = torch._C._current_graph_task_id()
        made = rebuilt(self._node)
        self.give(made)
        return made

    def end_backward(self) -> None:
        """Its gradient is complete. Stock calls that had no gradient may have a backward of
        their own, and then the gap can't be made again for them."""
        is_made = self._pass == torch._C._current_graph_task_id()
        if self.saved and not is_made and not is_retained():
            self.tensor()
