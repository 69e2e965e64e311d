# SPDX-License-Identifier: MIT
"""largest_batch(): against plans, counted allocations, brute force, and failing memory."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from allocations import peak_of
from models_for_tests import Elan, Net

import yolov9mem.torch as ym
from benchmarks import bench_gpu_plan
from benchmarks.models import detection_model
from yolov9mem.torch import batches
from yolov9mem.torch.running import arenas, shared_call

ROOM = 10**9


@pytest.fixture(autouse=True, scope="module")
def _nothing_else_is_collected() -> Iterator[None]:
    """Each trial's gc.collect() looks at what these tests have made alone."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class Line:
    """A step of which peaks are told: a function of the batch; None: memory runs out."""

    def __init__(self, peak: Callable[[int], int | None], room: int = ROOM) -> None:
        self.peak, self.room = peak, room
        self.latest, self.prepared = 0, 0

    def prepare(self) -> Callable[[int], None]:
        self.prepared += 1

        def step(batch: int) -> None:
            peak = self.peak(batch)
            if peak is None:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to ...")
            self.latest = peak

        return step

    def meter(self, work: Callable[[], object]) -> tuple[int, int]:
        work()
        return self.latest, self.room

    def largest(self, **options: object) -> ym.LargestBatch:
        return ym.largest_batch(self.prepare, **{"meter": self.meter, **options})


def test_a_straight_line_takes_six_trials() -> None:
    line = Line(lambda n: 50_000_000 + 7_000_000 * n)
    found = line.largest()
    # 50 + 7 n <= 900
    assert found.batch == 121
    assert [t.batch for t in found.trials] == [1, 2, 8, 32, 121, 122]
    assert found.chosen.peak_bytes == 897_000_000
    assert line.prepared == 1
    assert str(found) == (
        "a batch of 121 takes 897 MB, 90% of the 1 GB that this process can have (limit "
        "900 MB); measured 1: 57 MB, 2: 64 MB, 8: 106 MB, 32: 274 MB, 121: 897 MB, "
        "122: 904 MB"
    )


def test_steep_then_flat() -> None:
    line = Line(lambda n: 100 + 90 * (n > 1) + 10 * max(n - 2, 0), 220)
    found = line.largest(share=1.0)
    assert [t.batch for t in found.trials] == [1, 2, 3, 5, 6]
    assert found.batch == 5


