# SPDX-License-Identifier: MIT
"""Command line: the flags of the field's train_dual.py and ours."""

import argparse
import math
from pathlib import Path

import yaml

from .cfg import find_network

HYP_FOLDER = Path(__file__).parent / "hyp"
REQUIRED_HYP = [
    "lr0",
    "lrf",
    "momentum",
    "weight_decay",
    "warmup_epochs",
    "warmup_momentum",
    "warmup_bias_lr",
    "box",
    "cls",
    "dfl",
    "hsv_h",
    "hsv_s",
    "hsv_v",
    "degrees",
    "translate",
    "scale",
    "shear",
    "perspective",
    "flipud",
    "fliplr",
    "mosaic",
    "mixup",
    "copy_paste",
]
OPTIONAL_HYP = ["warmup_min_iterations"]
AT_LEAST_0 = {"lr0", "lrf", "weight_decay", "warmup_epochs", "warmup_bias_lr"}
AT_LEAST_0 |= {"warmup_min_iterations", "box", "cls", "dfl"}
MOMENTA = {"momentum", "warmup_momentum"}
PROBABILITIES = {"flipud", "fliplr", "mosaic", "mixup", "copy_paste"}
# Options that a run may leave unset, and what they are where they are set.
MAY_BE_UNSET = {
    "cache": str,
    "ckpt": str,
    "accumulate": int,
    "mosaic": (int, float),
    "mixup": (int, float),
    "amp": bool,
    "evolve": int,
    "bucket": str,
    "entity": str,
    "upload_dataset": str,
    "bbox_interval": int,
    "artifact_alias": str,
}
# Options of the field's loggers; there are none here.
LOGGING = ("bucket", "entity", "upload_dataset", "bbox_interval", "artifact_alias")
OFFICIAL_SCRIPT = "the official script has it: python -m yolov9mem train_dual.py"
MAX_SIZE = 16352  # px; OpenCV warps below 2**15, and a mosaic has twice the side
AUTO_BATCH = -1  # of --batch-size: what fits
SEEDS = -(2**63), 2**63 - 1  # PyTorch's generators take 64 bits


