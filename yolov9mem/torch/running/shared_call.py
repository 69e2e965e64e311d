# SPDX-License-Identifier: MIT
"""What the autograd nodes of one forward share: its arenas, and a backward that goes on.

A backward overwrites what forward kept, which is freed then. Where the graph is retained,
for another one, it works on a copy.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from .. import devices
from ..processes import sums_of
from ..versions import is_retained
from .arenas import arena_address, give_workspace, take_workspace, unfilled
from .backward_state import BackwardState
from .binding import (
    Binding,
    NormState,
    address,
    as_float,
    as_read,
    empty_output,
    gradient_of,
)
from .gradients import TakenGrads
from .inputs import Inputs
from .planned import TorchPlan


class Call:
    """What the nodes of one forward share."""

    def __init__(
        self,
        plan: TorchPlan,
        binding: Binding,
        params: list[Tensor],
        name: str,
        counts: Counter[str],
    ) -> None:
        """``params`` are those that the binding has just found."""
        self.plan, self.binding, self.params = plan, binding, params
        self.name, self.counts = name, counts
        self.inputs = Inputs(plan, counts)
        self.learning: list[bool] = []  # by input: does it want a gradient?
        self.flows: list[bool] = []  # by output: does one flow through it?
        self.norms: NormState | None = binding.norms()
        self.saved: Tensor | None = None
        self.saved_params: Tensor | None = None  # its autograd node has them
        self._arena: Tensor | None = None  # of backward: that, or a copy
        self.first = 0  # the first segment that hands out a gradient
        self.consumed = False  # by a backward, of which there is no other
        self._pass = -1  # the number of the backward pass that has begun
        self.next_stage = 0  # of forward
        self._read: tuple[list[Tensor], list[Any]] = [], []  # params, and addresses
        # By output: what stands for it, as long as a backward may ask for it.
        self.recomputed_outputs: defaultdict[int, WeakSet[Any]] = defaultdict(WeakSet)
        self._workspace: Tensor | None = None
        self._backward: BackwardState | None = None
        self._taken = TakenGrads()
        self._turn = threading.Lock()

    # Forward

    def run_stage(self) -> list[Tensor]:
        """Runs the next stage in the core and returns its outputs, (N, C, H, W)
        channels-last."""
        plan, program, number = self.plan, self.plan.program, self.next_stage
        assert self.norms is not None
        plan.use_settings()
        given: list[Tensor | None] = [None] * len(program.outputs)
        with unfilled():
            for i in plan.stage_outputs[number]:
                shape, _ = program.outputs[i]
                given[i] = empty_output(shape, program.dtype, program.device)
            if number == 0:
                self._begin_forward()
        with devices.current(program.device):
            plan.core.forward(
                self.inputs.addresses,
                self._read[1],
                self.norms.arguments,
                [None if y is None else address(y.permute(0, 2, 3, 1)) for y in given],
                arena_address(self.saved),
                arena_address(self._workspace),
                devices.stream(program.device),
                number,
                sums_of(program.groups, self.saved, self._workspace),
            )
        self.inputs.end_stage()
        self.next_stage += 1
        if self.next_stage == len(plan.stage_segments):
            self._read = [], []
            self.norms.finish()
            if not plan.keeps_workspace:
                self.give_workspace(plan.drops_workspace)
        made = zip(given, program.outputs)
        return [y.to(dtype) for y, (_, dtype) in made if y is not None]

    def _begin_forward(self) -> None:
        """Has the arenas; the parameters lie where they do until the end."""
        self._read = self.binding.addresses.of(self.params, self.binding.forms)
        plan, device = self.plan, self.plan.program.device
        self.saved = torch.empty(plan.saved_bytes, dtype=torch.uint8, device=device)
        self._workspace = take_workspace(plan.forward_workspace_bytes, device)

    def recompute(self, place: int, params: dict[int, Tensor]) -> Tensor:
        """An output once more, before its stage's backward; ``params`` are those that it
        needs, by number."""
        plan, program = self.plan, self.plan.program
        needs = plan.recompute_needs[place]
        if needs is None or self.saved is None or self.norms is None:
            raise RuntimeError(
                f"yolov9mem: {self.name}: what forward kept is freed by the first backward "
                "unless that has retain_graph=True"
            )
        plain = {i: as_float(p) for i, p in params.items()}
        shape, dtype = program.outputs[place]
        with unfilled():
            made = empty_output(shape, program.dtype, program.device)
            workspace = torch.empty(
                needs.workspace_bytes, dtype=torch.uint8, device=program.device
            )
        plan.use_settings()
        with devices.current(program.device):
            plan.core.recompute(
                place,
                _only({i: address(p) for i, p in plain.items()}, len(program.params)),
                _only(
                    {i: self.norms.arguments[i] for i in needs.norms},
                    len(self.norms.arguments),
                ),
                _only({place: address(made.permute(0, 2, 3, 1))}, len(program.outputs)),
                arena_address(self.saved),
                arena_address(workspace),
                devices.stream(program.device),
            )
        return made.to(dtype)

    # Backward

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Two threads may retain a graph and go backward through it at once; here they
        would work in the same memory."""
        if not self._turn.acquire(blocking=False):
            raise self.two_at_once()
        try:
            yield
        finally:
            self._turn.release()

    def two_at_once(self) -> RuntimeError:
        """Another backward has begun before this one's end."""
        return RuntimeError(
            f"yolov9mem: {self.name}: two backwards of one forward at the same time are "
            "not supported: one after the other is, with retain_graph=True in the first"
        )

    def begin_stage(self, stage: int) -> None:
        """Its backward is about to change what forward kept, if no other one follows."""
        if self.consumed:
            for place in self.plan.stage_outputs[stage]:
                for output in list(self.recomputed_outputs.get(place, ())):
                    output.hold()

    def begin_backward(
        self, saved: tuple[Tensor, ...], rebuilders: dict[int, Any], segment: int
    ) -> None:
        """Before the first segment that runs: ``saved`` are the inputs so far, but those
        that the ``rebuilders`` make. Outputs of earlier stages will have gradients, as it
        seems."""
        plan = self.plan
        assert self.norms is not None
        assert self.saved is not None
        retained = is_retained()
        self.consumed = not retained
        self._pass = torch._C._current_graph_task_id()
        self._arena = self.saved.clone() if retained else self.saved
        stage = plan.segment_stage[segment]
        assert self.saved_params is not None
        node: Any = self.saved_params.grad_fn
        self.params = list(node.saved_tensors)
        count = plan.stage_inputs[stage].stop
        packed = self.inputs.begin_backward(saved, rebuilders, count, retained)
        params, addresses = self.binding.addresses.of(self.params)
        mask = [
            place < plan.stage_outputs[stage].start and flows
            for place, flows in enumerate(self.flows)
        ]
        self._taken.begin(plan.program.device)
        self._backward = BackwardState(
            segment + 1,
            mask,
            packed,
            list(self.inputs.addresses),
            params,
            addresses,
        )

    def take_gradients(self, segment: int, grads: tuple[Any, ...]) -> None:
        """Of the outputs of the stage that the segment ends."""
        plan, state = self.plan, self._backward
        assert state is not None
        places = plan.stage_outputs[plan.segment_stage[segment]]
        begins = state.plan is None
        with unfilled():
            some = [g for g in grads if g is not None]
            packed, copies = as_read(some, plan.program.dtype)
        self.counts["gradients converted"] += copies
        for place, grad in zip(places, grads):
            if grad is not None:
                state.set_gradient(place, packed.pop(0))
            elif not begins and state.mask[place]:
                state.set_gradient(place, self._zeros(place))
                state.is_exact = False
            state.given[place] = grad is not None
        if begins:
            self._choose_plan(state, places)
        elif not state.is_exact:
            so_far = enumerate(state.given)
            known = tuple(given and place >= places.start for place, given in so_far)
            state.reached = plan.backward_plan(known)

    def provide_inputs(self, stage: int, rebuilders: dict[int, Any]) -> None:
        """Those that the stage is the first to read, before its first segment runs."""
        state = self._backward
        assert state is not None and state.plan is not None
        self.inputs.provide(state, state.plan.needed[stage], rebuilders)

    def _choose_plan(self, state: BackwardState, places: range) -> None:
        """Once the gradients of the first stage that runs are there."""
        for place in places:
            state.mask[place] = state.given[place]
        state.plan = state.reached = chosen = self.plan.backward_plan(tuple(state.mask))
        self._have_workspace(chosen.workspace_bytes, self.plan.program.device)

    def _zeros(self, place: int) -> Tensor:
        program = self.plan.program
        n, c, h, w = program.outputs[place][0]
        return torch.zeros((n, h, w, c), dtype=program.dtype, device=program.device)

    def backward(self, segment: int, nodes: list[Any]) -> list[Tensor | None]:
        """Runs a segment; gradients of the parameters that leave with it, which go to
        the autograd ``nodes``."""
        try:
            self._run(segment, nodes)
        except BaseException:
            self._taken.put_back()
            raise
        self._taken.hand_over()
        return [self._leave(i) for i in self.plan.leaving[segment]]

    def _run(self, segment: int, nodes: list[Any]) -> None:
        plan, state = self.plan, self._backward
        assert state is not None and state.plan is not None
        assert self.norms is not None
        state.latest = segment
        plan.use_settings()
        self._take_sums(state, segment, nodes)
        state.make_places(state.plan.touched[segment])
        state.begin_inputs(state.plan.begun[segment], plan.program)
        device = plan.program.device
        with devices.current(device):
            plan.core.backward(
                segment,
                state.input_addresses,
                state.param_addresses,
                self.norms.arguments,
                state.grad_output_addresses,
                state.grad_input_addresses,
                state.grad_addresses,
                arena_address(self._arena),
                arena_address(self._workspace),
                devices.stream(device),
                state.sums,
                state.mask,
                sums_of(plan.program.groups, self._arena, self._workspace),
            )
        state.end_outputs(state.plan.ended[segment])
        state.end_reads(state.plan.read[segment])

    def _take_sums(self, state: BackwardState, segment: int, nodes: list[Any]) -> None:
        """Gradients that only this segment writes are added to what is in ``.grad``."""
        assert state.plan is not None
        alone = state.plan.written_once[segment]
        sums = self._taken.take([nodes[place] for place, _ in alone])
        for (_, i), grad in zip(alone, sums):
            state.set_place(i, grad)
            state.sums[i] = 1

    def _leave(self, i: int) -> Tensor | None:
        """The gradient of param ``i``, in its dtype."""
        assert self._backward is not None
        grad, dtype = self._backward.take(i), self.params[i].dtype
        return grad if grad is None or dtype is torch.float32 else grad.to(dtype)

    def input_grads(self, stage: int) -> list[Tensor | None]:
        """Of the inputs of a stage that want one, complete after its first segment, the
        last that needs these inputs."""
        plan, state = self.plan, self._backward
        assert state is not None and state.reached is not None
        found: list[Tensor | None] = []
        for i in plan.stage_inputs[stage]:
            grad = state.end_input(i)
            if plan.input_grads[i]:
                if not state.reached.reached_inputs[i]:
                    grad = None
                layout = self.inputs.layouts[i]
                found.append(None if grad is None else gradient_of(grad, *layout))
        self.inputs.end_backward(plan.stage_inputs[stage].start)
        return found

    @property
    def is_begun(self) -> bool:
        """Has the backward that runs now come here before?"""
        is_same = self._pass == torch._C._current_graph_task_id()
        return is_same and self._backward is not None

    def is_next(self, segment: int) -> bool:
        """Has its turn come? Else it has run before, or another backward that did not
        retain the graph has begun: of some gradients alone, it stopped where this one
        would begin."""
        if not self.is_begun:
            return not self.consumed
        assert self._backward is not None
        return self._backward.latest == segment + 1

    def end_backward(self) -> None:
        """After the last segment."""
        if self.consumed:
            self.free()
        else:
            self.give_workspace()
            self._arena = self._backward = None
            self.params = []

    def free(self) -> None:
        """Lets go of everything; there is no backward, or it is over."""
        self.give_workspace()
        self.saved = self._arena = self.norms = self._backward = None
        self.saved_params = None
        self.inputs.free()
        self.params = []

    def _have_workspace(self, size: int, device: torch.device) -> None:
        if self._workspace is None or self._workspace.numel() < size:
            self._workspace = None
            self._workspace = take_workspace(size, device)

    def give_workspace(self, drops: bool = False) -> None:
        """``drops``: unless it is larger than ours, and so somebody else's as well."""
        found = self._workspace
        is_ours = found is None or found.numel() <= self.plan.forward_workspace_bytes
        if found is not None and not (drops and is_ours):
            give_workspace(found)
        self._workspace = None


def _only(entries: dict[int, Any], count: int) -> list[Any]:
    """So many, of which the others are None."""
    found = [None] * count
    for i, entry in entries.items():
        found[i] = entry
    return found
