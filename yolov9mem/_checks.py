# SPDX-License-Identifier: MIT
"""Checks of what a user gives: each raises TypeError or ValueError naming it."""

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt

from yolov9mem import _core

Array = npt.NDArray[Any]
INT_MAX = 2**31 - 1  # sizes are int32 in the core
_HARD: Any = 10_000  # steps of NumPy's search for a shared byte; its stubs know no int


def is_whole(value: Any) -> bool:
    """A whole number of Python's or NumPy's; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_whole(name: str, value: Any, low: int, high: int) -> int:
    """`value` as an int from `low` to `high`."""
    if not is_whole(value):
        raise TypeError(f"{name}: is {value!r}, must be a whole number")
    whole = int(value)
    if not low <= whole <= high:
        raise ValueError(f"{name}: is {whole}, must be {low} to {high}")
    return whole


def check_real(name: str, value: Any) -> None:
    """A number; its range is the caller's."""
    if not isinstance(value, Real):
        raise TypeError(f"{name}: is {value!r}, must be a number")


def as_float(value: Any) -> float:
    """A number, to be compared with others: NumPy would bring these to its few bits. One
    beyond all floats is infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def check_flag(name: str, value: Any) -> None:
    """True or False, of Python or NumPy: any text would be true."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: is {value!r}, must be True or False")


def check_sequence(name: str, value: Any) -> None:
    """A list, tuple, array, ...: what has a length and entries by number."""
    sized = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    kind = type(value).__name__
    if getattr(value, "ndim", 1) == 0:  # an array of one number has no length
        raise TypeError(f"{name}: is a {kind} of shape (), must be a sequence")
    if isinstance(value, str | Mapping) or not sized:
        raise TypeError(f"{name}: is a {kind}, must be a sequence")


def check_mapping(name: str, value: Any, values: str = "NumPy arrays") -> None:
    """A dict of such values or the like; they are not looked at."""
    if not isinstance(value, Mapping):
        raise TypeError(
            f"{name}: is a {type(value).__name__}, must map names to {values}"
        )


def check_size(name: str, value: Any) -> tuple[int, int, int]:
    """(N, H, W), each from 1."""
    check_sequence(name, value)
    if len(value) != 3:
        raise ValueError(f"{name}: is {value!r}, must be (N, H, W)")
    n, h, w = (
        check_whole(f"{name}: {axis}", size, 1, INT_MAX)
        for axis, size in zip("NHW", value, strict=True)
    )
    return n, h, w


def check_text(name: str, value: Any) -> None:
    """A str."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: is {value!r}, must be a str")


def check_names(name: str, value: Any) -> frozenset[str]:
    """A collection of names; one str alone would be read as its letters."""
    if isinstance(value, str):
        raise TypeError(f"{name}: is the str {value!r}, must be a collection of names")
    try:
        names = list(value)
    except TypeError:
        raise TypeError(
            f"{name}: is a {type(value).__name__}, must be a collection of names"
        ) from None
    for entry in names:
        check_text(f"{name}: an entry", entry)
    return frozenset(names)


def check_array(name: str, array: Any) -> None:
    """A NumPy array: the core would read a tuple as an address."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name}: expected a NumPy array, got {type(array).__name__}")


def check_bytes(name: str, array: Any) -> None:
    """A NumPy array of uint8; the core's message names every dtype that it knows."""
    check_array(name, array)
    if array.dtype != np.uint8:
        raise TypeError(f"{name}: dtype is {array.dtype}, must be uint8")


def dtype_name(name: str, array: Array) -> str:
    """float32, or bfloat16 for ml_dtypes.bfloat16 and for its bits as uint16."""
    found = "bfloat16" if array.dtype == np.uint16 else str(array.dtype)
    if found not in ("float32", "bfloat16"):
        raise TypeError(
            f"{name}: dtype is {found}, must be float32 or bfloat16 (or its bits, "
            "uint16)"
        )
    return found


