# SPDX-License-Identifier: MIT
"""csrc/cuda on the host compiler: builds it against csrc/emulation and binds it.

The library holds the "cuda" tables and the "ref" backend beside each other, for ctypes
with NumPy's arrays, and is the extension module yolov9mem._cuda as well, so that
csrc/python_cuda and the torch adapter run on it (see emulated_gpu.py). With
YOLOV9MEM_EMULATION_ASAN=1 it is built with AddressSanitizer (preload libasan). Built once
for each state of the sources, into the temporary folder.
"""

from __future__ import annotations

import ctypes as C
import fcntl
import functools
import hashlib
import os
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import TypeVar
from unittest import mock

import numpy as np

CSRC = Path(__file__).resolve().parents[1] / "csrc"
FOLDERS = ("core", "math", "ops", "ref", "cuda", "python", "python_cuda", "emulation")
F32, BF16, F16 = 0, 1, 2
STORED = {F32: np.float32, BF16: np.uint16, F16: np.float16}
ACTIVATIONS = range(11)
IDENTITY, SILU, RELU, LEAKY_RELU, HARDTANH, HARDSWISH, MISH = ACTIVATIONS[:7]
SIGMOID, HARDSIGMOID, GELU, GELU_TANH = ACTIVATIONS[7:]
FORWARD, BACKWARD_DATA, BACKWARD_WEIGHT = range(3)
T = TypeVar("T", bound=C.Structure)


def _sources() -> list[Path]:
    names = (
        *("core/status.c", "ops/mosaic.c", "ops/sgd.c"),
        *("python/arguments.c", "python/mosaic_arguments.c", "python/sgd_rows.c"),
    )
    units = [CSRC / name for name in names]
    for pattern in (
        *("ref/*.c", "cuda/*.c", "cuda/*.cu", "python_cuda/*.c"),
        *("emulation/*.c", "emulation/*.cpp"),
    ):
        units += CSRC.glob(pattern)
    return sorted(units)


def _flags(unit: Path) -> list[str]:
    flags = ["-O1", "-g1", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing"]
    flags += ["-Wall", "-DYM_EMULATION", f"-I{CSRC}", f"-I{CSRC}/emulation/include"]
    if unit.parent.name.startswith("python"):
        flags += [f"-I{sysconfig.get_path('include')}", f"-I{np.get_include()}"]
    if os.environ.get("YOLOV9MEM_EMULATION_ASAN") == "1":
        # The quickest to build and run together.
        flags += ["-Og", "-fsanitize=address", "-fno-omit-frame-pointer"]
    if unit.suffix == ".c":
        return ["gcc", "-std=gnu11", *flags]
    return ["g++", "-std=c++17", "-Wno-unknown-pragmas", *flags, "-x", "c++"]


def build() -> Path:
    """The library; built if these sources and flags have none yet."""
    state = hashlib.sha256()
    for path in sorted(
        p for f in FOLDERS for p in (CSRC / f).rglob("*") if p.is_file()
    ):
        state.update(path.read_bytes())
    state.update(" ".join(_flags(Path("x.cu"))).encode())
    folder = Path(tempfile.gettempdir()) / f"yolov9mem-{state.hexdigest()[:16]}"
    library = folder / "emulation.so"
    if library.exists():
        return library
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        # pytest's other processes wait here for the first, and find it built.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            _compile(library)
    return library


def _compile(library: Path) -> None:
    folder = library.parent

    def compile_unit(unit: Path) -> str:
        made = folder / f"{unit.parent.name}-{unit.name}.o"
        subprocess.run([*_flags(unit), "-c", str(unit), "-o", str(made)], check=True)
        return str(made)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(compile_unit, _sources()))
    made = folder / "made.so"
    # Its own CUDA functions, also where PyTorch has loaded the real ones.
    link = [
        *_flags(Path("x.c")),
        "-shared",
        "-Wl,-Bsymbolic",
        *objects,
        "-o",
        str(made),
    ]
    subprocess.run([*link, "-lstdc++", "-lm", "-ldl", "-lpthread"], check=True)
    made.rename(library)  # a build that is cut off leaves none
    for path in objects:
        os.unlink(path)


_mirrored: dict[str, type[C.Structure]] = {}


def mirrors(name: str) -> Callable[[type[T]], type[T]]:
    """The class is the C struct of that name: `library` compares their sizes."""

    def note(made: type[T]) -> type[T]:
        _mirrored[name] = made
        return made

    return note


