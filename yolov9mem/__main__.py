# SPDX-License-Identifier: MIT
"""python -m yolov9mem: what is installed here; with arguments it runs a script."""

import sys
from collections.abc import Sequence

import yolov9mem
from yolov9mem import launch


def diagnosis() -> str:
    """The installation, a line for each fact."""
    facts = yolov9mem.info()
    libraries = facts.pop("libraries")
    facts["backends"] = ", ".join(facts["backends"])
    lines = [f"{name:24}{value}" for name, value in facts.items()]
    lines += [f"{name:24}{value or 'not there'}" for name, value in libraries.items()]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    if words:
        return launch.main(words)
    print(diagnosis())
    return 0


if __name__ == "__main__":
    sys.exit(main())
