# SPDX-License-Identifier: MIT
"""A checkpointed module: what is known about it, and the decision at every forward."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable
from itertools import chain
from typing import Any

from torch import nn

from yolov9mem._errors import BackendError
from yolov9mem._keep import Keep

from .. import devices
from ..processes import membership
from ..recording.arguments import describe, orders_of
from ..recording.fakes import FakeCopy, places_of
from ..recording.fingerprint import Fingerprint
from ..recording.ir import CannotLower, NothingToRun, Recording
from ..recording.record import record
from . import autograd_nodes, conditions, registry, shared_call
from .arenas import drop_workspace, make_room
from .binding import Stale, laid_out_as_stock
from .byte_counts import Held, held_bytes
from .conditions import Reason, StockForwardWarning
from .forward_calls import Replay
from .invocation import Invocation
from .lower import lower
from .lowered import Graph, Lowered, drop_oldest
from .planned import TorchPlan, Wanted
from .replica import ReplicaEntry

MOST_PROGRAMS = 64  # input signatures remembered for one module
# Of these, with CUDA graphs. Where there are more, each comes seldom and its memory is
# hardly the same again, while graphs would take memory for all of them.
MOST_WITH_GRAPHS = 4
MOST_CHANGES = 3  # recordings of a module whose forward changes it
MOST_IN_A_ROW = 30  # recordings, one a forward: more than a multi-scale run has sizes


class Entry:
    """Runs one checkpointed module."""

    def __init__(
        self,
        module: nn.Module,
        keep: Keep,
        strict: bool,
        segments: int | None = None,
        backend: str = "auto",
        cuda_graphs: bool = True,
    ) -> None:
        self.cls = type(module)
        self.ref = weakref.ref(module)
        self.keep, self.strict = keep, strict
        self.segments, self.backend = segments, backend
        self.cuda_graphs = cuda_graphs
        self.lowered: OrderedDict[Any, Lowered | CannotLower] = OrderedDict()
        self.counts: Counter[str] = Counter()  # for the report
        self.reasons: Counter[str] = Counter()  # why the stock forward ran
        self.latest: Lowered | None = None
        self._drawn: set[Any] = set()  # signatures of what draws in the order of memory
        self._latest_on: dict[Any, Lowered] = {}  # by device: DataParallel has some
        self.path = ""  # below the module that was given to checkpoint()
        self.below_stock = False  # the forward that calls it is the parent's stock one
        self._lock = threading.RLock()
        self._fingerprint: Fingerprint | None = None
        self._fakes: FakeCopy | None = None
        self._looked_at: set[int] = set()  # ids of objects in attributes
        self._defaults: conditions.Defaults | None = None
        self._descended = False
        self._told: set[str] = set()  # kinds of reasons, also of what lies below
        self._changes = 0
        self._in_a_row = 0  # forwards that were recorded

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.path} ({self.cls.__name__})" if self.path else self.cls.__name__

    # Runner

    def replica(self) -> registry.Runner:
        """For torch.nn.DataParallel."""
        return ReplicaEntry(self)

    def run(
        self, module: nn.Module, stock: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """forward(*args, **kwargs) of the module."""
        return self.run_as(Invocation(module, module, stock, args, kwargs))

    def run_as(self, call: Invocation) -> Any:
        """The result of a call, by the core or by stock PyTorch."""
        if not conditions.is_training(call.module):
            if not call.module.training:
                drop_workspace()
            return call.stock()
        if self._changes >= MOST_CHANGES and not self.strict:
            return call.stock()  # no recording holds for the next one
        call.flatten()
        reason = self._why_stock(call)
        if reason is not None:
            self._say(call.origin, reason)
            return call.stock()
        devices.use_threads_of_torch()
        try:
            lowered = self._lowered(call)
        except CannotLower as failure:
            self._refuse(call.origin, failure)
            return call.stock()
        except BackendError:
            raise
        except Exception as error:  # of forward, which has only seen fakes
            out = call.stock()  # raises the module's own error, if any
            failed = f"recording failed ({type(error).__name__}: {error})"
            unexpected = CannotLower("forward", "", failed)
            self._remember(self._key(call), unexpected)
            self._refuse(call.origin, unexpected)
            return out
        return self._run_lowered(lowered, call)

    def _run_lowered(self, lowered: Lowered, call: Invocation) -> Any:
        outside = lowered.outside
        bindings = [graph.binding for graph in lowered.graphs]
        if call.module is not call.origin:
            bindings, outside = lowered.bound(call.module)
        try:
            params = [binding.params() for binding in bindings]
            lowered.check_order(params)
        except Stale:
            self.forget()
            return self.run_as(call)
        if not any(t.requires_grad for t in chain(call.tensors(), *params)):
            return call.stock()
        place = lowered.graphs[0].program.device
        resized = self._latest_on.get(place) is not lowered
        self.latest = self._latest_on[place] = lowered.running()
        arguments = call.args, call.kwargs
        learns = tuple(tuple([p.requires_grad for p in own]) for own in params)
        inputs_learn = lowered.learning_inputs(call.leaves, outside, learns)
        replay = Replay(lowered, outside, arguments, call.leaves, self.keep)
        each = zip(lowered.graphs, bindings, params, inputs_learn, learns)
        for graph, binding, own, of_inputs, of_params in each:
            part = graph.program.part
            planar = graph.planar(call.leaves)
            plan = self._plan(graph, Wanted(of_inputs, of_params, planar))
            if resized or plan is not graph.last:
                device = graph.program.device
                make_room(device, plan.saved_bytes, plan.core.peak_bytes)
            graph.last = plan
            replay.begin_graph(plan, own)
            shared = shared_call.Call(plan, binding, own, self.name, self.counts)
            forward = autograd_nodes.Forward(shared)
            for stage in part.stages:
                inputs = replay.inputs(stage)
                outputs = forward.stage(inputs)
                if self.below_stock:  # which may view them, or count on a copy of them
                    outputs = laid_out_as_stock(outputs, inputs, own)
                replay.add(stage, outputs)
                del inputs, outputs  # what the stock calls don't need goes before them
                replay.go_on()
        outside.count_batches()
        self.counts["calls"] += 1
        return replay.result()

    # Decisions

    def _why_stock(self, call: Invocation) -> Reason | None:
        reason = conditions.observed(call.leaves) or conditions.globally_hooked()
        tensors = call.tensors()
        for tensor in tensors:
            reason = reason or conditions.unusual_tensor(tensor)
        reason = reason or conditions.unusual_device(tensors, self.backend)
        if reason is not None:
            return reason
        with self._lock:
            if self._defaults is None or self._defaults.forward is not call.forward:
                self._defaults = conditions.Defaults(call.forward)
                self.forget()  # another forward's
            defaults = self._defaults
        reason = defaults.changed(call.module, call.args, call.kwargs)
        if reason is not None:
            return reason
        with self._lock:
            known = self._fingerprint
            changed, hooked = (
                ("", None) if known is None else known.compare(call.origin)
            )
            if changed is not None:
                self.forget()
                self._fingerprint = Fingerprint(call.origin, self._looked_at)
                hooked = self._fingerprint.compare(call.origin)[1]
        return None if hooked is None else conditions.hooked(hooked)

    def _say(self, origin: nn.Module, reason: Reason) -> None:
        self.reasons[reason.text] += 1
        if reason.kind and reason.kind not in self._told:
            self._told.add(reason.kind)
            warnings.warn(
                f"yolov9mem: {self.name} runs in stock PyTorch: {reason.text}",
                StockForwardWarning,
                stacklevel=8,  # the caller of the module
            )
        if not self.strict and reason.spares_parts:
            self._descend(origin)

    def _refuse(self, origin: nn.Module, failure: CannotLower) -> None:
        """Raises if strict; else remembers why and swaps what lies below."""
        if self.strict and not isinstance(failure, NothingToRun):
            raise CannotLower(
                failure.call,
                failure.path,
                f"{failure.reason}. checkpoint({self.cls.__name__}, strict=False) leaves "
                "such parts in stock PyTorch and swaps the others",
            ) from failure
        self.reasons[str(failure)] += 1
        self._descend(origin)

    def _descend(self, origin: nn.Module) -> None:
        """Checkpoints all that lies below; the outermost that can be lowered acts."""
        if self._descended:
            return
        self._descended = True
        if self.keep.rule == "budget":
            raise ValueError(
                f"keep: a size ({self.keep}) needs the whole module in one graph, but "
                f"{self.name} cannot be lowered as a whole; use 'all', 'conv' or 'min'"
            )
        how = self.segments, self.backend, self.cuda_graphs
        for path, child in origin.named_modules():
            known = child is origin or registry.runner_of(child) is not None
            if known or not child._modules:
                continue
            entry = Entry(child, self.keep, False, *how)
            entry.path = f"{self.path}.{path}" if self.path else path
            entry.below_stock, entry._told = True, self._told
            registry.register(child, entry)

    # Recordings and plans

    def forget(self) -> None:
        """Drops all recordings and plans; the next training forward records anew."""
        with self._lock:
            self._fingerprint = self._fakes = None
            self.lowered.clear()
            self._drawn.clear()
            self._latest_on.clear()

    def _key(self, call: Invocation) -> Any:
        device = devices.of(call.leaves)
        on_cuda = devices.kind(device) == "cuda"
        cudnn = devices.cudnn_settings() if on_cuda else None
        autocast = devices.autocast_dtype(device)
        arguments = describe(call.leaves), str(call.spec)
        key = (*arguments, autocast, cudnn, membership())
        return (*key, orders_of(call.leaves)) if key in self._drawn else key

    def _remember(self, key: Any, made: Lowered | CannotLower) -> None:
        with self._lock:
            self.lowered[key] = made
            while len(self.lowered) > MOST_PROGRAMS:
                self.lowered.popitem(last=False)

    def _lowered(self, call: Invocation) -> Lowered:
        key = self._key(call)
        with self._lock:
            found = self.lowered.get(key)
            if found is None:
                found = self._lower_anew(call, key)
                self._count_recording()
            else:
                self._in_a_row = 0
        if isinstance(found, CannotLower):
            raise found.fresh()
        return found

    def _lower_anew(self, call: Invocation, key: Any) -> Lowered | CannotLower:
        """A recording with its graphs, or why there is none; either is remembered."""
        found: Lowered | CannotLower
        try:
            found = self._record_and_lower(call)
            if found.draws and key not in self._drawn:
                self._drawn.add(key)
                key = self._key(call)
        except CannotLower as failure:
            self._fakes = None  # forward may have changed the copy
            found = failure.fresh()
            self._changes += failure.call == "setattr"
        except BaseException:
            self._fakes = None
            raise
        self._remember(key, found)
        return found

    def _record_and_lower(self, call: Invocation) -> Lowered:
        """Raises CannotLower where that cannot be done, or would gain nothing."""
        recording = self._record(call)
        programs = lower(recording, call.origin, devices.of(call.leaves))
        made = Lowered(recording, programs, call.origin)
        if self.keep.rule == "budget" and len(programs) > 1:
            raise CannotLower("forward", "", "its dtypes make more than one graph")
        # Of processes that wait for each other none runs stock for its sizes.
        shares = any(program.groups for program in programs)
        if not self.strict and self.keep.rule != "budget" and not shares:
            self._settle_keep(made, call.leaves)
        self.counts["recordings"] += 1
        return made

    def _count_recording(self) -> None:
        self._in_a_row += 1
        if self._in_a_row == MOST_IN_A_ROW:
            warnings.warn(
                f"yolov9mem: {self.name}: {MOST_IN_A_ROW} forwards in a row were recorded "
                "anew, which takes time: an attribute of it or an argument, not a tensor, "
                "has another value each time. Pass it as a tensor, or keep it in a buffer",
                StockForwardWarning,
                stacklevel=9,  # the caller of the module
            )

    def _record(self, call: Invocation) -> Recording:
        """From now on, what forward has looked at in objects counts as well."""
        fakes = self._fake_copy(call)
        try:
            return record(fakes, call.leaves, call.spec, self.strict)
        finally:
            new = fakes.looked_at() - self._looked_at
            if new:
                self._looked_at |= new
                self._fingerprint = Fingerprint(call.origin, self._looked_at)

    def _settle_keep(self, made: Lowered, leaves: list[Any]) -> None:
        """Raises CannotLower where stock PyTorch would hold no more than our plans.

        "min" has the lowest peak of one graph. That is "conv" instead where the module is
        so small that it holds less, or where stock calls read outputs of stages that can
        be recomputed with "conv" alone.
        """
        held = self._held(made, leaves)
        if self.keep.rule == "min" and (held.gains_nothing or made.recording.gaps):
            least, self.keep = self.keep, Keep("conv")
            other = self._held(made, leaves)
            if held.gains_nothing or other.is_less_than(held):
                held = other
            else:
                self.keep = least
        if held.gains_nothing:
            raise CannotLower("forward", "", held.comparison)

    def _held(self, made: Lowered, leaves: list[Any]) -> Held:
        graphs = zip(made.graphs, made.wanted_at_most(leaves))
        plans = [self._plan(graph, wanted) for graph, wanted in graphs]
        return held_bytes(made.recording, self.keep, plans)

    def _fake_copy(self, call: Invocation) -> FakeCopy:
        """Made anew when the module has moved to another kind of device."""
        known = self._fakes
        if known is None or known.places != places_of(call.origin):
            known = self._fakes = FakeCopy(call.origin, call.forward)
        return known

    def _plan(self, graph: Graph, wanted: Wanted) -> TorchPlan:
        """Made anew where it is not known. Raises BackendError within a capture then."""
        with self._lock:
            key = wanted, self.keep
            plan = graph.plans.get(key)
            if plan is None:
                if devices.is_capturing(graph.program.device):
                    raise BackendError(
                        "cuda: a forward of new sizes or layout: the stream is being "
                        "captured, which does not allow it: make it before the capture"
                    )
                device = graph.program.device  # DataParallel has several
                others = [
                    known
                    for known in self.lowered.values()
                    if isinstance(known, Lowered)
                    and graph not in known.graphs
                    and any(g.program.device == device for g in known.graphs)
                ]
                plan = TorchPlan(
                    graph.program,
                    self.keep,
                    wanted,
                    segments=self.segments,
                    backend=self.backend,
                    cuda_graphs=self.cuda_graphs and len(others) < MOST_WITH_GRAPHS,
                )
                graph.plans[key] = plan
                drop_oldest(graph.plans)
                self.counts["plans"] += 1
        return plan
