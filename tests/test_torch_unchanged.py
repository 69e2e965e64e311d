# SPDX-License-Identifier: MIT
"""_core.unchanged, which says yes only; what changed is found in Python."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from models_for_tests import Elan
from torch import nn

from yolov9mem import _core
from yolov9mem.torch.recording import fingerprint
from yolov9mem.torch.recording.fakes import HOOKS
from yolov9mem.torch.recording.fingerprint import Fingerprint


def replace_child(module: nn.Module) -> None:
    module.cv3.act = nn.SiLU()


def replace_weight(module: nn.Module) -> None:
    module.cv3.conv.weight = nn.Parameter(module.cv3.conv.weight.detach().clone())


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "training flag": lambda m: m.cv3.bn.eval(),
    "number": lambda m: setattr(m.cv3.bn, "eps", 1e-4),
    "tuple": lambda m: setattr(m.cv3.conv, "stride", (2, 1)),
    "new attribute": lambda m: setattr(m.cv3, "extra", 1),
    "gone attribute": lambda m: delattr(m.cv3.bn, "eps"),
    "forward of its own": lambda m: setattr(m.cv3, "forward", m.cv3.forward_fuse),
    "child": replace_child,
    "weight": replace_weight,
    "buffer": lambda m: setattr(m.cv3.bn, "running_mean", torch.zeros(16)),
    "class": lambda m: setattr(m.cv3.act, "__class__", nn.Identity),
    "a tensor for a number": lambda m: setattr(m.cv3.bn, "eps", torch.ones(2)),
}


def module() -> nn.Module:
    return Elan(3, 16, 8).train()


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen_and_named(name: str) -> None:
    made = module()
    known = Fingerprint(made)
    assert _core.unchanged(known._packed, HOOKS)
    assert known.compare(made) == (None, None)
    CHANGES[name](made)
    assert not _core.unchanged(known._packed, HOOKS)
    path, _ = known.compare(made)
    assert path is not None and path.startswith("cv3")


@pytest.mark.parametrize("place", ["", "cv3.conv"])
def test_only_hooks_of_inner_modules_count(place: str) -> None:
    made = module()
    part = made.get_submodule(place)
    known = Fingerprint(made)
    handle = part.register_forward_hook(lambda *a: None)
    assert _core.unchanged(known._packed, HOOKS) == (place == "")
    assert known.compare(made) == (None, place or None)
    handle.remove()
    assert known.compare(made) == (None, None)


def test_python_is_asked_where_c_says_no(monkeypatch) -> None:
    made = module()
    known = Fingerprint(made)
    monkeypatch.setattr(fingerprint._core, "unchanged", lambda *a: False)
    assert known.compare(made) == (None, None)


def test_a_module_that_is_gone() -> None:
    made = module()
    packed = Fingerprint(made)._packed
    del made
    gc.collect()
    assert not _core.unchanged(packed, HOOKS)


class Plain:
    """Has a __dict__."""


class Rude:
    def __init__(self, what: str) -> None:
        self.what, self.victim = what, None

    def __eq__(self, other: object) -> bool:
        if self.what == "raises":
            raise ValueError("no")
        self.victim.__dict__.clear()  # while it is being compared
        return True

    __hash__ = None  # type: ignore[assignment]


def state(thing: Plain, **changes: object) -> tuple:
    parts = {
        "ref": weakref.ref(thing),
        "kind": Plain,
        "size": len(thing.__dict__),
        "names": tuple(thing.__dict__),
        "values": tuple(thing.__dict__.values()),
        "members": (),
    } | changes
    return tuple(parts.values())


@pytest.mark.parametrize("what", ["raises", "clears"])
def test_comparisons_may_run_any_code(what: str) -> None:
    thing, rude = Plain(), Rude(what)
    thing.a, thing.b = 1, "two"
    rude.victim = thing
    assert not _core.unchanged((state(thing, values=(rude, "two")),), ())


@pytest.mark.parametrize(
    "bad",
    [
        {"ref": 5},
        {"kind": int},
        {"size": "two"},
        {"names": ["a"]},
        {"values": ()},
        {"members": 5},
        {"members": (5,)},
        {"members": (("a", b""),)},
        {"members": (("a", 5),)},
        {"members": (("missing", b""),)},
    ],
)
def test_states_that_are_none(bad: dict[str, object]) -> None:
    thing = Plain()
    thing.a = 1
    assert _core.unchanged((state(thing),), ())
    assert not _core.unchanged((state(thing, **bad),), ())
    for wrong in (((),), (5,), ((1, 2),)):
        assert not _core.unchanged(wrong, ())
    with pytest.raises(TypeError):
        _core.unchanged([], ())
