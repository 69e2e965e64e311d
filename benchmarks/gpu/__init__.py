# SPDX-License-Identifier: MIT
"""What a machine with a GPU measures: `python -m benchmarks gpu --out DIR`.

    stages.py    in which order, and what beside what
    session.py   the record of a run, continued from one call to the next; time guard
    crew.py      processes, a fresh one for every task, the next one already warm
    worker.py    what such a process runs: a module of this folder with `run(request)`
    build.py     stage build-test: the package for this GPU, tests, compute-sanitizer
    table.py     stage step: the list of its configurations
    rest.py      stage rest: the list of its tasks
    compiling.py torch.compile's first time, beside the build and the tests; its process is
                 first_time.py
    archives.py  what travels beside the record
    names.py     the ways of a training step, by name; ways.py what they do to a model
    clock.py     times and memory of a device
    facts.py step.py step_kernels.py bandwidth.py sgd.py mosaic.py losses.py
    determinism.py rule.py
                 the tasks, a request each
    jobs.py      augmented samples as jobs for the CUDA mosaic
    small.py     small cases of every kernel, for compute-sanitizer
    suites.py    from the tasks of a record to its tables, with what is met and what not

DIR gets the record, what the tasks printed, the built package and, as long as a row of
torch.compile lacks, what that has compiled: a call on another machine goes on from a copy
of DIR, in a record of its own if its GPU is another. CONTRIBUTING.md tells how a machine is
used that is lent for minutes.

Every module but the tasks and what they share (clock.py, jobs.py, ways.py) keeps away from
PyTorch, so that the process that orders them about holds no memory of the GPU.
"""
