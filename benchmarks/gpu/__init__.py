# SPDX-License-Identifier: MIT
"""What a machine with a GPU measures: `python -m benchmarks gpu --out DIR`.

    session.py   the record of a run, continued from one call to the next; time guard
    crew.py      processes, a fresh one for every task, the next one already warm
    worker.py    what such a process runs: a module of this folder with `run(request)`
    build.py     stage build-test: the package for this GPU, tests, compute-sanitizer
    table.py     stage step: the list of its configurations
    rest.py      stage rest: the list of its tasks
    facts.py step.py bandwidth.py sgd.py mosaic.py losses.py determinism.py rule.py
                 the tasks, a request each
    small.py     small cases of every kernel, for compute-sanitizer
    suites.py    from the tasks of a record to its tables, with what is met and what not

DIR gets the record, what the tasks printed, and the built package: a call on another
machine goes on from a copy of DIR. Where that is not a clone, YOLOV9MEM_COMMIT names
the commit. On a lent machine whose results come back in $OUT, with the folder of the last
call carried as .gpu (not the first time), as often as there is time:

    export YOLOV9MEM_COMMIT=...; mkdir -p $OUT/r; cp .gpu/* $OUT/r/
    python3 -m benchmarks gpu --out $OUT/r --minutes 7

Every module but the tasks keeps away from PyTorch, so that the process that orders them
about holds no memory of the GPU.
"""
