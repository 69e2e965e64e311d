# SPDX-License-Identifier: MIT
"""Errors that a recording raises and the module itself does not: a forward that catches
one goes another way than with tensors that have numbers and an address."""

from __future__ import annotations

from torch._subclasses import fake_tensor

from .ir import CannotLower

# Of who asks a fake for its values; not every PyTorch has all.
_NAMES = (
    "DataDependentOutputException",
    "DynamicOutputShapeException",
    "UnsupportedFakeTensorException",
    "UnsupportedOperatorException",
)
VALUE_ERRORS = tuple(
    getattr(fake_tensor, name) for name in _NAMES if hasattr(fake_tensor, name)
)
# How PyTorch says that a fake has none.
NO_ARRAY = ".numpy() is not supported for tensor subclasses"
NO_ADDRESS = "Cannot access data pointer"


def refusal(
    error: BaseException, path: str, call: str = "data_ptr"
) -> CannotLower | None:
    """What it says of a ``call`` of the module at ``path``, without the frames that would
    hold fakes; None: the module raises it as well."""
    if isinstance(error, CannotLower):
        return error.fresh()
    reason = "forward depends on the values of tensors, not only on sizes"
    if isinstance(error, VALUE_ERRORS):
        return CannotLower(type(error).__name__, path, reason)
    if NO_ARRAY in str(error):
        return CannotLower("numpy", path, reason)
    if NO_ADDRESS in str(error):
        reason = "it works by the addresses of tensors, which fakes have not"
        return CannotLower(call, path, reason)
    return None