class OptionError(Exception):
    """An option that can't be used; the message names option, value and rule."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description="Train YOLOv9 or GELAN, with yolov9mem unless --stock."
    )
    _field_options(p)
    _field_switches(p)
    own = p.add_argument_group("yolov9mem")
    own.add_argument(
        "--ckpt",
        nargs="?",
        const="conv",
        metavar="KEEP",
        help="what backward finds kept: conv (the bare flag), min, all, or at most "
        "as many bytes as 6GB",
    )
    own.add_argument(
        "--accumulate", type=int, metavar="N", help="batches a step (default: 64/batch)"
    )
    own.add_argument("--mosaic", type=float, metavar="P", help="probability of mosaic")
    own.add_argument("--mixup", type=float, metavar="P", help="probability of mixup")
    own.add_argument(
        "--stock", action="store_true", help="stock PyTorch but for the loss"
    )
    own.add_argument("--demo", action="store_true", help="both ways on drawn shapes")
    own.add_argument(
        "--amp",
        action=argparse.BooleanOptionalAction,
        help="autocast: fp16 on CUDA (default), bf16 on the CPU (default off)",
    )
    return p


def _field_options(p: argparse.ArgumentParser) -> None:
    add = p.add_argument
    add("--weights", default="", help="checkpoint to start from")
    add("--cfg", default="", help="yolov9-t|s|m|c|e, gelan-t|s|m|c|e or a file of one")
    add("--data", default="", help="data.yaml; without it: drawn shapes")
    add("--hyp", default="hyp.scratch-high.yaml", help="file, or name in yolov9/hyp")
    add("--epochs", type=int, default=100)
    add(
        "--batch-size",
        "--batch",
        type=int,
        default=16,
        help="over all devices; -1: what fits",
    )
    add("--imgsz", "--img", "--img-size", type=int, default=640, help="pixels")
    add("--resume", nargs="?", const=True, default=False, help="go on from last.pt")
    add("--cache", nargs="?", const="ram", metavar="ram", help="keep images decoded")
    add("--device", default="", help="cpu, or CUDA numbers such as 0 or 0,1")
    add("--optimizer", choices=["SGD", "Adam", "AdamW", "LION"], default="SGD")
    add("--workers", type=int, default=8, help="loader processes at most")
    add("--project", default="runs/train")
    add("--name", default="exp")
    add("--label-smoothing", type=float, default=0.0, help="no effect on this loss")
    add("--patience", type=int, default=100, help="epochs without improvement, 0: any")
    add("--freeze", nargs="+", type=int, default=[0], help="first N, or layer numbers")
    add("--save-period", type=int, default=-1, help="also keep every Nth epoch")
    add("--seed", type=int, default=0)
    add("--min-items", type=int, default=0, help="least objects an image must have")
    add("--close-mosaic", type=int, default=0, help="last epochs without mosaic")
    add("--evolve", type=int, nargs="?", const=300, help="official script only")
    for name in LOGGING:
        kind = int if name == "bbox_interval" else str
        optional = {"nargs": "?", "const": "train"} if name == "upload_dataset" else {}
        add(f"--{name}", type=kind, help="accepted; no loggers here", **optional)
    add("--local_rank", "--local-rank", type=int, default=-1, help=argparse.SUPPRESS)


def _field_switches(p: argparse.ArgumentParser) -> None:
    switches = {
        "quad": "official script only",
        "rect": "rectangular batches, no mosaic",
        "nosave": "only the last checkpoint",
        "noval": "validate only the last epoch",
        "noautoanchor": "accepted; these models have no anchor boxes",
        "noplots": "no pictures",
        "image-weights": "draw images by how badly their classes do",
        "multi-scale": "vary the image size by half",
        "single-cls": "all classes as one",
        "sync-bn": "batch norm over all processes (CUDA)",
        "exist-ok": "write into an existing folder",
        "cos-lr": "cosine schedule",
        "flat-cos-lr": "constant, then cosine schedule",
        "fixed-lr": "constant rate",
    }
    for name, text in switches.items():
        p.add_argument(f"--{name}", action="store_true", help=text)


def check(opt: argparse.Namespace) -> None:
    """Raises OptionError for values that can't work."""
    _check_official(opt)
    _check_numbers(opt)
    if opt.stock and opt.ckpt:
        raise OptionError("--ckpt is yolov9mem's and can't be combined with --stock")
    if not opt.cfg and not opt.weights and not opt.resume:
        raise OptionError("--cfg or --weights must be given, e.g. --cfg yolov9-s")
    if opt.cfg:
        try:
            find_network(opt.cfg)
        except ValueError as error:
            raise OptionError(f"--cfg: {error}") from None
    if opt.label_smoothing:
        print("WARNING --label-smoothing: the task-aligned loss has no use for it")
    for name in LOGGING:
        if getattr(opt, name) is not None:
            print(f"WARNING --{name}: no effect, this script has no loggers")


def _check_official(opt: argparse.Namespace) -> None:
    """Raises OptionError for what the field's script can do and this one can't."""
    missing = {
        "--evolve": opt.evolve is not None,
        "--quad": opt.quad,
        "--cache disk": opt.cache == "disk",
        "--optimizer LION": opt.optimizer == "LION",
    }
    for option, given in missing.items():
        if given:
            raise OptionError(f"{option} is not in this script; {OFFICIAL_SCRIPT}")
    if opt.cache not in (None, "ram"):
        raise OptionError(f"--cache is {opt.cache!r}: must be ram")


