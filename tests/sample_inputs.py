"""Configurations, inputs, the run under test and the tolerances, for the tests of all floors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

HALVES = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, torch.float64, *HALVES)
ODD_SIZES = (1, 3, 17, 31, 33, 50, 100)


@dataclass(frozen=True)
class Config:
    """The options of an LSTM, and the shape of what it is run on."""

    input_size: int = 4
    hidden_size: int = 5
    num_layers: int = 1
    bias: bool = True
    batch_first: bool = False
    bidirectional: bool = False
    proj_size: int = 0
    dtype: torch.dtype = torch.float32
    T: int = 5
    B: int = 3
    lengths: tuple[int, ...] | None = None  # of a packed sequence, in any order; B of them
    with_hx: bool = True

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of the constructor, but for the dtype."""
        return {
            "input_size": self.input_size,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "bias": self.bias,
            "batch_first": self.batch_first,
            "bidirectional": self.bidirectional,
            "proj_size": self.proj_size,
        }

    @property
    def runs(self) -> int:
        return self.num_layers * (2 if self.bidirectional else 1)

    def module(self, cls: type[torch.nn.LSTM] = torch.nn.LSTM) -> torch.nn.LSTM:
        return cls(**self.options, dtype=self.dtype)

    def input(self) -> Tensor:
        """[T, B, I] or [B, T, I], not packed."""
        shape = (self.B, self.T) if self.batch_first else (self.T, self.B)
        return torch.randn(*shape, self.input_size).to(self.dtype)

    def hx(self) -> tuple[Tensor, Tensor] | None:
        if not self.with_hx:
            return None
        P = self.proj_size or self.hidden_size
        return (
            torch.randn(self.runs, self.B, P).to(self.dtype),
            torch.randn(self.runs, self.B, self.hidden_size).to(self.dtype),
        )

    def pack(self, input: Tensor) -> Tensor | PackedSequence:
        if self.lengths is None:
            return input
        return pack_padded_sequence(input, list(self.lengths), self.batch_first, False)

    def op_arguments(self) -> tuple[Any, ...]:
        """The arguments of the op `lstm`, but for `save`."""
        config = replace(self, batch_first=False)
        packed = config.pack(config.input())
        if isinstance(packed, PackedSequence):
            input, batch_sizes = packed.data, packed.batch_sizes
        else:
            input, batch_sizes = packed, None
        h0, c0 = config.hx() or (None, None)
        params = [weight.detach() for weight in config.module().parameters()]
        return (
            input,
            batch_sizes,
            h0,
            c0,
            params,
            self.bias,
            self.num_layers,
            self.bidirectional,
        )


# One of each kind, small: for tests whose cost is by the element.
CONFIGS = {
    "plain": Config(),
    "single": Config(input_size=1, hidden_size=1, T=1, B=1),
    "no_hx": Config(with_hx=False),
    "no_bias": Config(bias=False),
    "projected": Config(proj_size=2),
    "deep": Config(num_layers=3),
    "bidirectional": Config(num_layers=2, bidirectional=True, batch_first=True),
    "deep_projected": Config(num_layers=2, bidirectional=True, proj_size=3, bias=False),
    "packed": Config(lengths=(2, 5, 1)),
    "packed_deep": Config(num_layers=2, bidirectional=True, proj_size=2, lengths=(5, 5, 2)),
    "wide": Config(input_size=33, hidden_size=50, T=7, B=17),
}


@st.composite
def configs(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = DTYPES) -> Config:
    """Any supported configuration, of sizes that are rarely a multiple of a vector's length."""
    hidden_size = draw(st.sampled_from(ODD_SIZES))
    T, B = draw(st.integers(1, 9)), draw(st.sampled_from((1, 2, 3, 8, 17)))
    lengths = st.none() | st.lists(st.integers(1, T), min_size=B, max_size=B).map(tuple)
    return Config(
        input_size=draw(st.sampled_from(ODD_SIZES)),
        hidden_size=hidden_size,
        num_layers=draw(st.integers(1, 3)),
        bias=draw(st.booleans()),
        batch_first=draw(st.booleans()),
        bidirectional=draw(st.booleans()),
        proj_size=draw(st.sampled_from([p for p in (0, 1, 3, 17, 49) if p < hidden_size])),
        dtype=draw(st.sampled_from(dtypes)),
        T=T,
        B=B,
        lengths=draw(lengths),
        with_hx=draw(st.booleans()),
    )


