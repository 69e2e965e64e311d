# SPDX-License-Identifier: MIT
"""Model, moving average, data set and validation of the look-alike trainer."""

import math
import random
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path

import cv2
import numpy as np
import torch
from official_chain import Chain
from torch import nn
from torch.utils.data import DataLoader, Dataset, get_worker_info


class Conv(nn.Module):
    seen = None  # a list of the types of the tensors that any instance gets

    def __init__(self, c1, c2, k=1, s=1):
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, s, k // 2, bias=False)
        self.bn = nn.BatchNorm2d(c2, eps=1e-3, momentum=0.03)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x):
        if Conv.seen is not None:
            Conv.seen.append(type(x).__name__)
        return self.act(self.bn(self.conv(x)))


class Net(nn.Module):
    """Two heads in training; in eval their concatenation as well."""

    def __init__(self, classes=2, width=8, depth=0):
        super().__init__()
        self.names = [str(i) for i in range(classes)]
        self.stem = Conv(3, width, 3, 2)
        self.deep = nn.Sequential(*(Conv(width, width) for _ in range(depth)))
        self.left, self.right = Conv(width, width, 3), Conv(width, width)
        self.down = Conv(2 * width, 16, 3, 2)
        self.heads = nn.ModuleList(nn.Conv2d(16, 4 + classes, 1) for _ in range(2))

    def forward(self, x, augment=False):
        x = self.deep(self.stem(x))
        x = self.down(torch.cat((self.left(x), self.right(x)), 1))
        out = [head(x) for head in self.heads]
        if self.training:
            return out
        flat = torch.cat([d.flatten(2) for d in out], 2)
        return flat.sigmoid(), out


def replicate(module, first):
    """What torch.nn.parallel.replicate does: parameters become plain attributes."""
    parts = list(module.modules())
    made = {part: part._replicate_for_data_parallel() for part in parts}
    for part in parts:
        for name, child in part._modules.items():
            made[part]._modules[name] = made[child]
        for name, parameter in part._parameters.items():
            setattr(made[part], name, None if parameter is None else parameter * 1)
        for name, buffer in part._buffers.items():
            made[part]._buffers[name] = buffer if first else buffer.clone()
    return made[module]


class TwoReplicas(nn.DataParallel):
    """DataParallel over two devices, both of them this CPU, a thread each."""

    def __init__(self, module):
        super().__init__(module)
        self.device_ids = [0, 1]

    def forward(self, x):
        replicas = [replicate(self.module, first) for first in (True, False)]
        with ThreadPoolExecutor(2) as pool:
            parts = list(pool.map(lambda r, part: r(part), replicas, x.chunk(2)))
        return [torch.cat(heads) for heads in zip(*parts, strict=True)]


class Average:
    """Moving average of a model, the official way."""

    def __init__(self, model, decay=0.9999, tau=2000):
        self.ema = deepcopy(model).eval()
        self.updates = 0
        self.decay = lambda x: decay * (1 - math.exp(-x / tau))
        for p in self.ema.parameters():
            p.requires_grad_(False)

    def update(self, model):
        self.updates += 1
        d = self.decay(self.updates)
        live = getattr(model, "module", model).state_dict()
        for name, value in self.ema.state_dict().items():
            if value.dtype.is_floating_point:
                value *= d
                value += (1 - d) * live[name].detach()