def check_float32(name: str, array: Any) -> None:
    """A parameter, a buffer or a gradient: of float32, in the byte order of the machine."""
    check_array(name, array)
    if array.dtype != np.float32:
        raise TypeError(f"{name}: dtype is {array.dtype}, must be float32")


def check_counter(name: str, count: Any) -> None:
    """A writable array of one whole number."""
    if not isinstance(count, np.ndarray) or count.dtype.kind not in "iu":
        kind = getattr(count, "dtype", type(count).__name__)
        raise TypeError(f"{name}: is {kind}, must be an integer array")
    if count.size != 1:
        raise ValueError(f"{name}: shape is {count.shape}, must be ()")
    if not count.flags.writeable:
        raise ValueError(f"{name}: is read-only, must be writable")


def check_image(name: str, image: Any) -> None:
    """(h, w, 3) uint8, not empty, its pixels packed; rows may lie apart."""
    check_array(name, image)
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(
            f"{name}: shape is {image.shape}, must be (h, w, 3) and not empty"
        )
    if image.dtype != np.uint8:
        raise TypeError(f"{name}: dtype is {image.dtype}, must be uint8")
    pixel = image.strides[1:]
    if pixel[1] != 1 or (image.shape[1] > 1 and pixel[0] != 3):
        raise ValueError(
            f"{name}: strides of a pixel are {pixel}, must be (3, 1): make it contiguous"
        )


def check_value(name: str, array: Any, shape: Sequence[int], dtype: str) -> None:
    """An activation or its gradient: a packed array of that shape and dtype."""
    check_array(name, array)
    if array.shape != tuple(shape):
        raise ValueError(f"{name}: shape is {array.shape}, must be {tuple(shape)}")
    if dtype_name(name, array) != dtype:
        raise TypeError(f"{name}: dtype is {array.dtype}, must be {dtype} as of x")
    if not array.flags.c_contiguous:
        raise ValueError(
            f"{name}: strides are {array.strides}, must be packed (C order)"
        )
    if not array.flags.aligned:
        raise ValueError(
            f"{name}: address is {array.ctypes.data:#x}, must be aligned to the "
            f"{array.itemsize} bytes of an element"
        )


def check_writable(name: str, array: Array) -> None:
    """Not read-only, and each element a place of its own."""
    if not array.flags.writeable:
        raise ValueError(f"{name}: is read-only, must be writable")
    reach = array.itemsize
    steps = zip(array.strides, array.shape, strict=True)
    for stride, count in sorted((abs(s), n) for s, n in steps if n > 1):
        if stride < reach:
            raise ValueError(
                f"{name}: strides are {array.strides} for shape {array.shape}, must "
                "give each element memory of its own"
            )
        reach += stride * (count - 1)


def _shares(a: Array, b: Array) -> bool:
    try:
        return np.shares_memory(a, b, max_work=_HARD)
    except np.exceptions.TooHardError:
        return True


def check_apart(written: Mapping[str, Array], read: Mapping[str, Array]) -> None:
    """Raises ValueError where an array to be written shares memory with another.

    What is only read may share. A module has a hundred arrays, so they are first looked
    at all at once: sorted by address, almost always each ends before the next begins.
    """
    names, arrays = [*written, *read], [*written.values(), *read.values()]
    spans = np.frombuffer(_core.array_spans(arrays), np.int64).reshape(-1, 2)
    order = np.argsort(spans[:, 0], kind="stable")
    first, end = spans[order].T
    if (np.maximum.accumulate(end)[:-1] <= first[1:]).all():
        return
    near: list[int] = []
    for i in order.tolist():
        near = [other for other in near if spans[other, 1] > spans[i, 0]]
        for other in near:
            a, b = min(i, other), max(i, other)  # the written ones come first
            if a < len(written) and _shares(arrays[a], arrays[b]):
                a, b = (a, b) if b >= len(written) else (b, a)
                raise ValueError(
                    f"{names[a]}: shares memory with {names[b]}, must have its own"
                )
        near.append(i)
