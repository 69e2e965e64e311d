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

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor

from .shared_call import Call

_requires_grad = attrgetter("requires_grad")


class Yolov9memSegment(torch.autograd.Function):
    """One backward segment; the last one of a stage has the stage's outputs."""

    @staticmethod
    def forward(
        ctx: Any, call: Call, segment: int, rebuilders: dict[int, Any], *tensors: Tensor
    ) -> Any:
        ctx.set_materialize_grads(False)
        ctx.call, ctx.segment = call, segment
        plan = call.plan
        stage = plan.segment_stage[segment]
        if segment != plan.stage_segments[stage][-1]:
            return (_token(call),)
        ctx.save_for_backward(*call.inputs.saved())
        ctx.rebuilders = rebuilders
        outputs = call.run_stage()
        call.flows = plan.flows(tuple(call.learning))
        places = plan.stage_outputs[stage]
        fixed = [y for y, i in zip(outputs, places) if not call.flows[i]]
        ctx.mark_non_differentiable(*fixed)
        return (*outputs, _token(call))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        call: Call = ctx.call
        refused = _refused(grads)
        if refused is not None:
            raise RuntimeError(
                f"yolov9mem: {call.name}: {refused} is not supported; release() the "
                "module to run it in stock PyTorch"
            )
        with call.alone():
            return Yolov9memSegment._run_back(ctx, call, grads)

    @staticmethod
    def _run_back(ctx: Any, call: Call, grads: tuple[Any, ...]) -> Any:
        plan, segment = call.plan, int(ctx.segment)
        stage = plan.segment_stage[segment]
        segments = plan.stage_segments[stage]
        if segment == segments[-1]:
            if not call.is_next(segment):
                raise RuntimeError(
                    f"yolov9mem: {call.name}: backward ran a second time; what forward "
                    "kept is freed by the first backward unless that has "
                    "retain_graph=True"
                )
            if not call.is_begun:
                call.begin_backward(ctx.saved_tensors, ctx.rebuilders, segment)
            call.take_gradients(segment, grads[:-1])
            call.provide_inputs(stage, ctx.rebuilders)
            call.begin_stage(stage)
            if call.consumed:
                ctx.rebuilders = None
        elif not call.is_begun:
            raise call.two_at_once()
        nodes = [node for node, _ in ctx.next_functions]
        count = len(plan.leaving[segment])
        leaving = call.backward(segment, nodes[len(nodes) - count :])
        token = [] if segment == call.first else [_token(call)]
        inputs = call.input_grads(stage) if segment == segments[0] else []
        if segment == call.first:
            call.end_backward()
        return (None, None, None, *token, *inputs, *leaving)


class SavedParams(torch.autograd.Function):
    """Saves the parameters for all nodes of a call; no gradient comes through it."""

    @staticmethod
    def forward(ctx: Any, params: list[Tensor], learns: Tensor) -> Tensor:
        ctx.save_for_backward(*params)
        return learns.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise AssertionError("nothing is made of its result")


def _refused(grads: tuple[Any, ...]) -> str | None:
    """What of autograd a plan cannot run, if backward is that."""
    if torch.is_grad_enabled():
        return "create_graph=True (double backward)"
    if any(grad is not None and is_legacy_batchedtensor(grad) for grad in grads):
        return "is_grads_batched=True (of jacobian and hessian: vectorize=True)"
    return None


class Forward:
    """One forward, stage by stage. It alone holds the tokens, which hold the nodes: the
    call that these share must not."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._token: list[Tensor] = []  # of the latest node
        self._rebuilders: dict[int, Any] = {}  # by input that is not held

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
        inputs, rebuilders = call.inputs.add(inputs)
        # Nodes of earlier stages keep theirs.
        self._rebuilders = self._rebuilders | rebuilders
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
            if call.saved_params is None:
                learns = torch.empty(0, requires_grad=True)
                call.saved_params = SavedParams.apply(call.params, learns)
            given = call, segment, self._rebuilders, *self._token, *tensors
            result = Yolov9memSegment.apply(*given)
            outputs, self._token = list(result[:-1]), [result[-1]]
        return outputs if segments[-1] >= call.first else call.run_stage()


def made_by(output: Tensor) -> tuple[Call, int] | None:
    """Which output it is of which call's stages; None: it is none, or none that learns."""
    node: Any = output.grad_fn
    if not isinstance(node, Yolov9memSegment._backward_cls):
        return None
    call: Call = node.call
    first = call.plan.stage_outputs[call.plan.segment_stage[node.segment]].start
    return call, first + output.output_nr


def _token(call: Call) -> Tensor:
    """Holds nothing, and so costs no kernel on a GPU."""
    return torch.empty(0, device=call.plan.program.device)
