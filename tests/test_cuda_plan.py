"""The planner of the CUDA kernels, on devices that are not there."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import lstm_fast
from lstm_fast import ops
from lstm_fast._load import load_kernels
from lstm_fast.explain import describe_cuda

TURING = {
    "compute_capability": 75,
    "multiprocessors": 68,
    "shared_bytes": 64 << 10,
    "l2_bytes": 5632 << 10,
    "cluster_blocks": 1,
}
AMPERE = {
    "compute_capability": 80,
    "multiprocessors": 108,
    "shared_bytes": 163 << 10,
    "l2_bytes": 40 << 20,
    "cluster_blocks": 1,
}
ADA = {
    "compute_capability": 89,
    "multiprocessors": 128,
    "shared_bytes": 99 << 10,
    "l2_bytes": 72 << 20,
    "cluster_blocks": 1,
}
HOPPER = {
    "compute_capability": 90,
    "multiprocessors": 132,
    "shared_bytes": 227 << 10,
    "l2_bytes": 50 << 20,
    "cluster_blocks": 8,
}
DEVICES = {"Turing": TURING, "Ampere": AMPERE, "Ada": ADA, "Hopper": HOPPER}


def plan(device: dict[str, int], dtype: str = "float32", **problem: Any) -> dict[str, Any]:
    return load_kernels().cuda_plan(dtype, **{"T": 96, "B": 32, "I": 8, **problem}, **device)


def regime(device: dict[str, int], dtype: str = "float32", **problem: Any) -> str:
    """Of both passes, with a slash between where they differ."""
    decided = plan(device, dtype, **problem)
    names = [decided[direction]["regime"] for direction in ("forward", "backward")]
    return "/".join(sorted(set(names), key=names.index))


@pytest.mark.parametrize(("dtype", "most"), [("float32", 96), ("float16", 128), ("bfloat16", 128)])
def test_small_layers_stay_in_a_block(dtype: str, most: int):
    for H in (1, 20, 32, 64, 96, 97, 128, 129, 512):
        for device in (AMPERE, ADA, HOPPER):
            assert (regime(device, dtype, H=H) == "one-block") == (most >= H)
    assert regime(TURING, "float16", H=20) == "stepwise"


def test_a_block_takes_exact_products_that_fit_its_memory():
    for H in (1, 20, 64):
        for device in DEVICES.values():
            assert regime(device, H=H, allow_tf32=False) == "one-block"
    assert regime(HOPPER, H=128, allow_tf32=False) == "one-block"
    assert regime(HOPPER, "float64", H=64) == "one-block"
    assert regime(HOPPER, "float64", H=65) == "stepwise"
    assert regime(AMPERE, H=96, allow_tf32=False) == "one-block/grid-resident"
    assert regime(TURING, H=96, allow_tf32=False) == "stepwise"


def test_larger_layers_take_a_cluster_or_the_grid():
    for dtype, in_cluster, in_grid, too_large in (
        ("float32", 300, 1024, 1300),
        ("bfloat16", 512, 2048, 2113),
    ):
        assert regime(HOPPER, dtype, H=160) == "cluster"
        assert plan(HOPPER, dtype, H=in_cluster)["forward"]["regime"] == "cluster"
        assert regime(HOPPER, dtype, H=in_cluster + 64) == "grid-resident"
        assert regime(HOPPER, dtype, H=in_grid) == "grid-resident"
        assert regime(HOPPER, dtype, H=too_large) == "stepwise"
        assert regime(AMPERE, dtype, H=160) == "grid-resident"
        assert regime(TURING, dtype, H=160) == "stepwise"
    assert regime(HOPPER, "float64", H=160) == "stepwise"


@pytest.mark.parametrize(
    ("dtype", "cluster", "grid"),
    [("float32", (312, 256), (1184, 1024)), ("bfloat16", (512, 512), (2112, 2048))],
)
def test_limits_on_hopper(dtype: str, cluster: tuple[int, int], grid: tuple[int, int]):
    """Those that csrc/README.md names."""
    for i, direction in enumerate(("forward", "backward")):
        for H, name in (
            (cluster[i], "cluster"),
            (cluster[i] + 1, "grid-resident"),
            (grid[i], "grid-resident"),
            (grid[i] + 1, "stepwise"),
        ):
            assert plan(HOPPER, dtype, H=H)[direction]["regime"] == name


def test_nothing_stays_for_projections_and_single_steps():
    for H in (64, 160, 1024):
        assert regime(HOPPER, "float16", H=H) != "stepwise"
        assert regime(HOPPER, "float16", H=H, P=16) == "stepwise"
        assert regime(HOPPER, "float16", H=H, T=1) == "stepwise"


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_teams_fit_the_device(dtype: str, device: dict[str, int]):
    """All rows and units have a block, a grid is on the device at once, and memory is enough."""
    for H, B, D, tf32 in itertools.product(
        (1, 33, 65, 97, 200, 384, 700, 1500, 2048), (0, 1, 9, 64, 1000), (1, 2), (False, True)
    ):
        decided = plan(device, dtype, H=H, B=B, D=D, allow_tf32=tf32)
        for team in (decided["forward"], decided["backward"]):
            if not team["units"]:
                assert team["regime"] in ("stepwise", "one-block")
                continue
            assert team["units"] * team["blocks"] >= H
            assert team["teams"] * team["groups"] * team["rows"] >= B
            assert team["shared_bytes"] <= device["shared_bytes"]
            blocks = team["teams"] * team["blocks"]
            if team["regime"] == "grid-resident":
                assert blocks * D <= device["multiprocessors"]
            elif team["regime"] == "cluster":
                assert 1 < team["blocks"] <= device["cluster_blocks"]
            else:
                assert team["blocks"] == 1


def test_rows_spread_over_the_device():
    """Tensor cores take 8 rows at a time anyway; others as few as fill the multiprocessors."""
    assert (
        plan(HOPPER, H=20, allow_tf32=False)["forward"] | {"teams": 32, "rows": 1}
        == plan(HOPPER, H=20, allow_tf32=False)["forward"]
    )
    assert plan(HOPPER, H=20, B=264, allow_tf32=False)["forward"]["rows"] == 2
    wide = plan(HOPPER, "float16", H=512, B=256)["forward"]
    # Eight blocks of a cluster fit twice into each sixteen multiprocessors.
    assert (wide["teams"], wide["groups"], wide["rows"]) == (16, 2, 8)


def test_a_grid_that_reads_more_than_weights_are_goes_step_by_step():
    assert regime(HOPPER, "bfloat16", H=1024, B=64) == "grid-resident"
    assert regime(HOPPER, "bfloat16", H=2048, B=512) == "stepwise"
    small_cache = HOPPER | {"l2_bytes": 1 << 20}
    assert regime(HOPPER, "bfloat16", H=1024, B=160) == "grid-resident/stepwise"
    assert regime(small_cache, "bfloat16", H=1024, B=160) == "grid-resident"


def test_tensor_cores():
    for device in (TURING, AMPERE, HOPPER):
        assert plan(device, "float16", H=64)["tensor_cores"]
        assert plan(device, "bfloat16", H=64, allow_tf32=False)["tensor_cores"]
        assert not plan(device, "float64", H=64)["tensor_cores"]
        assert not plan(device, H=64, allow_tf32=False)["tensor_cores"]
    assert plan(AMPERE, H=64)["tensor_cores"]
    assert not plan(TURING, H=64)["tensor_cores"]


def test_tf32_is_allowed_as_for_torchs_modules(monkeypatch: pytest.MonkeyPatch):
    """As for cuDNN's RNNs where they compute nn.LSTM, and as for the products of cuBLAS else."""
    on_cuda: Any = SimpleNamespace(is_cuda=True)
    backends: Any = torch.backends
    cudnn, matmul = backends.cudnn, backends.cuda.matmul

    def is_allowed(cell: bool) -> bool:
        return ops._parts(on_cuda, cell) == 2

    assert is_allowed(cell=False)  # as torch has it
    assert not is_allowed(cell=True)
    for allowed in (False, True):
        monkeypatch.setattr(cudnn, "allow_tf32", allowed)
        assert is_allowed(cell=False) == allowed
    # No attributes that monkeypatch could put back.
    before = cudnn.rnn.fp32_precision, matmul.fp32_precision
    try:
        for of_rnns, of_products in itertools.product(("tf32", "ieee"), ("tf32", "ieee", "none")):
            cudnn.rnn.fp32_precision, matmul.fp32_precision = of_rnns, of_products
            assert is_allowed(cell=False) == (of_rnns == "tf32")
            assert is_allowed(cell=True) == (of_products == "tf32")
            with monkeypatch.context() as without:
                without.setattr(cudnn, "enabled", False)
                assert is_allowed(cell=False) == (of_products == "tf32")
    finally:
        cudnn.rnn.fp32_precision, matmul.fp32_precision = before

    @torch.compile(backend="eager", fullgraph=True)
    def both(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x * ops._cuda_parts(cell=False), x * ops._cuda_parts(cell=True)

    assert [t.item() for t in both(torch.ones(()))] == [2, 3]


def test_large_tiles_only_where_they_fill_the_device():
    assert not plan(HOPPER, H=1024)["large_step_tiles"]  # 32 rows fill half of a tile
    assert not plan(HOPPER, H=1024, B=64)["large_step_tiles"]  # 64 tiles
    assert plan(HOPPER, H=1024, B=256)["large_step_tiles"]
    assert plan(HOPPER, H=1024, B=64, D=2, T=2)["large_input_tiles"]
    assert not plan(HOPPER, H=20, T=12)["large_input_tiles"]


def test_weight_gradients_are_cut_into_parts_that_fill_the_device():
    assert plan(HOPPER, H=32, T=1, B=1)["weight_grad_parts"] == 1
    assert plan(HOPPER, H=32, T=96)["weight_grad_parts"] == 96 * 32 // 256
    # 64 * 17 tiles are enough by themselves.
    assert plan(HOPPER, H=1024, T=336, B=64)["weight_grad_parts"] == 1
    assert plan(HOPPER, H=64, T=336, B=64)["weight_grad_parts"] == -(-2 * 132 // (4 * 2))


def test_inference_works_through_long_sequences_in_chunks():
    def chunk(**problem: Any) -> int:
        return plan(HOPPER, **problem)["steps_per_chunk"]

    assert chunk(H=64) == 96
    # A step's gates are 1 MB; the cache has 50 MB. Half of it for single steps, twice as much where
    # a launch has all steps of a chunk.
    assert chunk(H=1024, B=64, T=1024, P=1000) == 25
    assert chunk(H=1024, B=64, T=1024) == 100
    assert chunk(H=2048, B=4096, T=10) == 1
    assert plan(HOPPER | {"l2_bytes": 0}, H=1024, B=64, T=1024)["steps_per_chunk"] == 256 // 64


def test_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match="dtype must be"):
        plan(HOPPER, "int8", H=64)


@pytest.mark.skipif(
    not torch.cuda.is_available() or not lstm_fast.build_info()["cuda"],
    reason="no CUDA device, or a build without CUDA kernels",
)
def test_explain_on_cuda():
    module = lstm_fast.LSTM(3, 64, dtype=torch.float16).cuda()
    x = torch.ones(5, 2, 3, dtype=torch.float16, device="cuda")
    assert lstm_fast.explain(module, x) == "CUDA kernels, one-block, tensor cores"


@pytest.mark.parametrize(
    ("device", "dtype", "H", "expected"),
    [
        (HOPPER, "float16", 64, "one-block, tensor cores"),
        (HOPPER, "float16", 160, "cluster (4 teams of 3 blocks), tensor cores"),
        (AMPERE, "bfloat16", 1400, "grid-resident (1 team of 88 blocks), tensor cores"),
        (TURING, "float32", 300, "stepwise, exact products"),
        (
            HOPPER,
            "float32",
            300,
            "cluster (4 teams of 5 blocks), backward grid-resident (4 teams of 10 blocks), "
            "tensor cores",
        ),
    ],
)
def test_explanation(device: dict[str, int], dtype: str, H: int, expected: str):
    assert describe_cuda(plan(device, dtype, H=H)) == f"CUDA kernels, {expected}"
