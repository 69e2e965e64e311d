# SPDX-License-Identifier: MIT
"""A replica that torch.nn.DataParallel makes of a checkpointed module for one forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from . import registry
from .invocation import Invocation

if TYPE_CHECKING:
    from .entry import Entry


class ReplicaEntry(registry.Runner):
    """Runs a DataParallel replica with the plans of its origin."""

    def __init__(self, origin: Entry) -> None:
        self.cls, self._entry = origin.cls, origin

    def replica(self) -> registry.Runner:
        """Of a replica."""
        return self

    def run(
        self, module: nn.Module, stock: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """forward(*args, **kwargs) of the replica."""
        origin = self._entry.ref()
        if origin is None:
            return stock(module, *args, **kwargs)
        return self._entry.run_as(Invocation(origin, module, stock, args, kwargs))
