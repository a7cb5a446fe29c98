"""How the defaults of the forecaster were chosen: its errors on `benchmarks.series.selection`.

    python -m benchmarks.selection [OPTION=VALUE ...]

for example `dropout=0.5 loss='"mse"'`. The networks are trained once for each collection and
forecast from six origins; shown are errors over those of the seasonal naive and the share of values
in the intervals. Collections too short for the calibration are trained without intervals.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import statistics
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pandas as pd
import torch

from benchmarks.series import Collection, selection
from lstm_fast.forecast import Forecaster, coverage
from lstm_fast.forecast.backtest import cross_validate_naive

LEVELS = (80, 95)


def measure(collection: Collection, options: dict[str, Any]) -> tuple[float, list[float]]:
    """Geometric mean over series of the MAE over the seasonal naive's, and the coverages."""
    torch.set_num_threads(1)
    c, df = collection, collection.load()
    given = {"h": c.h, "season_length": c.season_length, "input_size": 3 * c.season_length}
    model = Forecaster(**{**given, "levels": LEVELS, **options})
    known = df["unique_id"].value_counts().min() - c.test_size
    if known < model.input_size + model.h + model.calibration_rows:
        model = dataclasses.replace(model, levels=())
    forecasts = model.cross_validation(df, c.n_windows, c.step_size, refit=False)
    naive = cross_validate_naive(df, c.h, c.season_length, c.n_windows, c.step_size)
    ratio = _mae(forecasts) / _mae(naive)
    covered = [coverage(forecasts, level) for level in model.levels]
    return statistics.geometric_mean(ratio), covered


def _mae(forecasts: pd.DataFrame) -> pd.Series:
    error = (forecasts["y"] - forecasts["y_hat"]).abs()
    return error.groupby(forecasts["unique_id"]).mean()


def _option(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    if name not in {field.name for field in dataclasses.fields(Forecaster)}:
        raise argparse.ArgumentTypeError(f"{name!r} is no option of Forecaster")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} must be OPTION=VALUE, as in Python") from error


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("options", nargs="*", type=_option, metavar="OPTION=VALUE")
    options = dict(parser.parse_args().options)
    collections = selection()
    ratios, covers = [], []
    print("| collection | MAE over the seasonal naive's | in 80 % | in 95 % |\n|---|---|---|---|")
    with ProcessPoolExecutor() as pool:
        measured = pool.map(measure, collections.values(), [options] * len(collections))
        for name, (ratio, covered) in zip(collections, measured, strict=True):
            ratios.append(ratio)
            covers += [covered] if covered else []
            shares = " | ".join(f"{share:.0f}" for share in covered) or " | "
            print(f"| {name} | {ratio:.3f} | {shares} |", flush=True)
    means = " | ".join(f"{statistics.mean(column):.1f}" for column in zip(*covers, strict=True))
    print(f"| all | {statistics.geometric_mean(ratios):.3f} | {means} |")


if __name__ == "__main__":
    main()
