# SPDX-License-Identifier: MIT
"""checkpoint() and release(): what a user calls."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from yolov9mem._checks import INT_MAX, check_flag, check_text, check_whole
from yolov9mem._keep import parse_keep

from .checks import check_module
from .running import registry
from .running.arenas import drop_workspace
from .running.entry import Entry

BACKENDS = ("auto", "cpu", "ref", "cuda", "cuda:plain")
Module = TypeVar("Module", bound=nn.Module)


def checkpoint(
    module: Module,
    keep: str | int = "conv",
    strict: bool = True,
    *,
    segments: int | None = None,
    backend: str = "auto",
    cuda_graphs: bool = True,
) -> Module:
    """Makes the module's training forward and backward run in yolov9mem.

    Args:
        module: any module, one block or a whole detector. It stays what it is: class,
            parameters, state_dict keys, pickles; copies of it are stock.
        keep: what is kept between forward and backward: "conv" (convolution outputs, no
            convolution runs twice), "min" (the smallest peak that is found with each
            convolution run at most twice, in a whole network to a 32nd), "all" (as eager)
            or a size (the cheapest plan that fits it, none below that of "min"). Where
            "min" would leave a small module to stock PyTorch, it is "conv".
        strict: raise CannotLower, naming the call and the path, when a part of the module
            can't be lowered; False leaves that part in stock PyTorch (see report()). The
            module's graph is then run in several stages, with stock calls before, between
            and after them; where those would be too small, or hold no less than stock
            PyTorch, its children are swapped instead.
        segments: into how many autograd nodes backward is cut; None: by parameter bytes.
        backend: "auto" runs where the arguments are: on a GPU with cuDNN, else on the
            CPU. "cpu", "ref" (the slow and plain reference) and "cuda" run there only,
            "cuda:plain" on a GPU by our own convolutions, for a machine without cuDNN:
            many times slower, so never chosen by itself.
        cuda_graphs: on a GPU, repeat the launches of a forward and of each part of
            backward as a CUDA graph, which is recorded when all tensors lie where they
            lay in a call before. It spares the host some 3000 launches a step, for which
            the GPU waits otherwise: benchmarks/RESULTS.md has both. A small workspace
            (a twentieth of the peak) is kept from forward to backward, so that it lies
            where it lay, and graphs take memory that PyTorch does not count, for the first
            few sizes of the arguments alone. Same bits. While it records, in the first
            steps, another thread that waits for the whole device (torch.cuda.synchronize)
            gets an error: such a program wants False. Of a graph with SyncBatchNorm of
            several processes nothing is repeated.

    Returns the same object. Calling it again changes ``keep``. Raises TypeError for what is
    no module or a wrapper of one, TypeError or ValueError for another argument that breaks
    its rule.

    The module is recorded lazily, at its next training forward, and again where its
    attributes, the objects in them that forward reads, or the arguments are others.
    Global variables and attributes of classes are taken as they were, but not
    ``forward``: one that somebody puts around the module's, on its class or the
    instance, is called at every forward, and what it calls runs here. One around that
    of a base or of a part is recorded with the rest: what it does beside, such as
    taking the time, it does then only. A part that was compiled in place, by its
    compile(), is recorded as what it computes. A forward that asks a tensor for its
    type, its strides or an attribute of the user's own is shown another class, those of
    a contiguous one, none. In eval mode, without gradients, under tracing, within
    torch.compile and within torch.utils.checkpoint, which keeps nothing, the stock
    forward runs. Outputs are channels_last tensors; those of children, where the module
    itself runs stock, are laid out as in stock PyTorch. The module may be moved between
    devices at any time. On a GPU a training forward raises BackendError where there is
    no driver, or one too old, or no cuDNN 9; in a build without CUDA the stock forward
    runs and a StockForwardWarning says so once. cuDNN's settings are PyTorch's:
    torch.backends.cudnn.allow_tf32, and benchmark, which may cost 32 MiB.
    """
    check_module("module", module)
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    if isinstance(module, wrappers):
        kind = type(module).__name__
        raise TypeError(f"module: is a {kind}, checkpoint its .module instead")
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError("module: is a ScriptModule, whose forward cannot be replaced")
    rule = parse_keep(keep)
    check_flag("strict", strict)
    check_flag("cuda_graphs", cuda_graphs)
    if segments is not None:
        segments = check_whole("segments", segments, 1, INT_MAX)
    _check_backend(backend)
    release(module)
    entry = Entry(module, rule, strict, segments, backend, bool(cuda_graphs))
    registry.register(module, entry)
    return module


def _check_backend(backend: Any) -> None:
    """One of BACKENDS, or a capsule, which is a backend itself: the GPU's, emulated."""
    if type(backend).__name__ == "PyCapsule":
        return
    check_text("backend", backend)
    if backend not in BACKENDS:
        raise ValueError(
            f"backend: is {backend!r}, must be one of {', '.join(BACKENDS)}"
        )


def release(module: Module) -> Module:
    """The module and all below it run in stock PyTorch again; kept memory is freed.

    Returns the same object. A ready-made block stays stock until checkpoint() is called.
    Raises TypeError for what is no module.
    """
    check_module("module", module)
    for part in module.modules():
        registry.unregister(part)
    drop_workspace()
    return module
