"""The CUDA kernels, run on the CPU by emulation, against float64 NumPy; with sanitizers, in many
orders of threads, and with faults that must be found."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.cuda import emulation
from tests.cuda.emulation import ROOT, Device, EmulationError
from tests.numpy_lstm import Problem, case_name, tolerance

PROBLEMS = [
    Problem(T=1, B=1, I=1, H=1),
    Problem(T=1, B=9, I=19, H=37, L=2, D=2),
    Problem(T=4, B=70, I=3, H=17, states=False),  # more rows than a large tile
    Problem(T=5, B=1, I=70, H=100, states=False, biases=False),
    Problem(T=7, B=13, I=8, H=32, L=2),
    Problem(T=6, B=7, I=2, H=50, L=3, D=2, states=False),
    Problem(T=150, B=4, I=5, H=20),  # weight gradients in two parts
    Problem(T=5, B=6, I=4, H=16, P=1, L=2, D=2),
    Problem(T=5, B=6, I=4, H=33, P=19, L=2, biases=False),
    Problem(T=9, B=5, I=7, H=31, L=2, D=2, lengths=[9, 9, 4, 2, 1]),
    Problem(T=9, B=5, I=7, H=18, P=3, D=2, lengths=[9, 6, 6, 3, 3], states=False),
    Problem(T=3, B=9, I=5, H=130, D=2),  # too many units for a block
    Problem(T=4, B=19, I=5, H=96, D=2, lengths=[4] * 3 + [3] * 6 + [2] * 9 + [1]),
    Problem(T=3, B=9, I=5, H=11, L=2),
]
# Many multiprocessors make tiles small, few make them large. On Turing halves go step by step.
DEVICES = {
    "small tiles": Device(multiprocessors=1000),
    "large tiles": Device(multiprocessors=1),
    "Turing": Device(compute_capability=75),
}
# What products round their operands to: significant bits, and the distance of 1 from the next one.
ROUNDED = {"float32": (11, 2.0**-10), "float16": (11, 2.0**-10), "bfloat16": (8, 2.0**-7)}

Programs = Callable[[str], Path]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """The program of a sanitizer, built when it is first asked for."""
    folder = tmp_path_factory.mktemp("emulation")
    built: dict[str, Path] = {}

    def get(sanitizer: str) -> Path:
        if sanitizer not in built:
            built[sanitizer] = emulation.program(folder, sanitizer)
        return built[sanitizer]

    return get


def assert_near_reference(results: list[np.ndarray], problem: Problem, bound: float) -> None:
    expected = problem.reference()
    for got, exact in zip(results, [*expected, *expected[:3]], strict=True):
        error = np.abs(got - exact).max(initial=0)
        assert error <= bound * max(1, np.abs(exact).max(initial=0))


@pytest.mark.parametrize("device", ["small tiles", "large tiles"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=case_name)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exact_products(dtype: str, problem: Problem, device: str, programs: Programs):
    results = emulation.run(programs("none"), problem, dtype, device=DEVICES[device])
    assert_near_reference(results, problem, tolerance(problem, dtype))


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize("problem", PROBLEMS, ids=case_name)
@pytest.mark.parametrize("dtype", ROUNDED)
def test_rounded_products(dtype: str, problem: Problem, device: Device, programs: Programs):
    """Weights and inputs are exact; h and the gradients of the gates are rounded at each step, by
    eps / 2 at most and in random directions, so that sums err less than their terms; a result is
    rounded once more. Together less than eps, and twice that is allowed."""
    bits, eps = ROUNDED[dtype]
    problem = replace(problem, bits=bits)
    results = emulation.run(programs("none"), problem, dtype, allow_tf32=True, device=device)
    assert_near_reference(results, problem, 2 * eps)


def test_tf32_only_where_allowed_and_there(programs: Programs):
    problem = replace(PROBLEMS[4], bits=11)
    exact = emulation.run(programs("none"), problem, "float32")
    rounded = emulation.run(programs("none"), problem, "float32", allow_tf32=True)
    turing = Device(compute_capability=75)
    on_turing = emulation.run(programs("none"), problem, "float32", True, device=turing)
    assert any((a != b).any() for a, b in zip(exact, rounded, strict=True))
    for a, b in zip(exact, on_turing, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_order_of_threads_changes_no_bit(dtype: str, seed: int, programs: Programs):
    problem = PROBLEMS[9]
    first = emulation.run(programs("none"), problem, dtype)
    for a, b in zip(first, emulation.run(programs("none"), problem, dtype, seed=seed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_saving_for_backward_changes_no_bit(programs: Programs):
    for problem in PROBLEMS:
        results = emulation.run(programs("none"), problem, "float32")
        for saved, unsaved in zip(results[:3], results[-3:], strict=True):
            np.testing.assert_array_equal(saved, unsaved)


def test_rows_do_not_depend_on_tiles(programs: Programs):
    """Sums have one order, whatever the tile; but for those of weights, cut into parts."""
    problem = PROBLEMS[2]
    small, large = (
        emulation.run(programs("none"), problem, "float32", device=device)
        for device in (DEVICES["small tiles"], DEVICES["large tiles"])
    )
    for a, b in zip(small[:6], large[:6], strict=True):
        np.testing.assert_array_equal(a, b)


SANITIZED = [
    ("float32", False, PROBLEMS[2], "large tiles"),
    ("float32", False, PROBLEMS[6], "small tiles"),
    ("float32", False, PROBLEMS[10], "large tiles"),
    ("float32", True, PROBLEMS[9], "small tiles"),
    ("float32", True, PROBLEMS[11], "large tiles"),
    ("float16", False, PROBLEMS[8], "small tiles"),
    ("float16", False, PROBLEMS[4], "Turing"),
    ("float16", False, PROBLEMS[12], "small tiles"),
]


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
@pytest.mark.parametrize(("dtype", "allow_tf32", "problem", "device"), SANITIZED)
def test_sanitizers_find_nothing(
    dtype: str,
    allow_tf32: bool,
    problem: Problem,
    device: str,
    sanitizer: str,
    programs: Programs,
):
    emulation.run(programs(sanitizer), problem, dtype, allow_tf32, DEVICES[device], seed=7)


# sanitizer, file, what it says there, what it says with the fault, what is said of the fault
FAULTS = {
    "a barrier removed": (
        "thread",
        "tile.cuh",
        "      place<kN, B>(b_next, b_slice);\n      __syncthreads();\n",
        "      place<kN, B>(b_next, b_slice);\n",
        "data race",
    ),
    "a barrier between steps removed": (
        "thread",
        "one_block.cuh",
        "after[(row + j) * kRow + unit] = Store::of(h[j]);\n    }\n    __syncthreads();\n",
        "after[(row + j) * kRow + unit] = Store::of(h[j]);\n    }\n",
        "data race",
    ),
    "shared memory too small": (
        "address",
        "tile.cuh",
        "kSlices > kResult ? kSlices : kResult",
        "(kSlices > kResult ? kSlices : kResult) - 512",
        "heap-buffer-overflow",
    ),
    "a unit too many": (
        "address",
        "one_block.cuh",
        "if (b >= steps.B || unit >= H) continue;\n    p.h_n",
        "if (b >= steps.B || unit > H) continue;\n    p.h_n",
        "heap-buffer-overflow",
    ),
    "a row too many": (
        "address",
        "product.cuh",
        "if (m >= p.M || n >= p.N) return;",
        "if (m > p.M || n >= p.N) return;",
        "heap-buffer-overflow",
    ),
    "a lane that misses an instruction of its warp": (
        "none",
        "tile.cuh",
        "for (int j = 0; j < kColumns; ++j) mma<T>",
        "for (int j = 0; j < kColumns; ++j) if (threadIdx.x != 5) mma<T>",
        "not reached by all threads",
    ),
}


@pytest.mark.parametrize(("sanitizer", "file", "old", "new", "said"), FAULTS.values(), ids=FAULTS)
def test_faults_are_found(
    sanitizer: str, file: str, old: str, new: str, said: str, tmp_path: Path, programs: Programs
):
    problem = PROBLEMS[13]
    emulation.run(programs(sanitizer), problem, "float32", allow_tf32=True)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    path = tmp_path / "csrc" / "cuda" / file
    source = path.read_text()
    assert source.count(old) == 1
    path.write_text(source.replace(old, new))
    faulty = emulation.program(tmp_path, sanitizer, altered=tmp_path)
    with pytest.raises(EmulationError, match=said):
        emulation.run(faulty, problem, "float32", allow_tf32=True)
