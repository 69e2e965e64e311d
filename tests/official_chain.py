# SPDX-License-Identifier: MIT
"""YOLOv9's training augmentation as whole-image steps on OpenCV and NumPy.

Written anew from the behaviour of utils/dataloaders.py and utils/augmentations.py of
WongKinYiu/yolov9: every canvas, mask and float image is really made, and the random
draws come in the same order. The reference that yolov9mem's one pass is compared with.
"""

import math
import platform
import random
from dataclasses import dataclass

import cv2
import numpy as np

GREY = (114, 114, 114)


AVX2 = 11  # as cv2.checkHardwareSupport numbers it


def why_not_equal() -> str:
    """Why bit-equality can't be expected here; empty if it can."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"OpenCV's integers differ on {platform.machine()}, x86-64 is compared"
    if not cv2.__version__.startswith(("4.", "5.")):
        return f"OpenCV {cv2.__version__} is not known, 4 and 5 are compared"
    if cv2.__version__.startswith("5.") and not cv2.checkHardwareSupport(AVX2):
        return f"OpenCV {cv2.__version__} rounds otherwise on a CPU without AVX2"
    return ""


def paste_tile(canvas, image, x, y):
    """Draws `image` at (x, y), cut off at the canvas."""
    h, w = canvas.shape[:2]
    x1, y1 = max(x, 0), max(y, 0)
    x2, y2 = min(x + image.shape[1], w), min(y + image.shape[0], h)
    if x2 > x1 and y2 > y1:
        canvas[y1:y2, x1:x2] = image[y1 - y : y2 - y, x1 - x : x2 - x]


def to_pixels(labels, segments, image, x, y):
    """Normalised labels and polygons of an image placed at (x, y), in pixels."""
    h, w = image.shape[:2]
    out, polygons = labels.copy(), segments
    if len(labels):
        cx, cy, bw, bh = labels[:, 1:].T
        out[:, 1] = w * (cx - bw / 2) + x
        out[:, 2] = h * (cy - bh / 2) + y
        out[:, 3] = w * (cx + bw / 2) + x
        out[:, 4] = h * (cy + bh / 2) + y
        polygons = [np.stack((w * s[:, 0] + x, h * s[:, 1] + y), 1) for s in segments]
    return out, list(polygons)


def copy_paste(canvas, labels, segments, part):
    """Objects drawn again, mirrored: the whole canvas is mirrored and masked."""
    if not part or not segments:
        return labels
    width = canvas.shape[1]
    x1, y1, x2, y2 = labels[:, 1:].T
    mirrored = np.stack((width - x2, y1, width - x1, y2), 1)
    over_x = np.minimum(mirrored[:, None, 2], x2) - np.maximum(mirrored[:, None, 0], x1)
    over_y = np.minimum(mirrored[:, None, 3], y2) - np.maximum(mirrored[:, None, 1], y1)
    covered = over_x.clip(0) * over_y.clip(0) / ((x2 - x1) * (y2 - y1) + 1e-7)
    free = [i for i in range(len(labels)) if (covered[i] < 0.30).all()]
    mask = np.zeros(canvas.shape, np.uint8)
    added = []
    for i in random.sample(free, k=round(part * len(free))):
        added.append(np.concatenate((labels[i, :1], mirrored[i])))
        outline = segments[i]
        segments.append(np.stack((width - outline[:, 0], outline[:, 1]), 1))
        cv2.drawContours(mask, [outline.astype(np.int32)], -1, (1, 1, 1), cv2.FILLED)
    where = cv2.flip(mask, 1).astype(bool)
    canvas[where] = cv2.flip(canvas, 1)[where]
    return np.concatenate((labels, np.array(added, np.float32).reshape(-1, 5)))


def segment_boxes(segments, matrix, perspective, size, count):
    """Boxes around the polygons' warped points that are inside the image."""
    new = np.zeros((count, 4))
    for i, outline in enumerate(segments):
        closed = np.concatenate((outline, outline[:1]))
        at = np.linspace(0, len(closed) - 1, 1000)
        index = np.arange(len(closed))
        points = np.ones((1000, 3))
        points[:, 0] = np.interp(at, index, closed[:, 0])
        points[:, 1] = np.interp(at, index, closed[:, 1])
        moved = points @ matrix.T
        x, y = (moved[:, :2] / moved[:, 2:] if perspective else moved[:, :2]).T
        inside = (x >= 0) & (x <= size) & (y >= 0) & (y <= size)
        x, y = x[inside], y[inside]
        if x.any():
            new[i] = x.min(), y.min(), x.max(), y.max()
    return new


