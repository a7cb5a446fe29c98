"""Ragged sequences, packed: beside a padded batch with as many steps in all, and torch.nn.LSTM.

The padded run is ours, of the rows of the case, each of T steps. The packed one has as many rows
and does the same arithmetic, but in more steps one after the other, with fewer rows each: 3 T / 2
steps where lengths are spread evenly from T / 2 on ("half"), 2 T - 1 from 1 on ("full").
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import lstm_fast
from benchmarks import measure
from benchmarks.cases import Case

WORKS = ("inference", "training")


def lengths(case: Case, spread: str) -> torch.Tensor:
    """[B], in even steps down to T less the spread; their sum is that of B rows of T steps."""
    half = case.T // 2 if spread == "half" else case.T - 1
    return torch.linspace(case.T + half, case.T - half, case.B).round().long()


def packed_inputs(case: Case, spread: str, dtype: torch.dtype) -> PackedSequence:
    of_rows = lengths(case, spread)
    x = measure.inputs(dataclasses.replace(case, T=int(of_rows[0])), dtype)
    return pack_padded_sequence(x, of_rows)


@pytest.mark.parametrize("spread", ["half", "full"])
@pytest.mark.parametrize("work", WORKS)
def test_packed(
    benchmark: BenchmarkFixture,
    work: str,
    spread: str,
    packed_case: Case,
    threads: int,
    dtype: torch.dtype,
    seconds: float,
) -> None:
    torch.set_num_threads(threads)
    padded = measure.inputs(packed_case, dtype)
    packed = packed_inputs(packed_case, spread, dtype)
    assert len(packed.data) == packed_case.B * packed_case.T
    ours, theirs = (measure.build(of, packed_case, dtype) for of in (lstm_fast.LSTM, nn.LSTM))
    prepare = measure.WORKS[work]
    runs = [prepare(ours, packed), prepare(ours, padded), prepare(theirs, packed)]
    own, of_padded, of_torch = measure.interleave(runs, seconds)
    benchmark.group = f"{packed_case} packed {work}, {spread} spread, threads: {threads}"
    benchmark.extra_info.update(dataclasses.asdict(packed_case))
    benchmark.extra_info.update(
        work=f"packed {work}",
        spread=spread,
        threads=threads,
        low_us=own.low * 1e6,
        of_padded=own.low / of_padded.low,
        ratio=of_torch.low / own.low,
    )
    benchmark.pedantic(runs[0], rounds=5, iterations=own.calls)
