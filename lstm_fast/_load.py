"""Loading of the compiled part, and what to do where it cannot be loaded."""

from __future__ import annotations

import ctypes
import functools
import importlib
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import TypedDict

MIN_TORCH = (2, 10)

_PACKAGE = Path(__file__).parent
_OPS = _PACKAGE / "_ops.abi3.so"
_INSTALL = "pip install --no-build-isolation"


def install_extra(extra: str) -> str:
    """How the packages of an extra are installed."""
    in_checkout = f"{_INSTALL} '.[{extra}]' in a checkout"
    return f"{in_checkout}, or 'FILE.whl[{extra}]' of a wheel"


class BuildInfo(TypedDict):
    """How the compiled part was built and what it uses on this machine.

    version: of lstm-fast. isas_built: instruction sets compiled in. isa: the one in use.
    compiler: its version, after its name if that is not GCC. cuda: whether CUDA kernels are
    compiled in. cuda_archs: for which architectures; newer devices use the PTX of the newest.
    torch_target: the oldest torch that the build runs with.
    """

    version: str
    isas_built: list[str]
    isa: str
    compiler: str
    cuda: bool
    cuda_archs: list[str]
    torch_target: str


def _how_to_build() -> str:
    folder = _PACKAGE.parent
    if (folder / "setup.py").exists():  # which Python takes before an installed one, run in there
        return (
            f"{folder} is a checkout: leave it to use an installed lstm_fast, or build this one in "
            f"it: {_INSTALL} -e ."
        )
    return f"Build it in the folder of its sources: {_INSTALL} ."


def _not_compiled(what: str) -> ImportError:
    return ImportError(f"the compiled part of lstm_fast is missing: {what}. {_how_to_build()}")


def _require_torch() -> ModuleType:
    needed = ".".join(map(str, MIN_TORCH))
    try:
        torch = importlib.import_module("torch")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(
            f"lstm_fast needs PyTorch {needed} or newer: pip install 'torch>={needed}'"
        ) from error
    found = str(torch.__version__)
    if tuple(int(part) for part in found.split(".")[:2]) < MIN_TORCH:
        raise ImportError(
            f"lstm_fast needs PyTorch {needed} or newer, found {found}: "
            f"pip install --upgrade 'torch>={needed}'"
        )
    return torch


@functools.cache
def load_ops() -> None:
    """Register the ops of `torch.ops.lstm_fast`; further calls do nothing.

    Raises ImportError if torch is missing or too old, or if the ops are not compiled.
    """
    torch = _require_torch()
    if not _OPS.exists():
        raise _not_compiled(f"there is no {_OPS.name} in {_PACKAGE}")
    try:
        torch.ops.load_library(str(_OPS))
    except OSError as error:
        raise ImportError(
            f"{_OPS.name} cannot be loaded with torch {torch.__version__} ({error}). "
            f"{_how_to_build()}"
        ) from error


@functools.cache
def load_kernels() -> ModuleType:
    """The module `lstm_fast._kernels`: the kernels on NumPy arrays.

    Raises ImportError if it is not compiled for this Python.
    """
    try:
        return importlib.import_module("lstm_fast._kernels")
    except ModuleNotFoundError as error:
        if error.name != "lstm_fast._kernels":
            raise
        python = f"{sys.implementation.name} {sys.version_info.major}.{sys.version_info.minor}"
        raise _not_compiled(f"there is no _kernels for {python} in {_PACKAGE}") from error


@functools.cache
def load_bound() -> ModuleType:
    """`load_kernels()`, bound to torch and the ops: direct calls, frozen weights, streams and
    sessions."""
    torch = _require_torch()
    load_ops()
    kernels = load_kernels()
    try:
        kernels.bind(
            str(_OPS),
            torch.Tensor,
            torch.nn.Parameter,
            torch.Tensor.is_neg,
            torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors,
            torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs,
            [
                torch._C._len_torch_dispatch_stack,
                torch._C._are_functorch_transforms_active,
                torch._C._get_tracing_state,
                torch._C._autograd._profiler_enabled,
                functools.partial(  # traces as make_fx(pre_dispatch=True) makes
                    torch._C._dispatch_tls_is_dispatch_key_included,
                    torch._C.DispatchKey.PreDispatch,
                ),
            ],
            torch.Tensor.detach,
            torch.Tensor.is_inference,
        )
    except ImportError as error:
        raise ImportError(f"{error}. {_how_to_build()}") from error
    return kernels


@functools.cache
def cuda_capability(device: int) -> int:
    """The compute capability that the CUDA kernels a device runs were compiled for, as
    10 * major + minor; 0, with a warning that says why, where it runs none."""
    why = ctypes.create_string_buffer(256)
    capability: int = ctypes.CDLL(str(_OPS)).lstm_fast_cuda_capability(
        device, why, ctypes.c_size_t(len(why))
    )
    if not capability:
        archs = " ".join(build_info()["cuda_archs"])
        warnings.warn(
            f"torch.nn.LSTM computes on cuda:{device}, which does not run the CUDA kernels of "
            f"lstm_fast, built for {archs}: {why.value.decode()}",
            stacklevel=2,
        )
    return capability


def empty_cache() -> None:
    """Give memory that is kept for further calls back to the operating system.

    Calls on the CPU keep large buffers (of 64 KiB and more, 256 MiB in all) when they are done with
    them: fresh memory is cleared page by page, which can take longer than the arithmetic on it.
    Worth calling after a training whose process goes on to do something else.
    """
    load_ops()
    ctypes.CDLL(str(_OPS)).lstm_fast_empty_cache()


def build_info() -> BuildInfo:
    """How the compiled part was built and which instruction set is in use."""
    info: BuildInfo = load_kernels().build_info()
    return info
