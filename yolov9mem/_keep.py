# SPDX-License-Identifier: MIT
"""What is kept between forward and backward: the user's word for it."""

import re
from dataclasses import dataclass

from yolov9mem._checks import is_whole

UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}
MOST_BYTES = 2**62  # a larger budget asks for no less


@dataclass(frozen=True)
class Keep:
    """The keep rule as `_core.Plan` takes it."""

    rule: str  # "all", "conv", "min" or "budget"
    budget: int = 0  # bytes

    def __str__(self) -> str:
        return self.rule if self.rule != "budget" else f"{self.budget} bytes"


def parse_size(text: str) -> float | None:
    """The bytes of a size such as '6GB' (10^9) or '6GiB'; None: it is no size."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = UNITS.get(match[2].upper()) if match else None
    return float(match[1]) * unit if match and unit else None


def parse_keep(keep: str | int) -> Keep:
    """'all', 'conv', 'min', or a size: bytes, or text such as '6GB' (10^9) or '6GiB'.

    Raises ValueError for anything else.
    """
    size: float | None = None
    if isinstance(keep, str) and keep in ("all", "conv", "min"):
        return Keep(keep)
    if is_whole(keep):
        size = int(keep)
    elif isinstance(keep, str):
        size = parse_size(keep)
    if size is None or size <= 0:
        raise ValueError(
            f"keep: is {keep!r}, must be 'all', 'conv', 'min' or a size such as '6GB'"
        )
    return Keep("budget", int(min(size, MOST_BYTES)))
