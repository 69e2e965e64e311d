# SPDX-License-Identifier: MIT
"""A small YOLOv9 trainer in plain PyTorch, used by examples/train_dual.py.

Only `swap.py` knows yolov9mem; everything else is stock PyTorch, OpenCV and NumPy.
"""
