"""What `search.precision: int8` changes: the same trials with and without, on the demo's model and data, in turns.

Of methods with frozen weights: the reference settings at a rate that suits these few steps, on three seeds. The validation
losses (never measured in int8) are compared seed by seed; times and peak memory as ratios. Runs are kept in
`--out`: started again, the command goes on. Half an hour on one thread.

    python benchmarks/int8.py [--quick] [--seeds 3] [--threads N] [--out runs/int8] [--json]
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from filelock import FileLock
from methods_results import Run
from recording import SMOLLM, Dataset, Recording
from result import machine, show, versions
from rich.table import Table

from finemesh.tuning.methods import METHODS

RATES = {"lora": 1e-3, "bottleneck": 1e-3, "p_tuning_v2": 1e-2, "prompt": 1e-2}  # else the reference settings
TASK = Dataset("chatterbot", SMOLLM, "package:chatterbot-corpus", rows=(2000, 89, 1), steps=40, batch_size=8, validations=2)
FIRST_SEED = 201
NUMBERS = ("validation_loss", "seconds", "peak_memory_mb")


def measure(task: Dataset, methods: Sequence[str], seeds: Sequence[int], out: Path, threads: int | None) -> dict[str, Any]:
    points = {method: METHODS[method].reference | {"learning_rate": rate} for method, rate in RATES.items()}
    sides = {name: Recording(replace(task, precision=precision), out / name, out / name, threads)
             for name, precision in (("plain", "auto"), ("int8", "int8"))}
    found: dict[str, dict[str, list[dict[str, Any]]]] = {method: {name: [] for name in sides} for method in methods}
    with sides["plain"].worker() as plain, sides["int8"].worker() as int8:
        for seed in seeds:
            for method in methods:
                for (name, side), executor in zip(sides.items(), (plain, int8), strict=True):
                    run = Run(task.name, method, points[method], seed, task.steps)
                    if not side.results.known(run):
                        side.do(run, executor)
                    found[method][name].append(side.results[run])
    return {"ratios": {f"{number}_vs_plain_{method}": round(median(b[number] / a[number] for a, b in zip(
                *both.values(), strict=True)), 4) for method, both in found.items() for number in NUMBERS},
            "methods": {method: compared(both["plain"], both["int8"]) for method, both in found.items()},
            "precision": sides["plain"].study.task.precision.to_json(), "steps": task.steps, "seeds": list(seeds),
            "machine": machine(), "versions": versions("finemesh", "torch", "transformers", "peft")}


def compared(plain: Sequence[Mapping[str, Any]], int8: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means, and the differences of losses seed by seed."""
    losses, others = ([line["validation_loss"] for line in side] for side in (plain, int8))
    return {"plain": fmean(losses), "int8": fmean(others), "between_seeds": max(losses) - min(losses),
            "differences": [round(b - a, 5) for a, b in zip(losses, others, strict=True)],
            "seconds": [median(line["seconds"] for line in side) for side in (plain, int8)]}


def table(result: Mapping[str, Any]) -> Table:
    shown = Table("method", "validation loss", "in int8", "differences by seed", "between seeds", "time", "peak memory",
                  title=f"{result['steps']} steps in {result['precision']['name']} and with int8")
    for method, entry in result["methods"].items():
        time, memory = (result["ratios"][f"{number}_vs_plain_{method}"] for number in NUMBERS[1:])
        shown.add_row(method, f"{entry['plain']:.4f}", f"{entry['int8']:.4f}",
                      ", ".join(f"{d:+.4f}" for d in entry["differences"]), f"{entry['between_seeds']:.4f}",
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
    task, methods, seeds = TASK, tuple(RATES), range(FIRST_SEED, FIRST_SEED + arguments.seeds)
    out = arguments.out
    if arguments.quick:
        task, methods, seeds, out = replace(TASK, steps=6, validations=1), tuple(RATES)[:2], seeds[:1], out / "quick"
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / ".lock", timeout=1):
        result = measure(task, methods, seeds, out, arguments.threads)
    show(result, arguments.json, table(result))


if __name__ == "__main__":
    main()
