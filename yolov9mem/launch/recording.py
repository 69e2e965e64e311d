# SPDX-License-Identifier: MIT
"""A data set's own augmentation code, run on pictures instead of arrays.

While one of its samples is made, the modules that the code is in see stand-ins for
`numpy` and `cv2`: np.full of a grey canvas gives a `Picture`, and the functions that an
augmentation chain uses write down what they would do to it. Labels, masks and random
draws are computed by the code itself. Outside of that the stand-ins are the originals.
"""

from __future__ import annotations

import functools
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from yolov9mem.warp import Warp

from .patches import Patches
from .pictures import GREY, Cutout, Drawn, Picture, is_image, plain

_state = threading.local()
_patched: dict[str, Patches] = {}  # by the module's name


@contextmanager
def recording() -> Iterator[None]:
    """Within it, in this thread, the stand-ins make pictures."""
    before = getattr(_state, "on", False)
    _state.on = True
    try:
        yield
    finally:
        _state.on = before


def _is_on() -> bool:
    """Is this thread within `recording`?"""
    return getattr(_state, "on", False)


def pictures_made() -> int:
    """How many pictures the stand-ins made in this thread."""
    return int(getattr(_state, "made", 0))


def _made(picture: Picture) -> Picture:
    _state.made = pictures_made() + 1
    return picture


# What the stand-ins do otherwise than the originals


class Hsv(Drawn):
    """A picture's hue, saturation and value, with tables to look them up in."""

    def __init__(self, picture: Picture, tables: np.ndarray | None = None) -> None:
        self.picture, self.tables = picture, tables

    def pixels(self) -> np.ndarray:
        cv2 = _original("cv2")
        made = cv2.cvtColor(self.picture.pixels(), cv2.COLOR_BGR2HSV)
        return made if self.tables is None else cv2.LUT(made, _interleaved(self.tables))


class Channel(Drawn):
    """One of the three, with its table."""

    def __init__(
        self, picture: Picture, number: int, table: np.ndarray | None = None
    ) -> None:
        self.picture, self.number, self.table = picture, number, table

    def pixels(self) -> np.ndarray:
        made = np.ascontiguousarray(Hsv(self.picture).pixels()[..., self.number])
        return made if self.table is None else self.table[made]


