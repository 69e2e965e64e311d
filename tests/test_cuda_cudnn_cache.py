# SPDX-License-Identifier: MIT
"""Which of cuDNN's plans make room for new ones."""

from __future__ import annotations

from pathlib import Path

from emulated_cudnn import fake_cudnn, run  # noqa: F401


def test_the_older_half_makes_room(fake_cudnn: Path) -> None:  # noqa: F811
    """However often a few are used since the others were."""
    script = """
        import ctypes as C, os
        import cuda_emulation as ce
        from cudnn_probe import Plan, Problem

        cudnn = C.CDLL(os.environ["YOLOV9MEM_CUDNN"])
        made = C.c_int.in_dll(cudnn, "fake_cudnn_plans")
        conv = ce.Conv(8, 8, 1, 1, 1, 1, 0, 0, 1, 1, 1)

        def is_made(images):
            before, plan = made.value, Plan()
            problem = Problem(n=images, h=4, w=4, oh=4, ow=4, conv=conv)
            gpu.lib.cudnn_ask(C.byref(problem), C.byref(plan))
            assert plan.found
            return made.value > before

        def count(numbers):
            return sum(map(is_made, numbers))

        print(count(range(8192)))
        few = range(92)
        print(count(list(few) * 100), count([9000]))
        print(count(few), count(range(4188, 8192)), count(range(4088, 4188)))
    """
    lines = run(script, YOLOV9MEM_CUDNN=str(fake_cudnn))
    assert lines == ["8192", "0 1", "0 0 100"]
