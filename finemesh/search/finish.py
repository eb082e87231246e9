"""The end of a search: the leaders repeated on fresh seeds, the winner by what noise.py makes of it, the test split once.

The two leaders that are hardest to tell apart are repeated once more (the top-two rule of D. Russo, "Simple Bayesian
algorithms for best-arm identification", 2020). Each method's reference settings run on the same seeds with the same steps,
and the untuned model is measured beside them; a reference that takes more time or memory than allowed is stopped there. One
that the search tried and gave up (halving does, after few steps) and that does better than the leaders is one of them. What is
done is kept: a finish that was stopped goes on, and no run is measured on the test split twice.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from finemesh.constraints import violations
from finemesh.disk import full_disk
from finemesh.errors import InputError
from finemesh.objectives import LOSS, front
from finemesh.run import RunFolder
from finemesh.search.board import Board
from finemesh.search.budget import SAVED_EVERY, Clock
from finemesh.search.executors.base import Executor
from finemesh.search.jobs import Jobs
from finemesh.search.noise import Standing, seed_deviation, standings, undecided
from finemesh.search.observer import Nobody, Observer
from finemesh.search.space import Space
from finemesh.search.verdict import answered, tested
from finemesh.trial import Job, Outcome, read_outcome, write_outcome

LEADERS = 3
COSTS = ("seconds", "peak_memory_mb")  # bounds at which reference settings are stopped, too
WINNER = "winner"


class NoWinner(InputError):
    """No trial can be recommended; the message says what stood in the way."""


def finish(
    outcomes: Sequence[Outcome], references: Mapping[str, Mapping[str, Any]], space: Space, executor: Executor,
    run: RunFolder, *, seed: int, steps: int, repeats: int, constraints: Mapping[str, float] | None = None,
    observer: Observer | None = None, answers: int = 0, rows: Mapping[str, int] | None = None, extra: int = 0,
    objectives: Sequence[str] = (LOSS,),
) -> dict[str, Any]:
    """Writes finish.json and gives it back; at once where it is there. Raises NoWinner.

    `outcomes` are the search's, `references` holds a point for each method, `answers` is the number of test rows that
    the untuned model and the winner answer, `rows` the sizes of the splits, `extra` the seeds for telling leaders apart.
    Of several `objectives` the leaders are those of the front.
    """
    if (done := run.finish()) is not None:
        return done
    candidates = leaders(outcomes) if len(objectives) == 1 else front(outcomes, objectives)[:LEADERS] or leaders(outcomes)
    if not candidates:
        raise NoWinner(_why_none(outcomes))
    observer = observer or Nobody()
    plan = _plan(candidates, references, space, run, range(seed + 1, seed + 1 + repeats), steps, constraints or {})
    with Clock(run, "finish") as clock, full_disk(run.path):
        runs = Jobs(executor, observer, Board(run))
        ended = _run_all(plan.jobs, "leaders and references", runs, observer, clock)
        if len(objectives) == 1:
            for method, trial in _underrated(plan, ended, outcomes, space, constraints or {}).items():
                plan.promote(method, trial, run)
                if trial.state == "pruned":
                    observer.message(f"The reference settings of {method}, which were given up after {trial.steps} of {steps} "
                                     "steps, do better than the leaders: trials are judged too early; raise search.min_steps.")
                ended |= _run_all(plan.leading[trial.number], "references that lead", runs, observer, clock)
                candidates.append(trial)
        _copy_twins(plan, ended)
        ranked = standings(candidates, plan.steadiest(ended))
        for further in range(seed + 1 + repeats, seed + 1 + repeats + extra):
            if not (rivals := undecided(ranked)):
                break
            observer.message(_why_again(ranked[0], rivals[0]))
            jobs = [plan.again(one.number, further, run) for one in (ranked[0], rivals[0])]
            ended |= _run_all(jobs, "leaders again", runs, observer, clock)
            ranked = standings(candidates, plan.steadiest(ended))
        winner = ranked[0].number
        groups = {name: [_measured(run, index, job.folder, ended[job.folder])
                         for index, job in enumerate(jobs, 1) if ended[job.folder].state == "complete"]
                  for name, jobs in (plan.measured | {WINNER: plan.leading[winner]}).items()}
        results = tested(executor, run, groups, WINNER, observer)
        best = min(groups[WINNER], key=lambda folder: ended[folder].validation_loss or math.inf)
        document = {
            "untuned": results["untuned"],
            "reference": {method: results[method] | {"hyperparameters": dict(point), "seeds": _seeds(plan.measured[method])}
                          | _why_unmeasured([ended[job.folder] for job in plan.measured[method]])
                          for method, point in references.items()},
            "winner": results[WINNER] | {"number": winner, "method": ended[best].method, "seeds": _seeds(plan.leading[winner]),
                                         "hyperparameters": dict(ended[best].hyperparameters),
                                         "folder": str(best.relative_to(run.path))},
            "noise": {"seed_deviation": seed_deviation(list(plan.steadiest(ended).values())),
                      "leaders": [asdict(one) for one in ranked], "undecided": [one.number for one in undecided(ranked)]},
            "repeats": [_summary(ended[job.folder]) for jobs in plan.leading.values() for job in jobs],
            "answers": answered(executor, best, answers, observer) if answers else [],
            "rows": dict(rows or {}),
        }
        run.write_finish(document)
    return document


@dataclass(frozen=True)
class _Plan:
    """The jobs of the finish. `twins`: methods whose reference settings are a leader's, which are not run twice."""

    leading: dict[int, list[Job]]
    referring: dict[str, list[Job]]
    twins: dict[str, int]

    @property
    def jobs(self) -> list[Job]:
        own = [jobs for method, jobs in self.referring.items() if method not in self.twins]
        return [job for jobs in [*self.leading.values(), *own] for job in jobs]

    @property
    def measured(self) -> dict[str, list[Job]]:
        """The runs that stand for each method's reference settings."""
        return {method: self.leading[self.twins[method]] if method in self.twins else jobs
                for method, jobs in self.referring.items()}

    def promote(self, method: str, trial: Outcome, run: RunFolder) -> None:
        """A method's reference settings, which this trial had, are a leader: their runs become its repeats."""
        self.leading[trial.number] = []
        for index, job in enumerate(self.referring[method], 1):
            repeat = replace(job, number=trial.number, folder=run.repeat(trial.number, index))
            self.leading[trial.number].append(repeat)
            outcome = read_outcome(job.folder)
            if outcome is not None and outcome.duplicate_of is None and not repeat.folder.exists():
                repeat.folder.parent.mkdir(exist_ok=True)
                job.folder.replace(repeat.folder)
                write_outcome(repeat.folder, replace(outcome, number=trial.number))
                write_outcome(job.folder, outcome.renumbered(job.number, duplicate_of=trial.number))
        self.twins[method] = trial.number

    def again(self, number: int, seed: int, run: RunFolder) -> Job:
        """A leader's run on one more seed."""
        first = self.leading[number][0]
        job = replace(first, seed=seed, folder=run.repeat(number, seed - first.seed + 1))
        self.leading[number].append(job)
        return job

    def steadiest(self, ended: Mapping[Path, Outcome]) -> dict[int, list[Outcome]]:
        """The complete runs of the leaders of which the fewest failed."""
        return steadiest({number: [ended[job.folder] for job in jobs] for number, jobs in self.leading.items()})


