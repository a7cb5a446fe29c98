"""The table of clients, measured: `python -m tests.clients [LIBRARY ...]`."""

from __future__ import annotations

import statistics
import sys

import numpy as np
import torch

from tests.clients.runs import CLIENTS

REPEATS = 5


def main() -> None:
    torch.set_num_threads(1)
    print("| library, model | swapped by | last loss | losses differ by | forecasts by | seconds |")
    print("|---|---|---|---|---|---|")
    for client in CLIENTS:
        if sys.argv[1:] and client.library not in sys.argv:
            continue
        client(swap=False)  # imports, caches
        pairs = [(client(swap=False), client(swap=True)) for _ in range(REPEATS)]
        theirs, ours = pairs[0]
        seconds = [
            statistics.median(result.seconds for result in column)
            for column in zip(*pairs, strict=True)
        ]
        loss, forecast = (
            np.abs(a - b).max() / np.abs(a).max()
            for a, b in ((theirs.losses, ours.losses), (theirs.forecast, ours.forecast))
        )
        print(
            f"| {client.library} {client.model} | {client.way} | {theirs.losses[-1]:.4f}"
            f" | {loss:.0e} | {forecast:.0e} | {seconds[0]:.2f}, ours {seconds[1]:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
