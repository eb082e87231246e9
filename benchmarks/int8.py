"""What `search.precision: int8` changes: the same trials in bf16 and with it, on the demo's model and data, in turns.

Of four methods whose frozen weights it concerns: the reference settings at a rate that suits these few steps, on three seeds.
The validation losses, which are measured in bf16, are compared seed by seed; times and peak memory as ratios. Runs are kept in
`--out`: started again, the command goes on. A quarter of an hour on two cores.

    python benchmarks/int8.py [--quick] [--seeds 3] [--threads N] [--out runs/int8] [--json]
"""

import argparse
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from filelock import FileLock
from methods_results import Run
from recording import SMOLLM, Dataset, Recording
from result import machine, show, versions
from rich.table import Table

from finemesh.preparation import whole_space
from finemesh.tuning.methods import METHODS

POINTS = {"lora": {"learning_rate": 1e-3}, "bottleneck": {"learning_rate": 1e-3}, "prompt": {"learning_rate": 1e-2},
          "prefix": {"learning_rate": 5e-3, "init": "text", "reparameterization": "none"}}  # else the reference settings
TASK = Dataset("chatterbot", SMOLLM, "package:chatterbot-corpus", rows=(2000, 89, 1), steps=40, batch_size=8, validations=2)
FIRST_SEED = 201
NUMBERS = ("validation_loss", "seconds", "peak_memory_mb")


def measure(task: Dataset, methods: Sequence[str], seeds: Sequence[int], out: Path, threads: int | None) -> dict[str, Any]:
    points = {method: whole_space().point(method, settings, METHODS[method].reference) for method, settings in POINTS.items()}
    sides = {name: Recording(replace(task, precision=name), out / name, out / name, threads) for name in ("bf16", "int8")}
    found: dict[str, dict[str, list[dict[str, Any]]]] = {method: {name: [] for name in sides} for method in methods}
    with ExitStack() as workers:
        executors = {name: workers.enter_context(side.worker()) for name, side in sides.items()}
        for seed in seeds:
            for method in methods:
                for name, side in sides.items():
                    run = Run(task.name, method, points[method], seed, task.steps)
                    if not side.results.known(run):
                        side.do(run, executors[name])
                    found[method][name].append(side.results[run])
    return {"ratios": {f"{number}_vs_bf16_{method}": round(median(b[number] / a[number] for a, b in zip(
                lines["bf16"], lines["int8"], strict=True)), 4) for method, lines in found.items() for number in NUMBERS},
            "methods": {method: compared(lines["bf16"], lines["int8"]) for method, lines in found.items()},
            "steps": task.steps, "seeds": list(seeds),
            "machine": machine(), "versions": versions("finemesh", "torch", "transformers", "peft")}


def compared(bf16: Sequence[Mapping[str, Any]], int8: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """The losses in bf16, by seed, and how far those of int8 lie above them."""
    losses, others = ([line["validation_loss"] for line in lines] for lines in (bf16, int8))
    return {"bf16": [round(loss, 4) for loss in losses],
            "int8_above": [round(b - a, 4) for a, b in zip(losses, others, strict=True)]}


def table(result: Mapping[str, Any]) -> Table:
    shown = Table("method", "loss in bf16", "int8: above it", "time", "peak memory",
                  title=f"{result['steps']} steps, {len(result['seeds'])} seeds")
    for method, entry in result["methods"].items():
        time, memory = (result["ratios"][f"{number}_vs_bf16_{method}"] for number in NUMBERS[1:])
        shown.add_row(method, f"{fmean(entry['bf16']):.4f}", ", ".join(f"{d:+.4f}" for d in entry["int8_above"]),
                      f"{time:.2f}", f"{memory:.2f}")
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two methods, six steps, one seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of the worker (default: all cores)")
    parser.add_argument("--out", type=Path, default=Path("runs/int8"), help="where runs are kept, to go on with")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    task, methods, seeds = TASK, tuple(POINTS), range(FIRST_SEED, FIRST_SEED + arguments.seeds)
    out = arguments.out
    if arguments.quick:
        task, methods, seeds, out = replace(TASK, steps=6, validations=1), tuple(POINTS)[:2], seeds[:1], out / "quick"
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / ".lock", timeout=1):
        result = measure(task, methods, seeds, out, arguments.threads)
    show(result, arguments.json, table(result))


if __name__ == "__main__":
    main()
