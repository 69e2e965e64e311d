# SPDX-License-Identifier: MIT
"""One call of a lowered module: forward through the core, and its autograd nodes.

All of forward is one call into C. Backward is cut into segments, one autograd node each,
chained by tokens, tensors without elements:

    token 0 = node 0(inputs, params of segment 0)
    token k = node k(token k - 1, params of segment k)
    outputs = last node(token, params of the last segment)

so that parameter gradients leave as soon as their segment is done (DDP then starts its
first all-reduce while the earlier layers still run). What crosses a cut lies in the shared
`saved` arena, which is freed when the last of them has run.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import devices
from .arenas import give_workspace, take_workspace, unfilled
from .binding import Binding, NormState, address, channels_last
from .gradients import TakenGrads
from .lower import Mask, TorchPlan


@dataclass
class _Backward:
    """What the segments of one backward share."""

    mask: Mask
    inputs: list[Tensor]  # as the core reads them
    params: list[Tensor]  # in fp32, as their gradients are
    grad_outputs: list[Tensor | None]
    grad_inputs: list[Tensor | None]
    param_addresses: list[Any]
    input_addresses: list[Any]
    grad_output_addresses: list[Any]
    grad_input_addresses: list[Any]
    grad_params: list[Tensor | None]  # those of segments that have begun
    grad_addresses: list[Any]  # of these
    sums: bytearray  # by param: its gradient is added to what is there

    def set_place(self, i: int, grad: Tensor) -> None:
        """The gradient of param ``i`` is to be written there."""
        _, kind, shape, _, device = self.param_addresses[i]
        self.grad_params[i] = grad
        self.grad_addresses[i] = (grad.data_ptr(), kind, shape, grad.stride(), device)

    def make_places(self, touched: list[int]) -> None:
        """For the gradients of those params that have none yet, laid out as these are."""
        with unfilled():
            for i in touched:
                if self.grad_params[i] is None:
                    self.set_place(i, torch.empty_like(self.params[i]))

    def take(self, i: int) -> Tensor | None:
        """The gradient of param ``i``, complete and no longer ours."""
        grad = self.grad_params[i]
        self.grad_params[i] = self.grad_addresses[i] = None
        return grad if self.mask.reached_params[i] else None


class Call:
    """What the nodes of one forward share."""

    def __init__(
        self, plan: TorchPlan, binding: Binding, name: str, counts: Counter[str]
    ) -> None:
        self.plan, self.binding = plan, binding
        self.name, self.counts = name, counts
        self.inputs: list[Tensor] = []
        self.params: list[Tensor] = []
        self.norms: NormState | None = binding.norms()
        self.saved: Tensor | None = None
        self.first = _first_segment(plan)
        self.consumed = False
        self._workspace: Tensor | None = None
        self._converted: list[Tensor] = []  # inputs as the core reads them
        self._backward: _Backward | None = None
        self._taken = TakenGrads()

    def forward(self) -> list[Tensor]:
        """Runs the whole forward and returns the outputs, (N, C, H, W) channels-last.

        The params are those that the binding has just found.
        """
        plan, program = self.plan, self.plan.program
        assert self.norms is not None
        inputs = self._packed(self.inputs, "inputs converted")
        binding = self.binding
        params, addresses = binding.addresses.of(self.params, binding.forms)
        plan.use_settings()
        with unfilled():
            outputs = [
                _empty_output(shape, program.dtype, program.device)
                for shape, _ in program.outputs
            ]
            saved = torch.empty(
                plan.saved_bytes, dtype=torch.uint8, device=program.device
            )
        workspace = self._workspace = take_workspace(
            plan.forward_workspace_bytes, program.device
        )
        try:
            with devices.current(program.device):
                plan.core.forward(
                    [address(x) for x in inputs],
                    addresses,
                    self.norms.arguments,
                    [address(y.permute(0, 2, 3, 1)) for y in outputs],
                    _arena(saved),
                    _arena(workspace),
                    devices.stream(program.device),
                )
        finally:
            if not plan.repeats:
                self._give_workspace()
        if plan.repeats:
            self._converted = inputs
        self.norms.finish()
        self.saved = saved
        return [y.to(dtype) for y, (_, dtype) in zip(outputs, program.outputs)]

    def begin_backward(self, saved: tuple[Tensor, ...], grads: tuple[Any, ...]) -> None:
        """Before the first segment: ``saved`` are the inputs and parameters again."""
        plan, program = self.plan, self.plan.program
        assert self.norms is not None
        self.consumed = True
        count = len(program.input_sizes)
        self.inputs, self.params = list(saved[:count]), list(saved[count:])
        inputs = self._converted or self._packed(self.inputs, "inputs converted")
        params, addresses = self.binding.addresses.of(self.params)
        packed = iter(
            self._packed([g for g in grads if g is not None], "gradients converted")
        )
        given = [None if g is None else next(packed) for g in grads]
        mask = plan.mask(tuple(g is not None for g in grads))
        with unfilled():
            made = [
                torch.empty(x.shape, dtype=x.dtype, device=x.device)
                if reached
                else None
                for x, reached in zip(inputs, mask.reached_inputs)
            ]
        self._have_workspace(mask.workspace_bytes, program.device)
        self._taken.begin(program.device)
        self._backward = _Backward(
            mask,
            inputs,
            params,
            given,
            made,
            param_addresses=addresses,
            input_addresses=[address(x) for x in inputs],
            grad_output_addresses=[None if g is None else address(g) for g in given],
            grad_input_addresses=[None if g is None else address(g) for g in made],
            grad_params=[None] * len(params),
            grad_addresses=[None] * len(params),
            sums=bytearray(len(params)),
        )

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
        assert state is not None and self.norms is not None
        plan.use_settings()
        self._take_sums(state, segment, nodes)
        state.make_places(state.mask.touched[segment])
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
                _arena(self.saved),
                _arena(self._workspace),
                devices.stream(device),
                state.sums,
            )

    def _take_sums(self, state: _Backward, segment: int, nodes: list[Any]) -> None:
        """Gradients that only this segment writes are added to what is in ``.grad``."""
        whole = state.mask.whole[segment]
        sums = self._taken.take([nodes[place] for place, _ in whole])
        for (_, i), grad in zip(whole, sums):
            state.set_place(i, grad)
            state.sums[i] = 1

    def _leave(self, i: int) -> Tensor | None:
        """The gradient of param ``i``, in its dtype."""
        assert self._backward is not None
        grad, dtype = self._backward.take(i), self.params[i].dtype
        return grad if grad is None or dtype is torch.float32 else grad.to(dtype)

    def input_grads(self) -> list[Tensor | None]:
        """Gradients of the inputs, complete after segment 0."""
        assert self._backward is not None
        return [
            None if grad is None else grad.permute(0, 3, 1, 2).to(x.dtype)
            for grad, x in zip(self._backward.grad_inputs, self.inputs)
        ]

    def free(self) -> None:
        """Lets go of everything; backward is over."""
        self._give_workspace()
        self.saved = self.norms = self._backward = None
        self.inputs, self.params, self._converted = [], [], []

    def _have_workspace(self, size: int, device: torch.device) -> None:
        if self._workspace is None or self._workspace.numel() < size:
            self._workspace = None
            self._workspace = take_workspace(size, device)

    def _give_workspace(self) -> None:
        if self._workspace is not None:
            give_workspace(self._workspace)
        self._workspace = None

    def _packed(self, tensors: list[Tensor], what: str) -> list[Tensor]:
        made = []
        for tensor in tensors:
            with unfilled():
                packed, copied = channels_last(tensor, self.plan.program.dtype)
            made.append(packed)
            self.counts[what] += copied
        return made


class Yolov9memSegment(torch.autograd.Function):
    """One backward segment."""

    @staticmethod
    def forward(ctx: Any, call: Call, segment: int, *tensors: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        ctx.call, ctx.segment = call, segment
        if segment < call.plan.segments - 1:
            return _token(call)
        ctx.save_for_backward(*call.inputs, *call.params)
        outputs = call.forward()
        call.inputs, call.params = [], []
        flows = call.plan.differentiable
        fixed = [y for y, flow in zip(outputs, flows) if not flow]
        ctx.mark_non_differentiable(*fixed)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        call: Call = ctx.call
        segment: int = ctx.segment
        last = call.plan.segments - 1
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"yolov9mem: {call.name}: create_graph=True (double backward) is not "
                "supported; release() the module to run it in stock PyTorch"
            )
        if segment == last:
            if call.consumed:
                raise RuntimeError(
                    f"yolov9mem: {call.name}: backward ran a second time; what forward "
                    "kept is freed by the first backward (retain_graph is not supported)"
                )
            call.begin_backward(ctx.saved_tensors, grads)
        nodes = [node for node, _ in ctx.next_functions]
        count = len(call.plan.leaving[segment])
        leaving = call.backward(segment, nodes[len(nodes) - count :])
        token = [] if segment == call.first else [_token(call)]
        inputs = []
        if segment == 0:
            found = call.input_grads()
            inputs = [g for g, w in zip(found, call.plan.input_grads) if w]
        if segment == call.first:
            call.free()
        return (None, None, *token, *inputs, *leaving)


def _token(call: Call) -> Tensor:
    """Holds nothing, and so costs no kernel on a GPU."""
    return torch.empty(0, device=call.plan.program.device)


def _first_segment(plan: TorchPlan) -> int:
    """The first segment in forward order that hands out a gradient, if one does."""
    if any(plan.input_grads):
        return 0
    found = (k for k, params in enumerate(plan.leaving) if params)
    return next(found, plan.segments)


def _empty_output(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    n, c, h, w = shape
    strides = (h * w * c, 1, w * c, c)
    return torch.empty_strided(shape, strides, dtype=dtype, device=device)


def _arena(arena: Tensor | None) -> Any:
    return None if arena is None or arena.numel() == 0 else address(arena)


def run(
    plan: TorchPlan,
    binding: Binding,
    inputs: list[Tensor],
    params: list[Tensor],
    name: str,
    counts: Counter[str],
) -> list[Tensor]:
    """Forward of the graph; the outputs are tied to the autograd nodes."""
    call = Call(plan, binding, name, counts)
    call.inputs, call.params = inputs, params
    if call.first == plan.segments:  # frozen
        frozen = call.forward()
        call.free()
        return frozen
    wanted = [x for x, grad in zip(inputs, plan.input_grads) if grad]
    carried: list[Tensor] = []
    for segment in range(call.first, plan.segments):
        tensors = [params[i] for i in plan.leaving[segment]]
        if segment == 0:
            tensors = wanted + tensors
        result = Yolov9memSegment.apply(call, segment, *carried, *tensors)
        carried = [result] if segment < plan.segments - 1 else []
    return list(result)
