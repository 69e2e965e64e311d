# SPDX-License-Identifier: MIT
"""Pictures are rendered into memory of their own: tiles are never written."""

import numpy as np
import pytest
from mosaic_tiles import SIZE, make_labels, make_tiles

from yolov9mem import _core
from yolov9mem.augment import Mosaic
from yolov9mem.letterbox import letterbox_scene
from yolov9mem.mosaic import mosaic, mosaic_scene
from yolov9mem.scene import render


def shared(count=1):
    """Memory of pictures, and a square tile within the first."""
    memory = np.random.default_rng(0).integers(0, 256, (count, 3, SIZE, SIZE), np.uint8)
    return memory, memory[0].reshape(SIZE, SIZE, 3)


@pytest.mark.parametrize("center", [None, (0, 0), (SIZE, 0)])
def test_out_has_memory_of_its_own(center):
    """A tile is named by its own number and not written, even where it isn't seen."""
    memory, tile = shared()
    before = tile.copy()
    tiles = make_tiles()
    tiles[2] = tile
    with pytest.raises(ValueError, match="out: shares memory with tile 2, must"):
        mosaic(tiles, image_size=SIZE, center=center, out=memory[0])
    np.testing.assert_array_equal(tile, before)


def test_out_in_the_partner_s_tile_or_in_the_tables():
    memory, tile = shared()
    partner = mosaic_scene([*make_tiles(3), tile], image_size=SIZE)
    with pytest.raises(ValueError, match="with the partner's tile 3, 64x64 at"):
        mosaic(make_tiles(), image_size=SIZE, partner=partner, out=memory[0])
    tables = memory.reshape(-1)[: 3 * 256].reshape(3, 256)
    tables[:] = 7
    with pytest.raises(ValueError, match="out shares memory with hsv, must have"):
        mosaic(make_tiles(), image_size=SIZE, hsv=tables, out=memory[0])


def test_out_in_a_letterboxed_image():
    memory, tile = shared()
    for image in (tile, tile[: SIZE // 2]):
        scene = letterbox_scene(image, np.zeros((0, 5), np.float32), (SIZE, SIZE))
        with pytest.raises(ValueError, match="out shares memory with tile 0"):
            render(scene, (SIZE, SIZE), out=memory[0])


@pytest.mark.parametrize("close", [False, True], ids=["mosaic", "letterbox"])
def test_out_in_an_image_of_the_set(close):
    memory, tile = shared()
    augment = Mosaic([tile], make_labels(1), image_size=SIZE)
    augment.mosaic = not close
    with pytest.raises(ValueError, match="out shares memory with tile"):
        augment.sample(0, memory[0])


def test_out_may_lie_between_the_rows_of_a_tile():
    """As a tile cut out of a wider array has them: no byte is both."""
    memory = np.zeros((2, 5000), np.uint8)
    scene = ((memory[:, :600].reshape(2, 200, 3), 0, 0),), (2, 200), 0, None, None
    memory[:, :600] = 9
    out = memory[0, 600 : 600 + 1200].reshape(3, 2, 200)
    _core.mosaic_render(out, (scene,))
    assert (out == 9).all()
    with pytest.raises(ValueError, match="out shares memory with tile 0, 200x2"):
        _core.mosaic_render(memory[0, 599:1799].reshape(3, 2, 200), (scene,))


def test_out_in_the_paste_mask():
    memory = np.zeros((3, 8, 8), np.uint8)
    mask = memory.reshape(-1)[: 8 * 9].reshape(8, 9)
    with pytest.raises(ValueError, match="out shares memory with the paste mask"):
        _core.mosaic_render(memory, (((), (8, 8), 0, None, mask),))


def test_a_batch_is_rendered_into_memory_of_its_own():
    torch = pytest.importorskip("torch", reason="the batch is made of tensors")
    from yolov9mem.torch.mosaic_batch import MosaicBatch

    augment = Mosaic(make_tiles(), make_labels(), image_size=SIZE)
    batch = MosaicBatch.of([augment.recipe(i) for i in range(2)])
    size = 2 * 3 * SIZE * SIZE
    held = batch.pixels
    batch.pixels = torch.empty(held.numel() + size, dtype=torch.uint8)
    batch.pixels[: held.numel()] = held
    images = batch.pixels[-size:].reshape(2, 3, SIZE, SIZE)
    with pytest.raises(ValueError, match="out: shares memory with the batch's pixels"):
        batch.render(images)
    with pytest.raises(TypeError, match="out: expected a Tensor, got ndarray"):
        batch.render(np.zeros((2, 3, SIZE, SIZE), np.uint8))
    apart = batch.render(torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8))
    assert torch.equal(apart, batch.render())
