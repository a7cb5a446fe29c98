"""Ragged sequences, packed: beside a padded batch with as many steps in all, and torch.nn.LSTM.

The padded run is ours, of the rows of the case, each of T steps. The packed one has as many rows,
whose lengths are spread evenly over 1 to 2 T - 1 steps: the same arithmetic, but twice as many
steps one after the other, with fewer rows each.
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


def lengths(case: Case) -> torch.Tensor:
    """[B], from 2 T - 1 down to 1 in even steps; their sum is that of B rows of T steps."""
    return torch.linspace(2 * case.T - 1, 1, case.B).round().long()


def packed_inputs(case: Case, dtype: torch.dtype) -> PackedSequence:
    x = measure.inputs(dataclasses.replace(case, T=2 * case.T - 1), dtype)
    return pack_padded_sequence(x, lengths(case))


@pytest.mark.parametrize("work", WORKS)
def test_packed(
    benchmark: BenchmarkFixture,
    work: str,
    packed_case: Case,
    threads: int,
    dtype: torch.dtype,
    seconds: float,
) -> None:
    torch.set_num_threads(threads)
    packed, padded = packed_inputs(packed_case, dtype), measure.inputs(packed_case, dtype)
    assert len(packed.data) == packed_case.B * packed_case.T
    ours, theirs = (measure.build(of, packed_case, dtype) for of in (lstm_fast.LSTM, nn.LSTM))
    prepare = measure.WORKS[work]
    runs = [prepare(ours, packed), prepare(ours, padded), prepare(theirs, packed)]
    own, of_padded, of_torch = measure.interleave(runs, seconds)
    benchmark.group = f"{packed_case} packed {work}, threads: {threads}"
    benchmark.extra_info.update(dataclasses.asdict(packed_case))
    benchmark.extra_info.update(
        work=f"packed {work}",
        threads=threads,
        low_us=own.low * 1e6,
        of_padded=own.low / of_padded.low,
        ratio=of_torch.low / own.low,
    )
    benchmark.pedantic(runs[0], rounds=5, iterations=own.calls)
