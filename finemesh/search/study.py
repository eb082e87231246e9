"""The loop of a search: ask, run, tell, resume.

Trial n is asked for when exactly the trials up to n - in_flight are told, in order: completion order cannot change the
points, and a search that was stopped at any moment goes on with the points of the uninterrupted one. What trial n is, a
new point or the continuation of a pruned trial, and how far it goes, is the fidelity rule's to say.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.samplers import BaseSampler
from optuna.trial import Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from finemesh.disk import full_disk
from finemesh.errors import InputError
from finemesh.objectives import LOSS
from finemesh.run import RunFolder
from finemesh.search.board import Board
from finemesh.search.budget import SAVED_EVERY, Budget, Clock
from finemesh.search.database import Patience, gone
from finemesh.search.executors.base import Executor
from finemesh.search.fidelities import FIDELITIES, Fidelity, History, Start
from finemesh.search.foresight import Count, Foresight
from finemesh.search.jobs import Jobs
from finemesh.search.observer import Nobody, Observer
from finemesh.search.samplers.reseeded import CONTINUES
from finemesh.search.space import Space
from finemesh.search.store import opened, storage_error, store_of, tell
from finemesh.search.transfer import Known, Transfer
from finemesh.trial import Job, Outcome, read_outcome, write_json, write_outcome

EXHAUSTED = 200  # points in a row that were known already
AHEAD = 2  # trials in flight for each worker, so that none is idle behind a slow trial (docs/decisions/014)


def run_search(
    space: Space, sampler: BaseSampler, budget: Budget, executor: Executor, run: RunFolder, *,
    seed: int, steps: int, in_flight: int = 1, constraints: Mapping[str, float] | None = None, reproducible: bool = True,
    observer: Observer | None = None, first: Sequence[tuple[str, Mapping[str, Any]]] = (), storage: str | None = None,
    fidelity: Fidelity | None = None, count: Count | None = None, earlier: Sequence[Known] = (),
    objectives: Sequence[str] = (LOSS,),
) -> list[Outcome]:
    """The outcomes of all trials, in order, those of earlier runs of the command included.

    `in_flight`: how many trials are begun and not told at a time, the `workers` of the sampler; those that the executor's
    workers cannot run yet wait for them.
    `first`: points that are evaluated before the sampler's own, moved into the space where they are outside; `earlier`: those
    of earlier studies that come next, as far as their ranking holds here.
    `fidelity` says how far each trial goes; by default all go `steps`. `count` says how many parameters a point trains: with
    it, points that are foreseen to break the constraints are not started. `objectives`: what the sampler is told of.
    `storage`: the URL of a database; by default study.db in the run folder. When it goes away the search waits for it.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    observer, rule = observer or Nobody(), fidelity or FIDELITIES["full"](steps, None, 1)
    jobs, spare = Jobs(executor, observer, Board(run)), copy.deepcopy(sampler) if storage else sampler
    patience = Patience(storage, run.path, jobs.pause, observer.message) if storage else None
    search: Search | None = None
    observer.phase("search", budget.trials)
    while True:
        try:
            with full_disk(run.path), opened(storage or f"sqlite:///{run.study}", run.study_name(storage), sampler,
                                             objectives, alone=storage is None) as study:
                search = Search(space, study, budget, jobs, run, observer, seed=seed, steps=steps, in_flight=in_flight,
                                constraints=dict(constraints or {}), reproducible=reproducible, first=first, earlier=earlier,
                                objectives=objectives, fidelity=rule.knowing(len(first)),
                                foresight=Foresight(constraints or {}, space, count, steps))
                return search.run()
        except (StorageInternalError, SQLAlchemyError) as error:
            if patience is None:
                raise storage_error(error, run.study) from error
            if not gone(error):
                raise
            patience.wait(error, len(search.told) if search else 0)
            sampler = copy.deepcopy(spare)  # as in a new process: what it heard may not have been stored


def trials_in_flight(workers: int, *, reproducible: bool) -> int:
    """Of a search with so many workers. Told as they end, or with one worker, trials leave nobody waiting."""
    return AHEAD * workers if reproducible and workers > 1 else workers


