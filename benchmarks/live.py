"""The optimizers' comparison once more with real trials: SmolLM2-135M-Instruct on the demo's task, MiniLM-L6 on topics.

TPE as Optuna has it, every trial of full length, against NOMAD with halving for half as many tokens, each from nothing.
What a search thinks best at any time is then trained anew on fresh seeds, and judged by their mean validation loss. Trials
and judgements are kept in `--out`: started again, the command goes on.
`live_tokens_vs_tpe30`: tokens until the loss is that of TPE's last choice, over the tokens of all TPE trials.

    python benchmarks/live.py [--quick] [--task chatterbot] [--steps N] [--methods lora,...] [--trials 30]
        [--seed 0] [--threads N] [--out runs/live] [--json]
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
from filelock import FileLock
from landscapes import LANDSCAPES, Survey, with_data
from methods_results import Run
from optimizers import REDUCTION, Trace, at, traced, until
from recording import Recording
from result import machine, show, versions
from rich.table import Table

from finemesh.run import RunFolder
from finemesh.search.beginning import beginning
from finemesh.search.budget import Budget
from finemesh.search.executors import LocalExecutor
from finemesh.search.fidelities import FIDELITIES
from finemesh.search.observer import Nobody
from finemesh.search.samplers import OPTIMIZERS
from finemesh.search.study import run_search
from finemesh.trial import Outcome

TASKS = {one.dataset.name: one for one in LANDSCAPES}
SHARE = 0.5  # of TPE's tokens that NOMAD may spend
POINTS_A_TRIAL = 9 / 3  # of a bracket 9-3-2: its points over its steps, in full-length trials
SHOWN = (3, 6, 10, 15, 20, 30)
FRESH = tuple(range(101, 107))  # seeds of the judgement


@dataclass
class Judge:
    """A landscape whose noiseless loss is the mean of fresh seeds, trained when it is asked for."""

    recording: Recording
    executor: LocalExecutor
    seeds: Sequence[int]

    @property
    def steps(self) -> int:
        return self.recording.dataset.steps

    def end(self, method: str, point: Mapping[str, Any]) -> float:
        losses = []
        for seed in self.seeds:
            run = Run(self.recording.dataset.name, method, point, seed, self.steps)
            if not self.recording.results.known(run):
                self.recording.do(run, self.executor)
            losses.append(self.recording.results[run]["validation_loss"])
        return fmean(math.inf if loss is None else loss for loss in losses)


class Told(Nobody):
    def ended(self, outcome: Outcome) -> None:
        loss = "–" if outcome.validation_loss is None else f"{outcome.validation_loss:.4f}"
        print(f"trial {outcome.number}: {outcome.method}, {outcome.steps} steps, {loss}", file=sys.stderr, flush=True)


def searched(survey: Survey, executor: LocalExecutor, optimizer: str, fidelity: str, points: int, seed: int) -> list[Outcome]:
    """With the reference settings first where there is a fidelity, as `finemesh search` has them."""
    run = RunFolder(survey.run.path / f"{optimizer}-{fidelity}-{seed}")
    run.path.mkdir(exist_ok=True)
    space = survey.study.space.narrowed(dict.fromkeys(survey.landscape.methods))
    steps, references = survey.dataset.steps, {name: survey.study.references[name] for name in survey.landscape.methods}
    first = beginning(references, space, steps) if fidelity != "full" else []
    return run_search(space, OPTIMIZERS[optimizer](seed, 1), Budget(points), executor, run, seed=seed, steps=steps,
                      fidelity=FIDELITIES[fidelity](steps, None, REDUCTION), first=first, observer=Told())


def measure(survey: Survey, trials: int, seed: int, fresh: Sequence[int]) -> dict[str, Any]:
    points = {("tpe", "full"): trials, ("nomad", "halving"): round(SHARE * trials * POINTS_A_TRIAL)}
    with survey.worker() as executor:
        searches = {f"{optimizer}_{fidelity}": searched(survey, executor, optimizer, fidelity, most, seed)
                    for (optimizer, fidelity), most in points.items()}
        judge = Judge(survey, executor, fresh)
        traces: dict[str, Trace] = {name: traced(judge, outcomes) for name, outcomes in searches.items()}
    goal = at(traces["tpe_full"], trials)
    lengths = [spent for spent in SHOWN if spent < trials] + [trials]
    found = {name: {"loss": [[spent, at(trace, spent)] for spent in lengths if spent <= trace[-1][0] + 1],
                    "spent": trace[-1][0], "tokens_vs_tpe30": until(trace, goal) / trials} for name, trace in traces.items()}
    return {"ratios": {f"live_tokens_vs_tpe30_{name}": round(entry["tokens_vs_tpe30"], 4) for name, entry in found.items()
                       if math.isfinite(entry["tokens_vs_tpe30"])},
            "searches": found, "trials": trials, "seed": seed, "task": survey.dataset.name, "steps": survey.dataset.steps,
            "methods": survey.landscape.methods, "machine": machine(),
            "versions": versions("finemesh", "optuna", "PyNomadBBO", "torch", "transformers")}


def table(result: Mapping[str, Any]) -> Table:
    lengths = [spent for spent, _ in result["searches"]["tpe_full"]["loss"]]
    shown = Table("search", *(f"after {spent}" for spent in lengths), "tokens until TPE's last, of its tokens",
                  title="validation loss, on fresh seeds, of what is thought best after as many full-length trials' tokens")
    for name, entry in result["searches"].items():
        losses = [f"{loss:.4f}" for _, loss in entry["loss"]]
        shown.add_row(name, *losses, *["–"] * (len(lengths) - len(losses)), f"{entry['tokens_vs_tpe30']:.2f}")
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two methods, two trials' steps: some minutes")
    parser.add_argument("--task", choices=tuple(TASKS), default="chatterbot")
    parser.add_argument("--steps", type=int, help="of a full trial (default: as the recorded ones); needs an --out of its own")
    parser.add_argument("--methods", help="only these, of those that the task has")
    parser.add_argument("--trials", type=int, default=30, help="of TPE, all of full length")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="of the worker (default: all cores)")
    parser.add_argument("--out", type=Path, default=Path("runs/live"), help="where trials are kept, to go on with")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    landscape = TASKS[arguments.task]
    if arguments.quick:
        landscape = replace(landscape, methods=("lora", "head"))
    if arguments.methods:
        landscape = replace(landscape, methods=tuple(arguments.methods.split(",")))
    if arguments.steps:
        landscape = replace(landscape, dataset=replace(landscape.dataset, steps=arguments.steps))
    arguments.out.mkdir(parents=True, exist_ok=True)
    with FileLock(arguments.out / ".lock", timeout=1):
        survey = Survey(with_data(landscape, arguments.out), arguments.out, arguments.out, arguments.threads)
        trials, fresh = (2, FRESH[:2]) if arguments.quick else (arguments.trials, FRESH)
        result = measure(survey, trials, arguments.seed, fresh)
    show(result, arguments.json, table(result))


if __name__ == "__main__":
    main()
