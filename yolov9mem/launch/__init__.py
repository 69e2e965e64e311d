# SPDX-License-Identifier: MIT
"""python -m yolov9mem SCRIPT ...: an unmodified training script, in less memory.

Which file does what: cli.py reads the command line, script.py the target, flags.py the
flags that the target itself defines; launch.py puts everything in place by patches.py,
session.py swaps one training's model and optimizer (sgd.py is the latter, averages.py
finds what averages the model, loss.py what the official loss is), dataset.py its mosaic
(trials.py compares samples, recording.py runs a data set's own code on the images of
pictures.py), validation.py slices eval batches; codebases.py knows what is particular to
one code base, processes.py launches what is started anew, files.py guards checkpoints,
banner.py and measure.py tell about it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .cli import HELP, PROG, Command, Settings, UsageError, parse

__all__ = ["Settings", "UsageError", "main", "patch"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `python -m yolov9mem ARGUMENTS`; what the script raises passes.

    Returns the exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _main(words)
    except UsageError as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 2


def _main(words: list[str]) -> int:
    from . import script

    programs: list[script.Program] = []

    def own_flags(target: str, is_module: bool) -> set[str]:
        programs.append(script.find(target, is_module))
        return programs[0].own_flags()

    command = parse(words, own_flags)
    if command is None:
        print(HELP, end="")
        return 0
    return _run(command, programs[0])


def _run(command: Command, program: object) -> int:
    from . import codebases, script

    try:
        from .launch import Launch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise UsageError("needs PyTorch (pip install torch), not installed") from None
    assert isinstance(program, script.Program)
    settings = command.settings
    applied = []
    if settings.accumulate is not None and program.tree is not None:
        if script.set_accumulate(program.tree, settings.accumulate):
            applied.append("accumulate")
        elif not program.uses_framework():
            raise UsageError(
                f"--accumulate: {command.target} has no assignment to `accumulate` in "
                "a function train()"
            )
    added: tuple[str, ...] = ()
    if command.is_module:
        added = codebases.added_arguments(command.target, settings)
        applied += ["mosaic", "mixup"] if added else []
    notes = tuple(
        ("flags", f"{flag} is the script's own") for flag in command.left_to_script
    )
    arguments = (*command.arguments, *added)
    launch = Launch(settings, command.target, arguments, tuple(applied), notes)
    launch.start()
    try:
        script.run(program, command.target, arguments)
    except UsageError:
        raise
    except SystemExit as error:
        code = launch.finish()
        if not error.code and code:
            sys.exit(code)
        raise
    except BaseException as error:
        launch.finish()
        if str(error).startswith("yolov9mem: "):  # what the swapped model cannot do
            launch.say("yolov9mem: with --ckpt off the model runs in stock PyTorch")
        raise
    return launch.finish()


def patch(
    ckpt: str = "conv",
    *,
    accumulate: int | None = None,
    mosaic: float | None = None,
    mixup: float | None = None,
    amp: bool = True,
    strict: bool = False,
    stock_loss: bool = False,
) -> object:
    """Swaps yolov9mem's parts into whatever this process trains from now on.

    One line before `YOLO("yolov9s.yaml").train(...)`. The arguments are the flags of
    `python -m yolov9mem --help`; `accumulate` needs ultralytics or Lightning here.

    Raises TypeError for a ckpt that is no text or a flag that is not True or False,
    UsageError, a ValueError, for a value that breaks its rule.

    Returns an object with stop(), which puts everything back. Another call does so too
    and begins anew. In a script that `python -m yolov9mem` runs the flags given there
    hold, and this does nothing.
    """
    import atexit

    from .launch import THIS_PROCESS, Launch

    settings = Settings(ckpt, accumulate, mosaic, mixup, amp, None, strict, stock_loss)
    launch, running = Launch(settings), Launch.running
    if running is not None and running.target != THIS_PROCESS:
        running.lines.append(
            ("patch()", "of the script: the command line's flags hold")
        )
        return launch
    launch.start()
    atexit.register(lambda: launch.finish() if launch.session is not None else 0)
    return launch
