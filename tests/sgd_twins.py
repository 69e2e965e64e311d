# SPDX-License-Identifier: MIT
"""A small model twice, to step one by AccumulatingSGD and the other by stock torch."""

import copy
import math

import torch
from torch import nn

OFFICIAL = dict(lr=0.01, momentum=0.937, nesterov=True)
RATES = OFFICIAL | dict(weight_decay=5e-4)
OPTIONS = {
    "plain": dict(lr=0.1),
    "momentum": dict(lr=0.01, momentum=0.9),
    "dampening": dict(lr=0.01, momentum=0.9, dampening=0.3, weight_decay=1e-2),
    "nesterov": RATES,
    "maximize": dict(lr=0.01, momentum=0.9, maximize=True, weight_decay=1e-3),
}


class Net(nn.Module):
    """Odd sizes, a frozen weight, batch norm, a channels_last weight, an unused one."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 13, 3)
        self.norm = nn.BatchNorm2d(13)
        self.last = nn.Conv2d(13, 7, 3).to(memory_format=torch.channels_last)
        self.frozen = nn.Conv2d(7, 7, 1).requires_grad_(False)
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        return self.frozen(self.last(torch.relu(self.norm(self.conv(x)))))


def twins(seed=0):
    torch.manual_seed(seed)
    net = Net()
    return net, copy.deepcopy(net)


def official_groups(net, decay=5e-4):
    """Biases, decayed weights, norm weights: the order that warm-up relies on."""
    kinds = {"bias": [], "weight": [], "norm": []}
    for name, p in net.named_parameters():
        kind = "bias" if name.endswith("bias") else "weight"
        kinds["norm" if name == "norm.weight" else kind].append(p)
    return [
        {"params": kinds["bias"]},
        {"params": kinds["weight"], "weight_decay": decay},
        {"params": kinds["norm"]},
    ]


def official_ema_update(ema, model):
    ema.updates += 1
    d = ema.decay(ema.updates)
    source = model.state_dict()
    for name, v in ema.ema.state_dict().items():
        if v.dtype.is_floating_point:
            v *= d
            v += (1 - d) * source[name].detach()


class OfficialEMA:
    """What train_dual.py uses: no reference to the model, an update of its own."""

    def __init__(self, model):
        self.ema = copy.deepcopy(model).eval()
        self.updates = 0
        self.decay = lambda x: 0.9999 * (1 - math.exp(-x / 2000))

    update = official_ema_update


def backward(net, step, scaler=None):
    generator = torch.Generator().manual_seed(step)
    loss = net(torch.randn(2, 3, 9, 9, generator=generator)).square().mean()
    (loss if scaler is None else scaler.scale(loss)).backward()


def assert_same(a, b):
    a = a.state_dict() if isinstance(a, nn.Module) else a
    b = b.state_dict() if isinstance(b, nn.Module) else b
    for name in a:
        assert torch.equal(a[name], b[name]), name


def assert_same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    for mine, theirs in zip(a["param_groups"], b["param_groups"], strict=True):
        assert mine | {"foreach": None} == theirs | {"foreach": None}
    assert a["state"].keys() == b["state"].keys()
    for key, entry in a["state"].items():
        assert entry.keys() == b["state"][key].keys()
        for name, value in entry.items():
            assert torch.equal(value, b["state"][key][name])
