"""The shapes that are measured, and the arithmetic that each of them needs."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Case:
    """B rows of a batch, T steps, I inputs, H hidden units, L layers, D directions."""

    B: int
    T: int
    I: int  # noqa: E741
    H: int
    L: int
    D: int = 1

    def __str__(self) -> str:
        return f"B{self.B}_T{self.T}_I{self.I}_H{self.H}_L{self.L}_D{self.D}"

    def flops(self, training: bool) -> int:
        """Floating-point operations of the matrix products of one call.

        Forward, a layer and direction: 2 T B 4H (I + H). Backward: as many for the gradients of
        the weights, and as many for those of inputs and states, less the first layer's
        gradient with respect to the input, which nobody asks for.
        """
        unit = 2 * self.T * self.B * 4 * self.H * self.D
        first = unit * (self.I + self.H)
        others = (self.L - 1) * unit * (self.D * self.H + self.H)
        forward = first + others
        return 3 * forward - unit * self.I if training else forward


def parse_case(text: str) -> Case:
    """The case whose str() is `text`."""
    letters = [field.name for field in fields(Case)]
    found = re.fullmatch("_".join(rf"{letter}(\d+)" for letter in letters), text)
    if not found:
        example = Case(1, 24, 1, 32, 1)
        raise argparse.ArgumentTypeError(f"expected a case such as {example}, got {text}")
    return Case(*map(int, found.groups()))


def at_least_1(text: str) -> int:
    """A number of threads, say."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return int(text)


# Measured by --quick: the extremes of what forecasters use.
QUICK = [
    Case(1, 24, 1, 32, 1),
    Case(1, 1, 16, 64, 1),
    Case(32, 24, 1, 64, 2),
    Case(32, 96, 8, 128, 2),
    Case(128, 24, 1, 64, 2),
    Case(64, 50, 256, 512, 1),
    Case(64, 168, 160, 160, 1),
]

# Spread over B 1 to 1024, T 12 to 336, I 1 to 200, H 20 to 512, L 1 to 3 and both D.
GRID = [
    *QUICK,
    Case(1, 36, 1, 100, 1),
    Case(1, 168, 8, 40, 2),
    Case(4, 24, 20, 200, 2),
    Case(4, 96, 3, 50, 1, 2),
    Case(16, 12, 1, 25, 1),
    Case(16, 48, 40, 300, 1),
    Case(16, 192, 5, 128, 3),
    Case(32, 36, 10, 30, 3),
    Case(32, 42, 64, 100, 2, 2),
    Case(32, 336, 3, 64, 1),
    Case(64, 24, 24, 20, 2),
    Case(64, 60, 100, 256, 2),
    Case(64, 168, 1, 40, 3),
    Case(128, 48, 8, 50, 1, 2),
    Case(128, 72, 200, 200, 1),
    Case(256, 30, 4, 32, 2),
    Case(1024, 12, 16, 128, 2),
    Case(1024, 24, 2, 25, 1),
]

# One step with the state carried to the next, as policies and streaming models call it.
STEPS = [
    Case(1, 1, 1, 32, 1),
    Case(1, 1, 16, 64, 1),
    Case(1, 1, 16, 64, 2),
    Case(64, 1, 16, 64, 1),
]

# Of an LSTMCell that is trained step by step, as decoders and policies are.
LOOPS = [
    Case(1, 24, 8, 32, 1),
    Case(16, 24, 8, 32, 1),
    Case(32, 48, 8, 64, 1),
    Case(64, 24, 64, 128, 1),
    Case(1, 24, 512, 512, 1),
    Case(16, 24, 512, 512, 1),
]

# Hardly any arithmetic: what is left is the way to it.
OVERHEAD = Case(1, 1, 1, 1, 1)

# Packed sequences of ragged lengths, on average of T steps.
PACKED = [
    Case(4, 24, 20, 200, 2),
    Case(16, 48, 40, 300, 1),
    Case(32, 24, 1, 64, 2),
    Case(32, 42, 64, 100, 2, 2),
    Case(32, 96, 8, 128, 2),
    Case(64, 24, 24, 20, 2),
    Case(128, 48, 8, 50, 1, 2),
    Case(256, 30, 4, 32, 2),
]
