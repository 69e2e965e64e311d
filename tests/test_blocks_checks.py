# SPDX-License-Identifier: MIT
"""What the named blocks refuse on NumPy arrays: each message names tensor and rule."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import yolov9mem


def small() -> tuple[yolov9mem.Block, dict[str, np.ndarray], np.ndarray]:
    block = yolov9mem.elan1(4, 6, 4, 3)
    x = np.random.default_rng(1).standard_normal((2, 5, 7, 4), np.float32)
    return block, block.initial_params(3), x


def conv_params() -> dict[str, np.ndarray]:
    return yolov9mem.conv(4, 4).initial_params()


def wrong_calls():
    block, params, x = small()
    missing = {k: v for k, v in params.items() if k != "cv2.bn.bias"}
    double = params | {"cv1.conv.weight": params["cv1.conv.weight"].astype(float)}
    shape = params | {"cv1.conv.weight": np.zeros((4, 3, 1, 1), np.float32)}
    locked = params["cv3.bn.running_var"].copy()
    locked.flags.writeable = False
    f = block.forward
    return {
        "no array": (
            lambda: f([1.0], params),
            TypeError,
            "x: expected a NumPy array, got list",
        ),
        "dimensions": (lambda: f(x[0], params), ValueError, r"x: shape is \(5, 7, 4\)"),
        "packed": (lambda: f(x[:, :, ::2], params), ValueError, "x: strides"),
        "channels": (
            lambda: f(x.repeat(2, 3), params),
            ValueError,
            r"x: shape is \(2, 5, 7, 8\), must be .*4",
        ),
        "dtype": (lambda: f(x.astype(float), params), TypeError, "x: dtype is float64"),
        "missing": (lambda: f(x, missing), ValueError, "'cv2.bn.bias' is missing"),
        "unknown": (lambda: f(x, params | {"a": x}), ValueError, "'a' is no tensor"),
        "weight dtype": (lambda: f(x, double), TypeError, "cv1.conv.weight.*float64"),
        "weight shape": (lambda: f(x, shape), ValueError, r"cv1.conv.weight.*4, 3, 1"),
        "read-only": (
            lambda: f(x, params | {"cv3.bn.running_var": locked}),
            ValueError,
            "running_var of cv3.bn: is read-only",
        ),
        "keep": (lambda: f(x, params, keep="some"), ValueError, "keep: is 'some'"),
        "budget": (lambda: f(x, params, keep="1kB"), ValueError, "budget"),
        "backend": (lambda: f(x, params, backend="gpu"), ValueError, "backend"),
        "frozen letters": (
            lambda: f(x, params, frozen="cv1.conv.weight"),
            TypeError,
            "frozen: is the str 'cv1.conv.weight', must be a collection of names",
        ),
        "frozen number": (
            lambda: f(x, params, frozen=[3]),
            TypeError,
            "frozen: an entry: is 3, must be a str",
        ),
        "backend type": (
            lambda: f(x, params, backend=None),
            TypeError,
            "backend: is None, must be a str",
        ),
        "empty": (lambda: f(x[:0], params), ValueError, r"x: shape is \(0, 5, 7, 4\)"),
        "params": (lambda: f(x, [params]), TypeError, "params: is a list, must map"),
        "an address": (
            lambda: f(x, params | {"cv1.bn.bias": (64, "float32", (4,), (1,), -1)}),
            TypeError,
            "params: 'cv1.bn.bias': expected a NumPy array, got tuple",
        ),
        "frozen": (lambda: f(x, params, frozen=["b"]), ValueError, "'b' is no param"),
        "size": (
            lambda: block.plan((2, 0, 7)),
            ValueError,
            "input_size: H: is 0, must be 1 to 2147483647",
        ),
        "huge size": (
            lambda: block.plan((2**31, 5, 5)),
            ValueError,
            "input_size: N: is 2147483648, must be 1 to 2147483647",
        ),
        "size 1.5": (
            lambda: block.plan((1, 1.5, 5)),
            TypeError,
            "input_size: H: is 1.5, must be a whole number",
        ),
        "no size": (lambda: block.plan(5), TypeError, "input_size: is a int"),
        "two sizes": (
            lambda: block.plan((1, 2)),
            ValueError,
            r"input_size: is \(1, 2\)",
        ),
        "huge channels": (
            lambda: yolov9mem.conv(2**31, 4),
            ValueError,
            "conv: c1: is 2147483648, must be at most 2147483647",
        ),
        "huge weight": (
            lambda: yolov9mem.conv(1, 1, 46341),
            ValueError,
            r"conv.weight: shape is \(1, 1, 46341, 46341\), 2147488281 elements, must",
        ),
        "padding": (
            lambda: yolov9mem.conv(4, 4, p=1.5),
            TypeError,
            "conv: p: is 1.5, must be a whole number",
        ),
        "padding of k and d": (
            lambda: yolov9mem.conv(4, 4, 5, d=2**31 - 1),
            ValueError,
            "conv: k is 5 and d is 2147483647, a padding of 4294967294",
        ),
        "builder": (lambda: yolov9mem.elan1(4, 6, 5, 3), ValueError, "c3: is 5"),
        "builder 0": (lambda: yolov9mem.conv(4, 0), ValueError, "c2: is 0"),
        "groups": (lambda: yolov9mem.conv(4, 6, g=4), ValueError, "g: is 4"),
        "groups of 1.5": (lambda: yolov9mem.conv(4, 6, g=1.5), ValueError, "g: is 1.5"),
        "eps text": (
            lambda: yolov9mem.conv(4, 6, eps="a"),
            TypeError,
            "eps: is 'a', must be a number",
        ),
        "huge eps": (
            lambda: yolov9mem.conv(4, 6, eps=1e300),
            ValueError,
            r"eps: is 1e\+300, must be finite in float32",
        ),
        "eps": (lambda: yolov9mem.conv(4, 6, eps=np.nan), ValueError, "eps: is nan"),
        "momentum": (
            lambda: yolov9mem.adown(4, 6, momentum=2.0),
            ValueError,
            "momentum: is 2.0",
        ),
        "huge padding": (
            lambda: yolov9mem.conv(4, 6, 3, p=2**31 - 1).plan((1, 5, 5)),
            ValueError,
            "padding is .2147483647, 2147483647., must be from 0 to 32768",
        ),
        "one value": (
            lambda: f(x[:1, :1, :1], params),
            ValueError,
            "batch norm cv1.* has one value",
        ),
        "count": (
            lambda: f(x, params | {"cv1.bn.num_batches_tracked": 3}),
            TypeError,
            "cv1.bn.num_batches_tracked: is int, must be an integer array",
        ),
        "count's shape": (
            lambda: f(x, params | {"cv1.bn.num_batches_tracked": np.zeros(3, int)}),
            ValueError,
            r"cv1.bn.num_batches_tracked: shape is \(3,\), must be \(\)",
        ),
        "out dtype": (
            lambda: f(x, params, out=np.zeros((2, 5, 7, 6))),
            TypeError,
            "out: dtype is float64",
        ),
        "out shape": (
            lambda: f(x, params, out=np.zeros((2, 5, 7, 5), np.float32)),
            ValueError,
            r"out: shape is \(2, 5, 7, 5\), must be \(2, 5, 7, 6\)",
        ),
        "parameter's dtype": (
            lambda: f(x, params | {"cv1.bn.bias": np.zeros(4)}),
            TypeError,
            "params: 'cv1.bn.bias': dtype is float64, must be float32$",
        ),
        "buffer's dtype": (
            lambda: f(x, params | {"cv1.bn.running_var": np.ones(4)}),
            TypeError,
            "params: 'cv1.bn.running_var': dtype is float64, must be float32$",
        ),
        "no count": (
            lambda: f(x, params | {"cv1.bn.num_batches_tracked": None}),
            TypeError,
            "cv1.bn.num_batches_tracked: is NoneType, must be an integer array",
        ),
        "backend of a GPU": (
            lambda: f(x, params, backend="cuda"),
            ValueError,
            "backend: is 'cuda', must be cpu or ref; .* by yolov9mem.torch.checkpoint",
        ),
        "own memory": (
            lambda: yolov9mem.conv(4, 4).forward(x, conv_params(), out=x),
            ValueError,
            "out: shares memory with x",
        ),
    }


@pytest.mark.parametrize("name", wrong_calls())
def test_wrong_calls_name_tensor_value_and_rule(name: str) -> None:
    call, kind, words = wrong_calls()[name]
    with pytest.raises(kind, match=words):
        call()


@pytest.mark.parametrize("name", ["cv1.bn.weight", "cv1.bn.bias"])
def test_vectors_with_gaps_are_refused_in_any_shape(name: str) -> None:
    """They are read and written as packed; (C, 1, 1, 1) is a shape of theirs, too."""
    block, params, x = small()
    shape = (4, 1, 1, 1)
    y = block.forward(x, params | {name: params[name].reshape(shape)})
    assert block.backward(y)[1][name].shape == (4,)
    memory = np.full(12, 7, np.float32)
    for place in (memory[:8:2], memory[7:3:-1]):
        with pytest.raises(ValueError, match=f"{name}: stride of .* must be 1 .packed"):
            block.forward(x, params | {name: place.reshape(shape)})
        block.forward(x, params)
        with pytest.raises(ValueError, match=f"{name}: stride of .* must be 1 .packed"):
            block.backward(y, out={name: place.reshape(shape)})
    assert (memory == 7).all()


def test_a_weight_of_one_input_channel_may_have_gaps() -> None:
    block = yolov9mem.conv(1, 6)
    params, x = block.initial_params(), np.ones((1, 3, 3, 1), np.float32)
    y = block.forward(x, params)
    _, grads = block.backward(y)
    wide = np.zeros((6, 2, 1, 1), np.float32)
    wide[:, :1] = params["conv.weight"]
    found = block.forward(x, params | {"conv.weight": wide[:, :1]})
    np.testing.assert_array_equal(found, y)
    wide = np.zeros_like(wide)
    block.backward(y, out={"conv.weight": wide[:, :1]})
    np.testing.assert_array_equal(wide[:, :1], grads["conv.weight"])
    assert not wide[:, 1:].any()


def test_sizes_may_be_numpy_s_integers() -> None:
    block = yolov9mem.elan1(*np.array([4, 6, 6, 3]))
    assert block.param_shapes == yolov9mem.elan1(4, 6, 6, 3).param_shapes
    assert block.plan((1, 5, 5)).output_shape == (1, 5, 5, 6)
    most = block.plan(np.array([1, 5, 5]), keep=np.int64(10**6)).peak_bytes
    assert most == block.plan((1, 5, 5), keep=10**6).peak_bytes


@pytest.mark.parametrize("value", ["False", 0, None])
def test_flags_are_true_or_false(value) -> None:
    block = yolov9mem.conv(2, 2)
    x, params = np.ones((1, 2, 2, 2), np.float32), block.initial_params()
    for name, call in (
        ("act", lambda: yolov9mem.conv(2, 2, act=value)),
        ("input_grad", lambda: block.plan((1, 2, 2), input_grad=value)),
        ("input_grad", lambda: block.forward(x, params, input_grad=value)),
        ("training", lambda: block.forward(x, params, training=value)),
    ):
        with pytest.raises(TypeError, match=f"{name}: is {value!r}, must be True or F"):
            call()
    assert params["bn.num_batches_tracked"] == 0


@pytest.mark.filterwarnings("ignore:overflow")
def test_small_integers_of_numpy_do_not_wrap() -> None:
    far = yolov9mem.conv(8, 8, np.uint8(3), d=np.uint8(200))
    assert far.plan((1, 600, 600)).output_shape == (1, 600, 600, 8)
    for make, sizes in (
        (yolov9mem.sppelan, (8, 8, 100)),
        (yolov9mem.elan1, (8, 8, 120, 80)),
        (yolov9mem.rep_ncsp_elan4, (8, 8, 64, 64)),
    ):
        block = make(*np.array(sizes, np.int8))
        assert block.param_shapes == make(*sizes).param_shapes


def test_wrong_gradients() -> None:
    block, params, x = small()
    y = block.forward(x, params)
    with pytest.raises(ValueError, match="dy: shape is"):
        block.backward(y[:1])
    with pytest.raises(TypeError, match="dy: expected a NumPy array, got NoneType"):
        block.backward(None)
    with pytest.raises(TypeError, match="dy: dtype is float64"):
        block.backward(y.astype(float))
    with pytest.raises(TypeError, match="out: is a list, must map names"):
        block.backward(y, out=[y])
    with pytest.raises(ValueError, match="gradient of x: shape is"):
        block.backward(y, out={"x": x[:1]})
    with pytest.raises(ValueError, match="no gradient of 'z' .* it is no parameter"):
        block.backward(y, out={"z": y})
    with pytest.raises(TypeError, match=r"cv1\.bn\.bias: dtype is float64, must be"):
        block.backward(y, out={"cv1.bn.bias": np.zeros(4)})
    same = np.zeros_like(params["cv1.bn.bias"])
    for out in (
        {"cv1.bn.bias": same, "cv1.bn.weight": same},
        {"cv1.bn.bias": params["cv1.bn.bias"]},
        {"x": x},
    ):
        with pytest.raises(ValueError, match="shares memory with"):
            block.backward(y, out=out)
    one = np.lib.stride_tricks.as_strided(same, (4, 4, 1, 1), (0, 0, 0, 0))
    with pytest.raises(ValueError, match=r"cv1\.conv\.weight: strides are .* its own"):
        block.backward(y, out={"cv1.conv.weight": one})
    block.backward(y)  # a refused call consumed nothing
    block.forward(x, params, input_grad=False, frozen=["cv1.bn.bias"])
    with pytest.raises(ValueError, match="of 'x' .* it is not wanted, by input_grad"):
        block.backward(y, out={"x": x})
    with pytest.raises(ValueError, match=r"of 'cv1\.bn\.bias' .* it is frozen"):
        block.backward(y, out={"cv1.bn.bias": same})


def test_gradients_apart_from_the_buffers_that_evaluation_reads() -> None:
    block, params, x = small()
    y = block.forward(x, params, training=False)
    with pytest.raises(ValueError, match=r"bn\.bias: shares memory with cv1\.bn\.run"):
        block.backward(y, out={"cv1.bn.bias": params["cv1.bn.running_var"]})


@pytest.mark.parametrize("written", ["running_mean", "running_var"])
@pytest.mark.parametrize("read", ["cv1.bn.bias", "cv2.bn.running_mean", "x"])
def test_running_buffers_have_their_own_memory(written: str, read: str) -> None:
    """They are moved while the rest is read; nothing has moved when it is refused."""
    block = yolov9mem.elan1(4, 6, 4, 4)
    params = block.initial_params(3)
    x = np.random.default_rng(1).standard_normal((2, 5, 7, 4), np.float32)
    name = f"cv1.bn.{written}"
    params[name] = x.reshape(-1)[2:6] if read == "x" else params[read]
    before = copy.deepcopy(params)
    with pytest.raises(ValueError, match=f"shares memory with ({read}|{name}), must"):
        block.forward(x, params)
    for key, value in before.items():
        np.testing.assert_array_equal(params[key], value)


def test_what_is_only_read_may_be_shared() -> None:
    """One weight of two norms, running buffers of two norms in evaluation, and
    rows of one buffer that lie between each other."""
    block = yolov9mem.elan1(4, 6, 4, 4)
    params = block.initial_params(3)
    x = np.random.default_rng(1).standard_normal((2, 5, 7, 4), np.float32)
    mixed = np.zeros((4, 2, 4), np.float32)
    mixed[:, 0] = params["cv1.conv.weight"][:, :, 0, 0]
    params["cv2.conv.weight"] = np.ones((4, 2, 3, 3), np.float32)
    params["cv3.bn.weight"] = params["cv1.bn.weight"]
    expected = block.forward(x, copy.deepcopy(params))
    params["cv1.conv.weight"] = mixed[:, 0, :, None, None]
    params["cv1.bn.running_mean"] = mixed[1, 1]
    np.testing.assert_array_equal(block.forward(x, params), expected)
    params["cv2.bn.running_mean"] = params["cv3.bn.running_mean"]
    block.forward(x, params, training=False)
    _, grads = block.backward(expected)
    places = np.zeros((4, 2, 4), np.float32)
    block.forward(x, params, training=False)
    between = {
        "cv1.conv.weight": places[:, 0, :, None, None],
        "cv1.bn.bias": places[2, 1],
    }
    block.backward(expected, out=between)
    for name, place in between.items():
        np.testing.assert_array_equal(place, grads[name])


def test_frozen_may_be_an_iterator() -> None:
    block, _, _ = small()
    trained = block.plan((1, 5, 5), frozen=iter(["cv1.bn.bias"])).trained
    assert trained == set(block.param_shapes) - {"cv1.bn.bias"}


@pytest.mark.parametrize("backend", ["ref", "cpu"])
def test_an_infinity_spoils_what_it_reaches_and_no_more(backend):
    """Which of both it becomes, infinity or NaN, is not said."""
    block = yolov9mem.conv(4, 8, 3, act=False)
    params = block.initial_params(0)
    x = np.random.default_rng(0).standard_normal((1, 16, 16, 4)).astype(np.float32)
    x[0, 8, 7, 2] = np.inf
    y = block.forward(x, params, training=False, backend=backend)
    spoilt = ~np.isfinite(y)
    assert spoilt[0, 7:10, 6:9].all()
    assert spoilt.sum() == 9 * 8


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_a_copy_has_no_part_in_a_forward(duplicate) -> None:
    """Both would free what backward reads, or go back through it twice."""
    block, params, x = small()
    y = block.forward(x, params)
    other = duplicate(block)
    with pytest.raises(RuntimeError, match="no forward to go back through"):
        other.backward(y)
    np.testing.assert_array_equal(other.forward(x, params), y)
    for made, expected in zip(other.backward(y), block.backward(y), strict=True):
        np.testing.assert_equal(made, expected)


def test_a_pickle_says_what_to_do_instead() -> None:
    with pytest.raises(TypeError, match="pickle its parameters, build it anew"):
        pickle.dumps(small()[0])
