# SPDX-License-Identifier: MIT
"""What the loss reads of the network's output: against autograd of the dense formulas in
float64, and in bytes."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from loss_by_loops import HYP
from loss_cases import head, make_case
from torch import Tensor
from traced import Traced

from yolov9mem.torch.loss import assigner as assigner_module
from yolov9mem.torch.loss import cells as cells_module
from yolov9mem.torch.loss import detection as loss_module
from yolov9mem.torch.loss.cells import Cells, Levels
from yolov9mem.torch.loss.detection import DetectionLoss

BOXES, CLASSES = 8, 5
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def levels_of(layout: torch.memory_format, dtype: torch.dtype) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    sizes = ((3, BOXES + CLASSES, *side) for side in ((6, 4), (3, 2), (1, 1)))
    drawn = [torch.randn(*size, generator=random) * 3 for size in sizes]
    return [x.to(dtype).contiguous(memory_format=layout) for x in drawn]


def some_cells() -> Cells:
    """Of all levels and images; the last fill up, one in the place of a real one."""
    image, place = [0, 0, 1, 2, 2, 0, 2], [0, 23, 24, 30, 29, 0, 5]
    is_real = torch.arange(7) < 5
    label = torch.tensor([4, 0, 2, 2, 1, 3, 0])
    return Cells(torch.tensor(image), torch.tensor(place), label, is_real)


def dense(levels: list[Tensor], cells: Cells, absent: Callable) -> tuple[Tensor, ...]:
    whole = torch.cat([x.flatten(2) for x in levels], 2)
    rows = whole[cells.image, :, cells.place]
    logit = rows[torch.arange(len(rows)), BOXES + cells.label]
    return rows[:, :BOXES], logit, absent(whole[:, BOXES:]).sum()


def weighed(read: tuple[Tensor, ...], is_real: Tensor) -> Tensor:
    """A loss of what was read; of cells that only fill up it takes nothing."""
    boxes, logit, total = read
    scale = torch.linspace(-1, 1, boxes.numel()).view_as(boxes).to(boxes.dtype)
    boxes, logit = boxes.where(is_real[:, None], 0), logit.where(is_real, 0)
    return (boxes * scale).sum() + logit.square().sum() / 3 + total / 7


@pytest.mark.parametrize("elements", [1 << 22, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_and_gradients(monkeypatch, layout, dtype, elements) -> None:
    """The gradient is rounded once: to the dtype of the level."""
    monkeypatch.setattr(cells_module, "ELEMENTS", elements)
    found = [x.requires_grad_() for x in levels_of(layout, dtype)]
    exact = [x.detach().double().requires_grad_() for x in found]
    cells = some_cells()
    made = Levels(found, BOXES).read(cells, F.softplus)
    truth = dense(exact, cells, F.softplus)
    real = cells.is_real
    for a, b in zip(made[:2], truth[:2], strict=True):
        assert torch.equal(a[real].double(), b[real])
    torch.testing.assert_close(made[2].double(), truth[2], rtol=1e-6, atol=0)
    weighed(made, real).backward()
    weighed(truth, real).backward()
    for x, e in zip(found, exact, strict=True):
        assert x.grad.dtype == dtype
        assert x.grad.stride() == x.stride()
        limit = torch.finfo(dtype).eps
        torch.testing.assert_close(x.grad.double(), e.grad, rtol=limit, atol=1e-7)


def test_logits_of_a_class_in_all_cells() -> None:
    levels = levels_of(torch.channels_last, torch.bfloat16)
    image, label = torch.tensor([[2], [0]]), torch.tensor([[1, 4, 4], [0, 2, 1]])
    made = Levels(levels, BOXES).class_logits(image, label)
    whole = torch.cat([x.flatten(2) for x in levels], 2).float()
    assert torch.equal(made, whole[image, BOXES + label])


@pytest.mark.parametrize("weight", [1.0, 1.7])
@pytest.mark.parametrize("gamma", [0.0, 1.5])
def test_classes_are_the_binary_cross_entropy(gamma: float, weight: float) -> None:
    """Of PyTorch in float64, focal as in arXiv:1708.02002, gradients included."""
    loss = DetectionLoss(head(3), HYP | {"fl_gamma": gamma, "cls_pw": weight})
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(400, generator=random) * 6
    scores = torch.rand(400, generator=random)
    for t, made_by in ((scores, loss._classification), (scores * 0, None)):
        x = logits.clone().requires_grad_()
        made = made_by(x, t) if made_by else loss._of_absent(x)
        z = logits.double().requires_grad_()
        exact = F.binary_cross_entropy_with_logits(
            z, t.double(), reduction="none", pos_weight=torch.tensor(weight)
        )
        if gamma > 0:
            p, t = z.sigmoid(), t.double()
            off = 1 - (t * p + (1 - t) * (1 - p))
            exact = exact * (t * 0.25 + (1 - t) * 0.75) * off**gamma
        torch.testing.assert_close(made.double(), exact, rtol=2e-5, atol=1e-7)
        made.sum().backward()
        exact.sum().backward()
        torch.testing.assert_close(x.grad.double(), z.grad, rtol=2e-5, atol=1e-6)


def test_no_copy_of_the_output_in_float32(monkeypatch) -> None:
    """The output's gradient, and what does not grow with the batch."""
    monkeypatch.setattr(cells_module, "ELEMENTS", 1 << 16)
    monkeypatch.setattr(loss_module, "BIN_ELEMENTS", 1 << 16)
    peaks = []
    for batch in (8, 24):
        levels = [
            torch.zeros(batch, 64 + 20, side, side, dtype=torch.bfloat16)
            .contiguous(memory_format=torch.channels_last)
            .requires_grad_()
            for side in (32, 16, 8)
        ]
        targets = torch.tensor([[0, 1, 0.5, 0.5, 0.3, 0.3]])
        loss, _ = DetectionLoss(head(20), HYP)(levels, targets)
        with Traced() as traced:
            loss.backward()
        peaks.append((traced.peak, sum(2 * x.numel() for x in levels)))
    (small, least), (large, most) = peaks
    assert large - small < 1.1 * (most - least)


