# SPDX-License-Identifier: MIT
"""The official augmentation chain, which the tests hold.

Not imported as ``tests.official_chain``: an installed package named tests would hide it.
"""

import sys

from benchmarks.record import ROOT

sys.path.append(str(ROOT / "tests"))

from official_chain import Chain

__all__ = ["Chain"]
