"""The CUDA kernels, run on the CPU by emulation, against float64 NumPy; with sanitizers, in many
orders of threads, and with faults that must be found."""

from __future__ import annotations

import functools
import itertools
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstm_fast._load import load_kernels
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
    Problem(T=5, B=11, I=3, H=145, D=2, lengths=[5] * 3 + [4] * 6 + [2, 1]),
    Problem(T=3, B=3, I=2, H=130),
    Problem(T=3, B=2, I=2, H=321, states=False),
]
# Many multiprocessors make tiles small, few make them large, and leave a cluster several groups of
# rows. Up to 96 units in TF32, 128 in others, are in one block on all but Turing; more are in a
# cluster on Hopper, in a grid on Ampere, where shared memory is enough.
DEVICES = {
    "Hopper": Device(multiprocessors=1000),
    "small Hopper": Device(multiprocessors=1),
    "Ampere": Device(80, 13, 163 << 10, 40 << 20, 1),
    "Turing": Device(75, 40, 64 << 10, 4 << 20, 1),
    "stepwise, small tiles": Device(75, 1000, 0, cluster_blocks=1),
    "stepwise, large tiles": Device(75, 1, 0, cluster_blocks=1),
    "no shared memory": Device(shared_bytes=0),
    # Chunks of as few steps as have 256 rows.
    "no cache": Device(multiprocessors=1, l2_bytes=0),
    # Not even 70 units have room in one of its blocks.
    "narrow Ampere": Device(80, 13, 48 << 10, 40 << 20, 1),
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


def plan_of(problem: Problem, dtype: str, allow_tf32: bool, device: Device) -> dict[str, Any]:
    shape = {name: getattr(problem, name) for name in "TBIHPLD"}
    plan: dict[str, Any] = load_kernels().cuda_plan(
        dtype, **shape, allow_tf32=allow_tf32, **asdict(device)
    )
    return plan


@functools.cache
def of_bits(problem: Problem, bits: int) -> Problem:
    return replace(problem, bits=bits)


def assert_near_reference(results: list[np.ndarray], problem: Problem, bound: float) -> None:
    expected = problem.reference
    for got, exact in zip(results, [*expected, *expected[:3]], strict=True):
        error = np.abs(got - exact).max(initial=0)
        assert error <= bound * max(1, np.abs(exact).max(initial=0))


def cases(everywhere: list[str], large: list[str]) -> list[Any]:
    """Each problem on some devices, and those that no single block takes on others too."""
    return [
        pytest.param(problem, device, id=f"{case_name(problem)}-{device}")
        for problem in PROBLEMS
        for device in (everywhere + large if problem.H > 96 and not problem.P else everywhere)
    ]


@pytest.mark.parametrize(
    ("problem", "device"),
    cases(["Hopper", "stepwise, small tiles", "stepwise, large tiles"], ["small Hopper", "Ampere"]),
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exact_products(dtype: str, problem: Problem, device: str, programs: Programs):
    results = emulation.run(programs("none"), problem, dtype, device=DEVICES[device])
    assert_near_reference(results, problem, tolerance(problem, dtype))


@pytest.mark.parametrize(
    ("problem", "device"),
    cases(["Hopper", "Turing"], ["small Hopper", "Ampere", "no shared memory"]),
)
@pytest.mark.parametrize("dtype", ROUNDED)
def test_rounded_products(dtype: str, problem: Problem, device: str, programs: Programs):
    """Weights and inputs are exact; h and the gradients of the gates are rounded at each step, by
    eps / 2 at most and in random directions, so that sums err less than their terms; a result is
    rounded once more. Together less than eps, and twice that is allowed."""
    bits, eps = ROUNDED[dtype]
    problem = of_bits(problem, bits)
    results = emulation.run(programs("none"), problem, dtype, True, DEVICES[device])
    assert_near_reference(results, problem, 2 * eps)


@pytest.mark.parametrize(("dtype", "is_rounded"), [("float32", False), ("bfloat16", True)])
def test_gradients_of_many_rows(dtype: str, is_rounded: bool, programs: Programs):
    """More than `kRowsOfSum` of weight_grad.cuh, in one part."""
    problem = Problem(T=45, B=100, I=3, H=20)
    bits, eps = ROUNDED[dtype]
    bound = 2 * eps if is_rounded else tolerance(problem, dtype)
    if is_rounded:
        problem = of_bits(problem, bits)
    results = emulation.run(programs("none"), problem, dtype, is_rounded, DEVICES["small Hopper"])
    assert_near_reference(results, problem, bound)


def test_tf32_only_where_allowed_and_there(programs: Programs):
    problem = replace(PROBLEMS[4], bits=11)
    exact = emulation.run(programs("none"), problem, "float32")
    rounded = emulation.run(programs("none"), problem, "float32", allow_tf32=True)
    turing = DEVICES["Turing"]
    on_turing = emulation.run(programs("none"), problem, "float32", True, device=turing)
    exact = emulation.run(programs("none"), problem, "float32", device=turing)
    assert any((a != b).any() for a, b in zip(exact, rounded, strict=True))
    for a, b in zip(exact, on_turing, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("problem", "device"),
    [(PROBLEMS[9], "Hopper"), (PROBLEMS[14], "Hopper"), (PROBLEMS[14], "Ampere")],
)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_order_of_threads_changes_no_bit(
    dtype: str, problem: Problem, device: str, programs: Programs
):
    first, *others = (
        emulation.run(programs("none"), problem, dtype, device=DEVICES[device], seed=seed)
        for seed in range(4)
    )
    for other in others:
        for a, b in zip(first, other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("device", ["Hopper", "small Hopper", "Ampere", "no cache"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_recomputed_gates(dtype: str, device: str, programs: Programs):
    """Forward is the same to the bit, gradients have the same bound."""
    for problem in PROBLEMS:
        bits, eps = ROUNDED[dtype] if dtype == "bfloat16" else (None, tolerance(problem, dtype) / 2)
        problem = of_bits(problem, bits) if bits else problem
        kept, recomputed = (
            emulation.run(programs("none"), problem, dtype, False, DEVICES[device], **options)
            for options in ({}, {"recompute_gates": True})
        )
        for a, b in zip(kept[:3], recomputed[:3], strict=True):
            np.testing.assert_array_equal(a, b)
        assert_near_reference(recomputed, problem, 2 * eps)


def test_saving_for_backward_changes_no_bit(programs: Programs):
    for problem, device in itertools.product(PROBLEMS, ("Hopper", "Ampere", "no shared memory")):
        results = emulation.run(programs("none"), problem, "float32", device=DEVICES[device])
        for saved, unsaved in zip(results[:3], results[-3:], strict=True):
            np.testing.assert_array_equal(saved, unsaved)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("way", ["stepwise, small tiles", "Hopper", "small Hopper", "Ampere"])
def test_chunks_change_no_bit(way: str, dtype: str, programs: Programs):
    """Inference works through long sequences in chunks; the run that keeps all for backward does
    not."""
    device = replace(DEVICES[way], l2_bytes=0)
    lengths = [25] * 3 + [22] * 4 + [21] * 3 + [10] * 2
    for H, P, L in ((20, 7, 2), (20, None, 2), (130, None, 1)):
        problem = Problem(T=25, B=12, I=3, H=H, P=P, L=L, D=2, lengths=lengths, bits=8)
        plan = plan_of(problem, dtype, True, device)
        assert plan["steps_per_chunk"] == 22
        assert (plan["forward"]["regime"] == "stepwise") == ("stepwise" in way or bool(P))
        results = emulation.run(programs("none"), problem, dtype, True, device)
        for saved, unsaved in zip(results[:3], results[-3:], strict=True):
            np.testing.assert_array_equal(saved, unsaved)


def test_rows_do_not_depend_on_tiles(programs: Programs):
    """Sums have one order, whatever the tile or the rows that a block computes; but for those of
    weights, cut into parts."""
    for problem, *kinds in (
        (PROBLEMS[2], "stepwise, small tiles", "stepwise, large tiles"),
        (PROBLEMS[2], "small Hopper", "Hopper"),
        (PROBLEMS[9], "small Hopper", "Hopper"),
        (PROBLEMS[14], "small Hopper", "Hopper"),
    ):
        small, large = (
            emulation.run(programs("none"), problem, "float32", device=DEVICES[name])
            for name in kinds
        )
        for a, b in zip(small[:6], large[:6], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("device", ["Hopper", "Ampere"])
def test_blocks_that_find_no_room_together(device: str, dtype: str, programs: Programs):
    """Steps are taken one by one then, instead of a wait that never ends."""
    problem = replace(PROBLEMS[14], bits=11)
    alone, stepwise = (
        emulation.run(programs("none"), problem, dtype, False, DEVICES[name], resident_blocks=room)
        for name, room in ((device, 1), ("no shared memory", None))
    )
    for a, b in zip(alone, stepwise, strict=True):
        np.testing.assert_array_equal(a, b)


# Few steps: the thread sanitizer's time is in barriers, and grows with the square of the threads.
LENGTHS = [3] * 3 + [2] * 6 + [1] * 2
SANITIZED = [
    ("float32", False, PROBLEMS[2], "stepwise, large tiles"),
    ("float32", False, Problem(T=2, B=260, I=3, H=5), "stepwise, small tiles"),
    ("float32", False, PROBLEMS[10], "stepwise, large tiles"),
    ("float32", False, PROBLEMS[13], "small Hopper"),
    ("float32", True, PROBLEMS[9], "Hopper"),
    ("float32", False, Problem(T=4, B=90, I=2, H=9), "no cache"),
    ("float16", False, Problem(T=4, B=90, I=2, H=9), "no cache"),
    ("float32", True, Problem(T=3, B=9, I=5, H=37, D=2), "stepwise, large tiles"),
    ("float16", False, PROBLEMS[8], "Hopper"),
    ("float16", False, PROBLEMS[4], "Turing"),
    ("float16", False, Problem(T=3, B=11, I=5, H=70, D=2, lengths=LENGTHS), "Hopper"),
    ("float32", False, Problem(T=3, B=11, I=3, H=130, D=2, lengths=LENGTHS), "small Hopper"),
    ("float32", True, Problem(T=3, B=3, I=2, H=100), "Hopper"),
    ("float32", False, Problem(T=3, B=3, I=2, H=70), "narrow Ampere"),
    ("float16", False, PROBLEMS[15], "Ampere"),
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


def test_sanitizers_see_every_regime():
    seen = set()
    for dtype, allow_tf32, problem, device in SANITIZED:
        plan = plan_of(problem, dtype, allow_tf32, DEVICES[device])
        for direction in ("forward", "backward"):
            seen.add((plan[direction]["regime"], direction, plan["tensor_cores"]))
    regimes = ("stepwise", "one-block", "cluster", "grid-resident")
    assert seen == set(itertools.product(regimes, ("forward", "backward"), (False, True)))


@dataclass(frozen=True)
class Fault:
    """A change of a source, in force where PLANTED is true, and who says what of it in which of
    RUNS."""

    sanitizer: str
    file: str
    old: str
    new: str
    said: str
    where: str = "one block"


# Problem, device, whether in TF32
RUNS = {
    "one block": (PROBLEMS[13], "Hopper", True),
    "cluster": (Problem(T=3, B=3, I=2, H=100), "Hopper", True),
    "grid": (Problem(T=3, B=3, I=2, H=70), "narrow Ampere", False),
}
FAULTS = {
    "a barrier removed": Fault(
        "thread",
        "tile.cuh",
        "      place<kN, B>(b_next, b_slice);\n      __syncthreads();\n",
        "      place<kN, B>(b_next, b_slice);\n      if (!PLANTED) __syncthreads();\n",
        "data race",
    ),
    "a barrier between steps removed": Fault(
        "thread",
        "one_block.cuh",
        "after[(row + j) * kRow + unit] = Store::of(h[j]);\n    }\n    __syncthreads();\n",
        "after[(row + j) * kRow + unit] = Store::of(h[j]);\n    }\n"
        "    if (!PLANTED) __syncthreads();\n",
        "data race",
    ),
    "a barrier after a product removed": Fault(
        "thread",
        "team.cuh",
        "          });\n      __syncthreads();\n",
        "          });\n      if (!PLANTED) __syncthreads();\n",
        "data race",
        "cluster",
    ),
    "a cluster in which one thread waits for all": Fault(
        "thread",
        "exchange.cuh",
        "    wait(barrier(group, number)",
        "    if (!PLANTED || threadIdx.x == 0) wait(barrier(group, number)",
        "data race",
        "cluster",
    ),
    "a cluster that is told of units that are not there": Fault(
        "thread",
        "team.cuh",
        "if (mine && unit < chunks * L::kAlong)",
        "if (mine && (PLANTED || unit < chunks * L::kAlong))",
        "data race",
        "cluster",
    ),
    "a grid that waits for the exchange before": Fault(
        "thread",
        "exchange.cuh",
        "wait_for_flag(flags(group) + block, number + 1)",
        "wait_for_flag(flags(group) + block, number + (PLANTED ? 0 : 1))",
        "data race",
        "grid",
    ),
    "a grid with one slot": Fault(
        "thread",
        "exchange.cuh",
        "((first(group) * 2 + number % 2) * boxes",
        "((first(group) * 2 + number % (PLANTED ? 1 : 2)) * boxes",
        "data race",
        "grid",
    ),
    "shared memory too small": Fault(
        "address",
        "stack.cuh",
        "Tile::kThreads,\n             Tile::kSharedBytes,",
        "Tile::kThreads,\n             Tile::kSharedBytes - (PLANTED ? 512 : 0),",
        "heap-buffer-overflow",
    ),
    "shared memory of a team too small": Fault(
        "address",
        "stack.cuh",
        "team_warps(team.units) * 32, team.memory.bytes,",
        "team_warps(team.units) * 32, team.memory.bytes - (PLANTED ? 256 : 0),",
        "heap-buffer-overflow",
        "grid",
    ),
    "a unit too many": Fault(
        "address",
        "one_block.cuh",
        "if (b >= steps.B || unit >= H) continue;\n    p.h_n",
        "if (b >= steps.B || unit >= H + (PLANTED ? 1 : 0)) continue;\n    p.h_n",
        "heap-buffer-overflow",
    ),
    "a unit of a team too many": Fault(
        "address",
        "team.cuh",
        "if (unit < H) p.grad_h0",
        "if (unit < H + (PLANTED ? 1 : 0)) p.grad_h0",
        "heap-buffer-overflow",
        "cluster",
    ),
    "a row too many": Fault(
        "address",
        "product.cuh",
        "if (m >= p.M || n >= p.N) return;",
        "if (m >= p.M + (PLANTED ? 1 : 0) || n >= p.N) return;",
        "heap-buffer-overflow",
    ),
    "a lane that misses an instruction of its warp": Fault(
        "none",
        "tile.cuh",
        "for (int j = 0; j < kColumns; ++j) mma<T>",
        "for (int j = 0; j < kColumns; ++j) if (!PLANTED || threadIdx.x != 5) mma<T>",
        "not reached by all threads",
    ),
    "a block of a cluster that gets nothing": Fault(
        "none",
        "exchange.cuh",
        "for (int to = 0; to < team_.blocks; ++to)",
        "for (int to = PLANTED ? 1 : 0; to < team_.blocks; ++to)",
        "wait for what never comes",
        "cluster",
    ),
    "a grid in which a block keeps silent": Fault(
        "none",
        "exchange.cuh",
        "if (threadIdx.x == 0) store_flag",
        "if (threadIdx.x == 0 && !(PLANTED && rank() == 1)) store_flag",
        "wait for what never comes",
        "grid",
    ),
}


def run_planted(program: Path, where: str, fault: int) -> None:
    problem, device, allow_tf32 = RUNS[where]
    emulation.run(program, problem, "float32", allow_tf32, DEVICES[device], fault=fault)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """The program of a sanitizer with all faults in it, of which none is in force by itself."""
    csrc = tmp_path_factory.mktemp("planted") / "csrc"
    shutil.copytree(ROOT / "csrc", csrc)
    for number, fault in enumerate(FAULTS.values(), 1):
        path = csrc / "cuda" / fault.file
        source = path.read_text()
        assert source.count(fault.old) == 1
        in_force = f"(lstm_fast::cuda::planted_fault == {number})"
        path.write_text(source.replace(fault.old, fault.new.replace("PLANTED", in_force)))

    @functools.cache
    def get(sanitizer: str) -> Path:
        program = emulation.program(csrc.parent, sanitizer, planted=csrc)
        for where in {f.where for f in FAULTS.values() if f.sanitizer == sanitizer}:
            run_planted(program, where, 0)
        return program

    return get


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_found(name: str, planted: Programs):
    fault, number = FAULTS[name], list(FAULTS).index(name) + 1
    with pytest.raises(EmulationError, match=fault.said):
        run_planted(planted(fault.sanitizer), fault.where, number)
