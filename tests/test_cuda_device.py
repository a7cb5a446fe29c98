"""`lstm_fast.LSTM` on a CUDA device: against float64 and torch.nn.LSTM, and what a device adds:
streams, graphs, no waiting, the same bits in every run."""

from __future__ import annotations

import copy
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

import lstm_fast
from lstm_fast import LSTM, LSTMCell, ops
from tests.sample_inputs import (
    CONFIGS,
    DTYPES,
    HALVES,
    Config,
    assert_close,
    assert_same_error,
    configs,
    forward_and_gradients,
    in_float64,
    tolerance,
)
from tests.test_options import OPTIONS, STACK, I, make, parts

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, or torch without it"),
    pytest.mark.skipif(
        not lstm_fast.build_info()["cuda"], reason="built without CUDA kernels (LSTM_FAST_CUDA)"
    ),
]

ROOT = Path(__file__).parent.parent
# Each in its own regime of sizes: one-block and its limits, a cluster with several groups of rows,
# grids with few and many units, step by step in small and large tiles.
SIZES = {
    "small": Config(input_size=3, hidden_size=20, T=24, B=33, num_layers=2),
    "limit": Config(input_size=8, hidden_size=96, T=12, B=7, bidirectional=True),
    "beyond": Config(input_size=8, hidden_size=129, T=6, B=9),
    "cluster": Config(input_size=8, hidden_size=250, T=9, B=300, bidirectional=True),
    "grid": Config(input_size=8, hidden_size=500, T=9, B=70, num_layers=2),
    "wide grid": Config(input_size=8, hidden_size=1021, T=5, B=11),
    "too wide": Config(input_size=8, hidden_size=2200, T=3, B=65),
    "large": Config(input_size=64, hidden_size=300, T=5, B=130, num_layers=2),
    "long": Config(input_size=2, hidden_size=64, T=336, B=5),
}


@pytest.fixture(params=["ieee", "tf32"])
def precision(request: pytest.FixtureRequest) -> Any:
    """Of products in float32, as torch's setting for cuDNN's RNNs says."""
    setting: Any = torch.backends.cudnn.rnn
    before = setting.fp32_precision
    setting.fp32_precision = request.param
    yield request.param
    setting.fp32_precision = before


def bound(config: Config, precision: str = "ieee") -> float:
    """Products on tensor cores round what they read: h and the gradients of gates at each step, and
    in TF32 weights and inputs too. These errors are random, and a sum's no larger than its terms';
    they add up over the layers, forward and backward."""
    if config.dtype in HALVES:
        eps = torch.finfo(config.dtype).eps
    else:
        eps = 2.0**-10 if config.dtype is torch.float32 and precision == "tf32" else 0
    return tolerance(config) + 2 * eps * math.sqrt(config.num_layers)


def on_cuda(
    module: torch.nn.LSTM, config: Config, input: Tensor, hx: tuple[Tensor, Tensor] | None
) -> dict[str, Tensor]:
    """`forward_and_gradients` on the device, results on the CPU."""
    generator = torch.Generator().manual_seed(0)
    module = module.cuda()
    input = input.cuda().requires_grad_()
    state = None if hx is None else tuple(h.cuda().requires_grad_() for h in hx)
    output, (h_n, c_n) = module(config.pack(input), state)
    data = output.data if isinstance(output, PackedSequence) else output
    results = {"output": data, "h_n": h_n, "c_n": c_n}
    coefficients = [
        torch.randn(r.shape, generator=generator).to(config.dtype).cuda() for r in results.values()
    ]
    leaves = {"input": input, **dict(module.named_parameters())}
    if state is not None:
        leaves |= {"h0": state[0], "c0": state[1]}
    grads = torch.autograd.grad(list(results.values()), list(leaves.values()), coefficients)
    results |= {f"grad of {name}": g for name, g in zip(leaves, grads, strict=True)}
    return {name: result.detach().cpu() for name, result in results.items()}


def check(config: Config, precision: str = "ieee") -> None:
    module, input, hx = config.module(LSTM), config.input(), config.hx()
    expected = in_float64(forward_and_gradients, module, config, input, hx)
    got = on_cuda(module, config, input, hx)
    assert_close(got, expected, config, bound(config, precision))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("name", [*CONFIGS, *SIZES])
def test_values_and_gradients(name: str, dtype: torch.dtype, precision: str):
    check(replace((CONFIGS | SIZES)[name], dtype=dtype), precision)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("name", [*CONFIGS, *SIZES])
def test_same_as_torch(name: str, dtype: torch.dtype):
    """As cuDNN computes it by default; each of the two may err by the bound."""
    config = replace((CONFIGS | SIZES)[name], dtype=dtype)
    ours, theirs = config.module(LSTM), config.module()
    theirs.load_state_dict(ours.state_dict())
    input, hx = config.input(), config.hx()
    got, expected = (on_cuda(module, config, input, hx) for module in (ours, theirs))
    assert_close(got, expected, config, 2 * bound(config, "tf32"))
    assert [t.dtype for t in got.values()] == [t.dtype for t in expected.values()]


