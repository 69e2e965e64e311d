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
of DIR, in a record of its own if its GPU is another. A folder .gpu, which git ignores,
carries what such a machine lacks: photographs as .gpu/bccd and, from the second call on,
as .gpu/r what the last one left in $OUT/r. Of the kind nvidia-h200 or nvidia-h100-x1:

    export PYTHONUNBUFFERED=1 YOLOV9MEM_COMMIT=<hash>
    export YOLOV9MEM_BENCH_DATA=$PWD/.gpu/bccd/data.yaml
    mkdir -p $OUT/r; cp .gpu/r/* $OUT/r/    # the copy not the first time
    python3 -m benchmarks gpu --out $OUT/r --minutes 9.3

and the same again with `--minutes` for what time is left. Such a machine is lent for 15
minutes in all, 10 a call; its start takes 30 s or more of them, and a call half a
minute more than its `--minutes`, which the tool's limit must leave it. With `--minutes
9.3` first (`timeout_s` 600), four minutes are left for a second call within half a
minute of the first, which finds the machine and all that was made on it, and less than
that for a later one, which should name the same kind: on another GPU it begins a record
of its own. torch.compile's code takes five minutes to make, in which everything runs
that is not timed; rows are for the rest.

Where the tests fail, the first call is better ended than waited for (its time is for
the mended package): watch for "tests on the GPU: failed" in what it prints. What is
mended begins a record of its own; `--first` and `--without`, with parts of tasks'
names, tell the second call what is worth its minutes then, e.g. `--without
torch.compile --without "rule "`.

Every module but the tasks and what they share (clock.py, jobs.py, ways.py) keeps away from
PyTorch, so that the process that orders them about holds no memory of the GPU.
"""
