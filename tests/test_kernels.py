"""The kernel floor on NumPy arrays, on every instruction set of the host, against float64 NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lstm_fast._load import load_kernels
from tests.isas import ISAS, needs_amx, needs_dot_products
from tests.numpy_lstm import Problem, case_name, sigmoid, tolerance

_kernels: Any = load_kernels()


def run(problem, dtype, **kwargs: Any):
    """The results of the kernels, in the order of `Problem.reference`."""

    def cast(array):
        return None if array is None else array.astype(dtype)

    def packed(array):
        """[N, C] as the kernels take it: packed with lengths, else [T, B, C]."""
        array = array.astype(dtype)
        return array if problem.lengths else array.reshape(problem.T, problem.B, -1)

    batch_sizes = problem.batch_sizes if problem.lengths else None
    params = [p.astype(dtype) for p in problem.params]
    common = (batch_sizes, cast(problem.h0), cast(problem.c0))
    x = packed(problem.x)
    y, h_n, c_n, saved = _kernels.lstm(x, params, *common, save=True, **problem.options(), **kwargs)
    grads = _kernels.lstm_backward(
        packed(problem.grad_y),
        cast(problem.grad_h_n),
        cast(problem.grad_c_n),
        x,
        params,
        *common,
        y,
        saved,
        **problem.options(),
        **kwargs,
    )
    inference = _kernels.lstm(x, params, *common, **problem.options(), **kwargs)
    for trained, inferred in zip((y, h_n, c_n), inference, strict=False):
        np.testing.assert_array_equal(trained, inferred)
    grad_x, grad_h0, grad_c0, grad_params = grads
    flat = [y, h_n, c_n, grad_x, grad_h0, grad_c0, *grad_params]
    return [a.reshape(problem.N, -1) if i in (0, 3) else a for i, a in enumerate(flat)]


PROBLEMS = [
    Problem(T=1, B=1, I=1, H=1),
    Problem(T=1, B=9, I=19, H=37, L=2, D=2),
    Problem(T=1, B=2, I=3, H=33, P=5, L=2),
    Problem(T=1, B=40, I=70, H=100, states=False, biases=False),
    Problem(T=5, B=1, I=3, H=17, states=False),
    Problem(T=7, B=13, I=8, H=32, L=2),
    Problem(T=4, B=3, I=31, H=33, D=2, biases=False),
    Problem(T=6, B=7, I=2, H=50, L=3, D=2, states=False),
    Problem(T=3, B=9, I=100, H=100, L=2),
    Problem(T=150, B=2, I=5, H=20),  # more rows than a block of the weight gradients
    Problem(T=70, B=23, I=5, H=21, L=2, D=2),  # than a chunk, like the next one
    Problem(T=40, B=60, I=3, H=13, P=6, lengths=[40] * 20 + list(range(40, 0, -1))),
    Problem(T=5, B=6, I=4, H=16, P=1, L=2, D=2),
    Problem(T=5, B=6, I=4, H=33, P=19, L=2),
    Problem(T=9, B=5, I=7, H=31, L=2, D=2, lengths=[9, 9, 4, 2, 1]),
    Problem(T=9, B=5, I=7, H=18, P=3, D=2, lengths=[9, 6, 6, 3, 3], states=False),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("problem", PROBLEMS, ids=case_name)
def test_matches_numpy(problem, dtype, isa):
    expected = problem.reference
    got = run(problem, dtype, isa=isa)
    for e, g in zip(expected, got, strict=True):
        scale = max(1.0, np.abs(e).max())
        np.testing.assert_allclose(g, e, rtol=0, atol=tolerance(problem, dtype) * scale)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("H", range(1, 33))
def test_units_that_leave_lanes_idle(H, dtype, isa):
    """Their gates share vectors, and so do rows then: any number of units and of rows."""
    problem = Problem(T=18, B=18, I=2, H=H, lengths=list(range(18, 0, -1)))
    for e, g in zip(problem.reference, run(problem, dtype, isa=isa), strict=True):
        scale = max(1.0, np.abs(e).max())
        np.testing.assert_allclose(g, e, rtol=0, atol=tolerance(problem, dtype) * scale)


# So few steps that no weights are packed (suits_plain_steps in plan.cpp), where rows need not be
# summed as in any batch: the last two of them leave every second cache.
FEW_STEPS = [
    Problem(T=2, B=1, I=3, H=17, L=2),
    Problem(T=8, B=1, I=140, H=133, P=119, L=2, states=False),
    Problem(T=5, B=1, I=200, H=300, biases=False),
    Problem(T=2, B=1, I=3, H=17, D=2, P=5),
    Problem(T=3, B=4, I=200, H=750),
    Problem(T=3, B=7, I=100, H=420, L=2, D=2, states=False),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("problem", FEW_STEPS, ids=case_name)
def test_a_few_steps(problem, dtype, isa):
    for slices in (1, 2, 3):
        got = run(problem, dtype, isa=isa, parts=3, slices=slices)
        for e, g in zip(problem.reference, got, strict=True):
            scale = max(1.0, np.abs(e).max())
            np.testing.assert_allclose(g, e, rtol=0, atol=tolerance(problem, dtype) * scale)


# Large enough for work to be spread over threads, the last two over teams (plan.cpp).
SPREAD = [
    Problem(T=1, B=3, I=300, H=200),
    Problem(T=1, B=50, I=150, H=60, D=2),
    Problem(T=1, B=9, I=400, H=200, P=20),
    Problem(T=20, B=29, I=8, H=40, L=2),
    Problem(T=20, B=13, I=40, H=48, D=2, P=17),
    Problem(T=4, B=20, I=100, H=150, P=40, L=2),
    Problem(T=90, B=20, I=7, H=20, P=18, D=2),
    Problem(T=30, B=9, I=50, H=64, L=2, D=2, lengths=[30, 29, 29, 20, 20, 12, 11, 5, 1]),
    Problem(T=5, B=3, I=40, H=390, L=2),
    Problem(T=4, B=4, I=30, H=401, D=2, lengths=[4, 3, 3, 1]),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("problem", SPREAD, ids=case_name)
def test_slices_do_not_change_a_bit(problem, isa):
    whole = run(problem, np.float32, isa=isa, slices=1)
    for slices in (2, 3, 8):
        for a, b in zip(whole, run(problem, np.float32, isa=isa, slices=slices), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("problem", [*PROBLEMS, *SPREAD], ids=case_name)
def test_recomputed_gates_change_no_bit(problem, dtype, isa):
    kept = run(problem, dtype, isa=isa)
    for slices in (1, 3):
        recomputed = run(problem, dtype, isa=isa, slices=slices, recompute_gates=True)
        for a, b in zip(kept, recomputed, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("T", [1, 11])
def test_rows_do_not_depend_on_their_batch(T, isa):
    rng = np.random.default_rng(0)
    B, I, H = 37, 5, 43  # noqa: E741
    params = [
        rng.standard_normal(s).astype(np.float32)
        for s in [(4 * H, I), (4 * H, H), (4 * H,), (4 * H,)]
    ]
    x = rng.standard_normal((T, B, I)).astype(np.float32)
    whole = _kernels.lstm(x, params, isa=isa)[0]
    for rows in ([0], [36], [3, 4, 5], list(range(0, 37, 2))):
        part = _kernels.lstm(np.ascontiguousarray(x[:, rows]), params, isa=isa)[0]
        np.testing.assert_array_equal(part, whole[:, rows])


def test_vector_units_agree_to_the_bit():
    """AVX2 and AVX-512 do the same roundings in the same order."""
    others = [isa for isa in ISAS if isa.startswith("avx512")]
    if not others:
        pytest.skip("this machine has no AVX-512")
    problem = Problem(T=6, B=7, I=2, H=50, L=2, D=2)
    expected = run(problem, np.float32, isa="avx2")
    for isa in others:
        for a, b in zip(expected, run(problem, np.float32, isa=isa), strict=True):
            np.testing.assert_array_equal(a, b)


# Batches and sizes that the matrix unit is used for (unit_pays in plan.cpp), with odd tails.
FOR_THE_UNIT = [
    Problem(T=5, B=16, I=40, H=50, states=False),
    Problem(T=4, B=35, I=1, H=64, L=2, D=2),
    Problem(T=3, B=50, I=100, H=33, biases=False),
    Problem(T=40, B=17, I=45, H=77),
    Problem(T=61, B=17, I=30, H=40, L=2),  # several chunks of the weight gradients
    Problem(T=6, B=20, I=60, H=70, P=40, L=2),
    Problem(T=7, B=24, I=65, H=100, L=2, lengths=[7] * 9 + [5] * 8 + [2, 2, 2, 1, 1, 1, 1]),
    Problem(T=4, B=16, I=45, H=200),  # by two threads in a team, like the next one
    Problem(T=5, B=16, I=40, H=203, lengths=[5] * 9 + [3] * 6 + [1]),
]
# Dot products take fewer rows and terms too.
FOR_DOT_PRODUCTS = [
    *FOR_THE_UNIT,
    Problem(T=20, B=1, I=1, H=16),
    Problem(T=7, B=3, I=3, H=21, L=2, D=2),
    Problem(T=9, B=17, I=70, H=33, P=1, L=2),
]
# The instruction sets that multiply bfloat16, the parts that each takes, and their bits of
# significand: three parts are as exact as float32.
UNITS = [
    *[("amx", parts, bits, p) for parts, bits in [(3, 24), (2, 16), (1, 8)] for p in FOR_THE_UNIT],
    *[("avx512_bf16", 1, 8, p) for p in FOR_DOT_PRODUCTS],
]
on_units = pytest.mark.parametrize(
    ("isa", "parts", "bits", "problem"),
    [
        pytest.param(*unit, marks=needs_amx if unit[0] == "amx" else needs_dot_products)
        for unit in UNITS
    ],
    ids=[f"{isa}-{parts}-{case_name(problem)}" for isa, parts, _, problem in UNITS],
)


@on_units
@pytest.mark.parametrize("slices", [1, 2])
def test_products_of_bfloat16_parts(isa, parts, bits, problem, slices):
    got = run(problem, np.float32, isa=isa, parts=parts, slices=slices)
    assert any(
        (a != b).any()
        for a, b in zip(got, run(problem, np.float32, isa=isa, slices=slices), strict=True)
    ), "the unit was not used"
    for e, g in zip(problem.reference, got, strict=True):
        scale = max(1.0, np.abs(e).max())
        np.testing.assert_allclose(g, e, rtol=0, atol=tolerance(problem, np.float32, bits) * scale)


@needs_amx
@pytest.mark.parametrize(
    ("problem", "slices"),
    [(Problem(T=4, B=16, I=45, H=200), 16), (Problem(T=3, B=16, I=4, H=400), 8)],
)
def test_members_of_a_team_without_a_share_on_the_unit(problem, slices):
    """There are more of them than groups of units in forward, and than panels in backward."""
    got = run(problem, np.float32, isa="amx", parts=3, slices=slices)
    exact = run(problem, np.float32, isa="amx", slices=slices)
    assert (got[0] != exact[0]).any(), "the unit was not used"
    for e, g in zip(problem.reference, got, strict=True):
        scale = max(1.0, np.abs(e).max())
        np.testing.assert_allclose(g, e, rtol=0, atol=tolerance(problem, np.float32) * scale)


@on_units
def test_recomputed_gates_on_the_unit(isa, parts, bits, problem):
    got = run(problem, np.float32, isa=isa, parts=parts, recompute_gates=True)
    for e, g in zip(problem.reference, got, strict=True):
        scale = max(1.0, np.abs(e).max())
        np.testing.assert_allclose(g, e, rtol=0, atol=tolerance(problem, np.float32, bits) * scale)


@needs_dot_products
def test_dot_products_sum_a_row_as_in_any_batch():
    problem = Problem(T=6, B=37, I=11, H=50)
    params = [p.astype(np.float32) for p in problem.params]
    x = problem.x.astype(np.float32).reshape(6, 37, 11)
    options = {"isa": "avx512_bf16", "parts": 1}

    def results(rows):
        of_rows = np.ascontiguousarray(x[:, rows])
        y, *_, saved = _kernels.lstm(of_rows, params, save=True, **options)
        grad_x, *_ = _kernels.lstm_backward(
            np.ones_like(y), None, None, of_rows, params, None, None, None, y, saved, **options
        )
        return y, grad_x

    whole = results(list(range(37)))
    for rows in ([0], [36], [3, 4, 5], list(range(0, 37, 2))):
        for part, all_rows in zip(results(rows), whole, strict=True):
            np.testing.assert_array_equal(part, all_rows[:, rows])


@needs_dot_products
def test_dot_products_are_of_one_part():
    problem = FOR_THE_UNIT[0]
    for a, b in zip(
        run(problem, np.float32, isa="avx512_bf16", parts=2),
        run(problem, np.float32, isa="avx512"),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def arguments_with(value, where):
    """x, parameters and states in float32, one of which holds the value."""
    problem = Problem(T=4, B=16, I=40, H=50)
    {"x": problem.x, "h0": problem.h0[0], "weight": problem.params[1]}[where][2, 3] = value
    params = [p.astype(np.float32) for p in problem.params]
    x = problem.x.astype(np.float32).reshape(4, 16, 40)
    return x, params, {"h0": problem.h0.astype(np.float32), "c0": problem.c0.astype(np.float32)}


@needs_dot_products
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3.4e38])
@pytest.mark.parametrize("where", ["x", "h0", "weight"])
def test_dot_products_take_every_number(value, where):
    """Gates saturate, or are not a number, where they are so in float32."""
    x, params, states = arguments_with(value, where)
    got = _kernels.lstm(x, params, **states, isa="avx512_bf16", parts=1)[:3]
    expected = _kernels.lstm(x, params, **states, isa="avx512")[:3]
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(g, e, rtol=0, atol=0.1)


@needs_amx
def test_layers_too_narrow_for_the_unit():
    """The first layer would be wide enough, the second reads a single number a step."""
    problem = Problem(T=9, B=17, I=70, H=33, P=1, L=2)
    for a, b in zip(
        run(problem, np.float32, isa="amx", parts=3),
        run(problem, np.float32, isa="avx512"),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@needs_amx
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e38])
@pytest.mark.parametrize("where", ["x", "h0", "weight"])
def test_numbers_without_parts_are_left_to_float32(value, where):
    x, params, states = arguments_with(value, where)
    got = _kernels.lstm(x, params, **states, isa="amx", parts=3)
    expected = _kernels.lstm(x, params, **states, isa="avx512")
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_array_equal(g, e)

    def grads(**options):
        y, *_, saved = _kernels.lstm(x, params, **states, save=True, **options)
        grad_x, *of_states, of_params = _kernels.lstm_backward(
            np.ones_like(y), None, None, x, params, None, *states.values(), y, saved, **options
        )
        return grad_x, *of_states, *of_params

    # Nor does backward make such products, of weights where it computes the gates again.
    on_unit = grads(isa="amx", parts=3)
    np.testing.assert_array_equal(on_unit[0], grads(isa="amx", parts=3, recompute_gates=True)[0])
    if where != "weight":
        for g, e in zip(on_unit, grads(isa="avx512"), strict=True):
            np.testing.assert_array_equal(g, e)


def ulps(got, expected):
    return np.abs(got.astype(np.float64) - expected) / np.spacing(
        np.abs(expected).astype(got.dtype)
    ).astype(np.float64)


@pytest.mark.parametrize("isa", ISAS)
def test_float32_activations_are_within_four_ulps(isa):
    x = np.concatenate(
        [np.linspace(-87, 87, 600_001), np.logspace(-30, 1, 100_000), -np.logspace(-30, 1, 100_000)]
    )
    x = x.astype(np.float32)
    s, h = _kernels.activations(x, isa=isa)
    exact = x.astype(np.float64)
    of_sigmoid = ulps(s, sigmoid(exact))
    assert of_sigmoid[x > -50].max() < 4
    # The rounding of ln 2, 63 times and more.
    assert of_sigmoid.max() < 6
    assert ulps(h, np.tanh(exact)).max() < 4


@pytest.mark.parametrize("isa", ISAS)
def test_float64_activations_are_within_six_ulps(isa):
    # The reference is in extended precision.
    x = np.concatenate(
        [
            np.linspace(-600, 600, 200_001),
            np.logspace(-300, 1, 100_000),
            -np.logspace(-300, 1, 100_000),
        ]
    )
    exact = x.astype(np.longdouble)
    s, h = _kernels.activations(x, isa=isa)
    assert (np.abs(s - sigmoid(exact)) / np.spacing(s)).max() < 6
    assert (np.abs(h - np.tanh(exact)) / np.spacing(np.abs(h))).max() < 6


@pytest.mark.parametrize("isa", ISAS)
def test_every_float16_is_widened(isa):
    """Subnormal ones and what is no number among them; a part of a vector at the end."""
    bits = np.arange(2**16, dtype=np.uint16)
    for n in (len(bits), len(bits) - 3, 1):
        got, expected = _kernels.widen_float16(bits[:n], isa=isa), bits[:n].view(np.float16)
        np.testing.assert_array_equal(got, expected.astype(np.float32))
        np.testing.assert_array_equal(np.signbit(got), np.signbit(expected))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_activations_saturate(dtype, isa):
    x = np.array([-np.inf, -1e30, -1e4, 1e4, 1e30, np.inf, np.nan, 0.0, -0.0], dtype=dtype)
    s, h = _kernels.activations(x, isa=isa)
    assert (s[:3] < 1e-27).all()
    assert (s[:3] >= 0).all()
    np.testing.assert_array_equal(s[3:6], 1)
    np.testing.assert_array_equal(h[:6], [-1, -1, -1, 1, 1, 1])
    assert np.isnan(s[6])
    assert np.isnan(h[6])
    np.testing.assert_array_equal(s[7:], 0.5)
    np.testing.assert_array_equal(h[7:], 0)


@pytest.mark.parametrize("isa", ISAS)
def test_sigmoid_near_one_is_rounded_to_neither_side(isa):
    """A cell that such a forget gate keeps for thousands of steps would drift."""
    x = np.linspace(8, 12, 20001).astype(np.float32)
    s = _kernels.activations(x, isa=isa)[0].astype(np.float64)
    errors = (s - 1 / (1 + np.exp(-x.astype(np.float64)))) * 2**24
    assert abs(errors.mean()) < 0.02
    assert np.abs(errors).max() < 0.6


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("gate", range(4))
def test_a_saturated_gate_passes_no_gradient_on(gate, dtype, isa):
    """It shares a division with another gate that is not: what comes of that must be one, still.
    An optimiser that divides gradients by their size would go far by noise."""
    problem = Problem(T=4, B=9, I=3, H=33, states=False)
    x = problem.x.astype(dtype).reshape(4, 9, 3)
    params = [p.astype(dtype) for p in problem.params]
    of_gate = slice(gate * 33, (gate + 1) * 33)
    params[2][of_gate] = 60
    y, _, _, saved = _kernels.lstm(x, params, save=True, isa=isa)
    rest = x, params, None, None, None, y, saved
    *_, grads = _kernels.lstm_backward(np.ones_like(y), None, None, *rest, isa=isa)
    for grad in grads:
        np.testing.assert_array_equal(grad[of_gate], 0)
        assert np.abs(grad).max() > 0.1


def test_zero_batch():
    params = [
        np.ones((8, 3), np.float32),
        np.ones((8, 2), np.float32),
        np.ones(8, np.float32),
        np.ones(8, np.float32),
    ]
    x = np.zeros((4, 0, 3), np.float32)
    for options in ({}, {"recompute_gates": True}):
        y, h_n, _, saved = _kernels.lstm(x, params, save=True, **options)
        assert y.shape == (4, 0, 2)
        assert h_n.shape == (1, 0, 2)
        assert saved.shape == (0,)
        rest = x, params, None, None, None, y, saved
        grads = _kernels.lstm_backward(None, None, None, *rest, **options)
        for grad in grads[3]:
            np.testing.assert_array_equal(grad, 0)


def test_wrong_arguments_are_named():
    good = [np.ones((8, 3)), np.ones((8, 2)), np.ones(8), np.ones(8)]
    x = np.ones((4, 1, 3))
    with pytest.raises(RuntimeError, match=r"Expected weight_ih_l0 size \[8, 4\], got \[8, 3\]"):
        _kernels.lstm(np.ones((4, 1, 4)), good)
    with pytest.raises(RuntimeError, match="Expected bias_hh_l0 size"):
        _kernels.lstm(x, [*good[:3], np.ones(7)])
    with pytest.raises(RuntimeError, match=r"hidden\[1\]"):
        _kernels.lstm(x, good, c0=np.ones((1, 2, 2)))
    with pytest.raises(RuntimeError, match="params must hold 4 tensors"):
        _kernels.lstm(x, good[:3])
    with pytest.raises(RuntimeError, match="batch_sizes must be positive and not increase"):
        _kernels.lstm(np.ones((3, 3)), good, batch_sizes=np.array([1, 2]))
    with pytest.raises(ValueError, match="isa must be one of"):
        _kernels.lstm(x, good, isa="sse9")


def test_numbers_too_large_to_be_multiplied_raise():
    """Numbers that overflow in products and sums must not pass for small ones."""
    p = Problem(T=2, B=3, I=4, H=5)
    arguments = p.x.reshape(2, 3, 4), p.params
    with pytest.raises(RuntimeError, match="params must hold tensors for 4611686018427387904"):
        _kernels.lstm(*arguments, num_layers=2**62)
    largest = np.iinfo(np.int64).max
    sizes = np.array([largest, largest, 8])
    with pytest.raises(RuntimeError, match="batch_sizes must sum up to"):
        _kernels.lstm(p.x, p.params, batch_sizes=sizes)
