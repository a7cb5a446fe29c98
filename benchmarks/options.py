"""What each option of `lstm_fast.LSTM` costs, and what it gains over the same in plain torch.

    python -m benchmarks.options                    # the figures of the table of docs/options.md
    python -m benchmarks.options B1_T24_I1_H32_L1_D1 --threads=2 --seconds=3

Three take turns: the layer without options, the layer with one, and the same module computed by
`lstm_fast.reference`, step by step in torch's own ops, as one writes such a layer in torch. Not
measured are `forget_bias`, by which only the first weights differ, and `recompute_gates`, which
`benchmarks.memory` measures.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.cases import Case, at_least_1, parse_case
from benchmarks.measure import Run, inference, inputs, interleave, training
from lstm_fast import LSTM, ops, options, reference

OPTIONS: dict[str, dict[str, Any]] = {
    "return_cells": {"return_cells": True},
    "weight_dropout": {"weight_dropout": 0.3},
    "variational_dropout": {"variational_dropout": 0.3},
    "zoneout": {"zoneout": 0.1},
    "layer_norm": {"layer_norm": True},
    "learned_state": {"learned_state": True},
    "activations": {"gate_activation": "hard_sigmoid", "cell_activation": "hard_tanh"},
    "reset": {},
}


def in_plain_torch(run: Run) -> Run:
    """The same with the formulas of the reference in the place of the kernels; what is said to
    these alone (`held_in`, say) is left out."""

    def slow() -> None:
        with (
            mock.patch.object(options, "variant", lambda *args, **_: reference.variant(*args)),
            mock.patch.object(ops, "lstm", lambda *args, **_: reference.lstm(*args[:8])),
        ):
            run()

    return slow


class WithReset(torch.nn.Module):
    """A layer whose rows begin anew at one step in twenty."""

    def __init__(self, layer: LSTM, case: Case) -> None:
        super().__init__()
        self.layer = layer
        self.begins = torch.rand(case.T, case.B) < 0.05

    def forward(self, x: Tensor) -> Any:
        return self.layer(x, reset=self.begins)


class FirstTwo(torch.nn.Module):
    """What torch's layers return."""

    def __init__(self, layer: LSTM) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)[:2]


def measure(kind: Callable[..., Run], name: str, case: Case, seconds: float) -> list[float]:
    """Seconds of the plain layer, of that with the option, and of the latter in plain torch."""
    plain, layer = (
        LSTM(case.I, case.H, case.L, bidirectional=case.D == 2, **kwargs)
        for kwargs in ({}, OPTIONS[name])
    )
    module = WithReset(layer, case) if name == "reset" else FirstTwo(layer)
    x = inputs(case, torch.float32)
    run = kind(module, x)
    if kind is training:
        module.train()
    timings = interleave([kind(plain, x), run, in_plain_torch(run)], seconds)
    return [timing.low for timing in timings]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=at_least_1, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="a comparison takes so long")
    parser.add_argument("cases", nargs="*", type=parse_case, default=[Case(32, 96, 8, 128, 1)])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for case in args.cases:
        print(f"\n{case}, {args.threads} threads: inference | training")
        for name in OPTIONS:
            cells = []
            for kind in (inference, training):
                plain, fused, slow = measure(kind, name, case, args.seconds)
                cells.append(
                    f"{1e3 * fused:8.2f} ms, {fused / plain:5.2f} of plain, {slow / fused:5.1f} x"
                )
            print(f"{name:20} {' | '.join(cells)}")


if __name__ == "__main__":
    main()
