# SPDX-License-Identifier: MIT
"""The YOLOv9 training augmentation with OpenCV and NumPy (the `--stock` chain).

mosaic of four -> copy-paste of polygons -> perspective -> mixup -> HSV -> flips. The
random numbers are drawn in the field's order from `random` and `np.random`, so one
seed gives one picture, byte for byte, whoever computes it.

Labels on the way: (n, 5) float32 class, x1, y1, x2, y2 in pixels.
"""

import math
import random

import cv2
import numpy as np

GREY = 114
RESAMPLED_POINTS = 1000


def training_sample(dataset, index: int) -> tuple[np.ndarray, np.ndarray]:
    """(image (3, s, s) uint8 RGB, labels (n, 5) float32 class, xywh in [0, 1])."""
    hyp, index = dataset.hyp, dataset.indices[index]
    if dataset.mosaic and random.random() < hyp["mosaic"]:
        image, labels = mosaic(dataset, index)
        if random.random() < hyp["mixup"]:
            other = mosaic(dataset, random.randint(0, dataset.n - 1))
            image, labels = mixup(image, labels, *other)
    else:
        image, labels = single(dataset, index)
    labels = normalised(labels, image.shape[1], image.shape[0])
    image = jitter_hsv(image, hyp["hsv_h"], hyp["hsv_s"], hyp["hsv_v"])
    if random.random() < hyp["flipud"]:
        image = image[::-1]
        labels[:, 2] = 1 - labels[:, 2]
    if random.random() < hyp["fliplr"]:
        image = image[:, ::-1]
        labels[:, 1] = 1 - labels[:, 1]
    return np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1)), labels


