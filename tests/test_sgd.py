# SPDX-License-Identifier: MIT
"""The optimizer step on NumPy arrays, against the formulas in float64."""

import math
from decimal import Decimal

import numpy as np
import pytest
from sgd_twins import OPTIONS

from yolov9mem.sgd import SGDGroup, clip_coefficient, inverse_scale, sgd_step

BEYOND = 10**400  # all floats
SIZES = [1, 2, 7, 15, 16, 17, 33, 1023, 1025, 65535, 65536, 65537, 140001]


def make(rng, sizes=SIZES):
    """Lists of params, grads, momentum buffers and averages."""
    return [[rng.standard_normal(n, dtype=np.float32) for n in sizes] for _ in range(4)]


def expected(p, g, b, e, options, *, first, clip=1.0, decay=0.99):
    """The step in float64."""
    p, g, b, e = (np.float64(x) for x in (p, g, b, e))
    g = g * clip * (-1 if options.get("maximize") else 1)
    g = g + options.get("weight_decay", 0) * p
    mu = options.get("momentum", 0)
    if mu:
        b = g if first else mu * b + (1 - options.get("dampening", 0)) * g
        g = g + mu * b if options.get("nesterov") else b
    p = p - options["lr"] * g
    return p, b, decay * e + (1 - decay) * p


