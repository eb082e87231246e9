"""How often it is foreseen rightly whether a trial keeps a constraint, on the recorded trials of the landscapes.

The trials of a landscape, the first seed's of every point, come in a random order. Each is foreseen from those that came
before it, as a search does it: a point that is surely infeasible is not started (one in five is, to see who is right), one
that breaks a bound on the way is stopped there and says no more than that. Bounds are quartiles of what all trials of the
landscape took, one number at a time.

    python benchmarks/foresight.py [--quick] [--orders 20] [--json]
"""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import quantiles
from typing import Any

import numpy as np
from replay import lines_of, recorded
from result import machine, show, versions
from rich.table import Table

from finemesh.constraints import violations
from finemesh.search.foresight import COUNTED, FORESEEN, Foresight
from finemesh.search.space import Space
from finemesh.trial import Outcome

HERE = Path(__file__).parent
PATHS = {  # how far a number has grown after a share of the steps; memory: medians of 18 trials on MiniLM
    "seconds": ((0.0, 0.0), (1.0, 1.0)),
    "peak_memory_mb": ((0.02, 0.72), (0.15, 0.83), (0.22, 0.94), (1.0, 1.0)),
}


def outcomes(lines: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    numbers = ("steps", "validation_loss", "trained_tokens", *FORESEEN)
    return [Outcome(number, line["state"], line["method"], line["hyperparameters"], line["seed"],
                    **{name: line[name] for name in numbers}) for number, line in enumerate(lines)]


def judged(trials: Sequence[Outcome], space: Space, name: str, bound: float, order: int) -> Counter[str]:
    """How many points were, or would have been, feasible or not, by what was foreseen: 'infeasible, infeasible' and so on."""
    sizes = {space.key(o.method, o.hyperparameters): o.trainable_parameters for o in trials}
    made = Foresight({name: bound}, space, lambda method, point: sizes[space.key(method, point)], max(o.steps for o in trials))
    counts: Counter[str] = Counter()
    for index in np.random.default_rng(order).permutation(len(trials)):
        trial = trials[index]
        excesses, foreseen = made.excesses(trial.method, trial.hyperparameters)
        broken = {of: excess for of, excess in violations(trial, {name: bound}).items() if excess > 0}
        counts[f"{foreseen}, {'infeasible' if broken else 'feasible'}"] += 1
        if not made.starts(excesses, foreseen):
            made.tell(Outcome(trial.number, "infeasible", trial.method, trial.hyperparameters, trial.seed, constraints=excesses,
                              foreseen=foreseen, started=False))
            continue
        counts["started, infeasible"] += bool(broken)
        if broken and name in PATHS:
            trial = stopped(trial, name, bound)
        made.tell(replace(trial, state="infeasible", constraints=broken, foreseen=foreseen) if broken else
                  replace(trial, foreseen=foreseen))
    return counts


def stopped(trial: Outcome, name: str, bound: float) -> Outcome:
    """As it is after the first step at which the bound is broken."""
    steps = np.arange(1, trial.steps + 1)
    values = getattr(trial, name) * np.interp(steps / trial.steps, *zip(*PATHS[name], strict=True))
    step = int(np.argmax(values > bound))
    return replace(trial, validation_loss=None, steps=int(steps[step]), **{name: float(values[step])})


def measure(orders: int, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    total: Counter[str] = Counter()
    for file in sorted(folder.glob("*.jsonl")):
        trials, space = outcomes([line for line in lines_of(file) if line["seed"] == 0]), recorded(file).space
        for name in FORESEEN:
            values = [value for trial in trials if (value := getattr(trial, name))]
            for share, bound in zip((25, 50, 75), quantiles(values, n=4), strict=True):
                counts = sum((judged(trials, space, name, bound, order) for order in range(orders)), Counter())
                found.setdefault(file.stem, {}).setdefault(name, {})[f"{share} %"] = {"bound": bound, **shares(counts)}
                total += counts if name != COUNTED else Counter()
    return {"ratios": shares(total), "landscapes": found, "orders": orders, "machine": machine(),
            "versions": versions("finemesh", "numpy")}


def shares(counts: Counter[str]) -> dict[str, float]:
    """`spared`: of the infeasible points, those that were not started."""
    right = {kind: counts[f"{kind}, {kind}"] / max(1, counts[f"{kind}, feasible"] + counts[f"{kind}, infeasible"])
             for kind in ("feasible", "infeasible")}
    feasible, infeasible = (sum(counts[f"{kind}, {truly}"] for kind in ("None", "feasible", "infeasible"))
                            for truly in ("feasible", "infeasible"))
    lost, spared = counts["infeasible, feasible"] / max(1, feasible), 1 - counts["started, infeasible"] / max(1, infeasible)
    return {"right_where_infeasible_was_foreseen": round(right["infeasible"], 3),
            "right_where_feasible_was_foreseen": round(right["feasible"], 3),
            "infeasible_points_not_started": round(spared, 3), "feasible_points_thought_infeasible": round(lost, 3)}


def table(result: Mapping[str, Any]) -> Table:
    shown = Table("landscape", "bound on", "quartile", "right: infeasible", "right: feasible", "infeasible ones not started",
                  "feasible ones thought infeasible", title=f"{result['orders']} orders")
    for landscape, entry in result["landscapes"].items():
        for name, by_share in entry.items():
            for share, row in by_share.items():
                _, *values = row.values()
                shown.add_row(landscape, name, share, *(f"{value:.1%}" for value in values))
    shown.add_row("all", "but parameters", "", *(f"{value:.1%}" for value in result["ratios"].values()))
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 orders")
    parser.add_argument("--orders", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=HERE / "landscapes", help="where landscapes.py has written")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = measure(3 if arguments.quick else arguments.orders, arguments.folder)
    show(result, arguments.json, table(result))


if __name__ == "__main__":
    main()
