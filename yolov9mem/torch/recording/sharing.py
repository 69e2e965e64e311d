# SPDX-License-Identifier: MIT
"""Which tensors of a recording share memory, and which must not.

A replay lays memory out anew, so an in-place call is recorded only where nobody could see
the change through another tensor: what shared the memory before may not be read again.
These functions take the recorder, as handlers do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from .effects import bytes_of, memory_of
from .fakes import own_tensors
from .ir import CannotLower, Effects, Ref, StockCall
from .names import is_in_place
from .trees import tensors_in

if TYPE_CHECKING:
    from .recorder import Recorder

INPUT = "it changes an input in place"
CHANGED = "it changes a view in place"
SEEN = f"{CHANGED}, and other parts of that memory are read afterwards"
NOT_OURS = f"{CHANGED}, of memory that others have or that may be a copy's"


class Change(NamedTuple):
    """The latest in-place call on memory that several tensors share."""

    name: str
    path: str
    shown_by: set[int]  # ids of the tensor that it was made on, and of views made since


@dataclass
class Memory:
    """What one recording knows of it. Tensors are told by their ids."""

    has_views: set[int] = field(default_factory=set)
    may_be_shared: set[int] = field(default_factory=set)  # as strides happen to be
    of_others: set[int] = field(default_factory=set)  # of arguments and the module
    of_graphs: set[int] = field(default_factory=set)  # what stock calls read of theirs
    changes: dict[int, Change] = field(default_factory=dict)  # by memory
    of_calls: set[int] = field(default_factory=set)  # changed, and stock calls' alone

    def note_others(self, arguments: list[Any], module: nn.Module) -> None:
        """Notes the memory that a forward shares with its caller or that graphs read."""
        tensors = [x for x in arguments if isinstance(x, Tensor)]
        for part in module.modules():
            tensors += [tensor for _, tensor in own_tensors(part)]
        self.of_others.update(map(memory_of, tensors))


def note_memory(call: StockCall, made: list[Tensor]) -> None:
    """Where what the call has made lies."""
    call.memory, call.bytes = tuple(map(memory_of, made)), tuple(map(bytes_of, made))


def note_read(rec: Recorder, tensor: Tensor, ref: Ref) -> None:
    """Remembers that a stock call reads what no stock call has made: views of it are not
    theirs."""
    if ref.kind != "stock":
        rec.memory.of_graphs.add(memory_of(tensor))


def note_views(
    rec: Recorder, results: list[Tensor], given: Iterable[Tensor] = ()
) -> None:
    """Remembers what shares memory, so that in-place calls on it are seen as such.

    The results of detach and .data are no views to autograd: they are told by their memory,
    which is that of a ``given`` argument.
    """
    arguments = {memory_of(tensor): tensor for tensor in given} if results else {}
    for tensor in results:
        if tensor._is_view() and tensor._base is not None:
            rec.alive.append(tensor._base)
            rec.memory.has_views.add(id(tensor._base))
        if memory_of(tensor) in arguments:
            shared = (id(tensor), id(arguments[memory_of(tensor)]))
            rec.memory.has_views.update(shared)


def constant(rec: Recorder, tensor: Tensor) -> Ref:
    """What stands for a tensor of somebody else's, and whose memory nobody may change."""
    rec.memory.of_others.add(memory_of(rec.fakes.mode.from_tensor(tensor)))
    return Ref("constant", tensor)


