"""Pictures: drawn without a warning, with all that was to be in them."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.dates import date2num
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from lstm_fast.forecast.plot import (
    plot_backtest,
    plot_bars,
    plot_forecasts,
    plot_growth,
    plot_search,
    plot_training,
)
from tests.forecast.series import monthly

pytestmark = pytest.mark.filterwarnings("error")


def forecast_of(df: pd.DataFrame) -> pd.DataFrame:
    band = {"lo-80": df["y"] - 1, "hi-80": df["y"] + 1, "lo-95": df["y"] - 2, "hi-95": df["y"] + 2}
    return df.rename(columns={"y": "y_hat"}).assign(**band)


def draw(figure, tmp_path) -> list[str]:
    """Save it, which is when matplotlib lays it out; return the titles of its axes.

    Title and legend must lie within the picture.
    """
    figure.savefig(tmp_path / "picture.png")
    for artist in (figure._suptitle, *figure.legends):
        box = artist.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
    return [axes.get_title(loc="left") for axes in figure.axes]


@pytest.mark.parametrize(("series", "axes"), [(1, 2), (2, 2), (5, 5), (12, 9)])
def test_forecasts(tmp_path, series, axes):
    df = pd.concat(monthly(60, f"series {k}") for k in range(series))
    part = df.groupby("unique_id").cumcount()
    figure = plot_forecasts(
        df[part < 48], forecast_of(df[part >= 48]), title="sales", rows=36, ylabel="dollars"
    )
    assert len(draw(figure, tmp_path)) == axes
    (line,) = [x for x in figure.axes[0].lines if x.get_label() == "forecast"]
    assert np.asarray(line.get_ydata())[0] == df["y"].iloc[47]  # no gap after the history
    if series == 12:
        assert figure.get_suptitle() == "sales (first 9 of 12 series)"


def test_a_forecast_of_one_row_is_seen(tmp_path):
    df = monthly(49)
    future = forecast_of(df[48:])
    figure = plot_forecasts(df[:48], future, title="t", rows=36)
    draw(figure, tmp_path)
    close = figure.axes[1]
    (line,) = close.lines
    assert line.get_marker() == "o"
    bars = [collection.get_datalim(close.transData) for collection in close.collections]
    assert [(bar.y0, bar.y1) for bar in bars] == [
        (future[f"lo-{level}"].item(), future[f"hi-{level}"].item()) for level in (95, 80)
    ]
    assert [tick.get_text() for tick in close.get_xticklabels()] == ["2004-01-01"]


def test_times_are_those_of_the_zone(tmp_path):
    ds = pd.date_range("2024-06-01", periods=72, freq="h", tz="America/New_York")
    df = pd.DataFrame({"unique_id": "a", "ds": ds, "y": range(72)})
    both = pd.concat([df, df.assign(unique_id="b")])
    known, later = (both[both["ds"].isin(part)] for part in (ds[:-24], ds[-24:]))
    windows = forecast_of(df[-24:]).assign(y=df["y"], cutoff=ds[-25])
    for figure in (
        plot_forecasts(df[:-24], forecast_of(df[-24:]), title="t", rows=48),
        plot_forecasts(known, forecast_of(later), title="t", rows=48),
        plot_backtest(df, windows, title="t"),
    ):
        draw(figure, tmp_path)
        for axes in figure.axes:
            midnight = axes.xaxis.get_major_formatter().format_ticks(
                [date2num(ds[48]), date2num(ds[54])]
            )
            assert midnight == ["Jun-03", "06:00"]


def test_hours_have_room_and_panels_their_hour(tmp_path):
    ds = pd.date_range("2024-01-01", periods=78, freq="h")
    df = pd.DataFrame({"unique_id": "a", "ds": ds, "y": range(78)})
    figure = plot_forecasts(df[:36], forecast_of(df[36:42]), title="t", rows=36)
    draw(figure, tmp_path)
    for axes in figure.axes:
        boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))
    windows = [forecast_of(df[k : k + 6]).assign(y=df["y"], cutoff=ds[k - 1]) for k in (60, 66)]
    titles = draw(plot_backtest(df, pd.concat(windows), title="t"), tmp_path)
    assert titles == ["known to 2024-01-03 11:00", "known to 2024-01-03 17:00"]


def test_long_names_stay_within_their_panels(tmp_path):
    names = [f"WAREHOUSE {k} / REGION NORTH-RHINE-WESTPHALIA / GROUP {7 * k}" for k in range(3)]
    df = pd.concat(monthly(60, name) for name in names)
    part = df.groupby("unique_id").cumcount()
    future = forecast_of(df[part >= 48])
    figure = plot_forecasts(df[part < 48], future, title="t", rows=36)
    titles = draw(figure, tmp_path)
    assert len(set(titles)) == 3
    boxes = [
        next(text.get_window_extent() for text in axes.findobj(Text) if text.get_text() == title)
        for axes, title in zip(figure.axes, titles, strict=True)
    ]
    assert boxes[0].x1 < boxes[1].x0
    assert boxes[1].x1 < figure.bbox.x1


def test_large_numbers_are_written_out(tmp_path):
    df = monthly(60).assign(y=lambda df: 12_345_678 + df.index % 7)
    figure = plot_forecasts(df[:48], forecast_of(df[48:]), title="t", rows=36)
    draw(figure, tmp_path)
    shown = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert len(set(shown)) == len(shown)
    assert "12,345,678" in shown


def test_names_are_no_formulas(tmp_path):
    name = r"price in $ and \frac{1}{2 $"
    df = pd.concat(monthly(60, f"{name} {k}") for k in range(3))
    part = df.groupby("unique_id").cumcount()
    future = forecast_of(df[part >= 48])
    figure = plot_forecasts(df[part < 48], future, title=name, rows=36, ylabel=name)
    assert draw(figure, tmp_path)[0] == f"{name} 0"
    first = df[:60]
    parts = forecast_of(first[48:]).assign(y=first["y"][48:], cutoff=first["ds"][47])
    draw(plot_backtest(first, parts, title=name, ylabel=name), tmp_path)
    draw(plot_forecasts(first[:48], parts, title=name, rows=36, ylabel=name), tmp_path)


def test_losses_below_0_are_drawn_too(tmp_path):
    losses = pd.DataFrame({"training": 0, "step": range(40), "name": "train_loss"})
    figure = plot_training(losses.assign(loss=np.linspace(2, -1, 40)), title="t")
    draw(figure, tmp_path)
    assert figure.axes[0].get_ylim()[0] < -0.9
    with pytest.raises(ValueError, match="losses must have rows"):
        plot_training(losses[:0], title="t")
    figure = plot_training(losses.assign(loss=np.linspace(2, 1, 40)), title="t")
    assert figure.axes[0].get_yscale() == "log"


def test_a_single_loss_is_drawn(tmp_path):
    losses = pd.DataFrame(
        {
            "training": 0,
            "step": [*range(20), 19],
            "loss": 1.0,
            "name": ["train_loss"] * 20 + ["val_loss"],
        }
    )
    figure = plot_training(losses, title="t")
    draw(figure, tmp_path)
    few = plot_training(losses[:3], title="t").axes[0]
    assert all(tick == round(tick) for tick in few.get_xticks())
    shown = {line.get_label(): line.get_marker() for line in figure.axes[0].lines}
    assert shown["validation loss"] == "o"
    assert shown["training loss"] == "None"


@pytest.mark.parametrize(("windows", "axes"), [(1, 1), (5, 5), (12, 6)])
def test_backtest(tmp_path, windows, axes):
    df = monthly(100)
    parts = []
    for k in range(windows):
        part = df[60 + k : 66 + k]
        parts.append(forecast_of(part).assign(y=part["y"], cutoff=df["ds"][59 + k]))
    titles = draw(plot_backtest(df, pd.concat(parts), title="sales"), tmp_path)
    assert len(titles) == axes
    assert titles[-1] == f"known to {df['ds'][58 + windows]:%Y-%m-%d}"


def test_training(tmp_path):
    rows = [(k, step, name, 1 / step) for k in (0, 1) for step in range(1, 50)
            for name in ("train_loss", "val_loss")]  # fmt: skip
    losses = pd.DataFrame(rows, columns=["training", "step", "name", "loss"])
    figure = plot_training(losses, title="training")
    draw(figure, tmp_path)
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == [
        "training loss, earlier", "training loss", "validation loss, earlier", "validation loss"
    ]  # fmt: skip


def test_search(tmp_path):
    trials = pd.DataFrame(
        {
            "number": range(6),
            "value": [1.0, 0.8, 9.0, 0.7, None, 0.9],
            "state": ["COMPLETE"] * 4 + ["FAIL", "PRUNED"],
            "params_activation": ["relu", "tanh", "relu", "gelu", "silu", "relu"],
            "params_learning_rate": [0.001, 0.002, 0.02, 0.01, 0.01, 0.005],
            "params_hidden_size": [16, 32, 64, 128, 16, 16],
        }
    )
    figure = plot_search(trials, title="search")
    draw(figure, tmp_path)
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "trial", "activation", "learning_rate", "hidden_size",
    ]  # fmt: skip
    ticks = [tick.get_text() for tick in figure.axes[1].get_xticklabels()]
    assert ticks == ["gelu", "relu", "tanh"]
    trials["value"] = [9.0, 0.8, 0.9, 0.7, None, 0.9]
    figure = plot_search(trials, title="search")
    draw(figure, tmp_path)
    (best,) = figure.axes[0].lines
    triangle = figure.axes[0].collections[3].get_offsets()
    assert np.asarray(best.get_ydata())[0] == np.asarray(triangle)[0, 1]


def test_a_short_search_has_numbers_on_the_axes_of_numbers(tmp_path):
    trials = pd.DataFrame(
        {
            "number": range(3),
            "value": [1.0, 0.8, None],
            "state": ["COMPLETE", "COMPLETE", "FAIL"],
            "params_dropout": [0.016174717952260578, 0.7, 0.3],
            "params_hidden_size": [16, 128, None],
        }
    )
    figure = plot_search(trials, title="search")
    draw(figure, tmp_path)
    dropout, hidden_size = figure.axes[1:]
    (points,) = [c for c in dropout.collections if c.get_label() == "finished"]
    assert np.asarray(points.get_offsets())[:, 0].tolist() == [0.016174717952260578, 0.7]
    assert max(len(tick.get_text()) for tick in dropout.get_xticklabels()) < 6
    assert [tick.get_text() for tick in hidden_size.get_xticklabels()] == ["16", "128"]


def test_bars(tmp_path):
    values = {"inference": [2.0, 1.0], "training": [3.0, 1.5]}
    figure = plot_bars(["small", "large"], values, title="speed", xlabel="times", mark=1)
    draw(figure, tmp_path)
    widths = [bar.get_width() for bar in figure.axes[0].patches if isinstance(bar, Rectangle)]
    assert widths == [2.0, 1.0, 3.0, 1.5]
    assert figure.axes[0].get_xscale() == "log"
    low, high = figure.axes[0].get_xlim()
    assert low < 1 < 3 < high


def test_growth(tmp_path):
    names = {"ours": 1, "theirs": 2, "limit": 0.1}
    times = [
        {"work": work, "size": size, "value": n, "name": name, "seconds": factor * 1e-5 * n}
        for work in ("inference", "training")
        for size, values in (("steps", (4, 1, 16)), ("threads", (1, 2)))
        for n in values
        for name, factor in names.items()
    ]
    figure = plot_growth(pd.DataFrame(times), title="growth")
    assert len(draw(figure, tmp_path)) == 4
    steps = figure.axes[0]
    assert [line.get_label() for line in steps.lines] == list(names)
    assert steps.lines[1].get_xydata() == pytest.approx(
        np.array([[1, 0.02], [4, 0.08], [16, 0.32]])
    )
    assert [tick.get_text() for tick in figure.axes[3].get_xticklabels()] == ["1", "2"]
    assert figure.axes[2].get_ylabel() == "training, ms"
