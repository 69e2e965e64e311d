# SPDX-License-Identifier: MIT
"""One call of a lowered module: forward through the core, and its autograd nodes.

Each stage of forward (mostly there is one) is one call into C. Backward is cut into
segments, one autograd node each, chained by tokens, tensors without elements:

    token 0 = node 0(inputs, params of segment 0)
    token k = node k(token k - 1, params of segment k)
    outputs, token = last node(token, params of the last segment)

so that parameter gradients leave as soon as their segment is done (DDP then starts its
first all-reduce while the earlier layers still run). What crosses a cut lies in the shared
`saved` arena, which is freed when the last of them has run.

The first node of a later stage has the inputs of that stage as well, and the last one of
an earlier stage its outputs. Backward may begin at the end of any stage, where no gradient
has reached the later ones; whether the earlier ones' outputs get gradients is known when
their turn comes: zeros stand for those that do not.
"""

from __future__ import annotations

from collections import Counter
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from .. import devices
from ..processes import sums_of
from .arenas import arena_address, give_workspace, take_workspace, unfilled
from .backward_state import BackwardState
from .binding import (
    Binding,
    NormState,
    address,
    as_read,
    empty_output,
    gradient_of,
)
from .gradients import TakenGrads
from .inputs import Inputs
from .planned import TorchPlan

_requires_grad = attrgetter("requires_grad")


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
        self.first = 0  # the first segment that hands out a gradient
        self.consumed = False
        self._pass = -1  # the number of the backward pass that has begun
        self.next_stage = 0  # of forward
        self._workspace: Tensor | None = None
        self._backward: BackwardState | None = None
        self._taken = TakenGrads()

    # Forward

    def run_stage(self) -> list[Tensor]:
        """Runs the next stage in the core and returns its outputs, (N, C, H, W)
        channels-last."""
        plan, program, number = self.plan, self.plan.program, self.next_stage
        assert self.norms is not None
        params, addresses = self.binding.addresses.of(self.params, self.binding.forms)
        plan.use_settings()
        given: list[Tensor | None] = [None] * len(program.outputs)
        with unfilled():
            for i in plan.stage_outputs[number]:
                shape, _ = program.outputs[i]
                given[i] = empty_output(shape, program.dtype, program.device)
            if number == 0:
                self._have_arenas()
        with devices.current(program.device):
            plan.core.forward(
                self.inputs.addresses,
                addresses,
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
            self.norms.finish()
            if not plan.keeps_workspace:
                self.give_workspace()
        made = zip(given, program.outputs)
        return [y.to(dtype) for y, (_, dtype) in made if y is not None]

    def _have_arenas(self) -> None:
        plan, device = self.plan, self.plan.program.device
        self.saved = torch.empty(plan.saved_bytes, dtype=torch.uint8, device=device)
        self._workspace = take_workspace(plan.forward_workspace_bytes, device)

    # Backward

    def begin_backward(
        self, saved: tuple[Tensor, ...], again: dict[int, Any], segment: int
    ) -> None:
        """Before the first segment that runs: ``saved`` are the inputs so far, but those
        that are made ``again``, and the parameters. Outputs of earlier stages will have
        gradients, as it seems."""
        plan, program = self.plan, self.plan.program
        assert self.norms is not None
        self.consumed = True
        self._pass = torch._C._current_graph_task_id()
        stage = plan.segment_stage[segment]
        count = len(saved) - len(plan.program.params)
        self.params = list(saved[count:])
        packed = self.inputs.begin_backward(saved[:count], again)
        params, addresses = self.binding.addresses.of(self.params)
        outputs = len(program.outputs)
        mask = [
            place < plan.stage_outputs[stage].start and flows
            for place, flows in enumerate(self.flows)
        ]
        self._taken.begin(program.device)
        self._backward = BackwardState(
            segment + 1,
            mask,
            packed,
            params,
            [None] * outputs,
            param_addresses=addresses,
            input_addresses=self.inputs.addresses,
            grad_inputs=[None] * len(program.input_sizes),
            grad_input_addresses=[None] * len(program.input_sizes),
            grad_output_addresses=[None] * outputs,
            grad_params=[None] * len(params),
            grad_addresses=[None] * len(params),
            sums=bytearray(len(params)),
        )

    def take_gradients(self, segment: int, grads: tuple[Any, ...]) -> None:
        """Of the outputs of the stage that the segment ends."""
        plan, state = self.plan, self._backward
        assert state is not None
        places = plan.stage_outputs[plan.segment_stage[segment]]
        begins = state.plan_mask is None
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
            self._choose_mask(state, places)
        elif not state.is_exact:
            so_far = enumerate(state.given)
            known = tuple(given and place >= places.start for place, given in so_far)
            state.reached = plan.mask(known)

    def provide_inputs(self, stage: int, again: dict[int, Any]) -> None:
        """Those that the stage is the first to read, before its first segment runs."""
        state = self._backward
        assert state is not None and state.plan_mask is not None
        self.inputs.provide(state, state.plan_mask.needed[stage], again)

    def _choose_mask(self, state: BackwardState, places: range) -> None:
        """Once the gradients of the first stage that runs are there."""
        for place in places:
            state.mask[place] = state.given[place]
        state.plan_mask = state.reached = mask = self.plan.mask(tuple(state.mask))
        self._have_workspace(mask.workspace_bytes, self.plan.program.device)

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
        assert state is not None and state.plan_mask is not None
        assert self.norms is not None
        state.next = segment
        plan.use_settings()
        self._take_sums(state, segment, nodes)
        state.make_places(state.plan_mask.touched[segment])
        state.begin_inputs(state.plan_mask.begun[segment], plan.program)
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
                arena_address(self.saved),
                arena_address(self._workspace),
                devices.stream(device),
                state.sums,
                state.mask,
                sums_of(plan.program.groups, self.saved, self._workspace),
            )
        state.end_outputs(state.plan_mask.ended[segment])
        state.end_reads(state.plan_mask.read[segment])

    def _take_sums(self, state: BackwardState, segment: int, nodes: list[Any]) -> None:
        """Gradients that only this segment writes are added to what is in ``.grad``."""
        assert state.plan_mask is not None
        whole = state.plan_mask.whole[segment]
        sums = self._taken.take([nodes[place] for place, _ in whole])
        for (_, i), grad in zip(whole, sums):
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

    def is_next(self, segment: int) -> bool:
        """Has its turn come? Else it has run before, or another backward has begun: of
        some gradients alone, it stopped where this one would begin."""
        state = self._backward
        if state is None:
            return not self.consumed
        is_same = self._pass == torch._C._current_graph_task_id()
        return is_same and state.next == segment + 1

    def free(self) -> None:
        """Lets go of everything; backward is over."""
        self.give_workspace()
        self.saved = self.norms = self._backward = None
        self.inputs.free()
        self.params = []

    def _have_workspace(self, size: int, device: torch.device) -> None:
        if self._workspace is None or self._workspace.numel() < size:
            self._workspace = None
            self._workspace = take_workspace(size, device)

    def give_workspace(self) -> None:
        if self._workspace is not None:
            give_workspace(self._workspace)
        self._workspace = None


