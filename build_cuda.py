# SPDX-License-Identifier: MIT
"""The second extension, yolov9mem._cuda: finds nvcc and compiles csrc/cuda with it.

Switches, by environment:
    YOLOV9MEM_CUDA=auto|0|1|only auto (default): built where nvcc is found; 1: must be;
                                 only: must be, and _core is not, which is built already
    YOLOV9MEM_CUDA_ARCHS="90 120"  compute capabilities instead of all; the PTX of the
                                 last one is kept too, for GPUs to come
    CUDA_HOME, CUDA_PATH         the toolkit, else the nvidia/cu13 wheel, else the nvcc
                                 on PATH, else /usr/local/cuda

cuDNN is opened when it is first needed and is no part of the build: no header of it is
used. Nothing here asks for a GPU, so a build host needs none.
"""

# Read by an older Python too: pip then says which one is needed.
from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy
from setuptools import Extension

ROOT = Path(__file__).resolve().parent
ALONE = "only"
ARCHS = ("75", "80", "86", "89", "90", "100", "120")
# Of the kernels nvcc 13 makes the same PTX from one of these to the next, but for the line
# that names it. Made once for each, not for every GPU, it takes a third off the build.
VIRTUAL_ARCHS = ("75", "80", "100")
C_SOURCES = (
    *("core/status.c", "ops/mosaic.c", "ops/sgd.c"),
    *("python/arguments.c", "python/mosaic_arguments.c", "python/sgd_rows.c"),
)


def is_alone() -> bool:
    """Whether nothing else is to be built."""
    return os.environ.get("YOLOV9MEM_CUDA") == ALONE


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit: its nvcc, version as (major, minor), headers and libraries."""

    nvcc: str
    version: tuple[int, int]
    include: Path
    lib: Path


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def _candidates() -> list[str]:
    """Paths of nvcc, the most wanted first."""
    homes = [os.environ.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH")]
    found = [str(Path(home) / "bin/nvcc") for home in homes if home]
    wheel = importlib.util.find_spec("nvidia")
    for place in wheel.submodule_search_locations or [] if wheel else []:
        found.append(str(Path(place) / "cu13/bin/nvcc"))
    found += [shutil.which("nvcc") or "", "/usr/local/cuda/bin/nvcc"]
    return [path for path in found if path and os.access(path, os.X_OK)]


def _toolkit_of(nvcc: str) -> Toolkit | None:
    """What this nvcc belongs to; None if it lacks headers or the static runtime."""
    release = re.search(r"release (\d+)\.(\d+)", _output(nvcc, "--version"))
    # Where a wrapper script leads is only known to the compiler behind it.
    top = re.search(r"^#\$ TOP=(.*)$", _output(nvcc, "--dryrun", "x.cu"), re.MULTILINE)
    if release is None or top is None:
        return None
    home = Path(top.group(1).strip()).resolve()
    targets = (home, home / "targets/x86_64-linux", home / "targets/sbsa-linux")
    include = [h / "include" for h in targets]
    lib = [h / name for h in targets for name in ("lib64", "lib")]
    headers = [p for p in include if (p / "cuda_runtime_api.h").is_file()]
    runtimes = [p for p in lib if (p / "libcudart_static.a").is_file()]
    if not headers or not runtimes:
        return None
    version = (int(release.group(1)), int(release.group(2)))
    return Toolkit(nvcc, version, headers[0], runtimes[0])


def find_toolkit() -> Toolkit | None:
    """The toolkit to build with, or None: without CUDA.

    Raises:
        RuntimeError: YOLOV9MEM_CUDA=1 or only and there is none, or another value than
            auto, 0, 1, only.
    """
    wanted = os.environ.get("YOLOV9MEM_CUDA", "auto") or "auto"
    if wanted not in ("auto", "0", "1", ALONE):
        raise RuntimeError(f"YOLOV9MEM_CUDA is {wanted!r}, must be auto, 0, 1 or only")
    if wanted == "0":
        return None
    tried = _candidates()
    for nvcc in tried:
        toolkit = _toolkit_of(nvcc)
        if toolkit is not None and toolkit.version >= (12, 0):
            return toolkit
    text = (
        f"no CUDA toolkit 12 or newer with nvcc and libcudart_static.a (tried {tried})"
    )
    if wanted in ("1", ALONE):
        raise RuntimeError(f"YOLOV9MEM_CUDA={wanted}, but {text}")
    print(f"yolov9mem: {text}: building for the CPU only")
    return None


def architectures(version: tuple[int, int]) -> list[str]:
    """Compute capabilities without the dot: those asked for, or all that nvcc knows."""
    asked = (
        os.environ.get("YOLOV9MEM_CUDA_ARCHS", "").replace(",", " ").replace(".", "")
    )
    if asked.split():
        wrong = [a for a in asked.split() if not re.fullmatch(r"\d{2,3}[af]?", a)]
        if wrong:
            raise RuntimeError(
                f"YOLOV9MEM_CUDA_ARCHS: {wrong} are no compute capabilities"
            )
        return asked.split()
    return [a for a in ARCHS if int(a) < 100 or version >= (12, 8)]


def virtual_architecture(arch: str) -> str:
    """Whose PTX the machine code of `arch` is made of; its own for 90a and the like."""
    older = [v for v in VIRTUAL_ARCHS if arch.isdigit() and int(v) <= int(arch)]
    return older[-1] if older else arch


def nvcc_flags(toolkit: Toolkit) -> list[str]:
    """No fused multiply-add unless a kernel says fmaf: the bits are the CPU's."""
    host = "-fPIC,-fvisibility=hidden,-Wall,-Wextra,-Wno-unused-parameter"
    flags = ["-O3", "-std=c++17", "--fmad=false", "-Xcompiler", host]
    archs = architectures(toolkit.version)
    made_of: dict[str, list[str]] = {}
    for arch in archs:
        made_of.setdefault(virtual_architecture(arch), []).append(f"sm_{arch}")
    last = virtual_architecture(archs[-1])
    made_of[last].append(f"compute_{last}")
    for virtual, codes in made_of.items():
        flags += ["-gencode", f"arch=compute_{virtual},code=[{','.join(codes)}]"]
    small = ["--compress-mode=size"] if toolkit.version >= (12, 8) else []
    return flags + small + ([] if small else ["-Xfatbin", "-compress-all"])


