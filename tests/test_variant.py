"""The op `variant`, a layer with options: its kernels on every instruction set of the host and its
contract with PyTorch, against the reference in float64; the reference, against what is known."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lstm_fast import reference
from lstm_fast._load import load_kernels
from lstm_fast.variant import variant
from tests.isas import ISAS, needs_amx, needs_dot_products
from tests.numpy_lstm import rounding_of_operands
from tests.sample_inputs import with_gaps

_kernels: Any = load_kernels()


@dataclass(frozen=True)
class Case:
    """A layer with options, and the shape of what it is run on."""

    T: int = 5
    B: int = 3
    I: int = 4  # noqa: E741
    H: int = 7
    P: int | None = None  # projection size
    lengths: tuple[int, ...] | None = None  # falling
    biases: bool = True
    reverse: bool = False
    norm: bool = False
    gate: str = "sigmoid"
    cell: str = "tanh"
    reset: bool = False
    first: bool = False  # a state to reset to
    drop: bool = False
    zone: str = "none"  # or a mask, or a share for all
    dtype: torch.dtype = torch.float64

    def arguments(self) -> tuple[Any, ...]:
        """Those of the op, without `save`. Numbers are exact in float32."""

        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            return (scale * torch.randn(*shape)).to(self.dtype)

        H, P, G = self.H, self.P or self.H, 4 * self.H
        if self.lengths is None:
            batch_sizes, x = None, draw(self.T, self.B, self.I)
            N = self.T * self.B
        else:
            sizes = [sum(n > t for n in self.lengths) for t in range(self.lengths[0])]
            batch_sizes, N = torch.tensor(sizes), sum(sizes)
            x = draw(N, self.I)
        params = [draw(G, self.I, scale=H**-0.5), draw(G, P, scale=H**-0.5)]
        params += [draw(G), draw(G)] if self.biases else []
        params += [draw(P, H, scale=H**-0.5)] if self.P else []
        norms = [1 + draw(n, scale=0.1) for n in (G, G, H)] if self.norm else []
        norms += [draw(H, scale=0.1)] if self.norm and self.biases else []
        zones: list[Tensor | None] = [None, None]
        if self.zone == "mask":
            zones = [(torch.rand(N, columns) < 0.3).to(self.dtype) for columns in (P, H)]
        elif self.zone == "share":
            zones = [torch.full((1, columns), 0.25, dtype=self.dtype) for columns in (P, H)]
        return (
            x,
            batch_sizes,
            draw(self.B, P),
            draw(self.B, H),
            params,
            norms,
            self.biases,
            self.reverse,
            list(reference.GATE_ACTIVATIONS).index(self.gate),
            list(reference.CELL_ACTIVATIONS).index(self.cell),
            torch.rand(N) < 0.3 if self.reset else None,
            draw(self.B, P) if self.first else None,
            draw(self.B, H) if self.first else None,
            2 * (torch.rand(self.B, P) < 0.5).to(self.dtype) if self.drop else None,
            *zones,
        )


CASES = {
    "plain": Case(),
    "single": Case(T=1, B=1, I=1, H=2, norm=True),
    "norm": Case(H=33, norm=True, biases=False),
    "norm_projected": Case(B=9, H=40, P=3, norm=True, reverse=True),
    "zone": Case(H=17, zone="mask"),
    "zone_projected": Case(H=18, P=5, zone="share", biases=False),
    "drop": Case(H=70, I=33, drop=True),
    "reset": Case(T=9, reset=True, reverse=True),
    "reset_first": Case(T=9, reset=True, first=True, drop=True),
    "relu": Case(cell="relu"),
    "hard": Case(H=20, gate="hard_sigmoid", cell="hard_tanh", norm=True),
    "hard_relu": Case(gate="hard_sigmoid", cell="relu", zone="mask"),
    "long": Case(T=40, B=2, norm=True, reset=True),  # more rows than are multiplied at a time
    "packed": Case(B=4, lengths=(6, 6, 3, 1), reset=True, first=True),
    "all": Case(
        B=4, I=5, H=19, P=6, lengths=(7, 4, 4, 2), reverse=True, norm=True, reset=True, first=True,
        drop=True, zone="mask", gate="hard_sigmoid",
    ),
}  # fmt: skip
all_cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def leaves_of(args: tuple[Any, ...]) -> list[Tensor]:
    """What has gradients, in the order of the results of the op's backward."""
    x, _, h0, c0, params, norms, *_ = args
    return [t for t in (x, h0, c0, args[11], args[12], *params, *norms) if t is not None]


