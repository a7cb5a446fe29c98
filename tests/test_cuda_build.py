"""The build with CUDA kernels, which needs nvcc but neither a GPU nor a torch with CUDA."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import lstm_fast

ROOT = Path(__file__).parent.parent
PACKAGE = Path(lstm_fast.__file__).parent
ARCHS = ["75", "80", "86", "89", "90a", "100"]


def run_python(
    *args: str, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def build(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ("setup.py", "build_ext", "--build-lib", str(folder))
    return run_python(*command, cwd=ROOT, **environment)


@dataclass(frozen=True)
class Usage:
    """What ptxas says of a kernel on an architecture."""

    kernel: str
    arch: str
    spilled_bytes: int
    stack_bytes: int
    registers: int


def usages(log: str) -> list[Usage]:
    found = re.finditer(
        r"Compiling entry function '(?P<kernel>\S+)' for 'sm_(?P<arch>\S+)'\n.*\n"
        r"\s+(?P<stack>\d+) bytes stack frame, (?P<spill>\d+) bytes spill stores.*\n"
        r".*Used (?P<registers>\d+) registers",
        log,
    )
    return [
        Usage(m["kernel"], m["arch"], int(m["spill"]), int(m["stack"]), int(m["registers"]))
        for m in found
    ]


@dataclass(frozen=True)
class Built:
    """A copy of the package with CUDA kernels in it, and what the compilers printed."""

    path: Path
    log: str


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    home = Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda")
    if not (home / "bin" / "nvcc").exists():
        pytest.skip(f"no nvcc in {home}; CUDA_HOME names the toolkit")
    folder = tmp_path_factory.mktemp("with_cuda")
    shutil.copytree(PACKAGE, folder / "lstm_fast", ignore=shutil.ignore_patterns("*.so"))
    # What ptxas says is kept beside the objects that ninja keeps; both are of these sources.
    log = ROOT / "build" / "ptxas.log"
    sources = [ROOT / "setup.py", *(ROOT / "csrc").rglob("*.*[chpu]")]
    if not log.exists() or log.stat().st_mtime < max(path.stat().st_mtime for path in sources):
        for old in (ROOT / "build").glob("ninja-*/cuda/kernels.*.cu.o"):
            old.unlink()
        log.unlink(missing_ok=True)
    result = build(folder, LSTM_FAST_CUDA="1", NVCC_APPEND_FLAGS="-Xptxas=-v")
    said = result.stdout + result.stderr
    assert result.returncode == 0, said
    if not log.exists():
        log.write_text(said)
    return Built(folder, log.read_text())


@pytest.mark.slow
def test_loads_without_cuda(built: Built):
    code = (
        "import torch, lstm_fast; info = lstm_fast.build_info();"
        "print(lstm_fast.LSTM(3, 4)(torch.ones(5, 2, 3))[0].shape, info['cuda'],"
        "*info['cuda_archs'], torch.ops.lstm_fast.lstm.default.has_kernel_for_dispatch_key('CUDA'))"
    )
    result = run_python("-c", code, cwd=built.path, PYTHONPATH=str(built.path))
    expected = f"torch.Size([5, 2, 4]) True {' '.join(ARCHS)} True"
    assert result.stdout.strip() == expected, result.stderr


@pytest.mark.slow
def test_compiles_for_all_architectures(built: Built):
    for arch in ARCHS:
        kernels = {usage.kernel for usage in usages(built.log) if usage.arch == arch}
        for name in ("product", "step_forward", "step_backward", "weight_grad"):
            # float32 in two units, float64, float16, bfloat16; in two sizes of tiles or one
            assert sum(f"{name}_kernel" in kernel for kernel in kernels) >= 5


@pytest.mark.slow
def test_weights_of_a_block_stay_in_registers(built: Built):
    """Nothing spilled and no local memory, where all steps of a layer are one launch."""
    blocks, teams = (
        [usage for usage in usages(built.log) if f"{name}_" in usage.kernel]
        for name in ("block", "team")
    )
    # Forward and backward; three sizes each of TF32, float16, bfloat16
    assert len(blocks) == 2 * 9 * len(ARCHS)
    # One block: two sizes of float32, one of float64; a cluster and two grids of TF32, float32,
    # float16, bfloat16
    assert len(teams) == 2 * (3 + 4 * 3) * len(ARCHS)
    for usage in blocks + teams:
        assert usage.spilled_bytes == usage.stack_bytes == 0, usage
    for usage in teams:
        if usage.arch.startswith(("9", "10")):
            # 16 chunks of 8 words for a thread, or 6 where there are twice as many threads
            assert usage.registers > (48 if "ELi128E" in usage.kernel else 128), usage


@pytest.mark.slow
def test_torch_may_be_linked_late(built: Built):
    """Neither CUDA's libraries nor those of a CUDA torch are needed to load the ops."""
    if shutil.which("readelf") is None:
        pytest.skip("needs readelf of binutils")
    ops = built.path / "lstm_fast" / "_ops.abi3.so"
    text = subprocess.run(["readelf", "-d", ops], capture_output=True, text=True).stdout
    needed = re.findall(r"NEEDED.*\[(.*)\]", text)
    assert "libtorch_cpu.so" in needed
    assert not [name for name in needed if "cuda" in name]


def test_default_is_what_torch_has():
    assert lstm_fast.build_info()["cuda"] is bool(lstm_fast.build_info()["cuda_archs"])


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"LSTM_FAST_CUDA": "yes"}, "LSTM_FAST_CUDA must be auto, 0 or 1, got 'yes'"),
        ({"LSTM_FAST_CUDA": "1", "LSTM_FAST_CUDA_ARCHS": "80 sm_90"}, "got 'sm_90'"),
        ({"LSTM_FAST_CUDA": "1", "CUDA_HOME": "/nowhere"}, "no CUDA toolkit with nvcc in /nowhere"),
    ],
)
def test_wrong_choices_are_named(environment: dict[str, str], message: str, tmp_path: Path):
    result = build(tmp_path, **environment)
    assert result.returncode != 0
    assert message in result.stderr


def test_old_nvcc_is_named(tmp_path: Path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "lib64").mkdir()
    (tmp_path / "lib64" / "libcudart_static.a").touch()
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.4, V12.4.99'\n")
    nvcc.chmod(0o755)
    result = build(tmp_path / "out", LSTM_FAST_CUDA="1", CUDA_HOME=str(tmp_path))
    assert result.returncode != 0
    assert "(release 12.4) is too old, 12.8 or newer is needed" in result.stderr
