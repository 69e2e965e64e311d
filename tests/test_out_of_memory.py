# SPDX-License-Identifier: MIT
"""Any allocation of the core may fail: a call then raises MemoryError, and no more.

A library before the C library counts what _core asks for and fails one request, then all
that follow. NumPy and Python, which do not bear that everywhere, are given what they want.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("gcc") is None,
    reason="a library that fails allocations is compiled by gcc and preloaded",
)

LIBRARY = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>

void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);

static char *first, *end; /* of the code whose requests count */
static long given = -1, asked;
static int lasting;

void fail_within(char *from, char *to) { first = from, end = to; }

/* After so many requests one fails, or all; below 0: none. */
void fail_after(long count, int all) { given = count, lasting = all, asked = 0; }

long requests(void) { return asked; }

static int fails(char *caller)
{
    if (given < 0 || caller < first || caller >= end) {
        return 0;
    }
    const long number = asked++;
    return number == given || (lasting && number > given);
}

#define FAIL if (fails(__builtin_return_address(0))) { errno = ENOMEM; return NULL; }
void *malloc(size_t n) { FAIL return __libc_malloc(n); }
void *calloc(size_t n, size_t size) { FAIL return __libc_calloc(n, size); }
void *realloc(void *old, size_t n) { FAIL return __libc_realloc(old, n); }
"""

SCRIPT = r"""
import ctypes, os
from yolov9mem import _core

def make(keep, segments):
    graph = _core.Graph()
    x = graph.input(3)
    wide = graph.param((8, 3, 3, 3), "wide")
    norm = graph.norm(8, graph.param((8,), "gamma"), graph.param((8,), "beta"))
    y = graph.conv(x, wide, padding=(1, 1))
    y = graph.activation(graph.batch_norm(y, norm), "silu")
    half = graph.slice(y, 0, 4)
    small = graph.upsample(graph.avg_pool(y, (2, 2), (2, 2)), scale=(2, 2))
    y = graph.concat([y, graph.max_pool(y, (3, 3), (1, 1), (1, 1)), small, half])
    y = graph.multiply(y, graph.mean(y, "hw"))
    y = graph.add([y, graph.multiply(y, graph.maximum(y, "c"))])
    last = graph.param((28, 7, 3, 3), "last")
    graph.output(graph.conv(y, last, padding=(1, 1), groups=4))
    graph.output(half)
    plan = _core.Plan(graph, [(2, 12, 12)], keep=keep, segments=segments)
    plan.backward_workspace([True, False]), plan.recompute_needs(), plan.table()

lines = open("/proc/self/maps").read().splitlines()
spans = [line.split()[0].split("-") for line in lines if line.endswith(_core.__file__)]
library = ctypes.CDLL(os.environ["LD_PRELOAD"])
library.fail_within.argtypes = [ctypes.c_void_p] * 2
library.fail_within(int(spans[0][0], 16), int(spans[-1][1], 16))
library.fail_after.argtypes = [ctypes.c_long, ctypes.c_int]
library.requests.restype = ctypes.c_long
for keep, segments in (("all", 1), ("conv", 2), ("min", 1)):
    library.fail_after(10**9, 0)
    make(keep, segments)
    total = library.requests()
    for count in range(0, total, 1 + total // 500):
        for all_fail in (0, 1):
            library.fail_after(count, all_fail)
            try:
                make(keep, segments)
            except MemoryError:
                pass
            else:
                print(keep, "made a plan although request", count, "failed")
    library.fail_after(-1, 0)
    make(keep, segments)
    print(keep, "at least 300 requests" if total >= 300 else total)
"""


def test_every_allocation_of_a_plan(tmp_path: Path) -> None:
    source, library = tmp_path / "fail.c", tmp_path / "fail.so"
    source.write_text(LIBRARY)
    command = ["gcc", "-O1", "-shared", "-fPIC", str(source), "-o", str(library)]
    subprocess.run(command, check=True)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=os.environ | {"LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"ended by {done.returncode}: {done.stderr}"
    expected = [f"{keep} at least 300 requests" for keep in ("all", "conv", "min")]
    assert done.stdout.splitlines() == expected
