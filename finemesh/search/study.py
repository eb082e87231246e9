"""The loop of a search: ask, run, tell, resume.

Trial n is asked for when exactly the trials up to n - workers are told, in order: completion order cannot change the
points, and a search that was stopped at any moment goes on with the points of the uninterrupted one.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.samplers import BaseSampler
from optuna.trial import Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from finemesh.errors import InputError
from finemesh.run import RunFolder, full_disk
from finemesh.search.board import Board
from finemesh.search.budget import SAVED_EVERY, Budget, Clock
from finemesh.search.database import gone, wait_for
from finemesh.search.executors.base import Executor
from finemesh.search.jobs import Jobs
from finemesh.search.observer import Nobody, Observer
from finemesh.search.space import Space
from finemesh.search.store import opened, storage_error, store_of, tell
from finemesh.trial import Job, Outcome, read_outcome, write_outcome

EXHAUSTED = 200  # points in a row that were known already


def run_search(
    space: Space, sampler: BaseSampler, budget: Budget, executor: Executor, run: RunFolder, *,
    seed: int, steps: int, workers: int = 1, constraints: Mapping[str, float] | None = None, reproducible: bool = True,
    observer: Observer | None = None, first: Sequence[tuple[str, Mapping[str, Any]]] = (), storage: str | None = None,
) -> list[Outcome]:
    """The outcomes of all trials, in order, those of earlier runs of the command included.

    `first`: points that are evaluated before the sampler's own, moved into the space where they are outside.
    `storage`: the URL of a database; by default study.db in the run folder. When it goes away the search waits for it.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    observer = observer or Nobody()
    jobs, spare = Jobs(executor, observer, Board(run)), copy.deepcopy(sampler) if storage else sampler
    observer.phase("search", budget.trials)
    while True:
        try:
            with full_disk(run.path), opened(storage or f"sqlite:///{run.study}", run.study_name(storage), sampler) as study:
                return Search(space, study, budget, jobs, run, observer, seed=seed, steps=steps, workers=workers,
                              constraints=dict(constraints or {}), reproducible=reproducible, first=first).run()
        except (StorageInternalError, SQLAlchemyError) as error:
            if storage is None and isinstance(error, StorageInternalError):
                raise storage_error(error, run.path) from error
            if storage is None or not gone(error):
                raise
            wait_for(storage, error, run.path, jobs.pause, observer.message)
            sampler = copy.deepcopy(spare)  # as in a new process: what it heard may not have been stored


class Search:
    """One run of the command. `told` holds the outcomes that the store knows, `flight` the trials that it awaits."""

    def __init__(self, space: Space, study: optuna.Study, budget: Budget, jobs: Jobs, run: RunFolder,
                 observer: Observer, *, seed: int, steps: int, workers: int, constraints: dict[str, float],
                 reproducible: bool, first: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        self._space, self._budget, self._jobs, self._folder, self._observer = space, budget, jobs, run, observer
        self._seed, self._steps, self._workers, self._constraints = seed, steps, workers, constraints
        self._reproducible, self._study, self._store = reproducible, study, store_of(study)
        self._first = [space.stored(method, space.nearest(method, point)) for method, point in first]
        self._told: dict[int, Outcome] = {}
        self._flight: dict[int, Trial] = {}
        self._ended: dict[int, Outcome] = {}  # not told yet
        self._originals: dict[str, int] = {}  # key of a point -> the trial that runs it
        self._copies: dict[int, int] = {}  # trial in flight -> the earlier one with its point
        self._repetitions = 0  # points in a row, up to the latest, that were known already
        self._clock = Clock(run, "search")

    def run(self) -> list[Outcome]:
        with self._clock:
            self._resume()
            while True:
                while self._may_ask():
                    self._ask()
                if self._tell_next():
                    continue
                if not self._flight:
                    break
                self._collect()
        if self._repetitions >= EXHAUSTED:
            self._observer.message(f"The space is exhausted: {EXHAUSTED} points in a row were known already. "
                                   f"The search ends after {len(self._originals)} trials.")
        return [self._told[number] for number in sorted(self._told)]

    def _resume(self) -> None:
        """What the store knows as finished is read; what it knows as running keeps its number and its point."""
        trials = self._study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state.is_finished():
                outcome = read_outcome(self._folder.trial(trial.number))
                if outcome is None:
                    raise InputError(f"{self._folder.trial(trial.number)} has no outcome.json, but the store knows "
                                     "this trial as finished: put the folder back, or choose another --out")
                self._told[trial.number] = outcome
                self._note(trial.number, outcome.method, outcome.hyperparameters)
            elif trial.state == TrialState.RUNNING:
                self._show(trial.number)
                self._launch(Trial(self._study, trial._trial_id))

    @property
    def _next(self) -> int:
        return len(self._told) + len(self._flight)

    def _may_ask(self) -> bool:
        """A trial is in flight until it is told, which (unless `reproducible` is off) is in order."""
        in_time = self._budget.hours is None or self._clock.seconds < self._budget.hours * 3600
        return (in_time and len(self._flight) < self._workers and self._repetitions < EXHAUSTED
                and len(self._originals) < self._budget.trials)

    def _ask(self) -> None:
        number = self._next
        self._folder.unfinish()
        self._show(number)
        if number < len(self._first) and not self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            self._study.enqueue_trial(self._first[number])
        self._launch(self._study.ask())

    def _show(self, number: int) -> None:
        """Which trials the sampler sees as finished, when it is asked for this one."""
        self._store.horizon = max(0, number - self._workers + 1) if self._reproducible else None

    def _launch(self, trial: Trial) -> None:
        """Only here is a sampler asked. A point that an earlier trial has is copied from it, not run."""
        method, point = self._space.suggest(trial)
        self._store.write_params(trial._trial_id)
        self._store.horizon = None
        self._flight[trial.number] = trial
        original = self._note(trial.number, method, point)
        if original is not None:
            self._copies[trial.number] = original
            return
        outcome = self._jobs.start(Job(trial.number, method, point, self._seed, self._steps,
                                       self._folder.trial(trial.number), self._constraints))
        if outcome is not None:
            self._ended[trial.number] = outcome

    def _note(self, number: int, method: str, point: Mapping[str, Any]) -> int | None:
        """The earlier trial with the same active point."""
        original = self._originals.setdefault(self._space.key(method, point), number)
        self._repetitions = self._repetitions + 1 if original != number else 0
        return original if original != number else None

    def _collect(self) -> None:
        for job, outcome in self._jobs.wait(SAVED_EVERY):
            self._ended[job.number] = outcome
        self._clock.tick()

    def _tell_next(self) -> bool:
        """The first in order that has ended is told; True where there is one."""
        for number in sorted(self._flight):
            outcome = self._outcome(number)
            if outcome is not None:
                self._tell(number, outcome)
                return True
            if self._reproducible:
                break
        return False

    def _outcome(self, number: int) -> Outcome | None:
        original = self._copies.get(number)
        if original is None:
            return self._ended.get(number)
        known = self._told.get(original) or self._ended.get(original)
        return known and known.renumbered(number, duplicate_of=original)

    def _tell(self, number: int, outcome: Outcome) -> None:
        if number in self._copies:
            write_outcome(self._folder.trial(number), outcome)
        tell(self._study, self._flight.pop(number), outcome)
        self._folder.lighten(self._folder.trial(number))
        self._told[number] = outcome
        self._ended.pop(number, None)
        self._copies.pop(number, None)
        self._observer.ended(outcome)
        self._clock.tick()

