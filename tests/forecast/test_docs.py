"""Every snippet of docs/forecasting.md is run, in order, with trainings cut to two steps."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import lstm_fast
from lstm_fast.cli import app
from lstm_fast.forecast import Forecaster, load_beer_wine_sales

DOCUMENT = (Path(__file__).parents[2] / "docs" / "forecasting.md").read_text(encoding="utf-8")
PACKAGE = Path(lstm_fast.__file__).parent  # of a wheel, maybe, with its data
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
CLIENTS = ("neuralforecast", "darts")


def client(block: str) -> str | None:
    """The library of others that a snippet uses."""
    return next((name for name in CLIENTS if f"from {name} " in block), None)


@pytest.fixture
def _short(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (make_file,) = BLOCKS[0][1].splitlines()
    subprocess.run(
        make_file.replace("lstm_fast/", f"{shlex.quote(str(PACKAGE))}/"),
        shell=True,
        check=True,
    )
    options = Forecaster._training_options

    def two_steps(self, *arguments):
        return dataclasses.replace(options(self, *arguments), max_steps=2)

    monkeypatch.setattr(Forecaster, "_training_options", two_steps)


@pytest.mark.usefixtures("_short")
def test_commands(monkeypatch):
    tune = pytest.importorskip("lstm_fast.forecast.tune")
    search = tune.search
    monkeypatch.setattr(tune, "search", lambda *a, **k: search(*a, **{**k, "n_trials": 2}))
    commands = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
    ours = [command for command in commands if command.startswith("lstm-fast ")]
    assert len(ours) >= 5
    others = [command.split()[0] for command in commands if command not in ours]
    assert others == ["sed", "torchrun"]
    for command in ours:
        arguments = shlex.split(command)[1:]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{command}\n{result.output}"
        for option in ("--out", "--plot", "--save"):
            if option in arguments:
                assert Path(arguments[arguments.index(option) + 1]).stat().st_size > 0


@pytest.mark.usefixtures("_short")
def test_python(monkeypatch):
    tune = pytest.importorskip("lstm_fast.forecast.tune")
    search = tune.search
    monkeypatch.setattr(tune, "search", lambda *a, **k: search(*a, **{**k, "n_trials": 2}))
    names: dict[str, Any] = {}
    for kind, block in BLOCKS:
        if kind == "python" and client(block) is None:
            exec(compile(block, "docs/forecasting.md", "exec"), names)
    assert len(names["forecast"]) == 12
    assert Path("training.png").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("_short")
def test_several_processes():
    (script,) = [block for _, block in BLOCKS if block.startswith("# train.py\n")]
    script = script.replace("max_steps=200", "max_steps=2")
    script = script.replace(
        '"enable_progress_bar": True',
        '"enable_progress_bar": True, "devices": 2, "strategy": "ddp"',
    )
    # Threads of torch.distributed may ask for the interpreter while it shuts down, which aborts.
    Path("train.py").write_text(f"{script}\nimport os\n\nos._exit(0)\n", encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [sys.executable, *launcher, "train.py"], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert Path("training.png").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("_short")
@pytest.mark.parametrize("name", CLIENTS)
def test_other_libraries(name, capsys):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    (block,) = [block for _, block in BLOCKS if client(block) == name]
    names: dict[str, Any] = {"df": load_beer_wine_sales()}
    exec(compile(block, "docs/forecasting.md", "exec"), names)
    model = names["models"][0] if name == "neuralforecast" else names["model"].model
    assert any(isinstance(module, lstm_fast.LSTM) for module in model.modules())


@pytest.mark.usefixtures("_short")
def test_shown_output_is_what_the_command_prints():
    shown = re.search(r"^```text\n(guessed: column 'month'.*?)^```$", DOCUMENT, re.M | re.S)
    assert shown is not None
    command = BLOCKS[1][1].splitlines()[0]
    result = CliRunner().invoke(app, shlex.split(command)[1:])
    assert result.stderr == shown[1]
