"""The `lstm-fast` command."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import logging
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from lstm_fast._load import install_extra

try:
    import typer
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Column, Table
    from rich.text import Text
except ModuleNotFoundError as error:
    raise SystemExit(f"lstm-fast needs {error.name}: {install_extra('forecast')}") from error

if TYPE_CHECKING:
    import pandas as pd

    from lstm_fast.forecast import Forecaster
    from lstm_fast.forecast.guess import Settings
    from lstm_fast.forecast.reading import Reading

HISTORY_MONTHS = 72
_PICTURES = (".png", ".svg", ".pdf")
_OPTIONS = {
    "give fill to close gaps, or freq": "give --fill to close gaps, or --freq",
    "or give fill": "or give --fill",
    "give freq": "give --freq",
    "use log=False (--no-log)": "use --no-log",
    "lower h, season_length or input_size": "lower --horizon or --season",
}
_DTYPES = ("float32", "float64", "bfloat16", "float16")

app = typer.Typer(
    help="Forecasting with fused LSTM layers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
# Results go to the standard output; this is for what is said beside them.
_console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)

_File = Annotated[
    Path,
    typer.Argument(
        metavar="FILE.csv",
        help="A header, then a row for each timestamp of each series; - for the standard input.",
    ),
]
_Horizon = Annotated[int, typer.Option("--horizon", "-h", min=1, help="Rows to forecast.")]
_Season = Annotated[
    int | None, typer.Option(min=1, help="Rows in a season; 1 for none. (default: by frequency)")
]
_Freq = Annotated[
    str | None,
    typer.Option(help="Frequency, as pandas names it: MS, W-SUN, D, h ... (default: guessed)"),
]
_Fill = Annotated[
    str | None, typer.Option(help="Close gaps by linear, previous or zero. (default: refuse them)")
]
_IdCol = Annotated[
    str | None, typer.Option(help="Column that names the series. (default: guessed)")
]
_TimeCol = Annotated[str | None, typer.Option(help="Column of the timestamps. (default: guessed)")]
_TargetCol = Annotated[str | None, typer.Option(help="Column of the values. (default: guessed)")]
_Decimal = Annotated[
    str | None,
    typer.Option(help="Sign before decimals, . or , (the other: of thousands). (default: guessed)"),
]
_Covariates = Annotated[
    list[str] | None,
    typer.Option("--covariate", help="Column whose future is known too; may be repeated."),
]
_Options = Annotated[
    Path | None,
    typer.Option("--options", help="Settings of the forecaster: JSON, as `tune` writes it."),
]
_Steps = Annotated[
    int | None, typer.Option(min=1, help="Training steps of each network. (default: 200)")
]
_Models = Annotated[int | None, typer.Option(min=1, help="Networks to average. (default: 3)")]
_Loss = Annotated[
    str | None, typer.Option(help="mse, mae, huber, quantile, normal or laplace. (default: mae)")
]
_Log = Annotated[
    bool | None,
    typer.Option(
        "--log/--no-log", help="Forecast logarithms. (default: if all values are above 0)"
    ),
]
_Nonnegative = Annotated[
    bool | None,
    typer.Option(
        "--nonnegative/--no-nonnegative",
        help="Series that were never below 0 are not forecast below 0. (default: nonnegative)",
    ),
]
_Levels = Annotated[
    list[float] | None,
    typer.Option(
        "--level",
        min=1,  # 0.8 would be a share that was meant as 80 %
        help="Coverage of an interval in per cent. (default: 80 and 95)",
    ),
]
_Seed = Annotated[int | None, typer.Option(help="Seed of all random numbers. (default: 0)")]
_Threads = Annotated[
    int,
    typer.Option(
        min=1,
        max=1024,
        help="Threads of torch. On an idle machine 2 are faster, on a busy one far slower.",
    ),
]
_Out = Annotated[Path | None, typer.Option(help="CSV file for the forecasts.")]
_Plot = Annotated[Path | None, typer.Option(help="Picture, .png, .svg or .pdf.")]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]


def _print_version(is_asked_for: bool) -> None:
    if is_asked_for:
        print(f"lstm-fast {importlib.metadata.version('lstm-fast')}")
        raise typer.Exit


_Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
]


@app.callback()
def commands(version: _Version = False) -> None:
    """Forecasting with fused LSTM layers."""


def _explained(command: Callable[..., None]) -> Callable[..., None]:
    """Errors of the user's input end with one line and status 1; others are shown in full. Warnings
    are a line each, without the source that gave them."""

    @functools.wraps(command)
    def explained(*args: Any, **kwargs: Any) -> None:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _warn
                command(*args, **kwargs)
        except BrokenPipeError:  # its reader has seen enough: typer ends without a word
            raise
        except (ValueError, ArithmeticError, OSError, ImportError) as error:
            _console.print(Text.assemble(("error:", "red"), f" {_in_options(str(error))}"))
            raise typer.Exit(1) from error

    return explained


def _in_options(message: str) -> str:
    """What a message for users of Python calls arguments, by the options for them."""
    for argument, option in _OPTIONS.items():
        message = message.replace(argument, option)
    return message


def _warn(message: object, *_: Any, **__: Any) -> None:
    _console.print(Text.assemble(("warning:", "yellow"), f" {message}"))


@app.command()
@_explained
def demo(
    vintage: Annotated[int, typer.Option(help="Vintage of the series, 2019 or 2022.")] = 2019,
    out: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path("demo_output"),
    steps: _Steps = None,
    seed: _Seed = None,
    threads: _Threads = 1,
    overwrite: _Overwrite = False,
) -> None:
    """Forecast a year of US beer, wine and spirits sales, and time it against torch.nn.LSTM.

    Trains on all but the last 12 months, prints the accuracy on these and draws them.
    """
    # Lightning alone takes seconds to import, which `--help` should not wait for.
    import torch

    from lstm_fast.forecast.datasets import VINTAGES, load_beer_wine_sales
    from lstm_fast.forecast.demo import H, run_demo
    from lstm_fast.forecast.model import LAYERS
    from lstm_fast.forecast.plot import plot_forecast, save_figure

    if vintage not in VINTAGES:
        raise typer.BadParameter(f"{vintage} is none of {VINTAGES}", param_hint="--vintage")
    if out.exists() and not out.is_dir():
        raise typer.BadParameter(f"{out} is not a folder", param_hint="--out")
    torch.set_num_threads(threads)
    sales = load_beer_wine_sales(vintage)
    with _console.status("training both layers, each twice ..."):
        results = run_demo(sales, LAYERS, _options(None, max_steps=steps, seed=seed))
    test = sales.iloc[-H:]
    span = f"{test['ds'].iloc[0]:%Y-%m} to {test['ds'].iloc[-1]:%Y-%m}"
    title = f"Beer, wine and spirits sales, vintage {vintage}, {span}"
    rows = [
        (
            name,
            f"{result.accuracy['MAE']:.0f}",
            f"{result.accuracy['RMSE']:.0f}",
            f"{result.accuracy['sMAPE']:.2f} %",
            f"{result.accuracy['MASE']:.2f}",
            "-" if result.train_s is None else f"{result.train_s:.1f} s",
            f"{1000 * result.predict_s:.1f} ms",
        )
        for name, result in results.items()
    ]
    columns = ("forecast", "MAE", "RMSE", "sMAPE", "MASE", "training", "prediction")
    _print_table(title, columns, rows)
    print(
        f"MAE and RMSE in millions of US dollars. Median times, torch threads: {threads}. "
        "Training: the networks that forecast and those that calibrate the intervals."
    )
    figure = plot_forecast(
        sales.iloc[-H - HISTORY_MONTHS : -H],
        results["lstm_fast.LSTM"].forecast,
        test,
        title=f"US wholesale sales of beer, wine and spirits (vintage {vintage})",
        ylabel="millions of US dollars a month",
    )
    picture = save_figure(figure, out / f"beer_wine_{vintage}.png", overwrite=overwrite)
    print(f"Picture: {picture}")


@app.command()
@_explained
def forecast(
    file: _File,
    horizon: _Horizon,
    season: _Season = None,
    freq: _Freq = None,
    fill: _Fill = None,
    id_col: _IdCol = None,
    time_col: _TimeCol = None,
    target_col: _TargetCol = None,
    decimal: _Decimal = None,
    covariates: _Covariates = None,
    future: Annotated[
        Path | None, typer.Option(help="CSV file with the covariates of the rows to forecast.")
    ] = None,
    loss: _Loss = None,
    log: _Log = None,
    nonnegative: _Nonnegative = None,
    levels: _Levels = None,
    steps: _Steps = None,
    models: _Models = None,
    seed: _Seed = None,
    threads: _Threads = 1,
    val_size: Annotated[
        int, typer.Option(min=0, help="Last rows that decide when training stops; 0 for none.")
    ] = 0,
    options_file: _Options = None,
    checkpoints: Annotated[
        Path | None, typer.Option(help="Folder from which a training that was cut off goes on.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Forecast with this saved forecaster, without training.")
    ] = None,
    save: Annotated[Path | None, typer.Option(help="File for the trained forecaster.")] = None,
    out: _Out = None,
    plot: _Plot = None,
    plot_training: Annotated[
        Path | None, typer.Option(help="Picture of the losses in training.")
    ] = None,
    overwrite: _Overwrite = False,
) -> None:
    """Train on the series of a file and forecast what comes next.

    What the file does not say is guessed, and told: columns, format of dates, frequency, season.
    Without --out the forecast is printed.

    Example: lstm-fast forecast sales.csv --horizon 12 --plot sales.png --out forecast.csv
    """
    inputs = [file, future, model, options_file]
    _check_outputs(overwrite, [out, save], plot, plot_training, inputs=inputs)
    import torch

    from lstm_fast.forecast import Forecaster, History
    from lstm_fast.forecast.reading import name_of

    torch.set_num_threads(threads)
    history = History()
    if model is not None:
        ignored = {
            "season": season, "freq": freq, "loss": loss, "log": log, "nonnegative": nonnegative,
            "steps": steps, "models": models, "seed": seed, "options": options_file,
            "checkpoints": checkpoints, "plot-training": plot_training,
            "val-size": val_size or None, "save": save,
        }  # fmt: skip
        for name, value in ignored.items():
            if value is not None:
                raise ValueError(f"--{name} is for training, and --model forecasts without")
        forecaster = Forecaster.load(model)
        if forecaster.h != horizon:
            raise ValueError(f"the saved forecaster forecasts {forecaster.h} rows, not {horizon}")
        saved = list(forecaster.futr_exog_list)
        if covariates and covariates != saved:
            raise ValueError(f"the saved forecaster has the covariates {saved}, not {covariates}")
        forecaster.fill = fill
        reading = _read(file, id_col, time_col, target_col, decimal, saved)
        known = reading.frame.sort_values(["unique_id", "ds"])
    else:
        options = _options(
            options_file, freq=freq, fill=fill, futr_exog_list=covariates, loss=loss,
            log=log, nonnegative=nonnegative, levels=levels, max_steps=steps, n_models=models,
            seed=seed,
        )  # fmt: skip
        reading = _read(file, id_col, time_col, target_col, decimal, options.get("futr_exog_list"))
        settings = _guess(reading, horizon, season, options, val_size=val_size)
        known = settings.frame
        forecaster = Forecaster(**settings.options, checkpoint_dir=checkpoints)
    futr_df = _future(future, reading, forecaster, known)
    if model is None:
        with _progress(forecaster, [history]):
            forecaster.fit(known, val_size)
    if save is not None:
        forecaster.save(save, overwrite=overwrite)
    forecasts = forecaster.predict(None if model is None else known, futr_df, levels)
    _write(forecasts, out, overwrite, reading)
    if plot is not None:
        from lstm_fast.forecast.plot import plot_forecasts

        name = str(reading.names.y)
        picture = plot_forecasts(
            known,
            forecasts,
            title=f"{name}: {horizon} {'row' if horizon == 1 else 'rows'} ahead",
            rows=6 * horizon,
            ylabel=name,
        )
        _save_picture(picture, plot, overwrite)
    if plot_training is not None:
        from lstm_fast.forecast.plot import plot_training as draw

        losses = history.frame()
        if losses.empty:
            raise ValueError(f"{checkpoints} holds a training that is finished: {plot_training} "
                             "would show nothing")  # fmt: skip
        title = f"training on {name_of(file, short=True)}"
        _save_picture(draw(losses, title=title), plot_training, overwrite)


@app.command()
@_explained
def backtest(
    file: _File,
    horizon: _Horizon,
    windows: Annotated[int, typer.Option(min=1, help="Origins to forecast from.")] = 5,
    step: Annotated[
        int | None, typer.Option(min=1, help="Rows between origins. (default: the horizon)")
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(help="AutoETS or AutoARIMA (needs statsforecast); may be repeated."),
    ] = None,
    season: _Season = None,
    freq: _Freq = None,
    fill: _Fill = None,
    id_col: _IdCol = None,
    time_col: _TimeCol = None,
    target_col: _TargetCol = None,
    decimal: _Decimal = None,
    covariates: _Covariates = None,
    loss: _Loss = None,
    log: _Log = None,
    nonnegative: _Nonnegative = None,
    levels: _Levels = None,
    steps: _Steps = None,
    models: _Models = None,
    seed: _Seed = None,
    threads: _Threads = 1,
    options_file: _Options = None,
    out: _Out = None,
    plot: _Plot = None,
    overwrite: _Overwrite = False,
) -> None:
    """Forecast the last rows of a file as if they were not known, and say how well that went.

    The forecaster is trained anew at each origin and sees nothing that came later. It is compared
    with the seasonal naive and, if asked for, with methods of the package statsforecast.

    Example: lstm-fast backtest sales.csv --horizon 12 --windows 5 --plot windows.png
    """
    _check_outputs(overwrite, [out], plot, inputs=[file, options_file])
    import torch

    from lstm_fast.forecast import Forecaster, evaluate
    from lstm_fast.forecast.backtest import cross_validate_naive, cross_validate_statistical

    torch.set_num_threads(threads)
    options = _options(
        options_file, freq=freq, fill=fill, futr_exog_list=covariates, loss=loss,
        log=log, nonnegative=nonnegative, levels=levels, max_steps=steps, n_models=models,
        seed=seed,
    )  # fmt: skip
    reading = _read(file, id_col, time_col, target_col, decimal, options.get("futr_exog_list"))
    step = step or horizon
    settings = _guess(reading, horizon, season, options, horizon + (windows - 1) * step)
    given, df, season_length = settings.given, settings.frame, settings.options["season_length"]
    # Fills gaps itself, as it has to know what a cutoff hides.
    forecaster = Forecaster(**{**settings.options, "fill": options.get("fill")})
    place = {
        "h": horizon, "season_length": season_length, "n_windows": windows, "step_size": step,
        "freq": settings.options["freq"], "fill": options.get("fill"),
    }  # fmt: skip
    results = {"seasonal naive": cross_validate_naive(given, **place)}
    for method in against or []:
        with _console.status(f"{method} ..."):
            results[method] = cross_validate_statistical(
                given, method, **place, levels=forecaster.levels
            )
    with _progress(forecaster, [], fits=windows):
        results["lstm-fast"] = forecaster.cross_validation(given, windows, step)
    if out is not None:
        _write(results["lstm-fast"], out, overwrite, reading)
    scores = {
        name: evaluate(result, given, season_length, place["freq"], place["fill"])
        for name, result in results.items()
    }
    series = len(scores["lstm-fast"])
    of = f" of {reading.frame['unique_id'].nunique()}" if len(settings.left_out) else ""
    title = f"origins: {windows}, rows ahead: {horizon}, series that are averaged: {series}{of}"
    metrics = [name for name in scores["lstm-fast"].columns if name != "unique_id"]
    means = {
        name: score[score.columns.intersection(metrics)].mean() for name, score in scores.items()
    }
    rows = [
        (name, *(f"{mean[m]:,.4g}" if m in mean else "-" for m in metrics))
        for name, mean in means.items()
    ]
    _print_table(title, ("forecast", *metrics), rows)
    if plot is not None:
        from lstm_fast.forecast.plot import plot_backtest

        first = df["unique_id"].iloc[0]
        shown = "" if series == 1 else f" (first of {series} series)"
        picture = plot_backtest(
            df[df["unique_id"] == first],
            results["lstm-fast"][results["lstm-fast"]["unique_id"] == first],
            title=f"{first}: forecast as if not known{shown}",
            ylabel=str(reading.names.y),
        )
        _save_picture(picture, plot, overwrite)


@app.command()
@_explained
def tune(
    file: _File,
    horizon: _Horizon,
    study: Annotated[Path, typer.Option(help="SQLite file of the search; goes on if it exists.")],
    trials: Annotated[int, typer.Option(min=1, help="Further trials to run.")] = 30,
    windows: Annotated[int, typer.Option(min=1, help="Origins that a trial forecasts from.")] = 3,
    holdout: Annotated[
        int, typer.Option(min=0, help="Last rows that the search must not see, for a backtest.")
    ] = 0,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Seconds after which no further trial begins.")
    ] = None,
    season: _Season = None,
    freq: _Freq = None,
    fill: _Fill = None,
    id_col: _IdCol = None,
    time_col: _TimeCol = None,
    target_col: _TargetCol = None,
    decimal: _Decimal = None,
    covariates: _Covariates = None,
    loss: _Loss = None,
    log: _Log = None,
    nonnegative: _Nonnegative = None,
    seed: _Seed = None,
    threads: _Threads = 1,
    out: Annotated[
        Path | None, typer.Option(help="JSON file for the best settings; see --options.")
    ] = None,
    plot: _Plot = None,
    overwrite: _Overwrite = False,
) -> None:
    """Search for good settings of the forecaster with Optuna, and go on with a search.

    Tried are the input size, nodes and layers of the LSTM, units and activation of the dense layer,
    dropout, learning rate, batch size, steps and, if all values are above 0, whether to forecast
    logarithms. Bad trials are cut off.

    Example: lstm-fast tune sales.csv --horizon 12 --study sales.db --out best.json, then
    lstm-fast forecast sales.csv --horizon 12 --options best.json
    """
    _check_outputs(overwrite, [out], plot, inputs=[file], kept=study)
    import optuna
    import torch

    from lstm_fast.forecast.frame import check_windows, plain, without_last
    from lstm_fast.forecast.reading import name_of
    from lstm_fast.forecast.tune import best_options, open_study, search

    torch.set_num_threads(threads)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for handler in logging.getLogger("optuna").handlers:
        handler.addFilter(_without_traceback)
    reading = _read(file, id_col, time_col, target_col, decimal, covariates)
    options = _options(
        None, freq=freq, fill=fill, futr_exog_list=covariates, loss=loss, log=log,
        nonnegative=nonnegative, seed=seed,
    )  # fmt: skip
    settings = _guess(
        reading, horizon, season, options, holdout, (windows - 1) * horizon, tuned=("input_size",)
    )
    # The search fills gaps itself, as it has to know what an origin hides.
    searched_options = {**settings.options, "fill": fill}
    if log is None and searched_options["log"]:
        del searched_options["log"]  # what could be guessed is searched
    frame, df = settings.frame, settings.given
    if holdout:
        frame = without_last(frame, holdout)
        last = frame.groupby("unique_id")["ds"].max().reindex(df["unique_id"].unique())
        if last.isna().any():
            name = plain(last.index[last.isna()][0])
            raise ValueError(f"series {name!r} has no row before the last {holdout}: see --holdout")
        df = df[df["ds"] <= df["unique_id"].map(last)]
    check_windows(frame, horizon, windows, horizon)
    setup = {**searched_options, "windows": windows}
    searched = open_study(study, df, setup, seed or 0)
    if searched.trials:
        _console.print(f"{study} has {len(searched.trials)} trials: the search goes on")

    def tell(searched: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        ended = {"PRUNED": "cut off", "FAIL": "failed"}.get(trial.state.name)
        loss = ended or f"loss {trial.value:.4f}"
        best = f", best {searched.best_value:.4f}" if _finished(searched) else ""
        _console.print(f"trial {trial.number}: {loss}{best}")

    search(searched, df, searched_options, n_trials=trials, n_windows=windows,
           timeout=timeout, on_trial=tell)  # fmt: skip
    season_length = settings.options["season_length"]
    best = best_options(searched, season_length)
    # What the search was made with, and a forecast should be. Of a season that is guessed the rows
    # decide, which are others then.
    given = {
        "season_length": season_length, "loss": loss, "log": log, "nonnegative": nonnegative,
        "futr_exog_list": covariates,
    }  # fmt: skip
    best |= {name: value for name, value in given.items() if value is not None}
    _write_text(json.dumps(best, indent=2) + "\n", out, overwrite, "Settings")
    if plot is not None:
        from lstm_fast.forecast.plot import plot_search

        title = f"{name_of(file, short=True)}: search for settings"
        _save_picture(plot_search(searched.trials_dataframe(), title=title), plot, overwrite)


@app.command()
@_explained
def bench(
    seconds: Annotated[float, typer.Option(min=0, help="Seconds for each row of the table.")] = 2,
    threads: _Threads = 1,
    plot: _Plot = None,
    overwrite: _Overwrite = False,
) -> None:
    """Time lstm_fast.LSTM against torch.nn.LSTM on this machine.

    Both take turns on the same weights and inputs. Shown is the lowest decile of a call; do nothing
    else on the machine meanwhile.
    """
    _check_outputs(overwrite, [], plot)
    import torch

    from lstm_fast.forecast.speed import BASELINE, SIZES, measure

    torch.set_num_threads(threads)
    works = ("inference", "training")
    rows = []
    speedups: dict[str, list[float]] = {work: [] for work in works}
    with _console.status("timing ...") as status:
        for size in SIZES:
            for work in works:
                status.update(f"{work}, {size} ...")
                timing = measure(size, work, seconds)
                speedups[work].append(timing.speedup)
                times = map(_short_time, timing.seconds.values())
                rows.append((str(size), work, *times, f"{timing.speedup:.2f}"))
    columns = ("size", "work", "lstm_fast", "torch.nn", "times")
    _print_table(f"Time of a call, torch threads: {threads}", columns, rows)
    if plot is not None:
        from lstm_fast.forecast.plot import plot_bars

        title = f"lstm_fast.LSTM against {BASELINE}, torch threads: {threads}"
        sizes = [str(size) for size in SIZES]
        picture = plot_bars(sizes, speedups, title=title, xlabel="times as fast", mark=1)
        _save_picture(picture, plot, overwrite)


def _short_time(seconds: float) -> str:
    return f"{1e6 * seconds:,.0f} us" if seconds < 0.01 else f"{1e3 * seconds:,.1f} ms"


@app.command()
@_explained
def info(
    batch: Annotated[
        int, typer.Option(min=1, max=10**15, help="Rows of a call: windows of a batch.")
    ] = 32,
    steps: Annotated[int, typer.Option(min=1, max=10**7, help="Its time steps.")] = 36,
    inputs: Annotated[int, typer.Option(min=1, max=10**15, help="Its numbers a step.")] = 3,
    hidden: Annotated[int, typer.Option(min=1, max=10**15, help="Units of the layer.")] = 64,
    layers: Annotated[int, typer.Option(min=1, max=1000, help="Layers.")] = 1,
    bidirectional: Annotated[bool, typer.Option("--bidirectional", help="Both ways.")] = False,
    dtype: Annotated[str, typer.Option(help=f"One of {', '.join(_DTYPES)}.")] = "float32",
) -> None:
    """What was built, what this machine has, and how a call of a given size is computed.

    Example: lstm-fast info --batch 64 --steps 168 --hidden 128
    """
    import torch

    import lstm_fast

    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}. Got {dtype!r}")
    devices = _devices()
    facts: dict[str, object] = {
        **lstm_fast.build_info(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch threads": torch.get_num_threads(),
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "devices": ", ".join(f"{place} {name}".strip() for place, name in devices.items()),
    }
    size = f"B={batch} T={steps} I={inputs} H={hidden} L={layers}"
    for place in devices:
        options = {"device": place, "dtype": getattr(torch, dtype)}
        # Memory is reserved and not touched: what is asked for may be larger than the machine.
        unreal = {**options, "device": "meta"}
        try:
            layer = lstm_fast.LSTM(inputs, hidden, layers, bidirectional=bidirectional, **unreal)
            layer.to_empty(device=place)
            path = lstm_fast.explain(layer, torch.empty(steps, batch, inputs, **options))
        except (MemoryError, RuntimeError) as error:
            reason = str(error).partition("\n")[0].rpartition("Allocator: ")[2]
            raise ValueError(f"{size} does not fit into {place}: {reason}") from error
        facts[f"{size}, {dtype}, {place}"] = path
    table = Table(Column(overflow="fold"), Column(overflow="fold"), show_header=False)
    for name, value in facts.items():
        shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        table.add_row(name, shown)
    Console().print(table)


def _devices() -> dict[str, str]:
    """Places where a layer may lie, and what is there."""
    import torch

    cards = {f"cuda:{k}": torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())}
    return {"cpu": "", **cards}


def _check_outputs(
    overwrite: bool,
    files: Sequence[Path | None],
    *pictures: Path | None,
    inputs: Sequence[Path | None] = (),
    kept: Path | None = None,
) -> None:
    """Before any work, so that none is lost at its end. `inputs`: files that are read, which no
    output may replace. `kept`: a further output, which is gone on with."""
    read = [path.resolve() for path in inputs if path is not None]
    for picture in pictures:
        if picture is not None and picture.suffix.lower() not in _PICTURES:
            raise ValueError(f"{picture} must end in {', '.join(_PICTURES)}")
    paths = [path for path in (*files, *pictures) if path is not None]
    for i, path in enumerate(paths):
        if str(path) == "-":
            raise ValueError(
                "- is no name for what is written: without --out, a forecast is printed"
            )
        if path.resolve() in [other.resolve() for other in (*paths[:i], kept) if other]:
            raise ValueError(f"{path} is given for two outputs")
        if path.resolve() in read:
            raise ValueError(f"{path} is read: choose another name for what is written")
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder")
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists: choose another name, or add --overwrite")
        folder = path.resolve().parent  # of what a link leads to
        if not path.exists() and not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder} for {path.name}")
        if not os.access(path if path.exists() else folder, os.W_OK):
            raise PermissionError(f"{path} cannot be written")


def _read(
    file: Path,
    id_col: str | None,
    time_col: str | None,
    target_col: str | None,
    decimal: str | None,
    covariates: Sequence[str] | None,
) -> Reading:
    from lstm_fast.forecast.reading import Columns, name_of, read_series

    names = () if covariates is None else covariates
    reading = read_series(file, Columns(id_col, time_col, target_col, names), decimal)
    _tell(reading.guesses)
    rows, series = len(reading.frame), reading.frame["unique_id"].nunique()
    _console.print(f"{name_of(file)}: {rows:,} rows, {series:,} series")
    return reading


def _without_traceback(record: logging.LogRecord) -> bool:
    record.exc_info = None
    return True


def _options(path: Path | None, **given: Any) -> dict[str, Any]:
    """Arguments of `Forecaster`: from a file, then from the command line."""
    options: dict[str, Any] = {}
    if path is not None:
        from dataclasses import fields

        from lstm_fast.forecast import Forecaster
        from lstm_fast.forecast.frame import check_covariates

        try:
            options = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} must be JSON in UTF-8: {error}") from error
        if not isinstance(options, dict):
            raise ValueError(f"{path} must hold an object of JSON. Got {options!r:.40}")
        known = {field.name for field in fields(Forecaster)} - {"checkpoint_dir", "lstm_class"}
        unknown = set(options) - known
        if unknown:
            raise ValueError(f"{path} has settings that a forecaster has not: {sorted(unknown)}")
        check_covariates(options.get("futr_exog_list", ()))
    return {**options, **{name: value for name, value in given.items() if value is not None}}


def _guess(
    reading: Reading,
    horizon: int,
    season: int | None,
    options: dict[str, Any],
    test_size: int = 0,
    val_size: int = 0,
    tuned: tuple[str, ...] = (),
) -> Settings:
    from lstm_fast.forecast.guess import guess_settings

    settings = guess_settings(reading.frame, horizon, options, season, test_size, val_size)
    for name in tuned:
        del settings.options[name]
    guesses = settings.guesses
    if tuned:
        searched = ("reads", "logarithms are forecast")
        guesses = [guess for guess in guesses if not any(word in guess for word in searched)]
    _tell(guesses)
    if len(settings.left_out):
        short = [f"{name} ({rows})" for name, rows in settings.left_out.items()]
        more = f" and {len(short) - 10} more" if len(short) > 10 else ""
        every = reading.frame["unique_id"].nunique()
        _warn(
            f"{len(short)} of {every} series are left out, as they have fewer than "
            f"{settings.needed} rows: {', '.join(short[:10])}{more}"
        )
    return settings


def _tell(guesses: list[str]) -> None:
    for guess in guesses:
        _console.print(f"guessed: {guess}")


def _future(
    path: Path | None, reading: Reading, forecaster: Forecaster, known: pd.DataFrame
) -> pd.DataFrame | None:
    from lstm_fast.forecast.reading import read_future

    covariates = list(forecaster.futr_exog_list)
    if path is None:
        if covariates:
            raise ValueError(f"--future must give the future of {covariates}")
        return None
    if not covariates:
        raise ValueError(f"{path} gives the future of covariates: name them with --covariate")
    return read_future(path, reading, forecaster.future_rows(known))


@contextmanager
def _progress(forecaster: Forecaster, callbacks: list[Any], fits: int = 1) -> Iterator[None]:
    """A bar over the training steps of `forecaster`, fitted once or more, where it can be seen."""
    from lightning.pytorch.callbacks import Callback

    trainings = fits * (2 if forecaster.calibration_rows else 1)
    columns = (
        TextColumn("training step"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )  # fmt: skip
    with Progress(*columns, console=_console, disable=not _console.is_terminal) as progress:
        task = progress.add_task("", total=trainings * forecaster.max_steps)

        class Advance(Callback):
            def on_train_batch_end(self, *_: Any) -> None:
                progress.advance(task)

        options = forecaster.trainer_options
        forecaster.trainer_options = {**options, "callbacks": [Advance(), *callbacks]}
        yield
        forecaster.trainer_options = options


def _write(forecasts: pd.DataFrame, out: Path | None, overwrite: bool, reading: Reading) -> None:
    # Actual values stay as they are: the format is for columns of floats alone. Intervals may be
    # narrow where values are large, which takes more digits than a forecast itself is good for.
    text = forecasts.astype({"y": object} if "y" in forecasts else {})
    series, every = (df["unique_id"].nunique() for df in (forecasts, reading.frame))
    note = f" ({series} of {every} series)" if series < every else ""
    _write_text(text.to_csv(index=False, float_format="%.12g"), out, overwrite, "Forecast", note)


def _write_text(text: str, out: Path | None, overwrite: bool, what: str, note: str = "") -> None:
    from lstm_fast.forecast.storage import replacing

    if out is not None:
        try:
            with replacing(out, overwrite) as part:
                part.write_text(text, encoding="utf-8")
        except FileExistsError as error:  # it was not there before the work
            typer.echo(text.encode(), nl=False)
            raise FileExistsError(
                f"{out} was made by somebody else meanwhile: what was to be written is printed"
            ) from error
        except OSError as error:
            raise OSError(f"{out} cannot be written: {error}") from error
        _console.print(f"{what}: {out}{note}")
    elif sys.stdout is None:
        raise OSError("the standard output is closed: give --out")
    else:
        # In UTF-8, as in a file, whatever the signs of the terminal are.
        typer.echo(text.encode(), nl=False)


def _save_picture(picture: Any, path: Path, overwrite: bool) -> None:
    from lstm_fast.forecast.plot import save_figure

    with warnings.catch_warnings(record=True) as warned:
        path = save_figure(picture, path, overwrite=overwrite)
    _console.print(f"Picture: {path}")
    lacking = [one for one in warned if str(one.message).startswith("Glyph ")]  # one for each sign
    for one in warned:
        if one not in lacking:
            _warn(one.message)
    if lacking:
        _warn(f"the font of {path} lacks signs, which are drawn as boxes")


def _finished(study: Any) -> bool:
    return any(trial.state.name == "COMPLETE" for trial in study.trials)


def _print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A name, then numbers, in each row."""
    table = Table(title=title, title_justify="left")
    for k, name in enumerate(columns):
        table.add_column(name, justify="right" if k else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # Numbers are shown in full, however narrow the terminal is, or what a pipe is taken for.
    console = Console()
    width = console.measure(table, options=console.options.update(max_width=1000)).maximum
    Console(width=max(width, console.width)).print(table)
