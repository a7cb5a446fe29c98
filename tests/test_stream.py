"""`Stream` against the module that it was made of."""

import functools
import gc
import weakref
from typing import Any
from unittest import mock

import numpy
import pytest
import torch

import lstm_fast

T = 7


def run(stream: lstm_fast.Stream, x: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.from_numpy(stream.step(row.numpy())) for row in x])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    ("B", "options"),
    [
        (1, {}),
        (3, {"num_layers": 2}),
        (1, {"bias": False}),
        (2, {"num_layers": 2, "proj_size": 5}),
        (70, {"num_layers": 3}),
    ],
)
def test_is_the_module(B: int, options: dict[str, Any], dtype: torch.dtype):
    module = lstm_fast.LSTM(4, 33, dtype=dtype, **options)
    x = torch.randn(T, B, 4, dtype=dtype)
    with torch.no_grad():
        expected, (h, c) = module(x)
        changed = 2 * x
    stream = lstm_fast.Stream(module, B)
    torch.testing.assert_close(run(stream, x), expected)
    for got, state in zip(stream.state, (h, c), strict=True):
        torch.testing.assert_close(torch.from_numpy(got), state)

    stream.state = h.numpy(), c.numpy()
    with torch.no_grad():
        torch.testing.assert_close(run(stream, changed), module(changed, (h, c))[0])
    stream.reset()
    torch.testing.assert_close(run(stream, x), expected)


@pytest.mark.usefixtures("deterministic")
def test_rows_do_not_depend_on_each_other():
    module = torch.nn.LSTM(4, 70)
    x = torch.randn(T, 50, 4)
    together = run(lstm_fast.Stream(module, 50), x)
    assert torch.equal(run(lstm_fast.Stream(module), x[:, 17:18].contiguous()), together[:, 17:18])


@pytest.mark.parametrize("B", [1, 50])
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l1", "bias_hh_l1"])
def test_weights_changed_in_place_are_seen(name: str, B: int):
    module = torch.nn.LSTM(4, 70, num_layers=2)
    stream = lstm_fast.Stream(module, B)
    x = torch.randn(T, B, 4)
    before = run(stream, x)
    module.get_parameter(name).data[-1].mul_(2)
    stream.reset()
    after = run(stream, x)
    assert not torch.equal(after, before)
    with torch.no_grad():
        torch.testing.assert_close(after, module(x)[0])


@pytest.mark.parametrize("B", [1, 50])
def test_weights_that_torch_moves_are_found(B: int):
    module = torch.nn.LSTM(4, 70)
    stream = lstm_fast.Stream(module, B)
    x = torch.randn(T, B, 4)
    before = run(stream, x)
    pointers = [p.data_ptr() for p in module.parameters()]
    module.share_memory()
    assert pointers != [p.data_ptr() for p in module.parameters()]
    others = [torch.full_like(p, 1e3) for p in module.parameters()]  # where these were, perhaps
    stream.reset()
    torch.testing.assert_close(run(stream, x), before, rtol=0, atol=0)
    del others
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(2)
        expected = module(x)[0]
    stream.reset()
    torch.testing.assert_close(run(stream, x), expected)


@pytest.mark.parametrize("B", [1, 50])
def test_weights_given_other_memory_are_found(B: int):
    module = torch.nn.LSTM(4, 70)
    stream = lstm_fast.Stream(module, B)
    x = torch.randn(T, B, 4)
    run(stream, x)
    doubled = 2 * torch.nn.utils.parameters_to_vector(module.parameters())
    torch.nn.utils.vector_to_parameters(doubled, module.parameters())
    stream.reset()
    with torch.no_grad():
        torch.testing.assert_close(run(stream, x), module(x)[0])
    for other in (torch.float64, torch.bfloat16):
        module.to(other)
        with pytest.raises(RuntimeError, match="a weight of the module has another dtype"):
            run(stream, x)
    module.float()
    stream.reset()
    with torch.no_grad():
        torch.testing.assert_close(run(stream, x), module(x)[0])


def test_weights_are_freed_after_their_last_reader():
    module = torch.nn.LSTM(4, 8)
    array = numpy.zeros((32, 4), "float32")
    module.weight_ih_l0 = torch.nn.Parameter(torch.from_numpy(array))
    alive = weakref.ref(array)
    stream = lstm_fast.Stream(module)
    del module, array
    gc.collect()
    assert alive() is not None
    del stream
    assert alive() is None


@pytest.mark.parametrize(
    "compute",
    [
        torch.nn.utils.parametrizations.weight_norm,
        torch.nn.utils.weight_norm,
        torch.nn.utils.spectral_norm,
        functools.partial(torch.nn.utils.prune.l1_unstructured, amount=0.3),
    ],
    ids=["parametrized", "weight_norm", "spectral_norm", "pruned"],
)
@pytest.mark.parametrize("kind", [torch.nn.LSTM, lstm_fast.LSTM])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_computed_weights_are_those_of_now(kind: type[torch.nn.LSTM], compute: Any):
    module = kind(4, 5).eval()
    compute(module, "weight_hh_l0")
    module(torch.zeros(1, 1, 4))
    for p in module.parameters():
        p.data.add_(0.2)
    x = torch.randn(T, 1, 4)
    got = run(lstm_fast.Stream(module), x)
    output, _ = lstm_fast.InferenceSession(module).run(x.numpy())
    with torch.no_grad():
        expected = module(x)[0]
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.from_numpy(output), expected)


