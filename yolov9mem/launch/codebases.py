# SPDX-License-Identifier: MIT
"""What is particular to a code base, known by names that it defines.

Each function here gets a module that has just been imported and changes it if it is
the one that is meant; nothing is imported for it.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .cli import Settings, number
from .patches import Patches

LIGHTNING = ("lightning", "pytorch_lightning", "lightning_fabric")
PASSING = (".strategies.strategy", ".wrappers")  # its modules that exchange a forward

Change = Callable[[types.ModuleType, Settings, Patches], "str | None"]


def _own_function(module: types.ModuleType, name: str) -> Callable[..., Any] | None:
    """A function that the module itself defines."""
    found = vars(module).get(name)
    if isinstance(found, types.FunctionType) and found.__module__ == module.__name__:
        return found
    return None


def official_amp(
    module: types.ModuleType, settings: Settings, patches: Patches
) -> str | None:
    """--no-amp: `check_amp` (official, ultralytics) says no."""
    if settings.amp or _own_function(module, "check_amp") is None:
        return None
    patches.set(module, "check_amp", lambda *args, **kwargs: False)
    return "amp"


def autobatch(
    module: types.ModuleType, settings: Settings, patches: Patches
) -> str | None:
    """--batch -1: `autobatch` (official, ultralytics) measures the swapped model."""
    stock = _own_function(module, "autobatch")
    if stock is None or settings.keep == "off":
        return None

    @functools.wraps(stock)
    def measured(model: Any, *args: Any, **kwargs: Any) -> Any:
        from yolov9mem.torch import checkpoint, release

        checkpoint(model, keep=settings.keep, strict=False)
        try:
            return stock(model, *args, **kwargs)
        finally:
            release(model)

    patches.set(module, "autobatch", measured)
    return "autobatch"


def ultralytics_trainer(
    module: types.ModuleType, settings: Settings, patches: Patches
) -> str | None:
    """--accumulate: the trainer's attribute reads N whatever is written to it."""
    cls = vars(module).get("BaseTrainer")
    if module.__name__ != "ultralytics.engine.trainer" or not isinstance(cls, type):
        return None
    if settings.accumulate is None:
        return None
    patches.set(cls, "accumulate", _always(settings.accumulate))
    return "accumulate"


def ultralytics_processes(
    module: types.ModuleType, settings: Settings, patches: Patches
) -> str | None:
    """device=0,1: the processes that it starts, one for a device, are launched too.

    --mosaic and --mixup reach them in the arguments of the trainer.
    """
    stock = _own_function(module, "generate_ddp_command")
    if stock is None:
        return None
    flags = replace(settings, mosaic=None, mixup=None).flags()

    @functools.wraps(stock)
    def command(*args: Any, **kwargs: Any) -> tuple[list[str], str]:
        words, file = stock(*args, **kwargs)
        at = words.index(file)
        return [*words[:at], "-m", "yolov9mem", *flags, *words[at:]], file

    patches.set(module, "generate_ddp_command", command)
    return None


def _always(value: int) -> property:
    """An attribute that reads the same whatever is written to it."""

    def ignore(self: Any, written: Any) -> None:
        del self, written

    return property(lambda self: value, ignore)


def lightning_trainer(
    module: types.ModuleType, settings: Settings, patches: Patches
) -> str | None:
    """Lightning (MultimediaTechLab/YOLO): what its Trainer has, or is given later."""
    cls = vars(module).get("Trainer")
    if not module.__name__.endswith("pytorch.trainer.trainer") and (
        module.__name__ != "pytorch_lightning.trainer.trainer"
    ):
        return None
    if not isinstance(cls, type) or (settings.accumulate is None and settings.amp):
        return None
    if not settings.amp:
        stock: Any = cls.__init__  # type: ignore[misc]

        @functools.wraps(stock)
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            stock(self, *args, **{**kwargs, "precision": "32-true"})

        patches.set(cls, "__init__", init)
    if settings.accumulate is None:
        return "amp"
    patches.set(cls, "accumulate_grad_batches", _always(settings.accumulate))
    return "accumulate"


def lightning_processes(
    module: types.ModuleType, settings: Settings, patches: Patches
) -> str | None:
    """strategy="ddp": the processes that it starts run the script launched, too."""
    for name in ("_basic_subprocess_cmd", "_hydra_subprocess_cmd"):
        stock = _own_function(module, name)
        if stock is not None:
            patches.set(module, name, _launching(stock, settings))
    return None


def _launching(stock: Callable[..., Any], settings: Settings) -> Callable[..., Any]:
    """The same command, [python, SCRIPT, ...] or [python, -m, MODULE, ...]; or it and a
    folder."""

    @functools.wraps(stock)
    def command(*args: Any, **kwargs: Any) -> Any:
        made = stock(*args, **kwargs)
        words = list(made[0] if isinstance(made, tuple) else made)
        told = settings
        if words[1] == "-m" and added_arguments(words[2], settings):
            told = replace(settings, mosaic=None, mixup=None)  # they are in its words
        words[1:1] = ["-m", "yolov9mem", *told.flags()]
        return (words, *made[1:]) if isinstance(made, tuple) else words

    return command


def is_passed_through(module: Any) -> bool:
    """Lightning has put another method in the place of the module's forward, so that DDP
    around it calls that one, which then calls what is trained."""
    place = getattr(vars(module).get("forward"), "__module__", None) or ""
    return place.partition(".")[0] in LIGHTNING and place.endswith(PASSING)


CHANGES: tuple[Change, ...] = (
    official_amp,
    autobatch,
    ultralytics_trainer,
    ultralytics_processes,
    lightning_trainer,
    lightning_processes,
)


def override_hyp(loaded: Any, settings: Settings) -> Any:
    """--mosaic and --mixup in a hyper-parameter file just read, or a run's options."""
    for hyp in (loaded, loaded.get("hyp") if isinstance(loaded, dict) else None):
        if isinstance(hyp, dict) and {"mosaic", "mixup", "hsv_h"} <= hyp.keys():
            for name in ("mosaic", "mixup"):
                value = getattr(settings, name)
                if value is not None:
                    hyp[name] = value
    return loaded


def added_arguments(target: str, settings: Settings) -> tuple[str, ...]:
    """--mosaic and --mixup in the words of a framework's own command line."""
    top = target.partition(".")[0]
    forms = {
        "ultralytics": {"mosaic": "mosaic", "mixup": "mixup"},
        "yolo": {
            "mosaic": "task.data.data_augment.Mosaic",
            "mixup": "task.data.data_augment.MixUp",
        },
    }.get(top, {})
    given = {name: getattr(settings, name) for name in ("mosaic", "mixup")}
    return tuple(
        f"{forms[n]}={number(v)}" for n, v in given.items() if forms and v is not None
    )
