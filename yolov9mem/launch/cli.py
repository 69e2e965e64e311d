# SPDX-License-Identifier: MIT
"""The command line: our flags, the target, and what reaches the target untouched."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yolov9mem._checks import check_flag, check_text
from yolov9mem._keep import parse_keep

PROG = "python -m yolov9mem"
KEEPS = ("conv", "min", "all", "off")

HELP = f"""\
usage: {PROG} [FLAGS] SCRIPT [ARGUMENTS] [FLAGS]
       {PROG} [FLAGS] -m MODULE [ARGUMENTS] [FLAGS]
       {PROG}                      prints what is installed here

Runs a training script as it is, with yolov9mem's parts swapped in where it builds its
model, optimizer, moving average and data set.

flags of yolov9mem (anything else reaches the script untouched; a flag that the script
itself defines stays the script's; so is all after --, which may also stand before the
script, where it does not reach it):
  --ckpt [KEEP]   what the model keeps for backward: conv (convolution outputs, no
                  convolution runs twice; the default, with or without the flag), min
                  (the smallest peak), all (as PyTorch does), off (stock model), or
                  a size such as 6GB (the cheapest that fits it)
  --accumulate N  the optimizer steps every N batches, from the first batch on
  --mosaic P      probability of mosaic, from 0 to 1
  --mixup P       probability of mixup, from 0 to 1
  --stock-loss    the script's own loss, also where ours gives the same numbers
  --no-amp        no automatic mixed precision
  --report FILE   writes the tables shown at start and end as JSON
  --strict        it is an error if a part of the model cannot be swapped, or if
                  there is nothing to swap
  --help          this text
