# SPDX-License-Identifier: MIT
"""Where tensors lie: several GPUs, told by fakes, and addresses no GPU takes."""

from __future__ import annotations

import copy
import subprocess
import sys
from contextlib import ExitStack
from functools import partial

import pytest
import torch
from emulated_gpu import gpu  # noqa: F401
from models_for_tests import Brick, Elan, assert_close, assert_same_training, image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import yolov9mem.torch as ym
from yolov9mem.torch import devices
from yolov9mem.torch.loss.assigner import Objects
from yolov9mem.torch.recording.fakes import FakeCopy
from yolov9mem.torch.recording.ir import StockCall
from yolov9mem.torch.running import arenas
from yolov9mem.torch.running.binding import as_read
from yolov9mem.torch.running.registry import runner_of
from yolov9mem.torch.running.stock_calls import Caller


def on_gpu(index: int) -> tuple[nn.Module, Tensor]:
    """A module of that GPU and an input, both without memory."""
    mode, place = (
        FakeTensorMode(allow_non_fake_inputs=True),
        torch.device("cuda", index),
    )
    weight, x = (
        FakeTensor(mode, torch.empty(shape, device="meta"), place)
        for shape in ((4, 3, 1, 1), (1, 3, 2, 2))
    )
    module = nn.Module()
    module.weight = nn.Parameter(weight)
    return module, x


def test_an_import_opens_no_gpu() -> None:
    """Where one is the default device; here there may be none to open."""
    script = (
        "import torch; torch.set_default_device('cuda'); import yolov9mem.torch; "
        "assert not torch.cuda.is_initialized()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr


def test_another_default_device_is_none_of_a_step_on_the_cpu() -> None:
    """Its memory, and the scalars of its clip."""
    stock = Elan(3, 16, 8)
    ours = ym.checkpoint(copy.deepcopy(stock))
    made = []
    for module in (stock, ours):
        x = image(size=72)  # larger than what is kept of other tests
        kind = torch.optim.SGD if module is stock else ym.AccumulatingSGD
        optimizer = kind(module.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        with ExitStack() as around:
            if module is ours:
                around.enter_context(torch.device("meta"))
                around.enter_context(ym.deferred(optimizer))
            module(x).square().mean().backward()
            norm = nn.utils.clip_grad_norm_(module.parameters(), 0.5)
            optimizer.step()
        made.append([norm, *module.parameters()])
    assert_close(made[1], made[0], 1e-4)


def test_tensors_that_the_graph_does_not_read_may_lie_elsewhere() -> None:
    """A detector moves to the GPU and its levels' strides, no buffers, stay behind."""
    stock = Elan(3, 16, 8).train()
    ours = copy.deepcopy(stock)
    ours.cv3.stride = torch.empty(3, device="meta")
    ym.checkpoint(ours)
    assert_same_training(ours, stock, image())
    assert ym.report(ours).rows[0].state == "swapped"


@pytest.mark.parametrize("name", ["conv.weight", "bn.bias", "bn.running_mean"])
def test_tensors_that_the_graph_reads_lie_on_one_device(name: str) -> None:
    module = Elan(3, 16, 8).train()
    part, _, leaf = f"cv3.{name}".rpartition(".")
    part = module.get_submodule(part)
    kind = part._buffers if leaf in part._buffers else part._parameters
    kind[leaf] = type(kind[leaf])(torch.empty_like(kind[leaf], device="meta"))
    ym.checkpoint(module)
    with pytest.raises(ym.CannotLower, match="its tensors are on cpu and meta"):
        module(image())


@pytest.mark.parametrize("index", [0, 3])
def test_fakes_stay_on_the_module_s_own_gpu(index: int) -> None:
    """torch opens a context where a fake is made: half a gigabyte on a GPU that is not
    this process's, as GPU 0 is for most of torchrun's."""
    module, x = on_gpu(index)
    made = FakeCopy(module)
    assert {p.device for p in made.module.parameters()} == {x.device}
    assert made.fake(x).device == x.device
    other = on_gpu(1)[1]
    assert made.fake(other).device == x.device  # of a replica: all GPUs are one


def test_a_replayed_call_works_where_forward_runs() -> None:
    """A replica is run by the recording of its original, on another GPU."""
    given: list[object] = []
    places = (torch.device("cuda:0"), torch.device("cpu"), torch.device("cuda"), 3)
    call = StockCall(given.extend, (places,), {}, "zeros", "", ("zeros", ""), None)
    assert Caller(torch.device("cuda:2")).make(call, lambda ref: ref) == []
    assert given == [torch.device("cuda:2"), *places[1:]]


def test_a_slice_that_starts_between_vectors_is_copied(gpu) -> None:  # noqa: F811
    """cuDNN takes addresses of 16 bytes; images of 3 x 5 x 5 floats start at others."""
    batch = torch.randn(3, 3, 5, 5).to(memory_format=torch.channels_last)
    (packed,), copies = as_read([batch], torch.float32)
    assert copies == 0 and packed.data_ptr() == batch.data_ptr()
    (packed,), copies = as_read([batch[1:]], torch.float32)
    assert copies == 1 and packed.data_ptr() % 16 == 0
    torch.testing.assert_close(packed.permute(0, 3, 1, 2), batch[1:], rtol=0, atol=0)


def test_segments_grow_unless_the_environment_says_otherwise(monkeypatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(
        torch._C, "_accelerator_setAllocatorSettings", told.append, raising=False
    )
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    assert not ym.use_expandable_segments()
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    assert not ym.use_expandable_segments() and told == []
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF")
    assert ym.use_expandable_segments() and told == ["expandable_segments:True"]


GB = 1 << 30


class Allocator:
    """What torch.cuda tells of its allocator, in GB: used blocks and free ones."""

    def __init__(self, monkeypatch, used: int, free: list[int], peak: int) -> None:
        self.emptied = 0
        segments = [
            {
                "device": 0,
                "stream": 0,
                "blocks": [{"size": n * GB, "state": "inactive"}],
            }
            for n in free
        ]
        others = [
            segments[0] | {"blocks": [{"size": 99 * GB, "state": "active_allocated"}]},
            segments[0]
            | {"stream": 7, "blocks": [{"size": 99 * GB, "state": "inactive"}]},
            segments[0]
            | {"device": 1, "blocks": [{"size": 99 * GB, "state": "inactive"}]},
            {"segment_pool_id": (0, 3), "device": 0, "stream": 0}
            | {"blocks": [{"size": 99 * GB, "state": "inactive"}]},
        ]
        for name, value in (
            ("memory_reserved", (used + sum(free)) * GB),
            ("memory_allocated", used * GB),
            ("max_memory_allocated", peak * GB),
        ):
            monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
        monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: "native")
        monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: segments + others)
        monkeypatch.setattr(torch.cuda, "empty_cache", self.empty)
        monkeypatch.setattr(devices, "is_capturing", lambda device: False)
        monkeypatch.setattr(devices, "stream", lambda device: 0)

    def empty(self) -> None:
        self.emptied += 1


@pytest.mark.parametrize(
    "free, peak, emptied",
    [
        ([3, 2], 9, 1),  # 5 more beside 3 and 2: 11, and no more than 9 was ever needed
        ([3, 3, 5], 12, 0),  # the 5 will do
        ([3, 2], 12, 0),  # 11 are not more than what was needed before
    ],
)
def test_blocks_of_sizes_that_have_gone_are_given_back(
    monkeypatch, free: list[int], peak: int, emptied: int
) -> None:
    allocator = Allocator(monkeypatch, used=1, free=free, peak=peak)
    arenas.make_room(torch.device("cuda", 0), saved=5 * GB, peak=6 * GB)
    assert allocator.emptied == emptied


@pytest.mark.parametrize("name", ["cudaMallocAsync", "pluggable"])
def test_other_allocators_are_not_asked_for_their_blocks(
    monkeypatch, name: str
) -> None:
    """They raise then."""
    allocator = Allocator(monkeypatch, used=1, free=[3, 2], peak=9)
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: name)
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: 1 / 0)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 1 / 0)
    arenas.make_room(torch.device("cuda", 0), saved=5 * GB, peak=6 * GB)
    assert allocator.emptied == 0


