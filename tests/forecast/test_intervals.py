"""Conformal intervals."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from lstm_fast.forecast.intervals import ConformalIntervals, student_ratio
from lstm_fast.forecast.losses import DistributionLoss, Loss, make_loss

MANY = 10**9


def of_errors(errors: np.ndarray, n_independent: int = MANY) -> ConformalIntervals:
    """Of a network that forecasts 0 when `errors`, [windows, h], come."""
    outputs = torch.zeros(1, *errors.shape, 1)
    return of_outputs(make_loss("mse", ()), outputs, errors[None], n_independent)


def of_outputs(
    loss: Loss,
    outputs: torch.Tensor,
    target: np.ndarray,
    n_independent: int = MANY,
    n_apart: int = 0,
    constant: int = 0,
) -> ConformalIntervals:
    """`target`: [series, windows, h]. The last `constant` series do not vary."""
    scale = torch.ones(len(target), dtype=torch.float64)
    varies = torch.arange(len(target)) < len(target) - constant
    windows = torch.from_numpy(target).flatten(0, 1)
    return ConformalIntervals(loss, outputs, windows, n_independent, scale, n_apart, varies)


def test_widening_is_the_conformal_quantile():
    # One lead: scores are |error| / RMS, so widths are order statistics of |error|.
    errors = np.arange(1.0, 100.0)[:, None] * np.where(np.arange(99) % 2, 1, -1)[:, None]
    intervals = of_errors(errors)
    assert intervals.widening(80).numpy() == pytest.approx([80])  # ceil(100 * 0.80)th of 99
    assert intervals.widening(80.5).numpy() == pytest.approx([81])
    assert intervals.widening(95).numpy() == pytest.approx([95])
    assert intervals.widening(99.9).numpy() == pytest.approx([99])


def test_width_follows_the_lead_and_the_level():
    errors = np.random.default_rng(0).normal(size=(200, 6)) * np.arange(1, 7)
    intervals = of_errors(errors)
    assert (np.diff(intervals.widening(80)) >= 0).all()
    assert (intervals.widening(95) > intervals.widening(80)).all()
    assert (np.diff(of_errors(np.array([[3.0, 1, 1]] * 20)).lead_scale) >= 0).all()


@pytest.mark.parametrize("level", [50, 80, 95])
def test_coverage_of_errors_not_used_for_calibration(level):
    rng = np.random.default_rng(1)
    intervals = of_errors(rng.standard_t(5, size=(400, 12)))
    fresh = np.abs(rng.standard_t(5, size=(4000, 12)))
    # Standard error of the coverage from 400 * 12 scores is 0.7 % at worst; 4 of them.
    inside = fresh <= intervals.widening(level).numpy()
    assert inside.mean() == pytest.approx(level / 100, abs=0.028)


def test_coverage_is_even_where_errors_grow_with_the_lead():
    """Those of a random walk, which forecasts repeat the last value of."""
    errors, fresh = np.random.default_rng(4).normal(size=(2, 4000, 12)).cumsum(axis=2)
    inside = np.abs(fresh) <= of_errors(errors).widening(80).numpy()
    # Standard errors of a lead's coverage, in per cent: 0.6 as counted, not more by the score, and
    # 0.5 by an RMS that errs by 1 / sqrt(2 * 4000). 4 of them together.
    assert inside.mean(axis=0) == pytest.approx(0.8, abs=0.04)


@pytest.mark.parametrize("factor", [0.3, 3.0])
def test_intervals_of_a_network_that_misjudges_its_errors_are_put_right(factor):
    """A normal distribution of true deviation 1, held for `factor`: widened or narrowed."""
    rng = np.random.default_rng(2)
    loss = DistributionLoss("normal")
    raw = np.log(np.expm1(factor - loss.MIN_SCALE))
    outputs = torch.tensor([0.0, raw]).expand(2, 500, 4, 2)
    intervals = of_outputs(loss, outputs, rng.normal(size=(1, 500, 4)))
    lower, upper = (bound.mean().item() for bound in loss.band(outputs, 80))
    widening = intervals.widening(80).mean().item()
    assert (widening > 0) == (factor < 1)
    fresh = rng.normal(size=100_000)
    inside = (fresh >= lower - widening) & (fresh <= upper + widening)
    # Standard error of the coverage from 500 * 4 scores is 0.9 %; 4 of them.
    assert inside.mean() == pytest.approx(0.8, abs=0.036)


@pytest.mark.parametrize("level", [50, 80, 95])
@pytest.mark.parametrize("n", [4, 6, 20, 1000])
def test_few_windows_widen_as_students_distribution(level, n):
    tail = 0.5 + level / 200
    exact = scipy.stats.t.ppf(tail, n) / scipy.stats.norm.ppf(tail)
    # The next term is of order 1 / n**3, with a factor below 3 for these levels.
    assert student_ratio(level, n) == pytest.approx(exact, abs=3 / n**3)
    errors = np.random.default_rng(3).normal(size=(30, 5))
    ratio = of_errors(errors, n).widening(level) / of_errors(errors).widening(level)
    assert ratio.numpy() == pytest.approx(exact, abs=3 / n**3)


def test_errors_of_0_give_a_width_of_0():
    assert of_errors(np.zeros((5, 3))).widening(95).numpy() == pytest.approx(0)


def of_series(deviation: np.ndarray, rng: np.random.Generator, constant: int = 0):
    """Of noise of these deviations, forecast 7 steps ahead from each of the last 21 rows but 6. The
    last `constant` series are off by their deviations."""
    noise = rng.normal(size=(len(deviation), 21))
    noise[len(noise) - constant :] = 1
    rows = deviation[:, None] * noise
    windows = np.lib.stride_tricks.sliding_window_view(rows, 7, axis=1)
    outputs = torch.zeros(1, len(deviation) * 15, 7, 1)
    return of_outputs(make_loss("mse", ()), outputs, windows.copy(), n_apart=4, constant=constant)


def coverage(deviation: np.ndarray, constant: int = 0) -> np.ndarray:
    """[series], of intervals of 80 per cent, over 100 panels."""
    rng = np.random.default_rng(6)
    inside = []
    for _ in range(100):
        intervals = of_series(deviation, rng, constant)
        bound = intervals.widening(80).mean() * intervals.width / torch.from_numpy(deviation)
        inside.append(torch.special.erf(bound / 2**0.5).numpy())
    return np.mean(inside, axis=0)


def test_series_that_are_alike_share_a_width():
    deviation = np.ones(20)
    intervals = of_series(deviation, np.random.default_rng(7))
    # Of each alone, deviations of 21 rows would differ by 1 / sqrt(2 * 21).
    assert intervals.width.log().std() < 0.5 / np.sqrt(2 * 21)
    assert coverage(deviation) == pytest.approx(np.full(20, 0.8), abs=0.02)


def test_each_series_has_its_coverage_whatever_its_noise():
    assert coverage(np.repeat([1.0, 10.0], 10)) == pytest.approx(np.full(20, 0.8), abs=0.04)


def test_series_that_do_not_vary_widen_no_other_interval():
    alive = np.ones(20)
    ended = np.full(20, 1e-6)
    assert coverage(np.r_[alive, ended], 20)[:20] == pytest.approx(coverage(alive), abs=0.02)
    intervals = of_series(np.r_[alive, ended], np.random.default_rng(8), 20)
    assert (intervals.width[20:] < 2e-6).all()
