"""The planner of the CUDA kernels, on devices that are not there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lstm_fast
from lstm_fast._load import load_kernels

TURING = {"compute_capability": 75, "multiprocessors": 68}
AMPERE = {"compute_capability": 80, "multiprocessors": 108}
HOPPER = {"compute_capability": 90, "multiprocessors": 132}


def plan(device: dict[str, int], dtype: str = "float32", **problem: Any) -> dict[str, Any]:
    return load_kernels().cuda_plan(dtype, **{"T": 96, "B": 32, "I": 8, **problem}, **device)


@pytest.mark.parametrize(
    ("dtype", "most"), [("float32", 96), ("float16", 128), ("bfloat16", 128), ("float64", 0)]
)
def test_small_layers_stay_in_a_block(dtype: str, most: int):
    for H in (1, 20, 32, 64, 96, 97, 128, 129, 512):
        for device in (AMPERE, HOPPER):
            expected = "one-block" if most >= H else "stepwise"
            assert plan(device, dtype, H=H)["regime"] == expected
        assert plan(TURING, dtype, H=H)["regime"] == "stepwise"


def test_a_block_takes_no_projection_no_single_step_and_no_exact_float32():
    assert plan(HOPPER, H=64)["regime"] == "one-block"
    assert plan(HOPPER, H=64, P=16)["regime"] == "stepwise"
    assert plan(HOPPER, H=64, T=1)["regime"] == "stepwise"
    assert plan(HOPPER, H=64, allow_tf32=False)["regime"] == "stepwise"


def test_tensor_cores():
    for device in (TURING, AMPERE, HOPPER):
        assert plan(device, "float16", H=64)["tensor_cores"]
        assert plan(device, "bfloat16", H=64, allow_tf32=False)["tensor_cores"]
        assert not plan(device, "float64", H=64)["tensor_cores"]
        assert not plan(device, H=64, allow_tf32=False)["tensor_cores"]
    assert plan(AMPERE, H=64)["tensor_cores"]
    assert not plan(TURING, H=64)["tensor_cores"]


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
    assert plan(HOPPER, H=64)["steps_per_chunk"] == 96
    assert plan(HOPPER, H=1024, B=64, T=1024)["steps_per_chunk"] == 32
    assert plan(HOPPER, H=2048, B=4096, T=10)["steps_per_chunk"] == 1


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
