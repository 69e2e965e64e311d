# SPDX-License-Identifier: MIT
"""Batches of recipes: the bytes of MosaicDataset, rendered on the CPU and on a GPU
(emulated), from tiles that are cut to what the warp sees."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from emulated_gpu import WAITS, gpu  # noqa: F401
from mosaic_batches import HYPS, SIZE, make_mosaic, samples

from yolov9mem.torch import MosaicBatch, MosaicBatchDataset, MosaicDataset


@pytest.mark.parametrize("nine", [False, True], ids=["four", "nine"])
@pytest.mark.parametrize("hyp", HYPS.values(), ids=HYPS)
def test_the_bytes_are_the_data_sets(hyp: dict, nine: bool, gpu) -> None:  # noqa: F811
    mosaic = make_mosaic(hyp, nine)
    images, labels = samples(MosaicDataset(mosaic))
    batch, same_labels = samples(MosaicBatchDataset(mosaic))
    assert torch.equal(labels, same_labels)
    gpu.reset()
    assert torch.equal(batch.to("cpu").render(), images)
    assert gpu.count(0) == 1, "one launch for the batch"
    assert gpu.count(WAITS) == 0
    assert len(images.unique()) > 100


@pytest.mark.parametrize("hyp", HYPS.values(), ids=HYPS)
def test_the_cpu_renders_the_same_batch(hyp: dict) -> None:
    mosaic = make_mosaic(hyp)
    images, _ = samples(MosaicDataset(mosaic))
    batch, _ = samples(MosaicBatchDataset(mosaic))
    assert torch.equal(pickle.loads(pickle.dumps(batch)).render(), images)


def test_tiles_are_cut_to_what_is_seen() -> None:
    """Zoomed in, an image sees a part of each tile only."""
    near = {"scale": 0.0, "degrees": 0.0, "translate": 0.0, "perspective": 0.0}
    mosaic = make_mosaic({**near, "shear": 0.0})
    recipes = [mosaic.recipe(i) for i in range(8)]
    whole = sum(
        t[0].nbytes for r in recipes for s in r.scenes() for t in s.canvas.tiles
    )
    cut = MosaicBatch.of(recipes).pixels.numel()
    seen = 8 * (SIZE + 6) ** 2 * 3
    assert cut < whole
    assert cut <= seen + 8 * (3 * 256 + 5 * 16), "no more than the image and its margin"


@pytest.mark.parametrize("kind", [MosaicDataset, MosaicBatchDataset])
def test_the_mosaic_is_closed_for_the_last_epochs(kind) -> None:
    """No class of samples goes on with mosaics in silence."""
    data = kind(make_mosaic({}))
    assert data.mosaic
    data.mosaic = False
    assert not data.augment.mosaic
    assert not data.mosaic


def test_a_wrong_place_is_refused() -> None:
    batch, _ = samples(MosaicBatchDataset(make_mosaic({})))
    with pytest.raises(
        ValueError, match=r"out: is \(2, 3, 8, 8\) .* must be contiguous"
    ):
        batch.render(torch.empty(2, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"recipes: sizes are \[\], must be one size"):
        MosaicBatch.of([])
    with pytest.raises(TypeError, match="recipes: is a str, must be a sequence"):
        MosaicBatch.of("abc")
    with pytest.raises(TypeError, match="entry 0 is a ndarray, must be a Recipe"):
        MosaicBatch.of([np.zeros(3)])
    with pytest.raises(ValueError, match="batch: is on meta, must be on the CPU or a"):
        batch.to("meta").render()


@pytest.mark.parametrize("place", [torch.float32, torch.zeros(1), True, 0.5, None])
def test_a_batch_is_moved_to_a_device_alone(place) -> None:
    """Tensor.to takes a dtype too, and would make other bytes of the pixels."""
    batch, _ = samples(MosaicBatchDataset(make_mosaic({})))
    with pytest.raises(TypeError, match="device: is .*, must be a torch.device or its"):
        batch.to(place)
    with pytest.raises(ValueError, match="device: is 'gpu 0': "):
        batch.to("gpu 0")


@pytest.mark.parametrize("kind", [MosaicDataset, MosaicBatchDataset])
def test_a_batch_of_no_samples_is_refused(kind) -> None:
    with pytest.raises(ValueError, match="samples: there are none, must be at least"):
        kind.collate_fn([])


def test_a_capture_is_refused_and_the_next_batch_works(gpu) -> None:  # noqa: F811
    from yolov9mem import BackendError

    batch, _ = samples(MosaicBatchDataset(make_mosaic({})))
    gpu.capture(True)
    with pytest.raises(BackendError, match="mosaic: the stream is being captured"):
        batch.render()
    gpu.capture(False)
    assert batch.render().shape == (4, 3, SIZE, SIZE)
