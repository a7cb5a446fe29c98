"""The forecaster: what comes out, that it can be repeated, that it sees nothing it must not."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

import lstm_fast
from lstm_fast.forecast import (
    ACTIVATIONS,
    Forecaster,
    accuracy,
    evaluate,
    load_beer_wine_sales,
    mase,
    rmse,
    seasonal_naive,
)
from lstm_fast.forecast.demo import H, run_demo
from lstm_fast.forecast.frame import FILLS, check_frame
from lstm_fast.forecast.training import outputs_of
from tests.forecast.series import monthly

COLUMNS = ["unique_id", "ds", "y_hat", "lo-80", "hi-80", "lo-95", "hi-95"]


def test_frame_of_a_forecast(small, series):
    forecast = small().fit(series).predict()
    assert list(forecast.columns) == COLUMNS
    assert forecast["unique_id"].eq("a").all()
    expected = pd.date_range("2006-01-01", periods=6, freq="MS")
    assert forecast["ds"].tolist() == expected.tolist()
    ordered = forecast[["lo-95", "lo-80", "y_hat", "hi-80", "hi-95"]].to_numpy()
    assert (np.diff(ordered, axis=1) > 0).all()
    assert (ordered > 0).all()


def test_levels(small, series):
    model = small(levels=(50,)).fit(series)
    assert list(model.predict().columns) == [*COLUMNS[:3], "lo-50", "hi-50"]
    assert list(model.predict(levels=(99.5,)).columns) == [*COLUMNS[:3], "lo-99.5", "hi-99.5"]
    assert list(model.predict(levels=()).columns) == COLUMNS[:3]
    without = small(levels=()).fit(series)
    pd.testing.assert_frame_equal(without.predict(), model.predict(levels=()))
    with pytest.raises(ValueError, match="fitted with levels"):
        without.predict(levels=(80,))


def test_many_series_of_different_lengths(small):
    df = pd.concat([monthly(72, "a"), monthly(60, "bb", "2001-05-01")])
    df.loc[df["unique_id"] == "bb", "y"] *= 1000
    model = small().fit(df)
    assert model._intervals.n_independent == 2 * 4  # halves of a horizon, of 12 rows held out
    forecast = model.predict()
    assert forecast["unique_id"].tolist() == ["a"] * 6 + ["bb"] * 6
    assert forecast["ds"].iloc[6] == pd.Timestamp("2006-05-01")
    big = forecast[forecast["unique_id"] == "bb"]["y_hat"]
    assert big.between(5e4, 5e5).all()


@pytest.mark.parametrize("freq", ["h", "15min", "W-MON", "QE", "B"])
def test_other_frequencies(small, series, freq):
    ds = pd.date_range("2000-01-07 00:00", periods=len(series), freq=freq)
    forecast = small(season_length=4, levels=()).fit(series.assign(ds=ds)).predict()
    expected = pd.date_range(ds[-1], periods=7, freq=freq)[1:]
    assert forecast["ds"].tolist() == expected.tolist()


def test_more_years_than_nanoseconds_can_count(small, tmp_path):
    """Sunspots have been counted since 1700."""
    df = monthly(321).assign(ds=pd.date_range("1700-01-01", periods=321, freq="YS"))
    model = small(season_length=11, fill="linear", levels=()).fit(df.drop(index=5))
    assert model.predict()["ds"].iloc[0] == pd.Timestamp("2021-01-01")
    assert len(model.cross_validation(df, n_windows=2)) == 12
    model.save(tmp_path / "model.pt")
    assert len(Forecaster.load(tmp_path / "model.pt").predict()) == 6


def test_time_zones_are_kept(small, series):
    ds = pd.date_range("2000-01-01", periods=len(series), freq="MS", tz="Europe/Paris")
    forecast = small(levels=()).fit(series.assign(ds=ds)).predict()
    assert forecast["ds"].iloc[0] == pd.Timestamp("2006-01-01", tz="Europe/Paris")


def test_later_rows_and_covariates_may_be_of_another_time_zone_but_not_of_none(small, series):
    ds = pd.date_range("2020-03-01", periods=len(series), freq="D", tz="Europe/Berlin")
    df = series.assign(ds=ds, price=range(len(series)))
    known, future = df[:-6], df[-6:]
    model = small(futr_exog_list=df.columns[-1:], season_length=7, levels=()).fit(known[:-2])
    expected = model.predict(known, future)
    assert expected["ds"].tolist() == future["ds"].tolist()
    in_utc = [frame.assign(ds=frame["ds"].dt.tz_convert("UTC")) for frame in (known, future)]
    pd.testing.assert_frame_equal(model.predict(*in_utc), expected)
    naive = [frame.assign(ds=frame["ds"].dt.tz_localize(None)) for frame in (known, future)]
    message = r"{}\['ds'\] must have the time zone Europe/Berlin, or another"
    with pytest.raises(ValueError, match=message.format("df")):
        model.predict(naive[0], future)
    with pytest.raises(ValueError, match=message.format("futr_df")):
        model.predict(known, naive[1])
    model.fit(naive[0])
    with pytest.raises(ValueError, match=r"df\['ds'\] must have no time zone, as the frame that"):
        model.predict(known, naive[1])


@pytest.mark.parametrize("loss", ["mae", "quantile", "normal"])
def test_networks_are_of_float32_whatever_is_the_default(small, series, tmp_path, loss):
    expected = small(loss=loss, id_size=2).fit(series).predict()
    torch.set_default_dtype(torch.float64)
    try:
        model = small(loss=loss, id_size=2).fit(series)
        assert torch.get_default_dtype() == torch.float64
        forecast = model.predict()
        model.save(tmp_path / "model.pt")
        loaded = Forecaster.load(tmp_path / "model.pt")
        pd.testing.assert_frame_equal(loaded.predict(), forecast, check_exact=True)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in model._networks.parameters()} == {torch.float32}
    pd.testing.assert_frame_equal(model.predict(), forecast, check_exact=True)
    pd.testing.assert_frame_equal(expected, forecast, check_exact=True)


def test_horizon_beyond_a_season_and_no_season(small, series):
    assert len(small(h=15, season_length=4, calibration_size=15).fit(series).predict()) == 15
    assert len(small(season_length=1).fit(series).predict()) == 6


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_knobs_reach_the_network(small, series, activation):
    model = small(activation=activation, num_layers=2, dropout=0.3, levels=()).fit(series)
    networks = model._networks
    assert len(networks.encoders) == 2
    for encoder in networks.encoders:
        assert isinstance(encoder, lstm_fast.LSTM)
        assert (encoder.hidden_size, encoder.num_layers, encoder.dropout) == (5, 2, 0.3)
    assert [m.p for m in networks.head if isinstance(m, nn.Dropout)] == [0.3, 0.3]
    assert isinstance(networks.head[2], ACTIVATIONS[activation])
    assert networks.head[1].weight.shape == (2, 5, 4)


def test_both_layers_give_the_same_forecast(small, series):
    # Of smooth gradients: those of "mae" are signs, which a rounding may turn round.
    ours = small(loss="mse").fit(series).predict()
    torchs = small(loss="mse", lstm_class=torch.nn.LSTM).fit(series).predict()
    pd.testing.assert_frame_equal(ours, torchs, rtol=1e-4)


def test_a_seed_gives_the_same_forecast_and_leaves_the_random_state_alone(small, series):
    first = small(seed=3).fit(series).predict()
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = small(seed=3).fit(series).predict()
    assert torch.equal(torch.get_rng_state(), before)
    pd.testing.assert_frame_equal(first, again, check_exact=True)
    other = small(seed=4).fit(series).predict()
    assert not np.array_equal(first["y_hat"], other["y_hat"])


def test_training_learns(small, series):
    model = small(max_steps=1, n_models=1, levels=(), dropout=0.0).fit(series)
    longer = small(max_steps=60, n_models=1, levels=(), dropout=0.0).fit(series)

    def loss(forecaster: Forecaster) -> float:
        panel = forecaster._panel(forecaster._fitted)
        windows = panel.windows(24, forecaster._scale, slice(None))
        forecast = outputs_of(forecaster._networks, windows)[0, ..., 0]
        return torch.nn.functional.mse_loss(forecast, windows.all().target).item()

    assert loss(longer) < 0.5 * loss(model)


def test_the_months_that_are_forecast_are_never_seen(series):
    wild = series.copy()
    wild.loc[len(wild) - H :, "y"] = np.random.default_rng(0).uniform(1, 1e6, H)
    options = {"input_size": 24, "hidden_size": 4, "max_steps": 3, "calibration_size": 12}
    layers = {"lstm_fast.LSTM": lstm_fast.LSTM}
    results, perturbed = run_demo(series, layers, options), run_demo(wild, layers, options)
    for name in ("seasonal naive", "lstm_fast.LSTM"):
        pd.testing.assert_frame_equal(
            results[name].forecast, perturbed[name].forecast, check_exact=True
        )
        assert results[name].accuracy["RMSE"] != perturbed[name].accuracy["RMSE"]


def test_held_out_rows_shape_the_intervals_but_not_their_networks(small, series, monkeypatch):
    """Networks that calibrate are the same whatever the rows are that they are tested on."""
    states: list[list[torch.Tensor]] = []
    train = Forecaster._train

    def spy(self, *arguments):
        networks = train(self, *arguments)
        states.append([p.detach() for p in networks.parameters()])
        return networks

    monkeypatch.setattr(Forecaster, "_train", spy)
    wild = series.copy()
    wild.loc[len(wild) - 12 :, "y"] *= 3
    widths = []
    for df in (series, wild):
        forecast = small().fit(df).predict()
        widths.append(np.log(forecast["hi-80"] / forecast["lo-80"]).mean())
    calibrating, final, wild_calibrating, wild_final = states
    assert all(map(torch.equal, calibrating, wild_calibrating))
    assert not all(map(torch.equal, final, wild_final))
    assert widths[1] > 2 * widths[0]


def test_predict_from_later_rows_is_what_the_network_makes_of_them(small, series):
    model = small().fit(series[:60])
    pd.testing.assert_frame_equal(model.predict(series[:60]), model.predict())
    later = model.predict(series)
    assert later["ds"].iloc[0] == pd.Timestamp("2006-01-01")
    # Only the last `input_size` rows count.
    pd.testing.assert_frame_equal(later, model.predict(series[-24:]))
    with pytest.raises(ValueError, match="series 'bb' was not fitted"):
        model.predict(monthly(72, "bb"))
    with pytest.raises(ValueError, match=r"too short: input_size needs 24 rows. Got 23"):
        model.predict(series[-23:])


def test_values_at_or_below_0_need_log_false(small, series):
    shifted = series.assign(y=series["y"] - 110)
    with pytest.raises(ValueError, match=r"series 'a' must be above 0 .* ds 2000-01-01"):
        small().fit(shifted)
    forecast = small(log=False).fit(shifted).predict()
    centre = (forecast["lo-80"] + forecast["hi-80"]) / 2
    assert np.allclose(centre, forecast["y_hat"])


def near_0(rows: int = 72) -> pd.DataFrame:
    """A count with zeros, the same with one value below 0 at its start, and 1,000 above both."""
    count = np.random.default_rng(0).poisson(0.5, rows).astype(float)
    profit = np.where(np.arange(rows) == 0, -1.0, count)
    ys = {"count": count, "profit": profit, "level": count + 1000}
    return pd.concat([monthly(rows).assign(unique_id=name, y=y) for name, y in ys.items()])


@pytest.mark.parametrize("loss", ["mae", "quantile", "normal"])
@pytest.mark.parametrize("decoding", ["direct", "recursive"])
def test_forecasts_of_what_is_never_negative_are_not_either(small, tmp_path, loss, decoding):
    options = {"log": False, "loss": loss, "decoding": decoding}
    model = small(**options).fit(near_0())
    free = small(**options, nonnegative=False).fit(near_0()).predict()
    forecast = model.predict()
    numbers = COLUMNS[2:]
    is_count = forecast["unique_id"] == "count"
    pd.testing.assert_frame_equal(forecast[~is_count], free[~is_count], check_exact=True)
    assert (forecast.loc[forecast["unique_id"] == "profit", "lo-95"] < 0).all()
    assert (free.loc[is_count, "lo-95"] < 0).all()
    expected = free.loc[is_count, numbers].clip(lower=0)
    pd.testing.assert_frame_equal(forecast.loc[is_count, numbers], expected, check_exact=True)
    ordered = forecast[["lo-95", "lo-80", "y_hat", "hi-80", "hi-95"]]
    assert (ordered.diff(axis=1).iloc[:, 1:] >= 0).all(axis=None)
    # A file has not the rows that were below 0, but knows of them.
    model.save(tmp_path / "model.pt")
    loaded = Forecaster.load(tmp_path / "model.pt")
    pd.testing.assert_frame_equal(loaded.predict(), forecast, check_exact=True)


def test_later_rows_tell_what_may_be_negative(small):
    model = small(log=False).fit(near_0(72))
    later = near_0(80)
    lowest = model.predict(later).groupby("unique_id")["lo-95"].min()
    assert lowest["count"] == 0
    assert lowest["profit"] < 0
    part = later.groupby("unique_id").tail(24)  # without what was below 0
    assert model.predict(part).groupby("unique_id")["lo-95"].min()["profit"] < 0
    later.loc[(later["unique_id"] == "count") & (later.index == 79), "y"] = -3.0
    some = later[later["unique_id"] != "profit"]
    assert model.predict(some).groupby("unique_id")["lo-95"].min()["count"] < 0


def test_a_forecast_of_minus_infinity_is_not_taken_for_0(small, monkeypatch):
    model = small(levels=(), log=False).fit(near_0())
    monkeypatch.setattr(
        "lstm_fast.forecast.forecaster.outputs_of",
        lambda networks, windows: torch.full((2, len(windows), 6, 1), -torch.inf),
    )
    with pytest.raises(FloatingPointError, match=r"of series 'count' .* is -inf"):
        model.predict()


def test_windows_of_a_backtest_do_not_fall_below_0(small):
    forecasts = small(log=False).cross_validation(near_0(), n_windows=2, refit=False)
    assert (forecasts.loc[forecasts["unique_id"] == "count", COLUMNS[2:]] >= 0).all(axis=None)
    assert forecasts.loc[forecasts["unique_id"] == "profit", "lo-80"].min() < 0


def test_a_constant_series_stays_constant(small, series):
    # The value of a season ago is exact; only the untrained correction, of size 1, is added.
    forecast = small(max_steps=200, levels=()).fit(series.assign(y=50.0)).predict()
    assert np.allclose(forecast["y_hat"], 50, rtol=0.05)


def test_constant_series_stay_constant_beside_others_of_any_size(small, series):
    others = [series.assign(unique_id=name, y=k * series["y"]) for name, k in (("b", 1), ("c", 50))]
    constant = [series.assign(unique_id=name, y=y) for name, y in (("fee", 7.0), ("none", 0.0))]
    model = small(log=False, levels=()).fit(pd.concat([*others, *constant]))
    forecast = model.predict().groupby("unique_id")["y_hat"]
    assert (forecast.min()["fee"], forecast.max()["fee"]) == pytest.approx((7, 7), rel=0.05)
    assert (forecast.min()["none"], forecast.max()["none"]) == pytest.approx((0, 0), abs=0.05)
    alone = small(log=False, levels=()).fit(series.assign(y=1e-9)).predict()
    assert np.allclose(alone["y_hat"], 1e-9, rtol=0.5, atol=0)
    # Of zeros no more is known when they come to an end.
    later = model.predict(constant[1].assign(y=lambda df: 5000.0 * (df.index > 60)))
    assert later["y_hat"].between(0, 5000).all()


def test_too_short(small, series):
    with pytest.raises(ValueError, match=r"series 'a' is too short: .* need 42 rows. Got 41"):
        small().fit(series[:41])
    small().fit(series[:42])


def test_predict_before_fit(small):
    with pytest.raises(RuntimeError, match="call fit before predict"):
        small().predict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"h": 0}, "h must be a number greater than 0. Got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number greater than 0. Got nan"),
        ({"max_steps": -1}, "max_steps must be a number greater than 0"),
        ({"max_steps": float("inf")}, "max_steps must be a whole number. Got inf"),
        ({"n_models": 1.5}, "n_models must be a whole number. Got 1.5"),
        ({"tilt": "x"}, "tilt must be a number. Got 'x'"),
        ({"log": "yes"}, "log must be True or False. Got 'yes'"),
        ({"levels": 80}, "levels must be a sequence of numbers. Got 80"),
        ({"levels": ("80",)}, "levels must be numbers between 0 and 100. Got '80'"),
        ({"input_size": 11}, "input_size must be at least season_length, 12. Got 11"),
        ({"activation": "sine"}, "activation must be one of relu, .* Got 'sine'"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\). Got 1.0"),
        ({"levels": (80, 100)}, "levels must be numbers between 0 and 100. Got 100"),
        ({"levels": (95, 95.0000001)}, r"levels must differ .* Got \[95, 95.0000001\]"),
        ({"levels": [99.99999999]}, "levels must differ from each other and from 100"),
        ({"calibration_size": 5}, "calibration_size must be at least h, or 0 with .* Got 5"),
        ({"calibration_size": 0}, "calibration_size must be at least h"),
        ({"loss": "rmse"}, "loss must be one of mse, .* Got 'rmse'"),
        ({"decoding": "both"}, "decoding must be one of direct, recursive. Got 'both'"),
        ({"fill": "mean"}, "fill must be None or one of linear, .* Got 'mean'"),
        ({"futr_exog_list": "price"}, "futr_exog_list must be a sequence of names. Got 'price'"),
        ({"futr_exog_list": ("ds",)}, "beside unique_id, ds, y, each once. Got 'ds'"),
        ({"futr_exog_list": ("a", "a")}, "each once. Got 'a'"),
        ({"futr_exog_list": 5}, "futr_exog_list must be a sequence of names. Got 5"),
        ({"trainer_options": 5}, "trainer_options must be a mapping. Got 5"),
        ({"activation": ["relu"]}, r"activation must be one of relu, .* Got \['relu'\]"),
        ({"loss": ["mae"]}, r"loss must be one of mse, .* Got \['mae'\]"),
        ({"id_size": -1}, "id_size must be at least 0. Got -1"),
        ({"tilt": -0.5}, "tilt must be at least 0. Got -0.5"),
        ({"calibration_size": "x"}, "calibration_size must be a whole number. Got 'x'"),
        ({"calibration_size": 6.5}, "calibration_size must be a whole number. Got 6.5"),
        ({"lstm_class": nn.GRU}, "lstm_class must derive from torch.nn.LSTM. Got <class"),
        ({"lstm_class": "LSTM"}, "lstm_class must derive from torch.nn.LSTM. Got 'LSTM'"),
        ({"trainer_options": {"max_steps": 5}}, "trainer_options must not have max_steps"),
        ({"seed": 2**64}, "seed must fit in 64 bits. Got 18446744073709551616"),
        ({"val_check_steps": 0}, "val_check_steps must be a number greater than 0"),
    ],
)
def test_bad_options(small, options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_beats_seasonal_naive_by_a_third_on_the_last_year():
    """One network; the default averages three."""
    df = load_beer_wine_sales(2019)
    train, test = df[:-12], df[-12:]
    forecast = Forecaster(n_models=1, levels=()).fit(train).predict()
    naive = accuracy(test, seasonal_naive(train, 12, 12), train, 12)["RMSE"]
    assert accuracy(test, forecast, train, 12)["RMSE"] < naive * 2 / 3


@pytest.mark.parametrize("loss", ["mae", "huber", "quantile", "normal", "laplace"])
@pytest.mark.parametrize("decoding", ["direct", "recursive"])
def test_losses_and_decodings(small, series, loss, decoding):
    model = small(loss=loss, decoding=decoding, id_size=2).fit(series)
    forecast = model.predict()
    assert list(forecast.columns) == COLUMNS
    ordered = forecast[["lo-95", "lo-80", "y_hat", "hi-80", "hi-95"]].to_numpy()
    assert (np.diff(ordered[:, [0, 2, 4]], axis=1) > 0).all()
    assert np.allclose(forecast["y_hat"], 130, rtol=0.3)


@pytest.mark.parametrize("loss", ["quantile", "normal", "laplace"])
def test_intervals_lie_in_each_other_and_hold_the_forecast(small, loss):
    """Networks that learned a regular series have wide intervals still, which the errors on the
    rows that calibrate make narrower, at each lead by as much as at others."""
    step = np.arange(96)
    df = monthly(96).assign(y=np.where(step % 12 == 0, 110.0, 100.0))
    forecaster = small(loss=loss, max_steps=60, levels=(80, 20, 95))
    forecast = forecaster.fit(df).predict()
    ordered = ["lo-95", "lo-80", "lo-20", "y_hat", "hi-20", "hi-80", "hi-95"]
    assert list(forecast.columns[3:5]) == ["lo-80", "hi-80"]
    assert (forecast[ordered].diff(axis=1).iloc[:, 1:] >= -1e-9).all(axis=None)


def test_a_forecast_that_is_no_number_is_not_returned(small, series):
    model = small(levels=(), log=False).fit(series)
    for parameter in model._networks.parameters():
        parameter.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"of series 'a' at 2006-01-01 .* is nan"):
        model.predict()


@pytest.mark.parametrize("levels", [np.array([80, 95]), (level for level in (80, 95))])
def test_levels_of_any_kind(small, series, tmp_path, levels):
    model = small(levels=levels).fit(series)
    model.save(tmp_path / "model.pt")
    assert list(Forecaster.load(tmp_path / "model.pt").predict().columns[3:]) == [
        "lo-80", "hi-80", "lo-95", "hi-95"
    ]  # fmt: skip


def test_intervals_are_as_wide_as_errors_were_whatever_the_scale_became(small):
    """Noise that grows tenfold in the rows that calibrate is most of the final scale."""
    rng, rows, calibration = np.random.default_rng(0), 240, 48
    deviation = np.where(np.arange(rows) < rows - calibration, 1, 10)
    frame = monthly(rows).assign(y=200 + deviation * rng.normal(size=rows))
    model = small(log=False, max_steps=100, calibration_size=calibration, levels=[80])
    forecast = model.fit(frame).predict()
    assert model._scale.item() > 2.5 * model._intervals.scale.item()
    width = (forecast["hi-80"] - forecast["lo-80"]).mean()
    errors = (model._intervals.target - model._intervals.outputs[..., 0].double().mean(dim=0)).abs()
    expected = 2 * errors.quantile(0.8).item() * model._intervals.scale.item()
    # Errors of the leads differ, and Student's distribution widens for a few windows.
    assert width == pytest.approx(expected, rel=0.4)


def test_intervals_beside_series_that_ended(small):
    """Noise, with and without as many series that ended before the rows that calibrate."""
    rng = np.random.default_rng(0)
    living = [monthly(96, f"a{k}").assign(y=100 + 10 * rng.normal(size=96)) for k in range(8)]
    ended = [
        df.assign(unique_id=f"b{k}", y=df["y"].where(df.index < 40, 0.0))
        for k, df in enumerate(living)
    ]
    widths = []
    for frames in (living, living + ended):
        model = small(log=False, max_steps=60, calibration_size=18).fit(pd.concat(frames))
        assert model._intervals.n_independent == 8 * 6  # of the living
        assert model._intervals.n_apart == 4  # of 13 windows, those that lie within 9 rows
        forecast = model.predict().query("unique_id < 'b'")
        widths.append((forecast["hi-80"] - forecast["lo-80"]).mean())
    # Two standard errors of a deviation by 8 * 18 rows.
    assert widths[1] == pytest.approx(widths[0], rel=2 / np.sqrt(2 * 144))


def test_intervals_of_the_network_alone(small, series):
    model = small(loss="normal", calibration_size=0).fit(series)
    assert model._intervals is None
    assert list(model.predict(levels=(50,)).columns) == [*COLUMNS[:3], "lo-50", "hi-50"]


def test_a_covariate_whose_future_is_known_is_used(small):
    """Every value that has a promotion is doubled; the forecast must know when there is one."""
    rng = np.random.default_rng(0)
    df = monthly(150)
    df["promotion"] = rng.integers(0, 2, len(df))
    df["y"] *= 1 + df["promotion"]
    model = small(
        levels=(), max_steps=150, learning_rate=0.02, dropout=0.0, futr_exog_list=["promotion"]
    ).fit(df[:-6])
    future = df[-6:]
    forecast = model.predict(futr_df=future.drop(columns="y"))
    assert future["promotion"].nunique() == 2
    assert (np.abs(np.log(forecast["y_hat"] / future["y"].to_numpy())) < np.log(2) / 2).all()
    shuffled = model.predict(futr_df=future.sample(frac=1, random_state=0))
    pd.testing.assert_frame_equal(shuffled, forecast, check_exact=True)


@pytest.mark.parametrize("decoding", ["direct", "recursive"])
def test_a_covariate_that_never_varied_has_no_effect(small, series, tmp_path, decoding):
    series = series.assign(price=199.9)
    model = small(levels=(), decoding=decoding, futr_exog_list=["price"]).fit(series[:-6])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = model.predict(futr_df=series)
    model.save(tmp_path / "model.pt")
    for fitted in (model, Forecaster.load(tmp_path / "model.pt")):
        with pytest.warns(UserWarning, match=r"\['price'\] never varied in the rows that were"):
            other = fitted.predict(futr_df=series.assign(price=149.0))
        pd.testing.assert_frame_equal(other, same, check_exact=True)


def test_the_future_of_covariates_must_be_given(small, series):
    df = series.assign(price=np.arange(72.0))
    model = small(levels=(), futr_exog_list=["price"]).fit(df[:-6])
    with pytest.raises(ValueError, match=r"futr_df must give the future of \['price'\]"):
        model.predict()
    with pytest.raises(
        ValueError, match=r"one row for series 'a' at 2005-12-01 00:00:00\. Got none"
    ):
        model.predict(futr_df=df[:-1])
    with pytest.raises(ValueError, match="finite price for series 'a' at 2005-12-01"):
        model.predict(futr_df=df.assign(price=df["price"].where(df.index < 71)))
    with pytest.raises(
        ValueError, match=r"one row for series 'a' at 2005-12-01 00:00:00\. Got several"
    ):
        model.predict(futr_df=pd.concat([df, df[-1:]]))
    expected = model.predict(futr_df=df)
    further = pd.concat([df, df[:3], df.assign(unique_id="b"), df.assign(unique_id="b")])
    pd.testing.assert_frame_equal(model.predict(futr_df=further), expected, check_exact=True)
    with pytest.raises(ValueError, match=r"futr_df must have one column price\. Got several"):
        model.predict(futr_df=pd.concat([df, df[["price"]]], axis=1))
    with pytest.raises(
        ValueError, match=r"futr_df\['unique_id'\] must hold ids such as 'a'. Got 7"
    ):
        model.predict(futr_df=df.assign(unique_id=7))


def test_future_rows_are_those_that_predict_forecasts(small):
    ds = pd.date_range("2024-01-01", periods=80, freq="B")
    df = monthly(80).assign(ds=ds)
    model = small(season_length=5, input_size=5, levels=()).fit(df[:70])
    week = df[70:75]  # from Monday to Friday, whose frequency might be of all days
    assert week["ds"].dt.day_of_week.tolist() == [0, 1, 2, 3, 4]
    forecast = model.predict(week)
    pd.testing.assert_frame_equal(model.future_rows(week), forecast[["unique_id", "ds"]])
    assert forecast["ds"][0] == ds[75]


def test_filled_rows_are_used(small, series):
    with pytest.raises(ValueError, match=r"Expected 2001-02-01 .* \(row 14\)"):
        small(levels=()).fit(series.drop(index=13))
    filled = series.copy()
    filled.loc[13, "y"] = (series["y"][12] + series["y"][14]) / 2
    expected = small(levels=()).fit(filled).predict()
    forecast = small(levels=(), fill="linear").fit(series.drop(index=13)).predict()
    pd.testing.assert_frame_equal(forecast, expected)


def test_cross_validation_is_fit_and_predict_at_each_origin(small):
    df = pd.concat([monthly(72, "a"), monthly(70, "bb", "2001-03-01")])
    model = small()
    forecasts = model.cross_validation(df, n_windows=3, step_size=2)
    assert list(forecasts.columns) == ["unique_id", "ds", "cutoff", "y", *COLUMNS[2:]]
    assert not hasattr(model, "_networks")
    truth = df.set_index(["unique_id", "ds"])["y"]
    rows = pd.MultiIndex.from_frame(forecasts[["unique_id", "ds"]])
    assert np.array_equal(forecasts["y"], truth[rows])
    for k, hidden in enumerate((10, 8, 6)):
        known = df.groupby("unique_id").head(10**9)
        known = known[known.groupby("unique_id").cumcount(ascending=False) >= hidden]
        window = forecasts[k * 12 : (k + 1) * 12].reset_index(drop=True)
        pd.testing.assert_frame_equal(
            window[COLUMNS], small().fit(known).predict(), check_exact=True
        )
        assert window["cutoff"][0] == known[known["unique_id"] == "a"]["ds"].max()


def test_cross_validation_takes_a_frame_whose_index_is_named_as_a_column(small, series):
    series["cutoff"] = np.arange(72.0)
    model = small(futr_exog_list=["cutoff"], fill="linear")
    expected = model.cross_validation(series)
    named = series.set_index("ds", drop=False)
    pd.testing.assert_frame_equal(model.cross_validation(named), expected)
    pd.testing.assert_frame_equal(evaluate(expected, named, 12), evaluate(expected, series, 12))
    renamed = small(futr_exog_list=["price"], fill="linear").cross_validation(
        series.rename(columns={"cutoff": "price"})
    )
    pd.testing.assert_frame_equal(renamed, expected)


def test_cross_validation_without_refitting_trains_once(small, series, monkeypatch):
    fitted = []
    fit = Forecaster.fit

    def spy(model, df, val_size=0):
        fitted.append(len(df))
        return fit(model, df, val_size)

    monkeypatch.setattr(Forecaster, "fit", spy)
    forecasts = small(levels=()).cross_validation(series, n_windows=3, step_size=2, refit=False)
    assert fitted == [62]
    assert forecasts["cutoff"].nunique() == 3
    last = small(levels=()).fit(series[:62]).predict(series[:66])
    pd.testing.assert_frame_equal(forecasts[-6:][COLUMNS[:3]].reset_index(drop=True), last)


def test_cross_validation_sees_no_row_after_a_cutoff(small, series):
    """The last window's targets may change at will; nothing before their own errors does."""
    wild = series.copy()
    wild.loc[len(wild) - 6 :, "y"] *= 10
    wild["price"] = series["price"] = np.arange(72.0)
    model = small(futr_exog_list=["price"])
    one, other = (model.cross_validation(df, 2, 6) for df in (series, wild))
    columns = [c for c in one.columns if c != "y"]
    pd.testing.assert_frame_equal(one[columns], other[columns], check_exact=True)