"""


class UsageError(ValueError):
    """A command line that makes no sense; the text names flag, value and rule."""


@dataclass(frozen=True)
class Settings:
    """What the flags ask for; None: left to the script."""

    keep: str = "conv"
    accumulate: int | None = None
    mosaic: float | None = None
    mixup: float | None = None
    amp: bool = True
    report: Path | None = None
    strict: bool = False
    stock_loss: bool = False

    def __post_init__(self) -> None:
        """Values given in Python, by patch(), are those that words would be read as."""
        check_text("ckpt", self.keep)
        _keep("--ckpt", self.keep)
        for name in ("amp", "strict", "stock_loss"):
            check_flag(name, getattr(self, name))
        for name in ("accumulate", "mosaic", "mixup"):
            given, read = getattr(self, name), FLAGS[f"--{name}"].read
            if given is not None and read is not None:
                object.__setattr__(self, name, read(f"--{name}", str(given)))

    def flags(self) -> list[str]:
        """The flags that bring these settings about."""
        made = [] if self.keep == "conv" else ["--ckpt", self.keep]
        for name in ("accumulate", "mosaic", "mixup"):
            value = getattr(self, name)
            made += [] if value is None else [f"--{name}", number(value)]
        made += ["--stock-loss"] if self.stock_loss else []
        return made + ([] if self.amp else ["--no-amp"])


@dataclass(frozen=True)
class Command:
    """A parsed command line."""

    settings: Settings
    target: str  # a file, or a module if is_module
    is_module: bool
    arguments: tuple[str, ...]  # of the target, sys.argv[1:]
    left_to_script: tuple[str, ...] = ()  # flags of ours that the script defines too


def number(value: float) -> str:
    """The value in full, whole numbers without a point."""
    return str(int(value)) if value == int(value) else repr(value)


def _list(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _count(flag: str, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise UsageError(f"{flag}: is {text!r}, must be a whole number of at least 1")
    return value


def _probability(flag: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise UsageError(f"{flag}: is {text!r}, must be a number from 0 to 1")
    return value


def _keep(flag: str, text: str) -> str:
    if text not in KEEPS:
        try:
            parse_keep(text if _is_keep(str(text)) else "")
        except ValueError:
            raise UsageError(
                f"{flag}: is {text!r}, must be one of {_list(KEEPS)}, or a size such "
                "as '6GB'"
            ) from None
    return text


def _is_keep(word: str) -> bool:
    """A number without a unit is none: it may be an argument of the script."""
    return word in KEEPS or re.fullmatch(r"\d+(\.\d+)?[A-Za-z]+", word) is not None


def _file(flag: str, text: str) -> Path:
    path = Path(text)
    if not text or path.is_dir() or not path.resolve().parent.is_dir():
        raise UsageError(f"{flag}: {text!r} is no file in an existing folder")
    return path.resolve()


@dataclass(frozen=True)
class _Flag:
    setting: str
    read: Callable[[str, str], Any] | None = None  # None: the flag has no value
    bare: Any = None  # the value of the flag alone; None: it needs one


FLAGS = {
    "--ckpt": _Flag("keep", _keep, "conv"),
    "--accumulate": _Flag("accumulate", _count),
    "--mosaic": _Flag("mosaic", _probability),
    "--mixup": _Flag("mixup", _probability),
    "--stock-loss": _Flag("stock_loss", None, True),
    "--no-amp": _Flag("amp", None, False),
    "--report": _Flag("report", _file),
    "--strict": _Flag("strict", None, True),
}


@dataclass
class _Reader:
    """Goes through the words of a command line."""

    words: Sequence[str]
    at: int = 0
    found: dict[str, Any] = field(default_factory=dict)

    def is_ours(self) -> bool:
        return self.words[self.at].partition("=")[0] in FLAGS

    def take(self) -> None:
        """Reads the flag here, with its value."""
        name, equals, value = self.words[self.at].partition("=")
        flag = FLAGS[name]
        self.at += 1
        if flag.setting in self.found:
            raise UsageError(f"{name}: given twice")
        if flag.read is None:
            if equals:
                raise UsageError(f"{name}: takes no value, is given {value!r}")
            self.found[flag.setting] = flag.bare
        elif equals or self._takes_next(flag):
            if not equals:
                value, self.at = self.words[self.at], self.at + 1
            self.found[flag.setting] = flag.read(name, value)
        elif flag.bare is not None:
            self.found[flag.setting] = flag.bare
        else:
            raise UsageError(f"{name}: needs a value")

    def _takes_next(self, flag: _Flag) -> bool:
        """Is the next word the value of the flag?"""
        if self.at >= len(self.words):
            return False
        word = self.words[self.at]
        if flag.bare is None:
            return not word.startswith("--")
        return _is_keep(word) or word.isalpha()  # another plain word is a bad value


def parse(
    words: Sequence[str],
    own_flags: Callable[[str, bool], Collection[str]] = lambda target, is_module: (),
) -> Command | None:
    """The command of sys.argv[1:]; None: --help was asked for.

    Args:
        own_flags: (target, is_module) -> the flags that the target itself defines.

    Raises:
        UsageError: an unknown flag before the target, a bad value, no target.
    """
    reader = _Reader(words)
    target, is_module, ours_end = None, False, False
    while target is None:
        if reader.at >= len(words):
            raise UsageError("no script given")
        word = words[reader.at]
        if word == "--" and not ours_end:
            ours_end = True
            reader.at += 1
            continue
        if word in ("-h", "--help") and not ours_end:
            return None
        if reader.is_ours() and not ours_end:
            _take_before_target(reader)
            continue
        reader.at += 1
        if word == "-m":
            if reader.at >= len(words):
                raise UsageError("-m: needs the name of a module")
            target, is_module = words[reader.at], True
            reader.at += 1
        elif word.startswith("-") and word != "-":
            raise UsageError(f"{word}: unknown flag before the script")
        else:
            target = word
    own = own_flags(target, is_module)
    own = FLAGS if ours_end else own
    arguments, left = _rest(reader, own)
    return Command(Settings(**reader.found), target, is_module, arguments, left)


def _take_before_target(reader: _Reader) -> None:
    """`--ckpt train.py`: a bare flag before the target keeps its hands off it."""
    word = reader.words[reader.at]
    following = reader.words[reader.at + 1 : reader.at + 2]
    if word == "--ckpt" and following and not _is_keep(following[0]):
        if "keep" in reader.found:
            raise UsageError("--ckpt: given twice")
        reader.found["keep"] = FLAGS[word].bare
        reader.at += 1
    else:
        reader.take()


def _rest(
    reader: _Reader, own: Collection[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The target's arguments, and which flags of ours are the target's."""
    arguments: list[str] = []
    left: list[str] = []
    while reader.at < len(reader.words):
        word = reader.words[reader.at]
        name = word.partition("=")[0]
        if word == "--":
            arguments += reader.words[reader.at :]
            break
        if reader.is_ours() and name not in own:
            reader.take()
            continue
        if name in FLAGS and name not in left:
            left.append(name)
        arguments.append(word)
        reader.at += 1
    return tuple(arguments), tuple(left)
