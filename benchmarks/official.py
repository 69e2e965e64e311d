# SPDX-License-Identifier: MIT
"""The official augmentation chain, which the tests hold."""

from benchmarks.models import _tests

_tests()

from official_chain import Chain  # noqa: E402

__all__ = ["Chain"]