class Search:
    """One run of the command. `told` holds the outcomes that the store knows, `flight` the trials that it awaits."""

    def __init__(self, space: Space, study: optuna.Study, budget: Budget, jobs: Jobs, run: RunFolder,
                 observer: Observer, *, seed: int, steps: int, in_flight: int, constraints: dict[str, float],
                 reproducible: bool, first: Sequence[tuple[str, Mapping[str, Any]]], earlier: Sequence[Known],
                 objectives: Sequence[str], fidelity: Fidelity, foresight: Foresight) -> None:
        self._space, self._budget, self._jobs, self._folder, self._observer = space, budget, jobs, run, observer
        self._seed, self._steps, self._in_flight, self._constraints = seed, steps, in_flight, constraints
        self._objectives = objectives
        self._reproducible, self._study, self._store = reproducible, study, store_of(study)
        self._fidelity, self._history, self._foresight = fidelity, History(run), foresight
        inside = [(method, space.nearest(method, point)) for method, point in first]
        self._first = [space.stored(method, point) for method, point in inside]
        self._transfer = Transfer(earlier, space, {space.key(*pair) for pair in inside}, self._history.forecast)
        self.told: dict[int, Outcome] = {}
        self._flight: dict[int, Trial] = {}
        self._ended: dict[int, Outcome] = {}  # not told yet
        self._originals: dict[str, int] = {}  # key of a point -> the trial that runs it
        self._copies: dict[int, int] = {}  # trial in flight -> the earlier one with its point
        self._start: Start | None = None  # what the next trial is
        self._unstarted: set[int] = set()  # foreseen to be infeasible
        self._idle = 0  # points in a row, up to the latest, that were not run
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
        if self._idle >= EXHAUSTED:
            why = "known already or surely infeasible" if self._unstarted else "known already"
            self._observer.message(f"The space is exhausted: {EXHAUSTED} points in a row were {why}. "
                                   f"The search ends after {self._run_points} trials.")
        return [self.told[number] for number in sorted(self.told)]

    def _resume(self) -> None:
        """What the store knows as finished is read; what it knows as running keeps its number and its point."""
        trials = self._study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state.is_finished():
                outcome = read_outcome(self._folder.trial(trial.number))
                if outcome is None:
                    raise InputError(f"{self._folder.trial(trial.number)} has no outcome.json, but the store knows "
                                     "this trial as finished: put the folder back, or choose another --out")
                self.told[trial.number] = outcome
                if self._note(trial.number, outcome.method, outcome.hyperparameters, outcome.continues) is None:
                    self._begin(outcome)
                    self._hear(outcome)
            elif trial.state == TrialState.RUNNING:
                self._show(trial.number)
                self._start = self._due()
                self._launch(Trial(self._study, trial._trial_id))

    @property
    def _next(self) -> int:
        return len(self.told) + len(self._flight)

    def _may_ask(self) -> bool:
        """A trial is in flight until it is told, which (unless `reproducible` is off) is in order."""
        in_time = self._budget.hours is None or self._clock.seconds < self._budget.hours * 3600
        if not in_time or len(self._flight) >= self._in_flight:
            return False
        self._start = self._due()
        return self._start is not None

    def _due(self) -> Start | None:
        """What the next trial is; None where there is nothing to do until more is told."""
        return self._fidelity.next(self._history, self._idle < EXHAUSTED and self._run_points < self._budget.trials)

    @property
    def _run_points(self) -> int:
        return len(self._originals) - len(self._unstarted)

    def _ask(self) -> None:
        number = self._next
        self._folder.unfinish()
        self._show(number)
        begun = number - len(self._history.successors)
        if not self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            if self._start and self._start.continues is not None:
                former = self.told[self._start.continues]
                self._study.enqueue_trial(self._space.stored(former.method, former.hyperparameters),
                                          user_attrs={CONTINUES: former.number})
            elif begun < len(self._first):
                self._study.enqueue_trial(self._first[begun])
            elif (known := self._transfer.next(self._originals)) is not None:
                self._study.enqueue_trial(self._space.stored(known.method, known.hyperparameters))
        self._launch(self._study.ask())

    def _show(self, number: int) -> None:
        """Which trials the sampler sees as finished, when it is asked for this one."""
        self._store.horizon = max(0, number - self._in_flight + 1) if self._reproducible else None

    def _launch(self, trial: Trial) -> None:
        """Only here is a sampler asked. A point that an earlier trial has is copied from it, not run."""
        method, point = self._space.suggest(trial)
        self._store.write_params(trial._trial_id)
        self._store.horizon = None
        number, folder = trial.number, self._folder.trial(trial.number)
        self._flight[number] = trial
        begun, ended = Start.read(folder), read_outcome(folder)
        start = begun or self._start or Start(self._steps)
        original = self._note(number, method, point, start.continues)
        if original is not None:
            self._copies[number] = original
            return
        if ended and not ended.started and (ended.method, ended.hyperparameters) == (method, point):
            self._skip(ended)  # whatever has been told since
            return
        if begun is None and start.continues is None:
            excesses, foreseen = self._foresight.excesses(method, point)
            if not self._foresight.starts(excesses, foreseen):
                self._skip(Outcome(number, "infeasible", method, point, self._seed, constraints=excesses, foreseen=foreseen,
                                   started=False, error=self._foresight.reason(excesses)))
                return
            start = replace(start, foreseen=foreseen)
        self._count(number, start.continues)
        with full_disk(folder):
            start.write(folder)
        if start.continues is not None:
            self._folder.hand_on(start.continues, number)
        outcome = self._jobs.start(Job(number, method, point, self._seed, start.steps, folder, self._constraints,
                                       start.continues, start.hurdles, start.foreseen))
        if outcome is not None:
            self._ended[number] = outcome

    def _skip(self, outcome: Outcome) -> None:
        """A point that is foreseen to be infeasible is told as that, and takes nothing from the budget."""
        with full_disk(self._folder.path):
            write_outcome(self._folder.trial(outcome.number), outcome)
        self._begin(outcome)
        self._ended[outcome.number] = outcome

    def _begin(self, outcome: Outcome) -> None:
        if outcome.started:
            self._count(outcome.number, outcome.continues)
        else:
            self._unstarted.add(outcome.number)
            self._idle += 1

    def _count(self, number: int, continues: int | None) -> None:
        """One that runs. A promotion finds nothing new: a space that is exhausted stays so."""
        self._history.begin(number, continues)
        if continues is None:
            self._idle = 0

    def _hear(self, outcome: Outcome) -> bool:
        """Whether an earlier study knows its point."""
        self._foresight.tell(outcome)
        if outcome.started:
            self._history.tell(outcome)
        known = self._transfer.tell(outcome)
        if known:
            with full_disk(self._folder.path):
                write_json(self._folder.transfer, self._transfer.document())
        return known

    def _note(self, number: int, method: str, point: Mapping[str, Any], continues: int | None) -> int | None:
        """The earlier trial with the same active point, unless this one continues it."""
        key = self._space.key(method, point)
        original = self._originals.setdefault(key, number) if continues is None else number
        self._originals[key] = original if continues is None else number
        self._idle += original != number
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
        known = self.told.get(original) or self._ended.get(original)
        return known and known.renumbered(number, duplicate_of=original)

    def _tell(self, number: int, outcome: Outcome) -> None:
        if number in self._copies:
            write_outcome(self._folder.trial(number), outcome)
        elif self._hear(outcome) and outcome.continues is None and self._transfer.over(self._originals):
            self._observer.message(self._transfer.said())
        tell(self._study, self._flight.pop(number), outcome, self._history.forecast(outcome), self._steps, self._objectives,
             self._constraints)
        self._folder.lighten(self._folder.trial(number))
        if self._history.resting:
            for former in self._history.resting - self._fidelity.kept(self._history):
                self._history.resting.discard(former)
                self._folder.forget_checkpoint(former)
        self.told[number] = outcome
        self._ended.pop(number, None)
        self._copies.pop(number, None)
        self._observer.ended(outcome)
        self._clock.tick()

