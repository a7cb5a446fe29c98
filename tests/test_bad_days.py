"""Numbers, memory layouts, sizes and moments that go wrong: what nn.LSTM makes of them, we make."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import register_multi_grad_hook
from torch.utils._pytree import tree_leaves

import lstm_fast
from lstm_fast import LSTM, LSTMCell, Stream
from tests import sample_inputs
from tests.processes import resident
from tests.sample_inputs import CONFIGS, Config, assert_all_close

T, B, I, H = 7, 5, 4, 6  # noqa: E741
CLOSE = Config(T=T, B=B, input_size=I, hidden_size=H, num_layers=2)
twins = functools.partial(sample_inputs.twins, LSTM, input_size=I, hidden_size=H, num_layers=2)


def results(module: nn.LSTM, x: Tensor, hx: Any = None) -> dict[str, Tensor]:
    """Outputs, and the gradients of their sum of squares."""
    x = x.detach().requires_grad_()
    output, (h_n, c_n) = module(x, hx)
    loss = output.square().sum() + h_n.sum() + c_n.sum()
    grads = torch.autograd.grad(loss, (x, *module.parameters()))
    return {"output": output, "h_n": h_n, "c_n": c_n} | {str(i): g for i, g in enumerate(grads)}


SPECIAL = [float("nan"), float("inf"), -float("inf"), 3e38, -1e30, 1e4, 1e-40, -1e-45, 0.0]


@pytest.mark.parametrize("value", SPECIAL)
@pytest.mark.parametrize("everywhere", [False, True], ids=["one", "all"])
@pytest.mark.parametrize("where", ["input", "h0", "c0"])
def test_special_numbers(value: float, everywhere: bool, where: str):
    """NaN and infinities come out where nn.LSTM has them; everything finite is as close.

    A gate errs by its precision, so that a gradient, which is gates times inputs, errs by as much
    times the largest input; and nothing times infinity is NaN where next to nothing is infinite.
    """
    ours, theirs = twins()
    arguments = {
        "input": torch.randn(T, B, I),
        "h0": torch.randn(2, B, H),
        "c0": torch.randn(2, B, H),
    }
    target = arguments[where]
    target[... if everywhere else (1, 2, 3)] = value
    hx = arguments["h0"], arguments["c0"]
    with torch.no_grad():
        assert_all_close(ours(arguments["input"], hx), theirs(arguments["input"], hx), CLOSE)
    got, expected = (results(m, arguments["input"], hx) for m in (ours, theirs))
    scale = abs(value) if 1 < abs(value) < float("inf") else 1.0
    for name in got:
        a, b = (
            torch.where(t[name].isfinite(), t[name] / scale, float("nan")) for t in (got, expected)
        )
        assert_all_close(a, b, CLOSE)


@pytest.mark.parametrize("value", SPECIAL)
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l1"])
def test_special_weights(value: float, name: str):
    ours, theirs = twins()
    with torch.no_grad():
        for module in (ours, theirs):
            getattr(module, name)[3] = value
    x = torch.randn(T, B, I)
    assert_all_close(ours(x), theirs(x), CLOSE)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_row_stays_alone(value: float):
    """The other rows of its batch, and the steps before, have the bits they have without it."""
    ours, _ = twins()
    good = torch.randn(T, B, I)
    bad = good.clone()
    bad[3, 2, 1] = value
    with torch.no_grad():
        clean, dirty = ours(good)[0], ours(bad)[0]
    others = [0, 1, 3, 4]
    assert torch.equal(clean[:, others], dirty[:, others])
    assert torch.equal(clean[:3], dirty[:3])
    assert not torch.equal(clean[3:, 2], dirty[3:, 2])


@pytest.mark.parametrize("shape", [(T, 0, I), (1, 1, I)])
def test_empty_batches(shape: tuple[int, ...]):
    ours, theirs = twins()
    x = torch.randn(shape)
    assert_all_close(results(ours, x), results(theirs, x), CLOSE)


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, {"input_size": 64, "hidden_size": 256}),
        (torch.float32, {"input_size": 3, "hidden_size": 256, "num_layers": 2}),
        (torch.float64, {"input_size": 64, "hidden_size": 200, "bidirectional": True}),
        (torch.bfloat16, {"input_size": 64, "hidden_size": 400}),
        (torch.float16, {"input_size": 64, "hidden_size": 400}),
    ],
)
@pytest.mark.parametrize("T", [1, T])
def test_empty_batches_of_large_layers(T: int, dtype: torch.dtype, options: dict[str, Any]):
    """Whose inputs would be summed for several steps at once."""
    module = LSTM(**options, dtype=dtype)
    # The memory of their gradients holds zeros then only if they are written.
    module(torch.full((T, 3, options["input_size"]), torch.nan, dtype=dtype))[0].sum().backward()
    module.zero_grad()
    x = torch.empty(T, 0, options["input_size"], dtype=dtype, requires_grad=True)
    output, (h_n, c_n) = module(x)
    width = module.hidden_size * (1 + module.bidirectional)
    assert output.shape == (T, 0, width)
    assert (
        h_n.shape
        == c_n.shape
        == (module.num_layers * (1 + module.bidirectional), 0, module.hidden_size)
    )
    output.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters())
    with torch.no_grad():
        assert module(x)[0].shape == (T, 0, width)


def test_weights_are_replaced_while_others_call():
    """As a server does that loads new ones."""
    torch.set_num_threads(1)
    module, x = LSTM(8, 64).requires_grad_(False), torch.randn(9, 40, 8)
    over = threading.Event()

    def call() -> None:
        with torch.no_grad():
            while not over.is_set():
                module(x)

    callers = [threading.Thread(target=call) for _ in range(8)]
    for caller in callers:
        caller.start()
    for _ in range(10_000):
        module.weight_ih_l0 = torch.nn.Parameter(torch.ones(256, 8), requires_grad=False)
    over.set()
    for caller in callers:
        caller.join()


def strided(tensor: Tensor) -> dict[str, Tensor]:
    """The numbers of a 3-D tensor in other layouts."""
    a, b, c = tensor.shape
    gaps = torch.full((2 * a, b + 1, 3 * c + 1), float("nan"))
    gaps[::2, :-1, 1::3] = tensor
    return {
        "gaps": gaps[::2, :-1, 1::3],
        "offset": torch.cat([torch.ones(3), tensor.flatten()])[3:].view(a, b, c),
        "transposed": tensor.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        "batch first": tensor.transpose(0, 1).contiguous().transpose(0, 1),
    }


@pytest.mark.parametrize("layout", ["gaps", "offset", "transposed", "batch first"])
def test_layouts(layout: str):
    """Of every tensor that goes in: input, states, weights and the gradients of the results."""
    ours, _ = twins()
    tensors = [torch.randn(T, B, I), torch.randn(2, B, H), torch.randn(2, B, H)]
    other = LSTM(I, H, num_layers=2)
    for name, p in ours.named_parameters():
        moved = strided(p.detach()[None] if p.dim() == 2 else p.detach()[None, None])[layout]
        setattr(other, name, nn.Parameter(moved.view_as(p) if p.dim() == 2 else moved[0, 0]))
    grad = torch.randn(T, B, H)
    found = []
    for module, (x, h0, c0, grad_output) in (
        (ours, (*tensors, grad)),
        (other, [strided(t)[layout] for t in (*tensors, grad)]),
    ):
        x = x.detach().requires_grad_()
        output, state = module(x, (h0, c0))
        leaves = (x, *module.parameters())
        found.append((output, state, torch.autograd.grad(output, leaves, grad_output)))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_zero_strides():
    """Expanded tensors: one row for a whole batch, one step for all of time, one number for all."""
    ours, _ = twins()
    for source in (torch.randn(T, 1, I), torch.randn(1, B, I), torch.randn(1, 1, 1)):
        x = source.expand(T, B, I)
        h0, c0 = (torch.randn(2, 1, H).expand(2, B, H) for _ in range(2))
        got = results(ours, x, (h0, c0))
        expected = results(ours, x.contiguous(), (h0.contiguous(), c0.contiguous()))
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
    leaf = torch.randn(T, 1, I, requires_grad=True)
    ours(leaf.expand(T, B, I))[0].sum().backward()
    twin = leaf.detach().expand(T, B, I).clone().requires_grad_()
    ours(twin)[0].sum().backward()
    assert twin.grad is not None
    assert_all_close(leaf.grad, twin.grad.sum(1, keepdim=True), CLOSE)


def test_overlapping_memory():
    """Windows over one series, as `unfold` makes them."""
    ours, _ = twins(input_size=1, batch_first=True)
    windows = torch.randn(40).unfold(0, T, 1)[..., None]
    torch.testing.assert_close(ours(windows), ours(windows.clone()), rtol=0, atol=0)


def test_outputs_are_not_views_of_inputs():
    ours, _ = twins()
    x, h0, c0 = torch.randn(1, B, I), torch.zeros(2, B, H), torch.zeros(2, B, H)
    output, (h_n, c_n) = ours(x, (h0, c0))
    copies = output.clone(), h_n.clone(), c_n.clone()
    for t in (x, h0, c0):
        t.fill_(7)
    torch.testing.assert_close((output, h_n, c_n), copies, rtol=0, atol=0)


def test_a_changed_input_is_noticed_in_backward():
    for module in twins():
        x = torch.randn(T, B, I)
        output, _ = module(x)
        x.zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


def test_what_is_strided_may_change_before_backward():
    for module in twins():
        given = torch.randn(T, B, 2 * I), torch.randn(2, B, 2 * H), torch.randn(2, B, 2 * H)
        gradients = []
        for changes in (False, True):
            x, h0, c0 = (t[..., ::2] for t in given)
            output, _ = module(x, (h0, c0))
            if changes:
                for t in given:
                    t.zero_()
            gradients.append(torch.autograd.grad(output.sum(), list(module.parameters())))
        torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_a_strided_inference_tensor_is_trained_on():
    with torch.inference_mode():
        x = torch.randn(T, B, 2 * I)[..., ::2]
    ours, theirs = (module(x)[0] for module in twins())
    for output in (ours, theirs):
        output.sum().backward()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("cls", [LSTM, LSTMCell])
@pytest.mark.parametrize("options", [{}, {"layer_norm": True}])
def test_gradients_enabled_in_inference_mode(cls: Any, options: dict[str, Any]):
    """They stay off."""
    module, x = cls(I, H, **options), torch.randn(*(T, B, I)[cls is LSTMCell :])
    expected = module(x)[0]
    with torch.inference_mode(), torch.enable_grad():
        got = module(x)[0]
    assert got.is_inference()
    assert not got.requires_grad
    torch.testing.assert_close(got, expected.detach(), rtol=0, atol=0)


class Blocked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        return t.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        return None


@pytest.mark.parametrize("layer", ["LSTM", "LSTMCell", "options"])
def test_no_gradient_comes_of_none(layer: str):
    """A gradient of zero would have an optimizer move the weights by their momentum."""
    x = torch.randn(T, B, I)
    for package in (torch.nn, lstm_fast) if layer != "options" else (lstm_fast,):
        if layer == "LSTMCell":
            module: Any = package.LSTMCell(I, H)
            result = module(x[0])[0]
        else:
            module = package.LSTM(I, H, **({"layer_norm": True} if layer == "options" else {}))
            result = module(x)[0]
        Blocked.apply(result).sum().backward()
        assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (LSTM, {}),
        (LSTM, {"return_cells": True}),
        (LSTMCell, {}),
        (LSTMCell, {"layer_norm": True}),
    ],
)
def test_hooks_on_results_are_called_with_gradients(cls: Any, options: dict[str, Any]):
    """Of one of the results, which alone is used."""
    module, x = cls(I, H, **options), torch.randn(*(T, B, I)[cls is LSTMCell :])
    called: list[Tensor] = []
    for used in range(len(tree_leaves(module(x)))):
        results = tree_leaves(module(x))
        for result in results:
            result.register_hook(lambda grad: grad.clamp(-0.5, 0.5))
            result.register_hook(called.append)
            result.register_hook(called.append).remove()
        called.clear()
        results[used].sum().backward()
        assert all(isinstance(grad, Tensor) for grad in called)
        assert any(torch.equal(grad, torch.full_like(results[used], 0.5)) for grad in called)


@pytest.mark.parametrize("cls", [LSTM, LSTMCell])
def test_hooks_on_several_results_at_once(cls: Any):
    """They get None for results that are not used, as of torch's modules."""
    results = tree_leaves(cls(I, H)(torch.randn(*(T, B, I)[cls is LSTMCell :])))
    called: list[Any] = []
    register_multi_grad_hook(results, called.append)
    results[-1].sum().backward()
    (grads,) = called
    assert [grad is None for grad in grads] == [True] * (len(results) - 1) + [False]