def check_sizes(lib: C.CDLL) -> None:
    """Raises AssertionError where C has another struct than Python."""
    lib.ym_emulation_size_of.restype = C.c_size_t
    for name, mirror in _mirrored.items():
        size = lib.ym_emulation_size_of(name.encode())
        assert size == C.sizeof(mirror), (
            f"{mirror.__name__} has {C.sizeof(mirror)} bytes, {name} has {size}"
        )


@mirrors("ym_tensor")
class Tensor(C.Structure):
    _fields_ = [("data", C.c_void_p), ("dtype", C.c_int)]
    _fields_ += [(name, C.c_int32) for name in "nhwc"] + [("pitch", C.c_int64)]


@mirrors("ym_weight")
class Weight(C.Structure):
    _fields_ = [("data", C.c_void_p), *((name, C.c_int32) for name in "kcrs")]
    _fields_ += [(f"stride_{name}", C.c_int64) for name in "kcrs"]
    _fields_ += [("packed", C.c_void_p)]


@mirrors("ym_conv")
class Conv(C.Structure):
    _fields_ = [
        (name, C.c_int32)
        for name in (
            *"kcrs",
            *("stride_h", "stride_w", "pad_h", "pad_w"),
            *("dilation_h", "dilation_w", "groups"),
        )
    ]


@mirrors("ym_norm")
class Norm(C.Structure):
    _fields_ = [
        (name, C.c_void_p)
        for name in ("gamma", "beta", "running_mean", "running_var", "dgamma", "dbeta")
    ] + [
        *((name, C.c_float) for name in ("constant_mean", "constant_rstd")),
        ("eps", C.c_double),
        ("momentum", C.c_double),
        ("batch_statistics", C.c_bool),
        ("update_running", C.c_bool),
        *((name, C.c_int32) for name in ("group", "processes", "rank")),
    ]


@mirrors("ym_term")
class Term(C.Structure):
    _fields_ = [("value", Tensor), ("has_norm", C.c_bool), ("norm", Norm)]
    _fields_ += [("mean", C.c_void_p), ("rstd", C.c_void_p)]


@mirrors("ym_activation")
class Activation(C.Structure):
    _fields_ = [("kind", C.c_int)]
    _fields_ += [(name, C.c_float) for name in ("slope", "low", "high")]


@mirrors("ym_brick")
class Brick(C.Structure):
    _fields_ = [
        ("term_count", C.c_int32),
        ("term", Term * 2),
        ("activation", Activation),
        ("has_residual", C.c_bool),
        ("residual", Tensor),
    ]


@mirrors("ym_term_gradient")
class TermGradient(C.Structure):
    _fields_ = [("dvalue", Tensor), ("accumulate", C.c_bool)]
    _fields_ += [(f"accumulate_{name}", C.c_bool) for name in ("gamma", "beta")]


@mirrors("ym_pool")
class Pool(C.Structure):
    _fields_ = [
        (f"{name}_{side}", C.c_int32)
        for name in ("kernel", "stride", "pad")
        for side in "hw"
    ] + [("count_include_pad", C.c_bool)]


@mirrors("ym_resize")
class Resize(C.Structure):
    _fields_ = [("bilinear", C.c_bool), ("align_corners", C.c_bool)]
    _fields_ += [(name, C.c_float) for name in ("scale_h", "scale_w")]


@mirrors("ym_context")
class Context(C.Structure):
    _fields_ = [
        ("backend", C.c_void_p),
        ("error", C.c_char * 512),
        ("scratch", C.c_void_p),
        ("scratch_bytes", C.c_size_t),
        ("stream", C.c_void_p),
        ("device", C.c_int32),
        ("sum", C.c_void_p),
        ("sum_argument", C.c_void_p),
    ]


@functools.cache
def library() -> C.CDLL:
    lib = C.CDLL(str(build()))
    check_sizes(lib)
    for name in ("norm", "brick", "bias", "maximum", "multiply"):
        getattr(lib, f"cuda_{name}_scratch_bytes").restype = C.c_size_t
    for name in ("cuda_plain_conv", "cuda_mosaic", "cuda_sgd_table"):
        symbol = "bytes" if name.endswith("table") else "scratch_bytes"
        getattr(lib, f"{name}_{symbol}").restype = C.c_size_t
    for name in ("ym_cuda_backend", "ym_cuda_plain_backend"):
        getattr(lib, name).restype = C.c_void_p
    return lib


