"""A picture of a forecast."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.dates import ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

_BLUE, _INK = "#1f6fb4", "#1b1b1b"


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
    for axes in (whole, close):
        _draw_forecast(axes, forecast, actual, marker_size=3.5 if axes is whole else 5.5)
        _style(axes)
    whole.set_ylabel(ylabel)
    close.xaxis.set_major_formatter(ConciseDateFormatter(close.xaxis.get_major_locator()))
    close.set_title("the forecast, closer", loc="left", fontsize=10)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    handles, labels = whole.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def _draw_forecast(
    axes: Axes, forecast: pd.DataFrame, actual: pd.DataFrame | None, marker_size: float
) -> None:
    names = forecast.columns.astype(str)
    levels = sorted(float(name[3:]) for name in names if name.startswith("lo-"))
    for k, level in enumerate(reversed(levels)):
        axes.fill_between(
            forecast["ds"],
            forecast[f"lo-{level:g}"],
            forecast[f"hi-{level:g}"],
            color=_BLUE,
            alpha=0.18 + 0.12 * k,
            lw=0,
            label=f"{level:g} % interval",
        )
    axes.plot(forecast["ds"], forecast["y_hat"], color=_BLUE, lw=1.8, label="forecast")
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


def _style(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.grid(axis="y", color="#e3e3e3", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.02)


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
