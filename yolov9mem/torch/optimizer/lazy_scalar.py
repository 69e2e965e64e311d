# SPDX-License-Identifier: MIT
"""A scalar tensor whose value is worked out when somebody reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


class LazyScalar(Tensor):
    """A float32 scalar on the CPU; every torch call on it sees an ordinary tensor.

    Args:
        compute: makes the value; let go when it has.
    """

    _compute: Callable[[], float] | None
    _value: Tensor

    @staticmethod
    def __new__(cls, compute: Callable[[], float]) -> LazyScalar:
        made = Tensor._make_subclass(
            cls, torch.zeros((), dtype=torch.float32, device="cpu")
        )
        made._compute = compute
        made._value = torch.zeros((), dtype=torch.float32, device="cpu")
        return made

    def resolve(self) -> Tensor:
        """The ordinary tensor, computed now if it was not."""
        if self._compute is not None:
            self._value.fill_(self._compute())  # one that raises is asked again
            self._compute = None
        return self._value

    def later(self, compute: Callable[[], float]) -> None:
        """Works its value out by `compute`, unless it has one."""
        if self._compute is not None:
            self._compute = compute

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        args, kwargs = tree_map(_plain, (args, kwargs or {}))
        return func(*args, **kwargs)


def _plain(x: Any) -> Any:
    return x.resolve() if isinstance(x, LazyScalar) else x
