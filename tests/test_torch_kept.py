# SPDX-License-Identifier: MIT
"""Fakes of a recording that a forward keeps outside of its module."""

from __future__ import annotations

import copy
import functools
import gc
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest
import torch
from models_for_tests import Brick, assert_close, image, ran_in_core
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

import yolov9mem.torch as ym


def made(n: int) -> Tensor:
    return torch.arange(n).float()


@functools.cache
def cached(n: int) -> Tensor:
    return made(n)


@functools.lru_cache(maxsize=8)
def cached_pair(n: int) -> tuple[Tensor, Tensor]:
    return made(n), made(n)


@functools.lru_cache
def doubled(y: Tensor) -> Tensor:
    return 2 * y


class Grid:
    def __init__(self, n: int) -> None:
        self.places = [made(n)]


class AskedGrid(Grid):
    """As all objects are before Python 3.11: its namespace is a dict of its own."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.count = len(vars(self))


LISTED: list[Tensor] = []
LATEST: deque[Tensor] = deque(maxlen=2)
GRIDS: dict[int, Any] = {}
HISTORY: dict[str, list[Any]] = {"names": ["old"], "features": []}
SEEN: set[Tensor] = set()


def memo(make: Callable[[int], Any], first: Callable[[Any], Tensor]) -> Callable:
    def places(self: nn.Module, y: Tensor) -> Tensor:
        n = y.shape[3]
        if n not in GRIDS:
            GRIDS[n] = make(n)
        return y + first(GRIDS[n])

    return places


def in_default(self: nn.Module, y: Tensor, known: dict = {}) -> Tensor:  # noqa: B006
    known.setdefault(y.shape[3], made(y.shape[3]))
    return y + known[y.shape[3]]


def in_class(self: nn.Module, y: Tensor) -> Tensor:
    self.known.setdefault(y.shape[3], made(y.shape[3]))
    return y + self.known[y.shape[3]]


# By name: what forward does, and what the refusal says.
KEEPING: dict[str, tuple[Callable[..., Any], str]] = {
    "lru_cache": (lambda m, y: y + cached(y.shape[3]), "the cache of .*cached"),
    "lru_cache of some": (lambda m, y: y + cached_pair(y.shape[3])[1], "cached_pair"),
    "key of an lru_cache": (lambda m, y: doubled(y), "doubled"),
    "dict": (memo(made, lambda found: found), "GRIDS"),
    "tuple in a dict": (memo(lambda n: (made(n), 1), lambda found: found[0]), "GRIDS"),
    "list in a dict": (memo(lambda n: [made(n)], lambda found: found[0]), "GRIDS"),
    "object in a dict": (memo(Grid, lambda found: found.places[0]), "GRIDS"),
    "namespace in a dict": (memo(AskedGrid, lambda found: found.places[0]), "GRIDS"),
    "list": (lambda m, y: LISTED.append(y), "LISTED"),
    "deque": (lambda m, y: LATEST.append(y), "LATEST"),
    "set": (lambda m, y: SEEN.add(y), "SEEN"),
    "list that was in a dict": (lambda m, y: HISTORY["features"].append(y), "list"),
    "default": (in_default, "in_default"),
    "class": (in_class, "Keeps.known"),
}


class Keeps(nn.Module):
    known: ClassVar[dict[int, Tensor]] = {}

    def __init__(self, keep: Callable[..., Any]) -> None:
        super().__init__()
        self.body, self.keep = nn.Sequential(Brick(3, 6), Brick(6, 6)), keep

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        kept = self.keep(self, y)
        return y if kept is None else kept


def everywhere(beside: Sequence[FakeTensor] = ()) -> list[FakeTensor]:
    """Fakes that are alive, beside these: earlier tests leave some for a while."""
    gc.collect()
    known = set(map(id, beside))
    alive = [x for x in gc.get_objects() if type(x) is FakeTensor]
    return [x for x in alive if id(x) not in known]


@pytest.fixture(autouse=True)
def _empty() -> None:
    for known in (LISTED, LATEST, GRIDS, SEEN, HISTORY["features"], Keeps.known):
        known.clear()
    for function in (cached, cached_pair, doubled):
        function.cache_clear()
    in_default.__defaults__[0].clear()


@pytest.mark.parametrize("name", KEEPING)
def test_what_forward_keeps_is_refused_and_taken_back(name: str) -> None:
    keep, holder = KEEPING[name]
    stock = Keeps(keep)
    ours = ym.checkpoint(copy.deepcopy(stock))
    before = everywhere()
    with pytest.raises(ym.CannotLower, match=f"keeps tensors outside.*{holder}"):
        ours(image())
    assert not everywhere(before)
    assert HISTORY["names"] == ["old"]
    assert_close(ours.eval()(image()), stock.eval()(image()))


@pytest.mark.parametrize("name", ["lru_cache", "dict", "list", "deque", "class"])
def test_what_forward_keeps_is_stock_s(name: str) -> None:
    stock = Keeps(KEEPING[name][0])
    ours = ym.checkpoint(copy.deepcopy(stock), strict=False)
    for _ in range(2):
        assert_close(ours(image()), stock(image()))
    kept = [*LISTED, *LATEST, *SEEN, *HISTORY["features"]]
    assert not any(isinstance(tensor, FakeTensor) for tensor in kept)
    assert len(kept) in (
        0,
        2 if LATEST else 4,
    )  # twice by each, two at most in the deque
    found = {row.path: row.state for row in ym.report(ours).rows}
    assert found["body"] == "swapped"


def after_an_error(m: nn.Module, y: Tensor) -> Tensor:
    try:
        y.view(7)
    except RuntimeError as error:
        kept = [error]
        kept.append(kept)  # type: ignore[arg-type]
    return y


def in_a_cycle(m: nn.Module, y: Tensor) -> Tensor:
    cycle: list[Any] = [y]
    cycle.append(cycle)
    return y * 2


def in_a_generator(m: nn.Module, y: Tensor) -> Tensor:
    def generator():
        z = y * 2
        yield z
        yield z

    return next(generator())


def test_tensors_of_the_module_itself_stay_with_it() -> None:
    """Also where a view is made of them."""

    def views(m: nn.Module, y: Tensor) -> Tensor:
        return y * m.table.expand(2, 1, 1, 1)

    stock = Keeps(views)
    stock.table = torch.full((1,), 2.0)
    ours = ym.checkpoint(copy.deepcopy(stock))
    assert_close(ours(image()), stock(image()))
    assert ran_in_core(ours) == 1


@pytest.mark.parametrize("collects", [True, False])
@pytest.mark.parametrize("keep", [after_an_error, in_a_cycle, in_a_generator])
def test_what_garbage_holds_is_not_kept(
    keep: Callable, collects: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # PyTorch 2.4 logs the error of a fake, and pytest keeps what is logged.
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)
    stock = Keeps(keep)
    ours = ym.checkpoint(copy.deepcopy(stock))
    if not collects:
        gc.disable()
    try:
        assert_close(ours(image()), stock(image()))
        assert gc.isenabled() == collects
    finally:
        gc.enable()
    assert ran_in_core(ours) == 1


@pytest.mark.parametrize("error", [ValueError, AssertionError])
def test_an_error_of_forward_leaves_no_fakes_in_caches(error: type[Exception]) -> None:
    def fails(m: nn.Module, y: Tensor) -> Tensor:
        cached(y.shape[3])
        raise error("of forward's own")

    ours = ym.checkpoint(Keeps(fails))
    with pytest.raises(error, match="of forward's own"):
        ours(image())
    assert type(cached(16)) is Tensor
    assert gc.isenabled()


def test_another_refusal_leaves_no_fakes_in_caches() -> None:
    def refused(m: nn.Module, y: Tensor) -> Tensor:
        cached(y.shape[3])
        return y.detach_()

    with pytest.raises(ym.CannotLower, match="detach_"):
        ym.checkpoint(Keeps(refused))(image())
    assert type(cached(16)) is Tensor