class Yolov9memSegment(torch.autograd.Function):
    """One backward segment; the last one of a stage has the stage's outputs."""

    @staticmethod
    def forward(
        ctx: Any, call: Call, segment: int, again: dict[int, Any], *tensors: Tensor
    ) -> Any:
        ctx.set_materialize_grads(False)
        ctx.call, ctx.segment = call, segment
        plan = call.plan
        stage = plan.segment_stage[segment]
        if segment != plan.stage_segments[stage][-1]:
            return (_token(call),)
        ctx.save_for_backward(*call.inputs.saved(), *call.params)
        ctx.again = again
        outputs = call.run_stage()
        call.flows = plan.flows(tuple(call.learning))
        places = plan.stage_outputs[stage]
        fixed = [y for y, i in zip(outputs, places) if not call.flows[i]]
        ctx.mark_non_differentiable(*fixed)
        return (*outputs, _token(call))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        call: Call = ctx.call
        plan, segment = call.plan, int(ctx.segment)
        stage = plan.segment_stage[segment]
        segments = plan.stage_segments[stage]
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"yolov9mem: {call.name}: create_graph=True (double backward) is not "
                "supported; release() the module to run it in stock PyTorch"
            )
        if segment == segments[-1]:
            if not call.is_next(segment):
                raise RuntimeError(
                    f"yolov9mem: {call.name}: backward ran a second time; what forward "
                    "kept is freed by the first backward (retain_graph is not supported); "
                    "release() the module to run it in stock PyTorch"
                )
            if not call.consumed:
                call.begin_backward(ctx.saved_tensors, ctx.again, segment)
            call.take_gradients(segment, grads[:-1])
            call.provide_inputs(stage, ctx.again)
            ctx.again = None
        nodes = [node for node, _ in ctx.next_functions]
        count = len(plan.leaving[segment])
        leaving = call.backward(segment, nodes[len(nodes) - count :])
        token = [] if segment == call.first else [_token(call)]
        inputs = call.input_grads(stage) if segment == segments[0] else []
        if segment == call.first:
            call.free()
        return (None, None, None, *token, *inputs, *leaving)


class Forward:
    """One forward, stage by stage. It alone holds the tokens, which hold the nodes: the
    call that these share must not."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._token: list[Tensor] = []  # of the latest node
        self._again: dict[int, Any] = {}  # by input: what makes it again

    def stage(self, inputs: list[Tensor]) -> list[Tensor]:
        """Runs the next stage; the outputs are tied to the autograd nodes."""
        call, plan = self._call, self._call.plan
        try:
            outputs = self._run(inputs)
        except BaseException:
            call.give_workspace()
            raise
        if call.next_stage == len(plan.stage_segments):
            call.inputs.end_forward()
            call.params = []
            if call.first == plan.segments:  # frozen
                call.free()
        return outputs

    def _run(self, inputs: list[Tensor]) -> list[Tensor]:
        call, plan = self._call, self._call.plan
        places = plan.stage_inputs[call.next_stage]
        segments = plan.stage_segments[call.next_stage]
        inputs, again = call.inputs.add(inputs)
        self._again = self._again | again  # nodes of earlier stages keep theirs
        call.learning += map(_requires_grad, inputs)
        outputs: list[Tensor] = []
        for segment in segments:
            tensors = [call.params[i] for i in plan.leaving[segment]]
            if segment == segments[0]:
                wanted = [x for x, i in zip(inputs, places) if plan.input_grads[i]]
                tensors = wanted + tensors
            if segment <= call.first and not any(map(_requires_grad, tensors)):
                call.first = segment + 1  # nothing learns so far
                continue
            given = call, segment, self._again, *self._token, *tensors
            result = Yolov9memSegment.apply(*given)
            outputs, self._token = list(result[:-1]), [result[-1]]
        return outputs if segments[-1] >= call.first else call.run_stage()


def _token(call: Call) -> Tensor:
    """Holds nothing, and so costs no kernel on a GPU."""
    return torch.empty(0, device=call.plan.program.device)
