"""The kernel floor on NumPy arrays, on every instruction set of the host, against float64 NumPy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from lstm_fast._load import load_kernels

_kernels: Any = load_kernels()
ISAS = _kernels.available_isas()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@dataclass
class Problem:
    """A stack of layers with random arguments in float64 that float32 holds exactly."""

    T: int
    B: int
    I: int  # noqa: E741
    H: int
    L: int = 1
    D: int = 1
    P: int | None = None  # projection size
    biases: bool = True
    states: bool = True
    lengths: list[int] | None = None  # falling
    seed: int = 0
    x: np.ndarray = field(init=False)

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)

        def draw(*shape, scale=1.0):
            return (scale * rng.standard_normal(shape)).astype(np.float32).astype(np.float64)

        lengths = self.lengths or [self.T] * self.B
        self.batch_sizes = np.array([sum(n > t for n in lengths) for t in range(self.T)])
        self.offsets = np.concatenate([[0], np.cumsum(self.batch_sizes)])
        self.N = int(self.offsets[-1])
        self.out = self.P or self.H
        self.x = draw(self.N, self.I)
        self.params = []
        for layer in range(self.L):
            for _ in range(self.D):
                inputs = self.I if layer == 0 else self.D * self.out
                shapes: list[tuple[int, ...]] = [(4 * self.H, inputs), (4 * self.H, self.out)]
                shapes += [(4 * self.H,)] * (2 * self.biases) + [(self.out, self.H)] * bool(self.P)
                self.params += [draw(*shape, scale=self.H**-0.5) for shape in shapes]
        state = (self.L * self.D, self.B)
        self.h0: Any = draw(*state, self.out) if self.states else None
        self.c0: Any = draw(*state, self.H) if self.states else None
        self.grad_y = draw(self.N, self.D * self.out)
        self.grad_h_n = draw(*state, self.out)
        self.grad_c_n = draw(*state, self.H)

    def layers(self, arrays):
        size = 2 + 2 * self.biases + bool(self.P)
        return [arrays[i : i + size] for i in range(0, len(arrays), size)]

    def options(self) -> dict[str, Any]:
        return {
            "has_biases": self.biases,
            "num_layers": self.L,
            "bidirectional": self.D == 2,
        }

    def _packed(self, array, dtype):
        """[N, C] as the kernels take it: packed with lengths, else [T, B, C]."""
        array = array.astype(dtype)
        return array if self.lengths else array.reshape(self.T, self.B, -1)

    def forward(self, dtype, **kwargs: Any):
        def cast(array):
            return None if array is None else array.astype(dtype)

        batch_sizes = self.batch_sizes if self.lengths else None
        params = [p.astype(dtype) for p in self.params]
        common = (batch_sizes, cast(self.h0), cast(self.c0))
        x = self._packed(self.x, dtype)
        y, h_n, c_n, saved = _kernels.lstm(
            x, params, *common, save=True, **self.options(), **kwargs
        )
        grads = _kernels.lstm_backward(
            self._packed(self.grad_y, dtype),
            cast(self.grad_h_n),
            cast(self.grad_c_n),
            x,
            params,
            *common,
            y,
            saved,
            **self.options(),
            **kwargs,
        )
        inference = _kernels.lstm(x, params, *common, **self.options(), **kwargs)
        for trained, inferred in zip((y, h_n, c_n), inference, strict=False):
            np.testing.assert_array_equal(trained, inferred)
        grad_x, grad_h0, grad_c0, grad_params = grads
        flat = [y, h_n, c_n, grad_x, grad_h0, grad_c0, *grad_params]
        return [a.reshape(self.N, -1) if i in (0, 3) else a for i, a in enumerate(flat)]

    def reference(self):
        """The same in float64 NumPy, sequence by sequence."""
        x, saved = self.x, []
        h_n, c_n = np.zeros_like(self.grad_h_n), np.zeros_like(self.grad_c_n)
        for layer in range(self.L):
            y = np.zeros((self.N, self.D * self.out))
            tapes = []
            for d in range(self.D):
                i = layer * self.D + d
                weights = self.layers(self.params)[i]
                columns = slice(d * self.out, (d + 1) * self.out)
                tape = []
                for b in range(self.B):
                    rows = self.rows(b, d)
                    h = self.h0[i, b] if self.states else np.zeros(self.out)
                    c = self.c0[i, b] if self.states else np.zeros(self.H)
                    steps = []
                    for n in rows:
                        z = weights[0] @ x[n] + weights[1] @ h
                        if self.biases:
                            z = z + weights[2] + weights[3]
                        gi, gf, gg, go = np.split(z, 4)
                        gi, gf, gg, go = sigmoid(gi), sigmoid(gf), np.tanh(gg), sigmoid(go)
                        before = (h, c)
                        c = gf * c + gi * gg
                        hidden = go * np.tanh(c)
                        h = weights[-1] @ hidden if self.P else hidden
                        y[n, columns] = h
                        steps.append((n, before, (gi, gf, gg, go), c, hidden))
                    h_n[i, b], c_n[i, b] = h, c
                    tape.append(steps)
                tapes.append(tape)
            saved.append((x, tapes))
            x = y
        grad_y = self.grad_y
        grad_params = [np.zeros_like(p) for p in self.params]
        grad_h0, grad_c0 = np.zeros_like(h_n), np.zeros_like(c_n)
        for layer in reversed(range(self.L)):
            x, tapes = saved[layer]
            grad_x = np.zeros_like(x)
            for d in range(self.D):
                i = layer * self.D + d
                weights, grads = self.layers(self.params)[i], self.layers(grad_params)[i]
                columns = slice(d * self.out, (d + 1) * self.out)
                for b in range(self.B):
                    dh, dc = self.grad_h_n[i, b], self.grad_c_n[i, b]
                    for n, (h, c0), (gi, gf, gg, go), c, hidden in reversed(tapes[d][b]):
                        dh = dh + grad_y[n, columns]
                        d_hidden = dh
                        if self.P:
                            grads[-1] += np.outer(dh, hidden)
                            d_hidden = weights[-1].T @ dh
                        tanh_c = np.tanh(c)
                        dc = dc + d_hidden * go * (1 - tanh_c**2)
                        dz = np.concatenate(
                            [
                                dc * gg * gi * (1 - gi),
                                dc * c0 * gf * (1 - gf),
                                dc * gi * (1 - gg**2),
                                d_hidden * tanh_c * go * (1 - go),
                            ]
                        )
                        dc = dc * gf
                        dh = weights[1].T @ dz
                        grad_x[n] += weights[0].T @ dz
                        grads[0][...] += np.outer(dz, x[n])
                        grads[1][...] += np.outer(dz, h)
                        if self.biases:
                            grads[2][...] += dz
                            grads[3][...] += dz
                    grad_h0[i, b], grad_c0[i, b] = dh, dc
            grad_y = grad_x
        return [y, h_n, c_n, grad_y, grad_h0, grad_c0, *grad_params]

    def rows(self, b, d):
        """Rows of N that belong to sequence b, in the order in which direction d visits them."""
        length = self.lengths[b] if self.lengths else self.T
        rows = [int(self.offsets[t]) + b for t in range(length)]
        return rows[::-1] if d else rows


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
    Problem(T=5, B=6, I=4, H=16, P=1, L=2, D=2),
    Problem(T=5, B=6, I=4, H=33, P=19, L=2),
    Problem(T=9, B=5, I=7, H=31, L=2, D=2, lengths=[9, 9, 4, 2, 1]),
    Problem(T=9, B=5, I=7, H=18, P=3, D=2, lengths=[9, 6, 6, 3, 3], states=False),
]


def case_name(problem):
    return "".join(f"{name}{getattr(problem, name)}" for name in "TBIHLDP")


def tolerance(problem, dtype):
    """Rounding of a sum of n terms of order one grows with sqrt(n); steps carry it along.

    The factor is for the few sums that follow each other within a step.
    """
    terms = problem.N + problem.I + 5 * problem.H
    return 2 * np.finfo(dtype).eps * terms**0.5


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("problem", PROBLEMS, ids=case_name)
def test_matches_numpy(problem, dtype, isa):
    expected = problem.reference()
    got = problem.forward(dtype, isa=isa)
    for e, g in zip(expected, got, strict=True):
        scale = max(1.0, np.abs(e).max())
        np.testing.assert_allclose(g, e, rtol=0, atol=tolerance(problem, dtype) * scale)


# Large enough for work to be spread over threads (kFlopsPerThread in stack.cpp).
SPREAD = [
    Problem(T=1, B=3, I=300, H=200),
    Problem(T=1, B=50, I=150, H=60, D=2),
    Problem(T=1, B=9, I=400, H=200, P=20),
    Problem(T=20, B=29, I=8, H=40, L=2),
    Problem(T=20, B=13, I=40, H=48, D=2, P=17),
    Problem(T=30, B=9, I=50, H=64, L=2, D=2, lengths=[30, 29, 29, 20, 20, 12, 11, 5, 1]),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("problem", SPREAD, ids=case_name)
def test_slices_do_not_change_a_bit(problem, isa):
    whole = problem.forward(np.float32, isa=isa, slices=1)
    for slices in (2, 3, 8):
        for a, b in zip(whole, problem.forward(np.float32, isa=isa, slices=slices), strict=True):
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
    if "avx512" not in ISAS:
        pytest.skip("this machine has no AVX-512")
    problem = Problem(T=6, B=7, I=2, H=50, L=2, D=2)
    for a, b in zip(
        problem.forward(np.float32, isa="avx2"),
        problem.forward(np.float32, isa="avx512"),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def ulps(got, expected):
    return np.abs(got.astype(np.float64) - expected) / np.spacing(
        np.abs(expected).astype(got.dtype)
    ).astype(np.float64)


@pytest.mark.parametrize("isa", ISAS)
def test_float32_activations_are_within_four_ulps(isa):
    x = np.concatenate(
        [np.linspace(-60, 60, 400_001), np.logspace(-30, 1, 100_000), -np.logspace(-30, 1, 100_000)]
    )
    x = x.astype(np.float32)
    s, h = _kernels.activations(x, isa=isa)
    exact = x.astype(np.float64)
    assert ulps(s, sigmoid(exact)).max() < 4
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


def test_zero_batch():
    params = [
        np.ones((8, 3), np.float32),
        np.ones((8, 2), np.float32),
        np.ones(8, np.float32),
        np.ones(8, np.float32),
    ]
    x = np.zeros((4, 0, 3), np.float32)
    y, h_n, _, saved = _kernels.lstm(x, params, save=True)
    assert y.shape == (4, 0, 2)
    assert h_n.shape == (1, 0, 2)
    assert saved.shape == (0,)
    grads = _kernels.lstm_backward(None, None, None, x, params, None, None, None, y, saved)
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
