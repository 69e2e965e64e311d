# SPDX-License-Identifier: MIT
"""The ways of running a training step, by name; knows nothing else."""

EAGER, LAST = "torch eager", "torch channels_last"
# Eager with the allocator's settings that our ways have.
GROWING = "torch eager, expandable segments"
PER_LAYER, COMPILED = "torch.utils.checkpoint", "torch.compile channels_last"
REDUCED = "torch.compile channels_last, reduce-overhead"  # with CUDA graphs
CONV, MIN = "yolov9mem conv", "yolov9mem min"
# As checkpoint() does it unless it is told not to.
GRAPHS, MIN_GRAPHS = f"{CONV}, CUDA graphs", f"{MIN}, CUDA graphs"
COMPILED_WAYS, OURS = (COMPILED, REDUCED), (CONV, GRAPHS, MIN, MIN_GRAPHS)
WAYS = (EAGER, GROWING, LAST, PER_LAYER, *COMPILED_WAYS, *OURS)

REPEATED = "CUDA graphs"  # one of small.py's cases
