"""Threads that share packing and steps: the same bits as one, and no team that waits forever."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import lstm_fast
from tests.source_tree import run_python

SHAPES = [
    # B, T, I, H, and further arguments of the layer
    (2, 9, 30, 400, {"num_layers": 2}),
    (3, 9, 30, 400, {"bidirectional": True}),
    (16, 6, 40, 200, {}),
    (4, 2, 8, 384, {}),  # so few rows that backward reads the weights as they are
    (16, 6, 40, 200, {"dtype": torch.bfloat16}),
    (16, 6, 40, 200, {"proj_size": 90}),
    (16, 6, 40, 200, {"layer_norm": True}),
    # Layers that threads take one behind the other, by turns if there are more of these.
    (1, 130, 8, 40, {"num_layers": 2}),
    (1, 130, 50, 40, {"num_layers": 3}),
    (1, 130, 50, 40, {"num_layers": 3, "recompute_gates": True}),
    (1, 130, 50, 40, {"num_layers": 4, "proj_size": 30}),
    (1, 130, 8, 40, {"num_layers": 3, "dtype": torch.float64}),
    (1, 130, 8, 40, {"num_layers": 3, "dtype": torch.bfloat16}),
    (1, 8, 40, 150, {"num_layers": 2}),
    (2, 130, 8, 40, {"num_layers": 3}),
]


@pytest.fixture(params=SHAPES, ids=lambda shape: "-".join(map(str, [*shape[:4], *shape[4]])))
def case(request):
    B, T, I, H, options = request.param  # noqa: E741
    torch.manual_seed(0)
    module = lstm_fast.LSTM(I, H, **options)
    runs = module.num_layers * (1 + module.bidirectional)
    shapes = (T, B, I), (runs, B, module.proj_size or H), (runs, B, H)
    return module, [torch.randn(shape).to(options.get("dtype", torch.float32)) for shape in shapes]


def forward_and_backward(module, inputs):
    x, h0, c0 = inputs = [t.clone().requires_grad_() for t in inputs]
    output, state = module(x, (h0, c0))
    loss = output.square().sum() + state[1].sum()
    grads = torch.autograd.grad(loss, [*inputs, *module.parameters()])
    return [output, *state, *grads]


@pytest.mark.usefixtures("deterministic")
def test_the_number_of_threads_changes_no_bit(case):
    module, inputs = case
    torch.set_num_threads(1)
    expected = forward_and_backward(module, inputs)
    for count in (2, 3, 4, 8):
        torch.set_num_threads(count)
        for _ in range(20):
            for e, g in zip(expected, forward_and_backward(module, inputs), strict=True):
                assert torch.equal(e, g)


def test_more_teams_than_cores(case):
    """Members that another thread keeps from running are waited for, or done without."""
    module, inputs = case
    torch.set_num_threads(2)
    expected = forward_and_backward(module, inputs)
    with ThreadPoolExecutor(6) as pool:
        for got in pool.map(lambda _: forward_and_backward(module, inputs), range(30)):
            for e, g in zip(expected, got, strict=True):
                torch.testing.assert_close(g, e)


PAUSES = '''
import threading, time, torch, lstm_fast
from pathlib import Path
torch.set_num_threads(2)
module = lstm_fast.LSTM(8, 64, 2)
long, short = torch.randn(24, 512, 8), torch.randn(48, 1, 8)
def times_asleep():
    """How often other threads have, after a pause in which they do."""
    time.sleep(0.5)
    tasks = Path("/proc/self/task").iterdir()
    others = [task / "status" for task in tasks if task.name != str(threading.get_native_id())]
    lines = [line for status in others for line in status.read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary"))
with torch.no_grad():
    module(long)
    expected, _ = module(short)
    before = times_asleep()
    output, _ = module(short)
    assert torch.equal(output, expected)
    assert times_asleep() == before, "a short call woke threads"
    module(long)
    after = times_asleep()
    assert after > before, "a long one did not"
    end = time.monotonic() + 0.1
    while time.monotonic() < end:
        module(short)
    assert times_asleep() > after, "nor did many short ones"
'''


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="tells of no threads")
def test_a_short_call_after_a_pause_wakes_no_thread():
    run = run_python("-c", PAUSES)
    assert run.returncode == 0, run.stderr
