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
from typing import Any

import torch
from torch import Tensor

from .. import devices
from .arenas import give_workspace, take_workspace, unfilled
from .binding import Binding, NormState, address, channels_last
from .gradients import TakenGrads
from .lower import Mask, TorchPlan


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
        self._mask: Mask | None = None
        self._workspace: Tensor | None = None
        self._converted: list[Tensor] = []  # inputs as the core reads them
        self._arguments: list[Any] = []  # of Plan.backward after the segment
        self._alive: list[Any] = []
        self._grad_params: list[Any] = []
        self._grad_addresses: list[Any] = []  # of these
        self._sums = bytearray()  # by param: its gradient is added to what is there
        self._taken = TakenGrads()
        self._grad_inputs: list[Tensor | None] = []

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
        given = self._packed(
            [grad for grad in grads if grad is not None], "gradients converted"
        )
        found = iter(given)
        grad_outputs = [None if g is None else address(next(found)) for g in grads]
        self._mask = plan.mask(tuple(g is not None for g in grads))
        with unfilled():
            self._grad_inputs = [
                torch.empty(x.shape, dtype=x.dtype, device=x.device)
                if reached
                else None
                for x, reached in zip(inputs, self._mask.reached_inputs)
            ]
        self._have_workspace(self._mask.workspace_bytes, program.device)
        self._grad_params = [None] * len(params)
        self._grad_addresses = [None] * len(params)
        self._sums = bytearray(len(params))
        self._taken.begin(program.device)
        self._alive = [inputs, params, given]
        self._arguments = [
            [address(x) for x in inputs],
            addresses,
            self.norms.arguments,
            grad_outputs,
            [None if g is None else address(g) for g in self._grad_inputs],
        ]

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
        plan, mask = self.plan, self._mask
        assert mask is not None and self._workspace is not None
        plan.use_settings()
        self._take_sums(segment, nodes)
        self._make_places(mask.touched[segment])
        inputs, params, norms, grad_outputs, grad_inputs = self._arguments
        device = plan.program.device
        with devices.current(device):
            plan.core.backward(
                segment,
                inputs,
                params,
                norms,
                grad_outputs,
                grad_inputs,
                self._grad_addresses,
                _arena(self.saved),
                _arena(self._workspace),
                devices.stream(device),
                self._sums,
            )

    def _take_sums(self, segment: int, nodes: list[Any]) -> None:
        """Gradients that only this segment writes are added to what is in ``.grad``."""
        assert self._mask is not None
        whole = self._mask.whole[segment]
        sums = self._taken.take([nodes[place] for place, _ in whole])
        for (_, i), grad in zip(whole, sums):
            self._set_place(i, grad)
            self._sums[i] = 1

    def _make_places(self, touched: list[int]) -> None:
        """For the gradients of those params that have none yet, laid out as these are."""
        _, params, _ = self._alive  # fp32, as gradients are
        with unfilled():
            for i in touched:
                if self._grad_params[i] is None:
                    self._set_place(i, torch.empty_like(params[i]))

    def _set_place(self, i: int, grad: Tensor) -> None:
        _, addresses, *_ = self._arguments
        _, kind, shape, _, device = addresses[i]
        self._grad_params[i] = grad
        self._grad_addresses[i] = (grad.data_ptr(), kind, shape, grad.stride(), device)

    def _leave(self, i: int) -> Tensor | None:
        """The gradient of param ``i``, complete and no longer ours."""
        assert self._mask is not None
        grad = self._grad_params[i]
        self._grad_params[i] = self._grad_addresses[i] = None
        if grad is None or not self._mask.reached_params[i]:
            return None
        dtype = self.params[i].dtype
        return grad if dtype is torch.float32 else grad.to(dtype)

    def input_grads(self) -> list[Tensor | None]:
        """Gradients of the inputs, complete after segment 0."""
        return [
            None if grad is None else grad.permute(0, 3, 1, 2).to(x.dtype)
            for grad, x in zip(self._grad_inputs, self.inputs)
        ]

    def free(self) -> None:
        """Lets go of everything; backward is over."""
        self._give_workspace()
        self.saved = self.norms = self._mask = None
        self._arguments, self._alive, self._converted = [], [], []
        self._grad_params, self._grad_addresses, self._grad_inputs = [], [], []
        self.inputs, self.params = [], []

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
