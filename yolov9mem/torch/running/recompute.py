# SPDX-License-Identifier: MIT
"""Gaps that are recomputed in backward, by torch.utils.checkpoint.

Between forward and backward nothing of such a gap is held but what it reads, of which the
core recomputes outputs of its stages where it can. It is recomputed when the first that
needs it comes in backward: the next stage, for its inputs, or the backward of one of its
own calls.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..recording.gaps import Gap
from ..recording.ir import Ref, StockCall
from .recomputed_outputs import RecomputedOutput, not_held
from .stock_calls import Caller
from .surroundings import Surroundings

Made = Iterator[tuple[Ref, Tensor]]


def recomputed_later(
    gap: Gap,
    calls: list[StockCall],
    caller: Caller,
    given: list[Any],
    feeds: Collection[Ref],
    outputs: list[RecomputedOutput],
) -> tuple[Made, Made]:
    """What the gap makes for others, and what it feeds to stages of which `rebuilder` will
    tell how to get it in backward: ``feeds``, of which nothing is held. Nor is it of what
    of ``given`` the ``outputs`` are."""
    fed = [ref for ref in gap.feeds if ref in feeds]
    makes = dict.fromkeys(gap.makes + [ref for ref in gap.feeds if ref not in feeds])
    surroundings = Surroundings()

    def make(*given: Any) -> list[Tensor]:
        with surroundings.restored():
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

    with not_held(outputs):
        made = checkpoint(
            make, *given, use_reentrant=False, preserve_rng_state=gap.draws
        )
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
