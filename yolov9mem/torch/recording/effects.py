# SPDX-License-Identifier: MIT
"""What a stock call does beside its result: may it be recomputed in backward, and what
memory would that save?"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .cpu_orders import ordered
from .ir import CannotLower, Effects
from .isolation import is_seeded, nothing_saved
from .trees import flatten, tensors_in

if TYPE_CHECKING:
    from .recorder import Recorder

SIDE_EFFECTS = {
    "register_hook", "retain_grad", "requires_grad_", "backward", "set_", "__set__",
    "detach_",
}  # fmt: skip
# They read memory, which a fake has not and which a replay lays out anew.
OF_MEMORY = {
    "apply_", "as_strided", "as_strided_", "as_strided_scatter", "map_", "map2_",
}  # fmt: skip
# What a forward may ask of a tensor: in a recording nothing has a history yet.
OF_AUTOGRAD = {"requires_grad", "grad_fn", "is_leaf", "retains_grad"}
# What an operator writes, and its schema in PyTorch 2.4 does not say.
UNMARKED = {("aten::rrelu_with_noise", "noise")}
_OURS = ("aten", "prim", "prims")  # whose operators say what they do
# Numbers in each sum of a product of matrices that takes about as long as its results are
# written and read: a head of attention in a detector has 32.
SHORT_SUM = 32


def is_cheap(work: int, made_bytes: int, sums: int = SHORT_SUM) -> bool:
    """Is the time small that the products take which make so many bytes?"""
    return work <= 2 * sums * made_bytes


def watched(function: Callable[..., Any], *args: Any) -> tuple[Any, Effects]:
    """The result of a call on fakes, and what its operators do."""
    # Not the tensors, which hold autograd, which holds who is told of them.
    saved: set[int] = set()
    keep = nothing_saved(lambda x: saved.add(memory_of(x)))
    with _OperatorWatch() as watch, _FusedAttention(watch), keep:
        result = function(*args)
    given, made = tensors_in(args), flatten(result)[0]
    places = [("argument", i) for i in range(len(given))]
    places += [("result", i) for i in range(len(made))]
    outer = list(map(_memory, [*given, *made]))
    inner = {_memory(x): bytes_of(x) for x in watch.made}
    for memory in outer:
        inner.pop(memory, None)
    return result, Effects(
        watch.draws,
        watch.work,
        watch.from_its_own,
        watch.lasting,
        watch.exchanges,
        sum(inner.values()),
        sum(size for memory, size in inner.items() if memory in saved),
        frozenset(place for place, memory in zip(places, outer) if memory in saved),
        frozenset(i for i, x in enumerate(given) if memory_of(x) in watch.written),
        tuple(map(_strides, given)),
    )


def learn(rec: Recorder, tensors: list[Tensor]) -> None:
    """Values want gradients, as far as autograd knows, which then says what it keeps. In a
    strict recording nobody asks."""
    for tensor in tensors:
        value = None if rec.strict else rec.value(tensor)
        made = value is not None and rec.recording.nodes[value].op != "input"
        if made and not (tensor.requires_grad or tensor._is_view()):
            with nothing_saved():
                tensor.mul_(torch.ones((), device=tensor.device, requires_grad=True))


def check_call(rec: Recorder, func: Any, name: str, given: list[Tensor]) -> None:
    """Raises CannotLower for what no replay does: before the call, which on fakes may fail
    where it would not, and a forward may catch that."""
    if name in OF_MEMORY:
        raise CannotLower(name, rec.path, "it reads memory, laid out anew")
    if name in SIDE_EFFECTS:
        raise CannotLower(name, rec.path, "it has an effect beyond its result")
    attribute = getattr(getattr(func, "__self__", None), "__name__", "")
    if name == "__get__" and attribute in OF_AUTOGRAD:
        ref = rec.ref.get(id(given[0]))
        carries = ref is not None and rec.carries(ref, given[0])
        if carries or given[0] in rec.derived:
            raise CannotLower(attribute, rec.path, "it is not known before the forward")


def why_not_replayed(does: Effects) -> str:
    """Why a replay would not make what the call makes, if so: it draws from where
    PyTorch's generators are, a recording's objects are copies, and other processes do not
    wait where calls are made again."""
    if does.exchanges:
        return "it exchanges tensors with other processes"
    if does.from_its_own:
        return "it draws from a generator of its own"
    return "forward seeds PyTorch's generator" if does.draws and is_seeded() else ""


class _OperatorWatch(TorchDispatchMode):
    """Sees the operators that calls are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.draws = self.from_its_own = self.lasting = self.exchanges = False
        self.work = 0
        self.is_fused = False  # what runs now
        self.written: set[int] = set()  # memory of what no result tells
        # Alive, so that no memory has the place of another.
        self.made: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = dict(zip((a.name for a in func._schema.arguments), args))
        given |= kwargs or {}
        self.draws |= _draws(func, given)
        self.from_its_own |= any(isinstance(x, torch.Generator) for x in given.values())
        # Not all schemas say that running statistics are changed.
        moves = given.get("running_mean") is not None
        changed = [given.get(name) for name in _silently_written(func)]
        written = list(map(memory_of, tensors_in(changed)))
        self.lasting |= moves or bool(written) or func.namespace not in _OURS
        self.written.update(written)
        self.exchanges |= "c10d" in func.namespace
        result = func(*args, **(kwargs or {}))
        self.work += _work(func, args, kwargs or {}, result)
        operator = func.overloadpacket.__name__
        result = ordered(operator, args[0] if args else None, result)
        if not self.is_fused:
            self.made += tensors_in(result)
        return result


