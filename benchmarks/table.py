"""Turn a result of `make bench` into Markdown: `python -m benchmarks.table [RESULTS.json]`."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
TITLES = {
    "inference": "inference",
    "frozen": "inference, frozen",
    "training": "training, loss on all outputs",
    "training_last": "training, loss on the last output",
}

Info = dict[str, Any]

# What keeps results, by a field that those of no other have.
KEPT_BY = {
    "benchmarks": "make bench",
    "onnxruntime": "benchmarks.onnx_runtime",
    "results": "make backtest",
}


def result_of(command: str) -> Callable[[str], Info]:
    """The `type` of an argument that names a file with a result of this command."""

    def read(path: str) -> Info:
        try:
            results: Info = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise argparse.ArgumentTypeError(f"{path} cannot be read: {error}") from error
        found = next((KEPT_BY[field] for field in results if field in KEPT_BY), "something else")
        if found != command:
            raise argparse.ArgumentTypeError(f"{path} is a result of {found}, not of {command}")
        return results

    return read


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shape(info: Info) -> str:
    return " ".join(str(info[letter]) for letter in "BTIHLD")


def microseconds(info: Info) -> str:
    value = info["low_us"]
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def ratio(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def work_cells(info: Info | None) -> list[str]:
    if info is None:
        return [""] * 3
    return [microseconds(info), ratio(info["ratio"]), f"{info['share_of_gemm']:.0%}"]


def case_table(infos: Sequence[Info]) -> str:
    """A row a case, three columns a piece of work; geometric mean and worst ratio below."""
    works = [work for work in TITLES if any(info["work"] == work for info in infos)]
    header = ["B T I H L D"]
    for work in works:
        header += [f"{TITLES[work]}: us", "x nn.LSTM", "of GEMM"]
    by_case: dict[str, dict[str, Info]] = {}
    for info in infos:
        by_case.setdefault(shape(info), {})[info["work"]] = info
    rows = [
        [name] + [cell for work in works for cell in work_cells(of_work.get(work))]
        for name, of_work in by_case.items()
    ]
    ratios = [[info["ratio"] for info in infos if info["work"] == work] for work in works]
    for name, reduce in (("geometric mean", statistics.geometric_mean), ("worst", min)):
        rows.append([name] + [cell for r in ratios for cell in ("", ratio(reduce(r)), "")])
    return markdown(header, rows)


def step_table(infos: Sequence[Info]) -> str:
    """Single steps, or loops over steps in training."""
    what = {"step": "one step", "loop": "training of a loop over the steps"}[infos[0]["work"]]
    header = [f"{what}, B T I H L D", "module", "us", "x torch.nn"]
    rows = [[shape(i), i["module"], microseconds(i), ratio(i["ratio"])] for i in infos]
    return markdown(header, rows)


def overhead_table(infos: Sequence[Info]) -> str:
    rows = [[info["work"], microseconds(info), ratio(info["ratio"])] for info in infos]
    return markdown(["of one unit, one step, one row", "us", "x nn.LSTM"], rows)


def packed_table(infos: Sequence[Info]) -> str:
    """A row a case, spread of lengths and number of threads, three columns a piece of work."""
    works = list(dict.fromkeys(info["work"] for info in infos))
    header = ["B T I H L D", "spread", "threads"]
    for work in works:
        header += [f"{work}: us", "x padded", "x nn.LSTM"]
    rows: dict[tuple[str, ...], list[str]] = {}
    for info in infos:
        key = (shape(info), info["spread"], str(info["threads"]))
        cells = [microseconds(info), ratio(info["of_padded"]), ratio(info["ratio"])]
        rows.setdefault(key, []).extend(cells)
    return markdown(header, [[*key, *cells] for key, cells in rows.items()])


def report(results: Info) -> str:
    """The whole result as Markdown: what it was measured on, then the tables."""
    ours = (b for b in results["benchmarks"] if b["params"].get("implementation") != 1)
    every = [b["extra_info"] for b in ours]
    packed, overheads = (
        [info for info in every if info["work"].startswith(kind)] for kind in ("packed", "overhead")
    )
    infos = [info for info in every if info not in packed and info not in overheads]
    machine = results["machine_info"]
    built = machine["lstm_fast"]
    parts = [
        f"{machine['cpu'].get('brand_raw', machine['machine'])}, {machine['cores']} cores, "
        f"{built['isa']}, torch {machine['torch']}, lstm-fast {built['version']}, "
        f"{results['dtype']}{', denormals flushed' if results['flush_denormal'] else ''}, "
        f"{results['datetime'][:10]}; lowest decile of an interleaved run: "
        f"`{results['command']}`"
    ]
    by_steps = ("step", "loop")
    for threads in sorted({info["threads"] for info in infos}):
        rows = [i for i in infos if i["threads"] == threads and i["work"] not in by_steps]
        if rows:
            rate = statistics.median(info["gemm_gflops"] for info in rows)
            parts.append(f"{threads} thread{'s' * (threads > 1)}, GEMM {rate:.0f} GFLOP/s:")
            parts.append(case_table(rows))
    steps = ([info for info in infos if info["work"] == work] for work in by_steps)
    parts += [step_table(rows) for rows in steps if rows]
    if overheads:
        parts.append(overhead_table(overheads))
    if packed:
        parts.append(packed_table(packed))
    return "\n\n".join(parts)


def newest() -> Path:
    results = list(RESULTS.glob("[0-9]*.json"))
    if not results:
        raise SystemExit(f"no results in {RESULTS.name}/: run `make bench` first")
    return max(results)  # names begin with the date; times of files are those of the clone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    read = result_of("make bench")
    parser.add_argument("results", type=read, nargs="?", help="default: the newest")
    print(report(parser.parse_args().results or read(str(newest()))))


if __name__ == "__main__":
    main()
