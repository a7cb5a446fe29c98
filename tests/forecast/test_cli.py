"""The `lstm-fast` command, on a shortened run."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner, Result

from lstm_fast.cli import app


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})


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
