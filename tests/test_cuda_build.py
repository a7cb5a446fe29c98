"""The build with CUDA kernels, which needs nvcc but neither a GPU nor a torch with CUDA."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import lstm_fast
import setup
from benchmarks import gpu
from tests.cuda import architectures
from tests.source_tree import ROOT, run_python

PACKAGE = Path(lstm_fast.__file__).parent
# One alone takes a fraction of the time; `make lint` compiles for all (cuda/architectures.py).
ARCH = "75"


def build(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ("setup.py", "build_ext", "--build-lib", str(folder))
    return run_python(*command, cwd=ROOT, **environment)


@pytest.fixture(scope="module")
def nvcc() -> None:
    home = Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda")
    if not (home / "bin" / "nvcc").exists():
        pytest.skip(f"no nvcc in {home}; CUDA_HOME names the toolkit")


@pytest.fixture(scope="module")
def built(nvcc: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package that has CUDA kernels in it."""
    folder = tmp_path_factory.mktemp("with_cuda")
    shutil.copytree(PACKAGE, folder / "lstm_fast", ignore=shutil.ignore_patterns("*.so"))
    result = build(folder, LSTM_FAST_CUDA="1", LSTM_FAST_CUDA_ARCHS=ARCH)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.mark.slow
def test_loads_without_cuda(built: Path):
    code = (
        "import torch, lstm_fast; info = lstm_fast.build_info();"
        "print(lstm_fast.LSTM(3, 4)(torch.ones(5, 2, 3))[0].shape, info['cuda'],"
        "*info['cuda_archs'], torch.ops.lstm_fast.lstm.default.has_kernel_for_dispatch_key('CUDA'))"
    )
    result = run_python("-c", code, cwd=built, PYTHONPATH=str(built))
    expected = f"torch.Size([5, 2, 4]) True {ARCH} True"
    assert result.stdout.strip() == expected, result.stderr


@pytest.mark.slow
def test_torch_may_be_linked_late(built: Path):
    """Neither CUDA's libraries nor those of a CUDA torch are needed to load the ops."""
    if shutil.which("readelf") is None:
        pytest.skip("needs readelf of binutils")
    ops = built / "lstm_fast" / "_ops.abi3.so"
    text = subprocess.run(["readelf", "-d", ops], capture_output=True, text=True).stdout
    needed = re.findall(r"NEEDED.*\[(.*)\]", text)
    assert "libtorch_cpu.so" in needed
    assert not [name for name in needed if "cuda" in name]


def test_what_measures_barriers_is_built(nvcc: None, tmp_path: Path):
    program = tmp_path / "barriers"
    command = gpu.build_of_barriers(program, ARCH)
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert program.exists()


@pytest.mark.parametrize(
    "word", ["atomic[A-Z]", "Synchronize", "cudaMalloc", "cudaFree", r"cudaMemcpy\b"]
)
def test_nothing_in_the_kernels_waits_allocates_or_adds_in_any_order(word: str):
    """So that results are the same in every run and a CUDA graph can capture a call."""
    folders = [ROOT / "csrc" / "cuda", ROOT / "csrc" / "ops" / "cuda"]
    paths = [path for folder in folders for path in folder.glob("*.*")]
    assert len(paths) > 20
    assert [path.name for path in paths if re.search(word, path.read_text())] == []


def said_of(kernel: str, arch: str, stack: int = 0, registers: int = 200) -> str:
    return (
        f"ptxas info    : Compiling entry function '{kernel}' for 'sm_{arch}'\n"
        f"ptxas info    : Function properties for {kernel}\n"
        f"    {stack} bytes stack frame, {stack} bytes spill stores, {stack} bytes spill loads\n"
        f"ptxas info    : Used {registers} registers, used 1 barriers, 1000 bytes cmem[0]\n"
    )


def test_what_ptxas_says_is_read():
    """Spills, weights that are not in registers and missing kernels are found."""
    counts = {**architectures.RESIDENT, **architectures.OTHERS}
    kernels = [f"_Z{name}_kernel{i}" for name, count in counts.items() for i in range(count)]

    def complaints(*changed: str, missing: int = 0) -> list[str]:
        names = kernels[: len(kernels) - missing]
        log = "".join(said_of(name, "90a") for name in names) + "".join(changed)
        return architectures.complaints(architectures.usages(log), ["90a"])

    assert complaints() == []
    assert complaints(missing=1) == ["sm_90a: 4 kernels weight_grad, expected 5"]
    (two_many, spilled) = complaints(said_of("block_forward_kernel", "90a", stack=8))
    assert "10 kernels block_forward" in two_many
    assert "local memory" in spilled
    assert "not in registers" in complaints(said_of("team_forward_kernel", "90a", registers=64))[1]
    assert "sm_75: 0 kernels" in architectures.complaints([], ["75"])[0]


def test_default_is_what_torch_has():
    assert lstm_fast.build_info()["cuda"] is bool(lstm_fast.build_info()["cuda_archs"])


@pytest.mark.parametrize(
    ("archs", "ptx"),
    [
        (setup.CUDA_ARCHS, 100),
        (["90a", "80"], 90),
        (["120"], 100),
        (["86"], 80),
        (["100f"], 100),
        (["75"], 75),
    ],
)
def test_newer_devices_have_the_ptx_of_the_newest(archs: list[str], ptx: int):
    flags = setup.Cuda(Path(), archs).flags(["g++"])
    codes = [flag.rpartition("code=")[2] for flag in flags if flag.startswith("-gencode")]
    assert codes == [*(f"sm_{arch}" for arch in archs), f"compute_{ptx}"]
    assert f"-gencode=arch=compute_{ptx},code=compute_{ptx}" in flags


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