@pytest.mark.parametrize("name", ["n_windows", "step_size"])
@pytest.mark.parametrize("value", [0, 3.0, None])
def test_cross_validation_needs_windows_and_steps(small, series, name, value):
    message = f"{name} must be a whole number greater than 0. Got {value}"
    with pytest.raises(ValueError, match=message):
        small().cross_validation(series, **{name: value})


def test_evaluate_scores_each_series(small):
    df = pd.concat([monthly(72, "a"), monthly(70, "bb")])
    forecasts = small().cross_validation(df, n_windows=2, step_size=3)
    scores = evaluate(forecasts, df, 12).set_index("unique_id")
    one = forecasts[forecasts["unique_id"] == "bb"]
    assert scores.loc["bb", "RMSE"] == pytest.approx(rmse(one["y"], one["y_hat"]))
    train = df[df["unique_id"] == "bb"]["y"][:61]
    assert scores.loc["bb", "MASE"] == pytest.approx(mase(one["y"], one["y_hat"], train, 12))
    inside = (one["lo-80"] <= one["y"]) & (one["y"] <= one["hi-80"])
    assert scores.loc["bb", "coverage-80"] == pytest.approx(100 * inside.mean())
    assert list(scores.columns)[-1] == "coverage-95"


def test_coverage_on_many_alike_series():
    """Independent noise around a season: nothing to learn but its width."""
    rng = np.random.default_rng(5)
    rows, season = 96, 10 * np.sin(2 * np.pi * np.arange(96) / 12)
    df = pd.concat(
        monthly(rows, f"{k:02}").assign(y=100 + season + rng.normal(size=rows)) for k in range(40)
    )
    for loss in ("mse", "quantile", "normal"):
        model = Forecaster(
            h=6, input_size=24, hidden_size=8, dense_size=8, max_steps=60, n_models=1, loss=loss
        )
        scores = evaluate(model.cross_validation(df), df, 12)
        # 240 forecast rows: standard errors of 2.6 and 1.4 %; 4 of them.
        assert scores["coverage-80"].mean() == pytest.approx(80, abs=10.4)
        assert scores["coverage-95"].mean() == pytest.approx(95, abs=5.6)


