# SPDX-License-Identifier: MIT
"""The user's side of the mosaic: arguments, errors, memory, the PyTorch helper."""

import copy
import gc
import random
import sys
import tracemalloc
import weakref

import numpy as np
import pytest
from mosaic_tiles import SIZE, TRIANGLE, make_labels, make_tiles

from yolov9mem import _core
from yolov9mem.augment import Mosaic
from yolov9mem.mosaic import mosaic, mosaic_scene
from yolov9mem.scene import render
from yolov9mem.warp import Warp, hsv_tables


def test_the_middle_of_four_tiles():
    tiles = make_tiles()
    image, labels = mosaic(tiles, make_labels(), image_size=SIZE)
    assert image.shape == (3, SIZE, SIZE)
    assert image.dtype == np.uint8
    half = SIZE // 2
    expected = tiles[0][-half:, -half:, ::-1].transpose(2, 0, 1)
    np.testing.assert_array_equal(image[:, :half, :half], expected)
    assert labels.shape[1] == 5
    assert labels.dtype == np.float32
    assert (labels[:, 1:] >= 0).all()
    assert (labels[:, 1:] <= 1).all()


def test_longer_tiles_are_cut_off_at_the_canvas():
    rng = np.random.default_rng(2)
    tiles = rng.integers(0, 256, (4, 3 * SIZE, 2 * SIZE, 3), dtype=np.uint8)
    whole = Warp(np.diag([0.5, 0.5, 1]), 0.5)
    image, labels = mosaic(tiles, make_labels(), image_size=SIZE, warp=whole)
    cut = [tiles[0][-SIZE:, -SIZE:], tiles[1][-SIZE:, :SIZE]]
    cut += [tiles[2][:SIZE, -SIZE:], tiles[3][:SIZE, :SIZE]]
    expected, _ = mosaic(cut, image_size=SIZE, warp=whole)
    np.testing.assert_array_equal(image, expected)
    # Of a box, 64 x 96 on the canvas, 32 x 16 are left, and the warp halves them.
    expected = [[x, y, 0.25, 0.125] for y in (0.0625, 0.9375) for x in (0.125, 0.875)]
    np.testing.assert_allclose(labels[:, 1:], expected, atol=1e-4)


def test_nine_tiles_and_no_labels():
    image, labels = mosaic(make_tiles(9), image_size=SIZE)
    assert image.shape == (3, SIZE, SIZE)
    assert labels.shape == (0, 5)


def test_out_is_written_and_returned():
    batch = np.zeros((2, 3, SIZE, SIZE), np.uint8)
    image, _ = mosaic(make_tiles(), image_size=SIZE, out=batch[1])
    assert image.base is batch
    expected, _ = mosaic(make_tiles(), image_size=SIZE)
    np.testing.assert_array_equal(batch[1], expected)
    assert not batch[0].any()


def test_flips_turn_image_and_labels():
    tiles, labels = make_tiles(), make_labels()
    image, boxes = mosaic(tiles, labels, image_size=SIZE)
    turned, turned_boxes = mosaic(
        tiles, labels, image_size=SIZE, flip_vertical=True, flip_horizontal=True
    )
    np.testing.assert_array_equal(turned, image[:, ::-1, ::-1])
    np.testing.assert_array_equal(turned_boxes[:, 1:3], 1 - boxes[:, 1:3])


def test_mixup_with_a_second_scene():
    partner = mosaic_scene(make_tiles(seed=1), make_labels(), image_size=SIZE)
    one, boxes = mosaic(make_tiles(), make_labels(), image_size=SIZE)
    other = render(partner, (SIZE, SIZE))
    mixed, mixed_boxes = mosaic(
        make_tiles(), make_labels(), image_size=SIZE, partner=partner, ratio=0.3
    )
    expected = (one * 0.3 + other * (1 - 0.3)).astype(np.uint8)
    np.testing.assert_array_equal(mixed, expected)
    assert len(mixed_boxes) == len(boxes) + len(partner.labels)


def test_tiles_are_not_written():
    tiles = make_tiles()
    before = [t.copy() for t in tiles]
    for tile in tiles:
        tile.setflags(write=False)
    labels = make_labels()
    segments = [[TRIANGLE.copy()] for _ in tiles]
    mosaic(
        tiles,
        labels,
        segments,
        image_size=SIZE,
        paste=[0, 2],
        hsv=hsv_tables(np.array([1.1, 1.2, 0.8])),
    )
    for tile, old in zip(tiles, before, strict=True):
        np.testing.assert_array_equal(tile, old)
    np.testing.assert_array_equal(labels[0], make_labels()[0])
    np.testing.assert_array_equal(segments[0][0], TRIANGLE)


@pytest.mark.parametrize("make", [tuple, np.array])
@pytest.mark.parametrize("chosen", [[1], [0, 2]])
def test_what_is_pasted_may_be_any_sequence(make, chosen):
    parts = make_tiles(), make_labels(), [[TRIANGLE]] * 4
    expected = mosaic(*parts, image_size=SIZE, paste=chosen)
    found = mosaic(*parts, image_size=SIZE, paste=make(chosen))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def make_mosaic(**changes):
    labels = make_labels(6)
    segments = [[TRIANGLE] for _ in labels]
    return Mosaic(make_tiles(6), labels, segments, image_size=SIZE, **changes)


