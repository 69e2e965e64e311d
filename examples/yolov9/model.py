# SPDX-License-Identifier: MIT
"""The detector: layers from a table, run in order with the outputs others need."""

import torch
from torch import Tensor, nn

from . import blocks, heads
from .architectures import layer_table

STRIDES = (8.0, 16.0, 32.0)


class DetectionModel(nn.Module):
    """YOLOv9 or GELAN by name, e.g. DetectionModel("yolov9-s", nc=80).

    Input: (N, 3, H, W) float in [0, 1], H and W multiples of 32. Output: that of the
    head (heads.py). `model` is the Sequential of layers, as in the field's code.
    """

    def __init__(self, name: str = "yolov9-s", nc: int = 80, ch: int = 3) -> None:
        super().__init__()
        if nc < 1:
            raise ValueError(f"nc is {nc}: a detector needs at least one class")
        self.name = name
        self.nc = nc
        self.names: dict[int, str] = {i: str(i) for i in range(nc)}
        self.model, self.save = _build(name, nc, ch)
        head = self.model[-1]
        head.stride = torch.tensor(STRIDES)
        self.stride = head.stride
        head.bias_init(STRIDES)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps, module.momentum = 1e-3, 0.03

    def forward(self, x: Tensor) -> list | tuple:
        outputs: list = []
        for layer in self.model:
            if isinstance(layer.f, list):
                x = [x if j == -1 else outputs[j] for j in layer.f]
            elif layer.f != -1:
                x = outputs[layer.f]
            x = layer(x)
            outputs.append(x if layer.i in self.save else None)
        return x


def _build(name: str, nc: int, ch: int) -> tuple[nn.Sequential, frozenset[int]]:
    """The layers, each with its index `i` and source `f`, and the indices to keep."""
    layers, keep = [], set()
    widths: list = []

    def width(source: int) -> int:
        return widths[source] if widths else ch

    for i, (f, kind, args) in enumerate(layer_table(name)):
        if kind in ("Upsample", "Silence"):
            layer = (
                nn.Upsample(None, 2, "nearest")
                if kind == "Upsample"
                else blocks.Silence()
            )
            out = width(f)
        elif kind in ("Concat", "CBFuse"):
            layer = getattr(blocks, kind)(*args)
            out = sum(width(j) for j in f) if kind == "Concat" else width(f[-1])
        elif kind in ("DDetect", "DualDDetect"):
            layer, out = getattr(heads, kind)(nc, [width(j) for j in f]), None
        else:
            # Layer 0 of the auxiliary branch is Silence, whose width is the image's.
            layer, out = getattr(blocks, kind)(width(f), *args), args[0]
        layer.i, layer.f = i, f
        keep.update(j % i for j in (f if isinstance(f, list) else [f]) if j != -1)
        layers.append(layer)
        widths.append(out)
    return nn.Sequential(*layers), frozenset(keep)


def load_matching(model: nn.Module, state: dict[str, Tensor]) -> int:
    """Loads the tensors whose name and shape fit; the number of them.

    Raises ValueError when none fits.
    """
    own = model.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    if not fitting:
        raise ValueError(
            f"none of the {len(state)} tensors of the weights fits the model's "
            f"{len(own)}"
        )
    model.load_state_dict(fitting, strict=False)
    return len(fitting)


def freeze(model: DetectionModel, layers: list[int]) -> None:
    """No gradients for these layers, or, where it is one number, for the first N."""
    frozen = set(layers) if len(layers) > 1 else range(layers[0])
    for i, layer in enumerate(model.model):
        if i in frozen:
            layer.requires_grad_(False)
