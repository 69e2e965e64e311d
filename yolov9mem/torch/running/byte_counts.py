# SPDX-License-Identifier: MIT
"""The bytes between forward and backward: what plans hold, and what stock PyTorch would."""

from __future__ import annotations

from itertools import compress
from typing import NamedTuple

import torch

from yolov9mem._keep import Keep
from yolov9mem.plan_table import readable_bytes

from ..recording.gaps import held_by_others
from ..recording.ir import Node, Recording, Ref
from ..recording.to_stock import KEEP_RESULTS, effects_of_replay
from .gradient_flow import flows
from .lower import Program
from .planned import TorchPlan
from .recompute_choice import choose_recompute


class Held(NamedTuple):
    """Of one module."""

    ours: int  # inputs included
    weights: int  # of these: in 16 bits, as autocast's cache holds them
    peak: int
    stock: int
    shared: int  # of stock's: the caller has it anyway, and has its own memory of ours
    beside: int  # outputs of graphs that autograd keeps for stock calls
    gaps: int  # pieces of stock calls that are recomputed
    saved: int  # bytes that autograd would keep for these

    @property
    def _beside_stocks(self) -> int:
        """What is to be compared with stock's."""
        return self.ours - self.weights + self.shared

    @property
    def gains_nothing(self) -> bool:
        """Would stock PyTorch hold no more?"""
        return self._beside_stocks >= self.stock

    def is_less_than(self, other: Held) -> bool:
        """Is the peak lower, with what stock calls hold? No less of theirs must be
        recomputed."""
        lower = self.peak + self.beside < other.peak + other.beside
        return lower and self.saved >= other.saved

    @property
    def comparison(self) -> str:
        """Both, for the report."""
        ours, stock = readable_bytes(self._beside_stocks), readable_bytes(self.stock)
        return f"nothing to gain: {ours} would be held, in stock PyTorch {stock}"


def held_bytes(recording: Recording, keep: Keep, plans: list[TorchPlan]) -> Held:
    """Of the plans of a module's graphs, in their order."""
    recompute = choose_recompute(recording, keep, plans)
    others = held_by_others(recording)
    left = recompute.left_bytes(recording)
    held = recompute.read_bytes(others) + left
    stock = recompute.saved_bytes + left
    weights = peak = shared = beside = 0
    freed, given = others & recompute.outputs, others - recompute.outputs
    seen = set(recompute.feeds)  # and what is held from there
    for plan in plans:  # all before it are held while one runs
        held += _input_bytes(plan, seen)
        peak = max(peak, held + plan.core.peak_bytes)
        held += plan.saved_bytes
        weights += plan.core.weight_bytes
        kept = _kept_by_stock(plan)
        stock += sum(kept.values())
        shared += _bytes_of(plan.program, given, kept)
        beside += _bytes_of(plan.program, given)
        stock += _bytes_of(plan.program, freed) - _bytes_of(plan.program, freed, kept)
    peak += recompute.most_bytes
    again = len(recompute.gaps), recompute.saved_bytes
    return Held(held, weights, peak, stock, shared, beside, *again)


def _input_bytes(plan: TorchPlan, seen: set[Ref]) -> int:
    """Of the inputs that backward reads and that are not among ``seen``, where they are
    noted."""
    part = plan.program.part
    inputs = [node for node in part.nodes if node.op == "input"]
    read = list(compress(zip(part.sources, inputs), plan.read_back))
    new = [(ref, x) for ref, x in read if ref not in seen]
    seen.update(ref for ref, _ in new)
    return sum(node.nbytes for _, node in new)


def _bytes_of(
    program: Program, values: set[Ref], kept: dict[object, int] | None = None
) -> int:
    """Of those values that the graph hands out; only where stock PyTorch keeps that very
    memory, if ``kept`` tells it."""
    nodes = program.part.nodes
    names = [value for stage in program.part.stages for value in stage.values]
    return sum(
        nodes[value].nbytes
        for value, name in zip(program.part.outputs, names)
        if Ref("value", name) in values
        and (kept is None or _whole(nodes, value) in kept)
    )


def _whole(nodes: list[Node], value: int) -> int:
    """That of which it is a channel slice."""
    while nodes[value].op == "slice":
        value = nodes[value].operands[0]
    return value


def _kept_by_stock(plan: TorchPlan) -> dict[object, int]:
    """What eager autograd keeps for this graph from forward to backward, in bytes.

    Counted by storage, under its number where it is a value: a convolution keeps its input
    (a channel slice keeps its whole parent), batch norm its input and 2 C floats (nothing,
    where it is written as a product with a fixed vector), an activation its input (in
    place: a copy of it), a product its factors, and others what their replays keep.
    Parameters are not counted.
    """
    program = plan.program
    nodes = program.part.nodes
    wanted = {p for p, grad in zip(program.params, plan.param_grads) if grad}
    flowing = flows(program, plan.input_grads, plan.param_grads)
    kept: dict[object, int] = {}

    def keep(value: int, dtype: torch.dtype | None = None) -> None:
        if dtype is not None and dtype is not nodes[value].dtype:
            copy = nodes[value]._replace(dtype=dtype)  # autocast's
            kept[value, dtype] = copy.nbytes
            return
        value = _whole(nodes, value)
        kept[value] = nodes[value].nbytes

    for number, node in enumerate(nodes):
        if not flowing[number]:
            continue
        if node.is_convolution:
            if node.attributes[0] in wanted:
                keep(node.operands[0], node.dtype)
        elif node.op == "affine":
            if node.attributes[2] in wanted:
                keep(node.operands[0])
        elif node.op == "norm":
            norm = program.part.norms[node.attributes[0]]
            if not norm.in_products or norm.gamma in wanted:
                keep(node.operands[0])
            if norm.batch_statistics:
                kept["statistics", number] = 2 * 4 * node.shape[1]
        elif node.op == "activation":
            keep(number if _keeps_result(node) else node.operands[0])
        elif node.op == "multiply":
            for value, other in (node.operands, node.operands[::-1]):
                if flowing[other]:
                    keep(value)
        else:
            does = effects_of_replay(node)
            kept["indices", number] = does.saved_bytes
            if does.saves:
                keep(node.operands[0])
    return kept


def _keeps_result(node: Node) -> bool:
    in_place = node.in_place and node.attributes[0] in ("leaky_relu", "hardtanh")
    return in_place or node.attributes[0] in KEEP_RESULTS