class Shapes(Dataset):
    """Drawn rectangles with the fields of the official data set."""

    def __init__(self, size, count, hyp, augment):
        draw = np.random.default_rng(3)
        self.img_size, self.n, self.hyp, self.augment = size, count, hyp, augment
        self.rect, self.mosaic = False, augment
        self.mosaic_border = [-size // 2, -size // 2]
        self.albumentations = None
        self.indices = range(count)
        self.segments = [[] for _ in range(count)]
        self.im_files = [f"image{i}.png" for i in range(count)]
        self.labels, self.images = [], []
        for _ in range(count):
            width = int(draw.integers(size // 2, size + 1))
            image = draw.integers(60, 180, (size, width, 3), dtype=np.uint8)
            boxes = draw.uniform((0.3, 0.3, 0.1, 0.1), (0.7, 0.7, 0.5, 0.5), (2, 4))
            for x, y, w, h in boxes * (width, size, width, size):
                corners = [int(v) for v in (x - w / 2, y - h / 2, x + w / 2, y + h / 2)]
                cv2.rectangle(image, corners[:2], corners[2:], (0, 0, 255), -1)
            classes = draw.integers(0, 2, (2, 1))
            self.labels.append(np.hstack((classes, boxes)).astype(np.float32))
            self.images.append(image)

    def load_image(self, index):
        image = self.images[index]
        return image, image.shape[:2], image.shape[:2]

    def load_mosaic(self, index):
        return self.chain().warped(index)

    def chain(self):
        return Chain(
            self.images,
            self.labels,
            self.segments,
            self.img_size,
            self.hyp,
            mosaic=self.mosaic,
        )

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        if self.augment:
            image, labels = self.chain().sample(index)
        else:
            image = np.zeros((3, self.img_size, self.img_size), np.uint8)
            picture = self.images[index].transpose(2, 0, 1)
            image[:, :, : picture.shape[2]] = picture
            labels = self.labels[index]
        numbered = torch.zeros((len(labels), 6))
        if len(labels):
            numbered[:, 1:] = torch.from_numpy(labels)
        shapes = None
        if self.augment and not self.mosaic:
            h, w = self.images[index].shape[:2]
            r = min(self.img_size / h, self.img_size / w)
            gap = (self.img_size - round(w * r)) / 2, (self.img_size - round(h * r)) / 2
            shapes = (h, w), ((1.0, 1.0), gap)
        return torch.from_numpy(image), numbered, self.im_files[index], shapes


class Own(Shapes):
    """Without a field of the official data set: its code, but not known by it."""

    def __init__(self, *args):
        super().__init__(*args)
        del self.mosaic_border


def collate(batch):
    images, labels, files, shapes = zip(*batch, strict=True)
    for number, found in enumerate(labels):
        found[:, 0] = number
    return torch.stack(images), torch.cat(labels), files, shapes


class SeedWorker:
    """Seeds a worker, and writes down whose __getitem__ its data set has."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, worker):
        seed = torch.initial_seed() % 2**32
        np.random.seed(seed)
        random.seed(seed)
        used = type(get_worker_info().dataset).__getitem__
        way = getattr(getattr(used, "way", None), "__name__", None)
        text = f"{used.__module__} {way}"
        (Path(self.folder) / f"worker{worker}.txt").write_text(text)


def make_loader(dataset, batch, folder, workers=0, context=None, rank=None):
    """Shuffled, every rank in its own order, if `rank` is given."""
    return DataLoader(
        dataset,
        batch,
        shuffle=rank is not None,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=SeedWorker(folder),
        multiprocessing_context=context if workers else None,
        generator=torch.Generator().manual_seed(5 + (rank or 0)),
    )


def check_amp(model):
    return next(model.parameters()).device.type == "cpu"


def autobatch(model, size):
    """The types of tensors that the layers got: only fakes if the model runs in C."""
    Conv.seen = []
    model(torch.zeros(2, 3, size, size))
    seen, Conv.seen = sorted(set(Conv.seen)), None
    return seen


@torch.no_grad()
def validate(model, loader):
    """The mean prediction and the number of images of each call of the stem."""
    model.eval()
    sizes, means = [], []
    hook = model.stem.conv.register_forward_hook(lambda m, x, y: sizes.append(len(y)))
    for images, *_ in loader:
        flat, heads = model(images.float() / 255)
        assert len(flat) == len(images) == len(heads[1])
        means.append(flat.double().mean().item())
    hook.remove()
    return means, sizes