def test_a_fit_that_fails_leaves_the_forecaster_as_it_was(small, series):
    class FailingError(Exception):
        pass

    class Failing(Callback):
        def on_train_start(self, *_) -> None:
            raise FailingError

    model = small().fit(series)
    expected = model.predict()
    model.trainer_options = {"callbacks": [Failing()]}
    with pytest.raises(FailingError):
        model.fit(series.assign(y=2 * series["y"]))
    pd.testing.assert_frame_equal(model.predict(), expected, check_exact=True)


CHANGES = {"log": False, "h": 3, "levels": [50], "fill": "zero", "input_size": 12, "tilt": 0}


def test_rows_that_calibrate_follow_the_horizon():
    model = Forecaster()
    assert (model.calibration_size, model.calibration_rows) == (None, 36)
    model.h = 4
    assert model.calibration_rows == 12
    assert dataclasses.replace(model, h=48).calibration_rows == 144
    assert Forecaster(calibration_size=20).calibration_rows == 20
    assert Forecaster(levels=()).calibration_rows == 0
    assert Forecaster(loss="normal", calibration_size=0).calibration_rows == 0


def test_settings_that_are_changed_are_those_of_the_next_fit(small, series, tmp_path):
    model = small().fit(series)
    expected, rows = model.predict(), model.future_rows(series)
    for name, value in CHANGES.items():
        setattr(model, name, value)
    pd.testing.assert_frame_equal(model.predict(), expected, check_exact=True)
    pd.testing.assert_frame_equal(model.predict(series), expected, check_exact=True)
    pd.testing.assert_frame_equal(model.future_rows(series), rows)
    model.save(tmp_path / "model.pt")
    loaded = Forecaster.load(tmp_path / "model.pt")
    loaded.h = 5
    pd.testing.assert_frame_equal(loaded.predict(), expected, check_exact=True)
    forecast = model.fit(series).predict()
    pd.testing.assert_frame_equal(forecast, small(**CHANGES).fit(series).predict())
    assert list(forecast.columns) == [*COLUMNS[:3], "lo-50", "hi-50"]
    assert len(forecast) == 3


