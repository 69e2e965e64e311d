# SPDX-License-Identifier: MIT
"""Through what would a gradient flow, as far as a recording tells?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from ..recording.ir import Recording, Ref, Stage
from .lower import Program


def flows(
    program: Program, inputs: Iterable[bool], params: tuple[bool, ...]
) -> list[bool]:
    """By value of the part: does a wanted gradient flow through it?"""
    return list(_flows(program, inputs, params))


def _flows(
    program: Program, inputs: Iterable[bool], params: tuple[bool, ...]
) -> Iterator[bool]:
    """One by one; whether an input wants one is not asked before those before it."""
    wanted = {path for path, grad in zip(program.params, params) if grad}
    grads = iter(inputs)
    flowing: list[bool] = []
    for node in program.part.nodes:
        if node.op == "input":
            flowing.append(next(grads))
            yield flowing[-1]
            continue
        own: list[str | None] = [*node.params]
        if node.op == "norm":
            call = program.part.norms[node.attributes[0]]
            own = [call.gamma, call.beta]
        flowing.append(
            any(flowing[v] for v in node.operands) or not wanted.isdisjoint(own)
        )
        yield flowing[-1]


def learning_inputs(
    recording: Recording,
    programs: Sequence[Program],
    params: Sequence[tuple[bool, ...]],
    learns: Callable[[Ref], bool],
) -> list[tuple[bool, ...]]:
    """By graph and input: does it want a gradient?

    params: by graph, which of its params want one. learns: does an argument of forward or
    a tensor of the module's? Those of others are asked here.
    """
    flow = _Flow(recording, learns)
    return [flow.inputs(program, own) for program, own in zip(programs, params)]


class _Flow:
    """Goes through a forward in its order."""

    def __init__(self, recording: Recording, learns: Callable[[Ref], bool]) -> None:
        self._nodes, self._calls = recording.nodes, recording.calls
        self._learns = learns
        self._made: set[Ref] = set()  # in the forward, and wants one
        self._next = 0  # number of the next stock call
        self._stages = 0  # how many have been passed

    def inputs(self, program: Program, params: tuple[bool, ...]) -> tuple[bool, ...]:
        """Of the next graph."""
        stages = program.part.stages
        found: list[bool] = []
        flowing: list[bool] = []  # by value of the part, those up to an input

        def one_by_one() -> Iterator[bool]:
            for number, stage in enumerate(stages):
                if number > 0:
                    self._end(stages[number - 1], flowing)
                self._go_on()
                for ref in stage.sources:
                    found.append(self._wants(ref))
                    yield found[-1]

        for does in _flows(program, one_by_one(), params):
            flowing.append(does)
        self._end(stages[-1], flowing)
        return tuple(found)

    def _end(self, stage: Stage, flowing: list[bool]) -> None:
        pairs = zip(stage.values, stage.outputs)
        self._made |= {Ref("value", value) for value, i in pairs if flowing[i]}
        self._stages += 1

    def _go_on(self) -> None:
        """The stock calls before the next stage."""
        calls = self._calls
        while self._next < len(calls) and calls[self._next].after <= self._stages:
            call = calls[self._next]
            # A tensor that it makes of nothing may want one by itself.
            wants = any(map(self._wants, call.refs)) if call.refs else call.carries
            if wants and not call.cuts:
                leaves = range(len(call.made))
                self._made |= {Ref("stock", (self._next, leaf)) for leaf in leaves}
                self._made |= set(call.changed)
            self._next += 1

    def _wants(self, ref: Ref) -> bool:
        if ref in self._made:
            return True
        if ref.kind == "value" and self._nodes[ref.key].op == "input":
            return self._wants(self._nodes[ref.key].attributes[0])
        if ref.kind == "constant":
            return bool(ref.key.requires_grad)
        return ref.kind in ("input", "path") and self._learns(ref)
