# SPDX-License-Identifier: MIT
"""Tensors of a module, found by path at every forward, as the C core takes them."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from . import devices
from .ir import NormCall, Recording, Ref
from .lower import Program

DTYPE_NAMES = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.uint8: "uint8",
}


class Stale(Exception):
    """A parameter has another shape or dtype than when the module was recorded."""


def address(tensor: Tensor) -> tuple[Any, ...]:
    """The tensor as the core's array argument; the caller keeps it alive."""
    kind = DTYPE_NAMES[tensor.dtype]
    device = devices.number(tensor)
    return (tensor.data_ptr(), kind, tensor.shape, tensor.stride(), device)


def channels_last(tensor: Tensor, dtype: torch.dtype) -> tuple[Tensor, bool]:
    """(N, C, H, W) as a packed (N, H, W, C) in ``dtype``; and whether that took a copy.

    Packed is decided on the permuted view, where sizes of one leave no ambiguity. A slice
    of a batch may start anywhere: on a GPU it is copied unless it starts at 16 bytes.
    """
    view = tensor.detach().permute(0, 2, 3, 1)
    if view.dtype is dtype and view.is_contiguous() and not view.is_neg():
        # cuDNN's vectors; a CPU takes any address.
        if devices.kind(view.device) == "cpu" or view.data_ptr() % 16 == 0:
            return view, False
    made = torch.empty(view.shape, dtype=dtype, device=view.device)
    return made.copy_(view), True


def find(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that owns ``path``, and the last name of the path."""
    *parents, name = path.split(".")
    for parent in parents:
        child = root._modules.get(parent)
        root = getattr(root, parent) if child is None else child
    return root, name


class _Slot:
    """One tensor, by module and name. Replicas keep parameters as plain attributes."""

    __slots__ = ("members", "module", "name")

    def __init__(self, root: nn.Module, path: str) -> None:
        module, self.name = find(root, path)
        self.module = weakref.ref(module)
        buffer = module._buffers.get(self.name) is not None
        self.members = "_buffers" if buffer else "_parameters"

    def get(self) -> Any:
        module = self.module()
        assert module is not None  # the fingerprint was compared just before
        found = module.__dict__[self.members].get(self.name)
        return getattr(module, self.name) if found is None else found


class _Norm:
    """Where one batch norm call finds its state."""

    def __init__(self, root: nn.Module, call: NormCall) -> None:
        self.call = call
        self.mean = _Slot(root, call.mean) if call.mean is not None else None
        self.variance = (
            _Slot(root, call.variance) if call.variance is not None else None
        )
        owner = find(root, call.path + ".")[0] if call.path else root
        self.module = weakref.ref(owner)

    def settings(self) -> tuple[float, float]:
        """eps and momentum as they are now; momentum None is a cumulative average."""
        module: Any = self.module()
        eps = module.eps if self.call.eps is None else self.call.eps
        momentum = module.momentum if self.call.momentum is None else self.call.momentum
        if momentum is None:
            batches = getattr(module, "num_batches_tracked", None)
            count = 0 if batches is None else int(batches)
            momentum = 1.0 / (count + self.call.call + 1)
        return float(eps), float(momentum)


class NormState:
    """The batch norms of one call: the core's argument and the tensors behind it."""

    def __init__(self, norms: list[_Norm]) -> None:
        self.arguments: list[tuple[Any, ...]] = []
        self.moved: list[Tensor] = []  # running statistics that the call changes
        self._alive: list[Tensor] = []
        self._back: list[tuple[Tensor, Tensor]] = []  # (fp32 stand-in, buffer)
        for norm in norms:
            updates = norm.call.batch_statistics and norm.mean is not None
            mean = self._buffer(norm.mean, updates)
            variance = self._buffer(norm.variance, updates)
            eps, momentum = norm.settings()
            self.arguments.append(
                (mean, variance, eps, momentum, norm.call.batch_statistics, updates)
            )

    def _buffer(self, slot: _Slot | None, updates: bool) -> Any:
        if slot is None:
            return None
        buffer = slot.get()
        if updates:
            self.moved.append(buffer)
        plain = buffer
        if buffer.dtype is not torch.float32 or not buffer.is_contiguous():
            plain = buffer.detach().float().contiguous()
            if updates:
                self._back.append((plain, buffer))
        self._alive.append(plain)
        return address(plain)

    def finish(self) -> None:
        """After the forward: statistics that are not fp32 go back to their buffers."""
        for plain, buffer in self._back:
            buffer.detach().copy_(plain)
        if self.moved:
            torch.autograd.graph.increment_version(self.moved)


class Binding:
    """A program's tensors in one module (or in one DataParallel replica of it)."""

    def __init__(self, program: Program, root: nn.Module) -> None:
        self._params = [_Slot(root, path) for path in program.params]
        self._norms = [_Norm(root, call) for call in program.norms]
        self._shapes = [program.shapes[path] for path in program.params]
        self._dtypes = [program.dtypes[path] for path in program.params]

    def params(self) -> list[Tensor]:
        """By param number. Raises Stale when one is not what was recorded."""
        found = [slot.get() for slot in self._params]
        if [tensor.dtype for tensor in found] != self._dtypes:
            raise Stale
        if [tensor.shape for tensor in found] != self._shapes:
            raise Stale
        return found

    def norms(self) -> NormState:
        """The state of the batch norms now."""
        return NormState(self._norms)


class Outside:
    """What a recording needs of one module (or replica) outside of its graphs."""

    def __init__(self, recording: Recording, root: nn.Module) -> None:
        self._bumps = [(_Slot(root, p), n) for p, n in recording.bumps.items()]
        refs = [ref for call in recording.calls for ref in call.refs]
        refs += [leaf for leaf in recording.out_leaves if isinstance(leaf, Ref)]
        refs += [write.ref for write in recording.writes]
        self._slots = {r.key: _Slot(root, r.key) for r in refs if r.kind == "path"}

    def tensor(self, path: str) -> Any:
        """The tensor at ``path``."""
        return self._slots[path].get()

    def count_batches(self) -> None:
        """num_batches_tracked += 1 per call of the batch norm."""
        by_count: dict[int, list[Tensor]] = {}
        for slot, count in self._bumps:
            by_count.setdefault(count, []).append(slot.get())
        for count, counters in by_count.items():
            torch._foreach_add_(counters, count)