def test_later_rows_are_filled_as_is_said_by_then(small, series, tmp_path):
    model = small(levels=()).fit(series[:60])
    with pytest.raises(ValueError, match="must have regular timestamps"):
        model.predict(series.drop(index=65))
    model.fill = "linear"
    assert len(model.predict(series.drop(index=65))) == 6
    model.fill = "mean"
    with pytest.raises(ValueError, match="fill must be None or one of linear"):
        model.save(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 90}, "levels must be a sequence of numbers. Got 90"),
        ({"calibration_size": 3}, "calibration_size must be at least h"),
        ({"futr_exog_list": "price"}, "futr_exog_list must be a sequence of names"),
    ],
)
def test_settings_that_are_changed_are_checked_by_the_next_fit(small, series, options, message):
    model = small().fit(series)
    expected = model.predict()
    for name, value in options.items():
        setattr(model, name, value)
    for fit in (model.fit, model.cross_validation):
        with pytest.raises(ValueError, match=message):
            fit(series)
    pd.testing.assert_frame_equal(model.predict(), expected, check_exact=True)


def test_categories_without_rows_are_no_series(small, series):
    both = pd.concat([series, series.assign(unique_id="b")]).astype({"unique_id": "category"})
    one = both[both["unique_id"] == "a"]
    forecast = small().fit(one).predict()
    assert forecast["unique_id"].tolist() == ["a"] * 6