def _plan(candidates: Sequence[Outcome], references: Mapping[str, Mapping[str, Any]], space: Space, run: RunFolder,
          seeds: Sequence[int], steps: int, constraints: Mapping[str, float]) -> _Plan:
    leading = {leader.number: [Job(leader.number, leader.method, leader.hyperparameters, seed, steps,
                                   run.repeat(leader.number, index), dict(constraints))
                               for index, seed in enumerate(seeds, 1)] for leader in candidates}
    costs = {name: bound for name, bound in constraints.items() if name in COSTS}
    referring = {method: [Job(-place * len(seeds) - index, method, point, seed, steps, run.reference(method, index), costs)
                          for index, seed in enumerate(seeds, 1)]
                 for place, (method, point) in enumerate(references.items())}
    numbers = {space.key(leader.method, leader.hyperparameters): leader.number for leader in candidates}
    keys = {method: space.key(method, point) for method, point in references.items()}
    twins = {method: numbers[key] for method, key in keys.items() if key in numbers}
    return _Plan(leading, referring, twins)


def _underrated(plan: _Plan, ended: Mapping[Path, Outcome], outcomes: Sequence[Outcome], space: Space,
                constraints: Mapping[str, float]) -> dict[str, Outcome]:
    """The methods whose reference settings do better than any leader and keep the constraints, with the trial that had them."""
    def mean(runs: Sequence[Outcome]) -> float:
        return fmean(math.inf if o.state != "complete" or o.validation_loss is None else o.validation_loss for o in runs)

    best = min(mean([ended[job.folder] for job in jobs]) for jobs in plan.leading.values())
    trials = {space.key(o.method, o.hyperparameters): o for o in outcomes if o.duplicate_of is None}
    found = {}
    for method, jobs in plan.referring.items():
        runs = [ended[job.folder] for job in jobs if method not in plan.twins]
        trial = trials.get(space.key(method, jobs[0].hyperparameters))
        if runs and trial and mean(runs) < best and not any(
                excess > 0 for run in runs for excess in violations(run, constraints).values()):
            found[method] = trial
    return found


