# SPDX-License-Identifier: MIT
"""Run by test_cuda_cudnn.py in a process of its own: cuDNN's answers without a GPU.

Reads {"cudnn": path, "devices": {name: properties}, "problems": [[...], ...], "tf32":
bool} from standard input, as JSON, and writes one list for each device:
(workspace bytes, engine, tensor core, compiles at run time, found) of each problem. A
problem is pass, dtype, accumulate, n, h, w, oh, ow and the eleven numbers of ym_conv.

cuDNN wants a driver and cuBLAS to load some of its parts; libraries whose functions fail
will do, since nothing is run.
"""

from __future__ import annotations

import ctypes as C
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cuda_emulation as ce

DRIVER_CALLS = (
    *("cuModuleLoadData", "cuModuleUnload", "cuModuleGetFunction", "cuGetErrorString"),
    *("cuTensorMapEncodeIm2col", "cuTensorMapEncodeTiled", "cuGetErrorName"),
    *("cuCtxGetCurrent", "cuCtxGetLimit", "cuCtxPopCurrent", "cuCtxPushCurrent"),
    *("cuDeviceGet", "cuDeviceGetCount", "cuDriverGetVersion", "cuStreamGetCtx"),
    *("cuKernelGetAttribute", "cuKernelGetFunction", "cuKernelSetAttribute"),
    *("cuLaunchCooperativeKernel", "cuLaunchKernel", "cuLaunchKernelEx"),
    *("cuLibraryGetKernel", "cuLibraryLoadData", "cuLibraryLoadFromFile"),
    *("cuLibraryUnload", "cuLinkAddData", "cuLinkComplete", "cuLinkCreate"),
    *("cuLinkDestroy", "cuOccupancyMaxPotentialClusterSize"),
)
CUBLASLT_CALLS = (
    *(
        f"cublasLt{what}{call}"
        for what in ("MatmulDesc", "MatrixLayout", "MatrixTransformDesc")
        for call in ("Create", "Destroy", "GetAttribute", "SetAttribute")
    ),
    *(f"cublasLtMatmulPreference{call}" for call in ("Create", "Destroy")),
    *("cublasLtMatmulPreferenceSetAttribute", "cublasLtGroupedMatrixLayoutCreate"),
    *("cublasLtMatmul", "cublasLtMatmulAlgoGetHeuristic", "cublasLtMatrixTransform"),
    *("cublasLtCreate", "cublasLtDestroy", "cublasLtGetProperty"),
)


@ce.mirrors("cudnn_problem")
class Problem(C.Structure):
    _fields_ = [("pass_", C.c_int32), ("dtype", C.c_int32), ("conv", ce.Conv)]
    _fields_ += [(name, C.c_int32) for name in ("n", "h", "w", "oh", "ow")]
    _fields_ += [(name, C.c_int32) for name in ("accumulate", "tf32", "trials")]


@ce.mirrors("cudnn_plan")
class Plan(C.Structure):
    _fields_ = [
        ("descriptor", C.c_void_p),
        ("workspace_bytes", C.c_int64),
        ("engine", C.c_int64),
        ("tensor_core", C.c_bool),
        ("compiles", C.c_bool),
        ("found", C.c_bool),
        ("tried", C.c_bool),
    ]


def load_stub(folder: str, name: str, calls: Sequence[str], more: str = "") -> None:
    """A library of that name whose functions answer 3, an error."""
    source, library = Path(folder) / f"{name}.c", Path(folder) / name
    source.write_text(more + "".join(f"int {c}(void) {{ return 3; }}\n" for c in calls))
    flags = ["-shared", "-fPIC", f"-Wl,-soname,{name}"]
    subprocess.run(["gcc", *flags, str(source), "-o", str(library)], check=True)
    C.CDLL(str(library), mode=C.RTLD_GLOBAL)


def answer(device: bytes, numbers: list[int], tf32: bool) -> list[int]:
    problem, plan, error = Problem(), Plan(), C.create_string_buffer(512)
    problem.pass_, problem.dtype, problem.accumulate = numbers[:3]
    problem.tf32 = tf32
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
        load_stub(folder, "libcuda.so.1", DRIVER_CALLS)
        version = "unsigned long cublasLtGetVersion(void) { return 130000; }\n"
        load_stub(folder, "libcublasLt.so.13", CUBLASLT_CALLS, version)
        made = {
            name: [
                answer(json.dumps(device).encode(), problem, asked["tf32"])
                for problem in asked["problems"]
            ]
            for name, device in asked["devices"].items()
        }
    json.dump(made, sys.stdout)


if __name__ == "__main__":
    main()