def test_numbers_too_large_for_a_matrix_unit():
    module = torch.nn.LSTM(4, 70)
    stream = lstm_fast.Stream(module, 50)
    x = torch.randn(T, 50, 4)
    x[2, 10, 3], x[4, 20, 1] = 1e30, torch.nan
    with torch.no_grad():
        expected, _ = module(x)
    got = run(stream, x)
    torch.testing.assert_close(got, expected, equal_nan=True)
    assert expected.isnan().any()
    module.get_parameter("weight_hh_l0").data[0, 0] = 1e30
    stream.reset()
    with torch.no_grad():
        torch.testing.assert_close(run(stream, x), module(x)[0], equal_nan=True)


def test_outlives_the_module():
    module = torch.nn.LSTM(4, 8)
    x = torch.randn(T, 1, 4)
    with torch.no_grad():
        expected = module(x)[0]
    stream = lstm_fast.Stream(module)
    del module
    torch.testing.assert_close(run(stream, x), expected)


def test_step_is_a_method_that_a_subclass_may_override():
    class Doubled(lstm_fast.Stream):
        def step(self, input: Any) -> Any:
            return 2 * super().step(input)

    class Inherited(Doubled):
        pass

    module = torch.nn.LSTM(4, 5)
    x = numpy.ones((1, 4), "float32")
    once = lstm_fast.Stream(module).step(input=x)
    for kind in (Doubled, Inherited):
        numpy.testing.assert_array_equal(kind(module).step(input=x), 2 * once)

    assert "[B, P]" in (lstm_fast.Stream.step.__doc__ or "")
    mocked = mock.create_autospec(lstm_fast.Stream, instance=True)
    mocked.step(x)
    with pytest.raises(TypeError, match="too many positional arguments"):
        mocked.step(x, x)


def mixed(other: Any) -> torch.nn.LSTM:
    """An LSTM of which one weight has another dtype or device."""
    module = torch.nn.LSTM(2, 3)
    module.weight_hh_l0 = torch.nn.Parameter(module.get_parameter("weight_hh_l0").to(other))
    return module


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (torch.nn.GRU(2, 3), TypeError, "module must be a torch.nn.LSTM, got GRU"),
        (torch.nn.LSTM(2, 3, bidirectional=True), ValueError, "one direction"),
        (torch.nn.LSTM(2, 3, dtype=torch.bfloat16), ValueError, "float32 or float64"),
        (mixed(torch.float64), ValueError, "float32 or float64"),
        (mixed("meta"), ValueError, "on the CPU"),
        (torch.nn.LSTM(2, 3, device="meta"), ValueError, "on the CPU"),
        (lstm_fast.LSTM(2, 3, zoneout=0.1), ValueError, "no options beyond .* zoneout"),
    ],
)
def test_what_cannot_be_streamed(module: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        lstm_fast.Stream(module)


def test_wrong_arguments():
    module = torch.nn.LSTM(2, 3)
    with pytest.raises(ValueError, match="batch_size must be a positive whole number, got 0"):
        lstm_fast.Stream(module, 0)
    stream = lstm_fast.Stream(module, 4)
    with pytest.raises(ValueError, match=r"input must be of shape \[4, 2\]"):
        stream.step(numpy.zeros((3, 2), "float32"))
    for wrong, message in (
        (numpy.zeros((4, 2), "float64"), "input must be a NumPy array of float32, got one of f"),
        (numpy.zeros((4, 2), ">f4"), "input must be a NumPy array of float32, got one of >f4"),
        ([[0.0, 0.0]] * 4, "input must be a NumPy array of float32, got list"),
        (numpy.zeros((4, 3, 2), "float32")[:, 1], "input must be C-contiguous"),
    ):
        with pytest.raises(TypeError, match=message):
            stream.step(wrong)  # type: ignore[arg-type]
    h, c = stream.state
    for state, message in (
        ((h.astype("float64"), c), "h must be a NumPy array of float32, got one of float64"),
        ((h, torch.from_numpy(c)), "c must be a NumPy array of float32, got Tensor"),
        ((h, c, c), "state must be a pair of arrays"),
        (numpy.stack((h, c)), "state must be a pair of arrays"),
    ):
        with pytest.raises(TypeError, match=message):
            stream.state = state  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"c must be of shape \[1, 4, 3\]"):
        stream.state = numpy.zeros((1, 4, 3), "float32"), numpy.zeros((4, 3), "float32")


@pytest.mark.parametrize("rows", [2**40, 2**55, 2**60, 2**70])
def test_a_batch_beyond_memory(rows: int):
    with pytest.raises(MemoryError, match=f"batch_size={rows} takes more memory"):
        lstm_fast.Stream(torch.nn.LSTM(2, 3), rows)
