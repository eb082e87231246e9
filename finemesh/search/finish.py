"""The end of a search: the leaders repeated on fresh seeds, the winner by their mean, the test split once.

Each method's reference settings run on the same seeds with the same steps, and the untuned model is measured beside
them. What is done is kept: a finish that was stopped goes on, and no run is measured on the test split twice.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finemesh.run import RunFolder, full_disk
from finemesh.search.board import Board
from finemesh.search.budget import SAVED_EVERY, Clock
from finemesh.search.executors.base import Executor
from finemesh.search.jobs import Jobs
from finemesh.search.observer import Nobody, Observer
from finemesh.search.space import Space
from finemesh.search.verdict import answered, tested
from finemesh.trial import Job, Outcome, write_outcome

LEADERS = 3
WINNER = "winner"


class NoWinner(RuntimeError):
    """No trial can be recommended; the message says what stood in the way."""


def finish(
    outcomes: Sequence[Outcome], references: Mapping[str, Mapping[str, Any]], space: Space, executor: Executor,
    run: RunFolder, *, seed: int, steps: int, repeats: int, constraints: Mapping[str, float] | None = None,
    observer: Observer | None = None, answers: int = 0, rows: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Writes finish.json and gives it back; at once where it is there. Raises NoWinner.

    `outcomes` are the search's, `references` holds a point for each method, `answers` is the number of test rows that
    the untuned model and the winner answer, `rows` the sizes of the splits.
    """
    if (done := run.finish()) is not None:
        return done
    candidates = leaders(outcomes)
    if not candidates:
        raise NoWinner(_why_none(outcomes))
    observer = observer or Nobody()
    plan = _plan(candidates, references, space, run, range(seed + 1, seed + 1 + repeats), steps, constraints or {})
    with Clock(run, "finish") as clock, full_disk(run.path):
        ended = _run_all(plan, Jobs(executor, observer, Board(run)), observer, clock)
        winner = best_of({number: [ended[job.folder] for job in jobs] for number, jobs in plan.leading.items()})
        groups = {name: [job.folder for job in jobs if ended[job.folder].state == "complete"]
                  for name, jobs in (plan.measured | {WINNER: plan.leading[winner]}).items()}
        results = tested(executor, run, groups, WINNER, observer)
        best = min(groups[WINNER], key=lambda folder: ended[folder].validation_loss or math.inf)
        document = {
            "untuned": results["untuned"],
            "reference": {method: results[method] | {"hyperparameters": dict(point), "seeds": plan.seeds}
                          for method, point in references.items()},
            "winner": results[WINNER] | {"number": winner, "method": ended[best].method, "seeds": plan.seeds,
                                         "hyperparameters": dict(ended[best].hyperparameters),
                                         "folder": str(best.relative_to(run.path))},
            "repeats": [_summary(ended[job.folder]) for jobs in plan.leading.values() for job in jobs],
            "answers": answered(executor, best, answers) if answers else [],
            "rows": dict(rows or {}),
        }
        run.write_finish(document)
    return document


@dataclass(frozen=True)
class _Plan:
    """The jobs of the finish. `twins`: methods whose reference settings are a leader's, which are not run twice."""

    seeds: list[int]
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


def _plan(candidates: Sequence[Outcome], references: Mapping[str, Mapping[str, Any]], space: Space, run: RunFolder,
          seeds: Sequence[int], steps: int, constraints: Mapping[str, float]) -> _Plan:
    leading = {leader.number: [Job(leader.number, leader.method, leader.hyperparameters, seed, steps,
                                   run.repeat(leader.number, index), dict(constraints))
                               for index, seed in enumerate(seeds, 1)] for leader in candidates}
    referring = {method: [Job(-place * len(seeds) - index, method, point, seed, steps, run.reference(method, index))
                          for index, seed in enumerate(seeds, 1)]
                 for place, (method, point) in enumerate(references.items())}
    numbers = {space.key(leader.method, leader.hyperparameters): leader.number for leader in candidates}
    keys = {method: space.key(method, point) for method, point in references.items()}
    twins = {method: numbers[key] for method, key in keys.items() if key in numbers}
    return _Plan(list(seeds), leading, referring, twins)


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


def best_of(repeats: Mapping[int, Sequence[Outcome]]) -> int:
    """The number of the leader of lowest mean loss; one with a failed repeat comes after those without."""
    def rank(number: int) -> tuple[int, float]:
        losses = [o.validation_loss for o in repeats[number] if o.state == "complete" and o.validation_loss is not None]
        return len(repeats[number]) - len(losses), sum(losses) / len(losses) if losses else math.inf

    best = min(repeats, key=rank)
    if rank(best)[1] == math.inf:
        errors = [outcome for outcomes in repeats.values() for outcome in outcomes]
        raise NoWinner(f"every repeat of the leaders failed on fresh seeds; most often: {_commonest_error(errors)}")
    return best


def _run_all(plan: _Plan, runs: Jobs, observer: Observer, clock: Clock) -> dict[Path, Outcome]:
    """By folder, the outcomes of all that is planned; a twin's is copied into the folder of its reference."""
    observer.phase("leaders and references", len(plan.jobs))
    ended = {}
    for job in plan.jobs:
        outcome = runs.start(job)
        if outcome is not None:
            ended[job.folder] = outcome
            observer.ended(outcome)
    while len(runs):
        for job, outcome in runs.wait(SAVED_EVERY):
            ended[job.folder] = outcome
            observer.ended(outcome)
        clock.tick()
    for method, number in plan.twins.items():
        for leader, reference in zip(plan.leading[number], plan.referring[method], strict=True):
            copy = ended[leader.folder].renumbered(reference.number, duplicate_of=number)
            write_outcome(reference.folder, copy)
    return ended


def _summary(outcome: Outcome) -> dict[str, Any]:
    return {"number": outcome.number, "method": outcome.method, "hyperparameters": dict(outcome.hyperparameters),
            "seed": outcome.seed, "validation_loss": outcome.validation_loss, "state": outcome.state}


def _why_none(outcomes: Sequence[Outcome]) -> str:
    if not outcomes:
        return "no trial has run: there was no time for one. Give the search more hours."
    infeasible = [outcome for outcome in outcomes if outcome.state == "infeasible"]
    if len(infeasible) == len(outcomes):
        return f"none of the {len(outcomes)} trials met the constraints; most often: {_commonest_error(infeasible)}"
    return f"none of the {len(outcomes)} trials succeeded; most often: {_commonest_error(outcomes)}"


def _commonest_error(outcomes: Sequence[Outcome]) -> str:
    errors = Counter(outcome.error or outcome.state for outcome in outcomes)
    error, count = errors.most_common(1)[0]
    return f"{error} ({count} of {len(outcomes)})"
