# SPDX-License-Identifier: MIT
"""The training run: data, model, epochs, validation, checkpoints."""

import argparse
import math
import random
import time
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from . import batch, checkpoints, detector, memory, options, swap
from .cfg import Network, find_network
from .dataset import DetectionDataset, make_loader
from .detector import unwrapped
from .ema import ModelEMA
from .environment import (
    Processes,
    autocast_options,
    join_processes,
    seed_everything,
    select_devices,
)
from .files import prepare_folder
from .labels import (
    Records,
    list_images,
    read_data_yaml,
    read_records,
    report_problems,
)
from .model import load_matching
from .optim import NOMINAL_BATCH, Warmup, make_optimizer, make_step, schedule
from .results import ResultsFile, final_table
from .step import STRIDE, TrainingStep, sides_of_multi_scale
from .val import Metrics, validate

BAR_SECONDS = 0.5  # from one refresh of the progress bar to the next


class TrainingError(Exception):
    """Training can't go on; the message says where and why."""


class Trainer:
    """One run of train_dual.py; `run` trains and returns the last metrics."""

    def __init__(self, opt: argparse.Namespace, hyp: dict, folder: Path) -> None:
        self.opt, self.hyp, self.folder = opt, dict(hyp), folder
        self.processes = Processes.from_environment()
        batch.check(opt.batch_size, self.processes.world)
        self.devices = select_devices(opt.device, self.processes)
        self.device = self.devices[0]
        join_processes(self.processes, self.device)
        seed_everything(opt.seed + 1 + self.processes.rank)
        self.autocast = autocast_options(opt.amp, self.device)
        fp16 = self.autocast["enabled"] and self.device.type == "cuda"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=fp16)
        self.saved = checkpoints.load(opt.weights) if opt.weights else None
        self.start_epoch, self.best_fitness, self.best_epoch = 0, 0.0, 0
        self._set_size()
        self._find_network()
        records = self._read_data()
        if opt.batch_size == options.AUTO_BATCH:
            opt.batch_size = self._largest_batch(records["train"])
        self._open_data(records)
        self._build_model()
        self._build_optimizer()
        self.model = detector.wrap(self.model, opt, self.processes, self.devices)
        self.loss = swap.detection_loss(unwrapped(self.model).model[-1], self.hyp)
        self.train_batch = TrainingStep(
            self.model,
            self.loss,
            self.scaler,
            self.finish,
            self.device,
            self.autocast,
            self.processes.world,
        )
        if self.processes.is_main:
            self._write_settings()

    @property
    def batch_size(self) -> int:
        """Images a batch of this process."""
        return self.opt.batch_size // self.processes.world

    def _set_size(self) -> None:
        size = max(math.ceil(self.opt.imgsz / STRIDE) * STRIDE, 2 * STRIDE)
        if size != self.opt.imgsz and self.processes.is_main:
            least = self.opt.imgsz < size == 2 * STRIDE
            rule = f"at least {size}" if least else f"a multiple of {STRIDE}"
            print(f"WARNING --img {self.opt.imgsz} must be {rule}: {size} is taken")
        self.imgsz = size

    def _largest_batch(self, records: Records) -> int:
        run = batch.Run(
            self.opt,
            self.hyp,
            self.name,
            self.nc,
            self.imgsz,
            self.processes,
            self.devices,
            self.autocast,
            [r for r in records.items if len(r.labels) >= self.opt.min_items],
        )
        return batch.choose(run)

    def _read_data(self) -> dict[str, Records]:
        main = self.processes.is_main
        data = read_data_yaml(self.opt.data)
        self.names = {0: "item"} if self.opt.single_cls else data["names"]
        self.nc = len(self.names)
        nc = None if self.opt.single_cls else self.nc
        records = {}
        # The main process reads first and writes the label cache for the others.
        if self.processes.is_distributed and not main:
            dist.barrier()
        for split in ("train", "val"):
            images = list_images(data[split])
            records[split] = read_records(images, nc, split, quiet=not main)
            if main:
                report_problems(records[split], split)
        if self.processes.is_distributed and main:
            dist.barrier()
        return records

    def _open_data(self, records: dict[str, Records]) -> None:
        opt, main = self.opt, self.processes.is_main
        common = {"hyp": self.hyp, "batch_size": self.batch_size}
        common["single_cls"] = opt.single_cls
        # Images drawn by weight do not come in the batches that share a shape.
        rect = opt.rect and not opt.image_weights
        if opt.rect and not rect and main:
            print("WARNING --rect: off, as --image-weights draws images one by one")
        self.dataset = DetectionDataset(
            records["train"],
            self.imgsz,
            augment=True,
            rect=rect,
            min_items=opt.min_items,
            sample=None if opt.stock else swap.training_sample(),
            **common,
        )
        self.val_set = DetectionDataset(
            records["val"], self.imgsz, augment=False, rect=True, **common
        )
        if opt.cache:
            kept = self.dataset.cache_images() + self.val_set.cache_images()
            print(f"cached images: {kept / 1e6:.0f} MB")
        self.loader = make_loader(
            self.dataset,
            self.batch_size,
            opt.workers,
            shuffle=not rect,
            rank=self.processes.rank,
            seed=opt.seed,
        )
        self.val_loader = make_loader(
            self.val_set, self.batch_size, opt.workers, shuffle=False
        )

    def _find_network(self) -> None:
        opt = self.opt
        network = find_network(opt.cfg) if opt.cfg else Network(self.saved["name"], "")
        self.name = network.name
        if network.note and self.processes.is_main:
            print(network.note)

    def _build_model(self) -> None:
        opt, saved = self.opt, self.saved
        model = detector.make(self.name, self.nc, opt.freeze)
        model.names = self.names
        if saved:
            state = saved["model"]
            if not opt.resume and saved.get("ema"):
                state = saved["ema"]
            try:
                count = load_matching(model, state)
            except ValueError as error:
                raise checkpoints.CheckpointError(f"{opt.weights}: {error}") from error
            print(f"{count}/{len(model.state_dict())} tensors from {opt.weights}")
        self.model = model.to(self.device)

    def _build_optimizer(self) -> None:
        opt, hyp, model = self.opt, self.hyp, self.model
        self.warmup = Warmup(hyp, len(self.loader), opt.batch_size, opt.accumulate)
        hyp = dict(hyp)
        hyp["weight_decay"] *= opt.batch_size * self.warmup.accumulate / NOMINAL_BATCH
        self.ema = ModelEMA(model) if self.processes.is_main else None
        self.optimizer = make_optimizer(model, opt.optimizer, hyp, self.ema, opt.stock)
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.factor = schedule(options.schedule_kind(opt), hyp["lrf"], opt.epochs)
        if opt.resume:
            self._resume()
        self.finish = make_step(model, self.optimizer, self.scaler, self.ema)

    def _resume(self) -> None:
        saved = self.saved
        if saved["epoch"] < 0 or not saved.get("optimizer"):
            raise options.OptionError(
                f"--resume {self.opt.weights}: this training is finished; "
                "start another from it with --weights"
            )
        if saved["nc"] != self.nc:
            raise options.OptionError(
                f"--resume {self.opt.weights}: it was trained with {saved['nc']} "
                f"classes, {self.opt.data} has {self.nc} now; start another training "
                "from it with --weights"
            )
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.ema is not None:
            self.ema.ema.load_state_dict(saved["ema"])
            self.ema.updates = saved["updates"]
        self.start_epoch = saved["epoch"] + 1
        self.best_fitness = saved["best_fitness"]
        self.best_epoch = saved["epoch"]
        print(f"resuming {self.opt.weights} at epoch {self.start_epoch}")

    def _write_settings(self) -> None:
        settings = {"opt.yaml": vars(self.opt), "hyp.yaml": self.hyp}
        try:
            prepare_folder(self.folder, settings)
            self.results = ResultsFile(self.folder, keep=self.start_epoch)
        except OSError as error:
            raise options.OptionError(
                f"--project, --name: {self.folder} can't be written: {error}"
            ) from error

    def run(self) -> Metrics:
        """Trains all epochs; the metrics of the last validation."""
        opt, started = self.opt, time.perf_counter()
        metrics, saved_all = Metrics(), True
        if self.processes.is_main:
            kind = "stock PyTorch" if opt.stock else "yolov9mem"
            print(f"{kind}, checkpointed: {opt.ckpt or 'no'}; writing {self.folder}")
        for epoch in range(self.start_epoch, opt.epochs):
            losses = self._train_epoch(epoch, metrics)
            stop = False
            if self.processes.is_main:
                final = epoch + 1 == opt.epochs
                overdue = 0 < opt.patience <= epoch - self.best_epoch
                if not opt.noval or final or overdue:
                    metrics = self._validate()
                if opt.ckpt and epoch == self.start_epoch:
                    print(swap.report(unwrapped(self.model)))
                self._note_epoch(epoch, losses, metrics)
                stop = overdue and epoch != self.best_epoch
                if not opt.nosave or final or stop:
                    saved_all = self._save(epoch)
            if self._all_stop(stop):
                break
        if self.processes.is_main:
            self._finish(metrics, time.perf_counter() - started, strip=saved_all)
            if not saved_all:
                raise TrainingError("the last checkpoint could not be written")
        if self.processes.is_distributed:
            # gloo's threads need the GIL to let go of a broadcast's tensors, and its end
            # joins them with the GIL held (PyTorch 2.4): let them finish first.
            dist.barrier()
            dist.destroy_process_group()
        return metrics

    def _train_epoch(self, epoch: int, metrics: Metrics) -> Tensor:
        """Mean (box, cls, dfl) losses of an epoch."""
        opt = self.opt
        self.model.train()
        if opt.image_weights:
            counts = self.dataset.class_counts(self.nc)
            doing = np.array([metrics.per_class.get(c, (0, 0))[1] for c in self.names])
            self.dataset.draw_weighted((1 - doing) ** 2 / np.maximum(counts, 1))
        if opt.close_mosaic and epoch >= opt.epochs - opt.close_mosaic:
            self.dataset.mosaic = False
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.factor(epoch)
        if self.processes.is_distributed:
            self.loader.sampler.set_epoch(epoch)
        self.optimizer.zero_grad()
        total = torch.zeros(3, dtype=torch.float64, device=self.device)
        quiet = not self.processes.is_main
        bar = tqdm(self.loader, disable=quiet, mininterval=BAR_SECONDS)
        shown = -math.inf
        for i, (images, targets, _, _) in enumerate(bar):
            iteration = i + len(self.loader) * epoch
            self.warmup.apply(self.optimizer, iteration, self.factor(epoch))
            total += self._train_batch(images, targets, epoch)
            # To show the losses is to wait for the device: a GPU would stand idle.
            due = time.monotonic() - shown >= BAR_SECONDS or i + 1 == len(self.loader)
            if due and not bar.disable:
                self._describe(bar, epoch, total / (i + 1), targets, images)
                shown = time.monotonic()
        return total.cpu() / len(self.loader)

    def _describe(
        self, bar: tqdm, epoch: int, mean: Tensor, targets: Tensor, images: Tensor
    ) -> None:
        """The bar's text, with the mean (box, cls, dfl) losses so far."""
        box, cls, dfl = mean.tolist()
        used = memory.in_use(self.device) / 1e9
        bar.set_description(
            f"{epoch + 1}/{self.opt.epochs} {used:.2f} GB  box {box:.3f} cls {cls:.3f} "
            f"dfl {dfl:.3f}  {len(targets)} objects {images.shape[-1]} px",
            refresh=False,
        )

    def _train_batch(self, images: Tensor, targets: Tensor, epoch: int) -> Tensor:
        """(box, cls, dfl) losses, on the device."""
        side = None
        if self.opt.multi_scale:
            side = random.choice(sides_of_multi_scale(self.imgsz))
        try:
            return self.train_batch(images, targets, self.warmup.accumulate, side)
        except FloatingPointError as error:
            raise TrainingError(
                f"{error} in epoch {epoch + 1}: lower lr0 in the hyp file; the "
                f"checkpoints in {self.folder} are of earlier epochs"
            ) from error
        except ValueError as error:  # a budget is known to be too small only here
            if not str(error).startswith("keep:"):
                raise
            raise options.OptionError(f"--ckpt {self.opt.ckpt}: {error}") from error

    def _validate(self) -> Metrics:
        return validate(
            self.ema.ema, self.val_loader, self.loss, self.device, self.autocast
        )

    def _note_epoch(self, epoch: int, losses: Tensor, metrics: Metrics) -> None:
        # Equal counts as better: early epochs, and all without validation, have zero.
        if metrics.fitness >= self.best_fitness:
            self.best_fitness, self.best_epoch = metrics.fitness, epoch
        rates = [group["lr"] for group in self.optimizer.param_groups]
        used = memory.peak(self.device)
        try:
            self.results.add(epoch, losses.tolist(), metrics, rates, used)
        except OSError as error:  # the checkpoint is written all the same
            print(f"WARNING {self.results.path} was not written: {error}")
        print(
            f"  epoch {epoch + 1}: precision {metrics.precision:.3f} recall "
            f"{metrics.recall:.3f} mAP50 {metrics.map50:.3f} mAP50-95 {metrics.map:.3f}"
        )

    def _save(self, epoch: int) -> bool:
        """Writes last.pt, best.pt and periodic files; False if one could not be."""
        model = unwrapped(self.model)
        content = {
            "epoch": epoch,
            "best_fitness": self.best_fitness,
            "name": self.name,
            "nc": self.nc,
            "names": self.names,
            "model": model.state_dict(),
            "ema": self.ema.ema.state_dict(),
            "updates": self.ema.updates,
            "optimizer": self.optimizer.state_dict(),
            "opt": vars(self.opt),
            "hyp": self.hyp,
            "date": datetime.now(timezone.utc).isoformat(),
        }
        weights = self.folder / "weights"
        paths = [weights / "last.pt"]
        if epoch == self.best_epoch or not (weights / "best.pt").exists():
            paths.append(weights / "best.pt")
        if self.opt.save_period > 0 and epoch % self.opt.save_period == 0:
            paths.append(weights / f"epoch{epoch}.pt")
        try:
            for path in paths:
                checkpoints.save(content, path)
        except checkpoints.CheckpointError as error:
            print(f"WARNING {error}")
            return False
        return True

    def _all_stop(self, stop: bool) -> bool:
        if not self.processes.is_distributed:
            return stop
        decision = [stop]
        dist.broadcast_object_list(decision, 0)
        return decision[0]

    def _finish(self, metrics: Metrics, seconds: float, strip: bool) -> None:
        """strip: else a last.pt of an earlier epoch stays one to resume."""
        if not self.opt.noplots:
            self.results.plot()
        print(final_table(metrics, self.names, seconds, memory.peak(self.device)))
        for name in ("last.pt", "best.pt") if strip else ():
            path = self.folder / "weights" / name
            if path.is_file():
                checkpoints.strip(path)
