# SPDX-License-Identifier: MIT
"""The CUDA optimizer step, emulated on the CPU: bit for bit the "ref" backend's.

Device scalars are those of torch.amp.GradScaler; nothing is read back in between.
"""

from __future__ import annotations

import ctypes as C

import cuda_emulation as ce
import numpy as np
import pytest

from yolov9mem import _core

KEEP, ZERO, WRITE = range(3)
# Spans of one element, of parts of a block and of several blocks (8192 elements).
COUNTS = (1, 700, 8192, 20011)
# lr, momentum, dampening, weight_decay, nesterov, maximize
GROUPS = np.array(
    [[0.01, 0.937, 0, 5e-4, 1, 0], [0.1, 0.9, 0.2, 0, 0, 1], [0.02, 0, 0, 1e-3, 0, 0]]
)


@ce.mirrors("ym_sgd_tensor")
class SgdTensor(C.Structure):
    _fields_ = [(n, C.c_void_p) for n in ("param", "grad", "momentum", "ema")]
    _fields_ += [("count", C.c_int64), ("group", C.c_int32), ("first_step", C.c_bool)]


@ce.mirrors("ym_sgd_group")
class SgdGroup(C.Structure):
    _fields_ = [
        (n, C.c_float)
        for n in ("weight_decay", "momentum", "gradient_weight", "minus_lr")
    ]
    _fields_ += [(n, C.c_bool) for n in ("nesterov", "maximize", "decays", "moves")]


@ce.mirrors("cuda_sgd_table")
class Table(C.Structure):
    _fields_ = [(n, C.c_void_p) for n in ("state", "partial", "span", "tensor")]
    _fields_ += [("span_count", C.c_int32), ("bytes", C.c_size_t)]


@ce.mirrors("cuda_sgd_call")
class Call(C.Structure):
    _fields_ = [
        ("table", Table),
        ("scale", C.c_void_p),
        ("found_inf", C.c_void_p),
        ("inverse_scale", C.c_float),
        ("clip", C.c_float),
        ("clips", C.c_bool),
        ("max_norm", C.c_float),
        ("update", C.c_bool),
        ("gradient", C.c_int),
        ("average", C.c_bool),
        ("ema_decay", C.c_float),
        ("ema_weight", C.c_float),
        ("group_count", C.c_int32),
        ("group", SgdGroup * 128),
    ]


class Model:
    """Tensors with gradients of the loss times `scale`; the last has an average only."""

    def __init__(self, scale: float = 1.0, first_step: bool = False) -> None:
        self.first_step = first_step
        self.arrays = [
            [ce.random_values(10 * i + role, (n,)) for role in range(4)]
            for i, n in enumerate(COUNTS)
        ]
        for arrays in self.arrays:
            arrays[1] *= np.float32(scale)

    def rows(self) -> list[list[int]]:
        made = []
        for i, (n, arrays) in enumerate(zip(COUNTS, self.arrays, strict=True)):
            at = [ce.address(a) for a in arrays]
            if i == len(COUNTS) - 1:
                at[1] = at[2] = 0
            if i % 3 == 2:
                at[2] = 0
            made.append([*at, n, i % 3, int(self.first_step)])
        return made


def ref_step(model: Model, **options: object) -> None:
    table = np.array(model.rows(), np.int64)
    _core.sgd_step(table, GROUPS, backend="ref", **options)