class _FusedAttention(TorchFunctionMode):
    """Fused kernels keep no weights. With fakes PyTorch chooses one that is not fused."""

    def __init__(self, watch: _OperatorWatch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        self._watch.is_fused = _is_fused(func, args, kwargs)
        try:
            return func(*args, **kwargs)
        finally:
            self._watch.is_fused = False


def _is_fused(func: Any, args: Any, kwargs: Any) -> bool:
    """Has PyTorch a fused kernel for it? Not for a mask that learns, nor for dropout on
    the CPU."""
    if func is not F.scaled_dot_product_attention:
        return False
    given = (
        dict(zip(("query", "key", "value", "attn_mask", "dropout_p"), args)) | kwargs
    )
    mask, dropout = given.get("attn_mask"), given.get("dropout_p", 0.0)
    learns = isinstance(mask, Tensor) and mask.requires_grad
    return not learns and (dropout == 0 or given["query"].device.type != "cpu")


def _draws(operator: Any, given: dict[str, Any]) -> bool:
    """From PyTorch's default generators? Fused attention has the tag without dropout too:
    it does not then, and a stream that is being captured lets nobody draw again."""
    if torch.Tag.nondeterministic_seeded not in operator.tags:
        return False
    may_drop = any(a.name == "dropout_p" for a in operator._schema.arguments)
    return not may_drop or given.get("dropout_p", 0.0) != 0


@functools.cache
def _silently_written(operator: Any) -> tuple[str, ...]:
    """The arguments that it writes and does not return, as those for lists of tensors do.
    They may be saved for backward before, which is where a recomputation stops."""
    schema = operator._schema
    returned = {
        name
        for result in schema.returns
        if result.alias_info is not None
        for name in result.alias_info.before_set
    }
    return tuple(
        argument.name
        for argument in schema.arguments
        if (schema.name, argument.name) in UNMARKED
        or (
            argument.alias_info is not None
            and argument.alias_info.is_write
            and returned.isdisjoint(argument.alias_info.before_set)
        )
    )


def _work(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """As in `Effects`: numbers of half the bytes are multiplied in half the time."""
    if func.overloadpacket not in flop_registry:
        return 0
    flop: int = flop_registry[func.overloadpacket](*args, **kwargs, out_val=result)
    return flop * max(x.element_size() for x in tensors_in(result))


def _memory(leaf: Any) -> int:
    return memory_of(leaf) if isinstance(leaf, Tensor) else 0


def _strides(tensor: Tensor) -> tuple[int, ...]:
    return tensor.stride() if tensor.layout is torch.strided else ()


def memory_of(tensor: Tensor) -> int:
    """The same number for tensors that share memory, as long as they are alive."""
    try:
        return tensor.untyped_storage()._cdata
    except RuntimeError:  # sparse tensors and those of vmap have none of their own
        return id(tensor)


def bytes_of(tensor: Tensor) -> int:
    """Of the memory that it lies in."""
    try:
        return tensor.untyped_storage().nbytes()
    except RuntimeError:
        return 0
