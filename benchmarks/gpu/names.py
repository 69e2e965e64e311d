# SPDX-License-Identifier: MIT
"""The ways of running a training step, by name."""

EAGER, LAST = "torch eager", "torch channels_last"
PER_LAYER, COMPILED = "torch.utils.checkpoint", "torch.compile channels_last"
CONV, MIN = "yolov9mem conv", "yolov9mem min"
GRAPHS = "yolov9mem conv, CUDA graphs"
WAYS = (EAGER, LAST, PER_LAYER, COMPILED, CONV, GRAPHS, MIN)