@pytest.mark.parametrize("fill", ["linear", "previous"])
def test_a_filled_gap_shows_nothing_of_later_rows(small, series, fill):
    """A gap of two rows, the cutoff between them."""
    gap = series.drop(index=[65, 66])
    forecasts = []
    for factor in (1, 3):
        df = gap.assign(y=gap["y"].where(gap.index < 66, factor * gap["y"]))
        windows = small(fill=fill, log=True).cross_validation(df)
        assert windows["cutoff"].eq(series["ds"][65]).all()
        forecasts.append(windows["y_hat"])
    pd.testing.assert_series_equal(forecasts[0], forecasts[1], check_exact=True)


@pytest.mark.parametrize("fill", FILLS)
def test_filled_rows_are_no_actual_values_but_zeros(small, series, fill):
    gap = series.drop(index=[67, 70]).assign(y=lambda df: df["y"].where(df.index != 68))
    windows = small(fill=fill, log=False).cross_validation(gap, n_windows=2)
    instead = 0 if fill == "zero" else np.nan
    known = series["y"].where(~series.index.isin([67, 68, 70]), instead)
    assert windows["y"].tolist() == pytest.approx([*known[65:71], *known[66:72]], nan_ok=True)
    filled, _ = check_frame(gap, fill=fill)
    scores = evaluate(windows, filled, 12)
    pd.testing.assert_frame_equal(evaluate(windows.dropna(), filled, 12), scores)
    assert scores.notna().all(axis=None)
    none = evaluate(windows.assign(y=np.nan), filled, 12).drop(columns="unique_id")
    assert none.isna().all(axis=None)
    assert list(none) == [*scores][1:]


def test_a_series_with_no_value_before_the_cutoff_is_not_filled_from_later_ones(small):
    df = monthly(72).assign(y=lambda df: df["y"].where(df.index >= 66))
    with pytest.raises(ValueError, match=r"series 'a' has no value up to 2005-06-01 .*'linear'"):
        small(fill="linear").cross_validation(df)


def test_zeros_of_a_gap_at_the_cutoff_stay(small, series, monkeypatch):
    seen = []

    def fit(self, df, val_size=0):
        seen.append(df)
        raise StopIteration

    monkeypatch.setattr(Forecaster, "fit", fit)
    with pytest.raises(StopIteration):
        small(fill="zero", log=False).cross_validation(series.drop(index=[65, 66]))
    assert seen[0]["y"].iloc[-1] == 0


def test_loading_draws_no_random_numbers(small, series, tmp_path):
    small().fit(series).save(tmp_path / "model.pt")
    before = torch.get_rng_state()
    Forecaster.load(tmp_path / "model.pt")
    assert torch.equal(torch.get_rng_state(), before)
