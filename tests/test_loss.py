# SPDX-License-Identifier: MIT
"""yolov9mem.torch.loss against two oracles that share nothing with it: loops in float64,
and one image at a time in torch, which float32 may be twice as far from as they are."""

import numpy as np
import per_image_loss
import pytest
import torch
from kernel_oracle import error
from loss_by_loops import HYP, slow_assign, slow_branch
from loss_cases import head, make_case, random_images
from traced import Traced

from yolov9mem.torch.loss import assigner as assigner_module
from yolov9mem.torch.loss.assigner import (
    Assignment,
    TaskAlignedAssigner,
    groups,
    pack_objects,
)
from yolov9mem.torch.loss.detection import DetectionLoss, first_cells


def objects_of(targets, batch: int, size: int):
    found = []
    for i in range(batch):
        mine = targets[targets[:, 0] == i]
        xy, half = mine[:, 2:4] * size, mine[:, 4:] * size / 2
        found.append(
            (mine[:, 1].astype(int), np.concatenate((xy - half, xy + half), 1))
        )
    return found


def packed(objects):
    """Objects of images from each one's (labels, gt)."""
    image = torch.tensor([i for i, (labels, _) in enumerate(objects) for _ in labels])
    labels, gt = (torch.cat(column) for column in zip(*objects, strict=True))
    return pack_objects(image.long(), labels, gt, len(objects))


def assign(logits, boxes, points, objects):
    """(boxes, scores of all classes, positive) of the assigner under test."""

    def class_logits(part, image, label):
        assert part.start == 0
        return logits.transpose(1, 2)[image, label][None]

    branches = TaskAlignedAssigner()(class_logits, boxes[None], points, objects)
    found = Assignment(*(t.squeeze(0) for t in branches))
    scores = torch.zeros_like(logits)
    scores.scatter_(2, found.labels[..., None], found.scores[..., None])
    return found.boxes, scores, found.positive


def assign_one(scores, boxes, points, labels, gt):
    """The same for one image."""
    objects = packed([(labels, gt)])
    return [t[0] for t in assign(scores.logit()[None], boxes[None], points, objects)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [2, 3])
def test_branches(seed: int, count: int) -> None:
    made = [make_case(seed + 100 * k)[0] for k in range(count)]
    targets = make_case(seed)[1]
    objects = objects_of(targets, 2, 96)
    weights = [0.25] * (count - 1) + [1.0]
    gains = np.array([7.5, 0.5, 1.5])
    parts = gains * sum(w * slow_branch(b, objects) for w, b in zip(weights, made))
    assert parts.min() > 0.1
    branches = [[torch.tensor(z, dtype=torch.float32) for z in b] for b in made]
    loss, items = DetectionLoss(head(3), HYP)(branches, torch.tensor(targets).float())
    np.testing.assert_allclose(items.numpy(), parts, rtol=2e-5)
    assert loss.item() == pytest.approx(parts.sum() * 2, rel=2e-5)


def test_gradient_of_class_and_distribution_losses() -> None:
    levels, targets = make_case(3)
    objects, fixed = objects_of(targets, 2, 96), []
    slow_branch(levels, objects, fixed)
    direction = np.random.default_rng(0).normal(size=levels[1].shape)
    values = []
    for step in (1e-5, -1e-5):
        moved = [levels[0], levels[1] + step * direction, levels[2]]
        _, cls, dfl = slow_branch(moved, objects, fixed)
        values.append(2 * (0.5 * cls + 1.5 * dfl))
    tensors = [torch.tensor(z, dtype=torch.float32, requires_grad=True) for z in levels]
    loss = DetectionLoss(head(3), HYP | {"box": 0.0})
    loss(tensors, torch.tensor(targets).float())[0].backward()
    slope = (tensors[1].grad.double().numpy() * direction).sum()
    assert slope == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4)


def test_single_branch_and_no_objects() -> None:
    levels, _ = make_case(0)
    tensors = [torch.tensor(z, dtype=torch.float32, requires_grad=True) for z in levels]
    loss, items = DetectionLoss(head(3), HYP)(tensors, torch.zeros(0, 6))
    nested, _ = DetectionLoss(head(3), HYP)([tensors], torch.zeros(0, 6))
    assert torch.equal(loss, nested)
    expected = slow_branch(levels, [(np.zeros(0, int), np.zeros((0, 4)))] * 2)
    np.testing.assert_allclose(items.numpy(), expected * [7.5, 0.5, 1.5], rtol=1e-5)
    assert items[0] == 0
    assert items[2] == 0
    loss.backward()
    assert all(torch.isfinite(t.grad).all() for t in tensors)
    assert tensors[0].grad[:, :64].abs().max() == 0


