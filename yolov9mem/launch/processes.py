# SPDX-License-Identifier: MIT
"""Processes that torch.multiprocessing starts anew are launched, too.

What is replaced here is not there in a new interpreter; a forked one has it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.multiprocessing

from .cli import Settings
from .patches import Patches


@dataclass(frozen=True)
class Launched:
    """What such a process runs in place of `function`, which gets the rank first."""

    function: Callable[..., Any]
    settings: Settings
    target: str
    arguments: tuple[str, ...]

    def __call__(self, rank: int, *args: Any) -> Any:
        from .launch import Launch

        if Launch.running is not None:  # forked
            return self.function(rank, *args)
        launch = Launch(self.settings, self.target, self.arguments)
        launch.is_quiet |= rank > 0
        launch.start()
        made = self.function(rank, *args)
        if launch.session is not None:  # else it did something else
            launch.finish()
        return made


def watch(patches: Patches, launched: Callable[[Callable[..., Any]], Launched]) -> None:
    """Functions for other processes are replaced by what `launched` makes of them."""
    inner = sys.modules["torch.multiprocessing.spawn"]  # whose spawn() has its own
    stock = torch.multiprocessing.start_processes

    @functools.wraps(stock)
    def start_processes(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return stock(launched(fn), *args, **kwargs)

    for owner in (torch.multiprocessing, inner):
        patches.set(owner, "start_processes", start_processes)
