"""The CUDA kernels compiled for the CPU (csrc/cuda/emulation/device.h), and runs of them."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.numpy_lstm import Problem

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "build" / "emulation"
ELEMENTS = {
    "float32": "float",
    "float64": "double",
    "float16": "__half",
    "bfloat16": "__nv_bfloat16",
}
SANITIZERS = {
    "none": ([], []),
    "address": (["-fsanitize=address"], ["-DLSTM_FAST_EMULATION_ASAN"]),
    "thread": (["-fsanitize=thread"], ["-DLSTM_FAST_EMULATION_TSAN"]),
}


def cuda_home() -> Path:
    """The CUDA toolkit, whose headers the kernels include; skips the test where there is none."""
    home = Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda")
    if not (home / "include" / "cuda_fp16.h").exists():
        pytest.skip(f"no CUDA headers in {home}; CUDA_HOME names the toolkit")
    if shutil.which("g++") is None or platform.machine() != "x86_64":
        pytest.skip("the emulation of CUDA needs g++ on x86-64")
    return home


def compiled(source: Path, flags: Sequence[str]) -> Path:
    """The object file of a source; compiled if what the preprocessor makes of it is new."""
    # Lines are all that a sanitizer's message needs.
    command = ["g++", "-std=c++17", "-O1", "-g1", "-fPIC", "-fvisibility=hidden"]
    command += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    command += ["-DLSTM_FAST_CUDA_EMULATION", *flags]
    command += ["-isystem", str(cuda_home() / "include"), "-x", "c++", str(source)]
    text = subprocess.run([*command, "-E", "-P"], capture_output=True, check=True).stdout
    key = hashlib.sha256(text + " ".join(flags).encode()).hexdigest()[:16]
    out = CACHE / f"{source.stem}.{key}.o"
    if not out.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        new = out.with_suffix(f".{os.getpid()}")
        subprocess.run([*command, "-c", "-o", str(new)], check=True)
        new.rename(out)
    return out


Source = tuple[Path, list[str]]  # and the flags to compile it with


def sources(sanitizer: str, planted: Path | None = None) -> list[Source]:
    """Kernels and emulation, float32 and float16 with a sanitizer; what takes longest comes first.

    planted: a csrc with faults in it, for the kernels of float32 (planted.h).
    """
    flags, of_scheduler = SANITIZERS[sanitizer]
    csrc = ROOT / "csrc"
    kernels = []
    for dtype, element in ELEMENTS.items():
        names = [f"-DLSTM_FAST_DTYPE={dtype}", f"-DLSTM_FAST_ELEMENT={element}"]
        # The other two are the same templates, and compiling them with sanitizers takes long.
        watch = flags if dtype in ("float32", "float16") else []
        root = csrc
        if planted and dtype == "float32":
            root = planted
            names += ["-O0", "-include", str(ROOT / "tests" / "cuda" / "planted.h")]
        kernels.append((root / "cuda" / "kernels.cu", [*watch, *names]))
    return [
        *kernels,
        (csrc / "arguments.cpp", flags),
        (csrc / "cuda" / "plan.cpp", flags),
        (csrc / "cuda" / "dispatch.cpp", flags),
        (csrc / "cuda" / "device.cu", flags),
        (csrc / "cuda" / "variant.cu", flags),
        # Not instrumented: see there.
        (csrc / "cuda" / "emulation" / "scheduler.cpp", of_scheduler),
    ]


def all_compiled(sources: Sequence[Source]) -> list[Path]:
    """The object files of sources, as many at a time as there are processors."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda item: compiled(*item), sources))


def program(
    folder: Path, sanitizer: str, planted: Path | None = None, name: str = "run_stack"
) -> Path:
    """A program of this folder, linked with the kernels."""
    flags, _ = SANITIZERS[sanitizer]
    main = ROOT / "tests" / "cuda" / f"{name}.cpp", flags
    out = folder / f"{name}_{sanitizer}"
    linked = [str(o) for o in all_compiled([main, *sources(sanitizer, planted)])]
    subprocess.run(["g++", *flags, *linked, "-o", str(out)], check=True)
    return out


def ops_library(folder: Path) -> Path:
    """The ops over the emulated kernels: torch.ops.lstm_fast_cuda_emulation."""
    torch_folder = Path(torch.__file__).parent
    flags = [
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
        "-DTORCH_STABLE_ONLY",
        *("-isystem", str(torch_folder / "include")),
    ]
    ops = [(path, flags) for path in (ROOT / "csrc" / "ops" / "cuda").glob("*.cpp")]
    out = folder / "ops.so"
    linked = [str(o) for o in all_compiled([*sources("none"), *ops])]
    libraries = [f"-L{torch_folder / 'lib'}", "-ltorch_cpu"]
    subprocess.run(["g++", "-shared", *linked, *libraries, "-o", str(out)], check=True)
    return out


@dataclass(frozen=True)
class Device:
    """What the planner is told: as in csrc/cuda/plan.h."""

    compute_capability: int = 90
    multiprocessors: int = 4
    shared_bytes: int = 227 << 10
    l2_bytes: int = 50 << 20
    cluster_blocks: int = 8


class EmulationError(Exception):
    """The program ended with an error, a sanitizer's for one; what it said is the message."""


def run_program(
    program: Path,
    arrays: Sequence[np.ndarray],
    seed: int = 0,
    resident_blocks: int | None = None,
    fault: int = 0,
) -> np.ndarray:
    """The numbers that a program answers these with.

    resident_blocks: how many blocks find room on the device at the same time; None for all.
    fault: the number of the planted fault that is in force; 0 for none.
    """
    environment = {
        **os.environ,
        "LSTM_FAST_EMULATION_SEED": str(seed),
        "LSTM_FAST_PLANTED_FAULT": str(fault),
        "TSAN_OPTIONS": "halt_on_error=1",
    }
    if resident_blocks is not None:
        environment["LSTM_FAST_EMULATION_RESIDENT_BLOCKS"] = str(resident_blocks)
    data = np.concatenate([array.astype(np.float64).ravel() for array in arrays])
    result = subprocess.run(
        [program],
        input=data.tobytes(),
        capture_output=True,
        env=environment,
    )
    if result.returncode:
        raise EmulationError(result.stderr.decode())
    return np.frombuffer(result.stdout)


def run(
    program: Path,
    problem: Problem,
    dtype: str,
    allow_tf32: bool = False,
    device: Device = Device(),
    seed: int = 0,
    resident_blocks: int | None = None,
    fault: int = 0,
    recompute_gates: bool = False,
) -> list[np.ndarray]:
    """The results in the order of `Problem.reference`, then y, h_n, c_n without saving.

    seed, resident_blocks, fault: see `run_program`.
    """
    header = [
        list(ELEMENTS).index(dtype),
        *(problem.T, problem.B, problem.I, problem.H, problem.out, problem.L, problem.D),
        *(bool(problem.P), problem.biases, problem.states, problem.lengths is not None),
        allow_tf32,
        recompute_gates,
        *astuple(device),
    ]
    arrays = [np.array(header), *([problem.batch_sizes] if problem.lengths else []), problem.x]
    arrays += [problem.h0, problem.c0] if problem.states else []
    arrays += [problem.grad_y, problem.grad_h_n, problem.grad_c_n, *problem.params]
    numbers = run_program(program, arrays, seed, resident_blocks, fault)
    shapes = [*problem.result_shapes, *problem.result_shapes[:3]]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    assert len(numbers) == ends[-1]
    return [
        part.reshape(shape)
        for part, shape in zip(np.split(numbers, ends[:-1]), shapes, strict=True)
    ]
