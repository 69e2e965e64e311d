# SPDX-License-Identifier: MIT
"""Tensors of a module, found by path at every forward, as the C core takes them."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from itertools import chain, compress, repeat
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from .. import devices
from ..layout import follows_channels_last
from ..recording.ir import NormCall, Recording
from ..recording.refs import results
from ..versions import count_up
from .lower import Program

DTYPE_NAMES = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.uint8: "uint8",
}


class Stale(Exception):
    """A parameter has another shape, dtype or order of memory than in the recording."""


def address(tensor: Tensor) -> tuple[Any, ...]:
    """The tensor as the core's array argument; the caller keeps it alive."""
    kind = DTYPE_NAMES[tensor.dtype]
    device = devices.number(tensor)
    return (tensor.data_ptr(), kind, tensor.shape, tensor.stride(), device)


def as_float(tensor: Tensor) -> Tensor:
    """As the core reads parameters and statistics: fp32, a vector without gaps."""
    if tensor.dtype is torch.float32 and (tensor.ndim > 1 or tensor.is_contiguous()):
        return tensor
    made = tensor.detach().float()
    return made if made.ndim > 1 else made.contiguous()


Forms = tuple[list[torch.dtype], list[tuple[int, ...]]]


def forms_of(tensors: list[Tensor]) -> Forms:
    """Their dtypes and shapes."""
    return [tensor.dtype for tensor in tensors], [tensor.shape for tensor in tensors]


class Addresses:
    """Addresses of a list of tensors, made anew when one of them lies elsewhere.

    All that an address says is compared every time: ``param.data = other``, to() and
    changes of the memory format leave the tensor the same object.
    """

    def __init__(self) -> None:
        self._known: tuple[Any, list[Any]] = (None, [])

    def of(
        self, tensors: list[Tensor], forms: Forms | None = None
    ) -> tuple[list[Tensor], list[Any]]:
        """``tensors`` in fp32, to be kept alive, and the addresses of these.

        ``forms``: theirs, if the caller has them.
        """
        places = (
            [tensor.data_ptr() for tensor in tensors],
            [tensor.stride() for tensor in tensors],
            list(map(devices.number, tensors)),
            forms or forms_of(tensors),
        )
        known, addresses = self._known  # at once: threads share it
        if places == known:
            return tensors, addresses
        readable = [as_float(tensor) for tensor in tensors]
        addresses = [address(tensor) for tensor in readable]
        if all(map(is_, readable, tensors)):
            self._known = places, addresses
        return readable, addresses


def planar_dtype(tensor: Tensor, dtype: torch.dtype) -> torch.dtype | None:
    """That of an image (N, C, H, W) that a plan in ``dtype`` can pack itself, where it is
    read; None: it is packed already, or laid out as neither."""
    planar = tensor.dtype in (torch.float32, dtype) and tensor.is_contiguous()
    if not planar or tensor.is_neg() or _is_packed(tensor, dtype):
        return None
    return tensor.dtype


