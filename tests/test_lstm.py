"""`lstm_fast.LSTM` beside `torch.nn.LSTM`: values, gradients, errors, all that a Module does."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import lstm_fast
from lstm_fast import LSTM, LSTMCell
from tests import sample_inputs
from tests.sample_inputs import (
    CONFIGS,
    DTYPES,
    HALVES,
    Config,
    assert_all_close,
    assert_close,
    assert_same_error,
    configs,
    forward_and_gradients,
    in_float64,
)

twins = functools.partial(sample_inputs.twins, LSTM, num_layers=2)


@settings(max_examples=150)
@given(configs())
def test_values_and_gradients(config: Config):
    torch.manual_seed(0)
    module, input, hx = config.module(LSTM), config.input(), config.hx()
    got = forward_and_gradients(module, config, input, hx)
    assert_close(got, in_float64(forward_and_gradients, module, config, input, hx), config)
    assert all(result.dtype == config.dtype for result in got.values())
    with torch.no_grad():
        output, (h_n, c_n) = module(config.pack(input), hx)
    if isinstance(output, PackedSequence):
        output = output.data
    torch.testing.assert_close(
        (output, h_n, c_n), tuple(got[name] for name in ("output", "h_n", "c_n")), rtol=0, atol=0
    )


@pytest.mark.parametrize(
    "config",
    [
        Config(input_size=40, hidden_size=50, num_layers=2, bidirectional=True, T=250, B=1),
        Config(input_size=33, hidden_size=70, proj_size=35, num_layers=3, T=100, B=1),
        Config(input_size=70, hidden_size=330, num_layers=2, T=70, lengths=(69, 70, 20)),
        Config(input_size=300, hidden_size=270, bidirectional=True, T=60, B=4, bias=False),
        Config(input_size=64, hidden_size=200, T=97, B=1, dtype=torch.float64),
    ],
)
def test_inputs_summed_before_the_steps(config: Config):
    module, input, hx = config.module(LSTM), config.input(), config.hx()
    got = forward_and_gradients(module, config, input, hx)
    assert_close(got, in_float64(forward_and_gradients, module, config, input, hx), config)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_kind_is_fused(config: Config, fused: list[None]):
    config.module(LSTM)(config.pack(config.input()), config.hx())
    assert len(fused) == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch_first", [False, True])
def test_strides_of_the_output(batch_first: bool, dtype: torch.dtype):
    ours, theirs = twins(batch_first=batch_first, bidirectional=True, dtype=dtype)
    for shape in ((3, 2, 4), (3, 4), (1, 1, 4), (0, 3, 4) if batch_first else (3, 0, 4)):
        x = torch.randn(shape).to(dtype)
        got, expected = ours(x)[0], theirs(x)[0]
        assert (got.shape, got.stride()) == (expected.shape, expected.stride())


@pytest.mark.parametrize("batch_first", [False, True])
def test_unbatched(batch_first: bool, fused: list[None]):
    ours, theirs = twins(batch_first=batch_first, proj_size=3)
    x, hx = torch.randn(6, 4), (torch.randn(2, 3), torch.randn(2, 5))
    for state in (None, hx):
        assert_all_close(ours(x, state), theirs(x, state), CONFIGS["deep"])
    assert len(fused) == 2


def test_forms_of_hx(fused: list[None]):
    ours, theirs = twins()
    x, row = torch.randn(6, 3, 4), torch.randn(2, 1, 5, requires_grad=True)
    state = row.expand(2, 3, 5)
    strided = torch.randn(3, 5, 2).permute(2, 0, 1)
    for hx in ((state, strided), [state, strided], (state, state), [strided, strided]):
        got, expected = ours(input=x, hx=hx), theirs(x, hx)
        assert_all_close(got, expected, CONFIGS["deep"])
        if hx[0] is state:
            grads = [torch.autograd.grad(out.sum(), row) for out, _ in (got, expected)]
            assert_all_close(grads[0], grads[1], CONFIGS["deep"])
    assert len(fused) == 4


@pytest.mark.parametrize("enforce_sorted", [False, True])
def test_packed_sequence(enforce_sorted: bool, fused: list[None]):
    ours, theirs = twins(bidirectional=True, batch_first=True)
    lengths = [7, 4, 4, 1] if enforce_sorted else [4, 1, 7, 4]
    packed = pack_padded_sequence(torch.randn(4, 7, 4), lengths, True, enforce_sorted)
    hx = (torch.randn(4, 4, 5), torch.randn(4, 4, 5))
    for state in (None, hx, list(hx)):
        (got, got_state), (expected, expected_state) = ours(packed, state), theirs(packed, state)
        assert isinstance(got, PackedSequence)
        assert_all_close(pad_packed_sequence(got), pad_packed_sequence(expected), CONFIGS["deep"])
        assert_all_close(got_state, expected_state, CONFIGS["deep"])
        for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
            assert getattr(got, name) is getattr(packed, name)
    assert len(fused) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("p", [0.4, 1.0])
def test_dropout_draws_the_numbers_of_torch(
    p: float, packed: bool, batch_first: bool, dtype: torch.dtype, fused: list[None]
):
    config = Config(
        num_layers=3,
        bidirectional=True,
        batch_first=batch_first,
        dtype=dtype,
        lengths=(2, 5, 4) if packed else None,
    )
    ours, theirs = twins(**config.options, dropout=p, dtype=dtype)
    input, hx = config.input(), config.hx()
    results = []
    for module in (ours, theirs):
        torch.manual_seed(1)
        results.append(forward_and_gradients(module, config, input, hx))
        results[-1]["next random numbers"] = torch.rand(5)
    assert_close(results[0], results[1], config)
    assert len(fused) == 3
    ours.eval()
    theirs.eval()
    got, expected = (forward_and_gradients(m, config, input, hx) for m in (ours, theirs))
    assert_close(got, expected, config)
    assert len(fused) == 4


X = torch.linspace(-1, 1, 24).reshape(3, 2, 4)
H = torch.linspace(-1, 1, 20).reshape(2, 2, 5)
PACKED = pack_padded_sequence(X, [3, 2])
BAD_CALLS: dict[str, tuple[Any, ...]] = {
    "wrong input_size": (X[..., :3],),
    "wrong dtype": (X.double(),),
    "integers": (X.long(),),
    "complex": (X.to(torch.complex64),),
    "no steps": (X[:0],),
    "one dimension": (X[0, 0],),
    "four dimensions": (X[None],),
    "none": (None,),
    "not a tensor": (X.numpy(),),
    "sparse": (X.to_sparse(),),
    "nested": (torch.nested.nested_tensor([X[:2, 0], X[:, 0]]),),
    "input on another device": (X.to("meta"),),
    "hx of another batch": (X, (H[:, :1], H[:, :1])),
    "hx of another size": (X, (H[..., :3], H)),
    "cx of another size": (X, (H, H[..., :3])),
    "hx of two dimensions": (X, (H[0], H[0])),
    "hx of three dimensions, unbatched": (X[0], (H, H)),
    "hx of another size, unbatched": (X[0], (H[:, 0, :3], H[:, 0])),
    "hx of another dtype": (X, (H.double(), H)),
    "cx of another dtype": (X, (H, H.double())),
    "hx on another device": (X, (H.to("meta"), H)),
    "sparse states": (X, (H.to_sparse(), H.to_sparse())),
    "three states": (X, (H, H, H)),
    "one state": (X, (H,)),
    "one tensor as state": (X, H),
    "stacked states": (X, torch.stack([H, H])),
    "dictionary as state": (X, {0: H, 1: H}),
    "no states in the pair": (X, (None, None)),
    "packed, wrong dtype": (PACKED.to(torch.float64),),
    "packed, wrong input_size": (PackedSequence(PACKED.data[:, :3], PACKED.batch_sizes),),
    "packed, three dimensions": (PackedSequence(X, PACKED.batch_sizes),),
    "packed, empty": (PackedSequence(PACKED.data[:0], PACKED.batch_sizes[:0]),),
    "packed, hx of a smaller batch": (PACKED, (H[:, :1], H[:, :1])),
    "packed, hx of a larger batch": (PACKED, (torch.ones(2, 3, 5), H)),
    "packed, hx of another size": (PACKED, (H[..., :3], H)),
    "packed, cx of another size": (PACKED, (H, H[..., :3])),
    "packed, hx of two dimensions": (PACKED, (H[0], H[0])),
    "packed, hx of another dtype": (PACKED, (H.double(), H.double())),
}


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("args", BAD_CALLS.values(), ids=BAD_CALLS)
def test_errors_are_those_of_torch(args: tuple[Any, ...], train: bool):
    with torch.set_grad_enabled(train):
        assert_same_error(*twins(), *args)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("weight_ih_l0", (20, 3)),
        ("weight_hh_l0", (20, 4)),
        ("weight_hh_l1", (16, 5)),
        ("bias_hh_l1", (19,)),
    ],
)
def test_a_parameter_of_the_wrong_shape_raises(name: str, shape: tuple[int, ...]):
    """nn.LSTM reads beyond such a parameter, or takes it for another model."""
    ours, _ = twins()
    setattr(ours, name, torch.nn.Parameter(torch.ones(shape)))
    with pytest.raises(RuntimeError, match=name[:9]):
        ours(X)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda m: m._flat_weights.pop(),
        lambda m: setattr(m, "weight_hh_l1", None),
        lambda m: setattr(m, "weight_ih_l0", torch.nn.Parameter(torch.ones(20, 4, device="meta"))),
    ],
    ids=["too few", "none", "device"],
)
@pytest.mark.parametrize("train", [False, True])
def test_bad_weights_raise_as_in_torch(break_it: Callable[[Any], Any], train: bool):
    ours, theirs = twins()
    break_it(ours)
    break_it(theirs)
    with torch.set_grad_enabled(train):
        assert_same_error(ours, theirs, X)


def test_a_deleted_parameter_is_remembered_as_in_torch():
    ours, theirs = twins()
    del ours.weight_hh_l1, theirs.weight_hh_l1
    assert_all_close(ours(X), theirs(X), CONFIGS["deep"])


def test_construction_draws_the_numbers_of_torch():
    options: dict[str, Any] = {"input_size": 3, "hidden_size": 7, "num_layers": 2, "proj_size": 2}
    states = []
    for cls in (LSTM, torch.nn.LSTM):
        torch.manual_seed(3)
        module = cls(**options, bidirectional=True)
        states.append({**module.state_dict(), "next": torch.rand(3)})
        module.reset_parameters()
        states[-1] |= {f"{name} again": p for name, p in module.named_parameters()}
    torch.testing.assert_close(*states, rtol=0, atol=0)
    with pytest.raises(ValueError, match="proj_size has to be smaller than hidden_size"):
        LSTM(3, 4, proj_size=4)


def test_is_an_lstm_of_torch():
    ours, theirs = twins(proj_size=3, batch_first=True, dropout=0.1, bidirectional=True)
    assert isinstance(ours, torch.nn.LSTM)
    assert repr(ours) == repr(theirs)
    assert [len(weights) for weights in ours.all_weights] == [5] * 4
    assert ours._flat_weights[1] is ours.weight_hh_l0
    assert ours.load_state_dict(theirs.state_dict(), strict=True)
    ours.flatten_parameters()


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"]
)
def test_copies(duplicate: Callable[[Any], Any], fused: list[None]):
    ours, _ = twins(bidirectional=True)
    ours(X)
    twin = duplicate(ours)
    torch.testing.assert_close(twin(X), ours(X), rtol=0, atol=0)
    with torch.no_grad():
        twin.weight_ih_l0.zero_()
    assert not torch.equal(twin(X)[0], ours(X)[0])
    assert type(twin) is LSTM
    assert len(fused) == 5


def test_a_loaded_module_swaps_its_class(fused: list[None]):
    _, theirs = twins()
    expected = theirs(X)
    theirs.__class__ = LSTM
    assert_all_close(theirs(X), expected, CONFIGS["deep"])

    class Client(torch.nn.LSTM):
        def forward(self, input, hx=None):
            return super().forward(input, hx)

    client = Client(4, 5)
    expected = client(X)
    client.__class__ = type("Client", (Client, LSTM), {})
    assert_all_close(client(X), expected, CONFIGS["deep"])
    assert len(fused) == 2


def scale_data(module: Any) -> None:
    module.weight_hh_l0.data.mul_(3)


def replace_parameter(module: Any) -> None:
    module.bias_ih_l1 = torch.nn.Parameter(torch.ones(20))


def replace_data(module: Any) -> None:
    module.weight_ih_l1.data = torch.ones(20, 5)


def drop_weights(module: Any) -> None:
    raw = module.weight_hh_l0
    del module.weight_hh_l0
    module.weight_hh_l0 = raw.detach() * 0.5


def weight_norm(module: Any) -> None:
    parametrizations.weight_norm(module, "weight_hh_l0")
    with torch.no_grad():
        module.parametrizations.weight_hh_l0.original0.mul_(2)


def prune_weights(module: Any) -> None:
    mask = torch.arange(20 * 5).reshape(20, 5) % 3 > 0
    prune.custom_from_mask(module, "weight_hh_l0", mask)


def load(module: Any) -> None:
    module.load_state_dict({name: p * 2 for name, p in module.state_dict().items()}, assign=True)


CHANGES = [
    scale_data,
    replace_parameter,
    replace_data,
    drop_weights,
    weight_norm,
    prune_weights,
    load,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_changed_weights_are_seen(
    change: Callable[[Any], None], mode: Callable[[], Any], fused: list[None]
):
    ours, theirs = twins()
    with mode():
        before = ours(X)[0]
    change(ours)
    change(theirs)
    with mode():
        got, expected = ours(X), theirs(X)
    assert_all_close(got, expected, CONFIGS["deep"])
    assert not torch.allclose(got[0], before)
    assert len(fused) == 2


def test_weights_changed_in_every_call():
    """As weight drop does: a tensor of the graph, set as attribute before each forward."""
    ours, theirs = twins()
    for module in (ours, theirs):
        raw = torch.nn.Parameter(module.weight_hh_l0.detach().clone())
        del module.weight_hh_l0
        module.raw = raw
    for scale in (0.5, 2.0):
        losses = []
        for module in (ours, theirs):
            module.weight_hh_l0 = module.raw * scale
            losses.append(module(X)[0].sum())
        grads = [
            torch.autograd.grad(loss, m.raw) for loss, m in zip(losses, (ours, theirs), strict=True)
        ]
        assert_all_close(grads[0], grads[1], CONFIGS["deep"])


def test_functional_call(fused: list[None]):
    ours, theirs = twins()
    params = {name: p.detach() * 2 for name, p in ours.named_parameters()}
    got = torch.func.functional_call(ours, params, (X,))
    assert_all_close(got, torch.func.functional_call(theirs, params, (X,)), CONFIGS["deep"])
    assert_all_close(ours(X), theirs(X), CONFIGS["deep"])
    assert len(fused) == 2


def test_per_sample_gradients():
    ours, theirs = twins(dtype=torch.float64)
    params = dict(ours.named_parameters())

    def loss(params: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(ours, params, (sample,))[0].square().sum()

    samples = torch.randn(3, 6, 4, dtype=torch.float64)
    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))(params, samples)
    for index, sample in enumerate(samples):
        expected = torch.autograd.grad(theirs(sample)[0].square().sum(), theirs.parameters())
        got = tuple(grad[index] for grad in per_sample.values())
        assert_all_close(got, expected, replace(CONFIGS["deep"], dtype=torch.float64))


def test_jacobian_and_directional_derivative():
    ours, theirs = twins(dtype=torch.float64)
    sample = torch.randn(3, 2, 4, dtype=torch.float64)
    got = torch.func.jacrev(lambda x: ours(x)[0])(sample)
    expected = torch.autograd.functional.jacobian(lambda x: theirs(x)[0], sample)
    config = replace(CONFIGS["deep"], dtype=torch.float64)
    assert_all_close(got, expected, config)
    along = torch.func.jvp(lambda x: ours(x)[0], (sample,), (sample,))[1]
    assert_all_close(along, torch.tensordot(expected, sample, 3), config)


@pytest.mark.parametrize("name", ["deep", "bidirectional", "packed"])
def test_double_backward(name: str):
    """The gradient of a gradient penalty, as in a critic."""
    config = replace(CONFIGS[name], dtype=torch.float64)
    ours, theirs = twins(**config.options, dtype=torch.float64)
    input = config.input().requires_grad_()
    results = []
    for module in (ours, theirs):
        output = module(config.pack(input))[0]
        data = output.data if isinstance(output, PackedSequence) else output
        (grad,) = torch.autograd.grad(data.square().sum(), input, create_graph=True)
        leaves = (input, *module.parameters())
        results.append(torch.autograd.grad((grad.norm() - 1) ** 2, leaves))
    assert_all_close(results[0], results[1], config)


@pytest.mark.parametrize("numel", [1, 3 * 2**15 + 1])  # the latter by two threads
@pytest.mark.parametrize("dtype", HALVES)
def test_halves_are_rounded_as_by_torch(numel: int, dtype: torch.dtype):
    """A single step is computed in float32: cells of all kinds come in and go out."""
    ours = LSTM(1, 1).to(dtype)
    bits = torch.randint(2**16, (numel,), dtype=torch.int32).short()
    c0 = bits.view(dtype)[None, :, None]
    x, h0 = torch.randn(1, numel, 1).to(dtype), torch.zeros_like(c0)
    with torch.no_grad():
        got = ours(x, (h0, c0))[1][1]
        expected = ours.float()(x.float(), (h0.float(), c0.float()))[1][1].to(dtype)
    assert got.shape == c0.shape
    is_number = ~expected.isnan()
    assert torch.equal(~got.isnan(), is_number)
    assert torch.equal(got[is_number].view(torch.int16), expected[is_number].view(torch.int16))


def assert_halves_are_float32_rounded(dtype: torch.dtype, T: int, B: int, **options: Any) -> None:
    """The bits of results and gradients, where both make their products alike."""
    torch.manual_seed(0)
    module = LSTM(37, 70, 2, **options).to(dtype)
    twin = copy.deepcopy(module).float()
    L_D = 4 if module.bidirectional else 2
    sizes = [(T, B, 37), (L_D, B, module.proj_size or 70), (L_D, B, 70)]
    inputs = [torch.randn(size).to(dtype) for size in sizes]
    results = []
    for run, computed in ((module, dtype), (twin, torch.float32)):
        x, h0, c0 = (t.to(computed, copy=True).requires_grad_() for t in inputs)
        output, (h_n, c_n) = run(x, (h0, c0))
        with torch.no_grad():
            torch.testing.assert_close(run(x, (h0, c0)), (output, (h_n, c_n)), rtol=0, atol=0)
        torch.manual_seed(1)
        outputs = (output, h_n, c_n)
        grads = [torch.randn(t.shape).to(dtype).to(t.dtype) for t in outputs]
        wanted = (x, h0, c0, *run.parameters())
        results.append([*outputs, *torch.autograd.grad(outputs, wanted, grads)])
    for got, expected in zip(*results, strict=True):
        assert torch.equal(got, expected.to(dtype))


OPTIONS_OF_HALVES: list[dict[str, Any]] = [
    {},
    {"bidirectional": True, "bias": False},
    {"proj_size": 9},
    {"recompute_gates": True},
]


@pytest.mark.parametrize(
    ("T", "B"), [(1, 1), (1, 3), (1, 16), (1, 17), (1, 40), (3, 5), (3, 6), (40, 7)]
)
@pytest.mark.parametrize("options", OPTIONS_OF_HALVES, ids=str)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.usefixtures("deterministic")  # by float32 arithmetic, in batches of any size
def test_halves_have_the_bits_of_float32_rounded(
    T: int, B: int, options: dict[str, Any], dtype: torch.dtype
):
    assert_halves_are_float32_rounded(dtype, T, B, **options)


@pytest.mark.parametrize(("T", "B"), [(3, 5), (3, 6), (40, 7)])
@pytest.mark.parametrize("options", OPTIONS_OF_HALVES, ids=str)
def test_bfloat16_has_the_bits_of_float32_at_medium_rounded(
    T: int, B: int, options: dict[str, Any]
):
    """By products of bfloat16, on a unit for them."""
    torch.set_float32_matmul_precision("medium")
    assert_halves_are_float32_rounded(torch.bfloat16, T, B, **options)


@pytest.mark.parametrize("build", [LSTM, LSTMCell])
@pytest.mark.parametrize("options", [{}, {"zoneout": 0.1}], ids=str)
@pytest.mark.parametrize("by_autocast", [False, True])
@pytest.mark.parametrize("dtype", HALVES)
def test_precision_of_float32_is_nothing_to_halves(
    build: Any, options: dict[str, Any], by_autocast: bool, dtype: torch.dtype
):
    if options and dtype is torch.bfloat16:
        pytest.skip("computed in float32, with which the precision has to do")
    module = build(40, 70, **options).eval()
    x = torch.randn(*((30,) if build is LSTM else ()), 20, 40)
    if not by_autocast:
        module, x = module.to(dtype), x.to(dtype)
    results = []
    for precision in ("highest", "high", "medium"):
        torch.set_float32_matmul_precision(precision)
        with torch.autocast("cpu", dtype, enabled=by_autocast):
            h = module(x)[0]
        h.float().sum().backward()
        results.append([h, *(p.grad for p in module.parameters())])
        module.zero_grad()
    assert len(results) == 3
    # Where the kernels have no two parts, a float16 is multiplied as the float32 that it is.
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("T", "B", "H", "bidirectional"),
    [
        (2, 1, 20, False),
        (8, 1, 500, False),
        (4, 4, 700, False),
        (2, 1, 20, True),
        (4, 1, 500, True),
        (4, 4, 700, True),
    ],
)
@pytest.mark.parametrize("proj_size", [0, 9])
@pytest.mark.parametrize("dtype", HALVES)
def test_few_steps_of_halves_are_right(
    T: int, B: int, H: int, bidirectional: bool, proj_size: int, dtype: torch.dtype
):
    """So few that no weights are packed (suits_plain_steps in plan.cpp), on one thread."""
    torch.set_num_threads(1)
    config = Config(
        200, H, 2, bidirectional=bidirectional, proj_size=proj_size, dtype=dtype, T=T, B=B
    )
    module, input, hx = config.module(LSTM), config.input(), config.hx()
    assert "single steps" in lstm_fast.explain(module, input)
    got = forward_and_gradients(module, config, input, hx)
    exact = None if hx is None else (hx[0].double(), hx[1].double())
    twin = copy.deepcopy(module).double()
    assert_close(got, forward_and_gradients(twin, config, input.double(), exact), config)


@pytest.mark.parametrize("B", [1, 2, 16, 17, 63, 128, 129, 1025])
@pytest.mark.parametrize("sizes", [(3, 5), (37, 70), (64, 32), (161, 33)])
@pytest.mark.parametrize("with_hx", [True, False])
@pytest.mark.parametrize("dtype", HALVES)
def test_a_step_of_halves_is_right(
    B: int, sizes: tuple[int, int], with_hx: bool, dtype: torch.dtype
):
    config = Config(*sizes, 2, bidirectional=True, dtype=dtype, T=1, B=B, with_hx=with_hx)
    module, input, hx = config.module(LSTM), config.input(), config.hx()
    got = forward_and_gradients(module, config, input, hx)
    exact = None if hx is None else (hx[0].double(), hx[1].double())
    twin = copy.deepcopy(module).double()
    assert_close(got, forward_and_gradients(twin, config, input.double(), exact), config)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", ["deep", "deep_projected", "packed"])
def test_autocast(name: str, dtype: torch.dtype, fused: list[None]):
    """Results, and the gradients in float32, are those of the module converted to the dtype."""
    config = CONFIGS[name]
    module, input, hx = config.module(LSTM), config.input(), config.hx()
    with torch.autocast("cpu", dtype):
        got = forward_and_gradients(module, replace(config, dtype=dtype), input, hx)
    assert len(fused) == 1
    low = replace(config, dtype=dtype)
    converted = copy.deepcopy(module).to(dtype)
    low_hx = None if hx is None else (hx[0].to(dtype), hx[1].to(dtype))
    expected = forward_and_gradients(converted, low, input.to(dtype), low_hx)
    assert {got[name].dtype for name in ("output", "h_n", "c_n")} == {dtype}
    assert {g.dtype for name, g in got.items() if name.startswith("grad")} == {torch.float32}
    for name, result in got.items():
        torch.testing.assert_close(result.to(dtype), expected[name], rtol=0, atol=0)


def test_a_packed_batch_may_end_in_steps_of_no_sequence(fused: list[None]):
    """`mask.sum(0)` of a mask that is longer than the longest sequence."""
    x, lengths = torch.randn(6, 3, 4), torch.tensor([4, 2, 2])
    data = pack_padded_sequence(x, lengths).data
    batch_sizes = (torch.arange(6)[:, None] < lengths).sum(1)
    stock = torch.nn.LSTM(4, 5, 2, bidirectional=True)
    layer = LSTM(4, 5, 2, bidirectional=True)
    layer.load_state_dict(stock.state_dict())
    results = []
    for module in (layer, stock):
        for parameter in module.parameters():
            parameter.grad = None
        packed, state = module(PackedSequence(data, batch_sizes))
        packed.data.square().sum().backward()
        results.append((*packed[:2], *state, *[p.grad for p in module.parameters()]))
    torch.testing.assert_close(*results)
    assert len(fused) == 1
    nothing = PackedSequence(data[:0], torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(layer(nothing)[1], stock(nothing)[1])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("lengths", [None, [3, 2]])
def test_backward_keeps_no_copy_of_weights_under_autocast(dropout: float, lengths: Any):
    """Each step of a loop would keep one, where nn.LSTM keeps one for all."""
    layer, x = LSTM(4, 5, 2, dropout=dropout), torch.randn(3, 2, 4)
    loop = [layer]
    if not dropout:
        loop.append(LSTM(4, 5, 2).requires_grad_(False))  # the lower layer frozen
        loop[1].weight_hh_l1.requires_grad_()
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    for module in loop:
        kept.clear()
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", torch.bfloat16):
            output = module(x, lengths=lengths)[0]
        weights = {w.data_ptr(): w for w in module.parameters() if w.requires_grad}
        assert weights.keys() <= {t.data_ptr() for t in kept}
        copies = [t for t in kept if t.dtype is torch.bfloat16 and t.shape[:1] == (20,)]
        assert not copies
        output.float().sum().backward()
        for weight in weights.values():
            assert weight.grad is not None
            assert weight.grad.dtype is torch.float32


def test_autocast_leaves_float64_alone(fused: list[None]):
    ours, theirs = twins(dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        got, expected = ours(X.double()), theirs(X.double())
    assert got[0].dtype == torch.float64
    assert_all_close(got, expected, replace(CONFIGS["deep"], dtype=torch.float64))
    assert len(fused) == 1


def test_what_is_not_fused_falls_through(fused: list[None]):
    ours, theirs = twins(device="meta")
    got, expected = ours(X.to("meta")), theirs(X.to("meta"))
    assert (got[0].device, got[0].shape) == (expected[0].device, expected[0].shape)

    class Labelled(torch.Tensor):
        pass

    ours, theirs = twins()
    got = ours(X.as_subclass(Labelled))
    assert type(got[0]) is type(theirs(X.as_subclass(Labelled))[0])
    assert not fused
    # Torch checks a trace against the graph of another one, and its results against a call.
    traced = torch.jit.trace(ours, (X,))
    assert "lstm_fast::" not in str(traced.inlined_graph)
    assert_all_close(traced(X), theirs(X), CONFIGS["deep"])


def test_scripting():
    class Model(torch.nn.Module):
        def __init__(self, lstm: torch.nn.LSTM) -> None:
            super().__init__()
            self.lstm = lstm

        def forward(self, x: Tensor) -> Tensor:
            output, (h_n, c_n) = self.lstm(x)
            return output + h_n[-1] + c_n[-1]

    ours, theirs = twins()
    scripted = torch.jit.script(Model(ours))
    assert_all_close(scripted(X), Model(theirs)(X), CONFIGS["deep"])


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"proj_size": 3}])
def test_input_of_batch_first_may_change_before_backward(options: dict[str, Any]):
    for module in twins(batch_first=True, **options):
        x, grads = X.clone(), []
        for change in (lambda: None, x.zero_):
            output = module(x)[0]
            change()
            grads.append(torch.autograd.grad(output.sum(), tuple(module.parameters())))
        torch.testing.assert_close(*grads, rtol=0, atol=0)


def test_training_on_an_input_made_in_inference_mode():
    with torch.inference_mode():
        x = X.clone()
    ours, theirs = (module(x)[0] for module in twins(batch_first=True))
    assert_all_close(ours, theirs, CONFIGS["deep"])
    ours.sum().backward()


def test_a_number_of_layers_that_is_no_integer():
    for module in twins():
        module.num_layers = 2.0
        with torch.no_grad(), pytest.raises(TypeError):
            module(X, (torch.zeros(2, 2, 5), torch.zeros(2, 2, 5)))


def test_overridden_permutation_of_states():
    class Swapped(LSTM):
        def permute_hidden(self, hx, permutation):
            return hx[1], hx[0]

    module, hx = Swapped(4, 5), (torch.zeros(1, 2, 5), torch.ones(1, 2, 5))
    assert_all_close(module(X, hx)[0], torch.nn.LSTM.forward(module, X, hx)[0], CONFIGS["deep"])


def test_overridden_checks_are_called():
    seen = []

    class Strict(LSTM):
        def check_forward_args(self, input, hidden, batch_sizes):
            seen.append([t.shape for t in hidden])
            super().check_forward_args(input, hidden, batch_sizes)

    Strict(4, 5)(X)
    Strict(4, 5, batch_first=True)(X)
    assert seen == [[(1, 2, 5)] * 2, [(1, 3, 5)] * 2]
    with pytest.raises(RuntimeError, match="input_size"):
        Strict(4, 5)(X[..., :3])


@pytest.mark.parametrize("save", [False, True], ids=["no_grad", "grad"])
def test_export(save: bool):
    """With dynamic steps and batch."""
    ours, _ = twins(batch_first=True)
    dynamic = torch.export.Dim.DYNAMIC
    with torch.set_grad_enabled(save):
        program = torch.export.export(
            ours, (torch.randn(3, 7, 4),), dynamic_shapes=((dynamic, dynamic, None),)
        )
    with torch.no_grad():
        for shape in ((2, 5, 4), (6, 3, 4)):
            sample = torch.randn(shape)
            assert_all_close(program.module()(sample), ours(sample), CONFIGS["deep"])


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    ("cls", "options"), [(LSTM, {"num_layers": 2}), (LSTM, {"layer_norm": True}), (LSTMCell, {})]
)
def test_what_is_exported_trains(cls: Any, options: dict[str, Any], grad: bool, strict: bool):
    """With a layer that reaches the loss through ours alone, twice in the case of a cell."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), cls(4, 5, **options))
    samples = torch.randn(6, 3), torch.randn(6, 3)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor, later: Tensor) -> Tensor:
            output, state = self.model(x)
            if cls is LSTMCell:
                output, _ = self.model[1](self.model[0](later), (output, state))
            return output

    module = Model()
    with torch.set_grad_enabled(grad):
        program = torch.export.export(module, samples, strict=strict)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    exported = torch.export.load(file).module()
    weights = [dict(m.named_parameters()) for m in (module, exported)]
    assert weights[0].keys() == weights[1].keys()
    for m, params in zip((module, exported), weights, strict=True):
        m(*samples).square().sum().backward()
        assert all(p.grad is not None for p in params.values())
    for name, p in weights[0].items():
        torch.testing.assert_close(weights[1][name].grad, p.grad)


