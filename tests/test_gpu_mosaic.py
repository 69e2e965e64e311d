# SPDX-License-Identifier: MIT
"""The CUDA mosaic on a GPU: byte for byte the CPU's, for real samples of every kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gpu_machine import (  # noqa: F401
    DEVICE,
    needs_gpu,
    on_a_gpu_only,
    rehearsal,
)
from mosaic_batches import HYPS, make_mosaic, samples

from yolov9mem.augment import HYP_SCRATCH_HIGH, Mosaic
from yolov9mem.torch import MosaicBatchDataset, MosaicDataset

SIZE, COUNT = 96, 12
CASES = {
    "boxes": {},
    "mixup": {"mixup": 1.0},
    "copy-paste": {"copy_paste": 1.0},
    "everything": {"mixup": 0.5, "copy_paste": 0.5, "degrees": 20.0, "shear": 5.0},
    "perspective": {"perspective": 1e-3, "flipud": 0.5},
    "letterbox": {"mosaic": 0.0},
}


def drawn_jobs(case: str, nine: bool, seed: int) -> list:
    from benchmarks.bench_mosaic import make_data
    from benchmarks.gpu.jobs import drawn

    hyp = dict(HYP_SCRATCH_HIGH) | {"mixup": 0.0, "copy_paste": 0.0} | CASES[case]
    data = make_data(SIZE, polygons=True)
    return drawn(Mosaic(*data, image_size=SIZE, hyp=hyp, nine=nine), COUNT, seed)


@needs_gpu
@pytest.mark.parametrize("nine", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_batch_has_the_bytes_of_the_cpu(case: str, nine: bool) -> None:
    from benchmarks.gpu.jobs import DeviceBatch, on_the_cpu

    jobs = drawn_jobs(case, nine, 5)
    truth = on_the_cpu(jobs, np.empty((COUNT, 3, SIZE, SIZE), np.uint8))
    made = DeviceBatch(jobs, SIZE, torch.device(DEVICE, 0)).render().cpu().numpy()
    np.testing.assert_array_equal(made, truth)
    assert len(np.unique(made)) > 100


@on_a_gpu_only
@pytest.mark.parametrize("hyp", HYPS.values(), ids=HYPS)
def test_a_data_set_s_batch_has_the_bytes_of_the_cpu(hyp: dict) -> None:
    """From pinned memory to the GPU and rendered there."""
    mosaic = make_mosaic(hyp)
    images, _ = samples(MosaicDataset(mosaic))
    batch, _ = samples(MosaicBatchDataset(mosaic))
    made = batch.pin_memory().to("cuda").render()
    assert made.is_cuda
    assert torch.equal(made.cpu(), images)


@on_a_gpu_only
def test_a_captured_stream_is_refused_and_the_next_batch_works() -> None:
    from benchmarks.gpu.jobs import DeviceBatch
    from yolov9mem import BackendError

    batch = DeviceBatch(drawn_jobs("boxes", False, 1), SIZE, torch.device("cuda", 0))
    truth = batch.render().clone()
    graph = torch.cuda.CUDAGraph()
    refused = pytest.raises((BackendError, RuntimeError), match="captur")
    with refused, torch.cuda.graph(graph):
        batch.render()
    torch.cuda.synchronize()
    assert torch.equal(batch.render(), truth)


@needs_gpu
def test_drawn_jobs_are_those_that_are_rendered() -> None:
    """The CPU renders from the noted arguments what the sample itself would be."""
    import random

    from benchmarks.bench_mosaic import make_data
    from benchmarks.gpu.jobs import drawn, on_the_cpu

    augment = Mosaic(*make_data(SIZE, polygons=True), image_size=SIZE)
    jobs = drawn(augment, 3, 7)
    made = on_the_cpu(jobs, np.empty((3, 3, SIZE, SIZE), np.uint8))
    random.seed(7)
    np.random.seed(7)
    truth = np.stack([augment.sample(i)[0] for i in range(3)])
    np.testing.assert_array_equal(made, truth)
