# SPDX-License-Identifier: MIT
"""The target: found, read, changed in its `accumulate`, and run as __main__."""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.machinery
import importlib.metadata
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cli import UsageError
from .flags import own_flags

NAME = "accumulate"
TRAIN = "train"
# They accumulate in their trainer class, where codebases.py sets it.
FRAMEWORKS = ("ultralytics", "lightning", "pytorch_lightning", "yolo")
_kept: list[Any] = []  # the __main__ that was there before


@dataclass
class Program:
    """A target ready to run.

    Attributes:
        path: of the source file, absolute; links are not followed.
        tree: the parsed source; None: the target is a console command of a package.
        spec: of a module run with -m.
        command: what such a console command calls.
    """

    path: Path
    tree: ast.Module | None
    spec: importlib.machinery.ModuleSpec | None = None
    command: Callable[[], Any] | None = None

    def own_flags(self) -> set[str]:
        """The option strings that the script defines, itself or in what it imports."""
        return set() if self.tree is None else own_flags(self.tree, self.path.resolve())

    def imports(self) -> set[str]:
        """The top-level packages that the source imports."""
        found: set[str] = set()
        for node in ast.walk(self.tree) if self.tree is not None else ():
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
        return found

    def uses_framework(self) -> bool:
        """Does a trainer class of somebody else accumulate for this target?"""
        if self.tree is None:
            return True
        name = self.spec.name.partition(".")[0] if self.spec is not None else ""
        return bool({*self.imports(), name} & set(FRAMEWORKS))


def find(target: str, is_module: bool) -> Program:
    """Reads the target's source.

    Raises:
        UsageError: there is no such file or module.
        SyntaxError: the script's own.
    """
    if is_module:
        return _find_module(target)
    path = Path.cwd() / target  # as python makes __file__: `..` stays
    if path.is_dir():
        raise UsageError(f"{target}: is a folder, must be a script")
    if not path.is_file():
        raise UsageError(f"{target}: no such file")
    return Program(path, _parsed(path))


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes(), str(path))
    except SyntaxError:
        _start_tracebacks_in(str(path))
        raise
    except (OSError, ValueError) as error:  # unreadable; a binary file
        raise UsageError(f"{path}: is no Python source: {error}") from error


def _find_module(name: str) -> Program:
    spec = _spec_of(name)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = _spec_of(f"{name}.__main__") or _command_spec(name)
    if spec is None:
        raise UsageError(f"-m {name}: no such module, or a package without __main__")
    if spec.loader is None:  # a console command of the package
        return Program(Path(sys.executable), None, None, spec.loader_state)
    if spec.origin is None or not spec.origin.endswith(".py"):
        raise UsageError(f"-m {name}: {spec.origin} has no Python source")
    path = Path(spec.origin)
    return Program(path, _parsed(path), spec)


def _spec_of(name: str) -> importlib.machinery.ModuleSpec | None:
    """As importlib.util.find_spec, but imports nothing on the way."""
    where: Any = None
    spec = None
    done = []
    for part in name.split("."):
        done.append(part)
        full = ".".join(done)
        spec = importlib.machinery.PathFinder.find_spec(full, where)
        if spec is None:
            return None
        where = spec.submodule_search_locations
    return spec


class _Command:
    """A console command, imported when it is called."""

    def __init__(self, entry: importlib.metadata.EntryPoint) -> None:
        self._entry = entry

    def __call__(self) -> Any:
        return self._entry.load()()


def _command_spec(package: str) -> importlib.machinery.ModuleSpec | None:
    """A package without __main__ may have a console command (ultralytics: `yolo`)."""
    for entry in importlib.metadata.entry_points(group="console_scripts"):
        if entry.module.partition(".")[0] == package:
            return importlib.machinery.ModuleSpec(
                package, None, loader_state=_Command(entry), is_package=False
            )
    return None


