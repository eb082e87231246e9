"""NomadSampler against PyNomad itself, random search and TPE: what the same 60 evaluations find on ten test functions.

"plain" is PyNomad's `optimize` over the union of all variables, from a random start, in a process of its own; random and
TPE are Optuna's with their defaults. What counts is the distance to the known optimum (the missing hypervolume where there
are several objectives), as a share of random search's; less than a thousandth of that counts as a thousandth. Ratios are of
medians over seeds, their geometric mean over functions, below 1 where NomadSampler is better; intervals (95 %) are
bootstrapped over seeds.

    python benchmarks/functions.py [--quick] [--seeds 15] [--evaluations 60] [--only mixed "front conditional"] [--json]
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
from blackboxes import BLACKBOXES, Blackbox, Values
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from result import machine, show, versions
from rich.table import Table

from finemesh.search.samplers import NomadSampler
from finemesh.search.samplers.encoding import Box, Dimension
from finemesh.search.samplers.nomad_child import forked

SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "random": lambda seed: RandomSampler(seed=seed), "tpe": lambda seed: TPESampler(seed=seed),
    "nomad": lambda seed: NomadSampler(seed=seed)}
CONTENDERS = ("plain", *SAMPLERS)
FLOOR = 1e-3
RESAMPLED = 1000


class Suggested(Mapping[str, Any]):
    """The hyperparameters of a trial, asked for when they are read."""

    def __init__(self, trial: optuna.Trial, blackbox: Blackbox) -> None:
        self.trial, self.space = trial, blackbox.space

    def __getitem__(self, name: str) -> Any:
        return self.trial._suggest(name, self.space[name])

    def __iter__(self) -> Any:
        return iter(self.space)

    def __len__(self) -> int:
        return len(self.space)


def sampled(blackbox: Blackbox, sampler: BaseSampler, evaluations: int) -> list[Values]:
    history = []

    def objective(trial: optuna.Trial) -> tuple[float, ...]:
        objectives, constraints = blackbox.evaluate(Suggested(trial, blackbox))
        history.append((objectives, constraints))
        for index, excess in enumerate(constraints):
            trial.set_constraint(f"c{index}", excess)
        return objectives

    directions = ["minimize"] * max(1, len(blackbox.reference))
    optuna.create_study(sampler=sampler, directions=directions).optimize(objective, n_trials=evaluations)
    return history


def plain(blackbox: Blackbox, seed: int, evaluations: int) -> list[Values]:
    """To be run in a process that may be lost: PyNomad ends some runs by a signal."""
    import PyNomad

    box = Box(tuple(Dimension.whole(name, distribution) for name, distribution in blackbox.space.items()))
    start = box.sampled(np.random.default_rng(seed).random(len(box.dimensions)))
    history: list[Values] = []

    def evaluate(point: Any) -> int:
        values = box.values([point.get_coord(index) for index in range(point.size())])
        objectives, constraints = blackbox.evaluate(values)
        history.append((objectives, constraints))
        point.setBBO(" ".join(repr(float(number)) for number in (*objectives, *constraints)).encode())
        return 1

    objectives, constraints = blackbox.evaluate(box.values(start))
    outputs = ["OBJ"] * len(objectives) + ["PB"] * len(constraints)
    types = ["R" if dimension.size is None else "I" for dimension in box.dimensions]
    several = ["DMULTIMADS_OPTIMIZATION yes"] if len(objectives) > 1 else []
    if several or types.count("R") < 3:  # the default direction type crashes with one or two
        several.append("DIRECTION_TYPE ORTHO 2N")
    upper = [1.0 if dimension.size is None else dimension.size - 1.0 for dimension in box.dimensions]
    PyNomad.optimize(evaluate, list(start), [0.0] * len(upper), upper, [
        f"BB_INPUT_TYPE ( {' '.join(types)} )", f"BB_OUTPUT_TYPE {' '.join(outputs)}", f"MAX_BB_EVAL {evaluations}",
        f"SEED {seed}", "DISPLAY_DEGREE 0", *several])
    return history


def run(contender: str, blackbox: Blackbox, seeds: int, evaluations: int) -> list[list[float]]:
    """Distances to the optimum: (seed, evaluation)."""
    if contender == "plain":
        command = [sys.executable, __file__, "--plain", blackbox.name, "--seeds", str(seeds), "--evaluations", str(evaluations)]
        ended = subprocess.run(command, check=True, capture_output=True, text=True)
        histories = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
        return [padded(blackbox.distances(answer["history"]), evaluations) for answer in histories]
    return [blackbox.distances(sampled(blackbox, SAMPLERS[contender](seed), evaluations)) for seed in range(seeds)]


def padded(distances: list[float], evaluations: int) -> list[float]:
    """PyNomad may converge, and stop, before its evaluations are spent."""
    return (distances + [distances[-1]] * evaluations)[:evaluations]


def serve_plain(name: str, seeds: int, evaluations: int) -> None:
    for seed in range(seeds):
        def work(seed: int = seed) -> dict[str, Any]:
            return {"history": plain(BLACKBOXES[name], seed, evaluations)}

        answer = forked(work)
        assert "history" in answer, answer
        print(json.dumps(answer), flush=True)


def measure(names: list[str], seeds: int, evaluations: int) -> dict[str, Any]:
    functions: dict[str, Any] = {}
    ends: dict[str, dict[str, np.ndarray]] = {}
    for name in names:
        distances = {contender: run(contender, BLACKBOXES[name], seeds, evaluations) for contender in CONTENDERS}
        at = {contender: np.array(curves) for contender, curves in distances.items()}  # (seed, evaluation)
        ends[name] = {contender: curves[:, -1] for contender, curves in at.items()}
        functions[name] = {"half": {c: _median(curves[:, evaluations // 2 - 1]) for c, curves in at.items()},
                           "end": {c: _median(curves[:, -1]) for c, curves in at.items()}}
        print(f"{name}: {functions[name]['end']}", file=sys.stderr, flush=True)
    ratios, intervals = {}, {}
    for rival in ("plain", "random", "tpe"):
        groups = {f"nomad_vs_{rival}": names, **{f"nomad_vs_{rival}_{name.replace(' ', '_')}": [name] for name in names}}
        if rival == "tpe":
            groups["nomad_vs_tpe_constrained_or_conditional"] = [
                name for name in names if BLACKBOXES[name].kinds & {"constrained", "conditional"}]
        for label, group in groups.items():
            if group:
                ratios[label], intervals[label] = compared([ends[name] for name in group], rival)
    return {"ratios": ratios, "intervals": intervals, "functions": functions, "seeds": seeds, "evaluations": evaluations,
            "machine": machine(), "versions": versions("finemesh", "optuna", "PyNomadBBO", "numpy")}


def _median(values: np.ndarray) -> float | None:
    middle = float(np.median(values))
    return middle if math.isfinite(middle) else None


def compared(ends: list[dict[str, np.ndarray]], rival: str) -> tuple[float, list[float]]:
    rng = np.random.default_rng(0)
    seeds = len(ends[0]["nomad"])
    draws = [np.arange(seeds), *(rng.integers(seeds, size=seeds) for _ in range(RESAMPLED))]
    ratios = [math.exp(float(np.mean([_log_ratio(end, rival, draw) for end in ends]))) for draw in draws]
    low, high = np.quantile(ratios[1:], [0.025, 0.975])
    return ratios[0], [float(low), float(high)]


def _log_ratio(end: dict[str, np.ndarray], rival: str, draw: np.ndarray) -> float:
    scale = float(np.median(end["random"]))
    ours, theirs = (min(max(float(np.median(end[who][draw])) / scale, FLOOR), 1 / FLOOR) for who in ("nomad", rival))
    return math.log(ours / theirs)


def table(result: dict[str, Any]) -> Table:
    shown = Table(title=f"Distance to the optimum after {result['evaluations'] // 2} / {result['evaluations']} evaluations, "
                        f"medians over {result['seeds']} seeds")
    for column in ("function", *CONTENDERS):
        shown.add_column(column)
    for name, row in result["functions"].items():
        cells = [f"{_text(row['half'][contender])} / {_text(row['end'][contender])}" for contender in CONTENDERS]
        shown.add_row(name, *cells)
    shown.add_section()
    for label, ratio in result["ratios"].items():
        if label.count("_") == 2 or "_or_" in label:
            low, high = result["intervals"][label]
            shown.add_row(label, f"{ratio:.3f}", f"{low:.3f} to {high:.3f}")
    return shown


def _text(distance: float | None) -> str:
    return "none feasible" if distance is None else f"{distance:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 seeds")
    parser.add_argument("--seeds", type=int, default=15)
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--only", nargs="+", choices=BLACKBOXES, default=list(BLACKBOXES), metavar="FUNCTION")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plain", choices=BLACKBOXES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if arguments.plain:
        serve_plain(arguments.plain, arguments.seeds, arguments.evaluations)
        return
    result = measure(arguments.only, 3 if arguments.quick else arguments.seeds, arguments.evaluations)
    show(result, arguments.json, table(result))


if __name__ == "__main__":
    main()
