# SPDX-License-Identifier: MIT
"""A trainer in the shape of the official train_dual.py, small enough for tests.

Writes weights/last.pt, and trace.json with what a test compares.
"""

import argparse
import gc
import hashlib
import json
import os
import random
import sys
import weakref
from copy import deepcopy
from pathlib import Path

import numpy as np
import parts
import torch
import yaml
from parts import check_amp
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

RANK = int(os.getenv("RANK", "-1"))
MADE = []


def train(opt, hyp):
    folder = Path(opt.save_dir)
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    torch.manual_seed(opt.seed)
    random.seed(opt.seed)
    np.random.seed(opt.seed)
    gc.collect()
    model = parts.Net(width=opt.width, depth=opt.depth)
    trace = {"images": [], "losses": [], "gradients": [], "live": live_nets()}
    MADE.append(weakref.ref(model))
    batch_size = opt.batch_size
    if batch_size == -1:
        trace["autobatch"] = parts.autobatch(deepcopy(model).train(), opt.imgsz)
        batch_size = 4
    nbs = 16
    accumulate = max(round(nbs / batch_size), 1)
    hyp["weight_decay"] *= batch_size * accumulate / nbs
    trace["weight_decay"] = hyp["weight_decay"]
    optimizer = make_optimizer(model, opt.optimizer, hyp)
    ema = parts.Average(model) if RANK in (-1, 0) else None
    net = model
    if RANK != -1:
        dist.init_process_group("gloo")
        net = DistributedDataParallel(model, static_graph=True)
    start = 0
    if opt.resume:
        saved = torch.load(opt.resume, weights_only=False)
        model.load_state_dict(saved["model"].float().state_dict())
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["epoch"] + 1
    kind = parts.Own if opt.own else parts.Shapes
    dataset = kind(opt.imgsz, opt.images, hyp, True)
    loader = parts.make_loader(
        dataset, batch_size, folder, opt.workers, opt.context, max(RANK, 0)
    )
    held_out = parts.Shapes(opt.imgsz, 3 * batch_size, hyp, False)
    val_loader = parts.make_loader(held_out, 2 * batch_size, folder)
    amp = check_amp(model) and opt.amp
    scaler = torch.amp.GradScaler("cpu", enabled=amp)
    last_step, nw = -1, 4
    for epoch in range(start, opt.epochs):
        net.train()
        if epoch == opt.epochs - opt.close_mosaic:
            dataset.mosaic = False
        optimizer.zero_grad()
        for i, (images, targets, _, _) in enumerate(loader):
            ni = i + len(loader) * epoch
            trace["images"].append(hashlib.md5(images.numpy().tobytes()).hexdigest())
            images = images.float() / 255
            if ni <= nw:
                xi = [0, nw]
                accumulate = max(1, np.interp(ni, xi, [1, nbs / batch_size]).round())
                for group in optimizer.param_groups:
                    group["lr"] = np.interp(ni, xi, [0.0, hyp["lr0"]])
            with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                pred = net(images)
                loss = find_loss(pred, targets) * len(images)
            scaler.scale(loss).backward()
            trace["losses"].append(loss.item())
            if opt.fail and ni == opt.fail:
                raise RuntimeError("told to fail")
            if ni - last_step >= accumulate:
                trace["gradients"].append(
                    [ni, digest(p.grad for p in model.parameters())]
                )
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=10.0)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                if ema:
                    ema.update(net)
                last_step = ni
        if not ema:
            continue
        means, sizes = parts.validate(ema.ema, val_loader)
        trace.update(means=means, sizes=sizes, updates=ema.updates)
        saved = {
            "epoch": epoch,
            "model": deepcopy(model).half(),
            "ema": deepcopy(ema.ema).half(),
            "optimizer": optimizer.state_dict(),
            "opt": vars(opt),
        }
        torch.save(saved, folder / "weights" / "last.pt")
    trace["amp"] = amp
    trace["hyp"] = hyp
    trace["weights"] = digest(model.parameters())
    if ema:
        trace["average"] = digest(ema.ema.state_dict().values())
    name = f"trace{RANK}.json" if RANK > 0 else "trace.json"
    (folder / name).write_text(json.dumps(trace))


def digest(tensors):
    made = hashlib.md5()
    for tensor in tensors:
        made.update(tensor.detach().contiguous().numpy().tobytes())
    return made.hexdigest()


def live_nets():
    """How many models of earlier calls of train() are still there."""
    return sum(model() is not None for model in MADE)


def make_optimizer(model, name, hyp):
    groups = [], [], []
    for module in model.modules():
        if getattr(module, "bias", None) is not None:
            groups[2].append(module.bias)
        if isinstance(module, torch.nn.BatchNorm2d):
            groups[1].append(module.weight)
        elif getattr(module, "weight", None) is not None:
            groups[0].append(module.weight)
    if name == "SGD":
        made = torch.optim.SGD(groups[2], lr=hyp["lr0"], momentum=0.9, nesterov=True)
    else:
        made = getattr(torch.optim, name)(groups[2], lr=hyp["lr0"])
    made.add_param_group({"params": groups[0], "weight_decay": hyp["weight_decay"]})
    made.add_param_group({"params": groups[1], "weight_decay": 0.0})
    return made


def find_loss(pred, targets):
    wanted = targets[:, 2:].mean() if len(targets) else 0.5
    return sum(((d.float() - wanted) ** 2).mean() for d in pred)


def parse_opt():
    parser = argparse.ArgumentParser()
    parser.add_argument("--save-dir", default="run")
    parser.add_argument("--hyp", default=str(Path(__file__).parent / "hyp.yaml"))
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--imgsz", type=int, default=64)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--own", action="store_true")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--close-mosaic", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--context", default=None)
    parser.add_argument("--optimizer", default="SGD")
    parser.add_argument("--resume", default="")
    parser.add_argument("--amp", action="store_true")
    parser.add_argument("--fail", type=int, default=0)
    parser.add_argument("--exit", type=int, default=0)
    parser.add_argument("--evolve", type=int, default=1)
    return parser.parse_args()


def main(opt):
    if opt.exit:
        sys.exit(opt.exit)
    with open(opt.hyp) as file:
        hyp = yaml.safe_load(file)
    for _ in range(opt.evolve):
        train(opt, hyp.copy())
    if dist.is_initialized():  # gloo's threads must not outlive the interpreter
        dist.destroy_process_group()


if __name__ == "__main__":
    main(parse_opt())
