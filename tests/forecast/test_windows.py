"""Calendar features, and windows that never reach past what they may see."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lstm_fast.forecast.calendar import (
    CYCLES,
    cycle_phases,
    season_phase,
    trading_days,
    useful_cycles,
)
from lstm_fast.forecast.frame import check_frame
from lstm_fast.forecast.windows import Features, Panel, tilted
from tests.forecast.series import monthly


def panel_of(df: pd.DataFrame, h: int = 3) -> Panel:
    frame, freq = check_frame(df)
    return Panel.from_frame(frame, Features.of(frame, freq, 12, ()), h)


@pytest.mark.parametrize(
    ("freq", "unit"),
    [
        ("MS", "M"),
        ("ME", "M"),
        ("QS", "Q"),
        ("QS-FEB", "Q-JAN"),
        ("QS-DEC", "Q-FEB"),
        ("BQS-MAR", "Q-FEB"),
        ("QE-NOV", "Q-NOV"),
        ("QE", "Q"),
        ("BQE-APR", "Q-APR"),
    ],
)
def test_trading_days_count_the_days_of_the_period(freq, unit):
    ds = pd.date_range("1999-12-01", periods=40, freq=freq)
    counted = []
    for period in ds.to_period(unit):
        days = pd.date_range(period.start_time, period.end_time.normalize())
        counted.append(np.bincount(days.day_of_week, minlength=7))
    features = trading_days(ds, freq)
    average = 365.25 / {"M": 12, "Q": 4}[unit[0]] / 7
    assert np.allclose(features, np.array(counted) - average, atol=1e-12)


def test_days_and_hours_have_no_trading_days():
    assert trading_days(pd.date_range("2000-01-01", periods=5, freq="h"), "h").shape == (5, 0)


def test_season_phase_goes_once_round():
    phase = season_phase(np.arange(-12, 12), 12)
    assert np.allclose(phase[:12], phase[12:])
    assert np.allclose(phase[12], [0, 1])
    assert np.allclose(phase[15], [1, 0])


@pytest.mark.parametrize(
    ("freq", "rows", "season_length", "expected"),
    [
        ("h", 24 * 14, 24, []),
        ("h", 24 * 14 + 1, 24, ["week"]),
        ("h", 24 * 14 + 1, 1, ["day", "week"]),
        ("h", 24 * 800, 24, ["week", "year"]),
        ("12h", 800, 14, ["day"]),
        ("D", 800, 7, ["year"]),
        ("D", 800, 365, ["week"]),
        ("W-MON", 110, 1, ["year"]),
        ("W-MON", 110, 52, []),  # a year has 52.18 weeks
        ("MS", 36, 12, []),
        ("YS", 200, 1, []),
    ],
)
def test_cycles_are_those_seen_twice_that_are_not_the_season(freq, rows, season_length, expected):
    ds = pd.date_range("2024-01-01", periods=rows, freq=freq)
    assert useful_cycles(ds, season_length) == expected


@pytest.mark.parametrize("cycle", CYCLES)
def test_a_cycle_is_gone_round_once(cycle):
    begin = pd.Timestamp("2024-01-01")  # of a day, a week and a year
    ds = begin + pd.to_timedelta(np.arange(4) / 4 * CYCLES[cycle], "D")
    quarters = [[0, 1], [1, 0], [0, -1], [-1, 0]]
    # Angles below 2 pi after a few roundings.
    tolerance = 8 * np.pi * np.finfo(np.float64).eps
    np.testing.assert_allclose(cycle_phases(ds, [cycle]), quarters, rtol=0, atol=tolerance)


def test_a_batch_is_the_window_less_its_mean_over_the_scale(series):
    panel = panel_of(series)
    windows = panel.windows(24, np.array([2.0]), slice(None))
    y = series["y"].to_numpy()
    assert len(windows) == len(y) - 24 - 3 + 1
    batch = windows[torch.tensor([0, 7])]
    for row, start in enumerate([0, 7]):
        mean = y[start : start + 24].mean()
        expected = (y[start : start + 27] - mean) / 2
        assert np.allclose(batch.values[row], expected[:24], atol=1e-5)
        assert np.allclose(batch.target[row], expected[24:], atol=1e-5)
        assert np.allclose(batch.mean[row], mean)
    assert batch.season.shape == (2, 27, 2)
    assert batch.trading.shape == (2, 27, 7)
    assert torch.equal(windows.all().values[7], batch.values[1])
    assert windows.at_most(4).start.tolist() == [0, 15, 30, 45]


def test_as_many_windows_of_each_series_are_chosen():
    panel = panel_of(pd.concat([monthly(60, "a"), monthly(50, "bb", "2001-03-01")]))
    windows = panel.windows(24, np.ones(2), slice(-12, None))
    assert windows.at_most(10) is windows
    chosen = windows.at_most(3)
    assert chosen.start.tolist() == [24, 28, 33, 77, 81, 86]
    assert chosen.series.tolist() == [0, 0, 0, 1, 1, 1]


def test_series_that_vary_in_their_last_rows(series):
    late = [series.assign(unique_id=k, y=1.0 * (series.index >= 72 - k)) for k in (0, 3, 5, 72)]
    panel = panel_of(pd.concat(late))
    assert panel.varies(4).tolist() == [False, True, False, False]
    assert panel.varies(6).tolist() == [False, True, True, False]
    assert panel.varies(2).tolist() == [True] * 4  # as of none more is known than of others


def test_training_and_calibration_windows_share_no_target():
    df = pd.concat([monthly(60, "a"), monthly(50, "bb", "2001-03-01")])
    panel = panel_of(df)
    scale = np.ones(2)
    panel.values[:] = torch.arange(len(panel.values))  # now a value says which row it is
    ends = panel.offset + panel.length
    train = panel.windows(24, scale, slice(-12))
    held_out = panel.windows(24, scale, slice(-12, None))
    rows = {
        name: w.all().target + w.all().mean
        for name, w in (("train", train), ("held_out", held_out))
    }
    allowed = {
        "train": [*range(24, ends[0] - 12), *range(panel.offset[1] + 24, ends[1] - 12)],
        "held_out": [*range(ends[0] - 12, ends[0]), *range(ends[1] - 12, ends[1])],
    }
    for name, targets in rows.items():
        assert sorted(set(targets.round().int().flatten().tolist())) == allowed[name]


def test_scale_ignores_held_out_rows(series):
    wild = series.copy()
    wild.loc[len(wild) - 12 :, "y"] = 1e6
    assert panel_of(wild).scale(24, held_out=12) == panel_of(series).scale(24, held_out=12)
    assert panel_of(wild).scale(24) > 100 * panel_of(series).scale(24)


def test_slope_is_the_usual_one_of_a_window_whatever_the_season(series):
    step = np.arange(len(series))
    season = 10 * np.sin(2 * np.pi * step / 12)
    for input_size in (12, 24, 36):
        for slope in (0.5, -0.5):
            panel = panel_of(series.assign(y=slope * step + season))
            assert np.allclose(panel.slope(input_size, 12), 0.5)
    bent = panel_of(series.assign(y=np.maximum(step, 36.0)))  # flat, then a rise of 1 a step
    assert panel_of(series.assign(y=5.0)).slope(24, 12) == 0 < bent.slope(24, 12) < 1
    assert bent.slope(24, 12, held_out=36) == 0
    assert panel_of(series[:20]).slope(12, 12) == 0  # less than two seasons


def test_a_tilt_ends_with_the_inputs(series):
    batch = panel_of(series).windows(24, np.array([2.0]), slice(None)).all()
    slope = torch.linspace(-1, 1, len(batch.values))
    result = tilted(batch, slope)
    added = result.values - batch.values
    assert torch.allclose(added.diff(dim=1), slope[:, None].expand(-1, 23), atol=1e-4)
    assert torch.allclose(result.values.mean(dim=1), torch.zeros(len(slope)), atol=1e-4)
    assert torch.allclose(result.target - batch.target, added[:, -1:].expand(-1, 3), atol=1e-4)
    assert all(map(torch.equal, result[1:5], batch[1:5]))


@pytest.mark.parametrize("size", [1e-300, 1e-170, 1.0, 1e170, 1e300])
def test_scale_and_slope_of_numbers_whose_squares_leave_the_range(size):
    ordinary = panel_of(monthly())
    panel = replace(ordinary, values=ordinary.values * size)
    for times, once in (
        (panel.scale(24), ordinary.scale(24)),
        (panel.slope(24, 12), ordinary.slope(24, 12)),
    ):
        np.testing.assert_allclose(times / size, once, rtol=1e-12)


def test_scale_of_windows_of_one_row_is_that_of_all(series):
    expected = series["y"].std(ddof=0)
    np.testing.assert_allclose(panel_of(series).scale(1), expected, rtol=1e-12)


def scale_of(is_log: bool = False, **values: Any) -> list[float]:
    """Of series of these names, in the order of their names."""
    df = pd.concat([monthly().assign(unique_id=name, y=y) for name, y in values.items()])
    panel = Panel.from_frame(df, Features.of(df, "MS", 12, ()), 6)
    return panel.scale(24, is_log=is_log).tolist()


@pytest.mark.parametrize("size", [1e-300, 1e-9, 1.0, 1e300])
def test_constant_series_alone_have_a_scale_of_their_size(size):
    assert scale_of(a=-5 * size, b=7 * size) == pytest.approx([5 * size, 7 * size], rel=1e-12)
    assert scale_of(a=0 * size, b=0 * size) == [1, 1]
    assert scale_of(a=-5.0, b=0.0, is_log=True) == [1, 1]


@pytest.mark.parametrize("size", [1e-300, 1.0, 1e300])
def test_a_constant_series_has_the_scale_of_the_others_for_its_size(size):
    y = size * monthly()["y"]
    (one,) = scale_of(a=y)
    ratio = one / y.mean()
    scales = scale_of(a=7 * size, b=y, c=9 * y, d=0.0)
    assert scales == pytest.approx([7 * size * ratio, one, 9 * one, 7e-3 * size * ratio], rel=1e-12)
    logs = scale_of(a=7 * size, b=y, c=9 * y, d=0.0, is_log=True)
    assert logs == pytest.approx([5 * one, one, 9 * one, 5 * one], rel=1e-12)


def test_the_last_window_has_nothing_to_aim_at(series):
    batch = panel_of(series).last_windows(24, np.ones(1), np.array([0])).all()
    assert batch.target.isnan().all()
    assert not batch.values.isnan().any()


def test_covariates_have_mean_0_and_deviation_1(series):
    priced = series.assign(price=np.geomspace(2.0, 9.0, len(series)))
    features = Features.of(priced, "MS", 12, ["price"])
    known = Panel.from_frame(priced, features, 3).known[:-3].double().numpy()
    eps = torch.finfo(torch.float32).eps  # each value, below 4, is rounded once
    assert (known.mean(), known.std()) == pytest.approx((0, 1), abs=2 * eps)


def test_a_constant_covariate_is_not_divided_by_rounding(series):
    features = Features.of(series.assign(price=3.3), "MS", 12, ["price"])
    assert (features.mean, features.deviation) == ([3.3], [np.inf])


def test_scale_of_a_series_that_begins_late(series):
    late = series.assign(y=[0.0] * 60 + [5.0, 9.0] * 6)
    panel = Panel.from_frame(late, Features.of(late, "MS", 12, ()), 6)
    assert panel.scale(24, 12)[0] == panel.scale(24)[0] != 1