def called(rec: Recorder, func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """The result of a call; a change of an input is refused as such, where PyTorch says
    that a leaf is changed, which it is in a recording alone."""
    _check_written(rec, func, name, args, kwargs)
    if name == "batch_norm" and id(rec.modules[-1][1]) in rec.fakes.cumulative:
        reason = "its momentum is None, a cumulative average, which a replay lacks"
        raise CannotLower(name, rec.path, reason)
    try:
        return func(*args, **kwargs)
    except RuntimeError as error:
        given = tensors_in((args, kwargs))
        if "a leaf Variable" in str(error) and any(id(x) in rec.inputs for x in given):
            raise CannotLower(name, rec.path, INPUT) from error
        raise


def _check_written(rec: Recorder, func: Any, name: str, args: Any, kwargs: Any) -> None:
    """Raises CannotLower where a call would change somebody's tensor, before it does. Of
    views of one, which are fakes, `constant` has noted the memory."""
    written = args[:1] if is_in_place(func) or name == "__setitem__" else ()
    given = [*written, kwargs.get("out")]
    if not all(isinstance(x, FakeTensor) for x in tensors_in(given)):
        raise CannotLower(
            name, rec.path, "it changes a tensor that is not the module's"
        )


def check_in_place(rec: Recorder, tensor: Tensor, name: str) -> list[Ref]:
    """In-place calls rebind a value; what others may see is refused.

    Returns what shares the memory of ``tensor`` and is not to be read again.
    """
    known = rec.parameter_path(tensor)
    if known is not None:
        raise CannotLower(name, rec.path, f"it changes {known} in place")
    if id(tensor) in rec.ref and id(tensor) in rec.inputs:
        raise CannotLower(name, rec.path, INPUT)
    memory = memory_of(tensor)
    if not tensor._is_view() and id(tensor) not in rec.memory.has_views:
        is_others = memory in rec.memory.of_others
        if is_others or id(tensor) in rec.memory.may_be_shared:
            raise CannotLower(name, rec.path, NOT_OURS)
        return []
    same = [x for x in rec.alive if memory_of(x) == memory]
    told_apart = any(rec.value(x) in rec.copies for x in same)
    unsure = any(id(x) in rec.memory.may_be_shared for x in same)
    base = tensor if tensor._base is None else tensor._base
    unknown = any(x is not base and x._base is not base for x in same)  # to autograd
    if memory in rec.memory.of_others or told_apart or unsure or unknown:
        raise CannotLower(name, rec.path, NOT_OURS)
    _check_shown(rec, tensor)  # it is read as well as written
    if all(_was_made_by_calls(rec, x) for x in same):
        rec.memory.of_calls.add(memory)
    else:
        rec.memory.changes[memory] = Change(name, rec.path, {id(tensor)})
    return [rec.ref[id(x)] for x in same if x is not tensor and id(x) in rec.ref]


def _was_made_by_calls(rec: Recorder, tensor: Tensor) -> bool:
    """Is it the result of a stock call, of nothing that learns? A replay makes such calls
    in their order and views as views: who reads that memory sees its changes."""
    ref = rec.ref.get(id(tensor))
    return ref is not None and ref.kind == "stock" and not rec.carries(ref, tensor)


def is_of_calls(rec: Recorder, tensor: Tensor) -> bool:
    """Then no node may read it: nodes do not keep that order."""
    return memory_of(tensor) in rec.memory.of_calls


def note_changes(
    rec: Recorder, call: StockCall, made: list[Tensor], others: list[Ref], does: Effects
) -> None:
    """Of a call that is written down: ``others`` than those made share their memory."""
    if any(is_of_calls(rec, tensor) for tensor in made):
        if call.carries:
            raise CannotLower(call.name, call.path, SEEN)
        does = does._replace(lasting=True)  # nobody may read what it makes by that name
    call.changes, call.effects = tuple(others), does


def check_change(rec: Recorder, tensor: Tensor, name: str) -> list[Ref]:
    """As check_in_place, for a call that changes the memory of the node's output."""
    others = check_in_place(rec, tensor, name)
    if rec.value(tensor) in rec.copies:
        raise CannotLower(name, rec.path, "it changes a copy or what was copied")
    rec.stacks.pop(id(tensor), None)
    changed = {ref.key for ref in others if ref.kind == "value"}
    rec.derived.write_calls(changed | {rec.value(tensor)}, memory_of(tensor))
    return others


def tell_apart(rec: Recorder) -> None:
    """At the end: of the memory of stock calls' results, what is theirs alone."""
    others = rec.memory.of_graphs | rec.memory.of_others
    for call in rec.recording.calls:
        call.memory = tuple(None if m in others else m for m in call.memory)


def check_reads(rec: Recorder, given: Any, result: Any = None) -> None:
    """After a call with such arguments, or of what is handed out: raises CannotLower where
    a tensor shares memory that was changed through another one."""
    if not rec.memory.changes:
        return
    made = tensors_in(result)
    if result is not None and not made:  # but a size or the like
        return
    for tensor in tensors_in(given):
        _check_shown(rec, tensor)
    for tensor in made:
        change = rec.memory.changes.get(memory_of(tensor))
        if change is not None:
            rec.alive.append(tensor)
            change.shown_by.add(id(tensor))


def _check_shown(rec: Recorder, tensor: Tensor) -> None:
    """Raises CannotLower for what does not show the latest change of its memory."""
    change = rec.memory.changes.get(memory_of(tensor))
    if change is not None and id(tensor) not in change.shown_by:
        raise CannotLower(change.name, change.path, SEEN)