@functools.cache
def open_cudnn() -> None:
    """Makes the emulated cuDNN the one of this process, whatever the environment says;
    the tables of "cuda" need one.

    Raises:
        Failed: another was opened before.
    """
    lib, path, error = library(), str(build()), C.create_string_buffer(512)
    opened = C.POINTER(C.c_size_t)()  # its version, then its path
    with mock.patch.dict(os.environ, {"YOLOV9MEM_CUDNN": path}):
        status = lib.cudnn_open(None, C.byref(opened), error)
    if status:
        raise Failed(error.value.decode())
    found = C.string_at(C.addressof(opened.contents) + C.sizeof(C.c_size_t)).decode()
    if not os.path.samefile(found, path):
        raise Failed(f"cuDNN is {found} in this process")


@functools.cache
def extension() -> ModuleType:
    """The same library as the module yolov9mem._cuda; it is not put into sys.modules."""
    loader = ExtensionFileLoader("yolov9mem._cuda", str(build()))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    made = module_from_spec(spec)
    loader.exec_module(made)
    return made


CAPSULE_NAME = b"yolov9mem.backend"  # Python keeps the pointer


def capsule(table: str = "ym_cuda_plain_backend") -> object:
    """That table as `_core.Plan(backend=...)` takes it; memory is the host's."""
    if table == "ym_cuda_backend":
        open_cudnn()
    make = C.pythonapi.PyCapsule_New
    make.restype, make.argtypes = C.py_object, [C.c_void_p, C.c_char_p, C.c_void_p]
    return make(getattr(library(), table)(), CAPSULE_NAME, None)


def address(array: np.ndarray | None) -> int | None:
    return None if array is None else array.ctypes.data


def encode(values: np.ndarray, dtype: int) -> np.ndarray:
    """float32 to the stored type, rounded to nearest even."""
    if dtype == BF16:
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
        return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)
    with np.errstate(over="ignore"):
        return values.astype(STORED[dtype])


def decode(stored: np.ndarray, dtype: int) -> np.ndarray:
    if dtype == BF16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)


class Value:
    """A channels-last tensor that is a slice of a wider buffer of NaNs.

    Args:
        values: (N, H, W, C) float32, rounded to the stored type.
        left, right: channels of the buffer before and after the slice.
    """

    def __init__(
        self, values: np.ndarray, dtype: int = F32, left: int = 0, right: int = 0
    ) -> None:
        n, h, w, c = values.shape
        self.dtype, self.left = dtype, left
        fill = encode(np.full((n, h, w, left + c + right), np.nan, np.float32), dtype)
        self.buffer = fill.copy()
        self.buffer[..., left : left + c] = encode(values, dtype)
        self.shape = values.shape

    def tensor(self) -> Tensor:
        at = self.buffer.ctypes.data + self.left * self.buffer.itemsize
        return Tensor(at, self.dtype, *self.shape, self.buffer.shape[3])

    def numpy(self) -> np.ndarray:
        """The slice as float32; everything around it must still be NaN."""
        end = self.left + self.shape[3]
        around = np.delete(
            decode(self.buffer, self.dtype), slice(self.left, end), axis=3
        )
        assert np.isnan(around).all(), "written outside the slice"
        return decode(self.buffer[..., self.left : end], self.dtype)


class Failed(Exception):
    """The message of a call that did not return YM_OK."""


def call(name: str, *arguments: object, scratch: int = 0) -> None:
    """lib.<name>(context, *arguments) with that many bytes of fresh scratch; what lies
    behind it must stay as it is."""
    room = np.full(scratch + 4096, 0xFF, np.uint8)
    skip = -room.ctypes.data % 64
    at = room.ctypes.data + skip
    context = Context(scratch=at, scratch_bytes=scratch, device=-1)
    status = getattr(library(), name)(C.byref(context), *arguments)
    if status:
        raise Failed(context.error.decode())
    assert (room[skip + scratch :] == 0xFF).all(), "written behind the scratch"


def scratch_bytes(name: str, *arguments: object) -> int:
    return int(getattr(library(), f"{name}_scratch_bytes")(*arguments))


def random_values(seed: int, shape: Sequence[int], scale: float = 1.0) -> np.ndarray:
    made = np.random.default_rng(seed).standard_normal(shape)
    return (made * scale).astype(np.float32)
