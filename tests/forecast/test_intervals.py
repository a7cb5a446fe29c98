"""Conformal intervals."""

from __future__ import annotations

import numpy as np
import pytest

from lstm_fast.forecast.intervals import ConformalIntervals


def test_half_width_is_the_conformal_quantile():
    # One lead: scores are |error| / RMS, so widths are order statistics of |error|.
    errors = np.arange(1.0, 100.0)[:, None] * np.where(np.arange(99) % 2, 1, -1)[:, None]
    intervals = ConformalIntervals.from_errors(errors)
    assert intervals.half_width(80) == pytest.approx([80])  # ceil(100 * 0.80)th of 99
    assert intervals.half_width(95) == pytest.approx([95])
    assert intervals.half_width(99.9) == pytest.approx([99])


def test_width_follows_the_lead_and_the_level():
    errors = np.random.default_rng(0).normal(size=(200, 6)) * np.arange(1, 7)
    intervals = ConformalIntervals.from_errors(errors)
    assert (np.diff(intervals.half_width(80)) >= 0).all()
    assert (intervals.half_width(95) > intervals.half_width(80)).all()


@pytest.mark.parametrize("level", [50, 80, 95])
def test_coverage_of_errors_not_used_for_calibration(level):
    rng = np.random.default_rng(1)
    intervals = ConformalIntervals.from_errors(rng.standard_t(5, size=(400, 12)))
    fresh = np.abs(rng.standard_t(5, size=(4000, 12)))
    # Standard error of the coverage from 400 * 12 scores is 0.7 % at worst; 4 of them.
    assert (fresh <= intervals.half_width(level)).mean() == pytest.approx(level / 100, abs=0.028)


def test_errors_of_0_give_a_width_of_0():
    assert ConformalIntervals.from_errors(np.zeros((5, 3))).half_width(95) == pytest.approx(0)
