"""NomadSampler: mesh adaptive direct search as a plain Optuna sampler, for mixed, conditional and constrained spaces.

C. Audet and J. E. Dennis Jr., "Mesh adaptive direct search algorithms for constrained optimization", SIAM J. Optim.
17(1), 2006. C. Audet, S. Le Digabel, V. Rochon Montplaisir and C. Tribes, "Algorithm 1027: NOMAD version 4: Nonlinear
optimization with the MADS algorithm", ACM TOMS 48(3), 2022. Its use for fine-tuning: C. Tribes et al.,
"Hyperparameter optimization for large language model instruction-tuning", arXiv 2312.00949.
"""

import threading
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from finemesh.search.samplers.encoding import Dimension
from finemesh.search.samplers.nomad_process import NomadProcess
from finemesh.search.samplers.portfolio import Choice, Portfolio, generator
from finemesh.search.samplers.record import read

STRATA = 8  # independent draws of a number fill so many parts of its range in turn


class NomadSampler(BaseSampler):
    """NOMAD's mesh adaptive direct search with a surrogate's search step, for one objective.

        study = optuna.create_study(sampler=NomadSampler(seed=0))
        study.optimize(objective, n_trials=60)

    The space is that of the define-by-run objective: floats (also logarithmic and stepped), integers, categoricals, and
    any condition between them, learned from the trials. Constraints are those of `trial.set_constraint` (at most 0 is
    feasible), taken as progressive barriers. Failed, NaN and pruned trials are survived and avoided.

    The points are a function of the seed, the number of workers and the told trials with numbers up to n - workers
    (and of the values, not the results, of the running ones between): whoever asks for trial n only then gets the same
    points in every process, after any interruption and in whatever order the trials ended. Asking never waits for a
    running trial. NOMAD runs in a child process.

    Args:
        seed: Of all that is random. None draws one.
        workers: How many trials run at the same time.
    """

    def __init__(self, seed: int | None = None, *, workers: int = 1) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, not {workers}")
        self._seed = int(np.random.default_rng().integers(2**31)) if seed is None else int(seed)
        self._workers = workers
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._process = NomadProcess()
        self._finalizer = weakref.finalize(self, self._process.close)
        self._study: tuple[int, int] | None = None
        self._plans: dict[int, dict[str, Any]] = {}
        self._forget()

    def _forget(self) -> None:
        self._portfolio = Portfolio(self._seed, self._process)
        self._asked = 0  # trials below this number have been asked for
        self._late: set[int] = set()  # those of them that are not told yet
        self._chosen: tuple[int, Choice] | None = None

    def __getstate__(self) -> dict[str, int]:
        return {"seed": self._seed, "workers": self._workers}  # the rest follows from the study

    def __setstate__(self, state: Mapping[str, int]) -> None:
        self._seed, self._workers = state["seed"], state["workers"]
        self._reset()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        if len(study.directions) > 1:
            raise ValueError("NomadSampler searches one objective; for several use TPESampler or NSGAIISampler.")
        plan = self._plan(study, trial)
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
        if trial.system_attrs.get("fixed_params"):
            return {}
        with self._lock:
            if self._study != (id(study._storage), study._study_id):
                self._study = (id(study._storage), study._study_id)
                self._plans.clear()
                self._forget()
            if trial.number not in self._plans:
                if trial.number < self._asked:
                    self._forget()
                self._advance(study, trial.number)
                self._plans[trial.number] = self._portfolio.point(self._choose(trial.number), trial.number)
            return self._plans[trial.number]

    def _advance(self, study: Study, number: int) -> None:
        """Bring the portfolio to where trial `number` is asked for, whether by living through it or by replaying."""
        sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
        trials = study.get_trials(deepcopy=False)
        for asked in range(self._asked, number + 1):
            for late in sorted(self._late):
                if late <= asked - self._workers and trials[late].state.is_finished():
                    self._late.discard(late)
                    self._portfolio.told(read(trials[late], sign))
            if asked == number:
                break
            if not trials[asked].system_attrs.get("fixed_params"):
                self._choose(asked)
            if trials[asked].state != TrialState.WAITING:
                self._portfolio.asked(asked, self._values(trials[asked], number))
            self._late.add(asked)
        self._asked = number

    def _values(self, trial: FrozenTrial, number: int) -> dict[str, Any]:
        """Of a trial asked for before `number`. More trials at once than said: those that it is yet to ask for, too."""
        is_late = trial.number <= number - self._workers and not trial.state.is_finished()
        return {**self._plans.get(trial.number, {}), **trial.params} if is_late else trial.params

    def _choose(self, number: int) -> Choice:
        """Once a trial: it may begin an iteration of NOMAD's."""
        if self._chosen is None or self._chosen[0] != number:
            self._chosen = (number, self._portfolio.choose(number))
        return self._chosen[1]
