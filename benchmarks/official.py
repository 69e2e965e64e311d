# SPDX-License-Identifier: MIT
"""The official augmentation chain, which the tests hold."""

from benchmarks.models import make_importable

make_importable("tests")

from official_chain import Chain  # noqa: E402

__all__ = ["Chain"]