@settings(max_examples=60)
@given(configs())
def test_any_configuration(config: Config):
    torch.manual_seed(0)
    check(config, "tf32")


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_kernels_are_used(config: Config, monkeypatch: pytest.MonkeyPatch):
    calls = []
    run = ops._lstm

    def counting(*args: Any) -> Any:
        calls.append(args)
        return run(*args)

    monkeypatch.setattr(ops, "_lstm", counting)
    on_cuda(config.module(LSTM), config, config.input(), config.hx())
    assert len(calls) == 1


def test_as_near_to_float64_as_torch(precision: str):
    """Half as far again as nn.LSTM at most, over all results."""
    config = SIZES["large"]
    ours, theirs = config.module(LSTM), config.module()
    theirs.load_state_dict(ours.state_dict())
    input, hx = config.input(), config.hx()
    exact = in_float64(forward_and_gradients, ours, config, input, hx)

    def error(results: dict[str, Tensor]) -> float:
        parts = [(results[n].double() - exact[n]).square().mean().item() for n in exact]
        return math.sqrt(sum(parts))

    assert error(on_cuda(ours, config, input, hx)) <= 1.5 * error(
        on_cuda(theirs, config, input, hx)
    )


@pytest.mark.parametrize("allowed", ["ieee", "tf32"])
def test_cell(allowed: str, precision: str):
    """As exact as torch's cell, which multiplies with cuBLAS: cuDNN's setting is not its own."""
    config = Config(input_size=3, hidden_size=50, T=1, B=9)
    ours, theirs = LSTMCell(3, 50).cuda(), torch.nn.LSTMCell(3, 50).cuda()
    theirs.load_state_dict(ours.state_dict())
    x, hx = torch.randn(9, 3).cuda(), (torch.randn(9, 50).cuda(), torch.randn(9, 50).cuda())
    matmul: Any = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = allowed
    try:
        got, expected = ours(x, hx), theirs(x, hx)
    finally:
        matmul.fp32_precision = before
    error = 2 * bound(config, allowed)  # of each of the two
    torch.testing.assert_close(got, expected, rtol=error, atol=error)


def test_exact_where_cudnn_is_off(monkeypatch: pytest.MonkeyPatch):
    """nn.LSTM multiplies with cuBLAS then, by default exactly."""
    monkeypatch.setattr(torch.backends.cudnn, "enabled", False)
    check(SIZES["small"])


@pytest.mark.parametrize("name", ["plain", "packed_deep", "projected"])
def test_opcheck(name: str):
    def to_cuda(t: Any) -> Any:
        return t.cuda() if isinstance(t, Tensor) and t.is_floating_point() else t

    args = torch.utils._pytree.tree_map(to_cuda, CONFIGS[name].op_arguments())
    forward, backward = torch.ops.lstm_fast.lstm.default, torch.ops.lstm_fast.lstm_backward.default
    output, h_n, c_n, saved = forward(*args, True)
    for save in (False, True):
        torch.library.opcheck(forward, (*args, save))
    grads = [torch.randn_like(t) for t in (output, h_n, c_n)]
    torch.library.opcheck(backward, (*grads, *args, output, saved, True, True, True))


@pytest.mark.parametrize("name", ["plain", "bidirectional"])
def test_compiled_as_one_graph(name: str):
    config = CONFIGS[name]
    module, input, hx = config.module(LSTM), config.input(), config.hx()
    expected = on_cuda(module, config, input, hx)
    compiled: Any = torch.compile(module, backend="aot_eager", fullgraph=True)
    got = on_cuda(compiled, config, input, hx)
    assert_close(dict(zip(expected, got.values(), strict=True)), expected, config, 0)


def test_strided_and_empty_inputs():
    on_cpu = LSTM(4, 50, batch_first=True)
    on_device = copy.deepcopy(on_cpu).cuda()
    for x in (torch.randn(6, 3, 8)[..., ::2], torch.randn(0, 3, 4)):
        got, expected = on_device(x.cuda())[0], on_cpu(x)[0]
        got.sum().backward()
        torch.testing.assert_close(got.cpu(), expected, rtol=4e-3, atol=4e-3)


def test_a_state_on_another_device_is_refused():
    ours, theirs = LSTM(3, 4).cuda(), torch.nn.LSTM(3, 4).cuda()
    x, hx = torch.randn(5, 2, 3, device="cuda"), (torch.zeros(1, 2, 4), torch.zeros(1, 2, 4))
    assert_same_error(ours, theirs, x, hx)


def test_double_backward():
    module = LSTM(2, 3, dtype=torch.float64).cuda()
    x = torch.randn(4, 2, 2, dtype=torch.float64, device="cuda", requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: module(x)[0], x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype: torch.dtype):
    ours, theirs = LSTM(3, 20, 2).cuda(), torch.nn.LSTM(3, 20, 2).cuda()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(7, 4, 3, device="cuda")
    with torch.autocast("cuda", dtype):
        got, expected = ours(x)[0], theirs(x)[0]
    assert got.dtype == expected.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(got, expected, rtol=4 * eps, atol=4 * eps)