def test_a_dense_image_of_two_branches_costs_no_more_than_of_one(monkeypatch) -> None:
    monkeypatch.setattr(assigner_module, "CHUNK_ELEMENTS", 1 << 14)
    levels, targets = make_case(0, 1, count=150)
    levels = [torch.tensor(z).float() for z in levels]
    peaks = []
    for branches in (levels, [levels, levels]):
        with Traced() as traced:
            DetectionLoss(head(3), HYP)(branches, torch.tensor(targets).float())
        peaks.append(traced.peak)
    assert peaks[1] < 1.2 * peaks[0]


# PyTorch's deterministic algorithms of these sort their indices on a GPU, and look at each
# place's values one after the other.
SORTED_FOR = ("index_put", "index_add", "index_copy", "scatter_add", "put")


def test_each_place_of_a_gradient_is_written_once(monkeypatch) -> None:
    """Of images with cells that fill up; and nothing else that PyTorch sorts for."""
    places = []

    def noted(memory: Tensor, place: Tensor, values: Tensor) -> None:
        places.append((place, memory.numel()))
        put(memory, place, values)

    put = cells_module._put
    monkeypatch.setattr(cells_module, "_put", noted)
    aux, targets = make_case(0, 3, count=7)
    leaves = [[torch.tensor(z).requires_grad_() for z in b] for b in (aux, aux)]
    targets = torch.tensor(targets).float()[:15]  # the last image has one object
    with Traced() as traced:
        total, _ = DetectionLoss(head(3), HYP)(leaves, targets)
    with Traced() as backward:
        total.backward()
    assert len(places) == 6
    for place, count in places:
        assert len(place.unique()) == place.numel()
        assert int(place.min()) >= 0 and int(place.max()) < count
    for calls in (traced.calls, backward.calls):
        for name in SORTED_FOR:
            assert not calls[name] and not calls[f"{name}_"], name
    assert backward.calls["_index_put_impl_"] == 6
