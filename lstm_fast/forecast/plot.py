"""Pictures of forecasts, backtests, trainings, searches and speed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import (
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    StrMethodFormatter,
)

from lstm_fast.forecast.metrics import levels_of

_BLUE, _ORANGE, _INK = "#1f6fb4", "#d9730d", "#1b1b1b"
_COLORS = (_BLUE, _ORANGE, "#6f9f3a", "#9a9a9a")


def plot_forecast(
    history: pd.DataFrame,
    forecast: pd.DataFrame,
    actual: pd.DataFrame | None = None,
    *,
    title: str,
    ylabel: str,
) -> Figure:
    """Draw one series: all of it on the left, the forecast alone on the right.

    `history` and `actual` have ``ds`` and ``y``, `forecast` is what `Forecaster.predict` returns.
    """
    figure = Figure(figsize=(11, 4.6), dpi=150, layout="constrained")
    whole, close = figure.subplots(1, 2, width_ratios=[1.5, 1])
    whole.plot(history["ds"], history["y"], color=_INK, lw=1.1, label="history")
    _draw_forecast(whole, _joined(history, forecast), actual, marker_size=3.5)
    _draw_forecast(close, forecast, actual, marker_size=5.5)
    for axes in (whole, close):
        _style(axes)
        _short_dates(axes, forecast["ds"])
    if len(forecast) == 1:
        ds = pd.DatetimeIndex(forecast["ds"])
        close.set_xticks(ds, ds.strftime(_date_format(ds)))
    whole.set_ylabel(ylabel, parse_math=False)
    close.set_title("the forecast, closer", loc="left", fontsize=10)
    _title(figure, title)
    _legend(figure, whole)
    return figure


def _draw_forecast(
    axes: Axes, forecast: pd.DataFrame, actual: pd.DataFrame | None, marker_size: float
) -> None:
    # A line or an area that has one row shows nothing.
    is_one_row = len(forecast) == 1
    draw_interval = axes.vlines if is_one_row else axes.fill_between
    for k, level in enumerate(reversed(levels_of(forecast))):
        draw_interval(
            forecast["ds"],
            forecast[f"lo-{level:g}"],
            forecast[f"hi-{level:g}"],
            color=_BLUE,
            alpha=0.18 + 0.12 * k,
            lw=9 if is_one_row else 0,
            label=f"{level:g} % interval",
        )
    marker = "o" if is_one_row else None
    axes.plot(
        forecast["ds"], forecast["y_hat"], color=_BLUE, lw=1.8, marker=marker, label="forecast"
    )
    if actual is not None:
        axes.plot(
            actual["ds"],
            actual["y"],
            color=_INK,
            ls="none",
            marker="o",
            ms=marker_size,
            mfc="white",
            label="actual",
        )


def _joined(history: pd.DataFrame, forecast: pd.DataFrame) -> pd.DataFrame:
    """The forecast from the last known row on, so that no gap is drawn between the two."""
    last = history.sort_values("ds").iloc[-1]
    numbers = [name for name in forecast.columns if name == "y_hat" or name[:3] in ("lo-", "hi-")]
    known = forecast.head(1)[["ds", *numbers]].assign(
        ds=last["ds"], **dict.fromkeys(numbers, last["y"])
    )
    return pd.concat([known, forecast], ignore_index=True)


def _short_name(name: str) -> str:
    """As long as a panel is wide; names that begin alike may differ at their end."""
    return name if len(name) <= 40 else f"{name[:22]}…{name[-17:]}"


def _title(figure: Figure, title: str) -> None:
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", parse_math=False)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)


def _short_dates(axes: Axes, ds: pd.Series) -> None:
    """In the time zone of `ds`."""
    locator = AutoDateLocator(tz=ds.dt.tz, minticks=3, maxticks=7)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=ds.dt.tz))
    axes.xaxis.get_offset_text().set_fontsize(8)


def _date_format(ds: pd.DatetimeIndex) -> str:
    return "%Y-%m-%d" if ds.is_normalized else "%Y-%m-%d %H:%M"


def _few_ticks(axis: Axis, *digits: float) -> None:
    """These digits of each power of ten on a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=digits))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _style(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    axes.grid(axis="y", color="#e3e3e3", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.02)


def plot_forecasts(
    history: pd.DataFrame,
    forecast: pd.DataFrame,
    *,
    title: str,
    rows: int,
    ylabel: str = "",
    at_most: int = 9,
) -> Figure:
    """Draw the first `at_most` of several series, the last `rows` of their history each.

    One series alone is drawn as `plot_forecast` does it.
    """
    ids = list(forecast["unique_id"].unique())
    parts = [
        (history[history["unique_id"] == i].tail(rows), forecast[forecast["unique_id"] == i])
        for i in ids[:at_most]
    ]
    if len(ids) == 1:
        return plot_forecast(*parts[0], title=title, ylabel=ylabel)
    columns = min(3, math.ceil(math.sqrt(len(parts))))
    lines = math.ceil(len(parts) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.5 * lines + 0.9), dpi=150, layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, (known, future) in zip(grid, parts, strict=False):
        axes.plot(known["ds"], known["y"], color=_INK, lw=1.0, label="history")
        _draw_forecast(axes, _joined(known, future), None, marker_size=3)
        _style(axes)
        _short_dates(axes, future["ds"])
        name = _short_name(str(future["unique_id"].iloc[0]))
        axes.set_title(name, loc="left", fontsize=9, parse_math=False)
        axes.tick_params(labelsize=8)
    for axes in grid[len(parts) :]:
        axes.remove()
    shown = "" if len(ids) <= at_most else f" (first {at_most} of {len(ids)} series)"
    _title(figure, title + shown)
    _legend(figure, grid[0])
    return figure


def plot_backtest(
    history: pd.DataFrame,
    forecasts: pd.DataFrame,
    *,
    title: str,
    ylabel: str = "",
    at_most: int = 6,
) -> Figure:
    """Draw the windows of a cross-validation of one series: `at_most` of them, with the last.

    `forecasts` is what `Forecaster.cross_validation` returns, `history` the frame it was given.
    """
    cutoffs = sorted(forecasts["cutoff"].unique())
    chosen = cutoffs[:: -max(1, math.ceil(len(cutoffs) / at_most))][::-1]
    form = _date_format(pd.DatetimeIndex(chosen))
    columns = min(3, len(chosen))
    lines = math.ceil(len(chosen) / columns)
    width = max(8, 4.2 * columns)
    figure = Figure(figsize=(width, 2.6 * lines + 0.9), dpi=150, layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
    for axes, cutoff in zip(grid, chosen, strict=False):
        window = forecasts[forecasts["cutoff"] == cutoff]
        known = history[pd.to_datetime(history["ds"]) <= cutoff].tail(3 * len(window))
        axes.plot(known["ds"], known["y"], color=_INK, lw=1.1, label="history")
        _draw_forecast(axes, _joined(known, window), window, marker_size=4)
        _style(axes)
        _short_dates(axes, window["ds"])
        axes.set_title(f"known to {cutoff:{form}}", loc="left", fontsize=9)
        axes.tick_params(labelsize=8)
    for axes in grid[len(chosen) :]:
        axes.remove()
    figure.supylabel(ylabel, fontsize=10, parse_math=False)
    _title(figure, title)
    _legend(figure, grid[0])
    return figure


def plot_training(losses: pd.DataFrame, *, title: str) -> Figure:
    """Draw what `History.frame` returns: a line for each training, thick where it is smoothed.

    The last training is solid, those before it (which calibrate intervals) are dashed.

    Raises:
        ValueError: if there are no losses, as after a training that was finished before.
    """
    if losses.empty:
        raise ValueError("losses must have rows: a training that was finished before leaves none")
    figure = Figure(figsize=(8, 4.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    kinds = (("train_loss", _BLUE, "training"), ("val_loss", _ORANGE, "validation"))
    for name, color, label in kinds:
        for k, one in losses[losses["name"] == name].groupby("training"):
            window = max(1, len(one) // 20)
            smooth = one["loss"].rolling(window, min_periods=1, center=True).mean()
            axes.plot(one["step"], one["loss"], color=color, lw=0.5, alpha=0.15)
            last, first = k == losses["training"].max(), k == losses["training"].min()
            shown = f"{label} loss" + ("" if last else ", earlier")
            axes.plot(one["step"], smooth, color=color, lw=1.4, ls="-" if last else "--",
                      marker="o" if len(one) == 1 else None, ms=4,
                      label=shown if last or first else None)  # fmt: skip
    _style(axes)
    if (losses["loss"] > 0).all():  # those of a distribution may be below 0
        axes.set_yscale("log")
        _few_ticks(axes.yaxis, 1, 1.5, 2, 3, 5, 7)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    _title(figure, title)
    axes.legend(frameon=False, ncols=2, loc="best")
    return figure


def plot_search(trials: pd.DataFrame, *, title: str) -> Figure:
    """Draw a search: its losses in order, and against each setting.

    Args:
        trials: what `optuna.Study.trials_dataframe` returns.
    """
    done = trials[trials["state"] == "COMPLETE"]
    pruned = trials[trials["state"] == "PRUNED"]
    trials = pd.concat([done, pruned])  # others, which failed or were killed, have no loss
    knobs = [name for name in trials.columns if name.startswith("params_")]
    lines = 1 + math.ceil(len(knobs) / 3)
    figure = Figure(figsize=(11, 2.3 * lines + 0.8), dpi=150, layout="constrained")
    grid = figure.add_gridspec(lines, 3)
    order = figure.add_subplot(grid[0, :])
    top = done["value"].median() + 3 * (done["value"].median() - done["value"].min())
    for axes, column in [
        (order, "number"),
        *((figure.add_subplot(grid[1 + k // 3, k % 3]), knob) for k, knob in enumerate(knobs)),
    ]:
        for part, color, label in (
            (pruned, "#9a9a9a", "cut off, its loss till then"),
            (done, _BLUE, "finished"),
        ):
            places, beyond = _places(part[column], trials[column]), part["value"] > top
            look: dict[str, Any] = {"color": color, "lw": 0, "alpha": 0.7}
            axes.scatter(places[~beyond], part["value"][~beyond], s=22, label=label, **look)
            axes.scatter(places[beyond], [top] * beyond.sum(), s=26, marker="^", **look)
        _style(axes)
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.3g}"))
        axes.set_xlabel(column.removeprefix("params_"), fontsize=9)
        axes.tick_params(labelsize=8)
        axes.margins(x=0.05)
        if column == "params_learning_rate":
            axes.set_xscale("log")
            _few_ticks(axes.xaxis, 1, 2, 5)
        _name_places(axes, trials[column])
    if (trials["value"] > top).any():
        order.scatter([], [], s=26, marker="^", color=_INK, lw=0, label="higher than shown")
    best = done.sort_values("number")
    order.step(best["number"], best["value"].cummin().clip(upper=top), where="post",
               color=_ORANGE, lw=1.4, label="best so far")  # fmt: skip
    order.set_xlabel("trial", fontsize=9)
    order.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.supylabel("loss", fontsize=10)
    _title(figure, title)
    _legend(figure, order)
    return figure


def plot_bars(
    labels: Sequence[str],
    values: Mapping[str, Sequence[float]],
    *,
    title: str,
    xlabel: str,
    mark: float | None = None,
) -> Figure:
    """Draw a group of bars for each label, one of each name in `values`.

    With a `mark`, values are ratios: there is a line at it, and the axis is logarithmic.
    """
    rows = len(labels) * (len(values) + 1)
    figure = Figure(figsize=(9, 0.19 * rows + 1.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    height = 0.84 / len(values)
    for k, (name, ones) in enumerate(values.items()):
        places = [row + (k - (len(values) - 1) / 2) * height for row in range(len(labels))]
        bars = axes.barh(places, ones, height * 0.9, color=_COLORS[k % len(_COLORS)], label=name)
        axes.bar_label(bars, [f"{value:.2f}" for value in ones], padding=3, fontsize=7.5)
    low, high = (limit(map(limit, values.values())) for limit in (min, max))
    axes.set_xlim(0, 1.12 * high)
    if mark is not None:
        axes.axvline(mark, color=_INK, lw=0.9)
        axes.set_xscale("log")
        axes.set_xlim(0.8 * min(low, mark), 1.3 * max(high, mark))
        _few_ticks(axes.xaxis, 1, 2, 5)
    axes.set_yticks(range(len(labels)), labels, fontsize=9)
    axes.set_ylim(len(labels) - 0.45, -0.55)  # the first on top
    axes.set_xlabel(xlabel)
    axes.grid(axis="x", color="#e3e3e3", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    _title(figure, title)
    _legend(figure, axes)
    return figure


def plot_growth(times: pd.DataFrame, *, title: str) -> Figure:
    """Draw how times grow with sizes, all axes logarithmic: a line of panels for each work.

    Args:
        times: columns ``work``, ``size`` (what varies, a panel for each), ``value``, ``name`` (a
            curve for each; the last one is a limit, and dashed) and ``seconds``.
    """
    works, sizes, names = (list(times[column].unique()) for column in ("work", "size", "name"))
    figure = Figure(figsize=(3 * len(sizes), 2.7 * len(works) + 0.8), dpi=150, layout="constrained")
    grid = figure.subplots(len(works), len(sizes), squeeze=False, sharex="col", sharey="row")
    looks: list[dict[str, Any]] = [
        {"color": color, "lw": 1.6, "marker": "o", "ms": 3.5} for color in _COLORS
    ]
    looks[len(names) - 1] = {"color": _INK, "lw": 1.1, "ls": "--"}
    for (work, size), part in times.groupby(["work", "size"], sort=False):
        axes: Axes = grid[works.index(work), sizes.index(size)]
        for name, look in zip(names, looks, strict=False):
            curve = part[part["name"] == name].sort_values("value")
            axes.plot(curve["value"], 1e3 * curve["seconds"], label=name, **look)
        _style(axes)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator())
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.margins(x=0.05)
        values = sorted(part["value"].unique())
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.tick_params(labelsize=8)
        if work == works[-1]:
            axes.set_xlabel(str(size), fontsize=9)
        if size == sizes[0]:
            axes.set_ylabel(f"{work}, ms", fontsize=9)
    _title(figure, title)
    _legend(figure, grid[0, 0])
    return figure


def _places(values: pd.Series, every: pd.Series) -> pd.Series:
    """Numbers as they are; names, or a few numbers to choose from, in a row."""
    names = _names(every)
    return values if names is None else values.map({name: k for k, name in enumerate(names)})


def _name_places(axes: Axes, every: pd.Series) -> None:
    names = _names(every)
    if names is not None:
        axes.set_xticks(range(len(names)), [str(name) for name in names])
        if len("".join(map(str, names))) > 24:
            axes.tick_params("x", rotation=30)


def _names(every: pd.Series) -> list[Any] | None:
    known = every.dropna().unique()
    if every.dtype.kind not in "iuf":
        return sorted(known)
    # Numbers to choose from are whole; others were drawn from a range, however few they are.
    is_choice = len(known) <= 4 and (known % 1 == 0).all()
    return sorted(known.astype(int)) if is_choice else None


def save_figure(figure: Figure, path: Path, *, overwrite: bool = False) -> Path:
    """Save to `path`, or unless `overwrite` to the first of path-2, path-3 ... that is free.

    Missing folders are made. Returns where the picture is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    free, number = path, 1
    while not overwrite and free.exists():
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    figure.savefig(free)
    return free
