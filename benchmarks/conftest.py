"""Options of the benchmarks, and what their JSON records of the machine."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
import torch

import lstm_fast
from benchmarks import measure
from benchmarks.cases import GRID, LOOPS, PACKED, QUICK, STEPS

DTYPES = ("float32", "float64", "bfloat16", "float16")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lstm_fast")
    group.addoption("--quick", action="store_true", help="seven cases, less than a second each")
    group.addoption("--seconds", type=float, help="time for each comparison (3, --quick: 0.6)")
    group.addoption("--threads", default="1,2", help="numbers of threads, such as 1,2")
    group.addoption("--dtype", choices=DTYPES, default="float32")
    group.addoption(
        "--flush-denormal", action="store_true", help="torch.set_flush_denormal(True) for both"
    )


def pytest_configure(config: pytest.Config) -> None:
    # Before the first parallel region: the threads of the pool inherit it.
    if config.getoption("--flush-denormal"):
        torch.set_flush_denormal(True)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    quick = metafunc.config.getoption("--quick")
    names = metafunc.fixturenames
    if "step_case" in names:
        metafunc.parametrize("step_case", STEPS[1:2] if quick else STEPS, ids=str)
    if "loop_case" in names:
        metafunc.parametrize("loop_case", LOOPS[1:2] if quick else LOOPS, ids=str)
    if "case" in names:
        metafunc.parametrize("case", QUICK if quick else GRID, ids=str)
    if "packed_case" in names:
        metafunc.parametrize("packed_case", PACKED[2:3] if quick else PACKED, ids=str)
    if "threads" in names:
        wanted = [int(n) for n in metafunc.config.getoption("--threads").split(",")]
        available = measure.cores()
        metafunc.parametrize("threads", [n for n in wanted if n <= available])


@pytest.fixture(scope="session")
def seconds(request: pytest.FixtureRequest) -> float:
    chosen = request.config.getoption("--seconds")
    return chosen or (0.6 if request.config.getoption("--quick") else 3.0)


@pytest.fixture(scope="session")
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    chosen: torch.dtype = getattr(torch, request.config.getoption("--dtype"))
    return chosen


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    del machine_info["node"]
    machine_info["cores"] = measure.cores()
    machine_info["torch"] = torch.__version__
    machine_info["lstm_fast"] = lstm_fast.build_info()


def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: dict[str, Any]) -> None:
    for key in ("project", "branch"):
        commit_info.pop(key, None)


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]
) -> None:
    output_json["command"] = shlex.join(
        ["python", "-m", "pytest", *map(str, config.invocation_params.args)]
    )
    output_json["dtype"] = config.getoption("--dtype")
    output_json["flush_denormal"] = config.getoption("--flush-denormal")
    for benchmark in output_json["benchmarks"]:
        # Every single sample: megabytes, and the statistics are kept.
        benchmark["stats"].pop("data", None)