def leaders(outcomes: Sequence[Outcome], count: int = LEADERS) -> list[Outcome]:
    """The complete, feasible trials of lowest validation loss, without copies; the earlier of two equal ones first.

    Where none is complete (a search by fidelities that was soon over), the pruned ones that went furthest.
    """
    usable = [o for o in outcomes if o.state in ("complete", "pruned") and o.validation_loss is not None
              and o.duplicate_of is None and all(excess <= 0 for excess in o.constraints.values())]
    complete = [outcome for outcome in usable if outcome.state == "complete"]
    continued = {outcome.continues for outcome in outcomes}
    pruned = [outcome for outcome in usable if outcome.error is None and outcome.number not in continued]
    return sorted(complete or pruned, key=lambda o: (-o.steps, o.validation_loss or 0.0, o.number))[:count]


def steadiest(repeats: Mapping[int, Sequence[Outcome]]) -> dict[int, list[Outcome]]:
    """The complete runs of the leaders of which the fewest failed: what may fail is not recommended. Raises NoWinner."""
    complete = {number: [run for run in runs if run.state == "complete" and run.validation_loss is not None]
                for number, runs in repeats.items()}
    if not any(complete.values()):
        errors = [outcome for outcomes in repeats.values() for outcome in outcomes]
        raise NoWinner(f"every repeat of the leaders failed on fresh seeds; most often: {_commonest_error(errors)}")
    fewest = min(len(repeats[number]) - len(runs) for number, runs in complete.items() if runs)
    return {number: runs for number, runs in complete.items() if runs and len(repeats[number]) - len(runs) == fewest}


def _run_all(jobs: Sequence[Job], name: str, runs: Jobs, observer: Observer, clock: Clock) -> dict[Path, Outcome]:
    """Their outcomes by folder."""
    observer.phase(name, len(jobs))
    ended = {}
    for job in jobs:
        outcome = runs.start(job)
        if outcome is not None:
            ended[job.folder] = outcome
            observer.started(job)
            observer.ended(outcome)
    while len(runs):
        for job, outcome in runs.wait(SAVED_EVERY):
            ended[job.folder] = outcome
            observer.ended(outcome)
        clock.tick()
    return ended


def _copy_twins(plan: _Plan, ended: Mapping[Path, Outcome]) -> None:
    """The outcome of a leader that is a reference, into the folder of the reference."""
    for method, number in plan.twins.items():
        for leader, reference in zip(plan.leading[number], plan.referring[method], strict=True):
            copy = ended[leader.folder].renumbered(reference.number, duplicate_of=number)
            write_outcome(reference.folder, copy)


def _measured(run: RunFolder, index: int, folder: Path, outcome: Outcome) -> Path:
    """The run's folder; of reference settings that led in an earlier finish, the leader's: it has the adapter."""
    leader = folder if outcome.duplicate_of is None else run.repeat(outcome.duplicate_of, index)
    return leader if any((leader / name).exists() for name in ("outcome.json", "evaluated.json")) else folder


def _why_again(first: Standing, rival: Standing) -> str:
    return f"Trials {first.number} and {rival.number} cannot be told apart: {first.number} is the better one with a " \
           f"probability of {100 * (rival.winner_better or 0.0):.0f} %. Each runs on one more seed."


def _seeds(jobs: Sequence[Job]) -> list[int]:
    return [job.seed for job in jobs]


def _why_unmeasured(runs: Sequence[Outcome]) -> dict[str, Any]:
    """What to say of reference settings of which no run was whole."""
    if any(outcome.state == "complete" for outcome in runs):
        return {}
    stopped = "stopped: " if runs[0].state == "infeasible" else ""
    return {"error": f"{stopped}{runs[0].error or runs[0].state}"}


def _summary(outcome: Outcome) -> dict[str, Any]:
    return {"number": outcome.number, "method": outcome.method, "hyperparameters": dict(outcome.hyperparameters),
            "seed": outcome.seed, "validation_loss": outcome.validation_loss, "state": outcome.state}


def _why_none(outcomes: Sequence[Outcome]) -> str:
    if not outcomes:
        return "no trial has run: there was no time for one. Give the search more hours."
    infeasible = [outcome for outcome in outcomes if outcome.state == "infeasible"]
    if len(infeasible) == len(outcomes):
        return (f"none of the {len(outcomes)} trials met the constraints; most often: {_commonest_error(infeasible)}. "
                "Loosen search.constraints, or allow more settings, and choose another --out.")
    return f"none of the {len(outcomes)} trials succeeded; most often: {_commonest_error(outcomes)}"


def _commonest_error(outcomes: Sequence[Outcome]) -> str:
    errors = Counter(outcome.error or outcome.state for outcome in outcomes)
    error, count = errors.most_common(1)[0]
    return f"{error} ({count} of {len(outcomes)})"
