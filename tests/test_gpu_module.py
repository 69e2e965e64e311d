# SPDX-License-Identifier: MIT
"""yolov9mem._cuda as it was built for a GPU: the checks of test_cuda_module.py there."""

from __future__ import annotations

from gpu_machine import on_a_gpu_only
from test_cuda_module import (  # noqa: F401
    test_a_table_of_tensors_is_checked,
    test_importing_makes_no_cuda_call,
    test_mosaic_jobs_are_checked,
    test_names_of_backends,
)

pytestmark = on_a_gpu_only
