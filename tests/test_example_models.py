# SPDX-License-Identifier: MIT
"""The example's models: sizes, layouts, vocabulary, initial state."""

import math

import pytest
import torch
from torch.overrides import TorchFunctionMode

from yolov9.architectures import layer_table, model_name
from yolov9.heads import DFL
from yolov9.model import DetectionModel, load_matching

# Parameters and float state_dict entries of the released model files at 80 classes.
RELEASED = {
    "yolov9-t": (3717680, None),
    "yolov9-s": (9804512, 1481),
    "yolov9-m": (32878432, None),
    "yolov9-c": (51182080, 1222),
    "yolov9-e": (69529664, 1816),
    "gelan-t": (2442640, None),
    "gelan-s": (7226208, None),
    "gelan-m": (20124000, None),
    "gelan-c": (25498752, 783),
    "gelan-e": (58114432, None),
}
VOCABULARY = {
    "add",
    "avg_pool2d",
    "batch_norm",
    "boolean_dispatch",
    "cat",
    "chunk",
    "conv2d",
    "interpolate",
    "max_pool2d",
    "silu",
    "split",
    "stack",
    "sum",
}


@pytest.mark.parametrize("name", RELEASED)
def test_size_equals_released(name: str) -> None:
    with torch.device("meta"):
        model = DetectionModel(name, 80)
    count, entries = RELEASED[name]
    assert sum(p.numel() for p in model.parameters()) == count
    if entries is not None:
        state = model.state_dict().values()
        assert sum(v.is_floating_point() for v in state) == entries


class Calls(TorchFunctionMode):
    """Names of the torch functions called on tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.add(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["yolov9-t", "yolov9-m", "yolov9-c", "gelan-t"])
def test_training_forward_keeps_to_the_vocabulary(name: str) -> None:
    model, image = DetectionModel(name, 3).train(), torch.zeros(1, 3, 64, 64)
    with Calls() as calls:
        output = model(image)
    called = {n.strip("_") for n in calls.names}
    assert called - VOCABULARY - {"get", "size", "dim"} == set()
    levels = output[-1] if isinstance(output[0], list) else output
    assert [tuple(f.shape) for f in levels] == [
        (1, 67, 8, 8),
        (1, 67, 4, 4),
        (1, 67, 2, 2),
    ]


def test_eval_decodes_the_main_branch() -> None:
    torch.manual_seed(0)
    model = DetectionModel("yolov9-t", 3).eval()
    with torch.no_grad():
        decoded, (aux, main) = model(torch.rand(2, 3, 64, 96))
    assert decoded.shape == (2, 7, 8 * 12 + 4 * 6 + 2 * 3)
    bins = main[1][0, :64, 1, 2].view(4, 16).double().softmax(1)
    left, top, right, bottom = (bins @ torch.arange(16.0, dtype=torch.float64)).tolist()
    x1, y1, x2, y2 = 2.5 - left, 1.5 - top, 2.5 + right, 1.5 + bottom
    expected = torch.tensor([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]) * 16
    cell = 8 * 12 + 1 * 6 + 2
    torch.testing.assert_close(decoded[0, :4, cell], expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(decoded[0, 4:, cell], main[1][0, 64:, 1, 2].sigmoid())
    assert aux[0].shape == main[0].shape


def test_initial_state() -> None:
    model = DetectionModel("yolov9-t", 3)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.03)}
    assert all(m.inplace for m in model.modules() if isinstance(m, torch.nn.SiLU))
    head = model.model[-1]
    assert head.stride.tolist() == [8, 16, 32]
    assert torch.all(head.cv4[1][-1].bias == 1)
    assert head.cv5[0][-1].bias[0].item() == pytest.approx(math.log(5 / 3 / 80**2))
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["model.29.dfl.conv.weight", "model.29.dfl2.conv.weight"]


def test_dfl_is_the_mean_of_the_distribution() -> None:
    x = torch.randn(2, 64, 5)
    steps = torch.arange(16, dtype=torch.float64)
    mean = (x.double().view(2, 4, 16, 5).softmax(2) * steps.view(1, 1, 16, 1)).sum(2)
    torch.testing.assert_close(DFL()(x).double(), mean, rtol=1e-5, atol=1e-5)


def test_names() -> None:
    assert model_name("models/detect/yolov9-s.yaml") == "yolov9-s"
    with pytest.raises(ValueError, match="yolov9-x"):
        layer_table("yolov9-x")
    with pytest.raises(ValueError, match="at least one class"):
        DetectionModel("yolov9-t", 0)


def test_weights_of_another_class_count() -> None:
    a, b = DetectionModel("gelan-t", 3), DetectionModel("gelan-t", 5)
    count = load_matching(b, a.state_dict())
    assert 0 < count < len(b.state_dict())
    assert torch.equal(a.model[0].conv.weight, b.model[0].conv.weight)
    with pytest.raises(ValueError, match="none of the 1 tensors"):
        load_matching(b, {"x": torch.zeros(1)})
