# SPDX-License-Identifier: MIT
"""What --cfg names: one of the networks that are built in, by name or by file.

A file of the field lists the layers as rows [from, number, block, args]. It is read to
find the built-in network that it describes; other networks can't be trained here.
"""

from dataclasses import dataclass
from pathlib import Path, PurePath

import yaml

from .architectures import layer_table, model_name, model_names

OFFICIAL_FOLDER = PurePath("models/detect")
SUFFIXES = (".yaml", ".yml")
# Output widths of these blocks are rounded up to multiples of 8.
ROUNDED = {"Conv", "ELAN1", "RepNCSPELAN4", "AConv", "ADown", "SPPELAN"}
UPSAMPLING = [None, 2, "nearest"]
# Official scripts by what the name of the head, the last layer, begins with.
SCRIPTS = {"Dual": "train_dual.py", "Triple": "train_triple.py", "": "train.py"}
PLAIN = {"depth_multiple": 1, "width_multiple": 1, "activation": "nn.SiLU()"}


@dataclass(frozen=True)
class Network:
    """A built-in network, and what has to be said of the way it was found, or ""."""

    name: str
    note: str


def find_network(cfg: str) -> Network:
    """Raises ValueError for a name or a file that is none of the built-in networks."""
    path = Path(cfg)
    if path.suffix in SUFFIXES and path.is_file():
        return _in_file(path)
    if path.parent not in (Path(), OFFICIAL_FOLDER):
        raise ValueError(f"the file {cfg!r} does not exist")
    name = model_name(cfg)
    if path.suffix in SUFFIXES:
        return Network(name, f"--cfg {cfg}: no such file; the built-in {name} is used")
    return Network(name, "")


def _in_file(path: Path) -> Network:
    try:
        content = yaml.safe_load(path.read_text())
        rows = _relative(_described(content))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} describes no network: {error}") from error
    for name in model_names():
        if rows == _relative(layer_table(name)):
            return Network(name, f"--cfg {path}: it is the built-in {name}")
    raise ValueError(
        f"{path} describes another network than {', '.join(model_names())}, which are "
        "all that this script has; the official script trains it: python -m yolov9mem "
        f"{_official_script(content)} --cfg {path}"
    )


def _official_script(content: dict) -> str:
    """The one whose loss takes what the network's head gives."""
    layers = content["backbone"] + content["head"]
    head = str(layers[-1][2]) if layers else ""
    return next(s for begin, s in SCRIPTS.items() if head.startswith(begin))


def _described(content: object) -> list:
    """Rows [from, block, args] of a file, None for a layer that no built-in has.

    There are no rows where the multiples or the activation make all layers such.
    """
    if not isinstance(content, dict):
        raise ValueError("it is no mapping")
    rows: list = []
    for key in ("backbone", "head"):
        part = content.get(key)
        if not isinstance(part, list):
            raise ValueError(f"{key!r} is {part!r}, must be a list of layers")
        for row in part:
            if not isinstance(row, list) or len(row) != 4:
                raise ValueError(
                    f"{key!r} has {row!r}, must be [from, number, block, args]"
                )
            rows.append(_row(*row))
    changed = any(
        content.get(k, value) not in (None, value) for k, value in PLAIN.items()
    )
    return [] if changed else rows


def _row(source: object, number: object, block: object, args: object) -> list | None:
    if number != 1 or not isinstance(block, str) or not isinstance(args, list):
        return None
    block = block.removeprefix("nn.")
    if block == "Upsample":
        known = [None if a == "None" else a for a in args] == UPSAMPLING
        return [source, block, []] if known else None
    if block in ("DDetect", "DualDDetect"):  # the classes are those of the data
        return [source, block, []] if len(args) == 1 else None
    if block in ROUNDED and args and isinstance(args[0], int):
        args = [-(-args[0] // 8) * 8, *args[1:]]
    return [source, block, args]


def _relative(rows: list) -> list:
    """The rows with -1 for each layer just before, and lists for tuples."""

    def move(source: object, i: int) -> object:
        if isinstance(source, (list, tuple)):
            return [move(j, i) for j in source]
        return -1 if source == i - 1 else source

    return [
        row and [move(row[0], i), row[1], _lists(row[2])] for i, row in enumerate(rows)
    ]


def _lists(value: object) -> object:
    return [_lists(v) for v in value] if isinstance(value, (list, tuple)) else value
