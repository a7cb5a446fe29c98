"""benchmarks/gpu.py without a device: what it keeps, what it repeats, its table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import lstm_fast
from benchmarks import gpu
from benchmarks.cases import Case
from tests.cuda import watched

MACHINE = {
    "bandwidth": 4.1e12,
    "gemm": {"exact float32": 5e13, "float32": 4e14, "bfloat16": 8e14, "float16": 8e14},
    "barriers": {"block": 20.0, "cluster": None},
}
DEVICE = {
    "name": "a device",
    "torch": "2.11",
    "cuda": "13.0",
    "cudnn": 91900,
    "lstm_fast": {"version": "0.1.0", "cuda": True},
}


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the results go of `main` on a device that is not there."""
    tested = tmp_path / "tests.txt"
    tested.write_text("state\npassed tests/a.py::one\nhung tests/a.py::two\n")
    monkeypatch.setattr(watched, "RECORD", tested)
    monkeypatch.setattr(gpu, "GROUPS", {"forecasters": [Case(1, 2, 3, 4, 1), Case(8, 2, 3, 4, 1)]})
    monkeypatch.setattr(gpu, "KINDS", {"float32": "float32"})
    monkeypatch.setattr(gpu, "device", lambda: DEVICE)
    monkeypatch.setattr(gpu, "limits", lambda build: MACHINE)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(lstm_fast, "build_info", lambda: {"cuda": True})
    return tmp_path / "gpu.json"


def measured(
    monkeypatch: pytest.MonkeyPatch, out: Path, *options: str, failing: str = "training 8"
) -> list[str]:
    """Runs `main`; which cases it has measured."""
    calls: list[str] = []

    def compare(case: Case, work: str, *rest: Any) -> dict[str, Any]:
        calls.append(f"{work} {case.B}")
        if calls[-1] == failing:
            raise RuntimeError("out of memory")
        figures = {"us": 2.0, "torch_us": 4.0 * case.B, "ratio": 2.0 * case.B}
        regime = {"regime": "one-block", "kernels": "CUDA kernels, one-block, tensor cores"}
        return {**figures, "us_a_step": 1.0, "share_of_limit": 0.5, **regime}

    monkeypatch.setattr(gpu, "compare", compare)
    monkeypatch.setattr(sys, "argv", ["gpu", f"--out={out}", *options])
    gpu.main()
    return calls


@pytest.mark.parametrize(
    ("kernels", "regime"),
    [
        ("CUDA kernels, cluster (2 teams of 3 blocks), backward stepwise, tensor cores", "cluster"),
        ("torch.nn.LSTM", "torch.nn.LSTM"),
    ],
)
def test_regime(kernels: str, regime: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lstm_fast, "explain", lambda module, x: kernels)
    monkeypatch.setattr(torch.backends.cudnn, "rnn", SimpleNamespace())
    monkeypatch.setattr(gpu, "median_seconds", lambda runs, seconds: (2e-6, 4e-6))
    for on_device in (torch.Tensor, torch.nn.Module):
        monkeypatch.setattr(on_device, "cuda", lambda self: self)
    found = gpu.compare(Case(1, 2, 3, 4, 1), "training", "float32", 0, MACHINE)
    assert (found["regime"], found["ratio"]) == (regime, 2)


def test_all_is_kept_and_nothing_repeated(out: Path, monkeypatch: pytest.MonkeyPatch):
    assert measured(monkeypatch, out, "--seconds-in-all=0") == []
    calls = measured(monkeypatch, out)
    assert calls == ["inference 1", "training 1", "inference 8", "training 8"]
    assert measured(monkeypatch, out) == []
    results = json.loads(out.read_text())
    assert [case.get("ratio") for case in results["cases"].values()] == [2, 2, 16, None]
    assert results["device"] == DEVICE
    assert results["machine"] == MACHINE
    table = out.with_suffix(".md").read_text()
    for line in (
        "a device; torch 2.11, cuda 13.0, cudnn 91900; lstm_fast 0.1.0",
        "- memory: 4.10 TB/s",
        "- launch, barriers and exchanges, us: block 0.02, cluster -",
        "- tests: 1 passed, 1 hung",
        "  - hung: tests/a.py::two",
        # sqrt(2 * 16) = 5.66
        "| forecasters | inference | float32 | 2 | 5.66 | 2.00 | 1.00 | 0.50 |",
        "| one-block | training | all | 1 | 2.00 | 2.00 | 1.00 | 0.50 |",
        "- out of memory: forecasters training float32 B8_T2_I3_H4_L1_D1",
    ):
        assert line in table.splitlines()


def test_an_error_that_stays_is_that_of_one_case(out: Path, monkeypatch: pytest.MonkeyPatch):
    def synchronize() -> None:
        raise RuntimeError("an illegal memory access was encountered")

    with monkeypatch.context() as lost:
        lost.setattr(torch.cuda, "is_initialized", lambda: True)
        lost.setattr(torch.cuda, "synchronize", synchronize)
        with pytest.raises(SystemExit, match="run again"):
            measured(lost, out, failing="inference 1")
    (case,) = json.loads(out.read_text())["cases"].values()
    assert case == {"error": "out of memory"}
    assert measured(monkeypatch, out, failing="") == ["training 1", "inference 8", "training 8"]


def test_latencies_that_are_missing_are_not_overlooked(out: Path, monkeypatch: pytest.MonkeyPatch):
    failed = {**MACHINE, "barriers": {}, "without_barriers": "nvcc failed"}
    monkeypatch.setattr(gpu, "limits", lambda build: failed)
    with pytest.raises(SystemExit, match="no latencies of barriers: nvcc failed"):
        measured(monkeypatch, out)
    assert "exchanges, us: NOT MEASURED" in out.with_suffix(".md").read_text()
    assert len(json.loads(out.read_text())["cases"]) == 4


def test_another_device_is_measured_anew(out: Path, monkeypatch: pytest.MonkeyPatch):
    measured(monkeypatch, out)
    monkeypatch.setattr(gpu, "device", lambda: {**DEVICE, "name": "another"})
    assert len(measured(monkeypatch, out)) == 4
    assert json.loads(out.read_text())["device"]["name"] == "another"
    before = json.loads(out.with_name("gpu-a-device.json").read_text())
    assert before["device"] == DEVICE
    assert len(before["cases"]) == 4
