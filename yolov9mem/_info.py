# SPDX-License-Identifier: MIT
"""What this installation is: for bug reports and for the curious."""

import importlib.metadata
import importlib.util
import platform
from typing import Any

from yolov9mem import _core


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


__version__ = _version("yolov9mem") or "unknown (not installed)"


def info() -> dict[str, Any]:
    """Build, backends, threads and the versions of libraries, without loading them.

    Keys: version, python, machine, compiler, backends (with "cuda" where that was built
    too), isa (the vector instructions in use), threads, debug, sanitize, libraries (name
    to version, or None).
    """
    build = _core.build_info()
    has_cuda = importlib.util.find_spec("yolov9mem._cuda") is not None
    libraries = ("numpy", "torch", "opencv-python", "opencv-python-headless", "pillow")
    return {
        "version": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "compiler": build["compiler"],
        "backends": (*build["backends"], *(["cuda"] if has_cuda else [])),
        "isa": build["isa"],
        "threads": _core.get_num_threads(),
        "debug": build["debug"],
        "sanitize": build["sanitize"],
        "libraries": {name: _version(name) for name in libraries},
    }