@pytest.mark.parametrize("backend", ["ref", "cpu"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", OPTIONS)
def test_step_follows_the_formulas(name, first, backend):
    options = OPTIONS[name]
    params, grads, buffers, averages = make(np.random.default_rng(0))
    norm = math.sqrt(sum((np.float64(g) ** 2).sum() for g in grads))
    before = [
        expected(*x, options, first=first, clip=5 / (norm + 1e-6))
        for x in zip(params, grads, buffers, averages, strict=True)
    ]
    group = SGDGroup(params, grads, buffers, averages, first_step=first, **options)
    result = sgd_step(group, max_norm=5.0, ema_decay=0.99, backend=backend)
    assert result.stepped
    assert result.norm == pytest.approx(norm, rel=1e-12)
    for (p, b, e), mine in zip(
        before, zip(params, buffers, averages, strict=True), strict=True
    ):
        np.testing.assert_allclose(mine[0], p, rtol=0, atol=1e-6)
        np.testing.assert_allclose(mine[1], b, rtol=0, atol=1e-6)
        np.testing.assert_allclose(mine[2], e, rtol=0, atol=1e-6)
    assert not any(g.any() for g in grads)


@pytest.mark.parametrize("name", OPTIONS)
def test_backends_have_the_same_bits(name):
    outcomes = []
    for backend in ("ref", "cpu"):
        params, grads, buffers, averages = make(np.random.default_rng(1))
        group = SGDGroup(params, grads, buffers, averages, **OPTIONS[name])
        sgd_step(
            group, loss_scale=1024.0, ema_decay=0.9, gradient="write", backend=backend
        )
        outcomes.append(params + grads + buffers + averages)
    for ref, cpu in zip(*outcomes, strict=True):
        np.testing.assert_array_equal(ref.view(np.int32), cpu.view(np.int32))


@pytest.mark.parametrize("backend", ["ref", "cpu"])
@pytest.mark.parametrize("poison", [np.inf, -np.inf, np.nan])
def test_non_finite_gradient_skips(poison, backend):
    params, grads, buffers, averages = make(np.random.default_rng(2))
    grads[5][3] = poison
    kept = [x.copy() for x in params + buffers]
    moved = [
        e * np.float32(0.5) + p * np.float32(0.5)
        for e, p in zip(averages, params, strict=True)
    ]
    group = SGDGroup(params, grads, buffers, averages, lr=0.1, momentum=0.9)
    result = sgd_step(
        group, loss_scale=2.0, max_norm=1.0, ema_decay=0.5, backend=backend
    )
    assert not result.stepped
    assert not math.isfinite(result.norm)
    for x, y in zip(params + buffers + averages, kept + moved, strict=True):
        np.testing.assert_array_equal(x, y)
    assert not any(g.any() for g in grads)


@pytest.mark.parametrize("backend", ["ref", "cpu"])
def test_infs_are_looked_for_in_gradients_as_they_come(backend):
    """As torch.amp.GradScaler: what overflows only when it is unscaled is no reason."""
    param = np.zeros(20, np.float32)
    grad = np.full(20, 3e38, np.float32)
    group = SGDGroup([param], [grad], lr=0.1)
    result = sgd_step(group, loss_scale=2.0**-10, backend=backend)
    assert result.stepped
    assert result.norm == pytest.approx(3e38 * 2**10 * math.sqrt(20), rel=1e-6)
    assert (param == -np.inf).all()


def test_without_a_scaler_nan_goes_through():
    params, grads, buffers, _ = make(np.random.default_rng(3), [4])
    grads[0][1] = np.nan
    assert sgd_step(SGDGroup(params, grads, lr=0.1), max_norm=1.0).stepped
    assert np.isnan(params[0]).all()  # the clip coefficient is NaN, as in torch


@pytest.mark.parametrize("gradient", ["zero", "keep", "write"])
def test_what_is_left_in_the_gradient(gradient):
    params, grads, _, _ = make(np.random.default_rng(4), [1000])
    g = grads[0].copy()
    sgd_step(SGDGroup(params, grads), loss_scale=8.0, gradient=gradient)
    np.testing.assert_array_equal(
        grads[0], {"zero": 0 * g, "keep": g, "write": g / 8}[gradient]
    )


def test_groups_share_the_norm_and_keep_their_own_rates():
    params, grads, buffers, _ = make(np.random.default_rng(5), [3, 4])
    first = SGDGroup(params[:1], [np.array([3, 0, 0], np.float32)], lr=1.0)
    second = SGDGroup(params[1:], [np.array([0, 4, 0, 0], np.float32)], lr=0.0)
    kept = params[1].copy()
    result = sgd_step([first, second], max_norm=100.0)
    assert result.norm == 5.0
    np.testing.assert_array_equal(params[1], kept)


def test_absent_gradient_still_averages():
    params, _, _, averages = make(np.random.default_rng(6), [5])
    kept, before = params[0].copy(), averages[0].copy()
    sgd_step(SGDGroup(params, [None], averages=averages), ema_decay=0.75)
    np.testing.assert_array_equal(params[0], kept)
    np.testing.assert_array_equal(
        averages[0], before * np.float32(0.75) + kept * np.float32(0.25)
    )


def test_any_dense_layout():
    rng = np.random.default_rng(7)
    shape = (4, 3, 5, 2)
    x = [rng.standard_normal(shape, dtype=np.float32) for _ in range(3)]
    y = [np.asfortranarray(a).transpose(1, 0, 2, 3) for a in x]
    z = [np.ascontiguousarray(a) for a in y]
    for p, g, b in (y, z):
        sgd_step(SGDGroup([p], [g], [b], lr=0.1, momentum=0.5))
    np.testing.assert_array_equal(y[0], z[0])
    np.testing.assert_array_equal(y[2], z[2])


def test_empty_arrays():
    empty = np.zeros((0, 3), np.float32)
    assert sgd_step(SGDGroup([empty], [empty.copy()]), max_norm=1.0).norm == 0
    assert sgd_step([], max_norm=1.0).norm == 0


def test_scalars_as_torch_computes_them():
    assert clip_coefficient(0.0, 10.0) == 1.0
    assert math.isnan(clip_coefficient(math.nan, 10.0))
    assert clip_coefficient(math.inf, 10.0) == 0.0
    assert inverse_scale(65536.0) == 2.0**-16
    assert inverse_scale(3.0) == float(np.float32(1 / 3))
    assert inverse_scale(0.0) == math.inf


def bad(**changes):
    p, g, b = (np.ones(4, np.float32) for _ in range(3))
    fields = dict(params=[p], grads=[g], momentum_buffers=[b], lr=0.1, momentum=0.9)
    return SGDGroup(**(fields | changes))


F = np.ones(4, np.float32)
MISALIGNED = np.zeros(17, np.uint8)[1:].view(np.float32)


@pytest.mark.parametrize(
    ("group", "error", "text"),
    [
        (bad(lr=math.nan), ValueError, "lr is nan"),
        (bad(lr=-1.0), ValueError, "lr is -1"),
        (bad(momentum=-0.1), ValueError, "momentum is -0.1"),
        (bad(weight_decay=math.inf), ValueError, "weight_decay is inf"),
        (bad(nesterov=True, dampening=0.1), ValueError, "nesterov"),
        (bad(momentum_buffers=None), ValueError, "momentum_buffers"),
        (bad(grads=[]), ValueError, "0 grads for 1 params"),
        (bad(first_step=[True, False]), ValueError, "2 first_step for 1"),
        (bad(params=[np.ones(4)]), TypeError, r"params\[0\]: dtype is float64"),
        (bad(params=[[1.0] * 4]), TypeError, "expected a NumPy array, got list"),
        (bad(params=[None]), TypeError, "got None"),
        (bad(grads=[np.ones(5, np.float32)]), ValueError, r"grads\[0\]: shape is"),
        (bad(grads=[np.ones(8, np.float32)[::2]]), ValueError, "strides"),
        (bad(params=[np.ones(8, np.float32)[::-2]]), ValueError, "strides"),
        (bad(params=[F], grads=[F]), ValueError, "overlaps"),
        (bad(lr="a"), TypeError, "group 0: lr: expected a number, got str: 'a'"),
        (bad(dampening=math.inf), ValueError, "group 0: dampening is inf"),
        (bad(nesterov="False"), TypeError, "group 0: nesterov: is 'False', must be T"),
        (bad(maximize=0), TypeError, "group 0: maximize: is 0, must be True or False"),
        (bad(first_step=1), TypeError, "group 0: first_step: expected a bool"),
        (bad(first_step=["False"]), TypeError, r"group 0: first_step\[0\]: is 'False'"),
        (
            bad(first_step=[math.nan]),
            TypeError,
            r"group 0: first_step\[0\]: is nan, must",
        ),
        (bad(params=[np.broadcast_to(F[:1], 4)]), ValueError, "read-only"),
        (bad(grads=[MISALIGNED]), ValueError, r"grads\[0\]: address is 0x.* aligned"),
        (bad(params=None), TypeError, "group 0: params: is a NoneType, must be a seq"),
        (bad(grads=None), TypeError, "group 0: grads: is a NoneType, must be a seq"),
        (bad(momentum_buffers=5), TypeError, "group 0: momentum_buffers: is a int"),
        (bad(averages=5), TypeError, "group 0: averages: is a int, must be a seq"),
        (bad(grads=np.array(5)), TypeError, r"grads: is a ndarray of shape \(\), must"),
        (np.array(5), TypeError, r"groups: is a ndarray of shape \(\), must be a seq"),
        (None, TypeError, "groups: is a NoneType, must be a sequence"),
        ([bad(), [F]], TypeError, "group 1: is a list, must be an SGDGroup"),
    ],
)
def test_bad_input(group, error, text):
    with pytest.raises(error, match=text):
        sgd_step(group)


def test_overlap_of_parts():
    memory = np.ones(100, np.float32)
    group = SGDGroup([memory[:60], memory[40:]], [np.ones(60, np.float32)] * 2)
    with pytest.raises(ValueError, match=r"overlaps the .* of tensor"):
        sgd_step(group)
    both = (
        SGDGroup([memory[:50]], [None]),
        SGDGroup([F, memory[50:]], [F.copy(), memory[50:]]),
    )
    text = "tensor 1 of group 1: grad overlaps the param of tensor 1 of group 1"
    with pytest.raises(ValueError, match=text):
        sgd_step(both)


@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay", "dampening"])
def test_a_rate_beyond_all_floats(name):
    with pytest.raises(ValueError, match=f"group 0: {name} is 1000.* must be finite"):
        sgd_step(bad(**{name: BEYOND}))


def test_a_norm_beyond_all_floats_clips_nothing():
    assert sgd_step(bad(), max_norm=BEYOND) == sgd_step(bad(), max_norm=math.inf)


@pytest.mark.parametrize("name", ["max_norm", "loss_scale", "ema_decay"])
def test_settings_of_other_types(name):
    with pytest.raises(TypeError, match=f"{name}: expected a number, got str: '1'"):
        sgd_step(bad(), **{name: "1"})


@pytest.mark.parametrize("name", ["gradient", "backend"])
@pytest.mark.parametrize("value", [None, []])
def test_words_of_other_types(name, value):
    with pytest.raises(TypeError, match=rf"{name}: is (None|\[\]), must be a str"):
        sgd_step(bad(), **{name: value})


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (dict(max_norm=-1.0), "max_norm: is -1"),
        (dict(max_norm=math.nan), "max_norm: is nan"),
        (dict(loss_scale=0.0), "loss_scale: is 0"),
        (dict(max_norm=Decimal("nan")), "max_norm: is NaN"),
        (dict(max_norm=-BEYOND), "max_norm: is -1000"),
        (dict(loss_scale=BEYOND), "loss_scale: is 1000.* must be finite"),
        (dict(ema_decay=1.5), "ema_decay is 1.5"),
        (dict(ema_decay=BEYOND), "ema_decay is 1000"),
        (dict(gradient="clear"), "gradient: is 'clear'"),
        (dict(backend="gpu"), "backend is 'gpu'"),
    ],
)
def test_bad_settings(settings, text):
    with pytest.raises(ValueError, match=text):
        sgd_step(bad(), **settings)
