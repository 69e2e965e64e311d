# SPDX-License-Identifier: MIT
"""record(): one training forward on fakes, which leaves nothing behind."""

from __future__ import annotations

from itertools import chain
from typing import Any

from .. import devices
from .autograd_functions import autograd_functions_recorded
from .closures import changed
from .fakes import FakeCopy
from .global_values import GlobalValues
from .ir import CannotLower, Recording, StockCall
from .isolation import is_seeded, random_states, undisturbed
from .leaked_fakes import Watch
from .recorder import Recorder
from .refusals import refusal


def record(fakes: FakeCopy, leaves: list[Any], spec: Any, strict: bool) -> Recording:
    """Records one training forward of the module that ``fakes`` was copied from.

    ``leaves`` and ``spec`` are ``(args, kwargs)`` flattened. Raises CannotLower for what
    cannot be lowered (strict) or replayed, and whatever the module's own forward raises.
    """
    watch = Watch(fakes.own(), GlobalValues(fakes.module))
    with undisturbed(devices.of(leaves)), autograd_functions_recorded(), watch:
        made = _record(Recorder(fakes, strict, watch.fakes), leaves, spec)
        if isinstance(made, CannotLower):
            fakes.discard()
        held = watch.take_back()
    if held and not isinstance(made, CannotLower):
        reason = f"it keeps tensors outside of the module, in {held}"
        made = CannotLower("forward", "", reason)
    if isinstance(made, CannotLower):
        raise made
    return made


def _record(
    recorder: Recorder, leaves: list[Any], spec: Any
) -> Recording | CannotLower:
    """The recording, or why there is none, without the frames that would hold fakes."""
    before = random_states()
    try:
        made = recorder.run(leaves, spec)
    except Exception as error:
        failure = recorder.refused or refusal(error, recorder.path)
        if failure is None:
            raise
        return failure
    if recorder.refused is not None:
        return recorder.refused
    if (read := _statistics_read(made)) is not None:
        return read
    if changed(recorder.fakes.known):
        reason = "a function of the module changes what it holds"
        return CannotLower("setattr", recorder.path, reason)
    if random_states() != before:
        reason = "forward draws from the generator of Python or NumPy"
        return CannotLower("random", "", reason)
    if is_seeded():
        return CannotLower("manual_seed", "", "forward seeds PyTorch's generator")
    return made


def _statistics_read(done: Recording) -> CannotLower | None:
    """The core writes running statistics and counts of batches at the end of a forward:
    nothing else in it may read them."""
    moving = set(done.bumps)
    for norm in done.norms:
        if norm.batch_statistics:
            moving.update(norm.running)
    calls = ((call.name, call.path, _paths_of(call)) for call in done.calls)
    nodes = ((x.op, x.path, x.attributes) for x in done.nodes if x.op != "norm")
    for name, path, read in chain(calls, nodes):
        for key in moving.intersection(read):
            reason = f"it reads {key}, which a batch norm moves in this forward"
            return CannotLower(name, path, reason)
    return None


def _paths_of(call: StockCall) -> list[str]:
    return [ref.key for ref in call.refs if ref.kind == "path"]
