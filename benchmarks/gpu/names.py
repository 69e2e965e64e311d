# SPDX-License-Identifier: MIT
"""The ways of running a training step, by name; knows nothing else."""

EAGER, LAST = "torch eager", "torch channels_last"
# Eager with the allocator's settings that our ways have.
GROWING = "torch eager, expandable segments"
PER_LAYER, COMPILED = "torch.utils.checkpoint", "torch.compile channels_last"
REDUCED = "torch.compile channels_last, reduce-overhead"  # with CUDA graphs
CONV, MIN = "yolov9mem conv", "yolov9mem min"
GRAPHS = "yolov9mem conv, CUDA graphs"
WAYS = (EAGER, GROWING, LAST, PER_LAYER, COMPILED, REDUCED, CONV, GRAPHS, MIN)
COMPILED_WAYS, OURS = (COMPILED, REDUCED), (CONV, GRAPHS, MIN)

REPEATED = "CUDA graphs"  # one of small.py's cases
