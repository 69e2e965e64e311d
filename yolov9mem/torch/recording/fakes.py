# SPDX-License-Identifier: MIT
"""A deep copy of a module whose tensors are fakes: shape, dtype and device, no memory.

The copy has no hooks but those that forward collects with, and shares nothing that forward
could change, so running it leaves the original's buffers, flags and hooks as they were.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from operator import attrgetter
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm

from ..layout import follows_channels_last
from .closures import Rebinding
from .contents import objects_in
from .effects import memory_of
from .forwards import forward_of
from .hooks import HOOKS, collecting_hooks
from .ir import CannotLower
from .spies import Spies

SYNCED = nn.SyncBatchNorm.forward
HOOK_DICTS = (
    *HOOKS,
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
NAMED_DICTS = ("_parameters", "_buffers")


def _place(device: torch.device, index: int = 0) -> torch.device:
    """All GPUs are one to fakes: a replica is recorded with its original's fakes."""
    return device if device.index is None else torch.device(device.type, index)


def _home(module: nn.Module) -> int | None:
    """The GPU of its fakes: torch opens a context there, which on a GPU that the process
    does not use otherwise would cost half a gigabyte."""
    indices = (
        tensor.device.index
        for part in module.modules()
        for _, tensor in own_tensors(part)
    )
    return next((index for index in indices if index is not None), None)


def _nothing() -> None:
    pass


def join(path: str, name: str) -> str:
    """The path of ``name`` inside the module at ``path``."""
    return f"{path}.{name}" if path else name


