"""The `lstm-fast` command, on shortened runs."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import re
import subprocess
import sys
import warnings

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console
from typer.testing import CliRunner, Result

import lstm_fast
from lstm_fast.cli import app
from lstm_fast.forecast import Forecaster, evaluate, plot, speed
from tests.forecast.series import monthly


def invoke(*arguments: object, columns: int = 200) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": str(columns)})


@pytest.mark.parametrize("vintage", [2019, 2022])
def test_demo_prints_the_table_and_writes_the_picture(tmp_path, vintage):
    out = tmp_path / "new" / "folder"
    result = invoke("demo", "--vintage", vintage, "--steps", 2, "--out", out)
    assert result.exit_code == 0, result.output
    rows = [line for line in result.output.splitlines() if " │ " in line]
    names = [row.split("│")[1].strip() for row in rows]
    assert names == ["seasonal naive", "lstm_fast.LSTM", "torch.nn.LSTM"]
    naive = rows[0].split("│")
    assert naive[3].strip() == {2019: "827", 2022: "990"}[vintage]
    assert naive[6].strip() == "-"
    for row in rows[1:]:
        assert row.split("│")[6].strip().endswith(" s")
    picture = out / f"beer_wine_{vintage}.png"
    assert f"Picture: {picture}" in result.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in out.iterdir()] == [picture.name]


def test_demo_overwrites_only_when_asked(tmp_path):
    picture = tmp_path / "beer_wine_2019.png"
    picture.write_text("precious")
    result = invoke("demo", "--steps", 1, "--out", tmp_path)
    assert f"Picture: {tmp_path / 'beer_wine_2019-2.png'}" in result.output
    assert picture.read_text() == "precious"
    result = invoke("demo", "--steps", 1, "--out", tmp_path, "--overwrite")
    assert f"Picture: {picture}" in result.output
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--vintage", 2020), "2020 is none of"), (("--steps", 0), "--steps"), (("--zzz",), "--zzz")],
)
def test_bad_arguments_end_with_a_message_and_a_status(tmp_path, arguments, message):
    result = invoke("demo", *arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_threads_are_set_and_told(tmp_path):
    torch.set_num_threads(2)
    result = invoke("demo", "--steps", 1, "--threads", 1, "--out", tmp_path)
    assert "torch threads: 1" in result.output
    assert torch.get_num_threads() == 1


def test_out_must_be_a_folder(tmp_path):
    (tmp_path / "file").touch()
    result = invoke("demo", "--steps", 1, "--out", tmp_path / "file")
    assert result.exit_code == 2
    assert "is not a folder" in result.output


def test_help_names_the_command():
    result = invoke("--help")
    assert result.exit_code == 0
    assert "demo" in result.output


SHORT = ("--horizon", 6, "--steps", 2, "--models", 1)


@pytest.fixture
def csv(tmp_path):
    """A file of two series with a covariate."""
    df = pd.concat([monthly(90, "a"), monthly(80, "bb")])
    df["price"] = range(len(df))
    path = tmp_path / "series.csv"
    df.to_csv(path, index=False)
    return path


def test_forecast_prints_what_it_guessed_and_the_forecast(csv):
    result = invoke("forecast", csv, *SHORT)
    assert result.exit_code == 0, result.output
    for told in (
        "guessed: column 'ds' holds the time",
        "guessed: timestamps have the frequency MS",
        "guessed: a season has 12 rows",
        "170 rows, 2 series",
    ):
        assert told in result.stderr
    forecast = pd.read_csv(io.StringIO(result.stdout), parse_dates=["ds"])
    assert forecast["unique_id"].tolist() == ["a"] * 6 + ["bb"] * 6
    assert forecast["ds"].iloc[0] == pd.Timestamp("2007-07-01")
    assert list(forecast.columns[2:]) == ["y_hat", "lo-80", "hi-80", "lo-95", "hi-95"]


def test_forecast_writes_files_and_forecasts_from_a_saved_model(csv, tmp_path):
    out, plot, curve, model = (tmp_path / n for n in ("f.csv", "f.png", "t.svg", "m.pt"))
    result = invoke(
        "forecast", csv, *SHORT, "--out", out, "--plot", plot, "--plot-training", curve,
        "--save", model, "--level", 50, "--loss", "normal",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in curve.read_text()
    first = pd.read_csv(out)
    assert list(first.columns[2:]) == ["y_hat", "lo-50", "hi-50"]
    again = invoke("forecast", csv, "--horizon", 6, "--model", model)
    assert again.exit_code == 0, again.output
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(again.stdout)), first)
    rows = pd.read_csv(csv).drop(index=80)
    rows.to_csv(tmp_path / "gap.csv", index=False)
    gap = invoke("forecast", tmp_path / "gap.csv", "--horizon", 6, "--model", model)
    assert gap.exit_code == 1
    filled = invoke(
        "forecast", tmp_path / "gap.csv", "--horizon", 6, "--model", model, "--fill", "linear"
    )
    assert len(filled.stdout.splitlines()) == 13
    other = invoke("forecast", csv, "--horizon", 5, "--model", model)
    assert other.exit_code == 1
    assert "forecasts 6 rows, not 5" in other.stderr


def test_forecast_with_a_covariate(csv, tmp_path):
    arguments = ("forecast", csv, *SHORT, "--covariate", "price")
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert "--future must give the future of ['price']" in result.stderr
    future = pd.concat([monthly(96, "a")[90:], monthly(86, "bb")[80:]]).assign(price=1.0)
    future.drop(columns="y").to_csv(tmp_path / "future.csv", index=False)
    result = invoke(*arguments, "--future", tmp_path / "future.csv")
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 13


def test_forecast_goes_on_from_checkpoints(csv, tmp_path):
    arguments = ("forecast", csv, *SHORT, "--checkpoints", tmp_path / "state")
    first = invoke(*arguments)
    assert (tmp_path / "state" / "final.pt").exists()
    assert invoke(*arguments).stdout == first.stdout


@pytest.mark.parametrize("command", ["forecast", "backtest"])
def test_files_are_not_overwritten_unasked(csv, tmp_path, command):
    out = tmp_path / "out.csv"
    out.write_text("precious")
    result = invoke(command, csv, *SHORT, "--out", out)
    assert result.exit_code == 1
    assert "out.csv exists: choose another name, or add --overwrite" in result.stderr
    assert out.read_text() == "precious"
    windows = ("--windows", 1) if command == "backtest" else ()
    assert invoke(command, csv, *SHORT, *windows, "--out", out, "--overwrite").exit_code == 0
    assert out.read_text() != "precious"


def test_a_file_that_is_made_meanwhile_is_left(csv, tmp_path, monkeypatch):
    out, picture = tmp_path / "out.csv", tmp_path / "out.png"
    fit = Forecaster.fit

    def slow(*given):
        for path in (out, picture):
            path.write_text("precious")
        return fit(*given)

    expected = invoke("forecast", csv, *SHORT).stdout
    monkeypatch.setattr(Forecaster, "fit", slow)
    result = invoke("forecast", csv, *SHORT, "--out", out)
    assert result.exit_code == 1
    assert "out.csv was made by somebody else meanwhile" in result.stderr
    assert result.stdout == expected
    picture.unlink()
    result = invoke("forecast", csv, *SHORT, "--plot", picture)
    assert f"Picture: {tmp_path / 'out-2.png'}" in result.stderr
    assert {path.read_text() for path in (out, picture)} == {"precious"}
    assert not list(tmp_path.glob("*.part"))
    out.unlink()
    assert invoke("forecast", csv, *SHORT, "--out", out, "--overwrite").exit_code == 0
    assert out.read_text() == expected


def test_where_nothing_can_be_written_is_named(csv, tmp_path):
    result = invoke("forecast", csv, *SHORT, "--out", "/dev/full", "--overwrite")
    assert result.exit_code == 1
    assert "/dev/full cannot be written: [Errno 28]" in result.stderr
    command = f'"$0" -m lstm_fast forecast "$1" {" ".join(map(str, SHORT))} >&-'
    closed = subprocess.run(["sh", "-c", command, sys.executable, csv], capture_output=True)
    assert closed.returncode == 1
    assert b"the standard output is closed" in closed.stderr


def test_a_pipe_is_written_to_and_stays_one(csv, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        result = invoke("forecast", csv, *SHORT, "--out", pipe, "--overwrite")
        assert result.exit_code == 0, result.output
        assert os.read(end, 100).startswith(b"unique_id,ds,y_hat,lo-80,")
    finally:
        os.close(end)
    assert pipe.is_fifo()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.drop(index=5), "Expected 2000-06-01 00:00:00, got 2000-07-01 .*line 7"),
        (
            lambda rows: rows.assign(y=rows["y"].where(rows.index != 5)),
            r"finite y .* \(line 7\); fill or drop it first, or give --fill",
        ),
        (lambda rows: rows[:2], "2 rows: give --freq, or 3 rows"),
        (lambda rows: pd.concat([rows, rows[5:6]]), r"2000-06-01 00:00:00 more than once in ds"),
        (lambda rows: rows.assign(y="many"), "line 2: y must be a number. Got 'many'"),
        (lambda rows: rows[:20], "series 'a' is too short"),
    ],
)
def test_errors_name_the_line(tmp_path, change, message):
    path = tmp_path / "bad.csv"
    change(monthly(90)).to_csv(path, index=False)
    result = invoke("forecast", path, *SHORT)
    assert result.exit_code == 1
    assert re.search(message, result.stderr), result.stderr
    assert "Traceback" not in result.stderr


def test_a_value_without_a_logarithm_is_named_by_its_line(csv, tmp_path):
    (tmp_path / "log.json").write_text('{"log": true}')
    model = tmp_path / "model.pt"
    assert invoke("forecast", csv, *SHORT, "--save", model).exit_code == 0
    rows = pd.read_csv(csv)
    rows.loc[85, "y"] = 0.0
    rows.to_csv(tmp_path / "zero.csv", index=False)
    for option in (("--options", tmp_path / "log.json"), ("--model", model)):
        result = invoke("forecast", tmp_path / "zero.csv", *SHORT[:2], *option)
        assert result.exit_code == 1
        assert re.search(r"above 0 .* Got 0.0 .* \(line 87\); use --no-log$", result.stderr, re.M)


def test_whether_forecasts_fall_below_0_may_be_said(tmp_path):
    df = monthly(120, "Ohio")
    df["y"] = (50 - df["y"].rank()).clip(lower=0)
    df.to_csv(tmp_path / "falling.csv", index=False)
    told = "guessed: series that were never below 0 are not forecast below 0"
    for more, stays in (((), True), (("--nonnegative",), True), (("--no-nonnegative",), False)):
        result = invoke("forecast", tmp_path / "falling.csv", *SHORT, *more)
        assert result.exit_code == 0, result.output
        forecast = pd.read_csv(io.StringIO(result.stdout))
        assert (forecast.filter(like="lo-") >= 0).all(axis=None) == stays
        assert (told in result.stderr) is (not more)
        result = invoke("backtest", tmp_path / "falling.csv", *SHORT, *more, "--windows", 1)
        assert result.exit_code == 0, result.output


def test_whether_logarithms_are_forecast_may_be_said(csv, tmp_path, monkeypatch):
    from lstm_fast.forecast import tune

    searched = []
    monkeypatch.setattr(tune, "search", lambda study, df, options, **_: searched.append(options))
    monkeypatch.setattr(tune, "best_options", lambda *args: {})
    rows = pd.read_csv(csv)
    rows.loc[80, "y"] = 0.0  # in the first of the windows that are forecast
    rows.to_csv(tmp_path / "zero.csv", index=False)
    backtest = ("backtest", tmp_path / "zero.csv", *SHORT, "--windows", 2)
    refused = invoke(*backtest)
    assert refused.exit_code == 1
    assert "use --no-log" in refused.stderr
    result = invoke(*backtest, "--no-log")
    assert result.exit_code == 0, result.output
    assert "logarithms are forecast" not in result.stderr
    for option, log in (("--log", True), ("--no-log", False)):
        model = tmp_path / f"{log}.pt"
        result = invoke("forecast", csv, *SHORT, option, "--save", model)
        assert result.exit_code == 0, result.output
        assert Forecaster.load(model).log is log
        search = ("--horizon", 6, "--study", tmp_path / f"{log}.db", "--windows", 1, option)
        assert json.loads(invoke("tune", csv, *search).stdout) == {"season_length": 12, "log": log}
    assert [options["log"] for options in searched] == [True, False]
    common = ("--horizon", 6, "--windows", 1, "--study")
    result = invoke("tune", csv, *common, tmp_path / "either.db")
    assert "logarithms are forecast" not in result.stderr
    assert "log" not in searched[-1]  # it is searched
    result = invoke("tune", tmp_path / "zero.csv", *common, tmp_path / "zero.db")
    assert "guessed: not all values are above 0" in result.stderr
    assert searched[-1]["log"] is False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint_dir": "here"}, "settings that a forecaster has not: ['checkpoint_dir']"),
        ({"lstm_class": "torch.nn.LSTM"}, "settings that a forecaster has not: ['lstm_class']"),
        ({"season_length": "x"}, "season_length must be a number greater than 0. Got 'x'"),
        ({"futr_exog_list": 5}, "futr_exog_list must be a sequence of names. Got 5"),
        ({"trainer_options": {"foo": 5}}, "trainer_options must suit lightning.Trainer"),
        (
            {"trainer_options": {"fast_dev_run": -1}},
            "error: trainer_options must suit lightning.Trainer: fast_dev_run=-1 is not",
        ),
        (
            {"trainer_options": {"limit_train_batches": 0.5}},  # of batches that have no end
            "error: trainer_options must suit lightning.Trainer: When using",
        ),
    ],
)
def test_options_of_a_file_that_make_no_sense(csv, tmp_path, options, message):
    path = tmp_path / "options.json"
    path.write_text(json.dumps(options))
    result = invoke("forecast", csv, *SHORT, "--options", path)
    assert result.exit_code == 1
    assert message in result.stderr


def test_the_seed_of_a_file_counts(csv, tmp_path):
    path = tmp_path / "options.json"
    path.write_text('{"seed": 7}')
    of_file = invoke("forecast", csv, *SHORT, "--options", path).stdout
    assert of_file == invoke("forecast", csv, *SHORT, "--seed", 7).stdout
    assert of_file != invoke("forecast", csv, *SHORT).stdout
    assert invoke("forecast", csv, *SHORT, "--options", path, "--seed", 8).stdout != of_file


def test_a_finished_training_has_no_losses_to_draw(csv, tmp_path):
    arguments = ("forecast", csv, *SHORT, "--checkpoints", tmp_path / "state")
    picture = tmp_path / "losses.png"
    assert invoke(*arguments, "--plot-training", picture).exit_code == 0
    picture.unlink()
    result = invoke(*arguments, "--plot-training", picture)
    assert result.exit_code == 1
    assert "state holds a training that is finished" in result.stderr
    assert not picture.exists()


def test_a_saved_forecaster_knows_its_covariates(csv, tmp_path, monkeypatch):
    """And takes rows in any order, of which the picture shows the last."""
    drawn = []

    def draw(known, *_, **__):
        drawn.append(known)
        return Figure()

    monkeypatch.setattr(plot, "plot_forecasts", draw)
    df = pd.read_csv(csv)
    step = df.groupby("unique_id").cumcount(ascending=False)
    df[step >= 6].to_csv(tmp_path / "known.csv", index=False)
    df[step < 6].to_csv(tmp_path / "future.csv", index=False)
    df[step >= 6][::-1].to_csv(tmp_path / "reversed.csv", index=False)
    model = tmp_path / "model.pt"
    covariate = ("--covariate", "price", "--future", tmp_path / "future.csv")
    first = invoke("forecast", tmp_path / "known.csv", *SHORT, *covariate, "--save", model)
    assert first.exit_code == 0, first.output
    more = (*SHORT[:2], "--model", model, "--future", tmp_path / "future.csv")
    again = invoke(
        "forecast", tmp_path / "reversed.csv", *more, "--plot", tmp_path / "forecast.png"
    )
    assert again.stdout == first.stdout
    assert drawn[0]["ds"][drawn[0]["unique_id"] == "a"].is_monotonic_increasing
    other = invoke("forecast", tmp_path / "known.csv", *more, "--covariate", "y")
    assert other.exit_code == 1
    assert "the saved forecaster has the covariates ['price'], not ['y']" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.csv", *SHORT), "there is no file none.csv"),
        ((".", *SHORT), ". is no regular file"),
        (("{csv}", *SHORT, "--out", "/nowhere/f.csv"), "there is no folder /nowhere"),
        (("{csv}", *SHORT, "--loss", "rmse"), "loss must be one of mse"),
        (("{csv}", *SHORT, "--id-col", "shop"), "no column 'shop'"),
        (("{csv}", *SHORT, "--covariate", ""), "no column ''"),
        (("{csv}", *SHORT, "--options", "{csv}"), "must be JSON in UTF-8"),
        (("{csv}", *SHORT[:2], "--model", "{csv}"), "is no file of a forecaster"),
        (("{csv}", *SHORT[:2], "--model", "m.pt", "--season", 4), "--season is for training"),
        (("{csv}", *SHORT[:2], "--model", "m.pt", "--seed", 3), "--seed is for training"),
        (("{csv}", *SHORT[:2], "--model", "m.pt", "--no-log"), "--log is for training"),
        (
            ("{csv}", *SHORT[:2], "--model", "m.pt", "--nonnegative"),
            "--nonnegative is for training",
        ),
        (("{csv}", *SHORT[:2], "--model", "m.pt", "--save", "n.pt"), "--save is for training"),
        (("{csv}", *SHORT, "--out", "new", "--save", "new"), "new is given for two outputs"),
        (("{csv}", *SHORT, "--out", "{csv}", "--overwrite"), "is read: choose another name"),
        (("{csv}", *SHORT, "--freq", "D"), "frequency D"),
        (("{csv}", *SHORT, "--freq", "often"), "often"),
        (("{csv}", *SHORT, "--out", ".", "--overwrite"), "is a folder"),
        (("{csv}", *SHORT, "--out", "-"), "- is no name for what is written"),
        (("{csv}", *SHORT, "--future", "{csv}"), "name them with --covariate"),
        (("{csv}", *SHORT, "--plot", "forecast.doc"), "must end in .png, .svg, .pdf"),
    ],
)
def test_failures_have_a_status_and_a_sentence(csv, arguments, message):
    result = invoke("forecast", *(str(a).replace("{csv}", str(csv)) for a in arguments))
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_what_cannot_be_written_is_told_before_any_work(csv, monkeypatch):
    """By os.access, as root may write where nobody else may."""
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    result = invoke("forecast", "none.csv", *SHORT, "--out", "forecast.csv")
    assert result.exit_code == 1
    assert "forecast.csv cannot be written" in result.stderr


def test_options_of_a_file_give_way_to_those_of_the_command_line(csv, tmp_path):
    path = tmp_path / "options.json"
    path.write_text('{"max_steps": 3, "hidden_size": 7, "n_models": 2}')
    result = invoke("forecast", csv, *SHORT, "--options", path, "--save", tmp_path / "model.pt")
    assert result.exit_code == 0, result.output
    model = Forecaster.load(tmp_path / "model.pt")
    assert (model.max_steps, model.hidden_size, model.n_models) == (2, 7, 1)
    for text, message in (
        ("[]", "must hold an object"),
        ('{"hidden_size": "7"}', "hidden_size must be a number greater than 0. Got '7'"),
    ):
        path.write_text(text)
        result = invoke("forecast", csv, *SHORT, "--options", path)
        assert result.exit_code == 1
        assert message in result.stderr
    path.write_text('{"units": 7}')
    result = invoke("forecast", csv, *SHORT, "--options", path)
    assert result.exit_code == 1
    assert "settings that a forecaster has not: ['units']" in result.stderr


def test_backtest_prints_a_table_and_draws_the_windows(csv, tmp_path):
    out, plot = tmp_path / "windows.csv", tmp_path / "windows.png"
    result = invoke(
        "backtest", csv, *SHORT, "--windows", 2, "--step", 3, "--out", out, "--plot", plot
    )
    assert result.exit_code == 0, result.output
    rows = [line.split("│")[1].strip() for line in result.stdout.splitlines() if " │ " in line]
    assert rows == ["seasonal naive", "lstm-fast"]
    assert "coverage-95" in result.stdout
    forecasts = pd.read_csv(out)
    assert len(forecasts) == 2 * 2 * 6
    scores = evaluate(
        pd.read_csv(out, parse_dates=["ds", "cutoff"]), pd.read_csv(csv, parse_dates=["ds"]), 12
    )
    assert f"{scores['MAE'].mean():,.4g}" in result.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("fill", ["linear", "previous", "zero"])
def test_backtest_of_gaps_prints_what_evaluate_finds(tmp_path, fill):
    path, out = tmp_path / "gaps.csv", tmp_path / "out.csv"
    given = monthly(90).drop(index=range(60, 84, 2))
    given.to_csv(path, index=False)
    arguments = (*SHORT, "--windows", 2, "--fill", fill, "--out", out)
    result = invoke("backtest", path, *arguments)
    assert result.exit_code == 0, result.output
    windows = pd.read_csv(out, parse_dates=["ds", "cutoff"])
    table = [line.split("│")[1:-1] for line in result.stdout.splitlines() if "lstm-fast" in line]
    mase = evaluate(windows, given, 12, fill=fill)["MASE"][0]
    assert table[-1][4].strip() == f"{mase:,.4g}"


def test_a_gap_at_the_cutoff_shows_nothing_of_later_rows(csv, tmp_path, monkeypatch):
    from lstm_fast.forecast import tune

    forecasts, tuned = [], []
    monkeypatch.setattr(tune, "search", lambda study, df, *args, **kwargs: tuned.append(df))
    monkeypatch.setattr(tune, "best_options", lambda *args: {})
    for factor in (1, 3):
        df = pd.read_csv(csv).iloc[:90].drop(index=[83, 84])
        df["y"] = df["y"].where(df.index < 84, factor * df["y"])
        path, out = tmp_path / f"{factor}.csv", tmp_path / f"{factor}-out.csv"
        df.to_csv(path, index=False)
        gap = (path, "--horizon", 6, "--fill", "linear")
        result = invoke("backtest", *gap, *SHORT[2:], "--windows", 1, "--out", out)
        assert result.exit_code == 0, result.output
        forecasts.append(pd.read_csv(out)["y_hat"])
        study = ("--study", tmp_path / f"{factor}.db")
        assert invoke("tune", *gap, "--holdout", 6, *study).exit_code == 0
    pd.testing.assert_series_equal(forecasts[0], forecasts[1], check_exact=True)
    pd.testing.assert_frame_equal(*tuned)


def test_a_value_that_comes_later_does_not_decide_about_logarithms(csv, tmp_path, monkeypatch):
    from lstm_fast.forecast import tune

    searched = []
    monkeypatch.setattr(tune, "search", lambda study, df, options, **_: searched.append(options))
    monkeypatch.setattr(tune, "best_options", lambda *args: {})
    forecasts = []
    for last in (100.0, 0.0):
        df = pd.read_csv(csv)[:90]
        df.loc[89, "y"] = last
        path, out = tmp_path / f"{last}.csv", tmp_path / f"{last}-out.csv"
        df.to_csv(path, index=False)
        result = invoke("backtest", path, *SHORT, "--windows", 2, "--step", 1, "--out", out)
        assert result.exit_code == 0, result.output
        forecasts.append(pd.read_csv(out)["y_hat"])
        search = ("tune", path, "--horizon", 6, "--study", tmp_path / f"{last}.db")
        assert invoke(*search, "--holdout", 1).exit_code == 0
    pd.testing.assert_series_equal(forecasts[0], forecasts[1], check_exact=True)
    assert ["log" in options for options in searched] == [False, False]  # it is searched


def test_numbers_are_shown_in_full(csv, tmp_path):
    df = pd.read_csv(csv)
    df.assign(y=1e6 * df["y"]).to_csv(tmp_path / "large.csv", index=False)
    large = tmp_path / "large.csv"
    result = invoke("backtest", large, *SHORT, "--windows", 1, columns=50)
    assert result.exit_code == 0, result.output
    assert "…" not in result.stdout


def test_values_are_written_as_they_are_and_narrow_bounds_apart(csv, tmp_path):
    df = pd.read_csv(csv, parse_dates=["ds"])
    df["y"] = 1234567890 + df["y"].round() / 32
    df.to_csv(tmp_path / "large.csv", index=False)
    large, out = (tmp_path / "large.csv", *SHORT), tmp_path / "out.csv"
    assert invoke("backtest", *large, "--windows", 1, "--out", out).exit_code == 0
    windows = pd.read_csv(out, parse_dates=["ds"])
    actual = windows[["unique_id", "ds"]].merge(df, how="left")["y"]
    assert windows["y"].tolist() == actual.tolist()
    for forecast in (windows, pd.read_csv(io.StringIO(invoke("forecast", *large).stdout))):
        bounds = forecast[["lo-95", "lo-80", "y_hat", "hi-80", "hi-95"]]
        assert (bounds.diff(axis=1).iloc[:, 1:] > 0).all(axis=None)


def test_more_windows_than_rows(csv):
    result = invoke("backtest", csv, *SHORT, "--windows", 14)
    assert result.exit_code == 1
    assert "series 'bb' is too short: n_windows=14 of h=6 rows, step_size=6" in result.stderr


def test_backtest_against_a_method_has_its_levels(csv, tmp_path):
    pytest.importorskip("statsforecast")
    against = ("--windows", 1, "--against", "AutoETS")
    result = invoke("backtest", csv, *SHORT, *against, "--level", 90)
    assert result.exit_code == 0, result.output
    rows = [line.split("│")[1:-1] for line in result.stdout.splitlines() if "AutoETS" in line]
    assert len(rows[0]) == 6
    assert "-" not in [cell.strip() for cell in rows[0]]
    (tmp_path / "none.json").write_text('{"levels": []}')
    result = invoke("backtest", csv, *SHORT, *against, "--options", tmp_path / "none.json")
    assert result.exit_code == 0, result.output
    assert "coverage" not in result.stdout


def test_backtest_against_a_method_that_there_is_not(csv):
    result = invoke("backtest", csv, *SHORT, "--windows", 1, "--against", "Prophet")
    assert result.exit_code == 1
    assert "method must be one of AutoETS, AutoARIMA. Got 'Prophet'" in result.stderr


def test_trainer_options_of_a_file_reach_the_trainer(csv, tmp_path):
    path = tmp_path / "options.json"
    path.write_text('{"trainer_options": {"precision": "bf16-mixed"}}')
    half = invoke("forecast", csv, *SHORT, "--options", path, "--save", tmp_path / "model.pt")
    assert half.exit_code == 0, half.output
    assert Forecaster.load(tmp_path / "model.pt").trainer_options == {"precision": "bf16-mixed"}
    assert half.stdout != invoke("forecast", csv, *SHORT).stdout


def test_a_search_hands_on_what_it_was_made_with(csv, tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    from lstm_fast.forecast import tune

    suggest = tune.suggest
    monkeypatch.setattr(tune, "suggest", lambda *a: {**suggest(*a), "max_steps": 2})
    search = ("--study", tmp_path / "s.db", "--trials", 1, "--windows", 1)
    made_with = ("--loss", "huber", "--covariate", "price")
    best = tmp_path / "best.json"
    result = invoke("tune", csv, "--horizon", 6, *search, *made_with, "--out", best)
    assert result.exit_code == 0, result.output
    settings = json.loads(best.read_text())
    assert (settings["loss"], settings["futr_exog_list"]) == ("huber", ["price"])
    result = invoke("backtest", csv, *SHORT, "--windows", 1, "--options", best)
    assert result.exit_code == 0, result.output
    result = invoke("forecast", csv, *SHORT, "--options", best)
    assert result.exit_code == 1
    assert "--future must give the future of ['price']" in result.stderr
    other = ("--study", tmp_path / "t.db", "--trials", 1, "--windows", 1, "--holdout", 72)
    short = invoke("tune", csv, "--horizon", 6, *other)
    assert short.exit_code == 1
    assert "series 'a' is too short" in short.stderr
    assert "make 24 beside the last 72. Got 18" in short.stderr


def test_version():
    result = invoke("--version")
    assert result.exit_code == 0
    assert result.stdout == f"lstm-fast {lstm_fast.__version__}\n"


def test_tune_then_forecast(csv, tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    from lstm_fast.forecast import tune

    suggest = tune.suggest
    monkeypatch.setattr(tune, "suggest", lambda *a: {**suggest(*a), "max_steps": 2})
    study, best, plot = (tmp_path / n for n in ("s.db", "best.json", "s.png"))
    arguments = ("tune", csv, "--horizon", 6, "--study", study, "--trials", 2, "--windows", 1)
    result = invoke(*arguments, "--holdout", 6, "--out", best, "--plot", plot)
    assert result.exit_code == 0, result.output
    assert "trial 1: loss" in result.stderr
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert invoke("forecast", csv, *SHORT, "--options", best).exit_code == 0
    result = invoke(*arguments, "--holdout", 6)
    assert "has 2 trials: the search goes on" in result.stderr
    assert "hidden_size" in json.loads(result.stdout)
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert "holds a study of other data" in result.stderr
    result = invoke(*arguments, "--out", study, "--overwrite")
    assert result.exit_code == 1
    assert "s.db is given for two outputs" in result.stderr
    result = invoke(*arguments, "--holdout", 6, "--seed", 3)
    assert result.exit_code == 1
    assert "holds a study of another setup, with other seed: choose" in result.stderr
    result = invoke(*arguments, "--season", 4, "--holdout", 84)
    assert result.exit_code == 1
    assert "series 'bb' has no row before the last 84" in result.stderr


def test_a_tuning_that_is_interrupted_shows_no_traceback(csv, tmp_path, monkeypatch):
    optuna = pytest.importorskip("optuna")
    from lstm_fast.forecast import tune

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tune, "suggest", interrupted)
    told = io.StringIO()
    handler = logging.getLogger(optuna.__name__).handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    before = handler.setStream(told)
    try:
        result = invoke("tune", csv, "--horizon", 6, "--study", tmp_path / "s.db", "--windows", 1)
    finally:
        handler.setStream(before)
    assert result.exit_code == 130
    assert "KeyboardInterrupt" in told.getvalue()
    assert "Traceback" not in told.getvalue()


def test_a_tuning_that_cannot_begin_claims_no_study(csv, tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    from lstm_fast.forecast import tune

    monkeypatch.setattr(tune, "search", lambda *args, **kwargs: None)
    monkeypatch.setattr(tune, "best_options", lambda *args: {"hidden_size": 5})
    study = tmp_path / "s.db"
    arguments = ("tune", csv, "--horizon", 6, "--study", study, "--windows")
    result = invoke(*arguments, 60)
    assert "is too short" in result.stderr
    assert not study.exists()
    for windows in (1, 2):  # no trial was made, so that nothing is lost
        result = invoke(*arguments, windows, "--season", 4)
        assert json.loads(result.stdout) == {"hidden_size": 5, "season_length": 4}


def test_bench_prints_a_table_and_draws_it(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "SIZES", speed.SIZES[:2])
    result = invoke("bench", "--seconds", 0, "--threads", 1, "--plot", tmp_path / "speed.png")
    assert result.exit_code == 0, result.output
    rows = [line for line in result.stdout.splitlines() if " │ " in line]
    assert len(rows) == 4
    assert "B=1 T=36 I=3 H=100 L=1" in rows[2]
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_info_tells_what_was_built():
    result = invoke("info")
    assert result.exit_code == 0
    for name, value in lstm_fast.build_info().items():
        assert name in result.stdout
        assert str(value) in result.stdout or isinstance(value, (list, tuple))
    assert torch.__version__ in result.stdout


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_info_says_how_a_call_of_a_size_is_computed(dtype):
    result = invoke("info", "--batch", 2, "--steps", 5, "--hidden", 7, "--dtype", dtype)
    layer = lstm_fast.LSTM(3, 7, dtype=getattr(torch, dtype))
    path = lstm_fast.explain(layer, torch.zeros(5, 2, 3, dtype=getattr(torch, dtype)))
    assert result.exit_code == 0
    assert f"B=2 T=5 I=3 H=7 L=1, {dtype}, cpu" in result.stdout
    assert path in result.stdout
    for hidden in (10**6, 10**10):
        large = invoke("info", "--hidden", hidden)
        assert large.exit_code == 1
        assert f"H={hidden} L=1 does not fit into cpu" in large.stderr
        assert "alloc_cpu.cpp" not in large.stderr
    refused = invoke("info", "--dtype", "int8")
    assert refused.exit_code == 1
    assert "dtype must be one of float32, float64" in refused.stderr


@pytest.mark.parametrize("command", ["forecast", "backtest", "tune", "bench", "info", "demo"])
def test_each_command_has_help(command):
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert result.stdout.count("\n") > 5


def test_help_states_the_defaults_of_the_forecaster():
    stated = " ".join(invoke("forecast", "--help").stdout.replace("│", " ").split())
    default = Forecaster()
    for words in (
        f"each network. (default: {default.max_steps})",
        f"average. (default: {default.n_models})",
        f"laplace. (default: {default.loss})",
        f"per cent. (default: {default.levels[0]} and {default.levels[1]})",
    ):
        assert words in stated


def test_help_needs_no_heavy_import():
    code = (
        "import sys; from typer.testing import CliRunner; from lstm_fast.cli import app;"
        "assert CliRunner().invoke(app, ['forecast', '--help']).exit_code == 0;"
        "print({'pandas', 'lightning', 'optuna'} & {*sys.modules})"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


def test_a_file_may_come_from_the_standard_input_or_a_pipe(csv, tmp_path):
    expected = invoke("forecast", csv, *SHORT).stdout
    command = ["forecast", "-", *map(str, SHORT)]
    result = CliRunner().invoke(app, command, input=csv.read_bytes())
    assert result.exit_code == 0, result.output
    assert result.stdout == expected
    assert "the standard input: 170 rows, 2 series" in result.stderr
    result = CliRunner().invoke(app, command, input=b"")
    assert result.exit_code == 1
    assert "error: the standard input is empty" in result.stderr
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cp", csv, pipe]):
        assert invoke("forecast", pipe, *SHORT).stdout == expected


@pytest.mark.parametrize("command", ["forecast", "backtest", "tune"])
def test_the_sign_before_decimals_is_handed_on(tmp_path, command):
    path = tmp_path / "numbers.csv"
    monthly(90).assign(y="1.5").to_csv(path, index=False)
    study = ("--study", tmp_path / "study.db") if command == "tune" else ()
    result = invoke(command, path, "--horizon", 6, *study, "--decimal", ",")
    assert result.exit_code == 1
    assert "line 2: y must be a number. Got '1.5'" in result.stderr


@pytest.mark.filterwarnings("default")
def test_warnings_are_a_line_each(csv, tmp_path, monkeypatch):
    df = pd.read_csv(csv).replace({"unique_id": {"a": "\u65e5\u672c"}})
    df.to_csv(tmp_path / "signs.csv", index=False)
    arguments = ("forecast", tmp_path / "signs.csv", *SHORT, "--plot", tmp_path / "f.png")
    fit = Forecaster.fit

    def warn(*given):
        warnings.warn("take care", stacklevel=1)
        return fit(*given)

    monkeypatch.setattr(Forecaster, "fit", warn)
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    told = [line for line in result.stderr.splitlines() if not line.startswith("guessed")]
    assert told == [
        f"{tmp_path / 'signs.csv'}: 170 rows, 2 series",
        "warning: take care",
        f"Picture: {tmp_path / 'f.png'}",
        f"warning: the font of {tmp_path / 'f.png'} lacks signs, which are drawn as boxes",
    ]


def test_a_reader_that_has_seen_enough_is_no_error(monkeypatch):
    show = Console.print

    def broken(self, *given):
        if not self.stderr:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        show(self, *given)

    monkeypatch.setattr(Console, "print", broken)
    result = invoke("info")
    assert result.exit_code == 1
    assert result.output == ""


def test_forecasts_are_printed_in_utf_8(csv):
    df = pd.read_csv(csv).replace({"unique_id": {"a": "\u00e9"}})
    df.to_csv(csv, index=False)
    arguments = [sys.executable, "-m", "lstm_fast", "forecast", csv, *map(str, SHORT)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run(arguments, env=environment, capture_output=True)
    assert result.returncode == 0, result.stderr
    assert "\n\u00e9,2007-07-01," in result.stdout.decode()


def test_a_level_is_no_share(csv):
    result = invoke("forecast", csv, *SHORT, "--level", 0.8)
    assert result.exit_code == 2
    assert "'--level'" in result.output


@pytest.mark.parametrize("seconds", ["nan", "-1"])
def test_a_time_limit_is_at_least_0(csv, tmp_path, seconds):
    search = ("--horizon", 6, "--study", tmp_path / "s.db", "--timeout", seconds)
    result = invoke("tune", csv, *search)
    assert result.exit_code == 2
    assert "'--timeout'" in result.output


def titles_of(monkeypatch, function):
    """Of the pictures that a function of `plot` is asked for, as they come."""
    titles: list[str] = []

    def draw(*_, title, **__):
        titles.append(title)
        return Figure()

    monkeypatch.setattr(plot, function, draw)
    return titles


def test_a_picture_of_a_backtest_says_that_it_shows_one_series(csv, tmp_path, monkeypatch):
    titles = titles_of(monkeypatch, "plot_backtest")
    one = tmp_path / "one.csv"
    monthly(90, "a").to_csv(one, index=False)
    for k, path in enumerate((csv, one)):
        picture = ("--windows", 1, "--plot", tmp_path / f"{k}.png")
        assert invoke("backtest", path, *SHORT, *picture).exit_code == 0
    told = "a: forecast as if not known"
    assert titles == [f"{told} (first of 2 series)", told]


def test_a_picture_of_a_forecast_says_how_far_it_goes(csv, tmp_path, monkeypatch):
    titles = titles_of(monkeypatch, "plot_forecasts")
    for horizon in (1, 6):
        picture = ("--horizon", horizon, "--plot", tmp_path / f"{horizon}.png")
        assert invoke("forecast", csv, *SHORT[2:], *picture).exit_code == 0
    assert titles == ["y: 1 row ahead", "y: 6 rows ahead"]


@pytest.mark.parametrize("command", ["forecast", "backtest", "tune"])
def test_short_series_are_left_out_and_named(tmp_path, monkeypatch, command):
    from lstm_fast.forecast import tune

    monkeypatch.setattr(tune, "search", lambda study, df, *_, **__: searched.append(df))
    monkeypatch.setattr(tune, "best_options", lambda *_: {})
    searched: list[pd.DataFrame] = []
    path, out = tmp_path / "series.csv", tmp_path / "out"
    pd.concat([monthly(90, "a"), monthly(26, "new"), monthly(80, "bb")]).to_csv(path, index=False)
    further = {"tune": ("--study", tmp_path / "s.db"), "backtest": ("--windows", 1)}.get(
        command, ()
    )
    short = SHORT[:2] if command == "tune" else SHORT
    result = invoke(command, path, *short, *further, "--out", out)
    assert result.exit_code == 0, result.output
    needed = {"forecast": 48, "backtest": 54, "tune": 60}[command]
    told = f"warning: 1 of 3 series are left out, as they have fewer than {needed} rows: new (26)"
    assert told in result.stderr
    found = searched[0] if command == "tune" else pd.read_csv(out)
    assert found["unique_id"].unique().tolist() == ["a", "bb"]
    if command != "tune":
        assert f"Forecast: {out} (2 of 3 series)" in result.stderr
    if command == "backtest":
        assert "averaged: 2 of 3" in result.stdout


def test_info_is_whole_in_a_narrow_terminal():
    shown = re.sub(r"[\s│]", "", invoke("info", columns=20).stdout)
    assert "…" not in shown