def mosaic(dataset, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Four images round a random centre of a 2s x 2s canvas, warped to s x s."""
    s = dataset.img_size
    yc, xc = (int(random.uniform(-b, 2 * s + b)) for b in dataset.mosaic_border)
    chosen = [index, *random.choices(dataset.indices, k=3)]
    random.shuffle(chosen)
    canvas = np.full((2 * s, 2 * s, 3), GREY, dtype=np.uint8)
    labels, segments = [], []
    for corner, i in enumerate(chosen):
        image, _, (h, w) = dataset.load_image(i)
        left, top = corner % 2 == 0, corner < 2
        x0, y0 = xc - w if left else xc, yc - h if top else yc
        x1, x2 = max(x0, 0), min(x0 + w, 2 * s)
        y1, y2 = max(y0, 0), min(y0 + h, 2 * s)
        canvas[y1:y2, x1:x2] = image[y1 - y0 : y2 - y0, x1 - x0 : x2 - x0]
        labels.append(in_pixels(dataset.labels[i], w, h, x0, y0))
        for polygon in dataset.segments[i]:
            segments.append(placed(polygon, w, h, x0, y0))
    table = np.concatenate(labels, 0)
    table[:, 1:].clip(0, 2 * s, out=table[:, 1:])
    segments = [p.clip(0, 2 * s) for p in segments]
    table, segments = copy_paste(canvas, table, segments, dataset.hyp["copy_paste"])
    return perspective(canvas, table, segments, dataset.hyp, dataset.mosaic_border)


def single(dataset, index: int) -> tuple[np.ndarray, np.ndarray]:
    """One image, letterboxed, then the perspective; for a rectangle batch too."""
    image, _, (h, w) = dataset.load_image(index)
    image, ratio, (dw, dh) = letterbox(image, dataset.batch_shape(index))
    labels = dataset.labels[index].copy()
    scaled_w, scaled_h = ratio * w, ratio * h
    labels[:, 1:] = in_pixels(labels, scaled_w, scaled_h, dw, dh)[:, 1:]
    return perspective(image, labels, [], dataset.hyp, (0, 0))


def in_pixels(
    labels: np.ndarray, w: float, h: float, x0: float, y0: float
) -> np.ndarray:
    """(n, 5) class, xywh in [0, 1] -> class, xyxy in pixels, moved by (x0, y0)."""
    out = labels.copy()
    x, y, bw, bh = labels[:, 1:].T
    out[:, 1] = w * (x - bw / 2) + x0
    out[:, 2] = h * (y - bh / 2) + y0
    out[:, 3] = w * (x + bw / 2) + x0
    out[:, 4] = h * (y + bh / 2) + y0
    return out


def placed(polygon: np.ndarray, w: int, h: int, x0: int, y0: int) -> np.ndarray:
    """Polygon (k, 2) in [0, 1] -> pixels, moved by (x0, y0), float32."""
    out = polygon.copy()
    out[:, 0] = w * polygon[:, 0] + x0
    out[:, 1] = h * polygon[:, 1] + y0
    return out


def normalised(labels: np.ndarray, w: int, h: int, eps: float = 1e-3) -> np.ndarray:
    """(n, 5) class, xyxy in pixels -> class, xywh in [0, 1], clipped."""
    out = labels.astype(np.float32)
    x1, x2 = labels[:, 1].clip(0, w - eps), labels[:, 3].clip(0, w - eps)
    y1, y2 = labels[:, 2].clip(0, h - eps), labels[:, 4].clip(0, h - eps)
    out[:, 1], out[:, 3] = (x1 + x2) / 2 / w, (x2 - x1) / w
    out[:, 2], out[:, 4] = (y1 + y2) / 2 / h, (y2 - y1) / h
    return out


def letterbox(
    image: np.ndarray, shape: tuple[int, int], enlarge: bool = True
) -> tuple[np.ndarray, float, tuple[float, float]]:
    """Fits an image into (H, W): (image, ratio, (pad left, pad top) unrounded)."""
    h, w = image.shape[:2]
    ratio = min(shape[0] / h, shape[1] / w)
    if not enlarge:
        ratio = min(ratio, 1.0)
    new_w, new_h = round(w * ratio), round(h * ratio)
    dw, dh = (shape[1] - new_w) / 2, (shape[0] - new_h) / 2
    if (w, h) != (new_w, new_h):
        image = cv2.resize(image, (new_w, new_h), interpolation=cv2.INTER_LINEAR)
    top, bottom = round(dh - 0.1), round(dh + 0.1)
    left, right = round(dw - 0.1), round(dw + 0.1)
    image = cv2.copyMakeBorder(
        image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(GREY,) * 3
    )
    return image, ratio, (dw, dh)


def copy_paste(
    canvas: np.ndarray, labels: np.ndarray, segments: list[np.ndarray], p: float
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Pastes mirrored objects where they cover little; changes the canvas in place."""
    if not p or not segments:
        return labels, segments
    width = canvas.shape[1]
    mirrored = labels[:, [3, 2, 1, 4]].copy()
    mirrored[:, [0, 2]] = width - mirrored[:, [0, 2]]
    free = np.nonzero((covered(mirrored, labels[:, 1:]) < 0.30).all(1))[0]
    mask = np.zeros(canvas.shape[:2], np.uint8)
    added, outlines = [], list(segments)
    for j in random.sample(list(free), k=round(p * len(free))):
        added.append(np.concatenate((labels[j, :1], mirrored[j])))
        outline = segments[j]
        outlines.append(np.stack((width - outline[:, 0], outline[:, 1]), 1))
        cv2.drawContours(mask, [outline.astype(np.int32)], -1, 1, cv2.FILLED)
    mask = mask[:, ::-1].astype(bool)
    canvas[mask] = canvas[:, ::-1].copy()[mask]
    added = np.array(added, np.float32).reshape(-1, 5)
    return np.concatenate((labels, added)), outlines


def covered(a: np.ndarray, b: np.ndarray, eps: float = 1e-7) -> np.ndarray:
    """(n, m) share of box b that box a covers."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    overlap = (high - low).clip(0).prod(2)
    return overlap / ((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) + eps)


def draw_matrix(
    size: tuple[int, int], out: tuple[int, int], hyp: dict
) -> tuple[np.ndarray, float]:
    """Random 3 x 3 warp from an (H, W) image to (H, W) `out`, and its scale."""
    centre, tilt, rotate, shear, move = (np.eye(3) for _ in range(5))
    centre[0, 2], centre[1, 2] = -size[1] / 2, -size[0] / 2
    p = hyp["perspective"]
    tilt[2, 0] = random.uniform(-p, p)
    tilt[2, 1] = random.uniform(-p, p)
    angle = random.uniform(-hyp["degrees"], hyp["degrees"])
    scale = random.uniform(1 - hyp["scale"], 1 + hyp["scale"])
    rotate[:2] = cv2.getRotationMatrix2D(angle=angle, center=(0, 0), scale=scale)
    shear[0, 1] = math.tan(random.uniform(-hyp["shear"], hyp["shear"]) * math.pi / 180)
    shear[1, 0] = math.tan(random.uniform(-hyp["shear"], hyp["shear"]) * math.pi / 180)
    t = hyp["translate"]
    move[0, 2] = random.uniform(0.5 - t, 0.5 + t) * out[1]
    move[1, 2] = random.uniform(0.5 - t, 0.5 + t) * out[0]
    return move @ shear @ rotate @ tilt @ centre, scale


def perspective(
    image: np.ndarray,
    labels: np.ndarray,
    segments: list[np.ndarray],
    hyp: dict,
    border: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Random warp; `border` (negative: cut) is added to each side of the image."""
    h, w = image.shape[0] + 2 * border[0], image.shape[1] + 2 * border[1]
    matrix, scale = draw_matrix(image.shape[:2], (h, w), hyp)
    if any(border) or (matrix != np.eye(3)).any():
        grey = (GREY,) * 3
        if hyp["perspective"]:
            image = cv2.warpPerspective(image, matrix, dsize=(w, h), borderValue=grey)
        else:
            image = cv2.warpAffine(image, matrix[:2], dsize=(w, h), borderValue=grey)
    if len(labels) == 0:
        return image, labels
    outlined = any(p.any() for p in segments)
    if outlined:
        new = np.stack([outline_box(p, matrix, w, h) for p in segments])
    else:
        new = corner_boxes(labels[:, 1:], matrix, w, h)
    kept = usable(labels[:, 1:] * scale, new, 0.01 if outlined else 0.10)
    labels = labels[kept]
    labels[:, 1:] = new[kept]
    return image, labels


def transformed(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(k, 2) points through a 3 x 3 matrix, float64."""
    xyw = np.concatenate((points, np.ones((len(points), 1))), 1) @ matrix.T
    return xyw[:, :2] / xyw[:, 2:]


def outline_box(polygon: np.ndarray, matrix: np.ndarray, w: int, h: int) -> np.ndarray:
    """Box (4,) of the part of a warped closed polygon inside w x h, else zeros."""
    closed = np.concatenate((polygon, polygon[:1]), 0)
    at = np.linspace(0, len(closed) - 1, RESAMPLED_POINTS)
    fine = [np.interp(at, np.arange(len(closed)), closed[:, i]) for i in range(2)]
    x, y = transformed(np.stack(fine, 1), matrix).T
    inside = (x >= 0) & (y >= 0) & (x <= w) & (y <= h)
    x, y = x[inside], y[inside]
    if not x.any():
        return np.zeros(4)
    return np.array([x.min(), y.min(), x.max(), y.max()])


def corner_boxes(boxes: np.ndarray, matrix: np.ndarray, w: int, h: int) -> np.ndarray:
    """(n, 4) bounds of warped boxes, clipped to w x h."""
    corners = boxes[:, [0, 1, 2, 3, 0, 3, 2, 1]].reshape(-1, 2)
    moved = transformed(corners, matrix).reshape(-1, 4, 2)
    new = np.concatenate((moved.min(1), moved.max(1)), 1)
    return new.clip(0, [w, h, w, h])


def usable(old: np.ndarray, new: np.ndarray, area: float) -> np.ndarray:
    """(n,) bool: over 2 px a side, enough of the old area, aspect below 100."""
    eps = 1e-16
    old_w, old_h = old[:, 2] - old[:, 0], old[:, 3] - old[:, 1]
    new_w, new_h = new[:, 2] - new[:, 0], new[:, 3] - new[:, 1]
    aspect = np.maximum(new_w / (new_h + eps), new_h / (new_w + eps))
    kept = new_w * new_h / (old_w * old_h + eps) > area
    return (new_w > 2) & (new_h > 2) & kept & (aspect < 100)


def mixup(
    a: np.ndarray, a_labels: np.ndarray, b: np.ndarray, b_labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean of two images, truncated; all labels of both."""
    r = np.random.beta(32.0, 32.0)
    image = (a * r + b * (1 - r)).astype(np.uint8)
    return image, np.concatenate((a_labels, b_labels), 0)


def jitter_hsv(image: np.ndarray, hue: float, sat: float, val: float) -> np.ndarray:
    """Random gains on hue, saturation and value of a BGR image."""
    if not (hue or sat or val):
        return image
    gain = np.random.uniform(-1, 1, 3) * [hue, sat, val] + 1
    levels = np.arange(256, dtype=np.float64)
    tables = [(levels * gain[0]) % 180]
    tables += [np.clip(levels * g, 0, 255) for g in gain[1:]]
    table = np.stack(tables, 1).astype(np.uint8)[None]
    hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_BGR2HSV), table)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
