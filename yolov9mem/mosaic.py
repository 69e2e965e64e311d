# SPDX-License-Identifier: MIT
"""The 4-tile and 9-tile mosaic of YOLOv9, with everything that follows it, in one call.

Where the tiles lie: load_mosaic and load_mosaic9 of utils/dataloaders.py.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from yolov9mem._checks import (
    check_apart,
    check_image,
    check_sequence,
    check_whole,
    is_whole,
)
from yolov9mem.images import MAX_SIDE
from yolov9mem.labels import (
    check_labels,
    check_segments,
    normalise_labels,
    split_points,
)
from yolov9mem.scene import (
    Canvas,
    Scene,
    make_scene,
    place_labels,
    put_tile,
    render,
)
from yolov9mem.warp import Warp


def _four_places(
    sizes: Sequence[tuple[int, int]], center: tuple[int, int]
) -> list[tuple[int, int]]:
    """(x, y) of four tiles (height, width) that meet at the centre (x, y)."""
    x, y = center
    (h0, w0), (h1, _), (_, w2), _ = sizes
    return [(x - w0, y - h0), (x, y - h1), (x - w2, y), (x, y)]


def _nine_places(sizes: Sequence[tuple[int, int]], side: int) -> list[tuple[int, int]]:
    """(x, y) of a tile in the middle and eight around it, clockwise from the top."""
    h = [height for height, _ in sizes]
    w = [width for _, width in sizes]
    right, bottom = side + w[0], side + h[0]
    return [
        (side, side),
        (side, side - h[1]),
        (side + w[1], side - h[2]),
        (right, side),
        (right, side + h[3]),
        (right - w[5], bottom),
        (right - w[5] - w[6], bottom),
        (side - w[7], bottom - h[7]),
        (side - w[8], bottom - h[7] - h[8]),
    ]


def _cut_off(points: np.ndarray, side: int) -> None:
    np.minimum(np.maximum(points, 0, out=points), side, out=points)


def four_canvas(
    images: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    segments: Sequence[Sequence[np.ndarray]],
    image_size: int,
    center: tuple[int, int],
) -> Canvas:
    """Four tiles around `center` (x, y) on a canvas of twice the image size."""
    side = 2 * image_size
    places = _four_places([i.shape[:2] for i in images], center)
    tiles = []
    for image, at in zip(images, places, strict=True):
        tiles += put_tile(image, *at, (side, side))
    boxes, points, lengths = place_labels(labels, segments, images, places)
    _cut_off(boxes[:, 1:], side)
    _cut_off(points, side)
    return Canvas(tiles, (side, side), boxes, split_points(points, lengths))


def nine_canvas(
    images: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    segments: Sequence[Sequence[np.ndarray]],
    image_size: int,
    corner: tuple[int, int],
) -> Canvas:
    """The window of twice the image size at `corner` (x, y) of nine tiles."""
    side = 2 * image_size
    places = _nine_places([i.shape[:2] for i in images], image_size)
    tiles = []
    for image, (x, y) in zip(images, places, strict=True):
        tiles += put_tile(image, x - corner[0], y - corner[1], (side, side))
    boxes, points, lengths = place_labels(labels, segments, images, places)
    boxes[:, [1, 3]] -= corner[0]
    boxes[:, [2, 4]] -= corner[1]
    # An array of integers makes the points float64, as there; the mask depends on it.
    points = points - np.array(corner)
    _cut_off(boxes[:, 1:], side)
    _cut_off(points, side)
    return Canvas(tiles, (side, side), boxes, split_points(points, lengths))


def _middle(canvas: tuple[int, int], image: tuple[int, int]) -> Warp:
    matrix = np.eye(3)
    matrix[0, 2] = image[1] / 2 - canvas[1] / 2
    matrix[1, 2] = image[0] / 2 - canvas[0] / 2
    return Warp(matrix)


_FAR = 2**30  # pixels; further out nothing is seen, and sums stay within int32


def _check_center(center: Any) -> tuple[int, int]:
    check_sequence("center", center)
    if len(center) != 2:
        raise ValueError(f"center: is {center!r}, must be (x, y)")
    if not all(map(is_whole, center)):
        raise TypeError(f"center: is {center!r}, must be whole numbers (x, y)")
    x, y = int(center[0]), int(center[1])
    if max(abs(x), abs(y)) > _FAR:
        raise ValueError(f"center: is {center!r}, must be at most {_FAR} from 0")
    return x, y


def _check_warp(warp: Any) -> None:
    if not isinstance(warp, Warp):
        raise TypeError(f"warp: is a {type(warp).__name__}, must be a Warp")
    warp.check()


def _check_paste(paste: Any) -> None:
    check_sequence("paste", paste)
    if not all(map(is_whole, paste)):
        raise TypeError(f"paste: is {paste!r}, must be whole numbers")


def _check_tiles(
    images: Sequence[np.ndarray],
    labels: Sequence[np.ndarray] | None,
    segments: Sequence[Sequence[np.ndarray]] | None,
) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    """The labels and polygons of each tile, as float32."""
    check_sequence("images", images)
    for name, given in (("labels", labels), ("segments", segments)):
        if given is not None:
            check_sequence(name, given)
    count = len(images)
    if count not in (4, 9):
        raise ValueError(f"mosaic: {count} images, must be 4 or 9")
    for i, tile in enumerate(images):
        check_image(f"tile {i}", tile)
    labels = [np.zeros((0, 5), np.float32)] * count if labels is None else labels
    segments = [[]] * count if segments is None else segments
    if len(labels) != count or len(segments) != count:
        raise ValueError(
            f"mosaic: {count} images but {len(labels)} arrays of labels and "
            f"{len(segments)} lists of segments"
        )
    checked = [check_labels(x, f"labels of tile {i}") for i, x in enumerate(labels)]
    polygons = [
        check_segments(s, len(x), f"segments of tile {i}")
        for i, (s, x) in enumerate(zip(segments, checked, strict=True))
    ]
    return checked, polygons


def mosaic_scene(
    images: Sequence[np.ndarray],
    labels: Sequence[np.ndarray] | None = None,
    segments: Sequence[Sequence[np.ndarray]] | None = None,
    *,
    image_size: int = 640,
    center: tuple[int, int] | None = None,
    warp: Warp | None = None,
    paste: Sequence[int] = (),
) -> Scene:
    """Four or nine tiles as a scene, to be rendered or blended into another.

    The arguments are those of `mosaic`.
    """
    checked, polygons = _check_tiles(images, labels, segments)
    image_size = check_whole("image_size", image_size, 1, MAX_SIDE // 2)
    four = len(images) == 4
    if center is None:
        center = (image_size, image_size) if four else (image_size // 2,) * 2
    if warp is not None:
        _check_warp(warp)
    _check_paste(paste)
    make = four_canvas if four else nine_canvas
    canvas = make(images, checked, polygons, image_size, _check_center(center))
    image = (image_size, image_size)
    warp = _middle(canvas.size, image) if warp is None else warp
    return make_scene(canvas, warp, image, paste)


def finish_labels(
    labels: np.ndarray,
    image: tuple[int, int],
    flip_vertical: bool,
    flip_horizontal: bool,
) -> np.ndarray:
    """Labels (n, 5) in xyxy pixels to normalised xywh, flipped with the image."""
    labels = normalise_labels(labels, *image)
    flip_labels(labels, flip_vertical, flip_horizontal)
    return labels


def flip_labels(labels: np.ndarray, flip_vertical: bool, flip_horizontal: bool) -> None:
    """Flips labels (n, 5) in normalised xywh in place, as their image is flipped."""
    if flip_vertical:
        labels[:, 2] = 1 - labels[:, 2]
    if flip_horizontal:
        labels[:, 1] = 1 - labels[:, 1]


def mosaic(
    images: Sequence[np.ndarray],
    labels: Sequence[np.ndarray] | None = None,
    segments: Sequence[Sequence[np.ndarray]] | None = None,
    *,
    image_size: int = 640,
    center: tuple[int, int] | None = None,
    warp: Warp | None = None,
    paste: Sequence[int] = (),
    partner: Scene | None = None,
    ratio: float = 0.5,
    hsv: np.ndarray | None = None,
    flip_vertical: bool = False,
    flip_horizontal: bool = False,
    out: np.ndarray | None = None,
    backend: str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """Mosaic, warp, copy-paste, mixup, colour and flips in one pass; nothing is drawn.

    images: 4 (around `center`) or 9 (clockwise from the middle, then the top) tiles,
    (h, w, 3) uint8 BGR, as a rule image_size long (`resize_to_fit`): of any tile what is
    beyond the canvas, 2 image_size a side, is cut off, and of its boxes and polygons too.
    labels: for each tile (n, 5), class and normalised xywh. segments: for each tile a
    list of normalised polygons (points, 2), one per label or none; where another tile
    has some, the four corners of a box are the polygon of a label without. center:
    (x, y) where tiles meet, or the upper left corner of the window on nine. warp: canvas
    to image, see `draw_warp`; None shows the middle. paste: objects to paste mirrored,
    indices of the labels of all tiles in order, see `draw_paste`. partner: a second
    scene of `mosaic_scene`, of the same image_size, for mixup, this one's part being
    `ratio`. hsv: see `hsv_tables`. out: (3, image_size, image_size) uint8 to write to.

    Returns the image, (3, image_size, image_size) uint8 RGB, and its labels, (n, 5)
    float32: class and normalised xywh. Beside both, what is allocated is no canvas, but
    about 0.6 kB a label, 32 bytes a point of a polygon and, to paste, one bit a pixel of
    the canvas, image_size ** 2 / 2 bytes.

    Raises ValueError or TypeError naming what breaks a rule; tiles are never written,
    so `out` may share no memory with them.
    """
    if partner is not None and not isinstance(partner, Scene):
        raise TypeError(f"partner: is a {type(partner).__name__}, must be a Scene")
    scene = mosaic_scene(
        images,
        labels,
        segments,
        image_size=image_size,
        center=center,
        warp=warp,
        paste=paste,
    )
    if isinstance(out, np.ndarray):  # the scene holds what is seen of the tiles only
        check_apart({"out": out}, {f"tile {i}": tile for i, tile in enumerate(images)})
    image = (int(image_size), int(image_size))
    if partner is not None and partner.canvas.size != scene.canvas.size:
        raise ValueError(
            f"partner: image_size is {partner.canvas.size[0] // 2}, must be {image_size}"
            " as of this mosaic"
        )
    picture = render(
        scene,
        image,
        partner=partner,
        ratio=ratio,
        hsv=hsv,
        flip_vertical=flip_vertical,
        flip_horizontal=flip_horizontal,
        out=out,
        backend=backend,
    )
    found = scene.labels
    if partner is not None:
        found = np.concatenate((found, partner.labels), 0)
    return picture, finish_labels(found, image, flip_vertical, flip_horizontal)
