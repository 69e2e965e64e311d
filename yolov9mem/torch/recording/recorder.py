# SPDX-License-Identifier: MIT
"""The recorder: it sees the calls of a training forward on fakes and writes them down.

Every call of a torch function comes to ``Recorder.__torch_function__``. What calls.py can
lower becomes a node; anything else is a stock call. In a strict recording stock calls are
allowed as long as they read no weight and nothing that could be lowered comes after them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_unflatten

from .. import devices
from ..versions import packing
from . import calls, calls_draws, calls_layers, sharing  # noqa: F401 (handlers)
from .arguments import PRINTED
from .copies import Copies
from .derived import Derived
from .effects import check_call, learn, watched, why_not_replayed
from .fakes import FakeCopy
from .fingerprint import Fingerprint
from .ir import (
    CannotLower,
    Node,
    NormCall,
    Recording,
    Ref,
    StockCall,
    Write,
    containers_in,
    items_of,
)
from .isolation import nothing_saved
from .names import name_of
from .parts import divide
from .refusals import refusal
from .trees import flatten, map_leaves, tensors_in

RESULTS = "return tensors, numbers or texts, in lists, tuples and dicts"
CHANGES = (
    "forward changes the module itself; if its first alone does, make that one before"
)


class Recorder(TorchFunctionMode):
    """What is known about the tensors of one forward."""

    def __init__(self, fakes: FakeCopy, strict: bool, alive: list[Any]) -> None:
        """``alive`` gets the fakes that the forward sees."""
        super().__init__()
        self.fakes, self.strict = fakes, strict
        self.recording = Recording()
        self.ref: dict[int, Ref] = {}  # by id of a fake
        # Results of torch.stack: the values, and the first one's tensor.
        self.stacks: dict[int, tuple[tuple[int, ...], Tensor]] = {}
        self.memory, self.copies = sharing.Memory(), Copies()
        self.derived = Derived(self)
        self.modules: list[tuple[str, nn.Module]] = [("", fakes.module)]
        self.norm_calls: dict[str, int] = {}
        self.alive = alive  # keeps the ids valid
        self.refused: CannotLower | None = None  # the first, though forward went on
        self._handed_out: list[Tensor] = []  # what the caller has afterwards
        self._norm_index: dict[NormCall, int] = {}

    # What calls.py asks and tells.

    @property
    def path(self) -> str:
        """Of the module whose forward is running."""
        return self.modules[-1][0]

    def value(self, tensor: Any) -> int | None:
        """The number of the value that ``tensor`` is now, or None."""
        ref = self.ref.get(id(tensor))
        return ref.key if ref is not None and ref.kind == "value" else None

    def import_value(self, tensor: Any) -> int | None:
        """As ``value``; the result of a stock call becomes a value, if not strict."""
        if not self.strict and tensor in self.derived:
            self.derived.write_call(tensor)
        ref = self.ref.get(id(tensor))
        if self.strict or ref is None or ref.kind != "stock":
            return self.value(tensor)
        is_image = tensor.ndim == 4 and tensor.dtype in calls.FLOATS
        if not (is_image and tensor.numel()) or sharing.is_of_calls(self, tensor):
            return None
        name, path = self.recording.calls[ref.key[0]].cause
        if not self.recording.is_left(name, path):
            self.recording.leave(CannotLower(name, path, calls.why_stock(name)))
        self.bind(tensor, self.add_input(tensor, ref))
        return self.value(tensor)

    def values(self, tensors: Any) -> list[int | None]:
        """Of operands; those from stock calls are imported if others are values."""
        known = [self.value(tensor) for tensor in tensors]
        if not any(value is not None for value in known):
            return known
        return [self.import_value(tensor) for tensor in tensors]

    def _refuse(self, failure: CannotLower) -> None:
        if self.strict:
            raise failure
        self.recording.leave(failure)

    def shape(self, value: int) -> tuple[int, int, int, int]:
        """(N, C, H, W)."""
        return self.recording.nodes[value].shape

    def parameter_path(self, tensor: Any) -> str | None:
        """The path of a parameter, buffer or attribute of the module, or None."""
        return self.fakes.path_of.get(id(tensor))

    def bind(self, tensor: Tensor, value: int) -> Tensor:
        """``tensor`` is ``value`` from now on."""
        self.alive.append(tensor)
        self.ref[id(tensor)] = Ref("value", value)
        return tensor

    def add_node(
        self,
        op: str,
        operands: tuple[int, ...],
        attributes: tuple[Any, ...],
        shape: tuple[int, ...],
        dtype: torch.dtype,
        in_place: bool = False,
    ) -> int:
        """Writes a call down and returns the value that it makes, (N, C, H, W)."""
        if not torch.is_grad_enabled():
            raise CannotLower(op, self.path, "it runs where gradients are disabled")
        n, c, h, w = shape
        node = Node(op, operands, attributes, (n, c, h, w), dtype, self.path, in_place)
        self.recording.nodes.append(node)
        return len(self.recording.nodes) - 1

    def norm_index(self, call: NormCall) -> int:
        """The number of a batch norm call, shared by equal calls."""
        index = self._norm_index.setdefault(call, len(self.recording.norms))
        if index == len(self.recording.norms):
            self.recording.norms.append(call)
        return index

    # The run.

    def run(self, leaves: list[Any], spec: Any) -> Recording:
        """Records one forward for arguments like these leaves."""
        self._device = devices.of(leaves)
        made: dict[int, Any] = {}  # one fake for a tensor that is given twice
        for i, leaf in enumerate(leaves):
            if id(leaf) not in made:
                made[id(leaf)] = self._input(i, leaf)
        fakes = [made[id(leaf)] for leaf in leaves]
        self.inputs = {id(fake) for fake in fakes}
        self.memory.note_others(fakes, self.fakes.module)
        self._handed_out = [x for x in fakes if isinstance(x, Tensor)]
        hooks = self._track_modules()
        before = Fingerprint(self.fakes.module, self.fakes.objects)
        memories = self.fakes.memories()
        try:
            with self.fakes.mode, nothing_saved(), self:
                self._pack = packing()
                fake_args, fake_kwargs = tree_unflatten(fakes, spec)
                containers = dict(containers_in((fake_args, fake_kwargs)))
                held = {path: items_of(c) for path, c in containers.items()}
                # Not a call of the module: what somebody has around its forward is
                # around this one, and around what it calls by itself.
                out = self.fakes.forward(*fake_args, **fake_kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        if (changed := before.difference(self.fakes.module)) is not None:
            raise CannotLower("setattr", changed, CHANGES)
        if self.fakes.memories() != memories:
            raise CannotLower("set_", "", CHANGES)
        self._note_writes(containers, held, out)
        self._finish(out)
        return self.recording

    def _input(self, number: int, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        fake = self.fakes.fake(leaf)
        self.alive.append(fake)
        self.ref[id(fake)] = Ref("input", number)
        if leaf.ndim == 4 and leaf.dtype in calls.FLOATS:
            value = self.add_input(leaf, Ref("input", number))
            self.ref[id(fake)] = Ref("value", value)
        return fake

    def add_input(self, tensor: Tensor, ref: Ref) -> int:
        """The number of a new value, which is what ``ref`` stands for."""
        n, c, h, w = tensor.shape
        node = Node("input", (), (ref,), (n, c, h, w), tensor.dtype, "")
        self.recording.nodes.append(node)
        return len(self.recording.nodes) - 1

    def _track_modules(self) -> list[Any]:
        def enter(module: nn.Module, args: Any) -> None:
            self.modules.append((self.fakes.module_path[id(module)], module))

        def leave(module: nn.Module, args: Any, out: Any) -> None:
            self.modules.pop()

        hooks = []
        for module in self.fakes.module.modules():
            hooks.append(module.register_forward_pre_hook(enter))
            hooks.append(module.register_forward_hook(leave))
        return hooks

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = name_of(func)
        try:
            return self._answer(func, name, args, kwargs or {})
        except Exception as error:  # which the forward may catch
            self.refused = self.refused or refusal(error, self.path, name)
            raise

    def _answer(
        self, func: Callable[..., Any], name: str, args: Any, kwargs: Any
    ) -> Any:
        if packing() is not self._pack:
            reason = "forward has saved_tensors_hooks of its own, as of checkpointing"
            raise CannotLower(name, self.path, reason)
        made = None
        try:
            made = calls.answer(self, func, name, args, kwargs)
        except CannotLower as failure:
            self._refuse(failure)
        if made is None:
            made = self.stock_call(func, name, args, kwargs)
        sharing.check_reads(self, (args, kwargs), made)
        return made

    def stock_call(
        self, func: Callable[..., Any], name: str, args: Any, kwargs: Any
    ) -> Any:
        """Makes a call on fakes, and writes it down if it makes or changes tensors."""
        leaves = tensors_in((args, kwargs))
        check_call(self, func, name, leaves)
        learn(self, leaves)
        before = [x._version for x in leaves]
        result, does = watched(sharing.called, self, func, name, args, kwargs)
        if reason := why_not_replayed(does):
            raise CannotLower(name, self.path, reason)
        known = set(map(id, leaves))
        made = {
            ("result", leaf): tensor
            for leaf, tensor in enumerate(flatten(result)[0])
            if isinstance(tensor, Tensor) and id(tensor) not in known
        }
        sharing.note_views(self, list(made.values()), leaves)
        others: list[Ref] = []
        for place, (tensor, version) in enumerate(zip(leaves, before)):
            if tensor._version != version or place in does.writes:
                others += sharing.check_change(self, tensor, name)
                made["argument", place] = tensor
        if made:
            call = self.write_call(func, name, args, kwargs, made)
            sharing.note_changes(self, call, list(made.values()), others, does)
        return result

    def write_call(
        self,
        func: Any,
        name: str,
        args: Any,
        kwargs: Any,
        made: dict[tuple[str, int], Tensor],
    ) -> StockCall:
        """Writes down a call that has ``made`` these, by place: see StockCall.made."""
        refs: list[Ref] = []
        carries = False

        def to_ref(leaf: Any) -> Any:
            nonlocal carries
            if not isinstance(leaf, Tensor):
                return leaf
            refs.append(self._ref_of(leaf, name))
            sharing.note_read(self, leaf, refs[-1])
            carries = carries or self.carries(refs[-1], leaf)
            return refs[-1]

        ref_args, ref_kwargs = map_leaves(to_ref, args), map_leaves(to_ref, kwargs)
        if carries and not torch.is_grad_enabled():  # perhaps in an autograd.Function
            raise CannotLower(name, self.path, "it runs where gradients are disabled")
        autocast = devices.autocast_dtype(self._device)
        cause = self._cause(name, refs)
        call = StockCall(func, ref_args, ref_kwargs, name, self.path, cause, autocast)
        call.refs, call.made = tuple(refs), tuple(made)
        self.append_call(call, list(made.values()), carries)
        return call

    def append_call(self, call: StockCall, made: list[Tensor], carries: bool) -> None:
        """Writes a stock call down, which has made these tensors."""
        call.nodes_before = len(self.recording.nodes)
        call.note_gradients(made, carries)
        sharing.note_memory(call, made)
        self.recording.calls.append(call)
        for leaf, tensor in enumerate(made):
            self.alive.append(tensor)
            self.ref[id(tensor)] = Ref("stock", (len(self.recording.calls) - 1, leaf))

    def carries(self, ref: Ref, tensor: Tensor) -> bool:
        """Could a gradient flow through ``tensor``, which ``ref`` stands for?"""
        learns = isinstance(tensor, nn.Parameter) or tensor.requires_grad
        if ref.kind == "stock":
            learns = self.recording.calls[ref.key[0]].carries
        learns = learns or ref.kind in ("value", "input")
        return learns and (tensor.is_floating_point() or tensor.is_complex())

    def _cause(self, name: str, refs: list[Ref]) -> tuple[str, str]:
        """The first call that could not be lowered, in the past of the call ``name``."""
        for ref in refs:
            if ref.kind == "stock":
                return self.recording.calls[ref.key[0]].cause
        return name, self.path

    def why_not(self, tensor: Any) -> str:
        """Why ``tensor`` is no value that a node could read."""
        ref = self.ref.get(id(tensor))
        if ref is not None and ref.kind == "stock":
            call, path = self.recording.calls[ref.key[0]].cause
            return f"it reads the result of {call} in {path or 'the module itself'}"
        if isinstance(tensor, Tensor) and tensor.dtype not in calls.FLOATS:
            return f"its input is {str(tensor.dtype).removeprefix('torch.')}"
        if isinstance(tensor, Tensor) and tensor.ndim != 4:
            return f"its input has {tensor.ndim} dimensions, not 4"
        return "its input is not made from the module's arguments"

    def _ref_of(self, tensor: Tensor, name: str) -> Ref:
        if tensor in self.derived:
            self.derived.write_call(tensor)
        ref = self.ref.get(id(tensor))
        if ref is not None:
            return self.copies.ref(tensor, ref)
        path = self.parameter_path(tensor)
        if path is not None:
            if isinstance(tensor, nn.Parameter) and tensor.ndim > 1:
                reason = f"it reads the weight {path} and cannot be lowered"
                self._refuse(CannotLower(name, self.path, reason))
            return Ref("path", path)
        if id(tensor) in self.fakes.hidden:
            reason = "it reads a tensor kept in a container of the module"
            raise CannotLower(name, self.path, reason)
        if type(tensor) is Tensor:
            return sharing.constant(self, tensor)
        raise CannotLower(name, self.path, "it reads a tensor of unknown origin")

    def _note_writes(self, containers: Any, held: Any, out: Any) -> None:
        """Lists and dicts of the arguments that forward changed, as Detect does."""
        for path, container in containers.items():
            now, before = items_of(container), held[path]
            if now.keys() != before.keys():
                raise CannotLower("resize", "", "forward changes an argument's size")
            for key, item in now.items():
                if item is before[key]:
                    continue
                if not isinstance(item, Tensor):
                    reason = "forward puts what is no tensor into an argument"
                    raise CannotLower("setitem", "", reason)
                self._handed_out.append(item)
                ref = self._ref_of(item, "setitem")
                self.recording.writes.append(Write(path, key, ref))
            if out is container:
                self.recording.out_path = path

    def _finish(self, out: Any) -> None:
        done = self.recording
        leaves, done.out_spec = flatten(out)
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                self._handed_out.append(leaf)
                leaf = self._ref_of(leaf, "return")
            elif not isinstance(leaf, PRINTED):
                kind = type(leaf).__name__
                reason = f"a result of type {kind} is not understood: {RESULTS}"
                raise CannotLower("return", "", reason)
            done.out_leaves.append(leaf)
        sharing.check_reads(self, self._handed_out)
        sharing.tell_apart(self)
        self.copies.drop_needless(done, self._handed_out)
        divide(done, self.strict)