def test_mosaic_resizes_and_takes_functions():
    big = np.random.default_rng(0).integers(0, 256, (200, 100, 3), dtype=np.uint8)
    augment = Mosaic(lambda index: big, make_labels(3), image_size=SIZE)
    assert augment.load(0).shape == (SIZE, SIZE // 2, 3)
    image, _ = augment.sample(1)
    assert image.shape == (3, SIZE, SIZE)


def test_a_seed_gives_the_same_sample():
    augment = make_mosaic(hyp={"mixup": 0.5, "copy_paste": 1.0})
    samples = []
    for _ in range(2):
        random.seed(3)
        np.random.seed(3)
        samples.append(augment.sample(2))
    np.testing.assert_array_equal(samples[0][0], samples[1][0])
    np.testing.assert_array_equal(samples[0][1], samples[1][1])


@pytest.mark.parametrize("polygons", [False, True])
def test_temporaries_stay_below_300_kilobytes(polygons):
    size = 640
    rng = np.random.default_rng(0)
    tiles = [rng.integers(0, 256, (480, size, 3), dtype=np.uint8) for _ in range(6)]
    labels = [np.tile(make_labels(1)[0], (8, 1)) for _ in tiles]
    segments = [[TRIANGLE] * 8 if polygons else [] for _ in tiles]
    hyp = {"mixup": 1.0 - polygons, "copy_paste": 0.5}
    augment = Mosaic(tiles, labels, segments, image_size=size, hyp=hyp)
    out = np.empty((3, size, size), np.uint8)
    augment.sample(0, out)
    tracemalloc.start()
    for i in range(4):
        augment.sample(i, out)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 300_000


@pytest.mark.parametrize("paste", [[], [0]], ids=["plain", "paste"])
@pytest.mark.parametrize(("size", "count", "points"), [(640, 1, 3), (64, 300, 40)])
def test_memory_of_a_call_is_as_its_docstring_says(size, count, points, paste):
    tiles = [np.zeros((size, size, 3), np.uint8)] * 4
    labels = [np.tile(box, (count, 1)) for box in make_labels()]
    circle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    outline = 0.5 + 0.3 * np.stack((np.cos(circle), np.sin(circle)), 1)
    segments = [[outline.astype(np.float32)] * count] * 4
    rest = dict(image_size=size, paste=paste, out=np.empty((3, size, size), np.uint8))
    mosaic(tiles, labels, segments, **rest)
    tracemalloc.start()
    _, found = mosaic(tiles, labels, segments, **rest)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    said = 4 * count * (600 + 32 * points) + len(paste) * size**2 // 2
    assert peak - found.nbytes < said + 30_000


def test_nothing_leaks():
    augment = make_mosaic(hyp={"mixup": 0.5, "copy_paste": 1.0})
    tile = augment.images[0]
    bad = ((tile, 0, 0), (tile, 100, 0)), (SIZE, SIZE), 0, None, None
    out = np.empty((3, SIZE, SIZE), np.uint8)

    def work():
        augment.sample(0, out)
        with pytest.raises(ValueError, match="canvas"):
            _core.mosaic_render(out, (bad,))
        with pytest.raises(ValueError, match="polygon 0"):
            _core.polygon_boxes([TRIANGLE[:0]], (1.0,) * 9, False, 64, 64)

    for _ in range(5):
        work()
    gc.collect()
    before, references = sys.getallocatedblocks(), sys.getrefcount(tile)
    for _ in range(100):
        work()
    gc.collect()
    assert sys.getrefcount(tile) == references
    assert sys.getallocatedblocks() - before < 50


def test_a_copy_may_have_other_images():
    augment = make_mosaic()
    other, third = copy.copy(augment), make_mosaic()
    other.images = third.images = [255 - image for image in augment.images]
    samples = []
    for data in (other, third):
        random.seed(3)
        np.random.seed(3)
        samples.append(data.sample(1)[0])
    np.testing.assert_array_equal(*samples)


def test_images_go_with_the_object():
    gc.collect()
    gc.disable()
    try:
        gone = weakref.ref(make_mosaic())
        assert gone() is None
    finally:
        gc.enable()


def test_torch_data_set():
    torch = pytest.importorskip("torch", reason="the helper is a torch Dataset")
    from yolov9mem.torch.dataset import MosaicDataset, seed_worker

    dataset = MosaicDataset(make_mosaic())
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=3,
        num_workers=1,
        collate_fn=dataset.collate_fn,
        worker_init_fn=seed_worker,
    )
    for images, labels in loader:
        assert images.shape == (3, 3, SIZE, SIZE)
        assert images.dtype == torch.uint8
        assert labels.shape[1] == 6
        assert set(labels[:, 0].tolist()) <= {0.0, 1.0, 2.0}
    assert dataset[torch.tensor(1)][0].shape == (3, SIZE, SIZE)  # as a sampler may give
    dataset.mosaic = False
    assert not dataset.augment.mosaic
    with pytest.raises(TypeError, match="mosaic: is a list, must be a yolov9mem"):
        MosaicDataset([])