def forward_and_gradients(
    module: torch.nn.LSTM,
    config: Config,
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
) -> dict[str, Tensor]:
    """Outputs, and gradients of a random linear function of them, by name.

    The coefficients of that function depend on `config` alone, and are exact in its dtype, so that
    two modules, of whatever dtype, can be compared.
    """
    input = input.detach().requires_grad_()
    hx = None if hx is None else (hx[0].detach().requires_grad_(), hx[1].detach().requires_grad_())
    output, (h_n, c_n) = module(config.pack(input), hx)
    results = {
        "output": output.data if isinstance(output, PackedSequence) else output,
        "h_n": h_n,
        "c_n": c_n,
    }
    generator = torch.Generator().manual_seed(0)
    coefficients = [
        torch.randn(result.shape, generator=generator).to(config.dtype).to(result.dtype)
        for result in results.values()
    ]
    leaves = {"input": input, **dict(module.named_parameters())}
    if hx is not None:
        leaves |= {"h0": hx[0], "c0": hx[1]}
    grads = torch.autograd.grad(list(results.values()), list(leaves.values()), coefficients)
    results |= {f"grad of {name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return {name: result.detach() for name, result in results.items()}


def twins(cls: Any, **options: Any) -> tuple[Any, Any]:
    """A module of ours, and torch's of the same name with the same weights."""
    options = {"input_size": 4, "hidden_size": 5} | options
    ours, theirs = cls(**options), getattr(torch.nn, cls.__name__)(**options)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def tensors_of(args: tuple[Any, ...]) -> list[Tensor]:
    """The floating tensors among the arguments of the op."""
    leaves = torch.utils._pytree.tree_leaves(args)
    return [t for t in leaves if isinstance(t, Tensor) and t.is_floating_point()]


def requiring_grad(args: tuple[Any, ...]) -> list[Tensor]:
    return [t.requires_grad_() for t in tensors_of(args)]


def in_float64(run: Callable[..., Any], module: torch.nn.LSTM, config: Config, *args: Any) -> Any:
    """`run` on `torch.nn.LSTM` with the same numbers in float64."""
    exact = torch.nn.LSTM(**config.options, dtype=torch.float64)
    exact.load_state_dict(module.state_dict())
    return run(
        exact, config, *torch.utils._pytree.tree_map_only(Tensor, lambda t: t.double(), args)
    )


def tolerance(config: Config) -> float:
    """Bound of the error of a result, relative to its largest element or to 1.

    To 1 as gates, inputs and the coefficients of the gradients are of that order, and their errors
    stay where a result is smaller: 1 - g^2 of a saturated gate, or a sum that cancels.

    eps is that of the dtype which is computed in, u that of the results. A sum of K terms errs by
    sqrt(K) eps (rounding errors are random), the gates of a step by 8 eps more. A step hands its
    error on, never amplified at the usual weights (uniform in 1 / sqrt(H)), so that they add up
    over T steps and L layers; backward does that once more, and sums over N rows.
    """
    eps = torch.finfo(torch.float32 if config.dtype in HALVES else config.dtype).eps
    u = torch.finfo(config.dtype).eps
    P = config.proj_size or config.hidden_size
    K = max(config.input_size, 2 * P) + config.hidden_size
    step = math.sqrt(K) + 8
    return u + eps * (2 * config.T * config.num_layers * step + math.sqrt(config.T * config.B))


def with_gaps(t: Tensor) -> Tensor:
    """A copy that is not contiguous."""
    return torch.stack([t, t], -1)[..., 0]


def assert_same_error(ours: Callable[..., Any], theirs: Callable[..., Any], *args: Any) -> None:
    """Both raise, errors of one type with one message."""
    with pytest.raises(Exception) as expected:  # noqa: PT011
        theirs(*args)
    with pytest.raises(expected.type) as got:
        ours(*args)
    assert str(got.value) == str(expected.value)


def assert_all_close(got: Any, expected: Any, config: Config) -> None:
    """Compare trees of tensors whose elements are of the order of 1."""
    bound = tolerance(config)
    torch.testing.assert_close(got, expected, rtol=bound, atol=bound, equal_nan=True)


def named(results: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return {str(index): result for index, result in enumerate(results)}


def assert_close(
    got: dict[str, Tensor],
    expected: dict[str, Tensor],
    config: Config,
    bound: float | None = None,
) -> None:
    """Compare results by name: shape, and values within `bound`, `tolerance(config)` if None."""
    bound = tolerance(config) if bound is None else bound
    assert got.keys() == expected.keys()
    for name in got:
        a, b = got[name].double(), expected[name].double()
        assert a.shape == b.shape, name
        if a.numel():
            error, largest = (a - b).abs().max().item(), b.abs().max().item()
            assert error <= bound * max(largest, 1), (
                f"{name}: error {error:.3g}, largest element {largest:.3g}"
            )