def test_backward_twice_needs_retain_graph():
    for module in twins():
        loss = module(torch.randn(T, B, I))[0].sum()
        loss.backward()
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()


@pytest.mark.parametrize(
    "options",
    [
        {"input_size": 0},
        {"hidden_size": 0},
        {"num_layers": 0},
        {"hidden_size": 2.5},
        {"dropout": 1.5},
        {"dropout": True},
        {"proj_size": -1},
        {"proj_size": H},
        {"dtype": torch.int64},
        {"nonlinearity": "relu"},
    ],
)
def test_bad_options_are_as_bad_as_in_torch(options: dict[str, Any]):
    expected = refusal(nn.LSTM, **options)
    got = refusal(LSTM, **options)
    if expected is not None:
        assert type(got) is type(expected)
        assert str(got).split(".")[-1] == str(expected).split(".")[-1]
        return
    assert options == {"input_size": 0}, "what some versions of torch take"
    ours, theirs = twins(**options)
    x = torch.randn(T, B, 0)
    assert_all_close(results(ours, x), results(theirs, x), CLOSE)


def refusal(cls: type[nn.LSTM], **options: Any) -> Exception | None:
    """What the constructor raises."""
    try:
        cls(**{"input_size": I, "hidden_size": H} | options)
    except (ValueError, TypeError, RuntimeError) as error:
        return error
    return None


