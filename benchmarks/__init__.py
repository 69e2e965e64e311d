# SPDX-License-Identifier: MIT
"""Measures yolov9mem against stock PyTorch, and turns the records into tables.

python -m benchmarks cpu --out benchmarks/results     # measure, write one record
python -m benchmarks gpu --out DIR                    # the same on a GPU, by stages
python -m benchmarks render                           # records -> README, RESULTS.md
pytest benchmarks                                     # the same cases, pytest-benchmark
"""