def cuda_step(
    model: Model, scale: np.ndarray | None, found: np.ndarray | None, **options: object
) -> float:
    """Both passes; returns the norm that the first left on the device."""
    lib, rows = ce.library(), model.rows()
    tensors = (SgdTensor * len(rows))(*(SgdTensor(*row) for row in rows))
    lib.cuda_sgd_table_bytes.restype = C.c_size_t
    lib.cuda_sgd_table_at.restype = Table
    room = np.zeros(lib.cuda_sgd_table_bytes(tensors, len(rows)) + 64, np.uint8)
    at = (room.ctypes.data + 63) // 64 * 64
    table = lib.cuda_sgd_table_at(C.c_void_p(at), tensors, len(rows))
    lib.cuda_sgd_fill_table(C.byref(table), tensors, len(rows))
    call = Call(table=table, inverse_scale=1, clip=1, update=True, gradient=ZERO)
    call.scale, call.found_inf = ce.address(scale), ce.address(found)
    for name, value in options.items():
        setattr(call, name, value)
    call.group_count = len(GROUPS)
    for g, row in zip(call.group, GROUPS, strict=False):
        g.minus_lr, g.momentum, g.gradient_weight = -row[0], row[1], 1 - row[2]
        g.weight_decay, g.nesterov, g.maximize = row[3], bool(row[4]), bool(row[5])
        g.decays, g.moves = row[3] != 0, row[1] != 0
    ce.call("cuda_sgd_run_norm", C.byref(call))
    ce.call("cuda_sgd_run_step", C.byref(call), C.c_bool(True))
    return float(C.cast(table.state + 8, C.POINTER(C.c_float))[0])


def assert_same(a: Model, b: Model) -> None:
    for one, other in zip(a.arrays, b.arrays, strict=True):
        for x, y in zip(one, other, strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("gradient", [KEEP, ZERO, WRITE])
@pytest.mark.parametrize("first_step", [False, True])
def test_a_step_with_a_loss_scale_and_an_average(
    gradient: int, first_step: bool
) -> None:
    scale, found = np.float32([1024]), np.zeros(1, np.float32)
    made, truth = Model(1024, first_step), Model(1024, first_step)
    decay = 0.9998
    cuda_step(
        made,
        scale,
        found,
        gradient=gradient,
        average=True,
        ema_decay=decay,
        ema_weight=1 - decay,
    )
    ref_step(truth, inverse_scale=1 / 1024, gradient=gradient, ema_decay=decay)
    assert_same(made, truth)
    assert found[0] == 0


@pytest.mark.parametrize("max_norm", [10.0, 1e6])
def test_clipping(max_norm: float) -> None:
    made, truth = Model(), Model()
    table = np.array(truth.rows(), np.int64)
    exact = _core.sgd_norm(table, backend="ref")
    norm = cuda_step(made, None, None, clips=True, max_norm=max_norm)
    assert norm == pytest.approx(exact, rel=1e-6)
    factor = (
        np.float32(1) / (np.float32(norm) + np.float32(1e-6)) * np.float32(max_norm)
    )
    ref_step(truth, clip=float(min(factor, np.float32(1))))
    assert_same(made, truth)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_an_overflow_skips_parameters_and_momentum(bad: float) -> None:
    scale, found = np.float32([65536]), np.zeros(1, np.float32)
    made, before = Model(), Model()
    made.arrays[2][1][5] = bad
    cuda_step(made, scale, found, average=True, ema_decay=0.5, ema_weight=0.5)
    assert found[0] == 1
    for one, other in zip(made.arrays, before.arrays, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[2], other[2])
        np.testing.assert_array_equal(one[3], (other[3] + other[0]) / np.float32(2))
    for arrays in made.arrays[:-1]:
        assert (arrays[1] == 0).all()


def test_what_overflows_only_when_unscaled_is_no_overflow() -> None:
    """As GradScaler, which looks at the gradients as they come."""
    scale, found = np.float32([2.0**-10]), np.zeros(1, np.float32)
    made, truth = Model(), Model()
    for model in (made, truth):
        model.arrays[1][1][3] = 3e38
    norm = cuda_step(made, scale, found)
    ref_step(truth, inverse_scale=2.0**10)
    assert_same(made, truth)
    assert found[0] == 0 and norm == np.inf


def test_an_overflow_found_elsewhere_skips_too() -> None:
    found = np.ones(1, np.float32)
    made, before = Model(), Model()
    cuda_step(made, np.float32([1]), found, gradient=KEEP)
    assert_same(made, before)
    assert found[0] == 1


def test_the_norm_does_not_depend_on_the_order_of_blocks() -> None:
    norms = set()
    for order in range(3):
        ce.library().ym_emulation_order(order)
        norms.add(cuda_step(Model(), None, None, clips=True, max_norm=1))
    ce.library().ym_emulation_order(0)
    assert len(norms) == 1