def _is_packed(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Is (N, C, H, W) a packed (N, H, W, C) in ``dtype``, where the core reads it?

    Decided on the permuted view, where sizes of one leave no ambiguity. A slice of a batch
    may start anywhere: a GPU reads it where it starts at 16 bytes (cuDNN's vectors), a CPU
    at any address.
    """
    view = tensor.permute(0, 2, 3, 1)
    if view.dtype is not dtype or not view.is_contiguous() or view.is_neg():
        return False
    return devices.kind(view.device) == "cpu" or view.data_ptr() % 16 == 0


def as_read(
    tensors: list[Tensor],
    dtype: torch.dtype,
    planar: Iterable[torch.dtype | None] = repeat(None),
) -> tuple[list[Tensor], int]:
    """Tensors (N, C, H, W) as the core reads them, and how many of these are copies:
    packed (N, H, W, C) in ``dtype``, but those in place that are ``planar``, in that dtype.
    """
    pairs = zip(tensors, planar)
    read = [
        channels_last(x, dtype) if given is None else _planar(x, given)
        for x, given in pairs
    ]
    copies = sum(y.data_ptr() != x.data_ptr() for x, y in zip(tensors, read))
    return read, copies


def channels_last(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, C, H, W) as a packed (N, H, W, C) in ``dtype``; itself, where it is that."""
    view = tensor.detach().permute(0, 2, 3, 1)
    if _is_packed(tensor, dtype):
        return view
    return torch.empty(view.shape, dtype=dtype, device=view.device).copy_(view)


def _planar(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Itself, unless autograd was told to save another tensor in its place."""
    return tensor.detach().to(dtype).resolve_neg().contiguous()


def held_as_read(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A result of stock PyTorch that a graph reads alone, as the core reads it: this is
    held then, where all such results would be converted at once when backward begins.

    It stays as it is where that would cost memory: autograd keeps the result of some calls,
    as of tanh, and what is repeated is small.
    """
    whole = tensor if tensor._base is None else tensor._base
    if hasattr(type(whole.grad_fn), "_saved_result"):
        return tensor
    if tensor.untyped_storage().nbytes() < tensor.nbytes:
        return tensor
    return tensor.to(dtype, memory_format=torch.channels_last)


def empty_output(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """(N, C, H, W), channels_last."""
    n, c, h, w = shape
    strides = (h * w * c, 1, w * c, c)
    return torch.empty_strided(shape, strides, dtype=dtype, device=device)


def gradient_of(grad: Tensor, dtype: torch.dtype, is_channels_last: bool) -> Tensor:
    """``grad``, which is (N, H, W, C), as the gradient of a tensor like that. One image's
    is laid out as that is: of its strides PyTorch's backward of instance norm reads too
    little."""
    made = grad.permute(0, 3, 1, 2).to(dtype)
    if made.shape[0] == 1 and not is_channels_last:
        made = made.contiguous()
    return made


def laid_out_as_stock(
    outputs: list[Tensor], inputs: list[Tensor], params: list[Tensor]
) -> list[Tensor]:
    """Outputs of a graph in the layout that eager PyTorch gives them: channels_last only
    where an input or the weight of a convolution is."""
    if any(map(follows_channels_last, chain(inputs, params))):
        return outputs
    return [output.contiguous() for output in outputs]


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


class _Slots:
    """Tensors by path, found together."""

    def __init__(self, root: nn.Module, paths: list[str]) -> None:
        self.slots = [_Slot(root, path) for path in paths]
        self._places: list[Any] = [(s.module, s.members, s.name) for s in self.slots]

    def get(self) -> list[Any]:
        """In the order of the paths: what _Slot.get finds, without a call for each."""
        found = [
            module().__dict__[members].get(name)
            for module, members, name in self._places
        ]
        if any(map(is_, found, repeat(None))):  # a replica
            return [slot.get() for slot in self.slots]
        return found


class _Norm:
    """One batch norm call."""

    def __init__(self, root: nn.Module, call: NormCall) -> None:
        self.call = call
        self.updates = call.batch_statistics and call.mean is not None
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


class _Norms:
    """The batch norm calls of a program, and where their running statistics are found."""

    def __init__(self, root: nn.Module, calls: list[NormCall | None]) -> None:
        self.calls = [None if call is None else _Norm(root, call) for call in calls]
        norms = [norm for norm in self.calls if norm is not None]
        running = [(norm, path) for norm in norms for path in norm.call.running]
        self.buffers = _Slots(root, [path for _, path in running])
        self.moves = [norm.updates for norm, _ in running]  # by buffer
        self.addresses = Addresses()


class NormState:
    """The batch norms of one call: the core's argument and the tensors behind it."""

    def __init__(self, norms: _Norms) -> None:
        buffers = norms.buffers.get()
        self._alive, addresses = norms.addresses.of(buffers)
        self.moved = list(compress(buffers, norms.moves))  # by the call
        moving = zip(compress(self._alive, norms.moves), self.moved)
        self._back = [
            (plain, buffer) for plain, buffer in moving if plain is not buffer
        ]
        self.arguments: list[tuple[Any, ...] | None] = []
        running = iter(addresses)
        for norm in norms.calls:
            if norm is None:
                self.arguments.append(None)
                continue
            mean = None if norm.call.mean is None else next(running)
            variance = None if norm.call.variance is None else next(running)
            eps, momentum = norm.settings()
            batch_statistics = norm.call.batch_statistics
            self.arguments.append(
                (mean, variance, eps, momentum, batch_statistics, norm.updates)
            )

    def finish(self) -> None:
        """After the forward: statistics that are not fp32 go back to their buffers."""
        for plain, buffer in self._back:
            buffer.detach().copy_(plain)
        if self.moved:
            count_up(self.moved)


class Binding:
    """A program's tensors in one module (or in one DataParallel replica of it)."""

    def __init__(self, program: Program, root: nn.Module) -> None:
        self._params = _Slots(root, program.params)
        self._norms = _Norms(root, program.norms)
        self.forms: Forms = (
            [program.dtypes[path] for path in program.params],
            [program.shapes[path] for path in program.params],
        )
        self.addresses = Addresses()  # of the params

    def params(self) -> list[Tensor]:
        """By param number. Raises Stale when one is not what was recorded."""
        found = self._params.get()
        if forms_of(found) != self.forms:
            raise Stale
        return found

    def may_learn(self) -> tuple[bool, ...]:
        """By param number: parameters that are frozen now may not be later."""
        found = self._params.get()
        return tuple([isinstance(x, nn.Parameter) or x.requires_grad for x in found])

    def norms(self) -> NormState:
        """The state of the batch norms now."""
        return NormState(self._norms)


class Outside:
    """What a recording needs of one module (or replica) outside of its graphs."""

    def __init__(self, recording: Recording, root: nn.Module) -> None:
        by_count: dict[int, list[str]] = {}
        for path, count in recording.bumps.items():
            by_count.setdefault(count, []).append(path)
        self._bumps = [(_Slots(root, p), count) for count, p in by_count.items()]
        refs = [ref for call in recording.calls for ref in call.refs]
        refs += results(recording)
        paths = list(dict.fromkeys(ref.key for ref in refs if ref.kind == "path"))
        self._read = _Slots(root, paths)
        self._slots = dict(zip(paths, self._read.slots))
        self._others = [ref.key for ref in refs if ref.kind == "constant"]

    def tensor(self, path: str) -> Any:
        """The tensor at ``path``."""
        return self._slots[path].get()

    def learning(self) -> tuple[bool, ...]:
        """Of the tensors that are needed, the module's and others': which learn."""
        tensors = self._read.get() + self._others
        return tuple([bool(tensor.requires_grad) for tensor in tensors])

    def count_batches(self) -> None:
        """num_batches_tracked += 1 per call of the batch norm."""
        for counters, count in self._bumps:
            torch._foreach_add_(counters.get(), count)
