"""Errors of lstm_fast.LSTM and torch.nn.LSTM against float64, over random configurations.

    python -m benchmarks.accuracy [--configurations 1000] [--json FILE]

An error is the largest absolute difference of a result from the float64 one, over the largest
magnitude of the latter; a configuration's are those of all outputs, and of all gradients.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lstm_fast
from benchmarks.cases import at_least_1

SIZES = (1, 2, 3, 8, 10, 16, 17, 20, 25, 31, 32, 33, 40, 50, 64, 100, 128)


def random_options(rng: random.Random) -> tuple[dict[str, Any], tuple[int, int, int]]:
    """Constructor arguments, and the shape [T, B, I] of an input."""
    hidden_size = rng.choice(SIZES)
    options = {
        "input_size": rng.choice(SIZES),
        "hidden_size": hidden_size,
        "num_layers": rng.randint(1, 3),
        "bias": rng.random() < 0.8,
        "bidirectional": rng.random() < 0.3,
        "proj_size": rng.randint(1, hidden_size - 1)
        if hidden_size > 1 and rng.random() < 0.2
        else 0,
    }
    return options, (rng.randint(1, 64), rng.choice(SIZES), int(options["input_size"]))


def results(module: nn.LSTM, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and states; gradients of the input and of all parameters."""
    x = x.clone().requires_grad_()
    output, (h_n, c_n) = module(x)
    (output.square().sum() + h_n.sum() + c_n.sum()).backward()
    outputs = [t.detach().double() for t in (output, h_n, c_n)]
    return outputs, [t.grad.double() for t in (x, *module.parameters()) if t.grad is not None]


def largest_error(got: list[Tensor], exact: list[Tensor]) -> float:
    return max(
        ((g - e).abs().max() / e.abs().max().clamp_min(1e-30)).item()
        for g, e in zip(got, exact, strict=True)
    )


def compare(configurations: int) -> dict[str, list[float]]:
    rng = random.Random(0)
    torch.manual_seed(0)
    errors: dict[str, list[float]] = {}
    for _ in range(configurations):
        options, shape = random_options(rng)
        stock = nn.LSTM(**options)
        fast = lstm_fast.LSTM(**options)
        fast.load_state_dict(stock.state_dict())
        x = torch.randn(shape)
        exact = nn.LSTM(**options, dtype=torch.float64)
        exact.load_state_dict({k: v.double() for k, v in stock.state_dict().items()})
        exact_results = results(exact, x.double())
        for name, module in (("lstm_fast.LSTM", fast), ("torch.nn.LSTM", stock)):
            for kind, got, wanted in zip(
                ("outputs", "gradients"), results(module, x), exact_results, strict=True
            ):
                errors.setdefault(f"{name} {kind}", []).append(largest_error(got, wanted))
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--configurations", type=at_least_1, default=1000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    errors = compare(arguments.configurations)
    summary = {
        name: {
            "largest": max(values),
            "median": statistics.median(values),
            "mean": statistics.fmean(values),
        }
        for name, values in errors.items()
    }
    print(f"float32 against float64, {arguments.configurations} configurations")
    for name, row in summary.items():
        print(f"{name:26}" + "".join(f"  {key} {value:.2e}" for key, value in row.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()
