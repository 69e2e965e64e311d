# SPDX-License-Identifier: MIT
"""A plan on the emulated CUDA backend that runs again and again in the same arrays."""

from __future__ import annotations

import cuda_emulation as ce
import numpy as np
from graph_oracle import Run, arena
from random_graphs import small_elan

SEGMENTS = 2


class FixedRun(Run):
    """A run whose arrays stay where they are."""

    def __init__(self, **request) -> None:
        tracer, before = small_elan()
        super().__init__(
            tracer, before, backend=ce.capsule(), segments=SEGMENTS, **request
        )
        p = self.plan
        self.move()
        self.outputs = [np.zeros(s, np.float32) for s in p.output_shapes]
        self.grads = [np.zeros_like(y) for y in self.outputs]
        self.grad_params = [np.zeros_like(w) for w in self.params]
        self.grad_inputs = [np.zeros_like(x) for x in self.inputs]
        self.work = arena(max(p.forward_workspace_bytes, p.backward_workspace_bytes))

    def move(self) -> None:
        """What is kept lies elsewhere from now on."""
        self.saved = arena(self.plan.saved_bytes)

    def step(self, seed: int, accumulate: bytes | None = None) -> list[np.ndarray]:
        """With other numbers in the same arrays; all that it wrote, copied."""
        random = np.random.default_rng(seed)
        for array in (*self.inputs, *self.grads):
            array[...] = random.standard_normal(array.shape, np.float32)
        args = (self.inputs, self.params, self.norms)
        self.plan.forward(*args, self.outputs, self.saved, self.work)
        for segment in reversed(range(SEGMENTS)):
            self.plan.backward(
                *(segment, *args, self.grads, self.grad_inputs, self.grad_params),
                *(self.saved, self.work, 0, accumulate),
            )
        running = [array for pair in self.running for array in pair]
        made = (*self.outputs, *self.grad_inputs, *self.grad_params, *running)
        return [array.copy() for array in made if array is not None]