@pytest.mark.parametrize("count", [0, 1, 25])
def test_assigner_matches_loops(count: int) -> None:
    rng = np.random.default_rng(count)
    cells, nc = 80, 4
    points = rng.uniform(0, 100, (cells, 2))
    boxes = np.concatenate((points - rng.uniform(3, 30, (cells, 2)), points + 15), 1)
    gt_xy = rng.uniform(10, 60, (count, 2))
    gt = np.concatenate((gt_xy, gt_xy + rng.uniform(10, 40, (count, 2))), 1)
    labels = rng.integers(0, nc, count)
    scores = rng.uniform(0.01, 0.9, (cells, nc))
    expected = slow_assign(scores, boxes, points, labels, gt)
    tensors = [torch.tensor(a, dtype=torch.float32) for a in (scores, boxes, points)]
    boxes, scores, positive = assign_one(
        *tensors, torch.tensor(labels), torch.tensor(gt, dtype=torch.float32)
    )
    # Cells whose alignment is zero tie, and which of them is taken means nothing.
    strong = expected[1].sum(1) > 0
    assert strong.any() == (count > 0)
    assert positive.numpy()[strong].all()
    np.testing.assert_allclose(scores.numpy(), expected[1], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(boxes.numpy()[strong], expected[0][strong], 1e-6)


def assert_the_error_rule(errors) -> None:
    """(ours, the oracle's in float32) of several tensors: no more than twice the worst."""
    limit = 2 * max(2.0**-23, *(usual for _, usual in errors))
    assert all(ours <= limit for ours, _ in errors), errors


@pytest.fixture
def no_tails():
    """One thread: then 320 cells are whole vectors, whose powers are rounded alike."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


@pytest.mark.usefixtures("no_tails")
@pytest.mark.parametrize("chunk", [1 << 22, 9600, 600])
@pytest.mark.parametrize(
    "counts, nc",
    [
        ([7] * 6, 8),
        ([0, 5, 0, 1, 12, 3], 8),
        ([4, 3, 150, 5, 0, 2], 8),
        ([6, 2, 9], 1),
        ([0, 0, 0], 8),
    ],
)
def test_groups_of_images_match_one_at_a_time(monkeypatch, chunk, counts, nc) -> None:
    monkeypatch.setattr(assigner_module, "CHUNK_ELEMENTS", chunk)
    logits, boxes, points, objects = random_images(counts, nc)
    found = assign(logits, boxes, points, packed(objects))
    assert found[2].any() == any(counts)
    errors = []
    for i, (labels, gt) in enumerate(objects):
        alone = assign(
            logits[i : i + 1], boxes[i : i + 1], points, packed([(labels, gt)])
        )
        assert all(torch.equal(a[i], b[0]) for a, b in zip(found, alone, strict=True))
        given = logits[i].sigmoid(), boxes[i], points, labels, gt
        usual = per_image_loss.assign(*given)
        given = logits[i].double().sigmoid(), boxes[i].double(), points.double()
        exact = per_image_loss.assign(*given, labels, gt.double())
        assert torch.equal(found[0][i].double(), exact[0])
        assert torch.equal(found[2][i], exact[2])
        errors.append((error(found[1][i], exact[1]), error(usual[1], exact[1])))
    assert_the_error_rule(errors)


def test_objects_are_packed_in_order() -> None:
    image = torch.tensor([2, 0, -1, 2, 3, 0, 2])
    boxes = torch.arange(28.0).view(7, 4)
    found = pack_objects(image, torch.arange(7.0), boxes, 3)
    assert found.labels.tolist() == [[1, 5, 0], [0, 0, 0], [0, 3, 6]]
    assert found.boxes[2].equal(boxes[[0, 3, 6]])
    assert found.boxes[0].equal(torch.cat((boxes[[1, 5]], torch.zeros(1, 4))))
    assert found.order.tolist() == [2, 0, 1]
    assert found.place.tolist() == [1, 2, 0]
    assert found.counts == [3, 2, 0]


def test_groups_stay_within_the_bound() -> None:
    rng = np.random.default_rng(0)
    for cells in (189, 2100, 8400):
        counts = sorted(rng.integers(0, 60, 64).tolist() + [900], reverse=True)
        stops = 0
        for start, stop in groups(counts, cells):
            assert start == stops
            padded = (stop - start) * counts[start]
            alone = stop == start + 1
            assert alone or padded * cells <= assigner_module.CHUNK_ELEMENTS
            assert padded <= 2 * sum(counts[start:stop])
            stops = stop
        assert not any(counts[stops:])
    assert list(groups([7] * 64, 8400)) == [(0, 64)]


def test_launches_and_waits_do_not_grow_with_the_batch() -> None:
    for batch in (2, 64):
        aux, targets = make_case(0, batch, count=7)
        branches = [[torch.tensor(z).float() for z in b] for b in (aux, aux)]
        leaves = [[x.requires_grad_() for x in levels] for levels in branches]
        loss = DetectionLoss(head(3), HYP)
        with Traced() as traced:
            total, _ = loss(leaves, torch.tensor(targets).float())
        with Traced() as backward:
            total.backward()
        assert traced.calls.total() < 460
        assert backward.calls.total() < 280
        waits = ("nonzero", "is_nonzero", "_local_scalar_dense", "masked_select")
        for name in waits:
            assert not traced.calls[name] and not backward.calls[name]


@pytest.mark.parametrize("share", [0.0, 0.05, 1.0])
def test_positive_cells_are_found_without_asking_how_many(share: float) -> None:
    positive = torch.rand(2, 120) < share
    places = [row.nonzero().squeeze(1) for row in positive]
    fullest = max(map(len, places))
    for most in (fullest, min(fullest + 9, 120), 120):
        found, is_real = first_cells(positive, most)
        for row, real, expected in zip(found, is_real, places, strict=True):
            assert torch.equal(row[real], expected)
        assert found.shape == is_real.shape == (2, most)
        assert not most or int(found.max()) < 120


def test_cells_that_fill_up_have_no_part_in_the_loss() -> None:
    """Not even where their boxes are not finite, in an image without objects."""
    aux, targets = make_case(0, 2, count=1)
    targets = targets[targets[:, 0] == 1]
    targets[:, 4:] = 0.15  # some four cells, which leaves six
    made = []
    for corrupt in (False, True):
        levels = [torch.tensor(z).float() for z in aux]
        if corrupt:  # of those that fill up
            levels[0][0, : 4 * 16, 0] = torch.inf
        levels = [z.requires_grad_() for z in levels]
        loss, _ = DetectionLoss(head(3), HYP)(levels, torch.tensor(targets).float())
        loss.backward()
        made.append([loss.detach(), *(z.grad for z in levels)])
    assert all(map(torch.equal, *made))


def test_a_dense_image_costs_no_more_than_itself(monkeypatch) -> None:
    monkeypatch.setattr(assigner_module, "CHUNK_ELEMENTS", 1 << 17)
    peaks = []
    for counts in ([150], [3] * 7 + [150] + [3] * 8):
        logits, boxes, points, objects = random_images(counts, 1, cells=1024)
        objects = packed(objects)
        with Traced() as traced:
            assign(logits, boxes, points, objects)
        peaks.append(traced.peak)
    results = 16 * 1024 * (8 + 4 + 1 + 8 + 4 + 16)  # (N, A) tensors, all alive
    assert peaks[1] <= peaks[0] + results


@pytest.mark.parametrize("counts", [[7] * 4, [3, 0, 60, 2], [0] * 4])
def test_loss_and_gradients_match_one_image_at_a_time(counts) -> None:
    branches = [make_case(seed, batch=4)[0] for seed in (5, 6)]
    rows = make_case(7, batch=4, count=60)[1]
    targets = np.concatenate([rows[rows[:, 0] == i][:n] for i, n in enumerate(counts)])
    targets = torch.tensor(targets).float()

    def oracle(branches, targets):
        return per_image_loss.loss(branches, [0.25, 1.0], targets, [7.5, 0.5, 1.5])

    results = []
    for loss, dtype in (
        (DetectionLoss(head(3), HYP), torch.float32),
        (oracle, torch.float32),
        (oracle, torch.float64),
    ):
        leaves = [
            [torch.tensor(z).float().to(dtype).requires_grad_() for z in b]
            for b in branches
        ]
        total, parts = loss(leaves, targets)
        total.backward()
        results.append((total.detach(), parts, *(z.grad for b in leaves for z in b)))
    assert_the_error_rule(
        [(error(made, e), error(usual, e)) for made, usual, e in zip(*results)]
    )


def test_fewer_cells_than_topk() -> None:
    _, _, positive = assign_one(
        torch.full((2, 1), 0.5),
        torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10]]),
        torch.tensor([[5.0, 5.0], [15.0, 5.0]]),
        torch.tensor([0]),
        torch.tensor([[1.0, 1, 9, 9]]),
    )
    assert positive.tolist() == [True, False]


def test_loss_is_float32_under_autocast() -> None:
    levels, targets = make_case(1)
    tensors = [torch.tensor(z).bfloat16() for z in levels]
    loss = DetectionLoss(head(3), HYP)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, _ = loss(tensors, torch.tensor(targets).float())
    outside, _ = loss([t.float() for t in tensors], torch.tensor(targets).float())
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.float32])
def test_targets_of_any_dtype_are_taken_in_float32(dtype: torch.dtype) -> None:
    levels, targets = make_case(1)
    levels = [torch.tensor(z).float() for z in levels]
    targets = torch.tensor(targets).to(dtype)
    made, _ = DetectionLoss(head(3), HYP)(levels, targets)
    assert torch.equal(made, DetectionLoss(head(3), HYP)(levels, targets.float())[0])


def bad_calls():
    levels = [torch.tensor(z).float() for z in make_case(1)[0]]
    row = torch.tensor([[0, 1, 0.5, 0.5, 0.2, 0.2]])
    turned = [levels[0].reshape(2, 67, 24, 6), *levels[1:]]
    less = [z[:1] for z in levels]
    for column, value, message in (
        (0, 0.5, "an image's number is 0.5, must be whole"),
        (0, float("nan"), "an image's number is nan, must be whole"),
        (1, -1, r"a class is -1, must be in \[0, 3\)"),
        (1, 3, r"a class is 3, must be in \[0, 3\)"),
        (1, float("nan"), r"a class is nan, must be in \[0, 3\)"),
        (2, float("nan"), "a box coordinate is nan, must be finite"),
        (5, float("inf"), "a box coordinate is inf, must be finite"),
    ):
        wrong = torch.cat((row, row))
        wrong[1, column] = value
        yield levels, wrong, "targets: " + message
    yield levels, row[:, :5], r"targets: is \(1, 5\), must be \(n, 6\)"
    yield levels[:2], row, r"output\[0\]: has 2 levels, the head 3"
    yield (
        [z[:, 1:] for z in levels],
        row,
        r"output\[0\]\[0\]: is \(2, 66, 12, 12\), must",
    )
    yield [z.long() for z in levels], row, "is torch.int64, must be a float dtype"
    yield [z[:0] for z in levels], row, r"is \(0, 67, 12, 12\), must be"
    yield [levels, turned], row, r"output\[1\]\[0\]: is \(2, 67, 24, 6\), beside"
    yield [less, levels], row, r"output\[1\]\[0\]: is \(2, 67, 12, 12\), beside"


@pytest.mark.parametrize("levels, targets, message", list(bad_calls()))
def test_bad_input_is_named(levels, targets, message) -> None:
    with pytest.raises(ValueError, match=message):
        DetectionLoss(head(3), HYP)(levels, targets)


@pytest.mark.parametrize("targets", [None, [[0, 1, 0.5, 0.5, 0.2, 0.2]]])
def test_targets_that_are_no_tensor(targets) -> None:
    levels = [torch.tensor(z).float() for z in make_case(1)[0]]
    with pytest.raises(TypeError, match="targets: is a .*, must be a tensor"):
        DetectionLoss(head(3), HYP)(levels, targets)


def test_focal_weight_lowers_easy_cells() -> None:
    levels, targets = make_case(2)
    tensors = [torch.tensor(z, dtype=torch.float32) for z in levels]
    plain = DetectionLoss(head(3), HYP)(tensors, torch.tensor(targets).float())[1]
    focal = DetectionLoss(head(3), HYP | {"fl_gamma": 1.5})
    focused = focal(tensors, torch.tensor(targets).float())[1]
    assert 0 < focused[1] < plain[1]
    assert focused[0] == plain[0]
