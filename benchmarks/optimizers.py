"""Optimizers on recorded landscapes (landscapes.py): the loss that they reach against the tokens that they train.

The plain samplers are Optuna's with their default settings, every trial of full length; GP and CMA-ES, which know no
conditions, search each method in a study of its own, in turn. The rows of finemesh are its whole search (store, workers'
protocol, fidelities, paired tests), with the points that it begins with. A search is judged by the loss, without a seed's
noise, of the trial that it thinks best.
`tokens_vs_tpe30`: tokens until the loss is that of 30 full-length TPE trials (its median), over the tokens of those 30.

    python benchmarks/optimizers.py [--quick] [--seeds 30] [--landscapes topics,...] [--json] [--figure FILE.svg]
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import Trial, TrialState
from replay import LLAMA, Landscape, Replay, in_memory, published, recorded
from result import machine, show, versions
from rich.table import Table
from sides import DATA

from finemesh.run import RunFolder
from finemesh.search.beginning import beginning
from finemesh.search.budget import Budget
from finemesh.search.fidelities import FIDELITIES
from finemesh.search.samplers import OPTIMIZERS, NomadSampler
from finemesh.search.space import Space
from finemesh.search.study import run_search
from finemesh.search.transfer import Known
from finemesh.trial import Outcome

HERE = Path(__file__).parent
FULL = 30  # trials of full length that every search may spend
REDUCTION = 3
RESAMPLED = 1000
SMALLEST = 1e-4  # regret that is drawn
Trace = list[tuple[float, float]]  # (full-length trials spent, loss of the trial that is thought best)
Contender = Callable[[Landscape, int], Trace]


class Blackbox(Protocol):
    """What a search is judged on: a landscape, or real trials. `steps`: of a whole trial."""

    @property
    def steps(self) -> int: ...
    def end(self, method: str, point: Mapping[str, Any]) -> float:
        """The loss without a seed's noise."""


class Best:
    """The trace of a search."""

    def __init__(self, landscape: Blackbox) -> None:
        self._landscape, self._measured, self._loss = landscape, math.inf, math.inf
        self._spent = 0.0
        self.trace: Trace = []

    def add(self, method: str, point: Mapping[str, Any], spent: float, measured: float | None) -> None:
        """`measured`: the loss at full length, None where it is not known."""
        self._spent += spent
        if measured is not None and measured < self._measured:
            self._measured, self._loss = measured, self._landscape.end(method, point)
        self.trace.append((self._spent, self._loss))


def plain(sampler: Callable[[int], BaseSampler], landscape: Landscape, seed: int) -> Trace:
    study, best = optuna.create_study(sampler=sampler(seed)), Best(landscape)
    for _ in range(FULL):
        evaluate(study, landscape, seed, best, landscape.space.suggest)
    return best.trace


def by_method(sampler: Callable[[int], BaseSampler], landscape: Landscape, seed: int) -> Trace:
    """A study for every method, in turn."""
    best = Best(landscape)
    studies = {method: optuna.create_study(sampler=sampler(seed)) for method in landscape.space.methods}
    for number in range(FULL):
        method = list(studies)[number % len(studies)]
        evaluate(studies[method], landscape, seed, best, landscape.space.narrowed({method: None}).suggest)
    return best.trace


