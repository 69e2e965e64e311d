# SPDX-License-Identifier: MIT
"""What may go wrong on a GPU machine: an exception that names the call and says what to
do, after which the next step works. The GPU and cuDNN are emulated."""

from __future__ import annotations

import copy
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
from emulated_cudnn import fake_cudnn, run, run_anew  # noqa: F401
from emulated_gpu import WAITS, autocast, gpu  # noqa: F401
from models_for_tests import Elan

import yolov9mem.torch as ym
from yolov9mem import BackendError
from yolov9mem.torch import devices
from yolov9mem.torch.running import shared_call


def test_cudnn_of_major_version_8(fake_cudnn: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "libcudnn.so.8").symlink_to(fake_cudnn)
    (line,) = run_anew(
        "attempt(lambda: step(module))",
        LD_LIBRARY_PATH=str(tmp_path),
        YOLOV9MEM_CUDNN=str(tmp_path / "libcudnn.so.9"),
    )
    assert line.startswith("BackendError cuda: only cuDNN 8 is installed")
    assert "install nvidia-cudnn-cu13, or use backend 'cuda:plain'" in line


def test_a_cudnn_that_is_too_old(fake_cudnn: Path) -> None:  # noqa: F811
    (line,) = run(
        "attempt(lambda: step(module))",
        YOLOV9MEM_CUDNN=str(fake_cudnn),
        FAKE_CUDNN="old",
    )
    assert "is version 8.9.5, 9.1 or newer" in line


def test_no_cudnn_is_an_error_that_names_the_plain_way() -> None:
    script = """
        attempt(lambda: step(module))
        ym.checkpoint(module, backend="cuda:plain")
        attempt(lambda: step(module))
    """
    first, second = run(script, YOLOV9MEM_CUDNN="/nowhere/libcudnn.so.9")
    assert first.startswith("BackendError cuda: libcudnn.so.9 cannot be opened")
    assert "use backend 'cuda:plain'" in first
    assert second == "fine"


def test_a_gpu_without_bf16_says_so_and_fp16_works(fake_cudnn: Path) -> None:  # noqa: F811
    script = """
        gpu.lib.ym_emulation_capability(7)
        attempt(lambda: step(module, torch.bfloat16))
        attempt(lambda: step(module, torch.float16))
    """
    first, second = run(script, YOLOV9MEM_CUDNN=str(fake_cudnn), FAKE_CUDNN="bf16")
    assert first.startswith(
        "NotImplementedError cuda: convolution: cuDNN has no bfloat16"
    )
    assert "use float16" in first
    assert second == "fine"


def test_a_convolution_without_an_engine_in_bf16_is_named(fake_cudnn: Path) -> None:  # noqa: F811
    """On a GPU that has bfloat16 it is not the GPU's fault."""
    script = """
        attempt(lambda: step(module, torch.bfloat16))
        ym.checkpoint(module, backend="cuda:plain")
        attempt(lambda: step(module, torch.bfloat16))
    """
    first, second = run(script, YOLOV9MEM_CUDNN=str(fake_cudnn), FAKE_CUDNN="bf16")
    assert first == (
        "NotImplementedError cuda: convolution: cuDNN has no engine for bfloat16 with 8 "
        "to 16 channels, kernel 1x1, 1 groups: use float16, or backend 'cuda:plain'"
    )
    assert second == "fine"


