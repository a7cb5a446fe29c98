"""Forecast the real series of `benchmarks.series` over again, against methods known to be good.

    python -m benchmarks.backtest [names of collections] [--methods METHOD ...] [--only-draw]

Writes `docs/backtest.md`, its pictures and `benchmarks/results/backtest.json`. Every collection is
forecast with the defaults of `Forecaster`, whatever it is; told are only the horizon, the season
and the input size, which follows from the season. A run that was stopped goes on where it was: what
is done lies in `build/backtest.json` until all is, and counts as long as code and machine stay.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import platform
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from benchmarks.cases import at_least_1
from benchmarks.series import COLLECTIONS, Collection
from lstm_fast import LSTM
from lstm_fast.forecast import Forecaster, evaluate
from lstm_fast.forecast.backtest import (
    STATISTICAL,
    cross_validate_naive,
    cross_validate_statistical,
)
from lstm_fast.forecast.model import LAYERS
from lstm_fast.forecast.plot import plot_backtest, plot_bars

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "backtest.json"
DONE = ROOT / "build" / "backtest.json"
DOCUMENT = ROOT / "docs" / "backtest.md"
IMAGES = ROOT / "docs" / "images"

NAIVE = "seasonal naive"
OURS, TORCHS = LAYERS
METHODS = (NAIVE, *STATISTICAL, *LAYERS)


def forecaster(collection: Collection, layer: type[nn.LSTM] = LSTM) -> Forecaster:
    return Forecaster(
        h=collection.h,
        season_length=collection.season_length,
        input_size=3 * collection.season_length,
        lstm_class=layer,
    )


def run(collection: Collection, df: pd.DataFrame, method: str) -> pd.DataFrame:
    """The forecasts of a method without layers from all origins, each from what came before."""
    c = collection
    if method == NAIVE:
        return cross_validate_naive(df, c.h, c.season_length, c.n_windows, c.step_size)
    return cross_validate_statistical(df, method, c.h, c.season_length, c.n_windows, c.step_size)


def run_layers(
    collection: Collection, df: pd.DataFrame, methods: Sequence[str]
) -> dict[str, tuple[pd.DataFrame, float]]:
    """Forecasts and seconds of the forecaster on each layer, which take turns at every origin."""
    from_end = df.groupby("unique_id", sort=False).cumcount(ascending=False)
    windows: dict[str, list[pd.DataFrame]] = {method: [] for method in methods}
    seconds = dict.fromkeys(methods, 0.0)
    for k in range(collection.n_windows):
        known = df[from_end >= collection.step_size * (collection.n_windows - 1 - k)]
        for method in methods if k % 2 else reversed(methods):
            start = time.process_time()
            window = forecaster(collection, LAYERS[method]).cross_validation(known)
            seconds[method] += time.process_time() - start
            windows[method].append(window)
    return {m: (pd.concat(windows[m], ignore_index=True), seconds[m]) for m in methods}


def backtest(
    name: str, methods: Sequence[str], done: dict[str, Any], machine: str
) -> Iterator[None]:
    """Add scores and seconds of `methods` on this `machine` to what is `done`, with a pause after
    each; draws the windows of the first series.
    """
    collection = COLLECTIONS[name]
    df = collection.load()
    done |= {"series": df["unique_id"].nunique(), "rows": len(df)}
    scores = done.setdefault("scores", {})

    def add(method: str, forecasts: pd.DataFrame, seconds: float) -> None:
        means = evaluate(forecasts, df, collection.season_length).drop(columns="unique_id").mean()
        by_origin = rmse_by_origin(forecasts)
        scores[method] = {**means.to_dict(), "RMSE by origin": by_origin, "seconds": seconds}
        scores[method]["machine"] = machine
        print(f"{name}: {method}: MASE {means['MASE']:.3f}, {seconds:.1f} s", flush=True)

    for method in methods:
        if method not in scores and method not in LAYERS:
            start = time.process_time()
            forecasts = run(collection, df, method)
            add(method, forecasts, time.process_time() - start)
            yield
    layers = [method for method in methods if method not in scores and method in LAYERS]
    for method, (forecasts, seconds) in run_layers(collection, df, layers).items():
        add(method, forecasts, seconds)
        if method == OURS:
            draw_windows(name, df, forecasts)
    yield


def rmse_by_origin(forecasts: pd.DataFrame) -> float:
    """The RMSE of each origin and series, averaged; `evaluate` takes that of all rows together."""
    square = (forecasts["y"] - forecasts["y_hat"]).pow(2)
    return float(
        square.groupby([forecasts["unique_id"], forecasts["cutoff"]]).mean().pow(0.5).mean()
    )


def draw_windows(name: str, df: pd.DataFrame, forecasts: pd.DataFrame) -> None:
    first, title = df["unique_id"].iloc[0], _headline(name)
    if df["unique_id"].nunique() > 1:
        title += f" (the first, {first})"
    figure = plot_backtest(
        df[df["unique_id"] == first],
        forecasts[forecasts["unique_id"] == first],
        title=f"{title}: forecast as if not known",
    )
    figure.savefig(IMAGES / f"backtest_{name}.png")


def draw_scores(results: dict[str, Any]) -> None:
    titles = [COLLECTIONS[name].title for name in results]
    mase = {
        method: [result["scores"][method]["MASE"] for result in results.values()]
        for method in (OURS, *reversed(STATISTICAL), NAIVE)
    }
    figure = plot_bars(titles, mase, title="Errors of the forecasts", xlabel="MASE")
    figure.savefig(IMAGES / "backtest.png")


def document(results: dict[str, Any]) -> str:
    """The page: a table for each collection. What all was measured on is said once."""
    scores = {name: result["scores"] for name, result in results.items()}
    machines = {score["machine"] for of in scores.values() for score in of.values()}
    several = len(machines) > 1
    lines = [
        "# Backtest",
        "",
        "Written by `make backtest`. Each method is fitted anew at every origin, on the rows "
        "before it alone. The settings of the forecaster are its defaults for all series; they "
        "were chosen on rows that lie before the first origin of every collection, and on other "
        "series. MASE and sMAPE (in per cent) are means over series; RMSE is of all rows of a "
        "series, and in brackets the mean of the RMSE of each origin. Shown too are the per cent "
        "of actual values that the 80 and 95 % intervals held, and the seconds of processor time "
        "of the whole row, all origins together.",
        "",
        *([] if several else [f"Machine: {machines.pop()}.", ""]),
        _wins(results),
        "",
        *_ratios(results),
        "![errors](images/backtest.png)",
    ]
    for name, result in results.items():
        c = COLLECTIONS[name]
        lines += [
            "",
            f"## {_headline(name)}",
            "",
            f"{result['series']} series, {result['rows']:,} rows ({c.source}); {c.n_windows} "
            f"origins, {c.step_size} rows apart, {c.h} rows ahead, season {c.season_length}.",
            "",
            *([f"Machine: {_machines_of(scores[name])}.", ""] if several else []),
            "| forecast | MASE | sMAPE | RMSE | in 80 % | in 95 % | seconds |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [_row(method, score) for method, score in result["scores"].items()]
        lines += ["", f"![windows](images/backtest_{name}.png)"]
    return "\n".join(lines) + "\n"


def _machines_of(scores: dict[str, Any]) -> str:
    """With the methods that ran on each, if there are several."""
    methods: dict[str, list[str]] = {}
    for method, score in scores.items():
        methods.setdefault(score["machine"], []).append(method)
    if len(methods) == 1:
        return next(iter(methods))
    return "; ".join(f"{machine} ({', '.join(of)})" for machine, of in methods.items())


def _headline(name: str) -> str:
    title = COLLECTIONS[name].title
    return title[0].upper() + title[1:]


def _wins(results: dict[str, Any]) -> str:
    """Where ours is better than the seasonal naive, and where it is not."""
    lost = [
        COLLECTIONS[name].title
        for name, result in results.items()
        if result["scores"][OURS]["MASE"] >= result["scores"][NAIVE]["MASE"]
    ]
    won = (
        f"{OURS} is better than the seasonal naive on {len(results) - len(lost)} of {len(results)}"
    )
    return f"{won}; it is not on: {'; '.join(lost)}." if lost else f"{won}."


def _ratios(results: dict[str, Any]) -> list[str]:
    """How much sooner the forecaster is done than the same one on nn.LSTM."""
    ratios = [
        scores[TORCHS]["seconds"] / scores[OURS]["seconds"]
        for scores in (result["scores"] for result in results.values())
        if TORCHS in scores
    ]
    if not ratios:
        return []
    return [
        f"The same networks on {TORCHS} take {min(ratios):.2f} to {max(ratios):.2f} times as long, "
        f"{statistics.geometric_mean(ratios):.2f} times in the geometric mean; both take turns at "
        "every origin. Counted is all of it: rows read, networks trained and calibrated, forecasts "
        "made.",
        "",
    ]


def _row(method: str, score: dict[str, float]) -> str:
    rmse = f"{score['RMSE']:,.4g} ({score['RMSE by origin']:,.4g})"
    shares = [f"{score[c]:.0f}" if c in score else "" for c in ("coverage-80", "coverage-95")]
    cells = [f"{score['MASE']:.3f}", f"{score['sMAPE']:.2f}", rmse, *shares]
    return f"| {method} | {' | '.join(cells)} | {score['seconds']:.1f} |"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(COLLECTIONS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--threads", type=at_least_1, default=1)
    parser.add_argument("--note", default="", help="what the page should say of the machine")
    parser.add_argument("--only-draw", action="store_true", help="from the results of the last run")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in COLLECTIONS]
    if unknown:
        parser.error(f"{unknown} are none of {', '.join(COLLECTIONS)}")
    if arguments.only_draw and not RESULTS.exists():
        parser.error(f"--only-draw needs {RESULTS}, which a run writes")
    return arguments


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", module="statsforecast")
    logging.getLogger("statsforecast").setLevel(logging.ERROR)
    saved = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"results": {}}
    if not arguments.only_draw:
        here = machine(arguments)
        done = started({"machine": here, "code": code()})
        DONE.parent.mkdir(exist_ok=True)
        for name in arguments.names or COLLECTIONS:
            of_name = done["results"].setdefault(name, {})
            for _ in backtest(name, arguments.methods, of_name, here):
                DONE.write_text(json.dumps(done, indent=1))
        saved = {"results": merged(saved["results"], done["results"])}
        RESULTS.write_text(json.dumps(saved, indent=1) + "\n")
        DONE.unlink()
    draw_scores(saved["results"])
    DOCUMENT.write_text(document(saved["results"]), encoding="utf-8")
    print(f"wrote {DOCUMENT}")


def machine(arguments: argparse.Namespace) -> str:
    cpu = torch.backends.cpu.get_cpu_capability()
    told = f"{platform.machine()} with {cpu}, torch threads: {arguments.threads}"
    return f"{told}; {arguments.note}" if arguments.note else told


def code() -> str:
    """Another one after any change to what forecasts."""
    found = hashlib.sha256()
    for path in sorted(path for path in (ROOT / "lstm_fast").rglob("*.*") if path.is_file()):
        if path.suffix in (".py", ".so", ".csv"):
            found.update(path.read_bytes())
    for name in ("backtest", "series"):
        found.update((ROOT / "benchmarks" / f"{name}.py").read_bytes())
    return found.hexdigest()


def started(by: dict[str, Any]) -> dict[str, Any]:
    """What a run that was stopped has done, if it was of the same machine and code."""
    found = json.loads(DONE.read_text()) if DONE.exists() else {}
    if found and found.get("by") != by:
        print(f"{DONE} is of another machine or other code: all is measured anew")
    return found if found.get("by") == by else {"by": by, "results": {}}


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The results of before, but for what is new, in the order of the page."""
    results = {}
    for name in [name for name in COLLECTIONS if name in {**old, **new}]:
        before, now = old.get(name, {}), new.get(name, {})
        scores = {**before.get("scores", {}), **now.get("scores", {})}
        ordered = {method: scores[method] for method in METHODS if method in scores}
        results[name] = {**before, **now, "scores": ordered}
    return results


if __name__ == "__main__":
    main()
