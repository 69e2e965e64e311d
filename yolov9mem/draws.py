# SPDX-License-Identifier: MIT
"""YOLOv9's training augmentation: what is drawn, in its order.

Source: __getitem__, load_mosaic and load_mosaic9 of utils/dataloaders.py.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from yolov9mem.copy_paste import draw_paste
from yolov9mem.letterbox import letterbox_scene
from yolov9mem.mosaic import finish_labels, four_canvas, nine_canvas
from yolov9mem.scene import Canvas, Scene, make_scene, render
from yolov9mem.warp import draw_hsv, draw_warp


@dataclass
class Source:
    """Where tiles and labels come from.

    load: index to a resized tile (h, w, 3) uint8 BGR, checked. labels: for each image
    (n, 5) float32, class and normalised xywh. segments: for each image its normalised
    polygons. indices: what the other tiles are drawn from. border: (y, x), minus what
    the image is smaller than the canvas on each side. count: of images.
    """

    load: Callable[[int], np.ndarray]
    labels: Sequence[np.ndarray]
    segments: Sequence[Sequence[np.ndarray]]
    indices: Sequence[int]
    image_size: int
    border: Sequence[int]
    hyp: Mapping[str, float]
    count: int


def _draw_tiles(source: Source, index: int, count: int) -> list[int]:
    indices = [index, *random.choices(source.indices, k=count - 1)]
    random.shuffle(indices)
    return indices


def _four(source: Source, index: int) -> Canvas:
    size = source.image_size
    y, x = (int(random.uniform(-b, 2 * size + b)) for b in source.border)
    chosen = _draw_tiles(source, index, 4)
    tiles = [source.load(i) for i in chosen]
    labels = [source.labels[i] for i in chosen]
    segments = [source.segments[i] for i in chosen]
    return four_canvas(tiles, labels, segments, size, (x, y))


def _nine(source: Source, index: int) -> Canvas:
    size = source.image_size
    chosen = _draw_tiles(source, index, 9)
    tiles = [source.load(i) for i in chosen]
    y, x = (int(random.uniform(0, size)) for _ in source.border)
    labels = [source.labels[i] for i in chosen]
    segments = [source.segments[i] for i in chosen]
    return nine_canvas(tiles, labels, segments, size, (x, y))


def draw_mosaic(source: Source, index: int, *, nine: bool = False) -> Scene:
    """Draws tiles, centre, copy-paste and warp for one image. Source: load_mosaic."""
    canvas = _nine(source, index) if nine else _four(source, index)
    paste: list[int] = []
    if source.hyp["copy_paste"] and canvas.segments:
        paste = draw_paste(canvas.labels, canvas.size[1], source.hyp["copy_paste"])
    image = (
        canvas.size[0] + 2 * source.border[0],
        canvas.size[1] + 2 * source.border[1],
    )
    warp = draw_warp(source.hyp, canvas.size, image)
    return make_scene(canvas, warp, image, paste)


@dataclass
class Picture:
    """Everything drawn but the colours and flips: one scene, or two blended."""

    scene: Scene
    partner: Scene | None
    ratio: float
    labels: np.ndarray
    size: tuple[int, int]


def draw_mosaic_picture(source: Source, index: int, *, nine: bool = False) -> Picture:
    """A mosaic and, drawn by chance, a second one for mixup."""
    border = source.border
    side = 2 * source.image_size
    size = (side + 2 * border[0], side + 2 * border[1])
    scene = draw_mosaic(source, index, nine=nine)
    if random.random() >= source.hyp["mixup"]:
        return Picture(scene, None, 1.0, scene.labels, size)
    other = random.randint(0, source.count - 1)
    partner = draw_mosaic(source, other, nine=nine)
    ratio = float(np.random.beta(32.0, 32.0))
    labels = np.concatenate((scene.labels, partner.labels), 0)
    return Picture(scene, partner, ratio, labels, size)


def draw_letterbox_picture(
    image: np.ndarray,
    labels: np.ndarray,
    size: Sequence[int],
    hyp: Mapping[str, float] | None,
    *,
    scale_up: bool = True,
) -> Picture:
    """One image on grey, warped at random unless `hyp` is None."""
    shape = (int(size[0]), int(size[1]))
    warp = draw_warp(hyp, shape, shape) if hyp is not None else None
    scene = letterbox_scene(image, labels, size, warp, scale_up=scale_up)
    return Picture(scene, None, 1.0, scene.labels, shape)


@dataclass
class Recipe:
    """Everything drawn, nothing rendered.

    hsv: (3, 256) uint8 tables or None. The image may be rendered later and elsewhere.
    """

    picture: Picture
    hsv: np.ndarray | None
    flip_vertical: bool
    flip_horizontal: bool

    def scenes(self) -> tuple[Scene, ...]:
        """One, or two that are blended."""
        picture = self.picture
        both = (picture.scene, picture.partner)
        return tuple(scene for scene in both if scene is not None)

    def image(self, out: np.ndarray | None = None) -> np.ndarray:
        """(3, height, width) uint8 RGB; `out` is written if given."""
        picture = self.picture
        return render(
            picture.scene,
            picture.size,
            partner=picture.partner,
            ratio=picture.ratio,
            hsv=self.hsv,
            flip_vertical=self.flip_vertical,
            flip_horizontal=self.flip_horizontal,
            out=out,
        )

    def labels(self) -> np.ndarray:
        """(n, 5) float32, class and normalised xywh."""
        picture = self.picture
        flips = self.flip_vertical, self.flip_horizontal
        return finish_labels(picture.labels, picture.size, *flips)


def finish_recipe(picture: Picture, hyp: Mapping[str, float]) -> Recipe:
    """Draws colours and flips."""
    hsv = draw_hsv(hyp)
    flip_vertical = random.random() < hyp["flipud"]
    flip_horizontal = random.random() < hyp["fliplr"]
    return Recipe(picture, hsv, flip_vertical, flip_horizontal)


def finish_picture(
    picture: Picture, hyp: Mapping[str, float], out: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draws colours and flips and renders: image and normalised labels."""
    recipe = finish_recipe(picture, hyp)
    return recipe.image(out), recipe.labels()