def test_a_cell_without_input():
    ours, theirs = LSTMCell(0, H), nn.LSTMCell(0, H)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(B, 0)
    assert_all_close(ours(x), theirs(x), CLOSE)
    with torch.no_grad():
        assert_all_close(ours(x), theirs(x), CLOSE)


def test_sizes_beyond_32_bits_in_fakes():
    """Shapes whose numbers of elements pass 2^31 and 2^32, worked out without memory."""
    with FakeTensorMode():
        module = LSTM(1, 2**10, num_layers=2)
        for steps in (2**18, 2**20):
            output, (h_n, _) = module(torch.empty(steps, 16, 1))
            assert output.shape == (steps, 16, 2**10)
            assert output.numel() > 2**31
            output.sum().backward()
        assert h_n.shape == (2, 16, 2**10)


def available_memory() -> int:
    meminfo = Path("/proc/meminfo").read_text()
    line = next(line for line in meminfo.splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="relies on memory that is given when touched")
def test_an_input_beyond_32_bits():
    """More than 2^31 numbers, all zero but for the last rows; the zeros take no memory."""
    rows, width = 2**15 + 3, 2**16
    if available_memory() < 4 * rows * width:
        pytest.skip("needs 9 GB of memory, should the system hand it out at once")
    module = LSTM(width, 1)
    x = torch.from_numpy(np.zeros((1, rows, width), np.float32))  # torch.zeros writes them
    x[:, -2:, -3:] = 1.0
    with torch.no_grad():
        output, (_, c_n) = module(x)
        few, (_, c_few) = module(x[:, -4:])
    torch.testing.assert_close((output[:, -4:], c_n[:, -4:]), (few, c_few), rtol=0, atol=0)
    assert output[0, -1] != output[0, -3]
    assert (output[0, :-2] == output[0, 0]).all()


