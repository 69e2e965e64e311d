# SPDX-License-Identifier: MIT
"""The end of a recording: which stock calls are needed, its stages and its parts.

Stage k runs, then the stock calls that follow it, in the order of the module, then stage
k + 1: the values of a stage need no stock call that needs the stage itself. A module that
can be lowered as a whole has one stage, with only a tail of stock calls. Neighbouring
stages are a part, which is one graph: what goes from one to the next is rebuilt in
backward as all else, and is not held at the border.

A part computes in one dtype. Beside convolutions in 16 bits, autocast leaves what comes
from a float32 image in float32: such values are a part of their own, unless only those
convolutions read them. What comes from these convolutions alone stays with them.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

import torch

from .gaps import gaps_of
from .gradient_paths import forget_dead_ends
from .ir import CannotLower, Node, NothingToRun, Part, Recording, Ref, Stage, StockCall
from .light_gaps import light_gaps_of
from .refs import memory_of_result, renumber_calls, replace_refs, results
from .to_stock import can_be_left, leave_to_stock, tails, without_gradient

HALVES = (torch.bfloat16, torch.float16)
# What rounding before them changes no more than rounding after them.
ROUNDED_BEFORE = ("slice", "concat", "max_pool", "avg_pool", "upsample", "maximum")
SAVES_NOTHING = "a graph without a convolution or batch norm saves nothing"
MOST_STAGES_OF_ANY_SIZE = 2  # more need a convolution each, on average


def divide(done: Recording, strict: bool) -> None:
    """Drops the stock calls that no result needs and fills in ``done.parts``.

    A stage that would save nothing is left to stock PyTorch, unless it is the only one of
    a strict recording. Raises NothingToRun where no value is handed out, CannotLower where
    the stages would be too small or a stock call changes what another one reads.
    """
    leave_to_stock(done, tails(done.nodes))
    leave_to_stock(done, without_gradient(done), learns=False)
    stages = _ordered(done)
    while poor := _saves_nothing(done, stages, strict):
        leave_to_stock(done, poor, SAVES_NOTHING)
        stages = _ordered(done)
    done.parts = [_part(done, stages, group) for group in _groups(done, stages)]
    _hand_out(done, stages)
    if not any(part.outputs for part in done.parts):
        raise NothingToRun("forward", "", "it computes nothing to save memory for")
    _check_sizes(done)
    _check_changes(done, stages)
    _note_last_uses(done)
    _note_lone_sources(done)
    forget_dead_ends(done)
    done.gaps, done.light_gaps = gaps_of(done), light_gaps_of(done)


def _ordered(done: Recording) -> list[int]:
    """By node, the stage that computes it; only stock calls that are needed are left."""
    _name_sources(done)
    _drop_unneeded(done)
    return _number_stages(done)


def _saves_nothing(done: Recording, stages: list[int], strict: bool) -> list[int]:
    """The nodes of stages that save nothing: they have no convolution and no batch norm,
    so a graph would hold its inputs and eager PyTorch what the next one holds anyway."""
    count = max(stages, default=0)
    if strict and count <= 1:
        return []
    rich = {
        stage
        for node, stage in zip(done.nodes, stages)
        if not (node.op == "input" or can_be_left(node))
    }
    return [n for n, stage in enumerate(stages) if stage and stage not in rich]


def _name_sources(done: Recording) -> None:
    """An input node is named by what it is, so it bypasses the graphs."""

    def named(leaf: Any) -> Any:
        if isinstance(leaf, Ref) and leaf.kind == "value":
            node = done.nodes[leaf.key]
            return node.attributes[0] if node.op == "input" else leaf
        return leaf

    replace_refs(done, named)


def _sources(done: Recording) -> dict[int, Ref]:
    """By number, the input nodes that are read."""
    read = {value for node in done.nodes for value in node.operands}
    return {
        number: node.attributes[0]
        for number, node in enumerate(done.nodes)
        if node.op == "input" and number in read
    }


def _drop_unneeded(done: Recording) -> None:
    """Drops stock calls that no result needs and renumbers the others. What draws numbers
    or moves statistics is needed: later draws are others without it."""
    needed: set[int] = set()
    wanted = [*results(done), *_sources(done).values()]
    pending = [ref.key[0] for ref in wanted if ref.kind == "stock"]
    effects = [call.effects for call in done.calls]
    pending += [i for i, does in enumerate(effects) if does.draws or does.lasting]
    while pending:
        number = pending.pop()
        if number not in needed:
            needed.add(number)
            refs = done.calls[number].refs
            pending += [ref.key[0] for ref in refs if ref.kind == "stock"]
    done.calls = [done.calls[old] for old in sorted(needed)]
    renumber_calls(done, {old: new for new, old in enumerate(sorted(needed))})


def _widths(done: Recording) -> list[bool | None]:
    """By node: must its graph compute in 16 bits (False), in float32 (True), or is either
    right (None)? All are None where no convolution is in 16 bits."""
    nodes = done.nodes
    wide: list[bool | None] = [None] * len(nodes)
    if not any(node.is_convolution and node.dtype in HALVES for node in nodes):
        return wide
    refs = [ref for call in done.calls for ref in call.refs] + results(done)
    exact = {ref.key for ref in refs if ref.kind == "value"}  # may not be rounded
    rounded = _rounded(nodes)
    for number in reversed(range(len(nodes))):
        node = nodes[number]
        if node.is_convolution and node.dtype in HALVES:
            wide[number] = False
            continue  # it rounds what it reads
        if rounded[number] or (node.op in ROUNDED_BEFORE and number not in exact):
            continue
        exact.update(node.operands)
        computes = node.op != "input" and not node.is_convolution
        if computes and node.dtype is torch.float32:
            wide[number] = True
    return wide


def _rounded(nodes: list[Node]) -> list[bool]:
    """By node: is it of 16 bits, or made of nothing else? On a GPU autocast makes float32
    of some of those, as of sums and of upsampling; convolutions round them again."""
    made: list[bool] = []
    for node in nodes:
        of_halves = node.op != "input" and all(made[value] for value in node.operands)
        made.append(node.dtype in HALVES or of_halves)
    return made


class _Stages:
    """When each node and each stock call can run at the earliest, in their order."""

    def __init__(self, done: Recording) -> None:
        self.done = done
        self.read = _sources(done)
        self._wide = _widths(done)
        self._is_wide: dict[int, bool] = {}  # by stage
        self.node: list[int] = []  # the stage: 1, 2, ...
        self.call: list[int] = []  # the stage that it follows, 0: none
        # The stage of the latest call of a batch norm, by its running mean.
        self._norm: dict[str | None, int] = {}

    def run(self) -> None:
        for number, node in enumerate(self.done.nodes):
            self._add_calls(number)
            self.node.append(self._stage(number, node))
        self._add_calls(len(self.done.nodes))

    def _add_calls(self, nodes: int) -> None:
        """Those that were made before that many nodes; they keep their order."""
        while len(self.call) < len(self.done.calls):
            call = self.done.calls[len(self.call)]
            if call.nodes_before > nodes:
                break
            stage = self.call[-1] if self.call else 0
            for ref in call.refs:
                if ref.kind == "value":
                    stage = max(stage, self.node[ref.key])
                elif ref.kind == "stock":
                    stage = max(stage, self.call[ref.key[0]])
            self.call.append(stage)

    def _stage(self, number: int, node: Node) -> int:
        if node.op == "input":
            ref = self.read.get(number)
            from_call = ref is not None and ref.kind == "stock"
            return self.call[ref.key[0]] + 1 if ref and from_call else 1
        stage = max((self.node[value] for value in node.operands), default=1)
        mean = None
        if node.op == "norm":  # running statistics move in the order of the calls
            mean = self.done.norms[node.attributes[0]].mean
            stage = max(stage, self._norm.get(mean, 1))
        wide = self._wide[number]
        while wide is not None and self._is_wide.setdefault(stage, wide) is not wide:
            stage += 1
        if mean is not None:
            self._norm[mean] = stage
        return stage


def _number_stages(done: Recording) -> list[int]:
    """By node, the stage that computes it (1, 2, ...; of inputs 0); sets call.after."""
    found = _Stages(done)
    found.run()
    computes = [node.op != "input" for node in done.nodes]
    used = sorted({stage for stage, does in zip(found.node, computes) if does})
    for call, stage in zip(done.calls, found.call):
        call.after = sum(other <= stage for other in used)
    number = {stage: k + 1 for k, stage in enumerate(used)}
    return [number[s] if does else 0 for s, does in zip(found.node, computes)]


def kinds_of(nodes: list[Node]) -> set[torch.dtype]:
    """The dtypes that decide in which one a graph computes: of its convolutions."""
    convolutions = {node.dtype for node in nodes if node.is_convolution}
    return convolutions or {node.dtype for node in nodes}


def _groups(done: Recording, stages: list[int]) -> list[list[int]]:
    """Neighbouring stages that compute in the same dtype: each group is one graph."""
    groups: list[list[int]] = []
    last: set[torch.dtype] = set()
    for stage in range(1, max(stages, default=0) + 1):
        kinds = kinds_of([n for n, of in zip(done.nodes, stages) if of == stage])
        if groups and kinds == last:
            groups[-1].append(stage)
        else:
            groups.append([stage])
        last = kinds
    return groups


def _part(done: Recording, stages: list[int], group: list[int]) -> Part:
    """The nodes of some stages; what comes from elsewhere is an input."""
    part = Part()
    place: dict[int, int] = {}
    norms: dict[int, int] = {}

    def add(number: int, node: Node) -> None:
        place[number] = len(part.nodes)
        part.nodes.append(node)

    def source(value: int) -> Ref:
        other = done.nodes[value]
        add(value, Node("input", (), (), other.shape, other.dtype, ""))
        found: Ref = other.attributes[0] if other.op == "input" else Ref("value", value)
        return found

    def compute(number: int, node: Node) -> None:
        attributes = node.attributes
        if node.op == "norm":
            norm = norms.setdefault(attributes[0], len(part.norms))
            if norm == len(part.norms):
                part.norms.append(done.norms[attributes[0]])
            attributes = (norm,)
        operands = tuple(place[value] for value in node.operands)
        add(number, node._replace(operands=operands, attributes=attributes))

    for stage in group:
        made = Stage(slice(len(part.nodes), None))
        for number, node in enumerate(done.nodes):
            if stages[number] == stage:
                new = dict.fromkeys(v for v in node.operands if v not in place)
                made.sources += map(source, new)
                compute(number, node)
        made.nodes = slice(made.nodes.start, len(part.nodes))
        made.values = list(place)  # of all nodes, until _hand_out
        part.stages.append(made)
    return part


def _hand_out(done: Recording, stages: list[int]) -> None:
    """Lists the values that leave each part: of one that nobody reads, its last."""
    refs = [ref for call in done.calls for ref in call.refs] + results(done)
    refs += [ref for part in done.parts for ref in part.sources]
    in_order = done.stages
    places = [{v: i for i, v in enumerate(stage.values)} for stage in in_order]
    last_values = [part.stages[-1].values[-1] for part in done.parts]
    for stage in in_order:
        stage.values = []
    for ref in refs:
        if ref.kind == "value":
            number = stages[ref.key] - 1
            stage = in_order[number]
            if ref.key not in stage.values:
                stage.values.append(ref.key)
                stage.outputs.append(places[number][ref.key])
    if any(part.outputs for part in done.parts):
        for part, value in zip(done.parts, last_values):
            if not part.outputs:  # it may move running statistics
                part.stages[-1].values = [value]
                part.stages[-1].outputs = [len(part.nodes) - 1]


def _check_sizes(done: Recording) -> None:
    count = len(done.stages)
    convolutions = sum(node.is_convolution for node in done.nodes)
    if count > MOST_STAGES_OF_ANY_SIZE and convolutions < count:
        name, path = _first_division(done)
        reason = f"it and others divide {convolutions} convolutions into {count} stages"
        raise CannotLower(name, path, reason)


def _first_division(done: Recording) -> tuple[str, str]:
    """The name and path of what ends the first stage."""
    if done.calls:
        return done.calls[0].cause
    part = next(part for part in done.parts if part.stages[0] is done.stages[1])
    node = next(node for node in part.nodes if node.op != "input")
    return node.op, node.path


def _check_changes(done: Recording, stages: list[int]) -> None:
    """A stock call may change its argument, but not what another stage reads."""
    read: set[Ref] = set()
    for number, node in enumerate(done.nodes):
        for value in node.operands:
            other = done.nodes[value]
            if other.op == "input":
                read.add(other.attributes[0])
            elif stages[value] != stages[number]:
                read.add(Ref("value", value))
    for call in done.calls:
        for changed in call.changed:
            if changed.kind != "input" and changed in read:
                reason = "it changes in place what something else reads"
                raise CannotLower(call.name, call.path, reason)


def _note_last_uses(done: Recording) -> None:
    """Says after which stage or stock call what it reads, or makes in vain, is needed no
    more: a stock forward would let go of it there too, or soon after."""
    steps = list(_in_order(done))
    last: dict[Ref, int] = {}
    for place, (step, refs) in enumerate(steps):
        last |= {ref: place for ref in refs if ref.kind in ("value", "stock")}
        step.done_with = ()
    for ref in results(done):
        last.pop(ref, None)
    for ref, place in last.items():
        steps[place][0].done_with += (ref,)


def _note_lone_sources(done: Recording) -> None:
    """Says which sources of stages are results of stock calls that nothing else reads, but
    for calls that make views of them, which are of the same memory."""
    readers = Counter(memory_of_result(done, ref) for ref in results(done))
    for step, _ in _in_order(done):
        if isinstance(step, Stage):
            readers.update(memory_of_result(done, ref) for ref in step.sources)
        else:
            read = {memory_of_result(done, ref) for ref in step.refs}
            readers.update(read - set(step.memory))
    for stage in done.stages:
        memory = [memory_of_result(done, ref) for ref in stage.sources]
        stage.alone = [known is not None and readers[known] == 1 for known in memory]


def _in_order(done: Recording) -> Iterator[tuple[Stage | StockCall, list[Ref]]]:
    """The stages and stock calls as they run, with what each reads and makes."""
    calls = deque(enumerate(done.calls))
    for number, stage in enumerate([None, *done.stages]):
        if stage is not None:
            yield stage, [*stage.sources, *(Ref("value", v) for v in stage.values)]
        while calls and calls[0][1].after == number:
            i, call = calls.popleft()
            made = call.results(i)
            yield call, [*call.refs, *made]
