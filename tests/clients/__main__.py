"""The table of clients, measured: `python -m tests.clients [LIBRARY ...]`."""

from __future__ import annotations

import sys

import numpy as np
import torch

from tests.clients.runs import CLIENTS


def main() -> None:
    torch.set_num_threads(1)
    print("| library, model | swapped by | last loss | losses differ by | forecasts by | seconds |")
    print("|---|---|---|---|---|---|")
    for client in CLIENTS:
        if sys.argv[1:] and client.library not in sys.argv:
            continue
        client(swap=False)  # imports, caches
        theirs, ours = client(swap=False), client(swap=True)
        loss, forecast = (
            np.abs(a - b).max() / np.abs(a).max()
            for a, b in ((theirs.losses, ours.losses), (theirs.forecast, ours.forecast))
        )
        print(
            f"| {client.library} {client.model} | {client.way} | {theirs.losses[-1]:.4f}"
            f" | {loss:.0e} | {forecast:.0e} | {theirs.seconds:.2f}, ours {ours.seconds:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