def run_python(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_interrupt():
    """A Ctrl-C in a long call is raised when the kernel is done; the module goes on working."""
    process = run_python("""
        import signal, torch, lstm_fast
        signal.signal(signal.SIGINT, signal.default_int_handler)  # shells' jobs ignore it
        torch.set_num_threads(1)
        module, x = lstm_fast.LSTM(4, 128), torch.randn(2000, 16, 4)
        small = x[:3]
        expected = module(small)[0]
        try:
            print("ready", flush=True)
            while True:
                module(x)[0].sum().backward()
        except KeyboardInterrupt:
            assert torch.equal(module(small)[0], expected)
            print("fine", flush=True)
    """)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGINT)
    output, errors = process.communicate()
    assert (output, process.returncode) == ("fine\n", 0), errors


OUT_OF_MEMORY = """
import resource, torch
from pathlib import Path
from lstm_fast import LSTM

def call(module, steps, dtype, is_training):
    x = torch.empty(1, dtype=dtype).expand(steps, 64, 8)
    with torch.set_grad_enabled(is_training):
        module.to(dtype)(x)

modules = LSTM(8, 256), torch.nn.LSTM(8, 256)
cases = [(dtype, grad) for dtype in (torch.float32, torch.bfloat16) for grad in (False, True)]
for case in cases:
    for module in modules:
        call(module, 2, *case)
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (60 << 20),) * 2)
for case in cases:
    for module in modules:
        try:
            call(module, 4000, *case)
        except RuntimeError as error:
            assert "DefaultCPUAllocator: can't allocate memory: you tried to" in str(error), error
        else:
            assert module is modules[1] and case[0] is torch.bfloat16, "enough memory"
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_too_little_memory_is_told_in_torchs_words():
    result = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


STREAM_OUT_OF_MEMORY = """
import resource
from pathlib import Path
import numpy, torch, lstm_fast