@pytest.mark.parametrize("seed", range(60))
def test_memory_that_grows_in_steps(seed: int) -> None:
    """As of an allocator's blocks: one more than is found was tried, and does not fit."""
    draw = random.Random(seed)
    block, each = draw.choice([20, 50, 200, 500]), draw.randint(7, 300)
    line = Line(lambda n: block * -(-(each * n + 300) // block), 9000)
    found = line.largest(share=1.0)
    assert found.batch == max(n for n in range(1, 1025) if line.peak(n) <= 9000)
    assert len(found.trials) <= batches.MOST_TRIALS


@pytest.mark.parametrize("multiple", [1, 2, 3])
@pytest.mark.parametrize("most", [3, 20, 1024])
def test_multiples_most_memory_and_share(multiple: int, most: int) -> None:
    line = Line(lambda n: 10_000_000 * n)
    found = line.largest(multiple=multiple, most=most, share=0.5)
    assert found.batch == min(50, most) // multiple * multiple
    found = line.largest(multiple=multiple, most=most, memory=205_000_000)
    assert found.batch == min(20, most) // multiple * multiple
    assert all(t.batch % multiple == 0 for t in found.trials)


@pytest.mark.parametrize("seed", range(60))
def test_bent_lines(seed: int) -> None:
    """Up to three pieces that rise: what is found fits, and one more does not; where
    memory ran out, at most 2% more do."""
    draw = random.Random(seed)
    bends = sorted(draw.randint(1, 200) for _ in range(2))
    slopes = [draw.randint(1, 30) * 10**6 for _ in range(3)]
    dies = draw.choice([None, draw.randint(2, 300)])

    def peak(n: int) -> int | None:
        if dies is not None and n >= dies:
            return None
        pieces = [min(n, bends[0]), min(n, bends[1]) - bends[0], n - bends[1]]
        return 10**7 + sum(max(p, 0) * s for p, s in zip(pieces, slopes))

    found = Line(peak).largest(most=400)
    fits = [n for n in range(1, 401) if (peak(n) or ROOM) <= 0.9 * ROOM]
    assert found.batch in fits
    ran_out = any(t.peak_bytes is None for t in found.trials)
    assert found.batch >= max(fits) * (0.98 if ran_out else 1)
    assert len(found.trials) <= batches.MOST_TRIALS


@pytest.mark.parametrize("keep", ["all", "conv", "min", "10MB"])
def test_the_planned_peak_fits_and_that_of_one_more_does_not(keep: str) -> None:
    """The plans of the CUDA backend, images and outputs, for a gelan-t of 64 px."""
    model, backend = detection_model("gelan-t", 3), bench_gpu_plan.cuda_table()
    room, known = 40 * 10**6, {}

    def peak(batch: int) -> int:
        if batch not in known:
            made = bench_gpu_plan.plan(model, batch, 64, keep, backend)
            workspace = made.forward_workspace_bytes, made.core.backward_workspace_bytes
            images = batch * 3 * 64 * 64 * (1 + 4 + 2)
            known[batch] = 10**7 + made.saved_bytes + max(workspace) + images
        return known[batch]

    found = Line(peak, room).largest(share=1)
    assert peak(found.batch) == found.chosen.peak_bytes <= room
    if keep == "10MB":  # which is too little for a batch before the room is
        refused = min(t.batch for t in found.trials if t.peak_bytes is None)
        with pytest.raises(ValueError, match="keep: a budget of 10000000"):
            peak(refused)
        assert refused <= 1.03 * found.batch
        assert len(found.trials) <= 12
    else:
        assert peak(found.batch + 1) > room
        assert len(found.trials) <= 10


def net_step(keep: str | None, made: list[weakref.ref]) -> Callable[[int], None]:
    model = Net().train()
    if keep is not None:
        ym.checkpoint(model, keep)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    made.append(weakref.ref(model))

    def step(batch: int) -> None:
        outputs = model(torch.rand(batch, 3, 64, 64))
        leaves = torch.utils._pytree.tree_leaves(outputs)
        sum(y.square().mean() for y in leaves).backward()
        optimizer.step()
        optimizer.zero_grad()
        np.random.rand()
        random.random()

    return step


@pytest.mark.parametrize("keep", [None, "conv", "min"])
def test_real_steps_and_no_trace_of_them(keep: str | None) -> None:
    """Chosen by what torch has allocated: measured again, it is so."""
    made: list[weakref.ref] = []
    room = 12 * 10**6

    def draws() -> tuple:
        return random.random(), np.random.rand(), torch.rand(1).item()

    def counted(work: Callable[[], object]) -> int:
        arenas.drop_workspace()  # kept on the CPU, and not counted then
        return peak_of(work)

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = draws()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    found = ym.largest_batch(
        lambda: net_step(keep, made),
        meter=lambda work: (counted(work), room),
        share=1,
    )
    assert draws() == expected
    gc.collect()
    assert len(made) == 1 and made[0]() is None
    step = net_step(keep, made)
    step(1)

    def peak(batch: int) -> int:
        return counted(lambda: (step(batch), step(batch)))

    assert found.batch > 2
    assert peak(found.batch) == found.chosen.peak_bytes <= room < peak(found.batch + 1)


def test_memory_that_runs_out_within_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """In backward, where the workspace of more than some bytes is refused."""
    take = arenas.take_workspace
    limit = 2 * 10**6

    def taken(size: int, device: torch.device) -> torch.Tensor:
        if size > limit:
            raise torch.cuda.OutOfMemoryError(f"CUDA out of memory: {size} bytes")
        return take(size, device)

    made: list[weakref.ref] = []
    monkeypatch.setattr(shared_call, "take_workspace", taken)
    found = ym.largest_batch(
        lambda: net_step("conv", made), meter=lambda work: (work() or 1, ROOM), most=64
    )
    assert 1 <= found.batch < 64
    failed = [t.batch for t in found.trials if t.peak_bytes is None]
    assert failed and min(failed) == found.batch + 1
    assert len(made) > 1  # anew after each failure
    gc.collect()
    assert not any(ref() for ref in made)


def test_nothing_fits() -> None:
    line = Line(lambda n: 2 * 10**9)
    with pytest.raises(MemoryError) as raised:
        line.largest()
    assert str(raised.value) == (
        "a batch of 1 takes 2 GB, and there are 900 MB of 1 GB for it"
    )
    with pytest.raises(
        MemoryError, match=r"of 4 fails \(CUDA out of memory.*\), and the"
    ):
        Line(lambda n: None).largest(multiple=4)

    def small_budget() -> Callable[[int], object]:
        model = ym.checkpoint(Elan(16, 24, 8).train(), "1kB")
        return lambda batch: model(torch.rand(batch, 16, 16, 16))

    with pytest.raises(MemoryError, match=r"keep: a budget of 1000 bytes is too small"):
        ym.largest_batch(small_budget, meter=lambda work: (work() or 1, ROOM))


@pytest.mark.parametrize(
    "error", [ValueError("keep: is 'x'"), RuntimeError("size mismatch"), KeyError("a")]
)
def test_other_errors_are_the_callers(error: Exception) -> None:
    def step(batch: int) -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        ym.largest_batch(lambda: step, meter=lambda work: (work(), ROOM))
    assert raised.value is error


@pytest.mark.parametrize(
    "words",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_how_libraries_say_it(words: str) -> None:
    def step(batch: int) -> None:
        if batch > 5:
            raise RuntimeError(words)

    found = ym.largest_batch(lambda: step, meter=lambda work: (work() or 1, ROOM))
    assert found.batch == 5


def test_arguments() -> None:
    line = Line(lambda n: n)
    for options, words in (
        ({"multiple": 0}, "multiple: is 0, must be 1 to"),
        ({"multiple": 4, "most": 3}, "most: is 3, must be 4 to"),
        ({"share": 0.0}, "share: is 0.0, must be above 0 and at most 1"),
        ({"share": 1.1}, "share: is 1.1"),
        ({"share": float("nan")}, "share: is nan"),
        ({"memory": 0}, "memory: is 0, must be above 0 bytes"),
        ({"memory": float("nan")}, "memory: is nan, must be above 0 bytes"),
        ({"memory": "6XB"}, "memory: is '6XB', must be .* a size such as '6GB'"),
        ({"memory": "0GB"}, "memory: is '0GB', must be above 0 bytes"),
        ({"devices": ["gpu 0"]}, "devices: .*gpu 0"),
        (
            {"devices": ["cpu"], "meter": None},
            "has cpu, must be GPUs where there is no",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            line.largest(**options)
    for options, words in (
        ({"most": 2.5}, "most: is 2.5, must be a whole number"),
        ({"share": "a"}, "share: is 'a', must be a number"),
        ({"memory": [1]}, r"memory: is \[1\], must be a number"),
        ({"devices": "cuda:0"}, "devices: is 'cuda:0', must be a sequence of devices"),
        ({"devices": ""}, "devices: is '', must be a sequence of devices"),
        ({"devices": 0}, "devices: is 0, must be a sequence of devices"),
        ({"devices": [None]}, "devices: is None, must be a torch.device or its name"),
        ({"devices": [0.5]}, "devices: is 0.5, must be a torch.device or its name"),
        ({"meter": 5}, "meter: is 5, must be a function"),
    ):
        with pytest.raises(TypeError, match=words):
            line.largest(**options)


def test_functions_that_are_none() -> None:
    line = Line(lambda n: n)
    for prepare, words in (
        (None, "prepare: is None, must be a function"),
        (lambda: None, r"prepare: returned None, must return step\(batch\)"),
    ):
        with pytest.raises(TypeError, match=words):
            ym.largest_batch(prepare, meter=line.meter)
    for told, error, words in (
        (None, TypeError, r"meter: told None, must tell \(peak, room\) in bytes"),
        ((1, 2, 3), TypeError, r"meter: told \(1, 2, 3\)"),
        ((None, 9), TypeError, "meter: peak: is None, must be a number"),
        ((float("nan"), 9), ValueError, "meter: peak: is nan, must be bytes, from 0"),
        ((1, float("inf")), ValueError, "meter: room: is inf"),
    ):
        with pytest.raises(error, match=words):
            line.largest(meter=lambda work, told=told: told)


@pytest.mark.parametrize("kind", [int, float, np.float64, np.int64, np.int32])
def test_steps_are_of_ints_whatever_numbers_are_given(kind: type) -> None:
    """Also in 32 bits, where products of the search's lines would overflow."""
    line = Line(lambda n: 50_000_000 + 7_000_000 * n)
    sizes: list[object] = []

    def prepare() -> Callable[[int], None]:
        step = line.prepare()
        return lambda batch: (sizes.append(batch), step(batch))

    def meter(work: Callable[[], object]) -> tuple:
        peak, room = line.meter(work)
        return kind(peak), kind(room)

    most, multiple = (np.int64(1000), np.int32(1)) if kind is np.int64 else (1000, 1)
    found = ym.largest_batch(prepare, meter=meter, most=most, multiple=multiple)
    assert {type(size) for size in [*sizes, found.batch]} == {int}
    assert [t.batch for t in found.trials] == [1, 2, 8, 32, 121, 122]


def test_memory_may_be_a_size() -> None:
    sizes = (205_000_000, 205e6, "205MB", "0.205 GB")
    found = [Line(lambda n: 10_000_000 * n).largest(memory=size) for size in sizes]
    assert found[0].chosen.limit_bytes == 205_000_000
    assert all(other == found[0] for other in found)


def test_devices_may_be_named() -> None:
    given = ["cuda:1", torch.device("cuda"), "cpu"]
    found = batches._gpus_among(given, others=True)
    assert found == [torch.device("cuda", 1), torch.device("cuda")]
    assert Line(lambda n: ROOM // 5 * n).largest(devices=["cpu"]).batch == 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_must_be_a_meter() -> None:
    with pytest.raises(ValueError, match="sees no GPU, and there is no meter"):
        ym.largest_batch(lambda: lambda batch: None)
    with pytest.raises(ValueError, match="has cuda:1, and this PyTorch sees no GPU"):
        Line(lambda n: n).largest(devices=["cuda:1"])


def test_two_gpus_the_fuller_one_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meter itself, with torch's counters told."""
    free, reserved, peak = {0: 500, 1: 900}, {0: 100, 1: 50}, {0: 300, 1: 400}
    calls: list[str] = []
    cuda = torch.cuda
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(cuda, name, lambda *a, name=name: calls.append(name))
    monkeypatch.setattr(cuda, "mem_get_info", lambda d: (free[d.index], 1000))
    monkeypatch.setattr(cuda, "memory_reserved", lambda d: reserved[d.index])
    monkeypatch.setattr(cuda, "max_memory_reserved", lambda d: peak[d.index])
    meter = batches.CudaMeter([torch.device("cuda", 0), torch.device("cuda", 1)])
    assert meter(lambda: calls.append("work")) == (300, 600)
    assert calls.index("reset_peak_memory_stats") < calls.index("work")
    peak[1] = 700
    assert meter(lambda: None) == (700, 950)
    # "cuda" is the current one: PyTorch 2.4's mem_get_info takes no device without number.
    monkeypatch.setattr(cuda, "current_device", lambda: 1)
    assert batches.CudaMeter([torch.device("cuda")])(lambda: None) == (700, 950)
