# SPDX-License-Identifier: MIT
"""A launch: everything that is replaced while a script runs, and what is told.

What to swap is known by what happens, not by names: an optimizer is made, then a module
that owns its parameters is called in training mode. Right before that call model,
optimizer step and moving average are swapped; data sets are when a loader is made.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.data import DataLoader

from yolov9mem.torch.optimizer.averages import unwrap
from yolov9mem.torch.recording.isolation import is_recording

from . import banner, codebases, dataset, files, loss, processes
from .cli import Settings, UsageError
from .patches import ImportWatch, Patches
from .session import Session, is_trained_by
from .sgd import StockSGD, SwappedSGD
from .validation import first_of, images_of

THIS_PROCESS = "this process"  # the target of patch()


class Launch:
    """Swaps yolov9mem's parts into whatever runs between `start` and `stop`.

    One is on at a time: its start stops the one before, as where a cell of a notebook
    that calls patch() runs again.

    Args:
        settings: what the flags ask for.
        target: of the command line, for messages.
        arguments: of the script.
        applied: names of settings that are in force already ("accumulate").
        notes: lines for the start table.
    """

    running: ClassVar[Launch | None] = None

    def __init__(
        self,
        settings: Settings,
        target: str = THIS_PROCESS,
        arguments: tuple[str, ...] = (),
        applied: tuple[str, ...] = (),
        notes: tuple[banner.Line, ...] = (),
    ) -> None:
        self.settings, self.target, self.arguments = settings, target, arguments
        self.applied = set(applied)
        self.session: Session | None = None  # the latest of these
        self._sessions: list[Session] = []
        self.lines: list[banner.Line] = list(notes)
        self.ending: list[banner.Line] = []
        self._patches = Patches()
        self._imports = ImportWatch(self._imported)
        self._optimizers: list[weakref.ref[Any]] = []
        self._armed: Patches | None = None
        self._announced = False
        self._has_started_others = False  # that may train
        self._chances: dict[str, float] = {}  # of mosaic and mixup, the script's own
        rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", ""))
        self.is_quiet = rank.lstrip("0").isdigit()

    # On and off

    def start(self) -> None:
        """From now on."""
        if Launch.running is not None:
            Launch.running.stop()
        Launch.running = self
        self._patch_optimizers()
        self._patch(DataLoader, "__init__", self._loader_init)
        self._patch_files()
        processes.watch(self._patches, self._launched)
        if not self.settings.amp:
            self._patch(torch.amp.autocast_mode.autocast, "__init__", _disabled)
            self._patch(torch.amp.grad_scaler.GradScaler, "__init__", _disabled)
        self._imports.start()

    def stop(self) -> None:
        """Everything as it was; nothing where this one is not on."""
        if Launch.running is not self:
            return
        Launch.running = None
        self._imports.stop()
        self._disarm()
        dataset.restore_all()
        self._patches.undo()
        sessions, self._sessions, self.session = self._sessions, [], None
        with contextlib.ExitStack() as ends:  # all, though one may fail
            for session in sessions:
                ends.callback(session.end)

    def _patch(
        self, owner: Any, name: str, make: Callable[[Callable[..., Any]], Any]
    ) -> None:
        self._patches.set(owner, name, make(getattr(owner, name)))

    def say(self, text: str) -> None:
        """To stderr, once for all processes of a run."""
        if not self.is_quiet:
            banner.say(text)

    def _launched(self, function: Callable[..., Any]) -> processes.Launched:
        self._has_started_others = True
        return processes.Launched(function, self.settings, self.target, self.arguments)

    # Optimizers and the model

    def _patch_optimizers(self) -> None:
        launch = self

        def registering(stock: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(stock)
            def init(self: Any, *args: Any, **kwargs: Any) -> None:
                stock(self, *args, **kwargs)
                launch._made(self)

            return init

        self._patch(torch.optim.Optimizer, "__init__", registering)
        if torch.optim.SGD is StockSGD:
            self._patches.set(torch.optim, "SGD", SwappedSGD)

    def _made(self, optimizer: Any) -> None:
        alive = [known for known in self._optimizers if known() is not None]
        self._optimizers = [weakref.ref(optimizer), *alive]
        if self._armed is None:
            self._arm()

    def _arm(self) -> None:
        """Looks at every module that is called, until the trained model is."""
        launch, stock = self, nn.Module.__call__
        is_compiling = torch.compiler.is_compiling

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if is_compiling():  # torch.compile reads this, and is to read no more
                return stock(module, *args, **kwargs)
            began = launch._begins(module, first_of(args, kwargs))
            result = stock(module, *args, **kwargs)
            if began:
                launch._announce()
            return result

        self._armed = Patches()
        self._armed.set(nn.Module, "__call__", call)

    def _disarm(self) -> None:
        if self._armed is not None:
            self._armed.undo()
            self._armed = None

    def _begins(self, module: nn.Module, given: Any) -> bool:
        """Is this the first training forward? Then everything is swapped now."""
        if self._armed is None:
            return False
        plain = unwrap(module)
        if not plain.__dict__.get("training", False):
            return False
        if codebases.is_passed_through(plain):
            return False
        if not torch.is_grad_enabled() or is_recording():
            return False
        living = (known() for known in self._optimizers)
        for optimizer in living:
            if optimizer is not None and is_trained_by(module, optimizer):
                self._disarm()
                return self._begin(module, optimizer, given)
        return False

    def _begin(self, module: nn.Module, optimizer: Any, given: Any) -> bool:
        session = self.session
        if session is not None and session.model() is unwrap(module):
            return False  # a second optimizer over the same model
        self._sessions = [known for known in self._sessions if known.is_there]
        if any(known.optimizer() is optimizer for known in self._sessions):
            return False  # it was swapped before another model was trained
        self._check_applied()
        self.session = Session(self.settings, module, optimizer)
        self._sessions.append(self.session)
        self.session.begin(self._patches, images_of(given), lambda: self.session)
        return True

    def _check_applied(self) -> None:
        for name in ("accumulate", "mosaic", "mixup"):
            if getattr(self.settings, name) is not None and name not in self.applied:
                missing = f"data set with a `hyp` that has `{name}`"
                if name == "accumulate":
                    missing = "assignment to `accumulate` in its train()"
                raise UsageError(f"--{name}: {self.target} has no {missing}")

    # Data sets

    def _loader_init(self, stock: Callable[..., Any]) -> Callable[..., Any]:
        launch = self

        @functools.wraps(stock)
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            given = args[0] if args else kwargs.get("dataset")
            swapped = launch._saw_dataset(given)
            stock(self, *args, **kwargs)
            if swapped:
                way = dataset.way_of(type(given))
                self.worker_init_fn = dataset.WorkerInit(self.worker_init_fn, way)

        return init

    def _saw_dataset(self, given: Any) -> bool:
        """Swaps a data set if it can be; is it swapped?"""
        name = type(given).__name__
        unknown = dataset.why_unknown(given)
        if unknown is not None:
            line = ("data set, stock", f"{name}: {unknown}")
        elif not given.augment:
            line = ("data set, stock", f"{name} of validation: it makes no mosaics")
        else:
            self._override(getattr(given, "hyp", None))
            reason = dataset.swap(given)
            if reason is None:
                line = ("data set", f"{name} swapped: {dataset.what(type(given))}")
            else:
                line = ("data set, stock", f"{name}: {reason}")
        self._noted(line)
        return line[0] == "data set"

    def _override(self, hyp: Any) -> None:
        """But where the script makes a data set anew to close the mosaic."""
        for name in ("mosaic", "mixup"):
            value = getattr(self.settings, name)
            if value is None or not isinstance(hyp, dict) or name not in hyp:
                continue
            was_on = self._chances.setdefault(name, hyp[name])
            if hyp[name] or not was_on:
                hyp[name] = value
            self.applied.add(name)

    # Modules and files

    def _imported(self, module: types.ModuleType) -> None:
        for change in codebases.CHANGES:
            done = change(module, self.settings, self._patches)
            if done is not None:
                self.applied.add(done)
        if self.settings.keep != "off" and not self.settings.stock_loss:
            loss.watch(module, self._patches, self._noted)
        if module.__name__ == "yaml" and hasattr(module, "safe_load"):
            stock = module.safe_load

            def safe_load(stream: Any) -> Any:
                return codebases.override_hyp(stock(stream), self.settings)

            self._patches.set(module, "safe_load", functools.wraps(stock)(safe_load))

    def _noted(self, line: banner.Line) -> None:
        if line not in self.lines and not self._announced:
            self.lines.append(line)

    def _patch_files(self) -> None:
        def noted(path: Path) -> None:
            if not self.is_quiet:
                files.write_note(path, self.settings)

        def noticing(stock: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(stock)
            def load(f: Any, *args: Any, **kwargs: Any) -> Any:
                if files.is_resuming(self.arguments) and self.session is None:
                    notice = files.resume_notice(f, self.settings)
                    if notice is not None and ("resumed", notice) not in self.lines:
                        self.lines.append(("resumed", notice))
                return stock(f, *args, **kwargs)

            return load

        self._patch(torch, "save", lambda stock: files.whole(stock, noted))
        self._patch(torch, "load", noticing)

    # Telling

    def _announce(self) -> None:
        if self._announced or self.session is None:
            return
        self._announced = True
        self.lines += self.session.model_lines() + self.session.lines
        if self.settings.accumulate is not None:
            rate = self.session.rate_line(self.settings.accumulate)
            text = f"a step every {self.settings.accumulate} batches, from the first on"
            self.lines += [("accumulate", text), *([rate] if rate else [])]
        self.say(banner.table("training starts", self.lines))

    def finish(self) -> int:
        """The end table and the report; the exit code that --strict asks for, or 0."""
        if self.session is None and self._has_started_others:
            return 0  # they have told
        if self.session is None:
            for line in self.lines:
                self.say(f"yolov9mem: {line[0]}: {line[1]}")
            self.say(
                f"yolov9mem: nothing to swap in {self.target}: no module whose "
                "parameters an optimizer owns was trained in this process, outside of "
                "torch.compile"
            )
        else:
            self.session.measure.finish()
            session = self.session
            self.ending = banner.end_lines(session.measure, session.saved_bytes)
            if session.slices.refused:
                text = f"whole batches: {session.slices.refused}"
                self.ending.append(("validation", text))
            self.say(banner.table("the run ends", self.ending))
        self._write_report()
        return int(self.settings.strict and self.session is None)

    def _write_report(self) -> None:
        if self.settings.report is None or self.is_quiet:
            return
        figures = self.session.figures() if self.session is not None else {}
        content = {
            "target": self.target,
            "arguments": list(self.arguments),
            "flags": self.settings.flags(),
            "torch": torch.__version__,
            "start": [list(line) for line in self.lines],
            "end": [list(line) for line in self.ending],
            **figures,
        }
        try:
            self.settings.report.write_text(json.dumps(content, indent=1) + "\n")
        except OSError as error:
            self.say(f"yolov9mem: --report: {error}")


def _disabled(stock: Callable[..., Any]) -> Callable[..., Any]:
    """An __init__ of autocast or GradScaler after which it is off."""

    @functools.wraps(stock)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, *args, **kwargs)
        self._enabled = False

    return init
