"""Random problems for the kernel floor, and a stack of LSTM layers in float64 NumPy."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@dataclass(eq=False)
class Problem:
    """A stack of layers with random arguments in float64, of so many significant bits: 24 are exact
    in float32, 11 in TF32 and float16 too, 8 in bfloat16 too."""

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
    bits: int = 24
    x: np.ndarray = field(init=False)

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)

        def draw(*shape, scale=1.0):
            mantissa, exponent = np.frexp(scale * rng.standard_normal(shape))
            return np.ldexp(np.round(np.ldexp(mantissa, self.bits)), exponent - self.bits)

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

    @property
    def result_shapes(self):
        """Of the results of `reference`."""
        inputs = [self.x, self.grad_h_n, self.grad_c_n, *self.params]
        return [a.shape for a in (self.grad_y, self.grad_h_n, self.grad_c_n, *inputs)]

    @cached_property
    def reference(self):
        """The same in float64 NumPy, sequence by sequence: y, h_n, c_n, and the gradients of x, h0,
        c0 and the parameters."""
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


def case_name(problem):
    return "".join(f"{name}{getattr(problem, name)}" for name in "TBIHLDP")


def tolerance(problem, dtype, bits=24):
    """Rounding of a sum of n terms of order one grows with sqrt(n); steps carry it along.

    The factor is for the few sums that follow each other within a step. bits: of the operands of
    products.
    """
    terms = problem.N + problem.I + 5 * problem.H
    inputs = max(problem.I, problem.D * problem.out * (problem.L > 1)) + problem.out
    return 2 * np.finfo(dtype).eps * terms**0.5 + rounding_of_operands(bits, inputs, problem.H)


def rounding_of_operands(bits, inputs, units):
    """What it does to gates, and to what comes of them, which is no more.

    Each of two operands errs by 2^-bits of itself at most, so that their product has a deviation of
    sqrt(2 / 3) 2^-bits of itself; weights are of order H^-1/2. Four deviations of a sum.
    """
    return 4 * (2 / 3) ** 0.5 * 2.0**-bits * (inputs / units) ** 0.5
