"""Timing of two functions against each other, and of a matrix product as the machine's limit."""

from __future__ import annotations

import functools
import gc
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import lstm_fast
from benchmarks.cases import Case

Run = Callable[[], object]
Input = Tensor | PackedSequence

# Shorter samples would measure the clock and a loop of Python as much as the function.
MIN_SAMPLE_SECONDS = 200e-6


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: lowest decile and median over the samples of `calls` calls each."""

    low: float
    median: float
    samples: int
    calls: int


def cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS


def once(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def sample(run: Run, calls: int) -> float:
    """Seconds of one call, averaged over `calls` in a row."""
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def warm_up(run: Run, seconds: float) -> int:
    """Call for `seconds`, at least twice if calls are short; return how many make a sample."""
    end = time.perf_counter() + seconds
    fastest = once(run)
    # The first call sets things up, which says nothing of the time of short ones.
    if fastest < 0.1:
        fastest = once(run)
    while time.perf_counter() < end:
        fastest = min(fastest, once(run))
    return max(1, round(MIN_SAMPLE_SECONDS / fastest))


def interleave(runs: Sequence[Run], seconds: float, min_rounds: int = 5) -> list[Timing]:
    """Time each function once a round for about `seconds`, so that noise hits all of them alike.

    Each comes after each other one: it finds in the caches what that one left there.
    """
    calls = [warm_up(run, 0.1 * seconds / len(runs)) for run in runs]
    samples: list[list[float]] = [[] for _ in runs]
    order = random.Random(0)
    collecting = gc.isenabled()
    gc.disable()
    try:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(samples[0]) < min_rounds:
            for i in order.sample(range(len(runs)), len(runs)):
                samples[i].append(sample(runs[i], calls[i]))
    finally:
        if collecting:
            gc.enable()
    return [
        Timing(low_decile(taken), statistics.median(taken), len(taken), n)
        for taken, n in zip(samples, calls, strict=True)
    ]


def low_decile(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 10]


def gemm_rate(dtype: torch.dtype, seconds: float) -> float:
    """FLOP/s of a product of two 1024 x 1024 matrices by the faster of torch's libraries.

    On a Zen 5, MKL leaves half of each vector unit idle and oneDNN does not. Measured anew beside
    each comparison: on a shared machine it drifts within minutes.
    """
    a, b = torch.randn(2, 1024, 1024).to(dtype)
    products: list[Run] = [functools.partial(torch.mm, a, b, out=torch.empty_like(a))]
    if dtype == torch.float32 and torch.backends.mkldnn.is_available():
        products.append(functools.partial(nn.functional.linear, a.to_mkldnn(), b.to_mkldnn()))
    return 2 * 1024**3 / min(timing.low for timing in interleave(products, seconds))


def inference(module: nn.Module, x: Input) -> Run:
    """A forward pass without gradients."""
    module.eval()

    def run() -> None:
        with torch.no_grad():
            module(x)

    return run


def frozen(module: nn.Module, x: Input) -> Run:
    """`inference` of weights that no longer change, which ours packs once."""
    return inference(lstm_fast.freeze(module), x)


def training(module: nn.Module, x: Input) -> Run:
    """Forward and backward with a loss on the outputs of all steps."""
    if isinstance(x, PackedSequence):
        return _training(module, x, lambda output: output.data.square().mean())
    return _training(module, x, lambda output: output.square().mean())


def training_last(module: nn.Module, x: Input) -> Run:
    """Forward and backward with a loss on the output of the last step alone.

    For long sequences the gradients of early steps fall below 1e-38: subnormal numbers.
    """
    return _training(module, x, lambda output: output[-1].square().mean())


def _training(module: nn.Module, x: Input, loss: Callable[[Any], Tensor]) -> Run:
    parameters = list(module.parameters())

    def run() -> None:
        for parameter in parameters:
            parameter.grad = None
        output, _ = module(x)
        loss(output).backward()

    return run


def step(module: nn.Module, x: Tensor) -> Run:
    """One step of an LSTM or LSTMCell, its state carried from call to call."""
    module.eval()
    cell = isinstance(module, nn.LSTMCell)
    state: tuple[Tensor, Tensor] | None = None

    def run() -> None:
        nonlocal state
        with torch.no_grad():
            if cell:
                state = module(x, state)
            else:
                _, state = module(x, state)

    return run


class _Loop(nn.Module):
    """An LSTMCell over all steps, as an LSTM is called."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Any:
        state, outputs = None, []
        for row in x:
            state = self.cell(row, state)
            outputs.append(state[0])
        return torch.stack(outputs), state


def loop(cell: nn.Module, x: Tensor) -> Run:
    """`training` of an LSTMCell, step by step."""
    return training(_Loop(cell), x)


WORKS: dict[str, Callable[[nn.Module, Input], Run]] = {
    "inference": inference,
    "frozen": frozen,
    "training": training,
    "training_last": training_last,
}


def build(module: type[nn.Module], case: Case, dtype: torch.dtype) -> nn.Module:
    """The module of a case, with the same weights for every class of the same parameters."""
    torch.manual_seed(0)
    if issubclass(module, nn.LSTMCell):
        return module(case.I, case.H, dtype=dtype)
    return module(case.I, case.H, case.L, bidirectional=case.D == 2, dtype=dtype)


def inputs(case: Case, dtype: torch.dtype, cell: bool = False) -> Tensor:
    """Standard normal inputs [T, B, I], or [B, I] for a cell; none of them is subnormal."""
    torch.manual_seed(1)
    shape = (case.B, case.I) if cell else (case.T, case.B, case.I)
    return torch.randn(shape).to(dtype)