def _check_numbers(opt: argparse.Namespace) -> None:
    for name in ("epochs", "batch_size", "imgsz", "accumulate"):
        value = getattr(opt, name)
        if (name, value) == ("batch_size", AUTO_BATCH):
            continue
        if value is not None and value < 1:
            ways = ", or -1 for what fits" if name == "batch_size" else ""
            option = f"--{name.replace('_', '-')}"
            raise OptionError(f"{option} is {value}: must be at least 1{ways}")
    if opt.imgsz > MAX_SIZE:
        raise OptionError(f"--imgsz is {opt.imgsz}: must be at most {MAX_SIZE}")
    for name, values in (("workers", [opt.workers]), ("freeze", opt.freeze)):
        if min(values) < 0:
            raise OptionError(f"--{name} is {min(values)}: must be at least 0")
    if not SEEDS[0] <= opt.seed <= SEEDS[1]:
        raise OptionError(f"--seed is {opt.seed}: must be from -2**63 to 2**63 - 1")
    for name in ("mosaic", "mixup"):
        value = getattr(opt, name)
        if value is not None and not 0 <= value <= 1:
            raise OptionError(f"--{name} is {value}: a probability from 0 to 1")


def is_value(name: str, value: object, like: object) -> bool:
    """Can the option have it? ``like``: a value that it has had."""
    if name in MAY_BE_UNSET:
        whole = MAY_BE_UNSET[name] is bool or not isinstance(value, bool)
        return value is None or (whole and isinstance(value, MAY_BE_UNSET[name]))
    return isinstance(value, type(like))


def read_hyp(name: str, opt: argparse.Namespace) -> dict:
    """Hyper-parameters by file or by name, with --mosaic and --mixup on top."""
    tried = [Path(name)]
    if Path(name).parent in (Path(), Path("data/hyps")):  # where the official ones are
        tried.append(HYP_FOLDER / Path(name).name)
    path = next((p for p in tried if p.is_file()), None)
    if path is None:
        known = ", ".join(sorted(p.name for p in HYP_FOLDER.glob("*.yaml")))
        raise OptionError(f"--hyp {name!r} is neither a file nor one of {known}")
    try:
        hyp = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise OptionError(f"--hyp {path} is not valid YAML: {error}") from error
    missing = [k for k in REQUIRED_HYP if not isinstance(hyp, dict) or k not in hyp]
    if missing:
        raise OptionError(f"--hyp {path}: missing {', '.join(missing)}")
    for key in [*REQUIRED_HYP, *(k for k in OPTIONAL_HYP if k in hyp)]:
        hyp[key] = _number(hyp[key], f"--hyp {path}: {key}")
        _check_range(key, hyp[key], f"--hyp {path}: {key} is {hyp[key]}")
    for key in ("mosaic", "mixup"):
        if getattr(opt, key) is not None:
            hyp[key] = getattr(opt, key)
    return hyp


def _number(value: object, name: str) -> float | int:
    """The value; YAML reads 1e-3, which has no point, as text."""
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if not isinstance(number, (int, float)) or isinstance(number, bool):
        raise OptionError(f"{name} is {value!r}, must be a number")
    return number


def _check_range(key: str, number: float | int, found: str) -> None:
    if not math.isfinite(number):
        raise OptionError(f"{found}, must be finite")
    if key in AT_LEAST_0 and number < 0:
        raise OptionError(f"{found}, must be at least 0")
    if key in MOMENTA and not 0 <= number < 1:
        raise OptionError(f"{found}, must be at least 0 and below 1")
    if key in PROBABILITIES and not 0 <= number <= 1:
        raise OptionError(f"{found}, must be from 0 to 1")


def schedule_kind(opt: argparse.Namespace) -> str:
    if opt.cos_lr:
        return "cos"
    if opt.flat_cos_lr:
        return "flat-cos"
    return "fixed" if opt.fixed_lr else "linear"


def run_folder(opt: argparse.Namespace) -> Path:
    """project/name, or name2, name3, ... where it exists."""
    folder = Path(opt.project) / opt.name
    number = 2
    try:
        while folder.exists() and not opt.exist_ok:
            folder = Path(opt.project) / f"{opt.name}{number}"
            number += 1
    except OSError as error:  # a name that is too long, a folder that is closed
        raise OptionError(f"--project, --name: {error}") from None
    return folder
