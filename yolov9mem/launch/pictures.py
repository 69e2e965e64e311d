# SPDX-License-Identifier: MIT
"""Images that remember how they are made, and are drawn once, in one pass.

An augmentation chain on OpenCV makes a canvas, a warped image, a blended one, a
recoloured one and a flipped one. Given a `Picture` instead of an array the same code
only writes down what it does; the pixels come from `yolov9mem.scene.render` when the
chain is over, or earlier where somebody looks at them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from yolov9mem.scene import Canvas, Scene, put_tile, render
from yolov9mem.warp import Warp

GREY = 114


def plain(value: Any) -> Any:
    """The pixels of a picture, or of a part of one; anything else as it is."""
    return np.asarray(value) if isinstance(value, Drawn) else value


class Drawn(np.lib.mixins.NDArrayOperatorsMixin):
    """What has pixels only when NumPy asks for them."""

    def pixels(self) -> np.ndarray:
        """As an array."""
        raise NotImplementedError

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        made = self.pixels()
        return np.array(made, dtype, copy=True) if copy else np.asarray(made, dtype)

    def __array_ufunc__(
        self, ufunc: Any, method: str, *args: Any, **kwargs: Any
    ) -> Any:
        if "out" in kwargs:
            kwargs["out"] = tuple(map(plain, kwargs["out"]))
        return getattr(ufunc, method)(*map(plain, args), **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.pixels(), name)


class Picture(Drawn):
    """An image (h, w, 3) uint8 BGR: a canvas with tiles, then warped, blended with
    another, recoloured and flipped, each at most once and in this order; a step that
    comes out of order finds the pixels drawn and starts from them.
    """

    dtype = np.dtype(np.uint8)
    ndim = 3

    def __init__(self, height: int, width: int) -> None:
        nothing = np.zeros((0, 5), np.float32)
        self.scene = Scene(
            Canvas([], (height, width), nothing, []), None, None, nothing
        )
        self.size = (height, width)
        self.partner: Scene | None = None
        self.ratio = 1.0
        self.hsv: np.ndarray | None = None
        self.flips = (False, False)  # vertical, horizontal
        self.mirrored: Picture | None = None  # the canvas that this one mirrors
        self.drawn: np.ndarray | None = None  # its own pixels, once they are drawn

    @classmethod
    def of(cls, image: np.ndarray) -> Picture:
        """An image as the only tile."""
        made = cls(*image.shape[:2])
        made.scene.canvas.tiles.append((_packed(image), 0, 0))
        return made

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*self.size, 3)

    def __len__(self) -> int:
        return self.size[0]

    def planes(self) -> np.ndarray:
        """(3, h, w) uint8 RGB, drawn now."""
        return render(
            self.scene,
            self.size,
            partner=self.partner,
            ratio=self.ratio,
            hsv=self.hsv,
            flip_vertical=self.flips[0],
            flip_horizontal=self.flips[1],
        )

    def pixels(self) -> np.ndarray:
        """Draws, and goes on as a canvas of these pixels: writes to them count."""
        if self.drawn is None:
            drawn = np.ascontiguousarray(self.planes()[::-1].transpose(1, 2, 0))
            self.__dict__.update(Picture.of(drawn).__dict__)
            self.drawn = drawn
        return self.drawn

    # How far it is

    def is_canvas(self) -> bool:
        """Not warped yet."""
        return self.scene.warp is None and self.is_warped()

    def is_warped(self) -> bool:
        """Neither blended yet, nor anything after that."""
        return self.partner is None and self.is_blended()

    def is_blended(self) -> bool:
        """Neither recoloured nor flipped yet."""
        return self.hsv is None and not any(self.flips) and self.mirrored is None

    def at(self, stage: Callable[[Picture], bool]) -> Picture:
        """Itself if it is no further than `stage`, else drawn."""
        if self.mirrored is not None or not stage(self):
            self.pixels()
        return self

    # What a chain does

    def copy(self) -> Picture:
        """Another one of the same pixels."""
        made = copy.copy(self)
        made.mirrored = None
        if self.drawn is not None:
            made.__dict__.update(Picture.of(self.drawn.copy()).__dict__)
        made.scene = copy.copy(made.scene)
        made.scene.canvas = copy.copy(made.scene.canvas)
        made.scene.canvas.tiles = list(made.scene.canvas.tiles)
        return made

    def warped(self, warp: Warp, size: tuple[int, int]) -> Picture:
        """Seen through a warp, as (height, width)."""
        made = self.at(Picture.is_canvas).copy()
        made.scene.warp, made.size = warp, size
        return made

    def blended(self, other: Picture, ratio: float) -> Picture:
        """(self * ratio + other * (1 - ratio)).astype(uint8)."""
        made = self.at(Picture.is_warped).copy()
        made.partner = other.at(Picture.is_warped).copy().scene
        made.ratio = ratio
        return made

    def recolour(self, tables: np.ndarray) -> None:
        """Hue, saturation and value through tables (3, 256) uint8, in place."""
        if self.hsv is not None or any(self.flips):
            self.pixels()  # OpenCV rounds the last columns of a row otherwise
        self.hsv, self.mirrored, self.drawn = tables, None, None

    def flipped(self, vertical: bool, horizontal: bool) -> Picture:
        """Mirrored, top to bottom or left to right."""
        made = self.copy()
        made.flips = (self.flips[0] != vertical, self.flips[1] != horizontal)
        if (vertical, horizontal) == (False, True) and self.is_canvas():
            made.mirrored = self
        return made

    def pasted(self, cutout: Cutout) -> bool:
        """The canvas's own mirror image where the mask is set, if it is of that kind."""
        mask, source = cutout.mask, cutout.picture.scene
        if cutout.picture.mirrored is not self or not self.takes_pixels():
            return False
        if len(source.canvas.tiles) != len(self.scene.canvas.tiles):
            return False
        if mask.ndim == 3 and not (mask == mask[..., :1]).all():
            return False
        flat = mask if mask.ndim == 2 else mask[..., 0]
        bits = np.packbits(flat[:, ::-1], axis=1, bitorder="little")
        self.scene.paste = np.pad(bits, ((0, 0), (0, 8)))
        return True

    def takes_pixels(self) -> bool:
        """A canvas that nothing was pasted on yet."""
        return self.is_canvas() and self.scene.paste is None and self.drawn is None

    # As an array

    def __getitem__(self, key: Any) -> Any:
        if self.mirrored is not None and _is_mask(key, self.size):
            return Cutout(self, key)
        return self.pixels()[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(value, Cutout) and value.mask is key and self.pasted(value):
            return
        at = _corner(key)
        if at is not None and self.takes_pixels() and is_image(value):
            x, y = at
            fits = (
                y + value.shape[0] <= self.size[0],
                x + value.shape[1] <= self.size[1],
            )
            if all(fits) and _covers(key, value.shape):
                self.scene.canvas.tiles += put_tile(_packed(value), x, y, self.size)
                return
        self.pixels()[key] = plain(value)

    def transpose(self, *axes: Any) -> Any:
        order = axes[0] if len(axes) == 1 else axes
        if tuple(order) == (2, 0, 1):
            return Planes(self, is_rgb=False)
        return self.pixels().transpose(*axes)

    def __mul__(self, factor: Any) -> Any:
        if isinstance(factor, float):  # np.float64 is one
            return Share(self, float(factor))
        return self.pixels() * factor

    def __array_function__(
        self, function: Any, types: Any, args: Any, kwargs: Any
    ) -> Any:
        if args and isinstance(args[0], Picture) and len(args) == 1 and not kwargs:
            if function in (np.flipud, np.fliplr):
                return args[0].flipped(function is np.flipud, function is np.fliplr)
            if function is np.copy:
                return args[0].copy()
        return function(*map(plain, args), **{k: plain(v) for k, v in kwargs.items()})


class Planes(Drawn):
    """A picture as (3, h, w), its planes in BGR or RGB order."""

    dtype = Picture.dtype
    ndim = 3

    def __init__(self, picture: Picture, is_rgb: bool) -> None:
        self.picture, self.is_rgb = picture, is_rgb

    @property
    def shape(self) -> tuple[int, int, int]:
        return (3, *self.picture.size)

    def pixels(self) -> np.ndarray:
        made = self.picture.planes()
        return made if self.is_rgb else np.ascontiguousarray(made[::-1])

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice) and key == slice(None, None, -1):
            return Planes(self.picture, not self.is_rgb)
        return self.pixels()[key]