def corner_boxes(labels, matrix, perspective, size):
    """Boxes around the warped corners, cut off at the image."""
    corners = np.ones((4 * len(labels), 3))
    corners[:, :2] = labels[:, [1, 2, 3, 4, 1, 4, 3, 2]].reshape(-1, 2)
    moved = corners @ matrix.T
    xy = moved[:, :2] / moved[:, 2:] if perspective else moved[:, :2]
    x, y = xy.reshape(-1, 4, 2).transpose(2, 0, 1)
    return np.stack((x.min(1), y.min(1), x.max(1), y.max(1)), 1).clip(0, size)


def warp(canvas, labels, segments, hyp, size):
    """Draws and applies the warp of a canvas to a square image."""
    h, w = canvas.shape[:2]
    tilts = [random.uniform(-hyp["perspective"], hyp["perspective"]) for _ in range(2)]
    angle = random.uniform(-hyp["degrees"], hyp["degrees"])
    scale = random.uniform(1 - hyp["scale"], 1 + hyp["scale"])
    shears = [random.uniform(-hyp["shear"], hyp["shear"]) for _ in range(2)]
    low, high = 0.5 - hyp["translate"], 0.5 + hyp["translate"]
    shifts = [random.uniform(low, high) * size for _ in range(2)]
    center = np.array([[1.0, 0, -w / 2], [0, 1, -h / 2], [0, 0, 1]])
    tilt = np.array([[1.0, 0, 0], [0, 1, 0], [*tilts, 1]])
    turn = np.eye(3)
    turn[:2] = cv2.getRotationMatrix2D((0, 0), angle, scale)
    shear = np.eye(3)
    shear[0, 1], shear[1, 0] = (math.tan(a * math.pi / 180) for a in shears)
    shift = np.array([[1.0, 0, shifts[0]], [0, 1, shifts[1]], [0, 0, 1]])
    matrix = shift @ shear @ turn @ tilt @ center
    tilted = bool(hyp["perspective"])
    if h != size or (matrix != np.eye(3)).any():
        if tilted:
            image = cv2.warpPerspective(canvas, matrix, (size, size), borderValue=GREY)
        else:
            image = cv2.warpAffine(canvas, matrix[:2], (size, size), borderValue=GREY)
    else:
        image = canvas
    if len(labels) == 0:
        return image, labels
    outlined = any(s.any() for s in segments)
    if outlined:
        new = segment_boxes(segments, matrix, tilted, size, len(labels))
    else:
        new = corner_boxes(labels, matrix, tilted, size)
    x1, y1, x2, y2 = labels[:, 1:].T * scale
    w2, h2 = (new[:, 2:] - new[:, :2]).T
    part = w2 * h2 / ((x2 - x1) * (y2 - y1) + 1e-16)
    slender = np.maximum(w2 / (h2 + 1e-16), h2 / (w2 + 1e-16))
    kept = (w2 > 2) & (h2 > 2) & (slender < 100) & (part > (0.01 if outlined else 0.1))
    labels = labels[kept]
    labels[:, 1:] = new[kept]
    return image, labels


def jitter(image, hyp):
    """Draws and applies the colours, in place."""
    gains = hyp["hsv_h"], hyp["hsv_s"], hyp["hsv_v"]
    if not any(gains):
        return
    r = np.random.uniform(-1, 1, 3) * gains + 1
    x = np.arange(256, dtype=np.float64)
    tables = [(x * r[0]) % 180, np.clip(x * r[1], 0, 255), np.clip(x * r[2], 0, 255)]
    planes = cv2.split(cv2.cvtColor(image, cv2.COLOR_BGR2HSV))
    new = [cv2.LUT(p, t.astype(np.uint8)) for p, t in zip(planes, tables, strict=True)]
    cv2.cvtColor(cv2.merge(new), cv2.COLOR_HSV2BGR, dst=image)