def extension(compile_args: list[str], link_args: list[str]) -> Extension | None:
    """yolov9mem._cuda without its kernels, or None: see `find_toolkit`.

    Args:
        compile_args, link_args: what every C file is built with.
    """
    toolkit = find_toolkit()
    if toolkit is None:
        return None
    sources = [ROOT / "csrc" / name for name in C_SOURCES]
    for folder in ("cuda", "python_cuda"):
        sources += sorted((ROOT / "csrc" / folder).glob("*.c"))
    made = Extension(
        "yolov9mem._cuda",
        sources=[str(path.relative_to(ROOT)) for path in sources],
        depends=sorted(
            str(p.relative_to(ROOT))
            for folder in ("core", "math", "ops", "cuda", "python", "python_cuda")
            for pattern in ("*.h", "*.cu", "*.cuh")
            for p in (ROOT / "csrc" / folder).glob(pattern)
        ),
        include_dirs=["csrc", numpy.get_include(), str(toolkit.include)],
        define_macros=[
            ("YM_CUDA_ARCHS", f'"{" ".join(architectures(toolkit.version))}"')
        ],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        libraries=["stdc++", "m", "dl", "rt", "pthread"],
    )
    made.cuda_toolkit = toolkit
    return made


def record(path: Path, *facts: object) -> str:
    """Writes down what is built with; the file is as old as the last change of it.

    Builds compare times only, so what is made depends on this file as on a source: other
    switches in the environment are then no less a change than other lines.
    """
    text = "\n".join(map(str, facts)) + "\n"
    if not path.is_file() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(path)


def compile_kernels(ext: Extension, build_temp: str, jobs: int) -> None:
    """Compiles every csrc/cuda/*.cu and hands the objects to the linker of `ext`."""
    toolkit: Toolkit = ext.cuda_toolkit
    folder = Path(build_temp) / "csrc/cuda"
    flags = [*nvcc_flags(toolkit), f"-I{ROOT / 'csrc'}"]
    read_by_nvcc = [os.environ.get(f"NVCC_{n}_FLAGS") for n in ("PREPEND", "APPEND")]
    built_with = record(folder / "nvcc.txt", toolkit.version, flags, read_by_nvcc)
    # No kernel knows cuDNN.
    headers = [p for p in ext.depends if not p.endswith(".cu") and "cudnn" not in p]
    newest = max((ROOT / path).stat().st_mtime for path in (*headers, built_with))

    def compile_one(source: Path) -> str:
        made = folder / f"{source.name}.o"
        command = [toolkit.nvcc, *flags, "-c", str(source), "-o", str(made)]
        changed = max(newest, source.stat().st_mtime)
        if made.is_file() and made.stat().st_mtime >= changed:
            return str(made)
        print(" ".join(command))
        subprocess.run(command, check=True)
        return str(made)

    with ThreadPoolExecutor(jobs) as pool:
        kernels = list(pool.map(compile_one, sorted((ROOT / "csrc/cuda").glob("*.cu"))))
    # setuptools links again for what is newer among these only, not for its objects.
    ext.depends = [*ext.depends, *kernels]
    # The runtime before the system's libraries, which it uses.
    ext.extra_objects = [*kernels, str(toolkit.lib / "libcudart_static.a")]
