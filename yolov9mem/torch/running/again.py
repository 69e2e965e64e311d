# SPDX-License-Identifier: MIT
"""Gaps that are made again in backward, by torch.utils.checkpoint.

Between forward and backward nothing of such a gap is held but what it reads. It is made
again when the first that needs it comes in backward: the next stage, for its inputs, or
the backward of one of its own calls.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import compress
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from yolov9mem._keep import Keep

from ..recording.gaps import Gap
from ..recording.ir import Recording, Ref, StockCall
from .planned import TorchPlan
from .stock_calls import Caller
from .surroundings import Surroundings


def is_made_again(keep: Keep) -> Callable[[Gap], bool]:
    """Which gaps are: with "min" all, with "all" none, else those without products of
    matrices, which cost as much as convolutions."""
    if keep.rule in ("min", "all"):
        return lambda gap: keep.rule == "min"
    return lambda gap: not gap.multiplies


class Again(NamedTuple):
    """What of one forward is made again."""

    gaps: int
    feeds: set[Ref]  # inputs of graphs that are not held
    read_bytes: int  # held for that, and for nothing else
    saved_bytes: int  # that autograd would keep for the calls
    most_bytes: int  # of one gap, while its backward runs


def made_again(recording: Recording, keep: Keep, plans: list[TorchPlan]) -> Again:
    """With these plans of its graphs."""
    own: set[Ref] = set()
    for plan in plans:
        own.update(compress(plan.program.part.sources, plan.own))
    is_chosen = is_made_again(keep)
    gaps = [g for g in recording.gaps.values() if is_chosen(g) and g.is_worth_it(own)]
    feeds = {ref for gap in gaps for ref in gap.feeds if ref in own}
    read = {ref: size for gap in gaps for ref, size in gap.read_bytes.items()}
    most = max((gap.inner_bytes + gap.outer_bytes for gap in gaps), default=0)
    saved = sum(gap.saved_bytes for gap in gaps)
    return Again(len(gaps), feeds, sum(read.values()), saved, most)


Made = Iterator[tuple[Ref, Tensor]]


def made_again_later(
    gap: Gap,
    calls: list[StockCall],
    caller: Caller,
    given: list[Any],
    feeds: Collection[Ref],
) -> tuple[Made, Made]:
    """What the gap makes for others, and what it feeds to stages of which `rebuilder` will
    tell how to get it in backward: ``feeds``, of which nothing is held."""
    fed = [ref for ref in gap.feeds if ref in feeds]
    makes = dict.fromkeys(gap.makes + [ref for ref in gap.feeds if ref not in feeds])
    surroundings = Surroundings()

    def make(*given: Any) -> list[Tensor]:
        with surroundings.again():
            return make_in_them(*given)

    def make_in_them(*given: Any) -> list[Tensor]:
        made = dict(zip(gap.reads, given))

        def resolve(ref: Ref) -> Any:
            return ref.key if ref.kind == "constant" else made[ref]

        for number in gap.calls:
            results = caller.make(calls[number], resolve)
            made |= {Ref("stock", (number, i)): x for i, x in enumerate(results)}
            for ref in calls[number].done_with:
                made.pop(ref, None)
        return [
            *(made[ref] for ref in makes),
            *(Fed.apply(made[ref]) for ref in fed),
        ]

    made = checkpoint(make, *given, use_reentrant=False, preserve_rng_state=gap.draws)
    return zip(makes, made), zip(fed, made[len(makes) :])


class Fed(torch.autograd.Function):
    """The same tensor; that of a gap is saved here, which is where it is found again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x)
        return x.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Tensor | None:
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
