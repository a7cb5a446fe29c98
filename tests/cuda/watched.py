"""Runs the tests on a CUDA device, each of them watched and its outcome kept:
`python -m tests.cuda.watched`, as `make gpu` does.

A kernel that waits for what never comes can only be ended with its process. A test that takes too
long is therefore written down as hung, and the others go on in a new process. So they do after a
test that has failed with an error of the device that stays. Run again, tests that passed are not
repeated until what they test, or one of them, changes.

The functions named pytest_... are those of a plugin, for the process that runs the tests.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "build" / "gpu" / "tests.txt"  # a line for each event: outcome, test
TRACEBACK = RECORD.with_name("hung.txt")
FILES = [f"tests/test_cuda_{name}.py" for name in ("device", "plan")]
SECONDS = {False: 60, True: 200}  # for a test, and for a slow one
RAN, WRONG, HUNG = {"passed", "skipped"}, {"failed", "hung"}, "hung"
CUT = "cut"  # by the end of the time for all tests


def outcomes() -> dict[str, str]:
    """The last that was written of each test; one that was running when its process ended hung."""
    found = {}
    for line in RECORD.read_text().splitlines()[1:] if RECORD.exists() else []:
        outcome, _, test = line.partition(" ")
        found[test] = outcome
    return found


def write(outcome: str, test: str) -> None:
    with RECORD.open("a") as file:
        print(outcome, test, file=file, flush=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    known = outcomes()
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in known])
    items[:] = [item for item in items if item.nodeid not in known]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    write(HUNG, item.nodeid)
    slow = item.get_closest_marker("slow") is not None
    with TRACEBACK.open("a") as file:
        print(item.nodeid, file=file, flush=True)
        faulthandler.dump_traceback_later(SECONDS[slow], exit=True, file=file)
        try:
            done = yield
            if outcomes()[item.nodeid] == "failed" and not device_works():
                item.session.shouldstop = "the device is lost to this process"
            return done
        finally:
            faulthandler.cancel_dump_traceback_later()


def device_works() -> bool:
    """Not after some errors, as of a kernel that reads where nothing is: whatever this process asks
    of the device then fails."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        write("failed", report.nodeid)
    elif report.when == "call" or (report.when == "setup" and report.skipped):
        write(report.outcome, report.nodeid)


def state(files: Sequence[str]) -> str:
    """Changes with what is tested and with the tests."""
    text = hashlib.sha256()
    parts = [*(ROOT / "lstm_fast").glob("*.so"), *(ROOT / "lstm_fast").glob("*.py")]
    for path in sorted([*parts, *(ROOT / file for file in files)]):
        text.update(path.read_bytes())
    return text.hexdigest()


def begin(files: Sequence[str]) -> None:
    """Keep what passed of the same state; the rest is run again."""
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    now = state(files)
    kept = {}
    if RECORD.exists() and RECORD.read_text().partition("\n")[0] == now:
        kept = {test: outcome for test, outcome in outcomes().items() if outcome in RAN}
    RECORD.write_text("\n".join([now, *(f"{outcome} {test}" for test, outcome in kept.items())]))
    with RECORD.open("a") as file:
        print(file=file)
    TRACEBACK.unlink(missing_ok=True)


def exit_code(command: Sequence[str], seconds: float) -> int | None:
    """Of a process, or None if it takes longer. It ends with all that it has started, which might
    keep the device from others."""
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run(files: Sequence[str], seconds: float) -> bool:
    """Run what has not been run. Whether all have."""
    end = time.monotonic() + seconds
    command = [sys.executable, "-m", "pytest", "-p", "tests.cuda.watched", "-q", *files]
    while True:
        before = outcomes()
        code = exit_code(command, end - time.monotonic())
        new = {test: outcome for test, outcome in outcomes().items() if test not in before}
        hung = [test for test, outcome in new.items() if outcome == HUNG]
        if code is None:
            for test in hung:
                write(CUT, test)
        elif hung:
            print(f"went on without {' '.join(hung)}: see {TRACEBACK}")
        if code in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            return True
        # Where a test did not pass, others may be left to a new process.
        if code is None or not new:
            return False


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cuda.watched", description=__doc__.partition("\n\n")[0]
    )
    parser.add_argument("files", nargs="*", default=FILES)
    parser.add_argument("--seconds", type=float, default=240, help="stop after these")
    options = parser.parse_args()
    begin(options.files)
    complete = run(options.files, options.seconds)
    found = outcomes()
    for test, outcome in found.items():
        if outcome not in RAN:
            print(f"{outcome}: {test}")
    if not complete:
        print("Not all tests were run; run again.")
    sys.exit(not complete or any(outcome in WRONG for outcome in found.values()))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or what was started would go on
    main()