class Share(Drawn):
    """A picture times a number, as mixup adds two of."""

    def __init__(self, picture: Picture, factor: float) -> None:
        self.picture, self.factor = picture, factor

    def pixels(self) -> np.ndarray:
        return np.asarray(self.picture) * self.factor

    def __add__(self, other: Any) -> Any:
        if isinstance(other, Share) and other.picture.size == self.picture.size:
            return Sum(self, other)
        return self.pixels() + plain(other)


class Sum(Drawn):
    """Two shares, added in float64."""

    def __init__(self, one: Share, two: Share) -> None:
        self.one, self.two = one, two

    def pixels(self) -> np.ndarray:
        return self.one.pixels() + self.two.pixels()

    def astype(self, dtype: Any, *args: Any, **kwargs: Any) -> Any:
        one, two = self.one, self.two
        if np.dtype(dtype) == np.uint8 and two.factor == 1 - one.factor:
            return one.picture.blended(two.picture, one.factor)
        return self.pixels().astype(dtype, *args, **kwargs)


class Cutout(Drawn):
    """A mirrored canvas under a mask: what copy-paste writes to the canvas."""

    def __init__(self, picture: Picture, mask: np.ndarray) -> None:
        self.picture, self.mask = picture, mask

    def pixels(self) -> np.ndarray:
        return np.asarray(self.picture)[self.mask]


def _packed(image: np.ndarray) -> np.ndarray:
    """The image with its pixels side by side; the very same if they are."""
    usual = image.strides[2] == 1 and image.strides[1] == 3 and image.strides[0] > 0
    return image if usual else np.ascontiguousarray(image)


def is_image(value: Any) -> bool:
    """An array (h, w, 3) uint8."""
    return (
        isinstance(value, np.ndarray)
        and value.dtype == np.uint8
        and value.ndim == 3
        and value.shape[2] == 3
    )


def _is_mask(key: Any, size: tuple[int, int]) -> bool:
    return isinstance(key, np.ndarray) and key.dtype == bool and key.shape[:2] == size


def _corner(key: Any) -> tuple[int, int] | None:
    """(x, y) of a key [y1:y2, x1:x2] of whole numbers."""
    if not isinstance(key, tuple) or len(key) != 2:
        return None
    if not all(isinstance(part, slice) and part.step is None for part in key):
        return None
    y, x = (part.start or 0 for part in key)
    return (int(x), int(y)) if min(x, y) >= 0 else None


def _covers(key: Any, shape: tuple[int, ...]) -> bool:
    """Is the place [y1:y2, x1:x2] exactly as large as the value?"""
    lengths = [
        None if part.stop is None else part.stop - (part.start or 0) for part in key
    ]
    return all(n is None or n == m for n, m in zip(lengths, shape, strict=False))
