# SPDX-License-Identifier: MIT
"""Reading and resizing images."""

import os
from typing import Any

import numpy as np

from yolov9mem import _core
from yolov9mem._checks import check_image, check_whole

MAX_SIDE = 32766


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """An image file as (h, w, 3) uint8 BGR, upright as its EXIF data says.

    Decoded by OpenCV or else by Pillow, whichever is installed; ImportError names both
    if neither is. WebP files are turned by Pillow, not by OpenCV 4. Of 16 bits a sample
    the upper 8 are kept. Of a truncated JPEG OpenCV gives what is there, as the official
    data set has it, and Pillow nothing. Raises FileNotFoundError, or ValueError for a
    file that is no image or has 32 bits a sample.
    """
    name = os.fspath(path)
    if not os.path.isfile(name):
        what = "is no file" if os.path.exists(name) else "does not exist"
        raise FileNotFoundError(f"image {name} {what}")
    try:
        import cv2
    except ImportError:
        return _read_with_pillow(name)
    try:
        image = cv2.imread(name) if _is_text(name) else _decoded(cv2, name)
    except cv2.error as error:  # such as more pixels than OpenCV allows
        raise ValueError(f"image {name}: OpenCV can't read it: {error}") from error
    if image is None:
        raise ValueError(f"image {name}: OpenCV can't read it")
    return np.asarray(image, dtype=np.uint8)


def _is_text(name: str) -> bool:
    """A file's name may be any bytes; cv2.imread crashes where they are no UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _decoded(cv2: Any, name: str) -> Any:
    data = np.fromfile(name, np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None


def _read_with_pillow(name: str) -> np.ndarray:
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise ImportError(
            "reading images needs OpenCV (pip install opencv-python-headless) or "
            "Pillow (pip install pillow); neither is installed"
        ) from error
    try:
        with Image.open(name) as file:
            if file.mode == "F" or (file.mode == "I" and file.format == "TIFF"):
                raise ValueError(
                    f"image {name}: has 32 bits a sample, must have 8 or 16"
                )
            upright = ImageOps.exif_transpose(file)
            if upright.mode.startswith("I"):  # convert would cut off at 255
                grey = (np.asarray(upright) >> 8).astype(np.uint8)
                return np.repeat(grey[..., np.newaxis], 3, axis=2)
            rgb = np.asarray(upright.convert("RGB"))
    except (
        UnidentifiedImageError,
        Image.DecompressionBombError,
        OSError,
        SyntaxError,
    ) as error:
        raise ValueError(f"image {name}: Pillow can't read it: {error}") from error
    return np.ascontiguousarray(rgb[..., ::-1])


def resize_image(
    image: np.ndarray, height: int, width: int, name: str = "image"
) -> np.ndarray:
    """A new (height, width, 3) uint8 image, bit-equal to cv2.resize, INTER_LINEAR.

    Raises ValueError or TypeError for another shape or dtype, or sides that are not 1
    to 32766; it begins with `name`.
    """
    check_image(name, image)
    for what, (h, w) in (("is", image.shape[:2]), ("resized is", (height, width))):
        if not (1 <= h <= MAX_SIDE and 1 <= w <= MAX_SIDE):
            raise ValueError(
                f"{name}: {what} {w}x{h} pixels, sides must be 1 to {MAX_SIDE}"
            )
    out = np.empty((height, width, 3), np.uint8)
    _core.resize_image(image, out)
    return out


def resize_to_fit(
    image: np.ndarray, image_size: int, name: str = "image"
) -> np.ndarray:
    """The image with its long side `image_size` pixels, as YOLOv9's load_image has it.

    The very same array if it fits already. Raises ValueError or TypeError that begins
    with `name` for no image, or where the short side would vanish.
    """
    check_image(name, image)
    image_size = check_whole("image_size", image_size, 1, MAX_SIDE)
    height, width = image.shape[:2]
    ratio = image_size / max(height, width)
    if ratio == 1:
        return image
    new_height, new_width = int(height * ratio), int(width * ratio)
    if new_height < 1 or new_width < 1:
        raise ValueError(
            f"{name}: {width}x{height} resized to a long side of {image_size} "
            f"is {new_width}x{new_height}, sides must be at least 1"
        )
    return resize_image(image, new_height, new_width, name)
