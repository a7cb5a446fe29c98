"""lstm_fast beside torch.nn: `python -m pytest benchmarks [--quick]`.

The figures that count are in `extra_info`, from one interleaved run of both implementations; what
pytest-benchmark measures itself, one after the other, is for its own table.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

import lstm_fast
from benchmarks import measure
from benchmarks.cases import OVERHEAD, Case
from benchmarks.measure import Run, Timing

IMPLEMENTATIONS = ("lstm_fast", "torch")
# How many times nn.LSTM's time for hardly any arithmetic is ours at least. Measured, on a Zen 4:
# 8.6, 7.1 and 2.4; a call of ours takes 9 us in inference, a training step, with a loss of torch's,
# 140.
OVERHEAD_RATIOS = {"inference": 6.5, "step": 5.5, "training": 1.6}


@dataclass(frozen=True)
class Comparison:
    """Both implementations of one piece of work, timed in turns."""

    runs: tuple[Run, Run]
    timings: tuple[Timing, Timing]
    flops: int
    gemm_rate: float

    def info(self, implementation: int) -> dict[str, float]:
        own, baseline = self.timings[implementation], self.timings[1]
        rate = self.flops / own.low
        return {
            "low_us": own.low * 1e6,
            "median_us": own.median * 1e6,
            "samples": own.samples,
            "ratio": baseline.low / own.low,
            "ratio_of_medians": baseline.median / own.median,
            "gflops": rate / 1e9,
            "gemm_gflops": self.gemm_rate / 1e9,
            "share_of_gemm": rate / self.gemm_rate,
        }


# Both tests of a group share the run.
@functools.lru_cache(maxsize=1)
def compare(
    work: str,
    modules: tuple[type[nn.Module], type[nn.Module]],
    case: Case,
    threads: int,
    dtype: torch.dtype,
    seconds: float,
) -> Comparison:
    torch.set_num_threads(threads)
    gemm_rate = measure.gemm_rate(dtype, 0.1 * seconds)
    x = measure.inputs(case, dtype, cell=work == "step" and issubclass(modules[1], nn.LSTMCell))
    prepare = {"step": measure.step, "loop": measure.loop, **measure.WORKS}[work]
    ours, theirs = (prepare(measure.build(m, case, dtype), x) for m in modules)
    timings = measure.interleave([ours, theirs], seconds)
    flops = case.flops(training=work.startswith("training") or work == "loop")
    return Comparison((ours, theirs), (timings[0], timings[1]), flops, gemm_rate)


def report(
    benchmark: BenchmarkFixture, implementation: int, case: Case, comparison: Comparison
) -> None:
    timing = comparison.timings[implementation]
    benchmark.extra_info.update(dataclasses.asdict(case))
    benchmark.extra_info.update(comparison.info(implementation))
    seconds = timing.median * timing.calls
    rounds = max(1, min(20, int(0.1 / seconds)))
    benchmark.pedantic(comparison.runs[implementation], rounds=rounds, iterations=timing.calls)


# The topmost decorator varies fastest: the two tests of a group run one after the other.
@pytest.mark.parametrize("implementation", [0, 1], ids=IMPLEMENTATIONS)
@pytest.mark.parametrize("work", measure.WORKS)
def test_lstm(
    benchmark: BenchmarkFixture,
    implementation: int,
    work: str,
    case: Case,
    threads: int,
    dtype: torch.dtype,
    seconds: float,
) -> None:
    benchmark.group = f"{case} {work}, threads: {threads}"
    benchmark.extra_info.update(work=work, module="LSTM", threads=threads)
    modules = (lstm_fast.LSTM, nn.LSTM)
    comparison = compare(work, modules, case, threads, dtype, seconds)
    report(benchmark, implementation, case, comparison)


@pytest.mark.parametrize("implementation", [0, 1], ids=IMPLEMENTATIONS)
@pytest.mark.parametrize("module", ["LSTM", "LSTMCell"])
def test_step(
    benchmark: BenchmarkFixture,
    implementation: int,
    module: str,
    step_case: Case,
    dtype: torch.dtype,
    seconds: float,
) -> None:
    if module == "LSTMCell" and step_case.L > 1:
        pytest.skip("a cell has one layer")
    benchmark.group = f"{step_case} one step of {module}, threads: 1"
    benchmark.extra_info.update(work="step", module=module, threads=1)
    modules = (getattr(lstm_fast, module), getattr(nn, module))
    comparison = compare("step", modules, step_case, 1, dtype, seconds)
    report(benchmark, implementation, step_case, comparison)


@pytest.mark.parametrize("implementation", [0, 1], ids=IMPLEMENTATIONS)
def test_loop(
    benchmark: BenchmarkFixture,
    implementation: int,
    loop_case: Case,
    dtype: torch.dtype,
    seconds: float,
) -> None:
    benchmark.group = f"{loop_case} training of a loop over LSTMCell, threads: 1"
    benchmark.extra_info.update(work="loop", module="LSTMCell", threads=1)
    modules = (lstm_fast.LSTMCell, nn.LSTMCell)
    comparison = compare("loop", modules, loop_case, 1, dtype, seconds)
    report(benchmark, implementation, loop_case, comparison)


@pytest.mark.parametrize("implementation", [0, 1], ids=IMPLEMENTATIONS)
@pytest.mark.parametrize("work", OVERHEAD_RATIOS)
def test_overhead(
    benchmark: BenchmarkFixture,
    implementation: int,
    work: str,
    dtype: torch.dtype,
    seconds: float,
) -> None:
    """From a call in Python to the arithmetic and back; fails where that has grown."""
    benchmark.group = f"overhead, {work}, threads: 1"
    benchmark.extra_info.update(work=f"overhead {work}", module="LSTM", threads=1)
    comparison = compare(work, (lstm_fast.LSTM, nn.LSTM), OVERHEAD, 1, dtype, seconds)
    report(benchmark, implementation, OVERHEAD, comparison)
    assert comparison.info(0)["ratio"] > OVERHEAD_RATIOS[work]
