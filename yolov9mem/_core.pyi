# SPDX-License-Identifier: MIT
"""The C core.

An array argument is a NumPy array or a tuple (address, dtype name, shape, strides in
elements, device) that stands for memory which the caller keeps alive.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, final

import numpy.typing as npt

_Array: TypeAlias = npt.NDArray[Any]
_Memory: TypeAlias = (
    _Array | tuple[int, str, tuple[int, ...], tuple[int, ...], int] | Any
)
_Pair: TypeAlias = tuple[int, int]
# running_mean, running_var, eps, momentum, by the batch's statistics, move running_*; or
# None, where affine() has taken the number
_Norm: TypeAlias = (
    tuple[_Memory | None, _Memory | None, float, float, bool, bool] | None
)
# Of (group, address, count): so many float64 in the arenas become their sums over the
# processes of a group.
_Sum: TypeAlias = Callable[[int, int, int], object]

@final
class Graph:
    def input(self, channels: int) -> int: ...
    def param(self, shape: tuple[int, ...], name: str) -> int: ...
    def norm(
        self, channels: int, gamma: int = -1, beta: int = -1, name: str = ""
    ) -> int: ...
    def share(self, norm: int, group: int, processes: int, rank: int) -> None: ...
    def conv(
        self,
        x: int,
        weight: int,
        bias: int = -1,
        stride: _Pair = (1, 1),
        padding: _Pair = (0, 0),
        dilation: _Pair = (1, 1),
        groups: int = 1,
        name: str = "",
    ) -> int: ...
    def conv_transpose(
        self,
        x: int,
        weight: int,
        stride: _Pair = (1, 1),
        padding: _Pair = (0, 0),
        output_padding: _Pair = (0, 0),
        dilation: _Pair = (1, 1),
        groups: int = 1,
        name: str = "",
    ) -> int: ...
    def batch_norm(self, x: int, norm: int, name: str = "") -> int: ...
    def affine(
        self,
        x: int,
        scale: float = 1.0,
        shift: float = 0.0,
        bias: int = -1,
        gamma: int = -1,
        name: str = "",
    ) -> int: ...
    def activation(
        self,
        x: int,
        kind: str,
        slope: float = 0.01,
        low: float = -1.0,
        high: float = 1.0,
        name: str = "",
    ) -> int: ...
    def add(self, x: Sequence[int], name: str = "") -> int: ...
    def concat(self, x: Sequence[int], name: str = "") -> int: ...
    def slice(self, x: int, first: int, count: int, name: str = "") -> int: ...
    def max_pool(
        self,
        x: int,
        kernel: _Pair,
        stride: _Pair,
        padding: _Pair = (0, 0),
        ceil_mode: bool = False,
        name: str = "",
    ) -> int: ...
    def avg_pool(
        self,
        x: int,
        kernel: _Pair,
        stride: _Pair,
        padding: _Pair = (0, 0),
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        name: str = "",
    ) -> int: ...
    def upsample(
        self,
        x: int,
        scale: tuple[float, float] | None = None,
        size: _Pair | None = None,
        name: str = "",
        mode: str = "nearest",
        align_corners: bool = False,
    ) -> int: ...
    def multiply(self, a: int, b: int, name: str = "") -> int: ...
    def mean(self, x: int, axes: str, name: str = "") -> int: ...
    def maximum(self, x: int, axes: str, name: str = "") -> int: ...
    def stage(self) -> None: ...
    def output(self, x: int) -> None: ...

@final
class Plan:
    def __new__(
        cls,
        graph: Graph,
        input_sizes: Sequence[tuple[int, int, int]],
        *,
        dtype: str = "float32",
        keep: str = "conv",
        budget: int = 0,
        backend: str | object = "cpu",
        input_grads: Sequence[bool] | None = None,
        param_grads: Sequence[bool] | None = None,
        segments: int = 1,
        replays: bool = False,
        planar_inputs: Sequence[str | None] | None = None,
    ) -> Plan: ...
    @property
    def saved_bytes(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...
    @property
    def forward_workspace_bytes(self) -> int: ...
    @property
    def backward_workspace_bytes(self) -> int: ...
    @property
    def workspace_bytes(self) -> int: ...
    @property
    def peak_bytes(self) -> int: ...
    @property
    def rerun_convolutions(self) -> int: ...
    @property
    def rerun_flops(self) -> float: ...
    @property
    def segments(self) -> int: ...
    @property
    def replays(self) -> tuple[int, int, bool] | None: ...
    @property
    def output_shapes(self) -> list[tuple[int, int, int, int]]: ...
    def forward(
        self,
        inputs: Sequence[_Memory | None],
        params: Sequence[_Memory],
        norms: Sequence[_Norm],
        outputs: Sequence[_Memory | None],
        saved: _Memory | None,
        workspace: _Memory | None,
        stream: int = 0,
        stage: int = 0,
        sum: _Sum | None = None,
        /,
    ) -> None: ...
    # Writes the gradients that reached_params and reached_inputs tell for the mask of
    # grad_outputs that are not None, and no other memory.
    def backward(
        self,
        segment: int,
        inputs: Sequence[_Memory | None],
        params: Sequence[_Memory],
        norms: Sequence[_Norm],
        grad_outputs: Sequence[_Memory | None],
        grad_inputs: Sequence[_Memory | None],
        grad_params: Sequence[_Memory | None],
        saved: _Memory | None,
        workspace: _Memory | None,
        stream: int = 0,
        accumulate: bytes | bytearray | None = None,
        mask: Sequence[bool] | None = None,
        sum: _Sum | None = None,
        /,
    ) -> None: ...
    def recompute(
        self,
        output: int,
        params: Sequence[_Memory | None],
        norms: Sequence[_Norm | None],
        outputs: Sequence[_Memory | None],
        saved: _Memory | None,
        workspace: _Memory | None,
        stream: int = 0,
        /,
    ) -> None: ...
    def recompute_needs(self) -> list[tuple[int, list[bool], list[bool]] | None]: ...
    def backward_workspace(self, mask: Sequence[bool] | None, /) -> int: ...
    def reached_params(self, mask: Sequence[bool] | None, /) -> list[bool]: ...
    def reached_inputs(self, mask: Sequence[bool] | None, /) -> list[bool]: ...
    def touched_params(
        self, segment: int, mask: Sequence[bool] | None = None, /
    ) -> list[bool]: ...
    def gradient_segments(
        self, mask: Sequence[bool] | None, /
    ) -> tuple[list[int], list[int]]: ...
    def input_segments(
        self, mask: Sequence[bool] | None, /
    ) -> tuple[list[int], list[int]]: ...
    def input_stages(self) -> list[int]: ...
    def param_segments(self) -> list[int]: ...
    def segment_stages(self) -> list[int]: ...
    def table(self) -> list[dict[str, Any]]: ...

def set_num_threads(count: int, /) -> None: ...
def set_usual_num_threads(count: int, /) -> None: ...
def get_num_threads() -> int: ...
def build_info() -> dict[str, Any]: ...
def sgd_norm(table: bytes | memoryview | Any, backend: str = "cpu") -> float: ...
def sgd_check(
    table: bytes | memoryview | Any,
    groups: bytes | memoryview | Any,
    *,
    update: bool = True,
    ema_decay: float | None = None,
) -> None: ...
def sgd_step(
    table: bytes | memoryview | Any,
    groups: bytes | memoryview | Any,
    *,
    inverse_scale: float = 1.0,
    clip: float = 1.0,
    update: bool = True,
    gradient: int = 1,
    ema_decay: float | None = None,
    backend: str = "cpu",
) -> None: ...
def unchanged(
    states: tuple[tuple[Any, ...], ...], empty: tuple[str, ...], /
) -> bool: ...
def array_spans(arrays: list[_Array], /) -> bytes: ...
def mosaic_render(
    out: _Array,
    scenes: tuple[Any, ...],
    ratio: float = 1.0,
    hsv: _Array | None = None,
    flip_vertical: bool = False,
    flip_horizontal: bool = False,
    backend: str = "cpu",
) -> None: ...
def resize_image(source: _Array, out: _Array, /) -> None: ...
def polygon_fill(bits: _Array, width: int, polygons: list[_Array], /) -> None: ...
def polygon_boxes(
    polygons: list[_Array],
    matrix: tuple[float, ...],
    perspective: bool,
    height: float,
    width: float,
    /,
) -> list[tuple[float, float, float, float]]: ...
