"""NomadSampler: mesh adaptive direct search as a plain Optuna sampler, for mixed, conditional and constrained spaces.

How to use it, and what it does with them: docs/nomad-sampler.md.

C. Audet and J. E. Dennis Jr., "Mesh adaptive direct search algorithms for constrained optimization", SIAM J. Optim.
17(1), 2006. C. Audet, S. Le Digabel, V. Rochon Montplaisir and C. Tribes, "Algorithm 1027: NOMAD version 4: Nonlinear
optimization with the MADS algorithm", ACM TOMS 48(3), 2022. Its use for fine-tuning: C. Tribes et al.,
"Hyperparameter optimization for large language model instruction-tuning", arXiv 2312.00949.
"""

import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from finemesh.search.samplers.encoding import Dimension
from finemesh.search.samplers.nomad_process import shared
from finemesh.search.samplers.options import Options
from finemesh.search.samplers.portfolio import Choice, Portfolio, generator
from finemesh.search.samplers.record import read

OBJECTIVES = 4
LATE = "nomad:late"  # the attribute of a trial: the numbers of those that it overtook
PLAN = "nomad:plan"  # the attribute of a trial of this sampler's: what was planned for it in a structure
STRATA = 8  # independent draws of a number fill so many parts of its range in turn


class NomadSampler(BaseSampler):
    """NOMAD's mesh adaptive direct search with a surrogate's search step, for one to four objectives.

        study = optuna.create_study(sampler=NomadSampler(seed=0))
        study.optimize(objective, n_trials=60)

    The space is that of the define-by-run objective: floats (also logarithmic and stepped), integers, categoricals, and
    any condition between them, learned from the trials. Constraints are those of `trial.set_constraint` (at most 0 is
    feasible), taken as progressive barriers. Failed, NaN and pruned trials are survived and avoided. With two to four
    objectives the searches are NOMAD's DMulti-MADS and the surrogate looks for hypervolume.

    The points are a function of the seed, the number of workers and the told trials with numbers up to n - workers
    (and of the values, not the results, of the running ones between): whoever asks for trial n only then gets the same
    points in every process, after any interruption and in whatever order the trials ended. Asking never waits for a
    running trial: one that is not told although `workers` trials were asked for after it is noted with the trial that is
    asked for, so that the points can be had again from the storage all the same. That holds for one ask after the other: with
    `n_jobs`, the points depend on what each thread knew of the others, and another run or process gets others, as good.
    Trials of other samplers are known points. NOMAD runs in a child process.

    Args:
        seed: Of all that is random. None draws one.
        workers: How many trials run at the same time, at least 1.
        quadratic_model_search: Whether NOMAD also proposes the minima of quadratic models (A. R. Conn and S. Le Digabel,
            Optimization Methods and Software 28(1), 2013), up to 100 trials of a structure.
        nelder_mead_search: Whether NOMAD also proposes a Nelder-Mead simplex's reflections (C. Audet and C. Tribes,
            Computational Optimization and Applications 71(2), 2018).
        latin_hypercube: With how many points, at least 2, each structure (a set of hyperparameters that are asked for together)
            begins: a Latin hypercube (M. D. McKay et al., Technometrics 21(2), 1979). None: as many points of an additive
            recurrence as there are hyperparameters and two more, fewer where there are several structures.

    Raises:
        ValueError: For a number of workers or of points that is too small, and, when a trial is asked for, in a study of
            more than four objectives.
        ImportError: When a trial is asked for and PyNomad is not installed.
    """

    def __init__(self, seed: int | None = None, *, workers: int = 1, quadratic_model_search: bool = True,
                 nelder_mead_search: bool = True, latin_hypercube: int | None = None) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, not {workers}")
        if latin_hypercube is not None and latin_hypercube < 2:
            raise ValueError(f"latin_hypercube must be at least 2 points or None, not {latin_hypercube}")
        self._seed = int(np.random.default_rng().integers(2**31)) if seed is None else int(seed)
        self._workers = workers
        self._options = Options(quadratic_model_search, nelder_mead_search, latin_hypercube)
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._process = shared()
        self._study: tuple[weakref.ref[BaseStorage], int] | None = None
        self._plans: dict[int, dict[str, Any]] = {}
        self._notes: dict[int, dict[str, Any]] = {}  # what PLAN is to be
        self._forget(objectives=1)

    def _forget(self, objectives: int) -> None:
        self._portfolio = Portfolio(self._seed, self._process, self._options, objectives)
        self._asked = 0  # trials below this number have been asked for
        self._late: set[int] = set()  # those of them that are not told yet
        self._chosen: tuple[int, Choice] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"seed": self._seed, "workers": self._workers, "options": self._options}  # the rest follows from the study

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self._seed, self._workers, self._options = state["seed"], state["workers"], state["options"]
        self._reset()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        if len(study.directions) > OBJECTIVES:
            raise ValueError(f"NomadSampler searches one to {OBJECTIVES} objectives, not {len(study.directions)}: turn some of "
                             "them into constraints (trial.set_constraint), or use TPESampler or NSGAIISampler")
        with self._lock:  # a thread that asks for another study would put its portfolio in the place of this one
            plan, note = self._plan(study, trial), self._notes.get(trial.number)
            if note is not None and trial.system_attrs.get(PLAN) != note:
                study._storage.set_trial_system_attr(trial._trial_id, PLAN, note)
            known = self._portfolio.structures.distributions
            return {name: known[name] for name in plan}

    def sample_relative(self, study: Study, trial: FrozenTrial,
                        search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        return {name: value for name, value in self._plan(study, trial).items() if name in search_space}

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str,
                           param_distribution: BaseDistribution) -> Any:
        """A hyperparameter that the plan knows nothing of: strata, or choices, in a shuffled turn."""
        distribution = param_distribution
        count = len(distribution.choices) if isinstance(distribution, CategoricalDistribution) else STRATA
        dimension = Dimension(param_name, distribution, tuple(range(count)))
        turn, place = divmod(trial.number, count)
        stratum = generator(self._seed, turn, "turn", param_name).permutation(count)[place]
        uniform = generator(self._seed, trial.number, "independent", param_name).random()
        return dimension.value(dimension.sampled((stratum + uniform) / count))

    def _plan(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
        """The values that the trial should try; those of an enqueued one are its own."""
        with self._lock:
            asking = weakref.ref(study._storage), study._study_id  # a later storage may get the id() of one that is gone
            if self._study != asking:
                self._study = asking
                self._plans.clear()
                self._notes.clear()
                self._forget(len(study.directions))
            if trial.number not in self._plans:
                if trial.number < self._asked:
                    self._forget(len(study.directions))
                self._advance(study, trial.number)
                self._plan_now(trial)
            return self._plans[trial.number]

    def _plan_now(self, trial: FrozenTrial) -> None:
        if _is_enqueued(trial):
            self._plans[trial.number] = {}
            return
        choice = self._choose(trial.number)
        self._plans[trial.number] = self._portfolio.point(choice, trial.number)
        self._notes[trial.number] = self._plans[trial.number] if choice.stays else {}

    def _advance(self, study: Study, number: int) -> None:
        """Bring the portfolio to where trial `number` is asked for, whether by living through it or by replaying."""
        signs = [-1.0 if direction == StudyDirection.MAXIMIZE else 1.0 for direction in study.directions]
        trials = study.get_trials(deepcopy=False)
        for asked in range(self._asked, number + 1):
            is_planned = asked == number or self._is_yet_to_ask(trials[asked])
            overtaken = self._overtaken(study, trials, asked, is_planned)
            for late in sorted(self._late - overtaken):
                if late <= asked - self._workers:
                    self._late.discard(late)
                    self._portfolio.told(read(trials[late], *signs))
            if asked == number:
                break
            if is_planned:
                self._plan_now(trials[asked])
            note = self._notes.get(asked, trials[asked].system_attrs.get(PLAN))
            if note is not None:
                self._choose(asked)
            if trials[asked].state != TrialState.WAITING:
                is_foreign = note is None and not _is_enqueued(trials[asked])
                self._portfolio.asked(asked, self._values(trials[asked], number), note or {}, is_foreign)
            self._late.add(asked)
        self._asked = number

    def _is_yet_to_ask(self, trial: FrozenTrial) -> bool:
        """Whether a later trial's thread came first: two of them are not to get the same point."""
        return trial.state == TrialState.RUNNING and not trial.params and trial.number not in self._plans

    def _overtaken(self, study: Study, trials: list[FrozenTrial], asked: int, is_planned: bool) -> set[int]:
        """The trials up to asked - workers that were not told when trial `asked` was asked for, which its attribute says."""
        running = {late for late in self._late if late <= asked - self._workers and not trials[late].state.is_finished()}
        if LATE in trials[asked].system_attrs:
            return running | set(trials[asked].system_attrs[LATE])
        if running and is_planned:
            with suppress(UpdateFinishedTrialError):  # a trial of another process that has ended since
                study._storage.set_trial_system_attr(trials[asked]._trial_id, LATE, sorted(running))
        return running

    def _values(self, trial: FrozenTrial, number: int) -> dict[str, Any]:
        """Of a trial asked for before `number`; those that its thread is yet to ask for are the plan's."""
        plan, is_late = self._plans.get(trial.number, {}), trial.number <= number - self._workers
        is_asking = not trial.params or (is_late and trial.params.items() < plan.items())
        return plan if is_asking and not trial.state.is_finished() else trial.params

    def _choose(self, number: int) -> Choice:
        """Once a trial: it may begin an iteration of NOMAD's."""
        if self._chosen is None or self._chosen[0] != number:
            self._chosen = (number, self._portfolio.choose(number))
        return self._chosen[1]


def _is_enqueued(trial: FrozenTrial) -> bool:
    return bool(trial.system_attrs.get("fixed_params"))