def _interleaved(tables: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(tables.T).reshape(1, 256, 3)


def _original(name: str) -> Any:
    return sys.modules[name]


def _full(stock: Any, shape: Any, fill_value: Any, *args: Any, **kwargs: Any) -> Any:
    dtype = args[0] if args else kwargs.get("dtype")
    if _is_on() and isinstance(shape, (tuple, list)) and len(shape) == 3:
        is_grey = np.ndim(fill_value) == 0 and fill_value == GREY
        if shape[2] == 3 and is_grey and dtype is not None and dtype == np.uint8:
            return _made(Picture(int(shape[0]), int(shape[1])))
    return stock(shape, fill_value, *args, **kwargs)


def _warp(kind: str) -> Callable[..., Any]:
    is_perspective = kind == "warpPerspective"

    def warp(stock: Any, src: Any, M: Any, dsize: Any, *args: Any, **kw: Any) -> Any:
        cv2 = _original("cv2")
        border = kw.get("borderValue", ())
        usual = (
            not args
            and kw.keys() <= {"borderValue", "flags", "borderMode"}
            and kw.get("flags", cv2.INTER_LINEAR) == cv2.INTER_LINEAR
            and kw.get("borderMode", cv2.BORDER_CONSTANT) == cv2.BORDER_CONSTANT
            and tuple(border)[:3] == (GREY,) * 3
            and (isinstance(src, Picture) or (_is_on() and is_image(src)))
        )
        if not usual:
            return stock(plain(src), M, dsize, *args, **kw)
        matrix = np.eye(3)
        matrix[: 3 if is_perspective else 2] = M
        picture = src if isinstance(src, Picture) else _made(Picture.of(src))
        size = (int(dsize[1]), int(dsize[0]))
        return picture.warped(Warp(matrix, perspective=is_perspective), size)

    return warp


def _cvt_color(stock: Any, src: Any, code: int, *args: Any, **kwargs: Any) -> Any:
    cv2 = _original("cv2")
    if isinstance(src, Picture) and code == cv2.COLOR_BGR2HSV and not (args or kwargs):
        return Hsv(src)
    if isinstance(src, Hsv) and code == cv2.COLOR_HSV2BGR and src.tables is not None:
        target = args[0] if args else kwargs.get("dst")
        if target is None or target is src.picture:
            made = src.picture.copy() if target is None else target
            made.recolour(src.tables)
            return made
    return _settled(stock, src, code, *args, **kwargs)


def _split(stock: Any, m: Any, *args: Any, **kwargs: Any) -> Any:
    if isinstance(m, Hsv) and m.tables is None:
        return tuple(Channel(m.picture, i) for i in range(3))
    return _settled(stock, m, *args, **kwargs)


def _lut(stock: Any, src: Any, lut: Any, *args: Any, **kwargs: Any) -> Any:
    if isinstance(src, Channel) and src.table is None and np.shape(lut) == (256,):
        return Channel(src.picture, src.number, lut)
    if isinstance(src, Hsv) and src.tables is None and np.shape(lut) == (1, 256, 3):
        return Hsv(src.picture, np.ascontiguousarray(lut[0].T))
    return _settled(stock, src, lut, *args, **kwargs)


def _merge(stock: Any, mv: Any, *args: Any, **kwargs: Any) -> Any:
    parts = list(mv)
    if [getattr(part, "number", None) for part in parts] == [0, 1, 2] and all(
        isinstance(part, Channel)
        and part.table is not None
        and part.picture is parts[0].picture
        for part in parts
    ):
        tables = np.ascontiguousarray(np.stack([part.table for part in parts]))
        return Hsv(parts[0].picture, tables)
    return stock([plain(part) for part in parts], *args, **kwargs)


def _flip(stock: Any, src: Any, flipCode: int, *args: Any, **kwargs: Any) -> Any:
    if isinstance(src, Picture) and not (args or kwargs):
        return src.flipped(flipCode <= 0, flipCode != 0)
    return _settled(stock, src, flipCode, *args, **kwargs)


def _copy_to(stock: Any, src: Any, mask: Any, dst: Any = None) -> Any:
    if isinstance(src, Picture) and isinstance(dst, Picture) and np.ndim(mask) == 2:
        if dst.pasted(Cutout(src, np.asarray(mask) != 0)):
            return dst
    return _settled(stock, src, mask, dst)


def _settled(stock: Any, *args: Any, **kwargs: Any) -> Any:
    return stock(*map(plain, args), **{k: plain(v) for k, v in kwargs.items()})


CHANGED: dict[str, dict[str, Callable[..., Any]]] = {
    "numpy": {"full": _full},
    "cv2": {
        "warpAffine": _warp("warpAffine"),
        "warpPerspective": _warp("warpPerspective"),
        "cvtColor": _cvt_color,
        "split": _split,
        "LUT": _lut,
        "merge": _merge,
        "flip": _flip,
        "copyTo": _copy_to,
    },
}


@functools.cache
def stand_in(name: str) -> types.ModuleType:
    """numpy or cv2, but for the functions that know pictures."""
    original = sys.modules[name]
    made = types.ModuleType(name)
    made.__dict__.update(original.__dict__)
    for function, changed in CHANGED[name].items():
        stock = getattr(original, function)
        made.__dict__[function] = functools.wraps(stock)(
            functools.partial(changed, stock)
        )
    return made


# Where they are put


def modules_of(cls: type) -> list[types.ModuleType]:
    """The modules of a data set class and of what they import, that use OpenCV."""
    own = [
        sys.modules[part.__module__]
        for part in cls.__mro__
        if part.__module__ in sys.modules
        and part.__module__.partition(".")[0] not in ("torch", "builtins", "typing")
    ]
    found = {module.__name__: module for module in own}
    for module in own:
        for value in list(vars(module).values()):
            if isinstance(value, (type, types.FunctionType)):
                name = getattr(value, "__module__", None)
                if name in sys.modules:
                    found.setdefault(str(name), sys.modules[str(name)])
    return [m for m in found.values() if "cv2" in vars(m) and m.__name__ != "cv2"]


def install(cls: type) -> None:
    """The stand-ins, in the modules of a data set class."""
    for module in modules_of(cls):
        if module.__name__ in _patched:
            continue
        patches = _patched[module.__name__] = Patches()
        for name, value in list(vars(module).items()):
            if isinstance(value, types.ModuleType) and value.__name__ in CHANGED:
                patches.set(module, name, stand_in(value.__name__))
        albumentations = vars(module).get("Albumentations")
        if isinstance(albumentations, type):
            patches.set(albumentations, "__call__", _on_pixels(albumentations))


def uninstall() -> None:
    """The originals everywhere."""
    while _patched:
        _patched.popitem()[1].undo()


def _on_pixels(cls: Any) -> Callable[..., Any]:
    """__call__ of a class that hands images to another package."""
    stock = cls.__call__

    @functools.wraps(stock)
    def call(self: Any, first: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(self, "transform", True) is not None:
            if isinstance(first, dict) and isinstance(first.get("img"), Drawn):
                first["img"] = plain(first["img"])
            first = plain(first)
        return stock(self, first, *args, **kwargs)

    return call