def test_a_bias_gradient_alone_needs_no_engine(fake_cudnn: Path) -> None:  # noqa: F811
    script = """
        import ctypes as C
        import cuda_emulation as ce
        import numpy as np

        values = [ce.Value(ce.random_values(i, (2, 7, 9, 6)), ce.BF16) for i in (1, 2)]
        x, dy = (C.byref(v.tensor()) for v in values)
        dw, dbias = ce.Weight(None, 6, 6, 3, 3), np.zeros(6, np.float32)
        conv = C.byref(ce.Conv(6, 6, 3, 3, 1, 1, 1, 1, 1, 1, 1))
        no = C.c_bool(False)
        size = ce.library().cudnn_conv_scratch_bytes
        size.restype = C.c_size_t
        attempt(lambda: ce.call(
            "cudnn_conv_backward_weight", conv, x, dy, C.byref(dw), no,
            C.c_void_p(dbias.ctypes.data), no,
            scratch=size(ce.BACKWARD_WEIGHT, conv, x, dy),
        ))
        print(np.abs(dbias - values[1].numpy().sum((0, 1, 2))).max() < 1e-3)
    """
    lines = run(script, YOLOV9MEM_CUDNN=str(fake_cudnn), FAKE_CUDNN="bf16")
    assert lines == ["fine", "True"]


def test_a_cudnn_without_its_parts_is_not_one_without_engines(fake_cudnn: Path) -> None:  # noqa: F811
    (line,) = run(
        "attempt(lambda: step(module))",
        YOLOV9MEM_CUDNN=str(fake_cudnn),
        FAKE_CUDNN="parts",
    )
    assert line.startswith("BackendError cuda: cuDNN 9.10.0: search for an engine: ")
    assert line.endswith(": a part is missing")


@pytest.mark.parametrize("execution", ["2", "12"], ids=["forward", "backward"])
def test_an_execution_that_fails(fake_cudnn: Path, execution: str) -> None:  # noqa: F811
    script = """
        for _ in range(2):
            attempt(lambda: step(module))
    """
    first, second = run(
        script, YOLOV9MEM_CUDNN=str(fake_cudnn), FAKE_CUDNN_FAIL=execution
    )
    assert first.startswith(
        "BackendError cuda: cuDNN 9.10.0: cudnnBackendExecute (convolution, engine 0): "
        "CUDNN_STATUS_EXECUTION_FAILED"
    )
    assert second == "fine"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_capture_runs_after_a_warm_up_only(fake_cudnn: Path, dtype: str) -> None:  # noqa: F811
    """Plans are made outside; then a step has no call that a capture forbids."""
    script = f"""
        dtype = torch.{dtype}
        gpu.capture(True)
        attempt(lambda: step(module, dtype))
        gpu.capture(False)
        attempt(lambda: step(module, dtype))
        gpu.lib.ym_emulation_reset_counts()
        gpu.capture(True)
        attempt(lambda: step(module, dtype))
        print(gpu.count(1), gpu.count(2))
    """
    lines = run(script, YOLOV9MEM_CUDNN=str(fake_cudnn))
    assert lines[0].startswith("BackendError cuda: a forward of new sizes or layout: ")
    assert lines[0].endswith("make it before the capture")
    assert lines[1:] == ["fine", "fine", "0 0"]


def test_threads_share_a_handle_and_its_plans(fake_cudnn: Path) -> None:  # noqa: F811
    """Autograd's runs backward, DataParallel starts new ones at every forward."""
    script = """
        import ctypes, threading
        cudnn = ctypes.CDLL(os.environ["YOLOV9MEM_CUDNN"])
        names = ("fake_cudnn_handles", "fake_cudnn_plans")
        counts = [ctypes.c_int.in_dll(cudnn, name) for name in names]
        attempt(lambda: step(module))
        print(*(c.value for c in counts))
        for _ in range(3):
            other = ym.checkpoint(copy.deepcopy(module))
            thread = threading.Thread(target=attempt, args=(lambda: step(other),))
            thread.start()
            thread.join()
        print(*(c.value for c in counts))
    """
    lines = run(
        "import copy, os\n" + textwrap.dedent(script), YOLOV9MEM_CUDNN=str(fake_cudnn)
    )
    assert lines[0] == "fine"
    assert lines[2:5] == ["fine"] * 3
    handles, plans = map(int, lines[1].split())
    assert handles == 1
    assert plans > 0
    assert lines[5] == lines[1]


def train(module: torch.nn.Module) -> None:
    module(torch.randn(2, 16, 12, 8)).square().sum().backward()


