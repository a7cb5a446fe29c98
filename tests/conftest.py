"""Fixtures of all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from lstm_fast import ops
from tests.cuda import emulation

# The same examples in every run: a failure in CI is the failure of the change under test.
settings.register_profile(
    "lstm_fast",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("lstm_fast")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _keep_settings() -> Iterator[None]:
    """Restore the number of threads and the precision of products, which tests may set."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    if torch.get_float32_matmul_precision() != precision:  # it sets those of backends, too
        torch.set_float32_matmul_precision(precision)


@pytest.fixture(scope="session")
def emulated_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return emulation.ops_library(tmp_path_factory.mktemp("ops"))


@pytest.fixture(scope="session")
def emulated_ops(emulated_library: Path) -> Any:
    """The ops over the emulated CUDA kernels; a process can load them once."""
    torch.ops.load_library(str(emulated_library))
    return torch.ops.lstm_fast_cuda_emulation


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Results that depend neither on the batch nor on the number of threads."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One element for each call that reached the ops."""
    calls: list[None] = []

    def counting(run: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            before = len(calls)
            results = run(*args, **kwargs)
            if results is not None:
                calls[before:] = [None]  # what it calls counts once with it
            return results

        return wrapper

    for name in ("lstm", "cell", "infer", "attempt", "attempt_cell"):
        monkeypatch.setattr(ops, name, counting(getattr(ops, name)))
    return calls
