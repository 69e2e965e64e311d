"""Exceptions of yolov9mem."""


class BackendError(RuntimeError):
    """A foreign library or device (OpenBLAS, CUDA, cuDNN) failed; the text names the call."""
