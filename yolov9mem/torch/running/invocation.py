# SPDX-License-Identifier: MIT
"""One call of a module's forward, as it is handed on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..recording import trees


class Invocation:
    """One call of forward(*args, **kwargs).

    Attributes:
        origin: the checkpointed module.
        module: whose forward it is: the origin, or a replica of it.
        forward: the stock forward of its class.
        leaves, spec: (args, kwargs) flattened, once `flatten` has run.
    """

    __slots__ = ("args", "forward", "kwargs", "leaves", "module", "origin", "spec")

    def __init__(
        self,
        origin: nn.Module,
        module: nn.Module,
        forward: Callable[..., Any],
        args: Any,
        kwargs: Any,
    ) -> None:
        self.origin, self.module, self.forward = origin, module, forward
        self.args, self.kwargs = args, kwargs
        self.leaves: list[Any] = []
        self.spec: Any = None

    def flatten(self) -> None:
        """Has leaves and spec from now on."""
        self.leaves, self.spec = trees.flatten((self.args, self.kwargs))

    def tensors(self) -> list[Tensor]:
        """Among the leaves."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]

    def stock(self) -> Any:
        """What forward returns in stock PyTorch."""
        return self.forward(self.module, *self.args, **self.kwargs)