def own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers and plain tensor attributes of the module itself."""
    for kind in NAMED_DICTS:
        for name, tensor in module.__dict__[kind].items():
            if tensor is not None:
                yield name, tensor
    for name, value in module.__dict__.items():
        if isinstance(value, Tensor):
            yield name, value


def places_of(module: nn.Module) -> list[tuple[torch.device, torch.dtype, bool]]:
    """Of its tensors where they are, all GPUs being one, dtype and if channels_last."""
    return [
        (_place(tensor.device), tensor.dtype, follows_channels_last(tensor))
        for part in module.modules()
        for _, tensor in own_tensors(part)
    ]


class FakeCopy:
    """The copy, and the paths by which its fakes and modules are known."""

    def __init__(
        self, original: nn.Module, forward: Callable[..., Any] | None = None
    ) -> None:
        """``forward`` is what is to be recorded, unbound; None: its class's."""
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        # Else their address is 0, and a kernel that a forward calls by address would work
        # there: a GPU is lost to the process then.
        self.mode._allow_unsafe_data_ptr_access = False
        self.places = places_of(original)
        self._home = _home(original)
        self.path_of: dict[int, str] = {}  # by id of a fake
        self.module_path: dict[int, str] = {}  # by id of a module of the copy
        memo: dict[int, Any] = {}
        self._fakes: list[Tensor] = []  # keeps the ids above valid
        for path, module in original.named_modules():
            if "_orig_mod" in module._modules:  # its copies share what was compiled
                raise CannotLower("torch.compile", path, "it has compiled this part")
            self._fake_tensors(path, module, memo)
            for name in HOOK_DICTS:
                if name in module.__dict__:
                    memo[id(module.__dict__[name])] = OrderedDict()
            memo[id(module._forward_hooks)].update(collecting_hooks(module))
            if isinstance(module, nn.SyncBatchNorm) and module.process_group:
                memo[id(module.process_group)] = module.process_group  # has no copy
        known = {id(fake) for fake in self._fakes}
        try:
            self.module: nn.Module = copy.deepcopy(original, memo)
        except Exception as error:
            kind = type(error).__name__
            reason = f"the module cannot be deep-copied ({kind}: {error})"
            raise CannotLower("deepcopy", "", reason) from error
        self._check_is_whole(original)
        parts = (id(part) for part in original.modules())
        rebinding = Rebinding({k: memo[k] for k in parts if k in memo}, memo)
        for part in self.module.modules():
            rebinding.attributes(part)
        self.known = rebinding.known  # what functions in attributes hold
        forward = forward or forward_of(type(original))
        forward = _BatchNorm.forward if forward is SYNCED else forward
        self.forward = MethodType(forward, self.module)
        self._listen({id(made): original for original, made in memo.items()})
        copies = [value for value in memo.values() if isinstance(value, Tensor)]
        self._fakes += [tensor for tensor in copies if id(tensor) not in known]
        self.hidden = {id(tensor) for tensor in copies} - known
        self.cumulative: set[int] = set()  # ids of batch norms with momentum None
        self.synced: set[int] = set()  # ids of SyncBatchNorms that run as they are made
        for path, module in self.module.named_modules():
            self.module_path[id(module)] = path
            if isinstance(module, _BatchNorm):
                if module.momentum is None:  # would ask for the value of a fake
                    module.momentum = 0.5
                    self.cumulative.add(id(module))
            if isinstance(module, nn.RNNBase):
                # It asks for addresses, and changes no number.
                vars(module)["flatten_parameters"] = _nothing
            if vars(module).get("forward", forward_of(type(module))) is SYNCED:
                # The same call of F.batch_norm; who shares is known by the module.
                module.forward = MethodType(_BatchNorm.forward, module)
                self.synced.add(id(module))

    def _check_is_whole(self, original: nn.Module) -> None:
        """Raises CannotLower where a part is no copy: what is tried on it would stay."""
        originals = {id(part) for part in original.modules()}
        for path, part in self.module.named_modules():
            if id(part) in originals:
                reason = (
                    "its deepcopy is the module itself, which a recording may change"
                )
                raise CannotLower("deepcopy", path, reason)

    def _listen(self, original_of: dict[int, int]) -> None:
        """To the copies of objects in attributes; what is no copy is somebody else's."""
        values = [v for part in self.module.modules() for v in vars(part).values()]
        known = [(x, original_of.get(id(x), id(x))) for x in objects_in(values)]
        copies = [x for x, original in known if original != id(x)]
        self.objects = {id(x): original_of[id(x)] for x in copies}
        self._spies, self._looked_at = Spies(copies), set[int]()

    def looked_at(self) -> set[int]:
        """Ids of the original's objects that the copy's forwards have looked at."""
        return self._looked_at | {self.objects[made] for made in self._spies.touched()}

    def own(self) -> set[int]:
        """Ids of the fakes that stand for the module's tensors."""
        return set(map(id, self._fakes))

    def memories(self) -> list[int]:
        """Where these lie: another tensor may be set in the place of one."""
        return list(map(memory_of, self._fakes))

    def discard(self) -> None:
        """After a recording that failed: forward may have changed the copy."""
        self._looked_at = self.looked_at()
        self.module, self._spies = nn.Module(), Spies(())
        del self.forward

    def tensor(self, path: str) -> Tensor:
        """The module's own at that path."""
        found: Tensor = attrgetter(path)(self.module)
        return found

    def fake(self, tensor: Tensor) -> FakeTensor:
        """A fake like ``tensor``: same sizes, strides, dtype, device, requires_grad."""
        meta = torch.empty_strided(
            tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta"
        )
        home = tensor.device.index if self._home is None else self._home
        made = FakeTensor(self.mode, meta, _place(tensor.device, home or 0))
        if tensor.requires_grad:
            made.requires_grad_()
        return made

    def empty(
        self, shape: tuple[int, ...], dtype: torch.dtype, like: Tensor
    ) -> FakeTensor:
        """A fake on the device of ``like`` and in its order of memory, channels_last or
        contiguous, made without a dispatch (14 times faster)."""
        device = like.device
        with torch._C._DisableTorchDispatch():
            order = torch.contiguous_format
            if len(shape) == 4 and follows_channels_last(like):
                order = torch.channels_last
            meta = torch.empty(shape, dtype=dtype, device="meta", memory_format=order)
            return FakeTensor(self.mode, meta, device)

    def _fake_tensors(self, path: str, module: nn.Module, memo: dict[int, Any]) -> None:
        for name, tensor in own_tensors(module):
            if id(tensor) in memo:
                continue
            made = self.fake(tensor)
            if isinstance(tensor, nn.Parameter):
                made._is_param = True
            memo[id(tensor)] = made
            self._fakes.append(made)
            self.path_of[id(made)] = join(path, name)