@pytest.mark.parametrize("cls", [LSTM, LSTMCell])
@pytest.mark.parametrize("options", [{}, {"layer_norm": True}])
def test_what_is_exported_is_trained_under_autocast(cls: Any, options: dict[str, Any]):
    """An input that autocast has made half, on weights that it has not."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), cls(4, 5, **options))
    x = torch.randn(2, 3) if cls is LSTMCell else torch.randn(6, 2, 3)
    exported = torch.export.export(model, (x,)).module()
    with torch.autocast("cpu", torch.bfloat16):
        got, expected = exported(x)[0], model(x)[0]
    assert got.dtype == (torch.float32 if options else torch.bfloat16)
    torch.testing.assert_close(got, expected, rtol=0, atol=0.02, check_dtype=False)
    for name, p in model.named_parameters():
        (slope,) = torch.autograd.grad(expected.sum(), p, retain_graph=True)
        p = dict(exported.named_parameters())[name]
        (found,) = torch.autograd.grad(got.sum(), p, retain_graph=True)
        torch.testing.assert_close(found, slope, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("options", [{}, {"layer_norm": True}])
def test_what_is_exported_is_transformed(options: dict[str, Any]):
    module = LSTM(4, 5, **options)
    x = torch.randn(6, 2, 4)
    exported = torch.export.export(module, (x,)).module()
    for transform in (torch.func.grad, torch.func.hessian):
        got, expected = (
            transform(lambda x, run=run: run(x)[0].square().sum())(x) for run in (exported, module)
        )
        torch.testing.assert_close(got, expected)


def test_frozen_weights():
    ours, theirs = twins()
    for module in (ours, theirs):
        module.requires_grad_(False)
        module.bias_hh_l1.requires_grad_()
        module(X)[0].sum().backward()
    assert_all_close(ours.bias_hh_l1.grad, theirs.bias_hh_l1.grad, CONFIGS["deep"])
    assert [name for name, p in ours.named_parameters() if p.grad is not None] == ["bias_hh_l1"]
