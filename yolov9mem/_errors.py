# SPDX-License-Identifier: MIT
"""Exceptions of yolov9mem."""


class BackendError(RuntimeError):
    """A foreign library or device (CUDA, cuDNN) failed; the text names the call."""
