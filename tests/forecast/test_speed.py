"""Timing of both layers."""

from __future__ import annotations

import pytest

from lstm_fast.forecast.speed import LAYERS, SIZES, Size, Timing, measure


@pytest.mark.parametrize("work", ["inference", "training"])
def test_both_layers_are_timed(work):
    timing = measure(Size(2, 3, 4, 5, 1), work, seconds=0)
    assert set(timing.seconds) == set(LAYERS)
    assert all(value > 0 for value in timing.seconds.values())
    assert str(timing.size) == "B=2 T=3 I=4 H=5 L=1"


def test_speedup_is_the_time_of_the_baseline_over_ours():
    seconds = {"lstm_fast.LSTM": 2.0, "torch.nn.LSTM": 6.0}
    assert Timing(SIZES[0], "inference", seconds).speedup == 3
