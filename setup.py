# SPDX-License-Identifier: MIT
"""Builds the extension modules from csrc: yolov9mem._core, and where nvcc is found
yolov9mem._cuda (see build_cuda.py).

Switches, by environment:
    YOLOV9MEM_DEBUG=1      -O1 -g and assertions
    YOLOV9MEM_SANITIZE=1   AddressSanitizer and UBSan (preload libasan to import it)
    YOLOV9MEM_WERROR=1     compiler warnings are errors
    YOLOV9MEM_JOBS=N       compile N files at once; default: one for each CPU
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # an isolated build does not have it

import build_cuda  # noqa: E402

FOLDERS = ("core", "ops", "ref", "cpu", "python")


def switch(name: str) -> bool:
    """Whether the environment says YOLOV9MEM_<name>=1."""
    return os.environ.get(f"YOLOV9MEM_{name}", "0") not in ("", "0")


def compile_flags() -> list[str]:
    flags = ["-std=gnu11", "-ffp-contract=off", "-fvisibility=hidden", "-pthread"]
    # Nobody asks for floating-point exceptions; without them loops with pieces that are
    # products become vectors too.
    flags += ["-fno-trapping-math"]
    flags += ["-Wall", "-Wextra", "-Wshadow", "-Wvla", "-Wstrict-prototypes"]
    flags += ["-Werror"] if switch("WERROR") else []
    if switch("SANITIZE"):
        flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
        flags += ["-fno-omit-frame-pointer", "-g1", "-Og", "-UNDEBUG"]
    elif switch("DEBUG"):
        flags += ["-O1", "-g", "-UNDEBUG", "-DYM_DEBUG"]
    else:
        flags += ["-O3", "-g0"]
    return flags


def link_flags() -> list[str]:
    sanitize = ["-fsanitize=address,undefined"] if switch("SANITIZE") else []
    return ["-pthread", *sanitize]


class BuildInParallel(build_ext):
    """build_ext that compiles the files of an extension side by side, and again where
    they were built with other flags."""

    def run(self) -> None:
        # build/lib survives `pip install .`, and what lies there would be installed.
        if cuda is None:
            for old in Path(self.build_lib).glob("yolov9mem/_cuda.*.so"):
                old.unlink()
        super().run()

    def record(self, ext: Extension) -> str:
        """What it is compiled with. Not include_dirs: pip's are new ones every time."""
        return build_cuda.record(
            Path(self.build_temp) / f"{ext.name}.txt",
            *(self.compiler.compiler_so, self.compiler.linker_so, ext.define_macros),
            *(ext.extra_compile_args, ext.extra_link_args, numpy.__version__),
        )

    def build_extension(self, ext: Extension) -> None:
        jobs = int(os.environ.get("YOLOV9MEM_JOBS", 0)) or len(os.sched_getaffinity(0))
        compile_one_by_one = self.compiler.compile

        def compile_all(sources: list[str], *args, **kwargs) -> list[str]:
            with ThreadPoolExecutor(jobs) as pool:
                parts = pool.map(
                    lambda source: compile_one_by_one([source], *args, **kwargs),
                    sources,
                )
                return [object_file for part in parts for object_file in part]

        self.compiler.compile = compile_all
        if ext.name == "yolov9mem._cuda":
            build_cuda.compile_kernels(ext, self.build_temp, jobs)
        ext.depends = [*ext.depends, self.record(ext)]
        try:
            super().build_extension(ext)
        finally:
            self.compiler.compile = compile_one_by_one


def files(pattern: str) -> list[str]:
    found = (
        path for folder in FOLDERS for path in (ROOT / "csrc" / folder).glob(pattern)
    )
    return sorted(str(path.relative_to(ROOT)) for path in found)


core = Extension(
    "yolov9mem._core",
    sources=files("*.c"),
    depends=[*files("*.h"), *sorted(str(p) for p in Path("csrc/math").glob("*.h"))],
    include_dirs=["csrc", numpy.get_include()],
    extra_compile_args=compile_flags(),
    extra_link_args=link_flags(),
    libraries=["m"],
)

cuda = build_cuda.extension(compile_flags(), link_flags())

setup(
    ext_modules=[
        *([] if build_cuda.is_alone() else [core]),
        *([cuda] if cuda else []),
    ],
    cmdclass={"build_ext": BuildInParallel},
)