@pytest.mark.parametrize("name", SIZES)
def test_bits_are_the_same_in_every_run(name: str, precision: str):
    config = SIZES[name]
    module, input, hx = config.module(LSTM), config.input(), config.hx()
    first = on_cuda(module, config, input, hx)
    for _ in range(3):
        for key, result in on_cuda(module, config, input, hx).items():
            assert torch.equal(result, first[key]), key


@pytest.mark.parametrize("name", SIZES)
def test_nothing_waits_for_the_device(name: str):
    config = SIZES[name]
    module, x = config.module(LSTM).cuda(), config.input().cuda()
    module(x)[0].sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        module(x)[0].sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_work_is_on_the_current_stream():
    config = SIZES["long"]
    module, x = config.module(LSTM).cuda(), config.input().cuda()
    expected = module(x)[0]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # what follows on this stream comes late
        late = torch.zeros_like(x).copy_(x)
        output = module(late)[0]
    stream.synchronize()
    assert torch.equal(output, expected)


def test_grids_on_two_streams():
    """Blocks that wait for each other are on the device together, whatever else is there."""
    config = SIZES["grid"]
    module, x = config.module(LSTM).cuda(), config.input().cuda()
    expected = module(x)[0]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(4)]
    outputs = []
    for _ in range(20):
        for stream in streams:
            with torch.cuda.stream(stream):
                outputs.append(module(x)[0])
    torch.cuda.synchronize()
    assert all(torch.equal(output, expected) for output in outputs)


@pytest.mark.parametrize("name", [*SIZES, "packed", "deep_projected"])
def test_cuda_graph(name: str):
    config = (CONFIGS | SIZES)[name]
    module, x = config.module(LSTM).cuda(), config.input().cuda()
    packed = config.pack(x)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        module(packed)
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        captured = module(packed)[1][0]
    x_new = torch.randn_like(x)
    (packed.data if isinstance(packed, PackedSequence) else packed).copy_(
        config.pack(x_new).data if isinstance(packed, PackedSequence) else x_new
    )
    graph.replay()
    torch.testing.assert_close(captured, module(packed)[1][0], rtol=0, atol=0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one device")
def test_device_of_the_tensors_is_used():
    module, x = LSTM(3, 20).to("cuda:1"), torch.randn(5, 2, 3, device="cuda:1")
    assert module(x)[0].device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="no compute-sanitizer")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_compute_sanitizer(tool: str):
    code = (
        "import torch; from lstm_fast import LSTM\n"
        "for H in (20, 96, 130, 300, 600):\n"
        "  m = LSTM(3, H, 2, bidirectional=True).cuda()\n"
        "  m(torch.randn(5, 9, 3, device='cuda'))[0].sum().backward()\n"
        # Weight gradients in many parts: of 64 columns more than of 65.
        "m = LSTM(64, 32, layer_norm=True).cuda()\n"
        "m(torch.randn(2, 12800, 64, device='cuda'))[0].sum().backward()\n"
        "torch.cuda.synchronize()"
    )
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable]
    # What torch keeps of the device's memory is one allocation for the tool, with no ends inside.
    result = subprocess.run(
        [*command, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    )
    if "Device not supported" in result.stdout:
        pytest.skip("compute-sanitizer does not support this device")
    assert result.returncode == 0, result.stdout[-3000:]


@pytest.mark.parametrize("name", ["layer_norm", "all"])
def test_options(name: str):
    """Layers with what torch.nn.LSTM lacks, against the same on the CPU."""
    module = make(**STACK, **OPTIONS[name]).eval()
    x, reset = torch.randn(9, 7, I, dtype=torch.float64), torch.rand(9, 7) < 0.3
    on_device = copy.deepcopy(module).cuda()
    expected, got = module(x, reset=reset), on_device(x.cuda(), reset=reset.cuda())
    for a, b in zip(parts(got), parts(expected), strict=True):
        torch.testing.assert_close(a.cpu(), b)
    for results in (parts(expected), parts(got)):
        torch.cat([t.flatten() for t in results]).sum().backward()
    for a, b in zip(on_device.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(a.grad.cpu(), b.grad)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, [9, 2, 5, 1, 7, 7, 3], enforce_sorted=False)
    for a, b in zip(parts(on_device(packed.cuda())), parts(module(packed)), strict=True):
        torch.testing.assert_close(a.cpu(), b)
    lengths = torch.tensor([0, 9, 3, 0, 1, 2, 5])
    both = on_device(x.cuda(), lengths=lengths), module(x, lengths=lengths)
    for a, b in zip(*map(parts, both), strict=True):
        torch.testing.assert_close(a.cpu(), b)
    on_device.train()(x.cuda(), reset=reset.cuda())[0].sum().backward()