@dataclass
class Chain:
    """Samples from tiles (h, w, 3) uint8 BGR whose long side is `size`."""

    images: list
    labels: list
    segments: list
    size: int
    hyp: dict
    nine: bool = False
    mosaic: bool = True

    def four(self, index):
        s = self.size
        half = -(-s // 2)
        y, x = (int(random.uniform(half, 2 * s - half)) for _ in range(2))
        chosen = [index, *random.choices(range(len(self.images)), k=3)]
        random.shuffle(chosen)
        canvas = np.full((2 * s, 2 * s, 3), 114, np.uint8)
        labels, segments = [], []
        for place, i in enumerate(chosen):
            image = self.images[i]
            left = x - image.shape[1] if place in (0, 2) else x
            top = y - image.shape[0] if place in (0, 1) else y
            paste_tile(canvas, image, left, top)
            boxes, outlines = to_pixels(
                self.labels[i], self.segments[i], image, left, top
            )
            labels.append(boxes)
            segments += outlines
        return canvas, np.concatenate(labels), segments

    def nine_tiles(self, index):
        s = self.size
        chosen = [index, *random.choices(range(len(self.images)), k=8)]
        random.shuffle(chosen)
        canvas = np.full((3 * s, 3 * s, 3), 114, np.uint8)
        labels, segments = [], []
        h0, w0 = self.images[chosen[0]].shape[:2]
        hp = wp = 0
        for place, i in enumerate(chosen):
            image = self.images[i]
            h, w = image.shape[:2]
            left, top = (
                (s, s),
                (s, s - h),
                (s + wp, s - h),
                (s + w0, s),
                (s + w0, s + hp),
                (s + w0 - w, s + h0),
                (s + w0 - wp - w, s + h0),
                (s - w, s + h0 - h),
                (s - w, s + h0 - hp - h),
            )[place]
            paste_tile(canvas, image, left, top)
            boxes, outlines = to_pixels(
                self.labels[i], self.segments[i], image, left, top
            )
            labels.append(boxes)
            segments += outlines
            hp, wp = h, w
        y, x = (int(random.uniform(0, s)) for _ in range(2))
        labels = np.concatenate(labels)
        labels[:, [1, 3]] -= x
        labels[:, [2, 4]] -= y
        segments = [o - np.array([x, y]) for o in segments]
        return canvas[y : y + 2 * s, x : x + 2 * s], labels, segments

    def warped(self, index):
        canvas, labels, segments = (self.nine_tiles if self.nine else self.four)(index)
        for points in (labels[:, 1:], *segments):
            np.clip(points, 0, 2 * self.size, out=points)
        labels = copy_paste(canvas, labels, segments, self.hyp["copy_paste"])
        return warp(canvas, labels, segments, self.hyp, self.size)

    def letterboxed(self, index):
        s, image = self.size, self.images[index]
        h, w = image.shape[:2]
        ratio = min(s / h, s / w)
        new_w, new_h = round(w * ratio), round(h * ratio)
        gap_x, gap_y = (s - new_w) / 2, (s - new_h) / 2
        resized = image
        if (new_w, new_h) != (w, h):
            resized = cv2.resize(image, (new_w, new_h), interpolation=cv2.INTER_LINEAR)
        canvas = np.full((s, s, 3), 114, np.uint8)
        paste_tile(canvas, resized, round(gap_x - 0.1), round(gap_y - 0.1))
        labels = self.labels[index].copy()
        if len(labels):
            cx, cy, bw, bh = labels[:, 1:].T.copy()
            labels[:, 1] = ratio * w * (cx - bw / 2) + gap_x
            labels[:, 2] = ratio * h * (cy - bh / 2) + gap_y
            labels[:, 3] = ratio * w * (cx + bw / 2) + gap_x
            labels[:, 4] = ratio * h * (cy + bh / 2) + gap_y
        return warp(canvas, labels, [], self.hyp, s)

    def sample(self, index):
        """(3, size, size) uint8 RGB and labels (n, 5), class and normalised xywh."""
        s = self.size
        if self.mosaic and random.random() < self.hyp["mosaic"]:
            image, labels = self.warped(index)
            if random.random() < self.hyp["mixup"]:
                other, more = self.warped(random.randint(0, len(self.images) - 1))
                r = np.random.beta(32.0, 32.0)
                image = (image * r + other * (1 - r)).astype(np.uint8)
                labels = np.concatenate((labels, more))
        else:
            image, labels = self.letterboxed(index)
        x1, y1, x2, y2 = labels[:, 1:].clip(0, s - 1e-3).T
        boxes = ((x1 + x2) / 2 / s, (y1 + y2) / 2 / s, (x2 - x1) / s, (y2 - y1) / s)
        labels = np.stack((labels[:, 0], *boxes), 1)
        jitter(image, self.hyp)
        if random.random() < self.hyp["flipud"]:
            image = np.flipud(image)
            labels[:, 2] = 1 - labels[:, 2]
        if random.random() < self.hyp["fliplr"]:
            image = np.fliplr(image)
            labels[:, 1] = 1 - labels[:, 1]
        return np.ascontiguousarray(image.transpose(2, 0, 1)[::-1]), labels