@pytest.mark.parametrize("error", [35, 100], ids=["driver", "gpu"])
def test_no_driver(error: int, gpu) -> None:  # noqa: F811
    module = ym.checkpoint(Elan(16, 24, 8).train())
    gpu.lib.ym_emulation_driver(error)
    with pytest.raises(BackendError, match="cuda: cudaGetDeviceCount: .*nvidia-smi"):
        train(module)
    gpu.lib.ym_emulation_driver(0)
    train(module)
    assert ym.report(module).rows[0].calls == 1


def test_a_step_never_waits_for_the_gpu(gpu) -> None:  # noqa: F811
    module = ym.checkpoint(Elan(16, 24, 8).train())
    train(module)
    gpu.reset()
    with autocast(torch.float16):
        train(module)
    assert gpu.count(0) > 20, "launches"
    assert gpu.count(WAITS) == 0
    assert gpu.count(2) == 0, "copies from the host"


@pytest.mark.parametrize("number", [1, 2**31, 2**32, 2**64])
def test_a_gpu_that_is_not_there(number: int, gpu) -> None:  # noqa: F811
    name = f"cuda:{number}"
    with pytest.raises(ValueError, match=f"is '{name}', there are 1 devices"):
        gpu.extension.backend(name)


@pytest.mark.parametrize("backend", ["auto", "cuda", "cuda:plain"])
def test_a_build_without_cuda_runs_stock_and_says_so_once(
    backend,
    gpu,  # noqa: F811
    monkeypatch,
) -> None:
    monkeypatch.setattr(
        devices, "why_not_built", lambda: "yolov9mem was built without CUDA: build it"
    )
    module = ym.checkpoint(Elan(16, 24, 8).train(), backend=backend)
    with pytest.warns(ym.StockForwardWarning, match="built without CUDA"):
        train(module)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(module)
    assert ym.report(module).rows[0].state == "stock"


@pytest.mark.parametrize("failing", ["forward", "backward"])
def test_an_allocator_that_fails_in_the_middle(failing, gpu, monkeypatch) -> None:  # noqa: F811
    stock = Elan(16, 24, 8).train()
    # With CUDA graphs backward has forward's.
    ours = ym.checkpoint(copy.deepcopy(stock), cuda_graphs=failing == "forward")
    calls = []
    take = shared_call.take_workspace

    def once(size: int, device: torch.device) -> torch.Tensor:
        calls.append(size)
        if len(calls) == (1 if failing == "forward" else 2):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return take(size, device)

    monkeypatch.setattr(shared_call, "take_workspace", once)
    buffers = copy.deepcopy(stock.state_dict())
    with pytest.raises(torch.OutOfMemoryError):
        train(ours)
    ours.load_state_dict(buffers)
    ours.zero_grad()
    torch.manual_seed(7)
    train(ours)
    torch.manual_seed(7)
    train(stock)
    for p, q in zip(ours.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-4)


def test_tensors_of_two_devices(gpu, monkeypatch) -> None:  # noqa: F811
    module = ym.checkpoint(Elan(16, 24, 8).train())
    first = next(module.parameters())
    monkeypatch.setattr(devices, "number", lambda t: 1 if t is first else 0)
    with pytest.raises(ValueError, match=r"cv1\.conv\.weight: is on CUDA device 1"):
        train(module)
    monkeypatch.setattr(devices, "number", lambda t: 0)
    train(module)


def test_arguments_of_two_devices_run_stock() -> None:
    from yolov9mem.torch.running.conditions import unusual_device

    tensors = [torch.empty(1), torch.empty(1, device="meta")]
    assert unusual_device(tensors, "auto").text == "arguments are on cpu and meta"
    assert unusual_device(tensors[1:], "auto").text == "an argument is on meta"
    assert unusual_device(tensors[:1], "cuda").text == "an argument is on cpu"
    assert unusual_device(tensors[:1], "auto") is None