def expected_results(args: tuple[Any, ...]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Results of the reference in float64, coefficients of a function of them, its gradients."""
    exact = torch.utils._pytree.tree_map_only(
        Tensor, lambda t: t.double() if t.is_floating_point() else t, args
    )
    leaves = [t.requires_grad_() for t in leaves_of(exact)]
    results = list(reference.variant(*exact))
    coefficients = [torch.randn_like(r).float().double() for r in results]
    grads = torch.autograd.grad(
        results, leaves, coefficients, allow_unused=True, materialize_grads=True
    )
    return [r.detach() for r in results], coefficients, list(grads)


@functools.cache
def solved(case: Case) -> tuple[tuple[Any, ...], list[Tensor], list[Tensor]]:
    """Arguments of a case, coefficients, and the expected results and gradients in one list."""
    torch.manual_seed(0)
    args = case.arguments()
    results, coefficients, grads = expected_results(args)
    return args, coefficients, [*results, *grads]


def tolerance(case: Case) -> float:
    """Bound of the error of a result, relative to its largest element or to 1.

    A sum of K terms errs by sqrt(K) eps, the gates of a step by 8 eps more; steps hand it on, and
    backward does it once more and sums over rows (sample_inputs.tolerance). A norm divides by the
    deviation of its row, and so do gradients: in these cases rarely below a quarter.
    """
    step = (max(case.I, 2 * case.H) + case.H) ** 0.5 + 8
    eps = torch.finfo(case.dtype).eps
    return eps * (2 * case.T * step + (case.T * case.B) ** 0.5) * (16 if case.norm else 1)


def assert_close(got: Any, expected: Any, bound: float) -> None:
    for index, (g, e) in enumerate(zip(got, expected, strict=True)):
        g, e = torch.as_tensor(g).double(), e.reshape(tuple(g.shape))
        if e.numel():
            error, largest = (g - e).abs().max().item(), e.abs().max().item()
            assert error <= bound * max(largest, 1), (index, error, largest)


def run_kernels(args: tuple[Any, ...], coefficients: list[Tensor], **kwargs: Any) -> list[Any]:
    def array(value: Any) -> Any:
        return value.detach().numpy() if isinstance(value, Tensor) else value

    dtype = args[0].dtype
    args = torch.utils._pytree.tree_map(array, args)
    grads = [c.to(dtype).numpy() for c in coefficients]
    x, batch_sizes, h0, c0, params, norms, biases, reverse, gate, cell, *masks = args
    *got, inferred = _kernels.variant(
        x, params, norms, batch_sizes, h0, c0, *masks, *grads, biases, reverse, gate, cell, **kwargs
    )
    np.testing.assert_array_equal(inferred.ravel(), got[0].ravel())
    if args[11] is None:  # there was no state to reset to
        del got[7:9]
    return got


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@all_cases
def test_kernels(case: Case, dtype: torch.dtype, isa: str):
    case = replace(case, dtype=dtype)
    args, coefficients, expected = solved(case)
    assert_close(run_kernels(args, coefficients, isa=isa), expected, tolerance(case))


# Large enough for work to be spread over threads (tasks.h).
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["norm_projected", "all"])
@pytest.mark.parametrize(("T", "H", "I"), [(12, 96, 90), (144, 30, 9)])
def test_slices_do_not_change_a_bit(T: int, H: int, I: int, name: str, isa: str):  # noqa: E741
    lengths = tuple(T * n // 12 for n in (12, 11, 11, 8, 8, 7, 6, 5, 1))
    lengths_of_case = lengths if CASES[name].lengths else None
    case = replace(CASES[name], T=T, B=9, H=H, I=I, lengths=lengths_of_case, dtype=torch.float32)
    args, coefficients, _ = solved(case)
    whole = run_kernels(args, coefficients, isa=isa)
    for slices in (2, 3, 8):
        for a, b in zip(
            whole, run_kernels(args, coefficients, isa=isa, slices=slices), strict=True
        ):
            np.testing.assert_array_equal(a, b)


@all_cases
def test_values_and_gradients(case: Case):
    case = replace(case, dtype=torch.float32)
    args = case.arguments()
    results, coefficients, grads = expected_results(args)
    leaves = [t.requires_grad_() for t in leaves_of(args)]
    got = variant(*args)
    with torch.no_grad():
        torch.testing.assert_close(variant(*args), tuple(got), rtol=0, atol=0)
    got_grads = torch.autograd.grad(
        got, leaves, [c.float() for c in coefficients], materialize_grads=True
    )
    assert_close([t.detach() for t in (*got, *got_grads)], [*results, *grads], tolerance(case))


# Batches and sizes that such a unit is used for (unit_pays_in_steps in variant.cpp).
FOR_THE_UNIT = {
    "plain": Case(T=6, B=17, I=70, H=80, drop=True),
    "norm": Case(T=6, B=40, I=3, H=100, norm=True, reset=True, first=True),
    "projected": Case(T=5, B=20, I=33, H=50, P=40, zone="mask", reverse=True),
    "packed": Case(B=20, I=45, H=77, lengths=(7,) * 9 + (5,) * 8 + (2, 1, 1)),
    "over all steps alone": Case(T=30, B=5, I=70, H=80, norm=True),
    "in several chunks": Case(T=60, B=20, I=40, H=30),
}


@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("case", FOR_THE_UNIT.values(), ids=FOR_THE_UNIT)
@pytest.mark.parametrize(
    ("isa", "parts", "bits"),
    [
        pytest.param("amx", 3, 24, marks=needs_amx),
        pytest.param("avx512_bf16", 1, 8, marks=needs_dot_products),
    ],
)
def test_products_of_bfloat16_parts(case: Case, slices: int, isa: str, parts: int, bits: int):
    case = replace(case, dtype=torch.float32)
    args, coefficients, expected = solved(case)
    got = run_kernels(args, coefficients, isa=isa, parts=parts, slices=slices)
    # A norm divides by the deviation of a row, rarely below a quarter.
    of_operands = rounding_of_operands(bits, case.I + (case.P or case.H), case.H)
    assert_close(got, expected, tolerance(case) + of_operands * (4 if case.norm else 1))
    one_order = run_kernels(args, coefficients, isa=isa)
    assert any((a != b).any() for a, b in zip(got, one_order, strict=True)), "not used"


@needs_dot_products
def test_dot_products_sum_a_row_as_in_any_batch():
    args, coefficients, _ = solved(Case(T=6, B=37, I=70, H=50, dtype=torch.float32))

    def results(rows: list[int]) -> list[Any]:
        """Those that have rows of the batch, with these rows alone."""

        def of(t: Tensor) -> Tensor:
            return t[..., rows, :].contiguous()

        x, _, h0, c0, *rest = args
        grads = [of(c) for c in coefficients]
        got = run_kernels((of(x), None, of(h0), of(c0), *rest), grads, isa="avx512_bf16", parts=1)
        return [a.reshape(-1, len(rows), a.shape[-1]) for a in got[:7]]

    whole = results(list(range(37)))
    for rows in ([0], [36], [3, 4, 5], list(range(0, 37, 2))):
        for part, all_rows in zip(results(rows), whole, strict=True):
            np.testing.assert_array_equal(part, all_rows[:, rows])


@needs_amx
@pytest.mark.parametrize("where", ["input", "h0", "reset_h", "weight_hh"])
def test_numbers_without_parts_are_left_to_float32(where: str):
    case = replace(FOR_THE_UNIT["norm"], dtype=torch.float32)
    args = case.arguments()
    of = {"input": args[0][0], "h0": args[2], "reset_h": args[11], "weight_hh": args[4][1]}
    of[where][2, 1] = 1e38
    coefficients = expected_results(args)[1]
    got = run_kernels(args, coefficients, isa="amx", parts=3)[:4]
    expected = run_kernels(args, coefficients, isa="avx512")[:4]
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_array_equal(g, e)


def test_the_reference_without_options_is_that_of_torch():
    for case in (Case(), Case(lengths=(5, 2, 2), P=2), Case(reverse=True, biases=False)):
        x, batch_sizes, h0, c0, params, *_ = args = case.arguments()
        output, h_n, c_n, cells = reference.variant(*args)
        if case.reverse:
            x = x.flip(0)
        expected = reference.lstm(x, batch_sizes, h0[None], c0[None], params, case.biases, 1, False)
        got = output.flip(0) if case.reverse else output, h_n[None], c_n[None]
        torch.testing.assert_close(got, expected)
        if case.lengths is None:
            torch.testing.assert_close(cells[0 if case.reverse else -1], c_n)


@pytest.mark.parametrize("name", ["norm_projected", "packed", "all"])
def test_opcheck(name: str):
    args = replace(CASES[name], dtype=torch.float32).arguments()
    forward = torch.ops.lstm_fast.variant.default
    backward = torch.ops.lstm_fast.variant_backward.default
    for save in (False, True):
        torch.library.opcheck(forward, (*args, save))
    *results, saved = forward(*args, True)
    grads = [torch.randn_like(r) for r in results]
    torch.library.opcheck(backward, (*grads, *args, results[3], saved, True, True))
    torch.library.opcheck(backward, (*[None] * 4, *args, results[3], saved, False, False))
    # Hooks on saved tensors may give back other strides.
    needs = True, True
    torch.testing.assert_close(
        backward(*grads, *args, with_gaps(results[3]), with_gaps(saved), *needs),
        backward(*grads, *args, results[3], saved, *needs),
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize("name", ["all", "zone_projected", "norm", "relu", "reset_first"])
def test_gradcheck_and_gradgradcheck(name: str):
    case = replace(CASES[name], T=2, B=2, H=4, I=2, P=3 if CASES[name].P else None)
    case = replace(case, lengths=(2, 1) if case.lengths else None)
    args = case.arguments()
    spec = torch.utils._pytree.tree_flatten(args)[1]
    for t in leaves_of(args):
        t.requires_grad_()

    def run(*leaves: Any) -> Any:
        return variant(*torch.utils._pytree.tree_unflatten(leaves, spec))

    leaves = torch.utils._pytree.tree_leaves(args)
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


def test_double_backward_of_tensors_given_twice():
    """One state as h0 and c0: each place has its own gradient, and the sum is that of the state."""
    x, _, h0, _, *rest = Case().arguments()
    leaf = h0.requires_grad_()

    def second(run: Any) -> Tensor:
        value = run(x, None, leaf, leaf, *rest)[0].square().sum()
        (grad,) = torch.autograd.grad(value, leaf, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), leaf)[0]

    torch.testing.assert_close(second(variant), second(reference.variant))


def test_transforms():
    x, _, *rest = Case(zone="share", reset=True, drop=True).arguments()

    def output(x: Tensor) -> Tensor:
        return variant(x, None, *rest)[0]

    xs = torch.stack([x, x.flip(0)])
    looped = torch.stack([output(x) for x in xs])
    torch.testing.assert_close(torch.func.vmap(output)(xs), looped)
    torch.testing.assert_close(torch.func.jacrev(output)(x), torch.func.jacfwd(output)(x))


def test_unneeded_gradients_are_not_computed(monkeypatch: pytest.MonkeyPatch):
    from lstm_fast import variant as module

    asked: list[tuple[Any, ...]] = []
    backward = module._variant_backward

    def noting(*args: Any, parts: int) -> Any:
        asked.append(args[-2:])
        return backward(*args, parts=parts)

    monkeypatch.setattr(module, "_variant_backward", noting)
    args = CASES["norm"].arguments()
    for leaf, needs in ((args[0], (True, False)), (args[2], (False, False))):
        leaf.requires_grad_()
        expected = torch.autograd.grad(reference.variant(*args)[0].sum(), leaf)
        torch.testing.assert_close(torch.autograd.grad(variant(*args)[0].sum(), leaf), expected)
        assert asked.pop() == needs
        leaf.requires_grad_(False)
    args[5][0].requires_grad_()
    variant(*args)[3].sum().backward()
    assert asked.pop() == (False, True)
    assert args[4][0].grad is None


@pytest.mark.parametrize("precision", ["highest", "medium"])  # in which dot products may be used
def test_zero_batch(precision: str):
    args = Case(B=0, I=70, H=40, P=3, norm=True, reverse=True, dtype=torch.float32).arguments()
    leaves = [t.requires_grad_() for t in leaves_of(args)]
    torch.set_float32_matmul_precision(precision)
    output, h_n, c_n, cells = variant(*args)
    assert (output.shape, h_n.shape) == ((5, 0, 3), (0, 3))
    assert (cells.shape, c_n.shape) == ((5, 0, 40), (0, 40))
    for grad in torch.autograd.grad(output.sum(), leaves, materialize_grads=True):
        assert not grad.any()


# An infinite relu is multiplied with gates that are exactly zero in torch, and tiny here.
@pytest.mark.parametrize(
    ("name", "value"),
    [("norm", torch.nan), ("norm", torch.inf), ("hard", torch.inf), ("relu", torch.nan)],
)
def test_nan_and_inf_propagate(name: str, value: float):
    args = CASES[name].arguments()
    args[0][2, 1, 0] = value
    for got, expected in zip(variant(*args), reference.variant(*args), strict=True):
        torch.testing.assert_close(got, expected, equal_nan=True)


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, torch.zeros(5, 3, 2), "weight_ih_l0"),
        (2, torch.zeros(3, 6), "h0"),
        (3, torch.zeros(2, 7), "c0"),
        (3, torch.zeros(3, 7).double(), "c0"),
        (5, [torch.ones(28)], "norms"),
        (5, [torch.ones(28), torch.ones(28), torch.ones(7), torch.ones(6)], "norms"),
        (8, 2, "gate_activation"),
        (9, 3, "cell_activation"),
        (10, torch.zeros(14, dtype=torch.bool), "reset"),
        (10, torch.zeros(15), "reset"),
        (11, torch.zeros(1, 7), "reset_h"),
        (12, torch.zeros(1, 7), "reset_c"),
        (13, torch.zeros(15, 7), "drop_h"),
        (14, torch.zeros(3, 7), "zone_h"),
        (15, torch.zeros(15, 6), "zone_c"),
    ],
)
def test_errors_name_the_argument(index: int, value: Any, message: str):
    args = list(Case(dtype=torch.float32).arguments())
    args[index] = value
    with pytest.raises(RuntimeError, match=message):
        variant(*args)


@pytest.mark.parametrize("freed", ["cells", "saved"])
def test_backward_of_what_has_no_memory_is_refused(freed: str):
    args = Case(dtype=torch.float32).arguments()
    *results, cells, saved = torch.ops.lstm_fast.variant(*args, True)
    (cells if freed == "cells" else saved).untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=f"{freed} must have memory"):
        torch.ops.lstm_fast.variant_backward(
            results[0], None, None, None, *args, cells, saved, True, True
        )
