"""tests/cuda/watched.py: a test that hangs, as one on a device may, or after which its process
cannot use it, costs only itself."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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

# The first fails as of an error that stays in its process.
LOST = """
import sys
from types import SimpleNamespace

def fail(): raise RuntimeError
def test_loses_the_device():
    cuda = SimpleNamespace(is_initialized=lambda: True, synchronize=fail)
    sys.modules["torch"] = SimpleNamespace(cuda=cuda)
    fail()
def test_comes_later(): assert "torch" not in sys.modules
def test_fails(): fail()
def test_comes_last(): assert "torch" not in sys.modules
"""
# Starts what would hold the end of a pipe for longer.
STARTS = """
import subprocess
import time

def test_starts_another():
    with open("held", "w") as held:
        held.write("here")
        subprocess.Popen(["sleep", "60"], stdout=held)
    time.sleep(30)
"""


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


@pytest.fixture
def held(tree: Path) -> Iterator[int]:
    """A pipe that processes may hold the other end of."""
    os.mkfifo(tree / "held")
    pipe = os.open(tree / "held", os.O_RDONLY | os.O_NONBLOCK)
    yield pipe
    os.close(pipe)


def read(pipe: int) -> bytes:
    """What is written to a pipe; nothing once no process holds its other end."""
    assert select.select([pipe], [], [], 20)[0], "it is still held"
    return os.read(pipe, 100)


COMMAND = [sys.executable, "-m", "tests.cuda.watched", "tests/test_some.py"]


def run(tree: Path, *options: str) -> tuple[int, dict[str, str]]:
    code = subprocess.run([*COMMAND, *options], cwd=tree, capture_output=True).returncode
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


def test_an_error_that_stays_costs_only_its_test(tree: Path):
    (tree / "tests" / "test_some.py").write_text(LOST)
    assert run(tree) == (
        1,
        {
            "test_loses_the_device": "failed",
            "test_comes_later": "passed",
            "test_fails": "failed",
            "test_comes_last": "passed",
        },
    )


def test_tests_that_cannot_be_read_are_no_success(tree: Path):
    (tree / "tests" / "test_some.py").write_text("import nothing_of_this_name")
    assert run(tree) == (1, {})


@pytest.mark.parametrize(("then", "seconds", "code"), [("exit 3", 60, 3), ("wait", 2, None)])
def test_what_a_process_started_ends_with_it(
    then: str, seconds: float, code: int | None, tree: Path, held: int
):
    script = f"exec > {tree / 'held'}; echo here; sleep 60 & {then}"
    assert watched.exit_code(["sh", "-c", script], seconds) == code
    while read(held):
        pass


def test_what_was_started_ends_where_it_is_told_to(tree: Path, held: int):
    (tree / "tests" / "test_some.py").write_text(STARTS)
    process = subprocess.Popen(COMMAND, cwd=tree)
    assert read(held)
    process.terminate()
    assert process.wait() != 0
    assert not read(held)


def test_a_test_that_is_cut_off_is_not_hung(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def time_is_up(*args: Any) -> None:
        watched.write("passed", "one")
        watched.write(watched.HUNG, "another")

    monkeypatch.setattr(watched, "RECORD", tmp_path / "tests.txt")
    monkeypatch.setattr(watched, "TRACEBACK", tmp_path / "hung.txt")
    monkeypatch.setattr(watched, "exit_code", time_is_up)
    watched.begin([])
    assert not watched.run([], 1)
    assert watched.outcomes() == {"one": "passed", "another": "cut"}
    assert "cut" not in watched.WRONG
    watched.begin([])
    assert watched.outcomes() == {"one": "passed"}


def test_time_may_be_up(tree: Path):
    code, found = run(tree, "--seconds=0.1")
    assert code == 1
    assert not found