def elimination(sampler: Callable[[int], BaseSampler], landscape: Landscape, seed: int) -> Trace:
    """A study for every method; after every round, which gives each that is left as many trials, the worse half goes."""
    best = Best(landscape)
    studies = {method: optuna.create_study(sampler=sampler(seed)) for method in landscape.space.methods}
    rounds = math.ceil(math.log2(len(studies))) + 1
    spent = 0
    for index in range(rounds):
        each = max(1, (FULL - spent) // (rounds - index) // len(studies))
        for method, study in studies.items():
            for _ in range(each if index + 1 < rounds or len(studies) > 1 else FULL - spent):
                if spent < FULL:
                    evaluate(study, landscape, seed, best, landscape.space.narrowed({method: None}).suggest)
                    spent += 1
        ranked = sorted(studies, key=lambda method: lowest(studies[method]))
        studies = {method: studies[method] for method in ranked[:math.ceil(len(ranked) / 2)]}
    return best.trace


def lowest(study: optuna.Study) -> float:
    return min((trial.value for trial in study.trials if trial.value is not None), default=math.inf)


def evaluate(study: optuna.Study, landscape: Landscape, seed: int, best: Best,
             suggest: Callable[[Trial], tuple[str, Mapping[str, Any]]]) -> None:
    trial = study.ask()
    method, point = suggest(trial)
    losses = landscape.measured(method, point, seed)
    loss = None if losses is None else float(losses[-1])
    if loss is None:
        study.tell(trial, state=TrialState.FAIL)
    else:
        study.tell(trial, loss)
    best.add(method, point, 1.0, loss)


def finemesh(optimizer: str, fidelity: str, landscape: Landscape, seed: int) -> Trace:
    """As `finemesh search` does it, until as many steps are trained as FULL trials have."""
    with in_memory() as folder:
        run = RunFolder(folder)
        return traced(landscape, searched(landscape, landscape.space, optimizer, fidelity, POINTS[fidelity], seed, run))


def searched(landscape: Landscape, space: Space, optimizer: str, fidelity: str, points: int, seed: int, run: RunFolder,
             earlier: Sequence[Known] = ()) -> list[Outcome]:
    """A search over `space`, the landscape's or a part of it, the reference settings first."""
    return run_search(
        space, OPTIMIZERS[optimizer](seed, 1), Budget(points), Replay(landscape), run, seed=seed, steps=landscape.steps,
        fidelity=FIDELITIES[fidelity](landscape.steps, None, REDUCTION), earlier=earlier,
        first=beginning({name: landscape.references[name] for name in space.methods}, space, landscape.steps))


POINTS = {"full": FULL, "halving": 100, "hyperband": 80, "curve": 80}  # new points of a search, more than it can spend


def traced(landscape: Blackbox, outcomes: Sequence[Outcome]) -> Trace:
    best = Best(landscape)
    reached: dict[int, int] = {}
    for outcome in outcomes:
        steps = outcome.steps if outcome.state != "failed" else landscape.steps
        made = 0 if outcome.duplicate_of is not None else steps - reached.get(outcome.continues, 0)
        reached[outcome.number] = steps
        best.add(outcome.method, outcome.hyperparameters, made / landscape.steps,
                 outcome.validation_loss if outcome.state == "complete" else None)
    return best.trace


PLAIN = ("random", "tpe", "gp", "cmaes")
DRAWN = ("tpe", "nomad", "nomad_halving")  # with their intervals
CONTENDERS: dict[str, Contender] = {
    "random": partial(plain, lambda seed: RandomSampler(seed=seed)),
    "tpe": partial(plain, lambda seed: TPESampler(seed=seed)),
    "gp": partial(by_method, lambda seed: GPSampler(seed=seed)),
    "cmaes": partial(by_method, lambda seed: CmaEsSampler(seed=seed)),
    "nomad": partial(plain, lambda seed: NomadSampler(seed=seed)),
    "nomad_elimination": partial(elimination, lambda seed: NomadSampler(seed=seed)),
    "tpe_references": partial(finemesh, "tpe", "full"),
    "nomad_references": partial(finemesh, "nomad", "full"),
    **{f"{optimizer}_{fidelity}": partial(finemesh, optimizer, fidelity)
       for fidelity in ("halving", "hyperband", "curve") for optimizer in ("tpe", "nomad")},
}


def at(trace: Trace, spent: float) -> float:
    """The loss when so many full-length trials are spent."""
    return next((loss for used, loss in reversed(trace) if used <= spent + 1e-9), math.inf)


def until(trace: Trace, loss: float) -> float:
    """The full-length trials spent until the loss is reached; inf where it never is."""
    return next((used for used, found in trace if found <= loss + 1e-12), math.inf)


class Searches:
    """Those of a landscape, one line each: what is started again goes on, and another landscape begins anew."""

    def __init__(self, landscape: Landscape, out: Path) -> None:
        self._landscape, self._file = landscape, out / f"{landscape.name}-{landscape.digest}.jsonl"
        lines = self._file.read_text(encoding="utf-8").splitlines() if self._file.exists() else []
        self._known = {(line["name"], line["seed"]): line["trace"] for line in map(json.loads, lines)}

    def trace(self, name: str, seed: int) -> Trace:
        if (name, seed) not in self._known:
            trace = CONTENDERS[name](self._landscape, seed)
            self._known[name, seed] = [[spent, None if math.isinf(loss) else loss] for spent, loss in trace]
            with open(self._file, "a", encoding="utf-8") as file:
                file.write(json.dumps({"name": name, "seed": seed, "trace": self._known[name, seed]}) + "\n")
        return [(spent, math.inf if loss is None else loss) for spent, loss in self._known[name, seed]]


def measure(landscapes: Sequence[Landscape], names: Sequence[str], seeds: int, out: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for landscape in landscapes:
        known = Searches(landscape, out)
        traces: dict[str, list[Trace]] = {}
        for name in names:
            if landscape.name == LLAMA and len(landscape.validated) == 1 and name.endswith(("halving", "hyperband", "curve")):
                continue
            traces[name] = [known.trace(name, seed) for seed in range(seeds)]
            print(f"{landscape.name} {name}: {median(at(trace, FULL) for trace in traces[name]):.4f}", file=sys.stderr,
                  flush=True)
        found[landscape.name] = judged(landscape, traces)
    ratios = {f"tokens_vs_tpe30_{name}": round(float(np.exp(np.mean([math.log(entry[name]["tokens_vs_tpe30"][0])
                                                                  for entry in measured]))), 4)
              for name in names if (measured := [entry for entry in found.values() if name in entry])
              and all(math.isfinite(entry[name]["tokens_vs_tpe30"][0]) for entry in measured)}
    return {"ratios": ratios, "landscapes": found, "seeds": seeds, "machine": machine(),
            "versions": versions("finemesh", "optuna", "PyNomadBBO", "cmaes", "numpy", "scipy")}


def judged(landscape: Landscape, traces: Mapping[str, list[Trace]]) -> dict[str, Any]:
    """By contender: the median regret on the way and tokens_vs_tpe30, each with the interval over seeds."""
    goal = median(at(trace, FULL) for trace in traces["tpe"])
    grid = [1, 2, 3, 4, 6, 8, 10, 15, 20, 25, 30]
    return {name: {
        "regret": [[spent, *spread([at(trace, spent) - landscape.lowest for trace in of])] for spent in grid],
        "tokens_vs_tpe30": spread([until(trace, goal) / FULL for trace in of])} for name, of in traces.items()}


def spread(values: Sequence[float]) -> list[float]:
    """The median, and a 95 % interval of it over resampled seeds."""
    rng, known = np.random.default_rng(0), np.array(values)
    medians = np.sort([middle(known[rng.integers(len(known), size=len(known))]) for _ in range(RESAMPLED)])
    return [middle(known), float(medians[int(0.025 * RESAMPLED)]), float(medians[int(0.975 * RESAMPLED)])]


def middle(values: np.ndarray) -> float:
    """The upper median: inf has no mean."""
    return float(np.sort(values)[len(values) // 2])


def tables(result: Mapping[str, Any]) -> list[Table]:
    found = []
    for name, entry in result["landscapes"].items():
        shown_at = (3, 6, 10, 15, 20, 30)
        shown = Table("optimizer", *(f"after {spent}" for spent in shown_at), "tokens until TPE's 30, of its tokens",
                      title=f"{name}: median regret of the validation loss after as many full-length trials' tokens, "
                            f"{result['seeds']} seeds")
        for contender, row in entry.items():
            middle, low, high = row["tokens_vs_tpe30"]
            shown.add_row(contender, *(f"{regret:.4f}" for spent, regret, *_ in row["regret"] if spent in shown_at),
                          f"{middle:.2f} ({low:.2f} to {high:.2f})")
        found.append(shown)
    return found


def draw(result: Mapping[str, Any], file: Path) -> None:
    """The median regret with its interval against the tokens spent, a panel a landscape."""
    from matplotlib.figure import Figure

    found = result["landscapes"]
    figure = Figure(figsize=(5 * len(found) + 2, 4), layout="constrained")
    for axes, (name, entry) in zip(np.atleast_1d(figure.subplots(1, len(found))), found.items(), strict=True):
        for contender, row in entry.items():
            spent, regret, low, high = np.array(row["regret"]).T
            style = "--" if contender in PLAIN else "-"
            drawn, color = contender in DRAWN, f"C{list(CONTENDERS).index(contender) % 10}"
            axes.plot(spent, np.maximum(regret, SMALLEST), style, color=color, linewidth=2.5 if drawn else 1, label=contender)
            if drawn:
                axes.fill_between(spent, np.maximum(low, SMALLEST), np.maximum(high, SMALLEST), color=color, alpha=0.15)
        axes.set(title=name, xscale="log", yscale="log", xlabel="tokens, in trials of full length", ylabel="regret, nats")
    lines = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
    figure.legend(lines.values(), lines.keys(), loc="outside right", fontsize="small")
    figure.savefig(file)


def landscapes_in(folder: Path) -> list[Landscape]:
    found = [recorded(file) for file in sorted(folder.glob("*.jsonl"))]
    log = DATA / "llama2_7b_lora_nomad_log.csv"
    if log.exists():
        found.append(published(log))
    else:
        print(f"Skipped {LLAMA}: there is no {log}.", file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 seeds, without GP")
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--folder", type=Path, default=HERE / "landscapes", help="where landscapes.py has written")
    parser.add_argument("--out", type=Path, default=Path("runs/optimizers"), help="where searches are kept, to go on with")
    parser.add_argument("--landscapes", help="only these, separated by commas")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, metavar="OPTIMIZER", help="beside TPE")
    parser.add_argument("--figure", type=Path, metavar="FILE.svg")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    names = [name for name in CONTENDERS if name in ("tpe", *(arguments.only or CONTENDERS))]
    if arguments.quick:
        names = [name for name in names if name != "gp"]
    there = {one.name: one for one in landscapes_in(arguments.folder)}
    wanted = arguments.landscapes.split(",") if arguments.landscapes else list(there)
    if unknown := [name for name in wanted if name not in there]:
        sys.exit(f"There is no landscape {unknown[0]} here; there are {', '.join(there)}.")
    landscapes = [there[name] for name in wanted]
    arguments.out.mkdir(parents=True, exist_ok=True)
    result = measure(landscapes, names, 3 if arguments.quick else arguments.seeds, arguments.out)
    if arguments.figure:
        draw(result, arguments.figure)
    show(result, arguments.json, *tables(result))


if __name__ == "__main__":
    main()