def limit(bytes):
    resource.setrlimit(resource.RLIMIT_AS, (bytes, -1))

module, x = torch.nn.LSTM(16, 150), numpy.ones((64, 16), "float32")
expected, refused = lstm_fast.Stream(module, 64).step(x), 0
for left in range(0, 2000, 40):  # KiB, for a first step: it lacks memory for one thing or another
    stream = lstm_fast.Stream(module, 64)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit(pages * resource.getpagesize() + left * 1024)
    try:
        output = stream.step(x)
    except MemoryError:
        limit(-1)
        refused += 1
        output = stream.step(x)
    limit(-1)
    assert (output == expected).all()
print(refused)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_stream_goes_on_when_there_is_memory_again():
    result = subprocess.run(
        [sys.executable, "-c", STREAM_OUT_OF_MEMORY],
        capture_output=True,
        text=True,
        # All memory from the system, so that what is freed leaves no slack.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "4096"},
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 10


def test_a_session_in_a_daemon_thread_lets_the_process_end():
    """Python ends threads that are there at exit by unwinding their stacks."""
    process = run_python("""
        import threading, time, numpy, torch, lstm_fast
        session = lstm_fast.InferenceSession(torch.nn.LSTM(8, 48, 2))
        x = numpy.zeros((40, 40, 8), "float32")
        def forever():
            while True:
                session.run(x)
        for _ in range(2):
            threading.Thread(target=forever, daemon=True).start()
        time.sleep(0.3)
    """)
    _, errors = process.communicate()
    assert process.returncode == 0, errors


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "kind", ["train", "infer", "packed", "cell", "refused", "options", "lengths", "stream"]
)
def test_memory_does_not_grow(kind: str):
    """10,000 calls, a leak of 100 bytes in each of which would be 1 MB."""
    module, cell = LSTM(3, 8), LSTMCell(3, 8)
    varied, stream = LSTM(3, 8, layer_norm=True, zoneout=0.1), Stream(module)
    x, step = torch.randn(4, 2, 3), torch.randn(2, 3)
    packed = CONFIGS["packed"].pack(torch.randn(5, 3, 3))
    shapes = [torch.randn(n, 2, 3) for n in range(1, 20)]
    row = np.zeros((1, 3), np.float32)

    def call(index: int) -> None:
        if kind == "train":
            module(x)[0].sum().backward()
        elif kind == "packed":
            module(packed)[0].data.sum().backward()
        elif kind == "cell":
            cell(step)[0].sum().backward()
        elif kind == "options":
            varied(x)[0].sum().backward()
        elif kind == "lengths":
            module(x, lengths=[index % 5, 3])[0].sum().backward()
        elif kind == "stream":
            stream.step(row)
        elif kind == "infer":
            with torch.no_grad():
                module(shapes[index % len(shapes)])
        else:
            with pytest.raises(RuntimeError):
                module(x[..., :2])

    repeat(call, 1000)
    before = resident()
    repeat(call, 10_000)
    assert resident() - before < 2**20


def repeat(call: Callable[[int], None], times: int) -> None:
    for index in range(times):
        call(index)


@pytest.mark.parametrize("layer", [LSTM, LSTMCell])
def test_weights_without_memory_are_refused(layer: Any):
    module = layer(3, 4)
    next(module.parameters()).untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="params must have memory"):
        module(torch.randn(2, 3))
