"""Timing of both layers."""

from __future__ import annotations

import gc
import time

import pytest

from lstm_fast.forecast import speed
from lstm_fast.forecast.model import LAYERS
from lstm_fast.forecast.speed import SIZES, Size, Timing, measure


@pytest.mark.parametrize("work", ["inference", "training"])
def test_both_layers_are_timed(work):
    timing = measure(Size(2, 3, 4, 5, 1), work, seconds=0)
    assert set(timing.seconds) == set(LAYERS)
    assert all(value > 0 for value in timing.seconds.values())
    assert str(timing.size) == "B=2 T=3 I=4 H=5 L=1"


def test_speedup_is_the_time_of_the_baseline_over_ours():
    seconds = {"lstm_fast.LSTM": 2.0, "torch.nn.LSTM": 6.0}
    assert Timing(SIZES[0], "inference", seconds).speedup == 3


def test_both_layers_come_first_as_often_and_collect_no_garbage(monkeypatch):
    called = []

    def call(layer, *_):
        def run():
            called.append(type(layer))
            assert not gc.isenabled()
            time.sleep(speed._SAMPLE_SECONDS)

        return run

    monkeypatch.setattr(speed, "_call", call)
    measure(SIZES[0], "inference", seconds=0)
    rounds = called[4:]  # after two calls of each that set things up
    assert [rounds[k : k + 2] for k in range(0, len(rounds), 2)] == 5 * [
        [*LAYERS.values()],
        [*LAYERS.values()][::-1],
    ]
    assert gc.isenabled()


def test_a_layer_takes_the_lowest_decile_of_its_samples(monkeypatch):
    class Timer:
        def __init__(self, _) -> None:
            self.taken = iter([1, 1, *range(10, 0, -1)])  # after two calls that set things up

        def timeit(self, _) -> int:
            return next(self.taken)

    monkeypatch.setattr("timeit.Timer", Timer)
    assert measure(SIZES[0], "inference", seconds=0).seconds == dict.fromkeys(LAYERS, 2)


def test_a_sample_of_short_calls_is_of_several(monkeypatch):
    called = []
    monkeypatch.setattr(speed, "_call", lambda *_: lambda: called.append(0))
    measure(SIZES[0], "inference", seconds=0)
    assert len(called) > 1000