class _SetAccumulate(ast.NodeTransformer):
    """Every binding of `accumulate` within functions named `train` gives N."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.changed = 0
        self._depth = 0

    def _function(self, node: Any) -> Any:
        inside = node.name == TRAIN
        self._depth += inside
        self.generic_visit(node)
        self._depth -= inside
        return node

    visit_FunctionDef = _function  # noqa: N815 - ast's names
    visit_AsyncFunctionDef = _function  # noqa: N815

    def _constant(self, near: ast.AST) -> ast.expr:
        return ast.copy_location(ast.Constant(self.count), near)

    def visit_Assign(self, node: ast.Assign) -> Any:
        self.generic_visit(node)
        if not self._depth or not any(_binds(target) for target in node.targets):
            return node
        self.changed += 1
        if all(isinstance(t, ast.Name) and t.id == NAME for t in node.targets):
            node.value = self._constant(node.value)
            return node
        return [node, self._assignment(node)]

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        self.generic_visit(node)
        if self._depth and node.value is not None and _binds(node.target):
            self.changed += 1
            node.value = self._constant(node.value)
        return node

    def visit_AugAssign(self, node: ast.AugAssign) -> Any:
        self.generic_visit(node)
        if not self._depth or not _binds(node.target):
            return node
        self.changed += 1
        return self._assignment(node)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> Any:
        self.generic_visit(node)
        if self._depth and _binds(node.target):
            self.changed += 1
            node.value = self._constant(node.value)
        return node

    def _assignment(self, near: ast.stmt) -> ast.Assign:
        name = ast.copy_location(ast.Name(NAME, ast.Store()), near)
        made = ast.Assign([name], self._constant(near), lineno=near.lineno)
        return ast.copy_location(made, near)


def _binds(target: ast.expr) -> bool:
    if isinstance(target, (ast.Tuple, ast.List)):
        return any(_binds(part) for part in target.elts)
    if isinstance(target, ast.Starred):
        return _binds(target.value)
    return isinstance(target, ast.Name) and target.id == NAME


def set_accumulate(tree: ast.Module, count: int) -> int:
    """Sets every `accumulate` of train() to `count`, in place; how many there were."""
    change = _SetAccumulate(count)
    change.visit(tree)
    ast.fix_missing_locations(tree)
    return change.changed


def run(program: Program, target: str, arguments: tuple[str, ...]) -> None:
    """Runs the program as `python target arguments` would.

    Whatever it raises, SystemExit included, passes; its traceback, when shown, starts
    in the program.
    """
    sys.argv[:] = [target, *arguments]
    if program.command is not None:
        program.command()
        return
    assert program.tree is not None
    file = str(program.path)
    _start_tracebacks_in(file)
    if program.spec is None:
        _set_first_path(str(program.path.resolve().parent))
    else:
        sys.argv[0] = file
    code = compile(program.tree, file, "exec", dont_inherit=True)
    if program.spec is not None and program.spec.parent:
        importlib.import_module(program.spec.parent)
    exec(code, vars(_main_module(program)))


def _set_first_path(folder: str) -> None:
    """sys.path[0]: `python -m` put the working folder there, a script has its own."""
    if getattr(sys.flags, "safe_path", False):
        return
    sys.path[0:1] = [folder]


def _main_module(program: Program) -> types.ModuleType:
    module = types.ModuleType("__main__")
    module.__dict__.update(
        __file__=str(program.path),
        __builtins__=builtins,  # the module itself, as only __main__ has it
        __spec__=program.spec,
        __cached__=None,
        __package__=program.spec.parent if program.spec is not None else None,
        __loader__=program.spec.loader if program.spec is not None else None,
    )
    _kept.append(sys.modules["__main__"])
    sys.modules["__main__"] = module
    return module


def _start_tracebacks_in(filename: str) -> None:
    previous = sys.excepthook

    def show(
        kind: Any, value: BaseException, trace: types.TracebackType | None
    ) -> None:
        start = trace
        while start is not None and start.tb_frame.f_code.co_filename != filename:
            start = start.tb_next
        # The program did not even start: python shows the line alone.
        is_of_source = isinstance(value, SyntaxError) and value.filename == filename
        start = start if start is not None or is_of_source else trace
        value.__traceback__ = start
        previous(kind, value, start)

    sys.excepthook = show
