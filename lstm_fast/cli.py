"""The `lstm-fast` command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

try:
    import typer
    from rich.console import Console
    from rich.table import Table
except ModuleNotFoundError as error:
    raise SystemExit(
        f"lstm-fast needs {error.name}: pip install --no-build-isolation '.[forecast]'"
    ) from error

if TYPE_CHECKING:
    from lstm_fast.forecast.demo import Result

HISTORY_MONTHS = 72

app = typer.Typer(help="Forecasting with fused LSTM layers.", no_args_is_help=True)


@app.callback()
def commands() -> None:
    """Forecasting with fused LSTM layers."""


@app.command()
def demo(
    vintage: Annotated[int, typer.Option(help="Vintage of the series, 2019 or 2022.")] = 2019,
    out: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path("demo_output"),
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each network.")] = 400,
    seed: Annotated[int, typer.Option(help="Seed of the first network.")] = 0,
    threads: Annotated[
        int,
        typer.Option(
            min=1,
            help="Threads of torch. On an idle machine 2 are faster, on a busy one far slower.",
        ),
    ] = 1,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a picture of the same name.")
    ] = False,
) -> None:
    """Forecast a year of US beer, wine and spirits sales, and time it against torch.nn.LSTM.

    Trains on all but the last 12 months, prints the accuracy on these and draws them.
    """
    # Lightning alone takes seconds to import, which `--help` should not wait for.
    import torch

    from lstm_fast import LSTM
    from lstm_fast.forecast.datasets import VINTAGES, load_beer_wine_sales
    from lstm_fast.forecast.demo import H, run_demo
    from lstm_fast.forecast.plot import plot_forecast, save_figure

    if vintage not in VINTAGES:
        raise typer.BadParameter(f"{vintage} is none of {VINTAGES}", param_hint="--vintage")
    if out.exists() and not out.is_dir():
        raise typer.BadParameter(f"{out} is not a folder", param_hint="--out")
    torch.set_num_threads(threads)
    console = Console()
    sales = load_beer_wine_sales(vintage)
    layers = {"lstm_fast.LSTM": LSTM, "torch.nn.LSTM": torch.nn.LSTM}
    with console.status("training both layers, each twice ..."):
        results = run_demo(sales, layers, {"max_steps": steps, "seed": seed})
    test = sales.iloc[-H:]
    span = f"{test['ds'].iloc[0]:%Y-%m} to {test['ds'].iloc[-1]:%Y-%m}"
    console.print(_table(results, f"Beer, wine and spirits sales, vintage {vintage}, {span}"))
    console.print(
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
    console.print(f"Picture: {picture}", soft_wrap=True)


def _table(results: dict[str, Result], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("forecast")
    for name in ("MAE", "RMSE", "sMAPE", "MASE", "training", "prediction"):
        table.add_column(name, justify="right")
    for name, result in results.items():
        scores = result.accuracy
        table.add_row(
            name,
            f"{scores['MAE']:.0f}",
            f"{scores['RMSE']:.0f}",
            f"{scores['sMAPE']:.2f} %",
            f"{scores['MASE']:.2f}",
            "-" if result.train_s is None else f"{result.train_s:.1f} s",
            f"{1000 * result.predict_s:.1f} ms",
        )
    return table


if __name__ == "__main__":
    app()
