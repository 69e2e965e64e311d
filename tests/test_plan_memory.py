# SPDX-License-Identifier: MIT
"""What a plan promises about memory: budgets, keep rules, exact sizes, clear errors."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from graph_oracle import Run, Tracer, arena, plan
from random_graphs import tower

from yolov9mem import _core


def test_conv_keeps_convolution_outputs_only() -> None:
    t, _ = tower()
    p = plan(t, keep="conv")
    kept = [row for row in p.table() if row["state"] == "kept"]
    assert kept and all(row["op"] == "conv" for row in kept)
    assert p.rerun_convolutions == 0
    statistics = sum(2 * n["mean"].numel() * 4 for n in t.norms)
    bytes_kept = sum(-(-row["bytes"] // 64) * 64 for row in kept)
    assert p.saved_bytes == bytes_kept + -(-statistics // 64) * 64


def test_all_rebuilds_nothing() -> None:
    t, _ = tower()
    assert all(row["rebuilds"] == 0 for row in plan(t, keep="all").table())


@pytest.mark.parametrize("kind", ["relu", "leaky_relu", "silu"])
def test_a_rectifier_is_kept_once(kind: str) -> None:
    """Eager keeps its result, which tells the sign; what silu read is kept beside it."""
    t = Tracer(0)
    x = t.input(2, 8, 9, 7)
    for _ in range(3):
        x = t.act(t.conv(x, 8, 3, padding=1), kind)
    t.output(t.conv(x, 4))
    rows = plan(t, keep="all").table()
    kept = [row["op"] for row in rows if row["state"] == "kept"]
    assert len(kept) == (6 if kind == "silu" else 3)
    assert all(row["rebuilds"] == 0 for row in rows)


def test_min_runs_no_convolution_more_than_twice() -> None:
    t, _ = tower()
    rows = plan(t, keep="min").table()
    assert max(row["rebuilds"] for row in rows if row["op"] == "conv") <= 1
    assert plan(t, keep="min").rerun_convolutions > 0


def test_rules_are_ordered() -> None:
    t, _ = tower()
    keep_all, conv, low = (plan(t, keep=k) for k in ("all", "conv", "min"))
    assert low.saved_bytes < conv.saved_bytes < keep_all.saved_bytes
    assert low.peak_bytes < conv.peak_bytes < keep_all.peak_bytes


def test_budget_is_held_and_cost_never_rises() -> None:
    t, _ = tower()
    top = plan(t, keep="all").peak_bytes
    bottom = plan(t, keep="min").peak_bytes
    cost = None
    for budget in np.linspace(bottom, top, 23).astype(int):
        p = plan(t, keep="budget", budget=int(budget))
        assert p.peak_bytes <= budget
        assert cost is None or p.rerun_flops <= cost
        cost = p.rerun_flops
    assert cost == 0


def test_budget_too_small_names_the_smallest() -> None:
    t, _ = tower()
    with pytest.raises(ValueError, match="smallest plan needs") as raised:
        plan(t, keep="budget", budget=1000)
    smallest = int(str(raised.value).rsplit(" ", 1)[1])
    assert plan(t, keep="budget", budget=smallest).peak_bytes <= smallest
    with pytest.raises(ValueError, match="too small"):
        plan(t, keep="budget", budget=smallest - 1)


def test_min_keeps_what_has_room_in_its_peak() -> None:
    """Late outputs, in memory that backward needs later: a third of it stays free."""
    t, _ = tower(px=96)
    low, conv = plan(t, keep="min"), plan(t, keep="conv")
    rows = [row for row in low.table() if row["op"] == "conv"]
    kept = [i for i, row in enumerate(rows) if row["state"] == "kept"]
    again = [i for i, row in enumerate(rows) if row["rebuilds"] > 0]
    assert kept and again
    assert sum(kept) / len(kept) > sum(again) / len(again)
    assert low.saved_bytes < 0.8 * low.peak_bytes < 0.8 * conv.peak_bytes


def test_nothing_is_kept_for_frozen_layers_that_eager_does_not_keep() -> None:
    t, _ = tower()
    frozen = [False] * len(t.params)
    frozen[-2] = frozen[-1] = True  # the last convolution only
    p = plan(t, keep="conv", input_grads=[False], param_grads=frozen)
    kept = [row["op"] for row in p.table() if row["state"] == "kept"]
    assert len(kept) == 1
    nothing = plan(t, param_grads=[False] * len(t.params))
    assert all(row["state"] != "kept" for row in nothing.table())


@pytest.mark.parametrize("keep", ["all", "conv", "min"])
def test_guard_bytes_round_both_arenas_stay(keep: str) -> None:
    t, before = tower(2)
    run = Run(t, before, keep=keep)
    plan_ = run.plan
    saved = arena(plan_.saved_bytes + 128)
    work = arena(plan_.workspace_bytes + 128)
    saved[plan_.saved_bytes :] = work[plan_.workspace_bytes :] = 0xAB
    outputs = [np.zeros(s, np.float32) for s in plan_.output_shapes]
    plan_.forward(run.inputs, run.params, run.norms, outputs, saved, work)
    gradients = [np.ones_like(o) for o in outputs]
    plan_.backward(
        0,
        run.inputs,
        run.params,
        run.norms,
        gradients,
        [np.zeros_like(x) for x in run.inputs],
        [np.zeros_like(w) for w in run.params],
        saved,
        work,
    )
    assert (saved[plan_.saved_bytes :] == 0xAB).all()
    assert (work[plan_.workspace_bytes :] == 0xAB).all()


@pytest.mark.parametrize("which", ["forward", "backward"])
def test_pixels_between_far_taps_are_not_packed(which: str) -> None:
    """They would be all that a task packs, and its outputs few or a single one."""

    def workspace(dilation: int) -> int:
        t = Tracer(0)
        x = t.input(1, 128, 40, 40)
        t.output(t.conv(x, 128, 3, padding=dilation, dilation=dilation))
        return getattr(plan(t, backend="cpu"), f"{which}_workspace_bytes")

    assert workspace(24) < 1.25 * workspace(2)


@pytest.mark.parametrize("dilation", [3, 6])
def test_rows_that_a_task_does_not_meet_are_not_packed(dilation: int) -> None:
    """Of so many channels that a visit of the weight gradient has a row or two."""

    def workspace(dilation: int) -> int:
        t = Tracer(0)
        x = t.input(4, 1024, 28, 28)
        t.output(t.conv(x, 64, 3, padding=dilation, dilation=dilation))
        return plan(t, backend="cpu").backward_workspace_bytes

    assert workspace(dilation) < 1.02 * workspace(20)


def test_segments_split_the_parameters() -> None:
    t, _ = tower()
    p = plan(t, segments=4)
    assert p.segments == 4
    segments = p.param_segments()
    assert set(segments) == {0, 1, 2, 3}
    for k in range(4):
        touched = p.touched_params(k)
        assert all(touched[i] for i, s in enumerate(segments) if s == k)


class TestBadInput:
    """Each rule has its sentence: what, value, rule."""

    def run(self) -> Run:
        t, before = tower(1, 16)
        run = Run(t, before)
        run.forward()
        return run

    def forward(self, run: Run, **changed) -> None:
        p = run.plan
        call = {
            "inputs": run.inputs,
            "params": run.params,
            "norms": run.norms,
            "outputs": run.outputs,
            "saved": run.saved,
            "workspace": arena(p.forward_workspace_bytes),
        }
        p.forward(*(call | changed).values())

    def test_dtype(self) -> None:
        run = self.run()
        with pytest.raises(TypeError, match=r"inputs\[0\]: dtype is float16"):
            self.forward(run, inputs=[run.inputs[0].astype(np.float16)])

    def test_shape(self) -> None:
        run = self.run()
        with pytest.raises(ValueError, match=r"inputs\[0\]: shape is .* must be"):
            self.forward(run, inputs=[run.inputs[0][:, :-1]])

    def test_stride(self) -> None:
        run = self.run()
        wrong = np.ascontiguousarray(run.inputs[0].transpose(0, 3, 1, 2))
        with pytest.raises(ValueError, match=r"inputs\[0\]: stride .*packed"):
            self.forward(run, inputs=[wrong.transpose(0, 2, 3, 1)])

    def test_read_only_output(self) -> None:
        run = self.run()
        run.outputs[0].flags.writeable = False
        with pytest.raises(ValueError, match=r"outputs\[0\]: is read-only"):
            self.forward(run)

    def test_short_arena(self) -> None:
        run = self.run()
        with pytest.raises(ValueError, match="saved: .* bytes given, the plan needs"):
            self.forward(run, saved=run.saved[:-64])

    def test_unaligned_arena(self) -> None:
        run = self.run()
        with pytest.raises(ValueError, match="saved: is at 0x.*, must be aligned"):
            self.forward(run, saved=arena(run.plan.saved_bytes + 64)[4:])

    def test_wrong_count(self) -> None:
        run = self.run()
        with pytest.raises(ValueError, match="params: has .* entries, must have"):
            self.forward(run, params=run.params[:-1])

    def test_parameter_shape_is_named(self) -> None:
        run = self.run()
        wrong = [*run.params]
        wrong[0] = wrong[0][:, :, :1]
        with pytest.raises(ValueError, match="parameter p1: shape is"):
            self.forward(run, params=wrong)

    def test_no_array(self) -> None:
        run = self.run()
        with pytest.raises(TypeError, match=r"inputs\[0\]: expected a NumPy array"):
            self.forward(run, inputs=["image"])

    @pytest.mark.parametrize(
        ("request_", "error"),
        [
            ({"dtype": "float64"}, "dtype"),
            ({"keep": "some"}, "keep"),
            ({"backend": "tpu"}, "backend"),
            ({"segments": 0}, "segment_count"),
        ],
    )
    def test_requests(self, request_: dict, error: str) -> None:
        t, _ = tower(1, 16)
        with pytest.raises((TypeError, ValueError), match=error):
            plan(t, **request_)

    def test_sizes(self) -> None:
        t, _ = tower(1, 16)
        with pytest.raises(ValueError, match="must be positive"):
            _core.Plan(t.graph, [(0, 16, 16)])
        with pytest.raises(ValueError, match="input_sizes: has 2 entries"):
            _core.Plan(t.graph, [(1, 16, 16), (1, 16, 16)])

    def test_too_small_an_image(self) -> None:
        g = _core.Graph()
        w = g.param((4, 3, 5, 5), "w")
        g.output(g.conv(g.input(3), w, name="stem"))
        with pytest.raises(
            ValueError, match=r"conv stem: .*\(4, 4\) pixels has an output of"
        ):
            _core.Plan(g, [(1, 4, 4)])

    def test_a_window_without_a_place(self) -> None:
        g = _core.Graph()
        g.output(g.max_pool(g.input(3), (3, 3), (2, 2), ceil_mode=True, name="p"))
        message = r"max_pool p: an input of \(1, 1\) pixels has an output of \(0, 0\)"
        with pytest.raises(ValueError, match=message):
            _core.Plan(g, [(1, 1, 1)])
        assert _core.Plan(g, [(1, 2, 2)]).output_shapes == [(1, 1, 1, 3)]

    def test_transposed_convolutions(self) -> None:
        g = _core.Graph()
        x, w = g.input(4), g.param((4, 3, 3, 3), "w")
        y = g.conv_transpose(x, w, (2, 3), (1, 1), (1, 2), name="up")
        for more in ((2, 0), (0, 3), (-1, 0)):
            rule = (
                rf"conv_transpose up: output padding is \({more[0]}, {more[1]}\), must"
            )
            with pytest.raises(ValueError, match=rule):
                g.conv_transpose(x, w, (2, 3), output_padding=more, name="up")
        with pytest.raises(
            ValueError, match="input has 3 channels, weight wants 4 in 1 groups for 3"
        ):
            g.conv_transpose(y, w, name="up")
        with pytest.raises(ValueError, match=r"conv_transpose up: stride is \(0, 1\)"):
            g.conv_transpose(x, w, (0, 1), name="up")
        g.output(y)
        assert _core.Plan(g, [(1, 5, 7)]).output_shapes == [(1, 10, 21, 3)]
        g = _core.Graph()
        g.output(
            g.conv_transpose(g.input(4), g.param((4, 3, 1, 1), "w"), (1, 1), (1, 1))
        )
        with pytest.raises(
            ValueError, match=r"\(2, 2\) pixels has an output of \(0, 0\)"
        ):
            _core.Plan(g, [(1, 2, 2)])

    def test_affine_calls(self) -> None:
        g = _core.Graph()
        x, b = g.input(2), g.param((3,), "b")
        for wrong in ({"scale": float("nan")}, {"shift": float("inf")}):
            with pytest.raises(ValueError, match="affine a: .* must be finite"):
                g.affine(x, name="a", **wrong)
        with pytest.raises(
            ValueError, match="affine bias: param b is .* a vector of 2"
        ):
            g.affine(x, bias=b)
        with pytest.raises(ValueError, match="value 7 does not exist"):
            g.affine(7)
        g.output(g.affine(x, 2.0, name="twice"))
        with pytest.raises(ValueError, match="norm 0 is an affine call, which has no"):
            g.share(0, 1, 2, 0)
        made = _core.Plan(g, [(1, 1, 1)])
        one, saved = np.ones((1, 1, 1, 2), np.float32), arena(made.saved_bytes)
        bias = np.zeros(3, np.float32)  # that nothing reads
        arguments = [one.copy()], saved, arena(made.forward_workspace_bytes)
        norm = (np.ones(2, np.float32), np.ones(2, np.float32), 1e-3, 0.1, False, False)
        with pytest.raises(
            TypeError, match="norm twice: is of an affine call, must be No"
        ):
            made.forward([one], [bias], [norm], *arguments)
        made.forward([one], [bias], [None], *arguments)
        assert arguments[0][0].tolist() == [[[[2, 2]]]]

    @pytest.mark.parametrize("side", [0, 1])
    @pytest.mark.parametrize("what", ["stride", "padding", "dilation"])
    def test_windows_beyond_any_image(self, what: str, side: int) -> None:
        g = _core.Graph()
        x, w = g.input(3), g.param((4, 3, 3, 3), "w")
        for wrong in (-1, 32769, 2**30, 2**31 - 1):
            pair = (wrong, 1) if side == 0 else (1, wrong)
            rule = (
                rf"conv c: {what} is \({pair[0]}, {pair[1]}\), must be from . to 32768"
            )
            with pytest.raises(ValueError, match=rule):
                g.conv(x, w, name="c", **{what: pair})
        with pytest.raises(ValueError, match=r"avg_pool q: stride is \(1, 2147483647"):
            g.avg_pool(x, (3, 3), (1, 2**31 - 1), name="q")
        with pytest.raises(
            ValueError, match=r"max_pool q: padding is \(2, 0\), .*half"
        ):
            g.max_pool(x, (3, 3), (1, 1), (2, 0), name="q")

    @pytest.mark.parametrize("size", [(1, 2**30 + 1, 1), (1, 1, 2**31 - 1)])
    def test_sides_beyond_any_image(self, size: tuple[int, int, int]) -> None:
        t, _ = tower(1, 16)
        with pytest.raises(ValueError, match="input 0: .* must be at most 1073741824"):
            _core.Plan(t.graph, [size])

    def test_huge(self) -> None:
        g = _core.Graph()
        w = g.param((4096, 3, 1, 1), "w")
        g.output(g.conv(g.input(3), w, name="stem"))
        with pytest.raises(MemoryError, match=r"conv stem: .* fewer than 9e\+15"):
            _core.Plan(g, [(2_000_000, 30_000, 30_000)])


@pytest.mark.parametrize("backend", [3, None, b"cpu"])
def test_a_backend_is_a_text(backend: object) -> None:
    with pytest.raises(
        TypeError, match=f"backend: is {backend!r}, must be a text: cpu"
    ):
        _core.Plan(_core.Graph(), [], backend=backend)


def test_a_build_without_cuda_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yolov9mem._cuda", None)
    for backend in ("cuda", "cuda:1:plain"):
        with pytest.raises(ImportError, match=f"'{backend}', .* built without CUDA"):
            _core.Plan(_core.Graph(), [], backend=backend)