def test_room_is_made_when_the_size_changes(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(
        "yolov9mem.torch.running.entry.make_room", lambda *a: asked.append(a[1])
    )
    module = ym.checkpoint(Elan(3, 16, 8).train())
    for size in (16, 16, 32, 32, 16):
        module(torch.randn(2, 3, size, size)).sum().backward()
    small, large, again = asked
    assert small == again < large


def test_room_is_made_on_the_device_whose_size_changes(monkeypatch) -> None:
    """DataParallel's replicas take turns; the allocator lists all blocks when asked."""
    asked = []
    monkeypatch.setattr(
        "yolov9mem.torch.running.entry.make_room", lambda *a: asked.append(a[0])
    )
    module = ym.checkpoint(Elan(3, 16, 8).train())
    places = [torch.device("cpu"), torch.device("cpu", 0)]
    inputs = [torch.randn(2, 3, size, size) for size in (16, 24)]
    for x in inputs:
        module(x).sum().backward()
    for lowered, place in zip(runner_of(module).lowered.values(), places, strict=True):
        lowered.graphs[0].program.device = place
    asked.clear()
    for x in inputs * 3:
        module(x).sum().backward()
    assert asked == places


def test_objects_go_to_a_gpu_by_pinned_memory() -> None:
    """More than 64 KB of other memory would wait for the GPU: 64 images of 64 objects."""

    class OnHost:
        device, is_pinned = torch.device("cpu"), False

        def pin_memory(self):
            self.is_pinned = True
            return self

        def to(self, device, non_blocking):
            assert self.is_pinned == (device.type == "cuda") and non_blocking
            return self

    for kind in ("cuda", "cpu"):
        tensors = [OnHost() for _ in Objects._fields[:-1]]
        made = Objects(*tensors, [3, 1]).to(torch.device(kind))
        assert made.counts == [3, 1]


def test_a_recording_leaves_a_gpu_s_generator_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch.manual_seed() sets it as well, torch.cuda.manual_seed() nothing else: then what
    is drawn is not what a replay would draw."""
    of_gpu = torch.Generator().manual_seed(1)
    known = [torch.default_generator, of_gpu]
    monkeypatch.setattr(devices, "generators", lambda device: known)

    class Seeded(nn.Module):
        def __init__(self, draws: bool) -> None:
            super().__init__()
            self.brick, self.draws = Brick(3, 4), draws

        def forward(self, x):
            of_gpu.manual_seed(2)
            x = self.brick(x)
            return x + torch.rand_like(x) if self.draws else x

    for draws in (False, True):
        before = of_gpu.get_state()
        with pytest.raises(ym.CannotLower, match="seeds PyTorch's generator"):
            ym.checkpoint(Seeded(draws))(image())
        assert torch.equal(of_gpu.get_state(), before)


def test_the_generators_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    of_gpus = (torch.Generator(), torch.Generator())
    monkeypatch.setattr(torch.cuda, "default_generators", of_gpus)
    found = []
    for captures in (False, True):
        answer = partial(bool, captures)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", answer)
        found += map(devices.generators, (torch.device("cuda", 1), torch.device("cpu")))
    default = torch.default_generator
    assert found == [[default, of_gpus[1]], [default], [default], [default]]
