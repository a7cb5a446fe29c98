"""tests/cuda/watched.py: a test that hangs, as one on a device may, costs only itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda import watched

TESTS = """
import time
import pytest

def test_passes(): pass
def test_fails(): assert False
def test_hangs(): time.sleep(30)
@pytest.mark.skip
def test_skips(): pass
def test_comes_last(): assert {last}
"""
EXPECTED = {
    "test_passes": "passed",
    "test_fails": "failed",
    "test_hangs": "hung",
    "test_skips": "skipped",
    "test_comes_last": "failed",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Some tests, and a copy of watched.py that has little patience."""
    (tmp_path / "tests" / "cuda").mkdir(parents=True)
    (tmp_path / "lstm_fast").mkdir()
    for folder in (tmp_path / "tests", tmp_path / "tests" / "cuda"):
        (folder / "__init__.py").touch()
    source = Path(watched.__file__).read_text()
    patience = "SECONDS = {False: 60,"
    assert patience in source
    copy = tmp_path / "tests" / "cuda" / "watched.py"
    copy.write_text(source.replace(patience, "SECONDS = {False: 1,"))
    (tmp_path / "tests" / "test_some.py").write_text(TESTS.format(last=False))
    return tmp_path


def run(tree: Path, *options: str) -> tuple[int, dict[str, str]]:
    command = [sys.executable, "-m", "tests.cuda.watched", "tests/test_some.py", *options]
    code = subprocess.run(command, cwd=tree, capture_output=True).returncode
    lines = (tree / "build" / "gpu" / "tests.txt").read_text().splitlines()[1:]
    return code, {line.split("::")[1]: line.split()[0] for line in lines}


def test_a_hung_test_costs_only_itself_and_what_passed_is_not_repeated(tree: Path):
    folder = tree / "build" / "gpu"
    assert run(tree) == (1, EXPECTED)
    assert "in test_hangs" in (folder / "hung.txt").read_text()

    assert run(tree) == (1, EXPECTED)
    kept = [line.split(" ")[0] for line in (folder / "tests.txt").read_text().splitlines()[1:3]]
    assert kept == ["passed", "skipped"]

    changed = TESTS.format(last=True).replace("sleep(30)", "sleep(0)").replace("False", "True")
    (tree / "tests" / "test_some.py").write_text(changed)
    assert run(tree) == (0, dict.fromkeys(EXPECTED, "passed") | {"test_skips": "skipped"})


def test_time_may_be_up(tree: Path):
    code, found = run(tree, "--seconds=0.1")
    assert code == 1
    assert not found
