# SPDX-License-Identifier: MIT
"""Run by test_cuda_cudnn.py in a process of its own: cuDNN's answers without a GPU.

Reads {"cudnn": path, "cublaslt": path, "devices": {name: properties}, "problems":
[[...], ...]} from standard input, as JSON, and writes one list for each device:
(workspace bytes, engine, tensor core, compiles at run time, found) of each problem. A
problem is pass, dtype, accumulate, n, h, w, oh, ow and the eleven numbers of ym_conv.

cuDNN wants a libcuda.so.1 to load some of its parts; one whose functions fail will do,
since nothing is run.
"""

from __future__ import annotations

import ctypes as C
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import cuda_emulation as ce

DRIVER_CALLS = (
    *("cuModuleLoadData", "cuModuleUnload", "cuModuleGetFunction", "cuGetErrorString"),
    *("cuTensorMapEncodeIm2col", "cuTensorMapEncodeTiled"),
)


class Problem(C.Structure):
    _fields_ = [("pass_", C.c_int32), ("dtype", C.c_int32), ("conv", ce.Conv)]
    _fields_ += [(name, C.c_int32) for name in ("n", "h", "w", "oh", "ow")]
    _fields_ += [("accumulate", C.c_int32), ("tf32", C.c_int32)]


class Plan(C.Structure):
    _fields_ = [
        ("descriptor", C.c_void_p),
        ("workspace_bytes", C.c_int64),
        ("engine", C.c_int64),
        ("tensor_core", C.c_bool),
        ("compiles", C.c_bool),
        ("found", C.c_bool),
    ]


def load_driver_stub(folder: str) -> None:
    source, library = Path(folder) / "driver.c", Path(folder) / "libcuda.so.1"
    source.write_text(
        "\n".join(f"int {call}(void) {{ return 3; }}" for call in DRIVER_CALLS)
    )
    flags = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
    subprocess.run(["gcc", *flags, str(source), "-o", str(library)], check=True)
    C.CDLL(str(library), mode=C.RTLD_GLOBAL)


def answer(device: bytes, numbers: list[int]) -> list[int]:
    problem, plan, error = Problem(), Plan(), C.create_string_buffer(512)
    problem.pass_, problem.dtype, problem.accumulate = numbers[:3]
    problem.n, problem.h, problem.w, problem.oh, problem.ow = numbers[3:8]
    problem.conv = ce.Conv(*numbers[8:])
    status = ce.library().cudnn_plan_for_device(
        device, C.byref(problem), C.byref(plan), error
    )
    if status:
        raise RuntimeError(error.value.decode())
    return [
        plan.workspace_bytes,
        plan.engine,
        plan.tensor_core,
        plan.compiles,
        plan.found,
    ]


def main() -> None:
    asked = json.load(sys.stdin)
    os.environ["YOLOV9MEM_CUDNN"] = asked["cudnn"]
    with tempfile.TemporaryDirectory() as folder:
        load_driver_stub(folder)
        C.CDLL(asked["cublaslt"], mode=C.RTLD_GLOBAL)
        made = {
            name: [answer(json.dumps(device).encode(), p) for p in asked["problems"]]
            for name, device in asked["devices"].items()
        }
    json.dump(made, sys.stdout)


if __name__ == "__main__":
    main()
