# SPDX-License-Identifier: MIT
"""Where tensors lie: several GPUs, told by fakes, and addresses no GPU takes."""

from __future__ import annotations

import pytest
import torch
from emulated_gpu import gpu  # noqa: F401
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from yolov9mem.torch.binding import channels_last
from yolov9mem.torch.fakes import FakeCopy
from yolov9mem.torch.results import Replay


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
    replay = Replay.__new__(Replay)
    replay._leaves = [on_gpu(2)[1]]
    given = replay._resolved({"device": torch.device("cuda:0"), "n": 3})
    assert given == {"device": torch.device("cuda:2"), "n": 3}
    for same in (torch.device("cpu"), torch.device("cuda")):
        assert replay._resolved([same]) == [same]


def test_a_slice_that_starts_between_vectors_is_copied(gpu) -> None:  # noqa: F811
    """cuDNN takes addresses of 16 bytes; images of 3 x 5 x 5 floats start at others."""
    batch = torch.randn(3, 3, 5, 5).to(memory_format=torch.channels_last)
    packed, copied = channels_last(batch, torch.float32)
    assert not copied and packed.data_ptr() == batch.data_ptr()
    packed, copied = channels_last(batch[1:], torch.float32)
    assert copied and packed.data_ptr() % 16 == 0
    torch.testing.assert_close(packed.permute(0, 3, 1, 2), batch[1:], rtol=0, atol=0)
