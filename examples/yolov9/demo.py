# SPDX-License-Identifier: MIT
"""The demo: one small training with and without yolov9mem, and where memory goes."""

import argparse
import time
from pathlib import Path

from . import options
from .plots import plot_memory
from .probe import measure
from .synthetic import make_shapes
from .train import Trainer

PICTURE_BATCH = 4  # images at most in the step that is pictured
# Of both trainings, whatever the command line says.
SETTINGS = {
    "name": "demo",
    "cfg": "yolov9-t",
    "hyp": "hyp.short.yaml",
    "imgsz": 96,
    "batch_size": 8,
    "epochs": 9,
    "accumulate": 1,
    "close_mosaic": 4,
    "cos_lr": True,
    "flat_cos_lr": False,
    "fixed_lr": False,
    "device": "cpu",
    "workers": 0,
    "cache": "ram",
}


def run_demo(opt: argparse.Namespace) -> None:
    """Trains both ways on drawn shapes, then prints the memory table.

    Raises OptionError for --resume and for values that can't work.
    """
    _check_given(opt)
    folder = options.run_folder(argparse.Namespace(**vars(opt) | SETTINGS))
    rows = []
    for stock in (True, False):
        name = "stock" if stock else "yolov9mem"
        print(f"\n== {name}")
        mine = _demo_options(opt, stock)
        options.check(mine)
        hyp = options.read_hyp(mine.hyp, mine)
        started = time.perf_counter()
        metrics = Trainer(mine, hyp, folder / name).run()
        rows.append((name, metrics.map50, time.perf_counter() - started))
    print("\ntraining      mAP50   seconds")
    for name, map50, seconds in rows:
        print(f"{name:12}  {map50:5.3f}  {seconds:8.1f}")
    print("(after so few steps mAP50 hangs on the seed: other seeds change places)")
    memory_table("yolov9-s", 320, folder)


def _check_given(opt: argparse.Namespace) -> None:
    """Refuses what the demo can't do, and tells which options it has no use for."""
    if opt.resume:
        raise options.OptionError(
            "--resume can't be combined with --demo, whose trainings begin anew"
        )
    usual = options.parser().parse_args([])
    unused = [
        f"--{name.replace('_', '-')}"
        for name in (*SETTINGS, "data", "stock", "ckpt")
        if getattr(opt, name) not in (getattr(usual, name), SETTINGS.get(name))
    ]
    if unused:
        print(
            f"WARNING {', '.join(unused)}: no effect, --demo trains {SETTINGS['cfg']} on "
            f"drawn shapes at {SETTINGS['imgsz']} px for {SETTINGS['epochs']} epochs on "
            "the CPU, both ways"
        )


def _demo_options(opt: argparse.Namespace, stock: bool) -> argparse.Namespace:
    wanted = SETTINGS | {
        "data": str(make_shapes(Path("runs/data/shapes"))),
        "stock": stock,
        "ckpt": None if stock else "conv",
    }
    return argparse.Namespace(**vars(opt) | wanted)


def memory_table(name: str, size: int, folder: Path) -> None:
    """Held and peak bytes of one step: stock, conv and min; table and picture."""
    probes = {}
    for label, keep in (
        ("stock", None),
        ("--ckpt conv", "conv"),
        ("--ckpt min", "min"),
    ):
        probes[label] = measure(name, size, PICTURE_BATCH, keep)
    first = probes["stock"]
    print(f"\n{name}, {size} px, batch {PICTURE_BATCH}: memory of one training step")
    print(f"{'':12} {'held for backward':>22} {'peak above idle':>22}")
    for label, probe in probes.items():
        cells = ""
        for key in ("held_bytes", "peak_bytes"):
            cells += f" {probe[key] / 1e6:9.1f} MB ({probe[key] / first[key]:6.3f})"
        print(f"{label:12}{cells}")
    target = folder / "memory.png"
    plot_memory(probes, f"{name}, {size} px, batch {PICTURE_BATCH}", target)
    print(f"picture: {target}")


def picture_of_memory(opt: argparse.Namespace, name: str, folder: Path) -> None:
    """memory.png of a finished run on the CPU: its way of training against stock."""
    batch = min(opt.batch_size, PICTURE_BATCH)
    keeps = {"stock": None} | ({f"--ckpt {opt.ckpt}": opt.ckpt} if opt.ckpt else {})
    try:
        probes = {
            label: measure(name, opt.imgsz, batch, k) for label, k in keeps.items()
        }
    except RuntimeError as error:
        print(f"WARNING no memory.png: {error}")
        return
    title = f"{name}, {opt.imgsz} px, batch {batch}"
    plot_memory(probes, title, folder / "memory.png")
