"""Any Optuna sampler made restartable: each trial is sampled by a fresh one, seeded from the seed and the trial's number.

What the inner sampler sees is what an uninterrupted run showed it when the trial was asked for: the trials up to
n - workers as they ended, those between as running, none after.
"""

import copy
import hashlib
from collections.abc import Callable, Container
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

CONTINUES = "continues"  # the attribute of a trial that goes on with an earlier, pruned one: its number


class ReseededSampler(BaseSampler):
    """`make(seed)` gives the sampler of one trial."""

    def __init__(self, make: Callable[[int], BaseSampler], *, seed: int, workers: int = 1) -> None:
        self._make = make
        self._seed = seed
        self._workers = workers
        self._then: StudyThen | None = None
        self._relative: BaseSampler | None = None

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        self._relative = self._make(derived_seed(self._seed, trial.number))
        self._then = None
        return self._relative.infer_relative_search_space(self._view(study, trial), trial)

    def sample_relative(self, study: Study, trial: FrozenTrial,
                        search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        assert self._relative is not None
        return self._relative.sample_relative(self._view(study, trial), trial, search_space)

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str,
                           param_distribution: BaseDistribution) -> Any:
        """By a sampler of the hyperparameter's own: the same value, whichever were sampled before it."""
        sampler = self._make(derived_seed(self._seed, trial.number, param_name))
        return sampler.sample_independent(self._view(study, trial), trial, param_name, param_distribution)

    def _view(self, study: Study, trial: FrozenTrial) -> Any:
        """A Study for all that samplers ask of one."""
        if self._then is None or self._then.number != trial.number:
            self._then = StudyThen(study, trial.number, self._workers)
        return self._then


class StudyThen:
    """The study as it was when trial `number` was asked for; what a sampler would write to it is let go.

    Of a trial that a later one continued only the later one is shown, once it is told: a point that was promoted is not
    good and bad at once.
    """

    def __init__(self, study: Study, number: int, workers: int) -> None:
        self.study = study
        self.number = number
        trials = study.get_trials(deepcopy=False)[:number]
        told, running = trials[:max(0, number - workers + 1)], trials[max(0, number - workers + 1):]
        continued = {trial.user_attrs.get(CONTINUES) for trial in told if trial.state.is_finished()} - {None}
        self._trials = [trial for trial in told if trial.number not in continued] if continued else told
        self._trials += [_running(trial) for trial in running if CONTINUES not in trial.user_attrs]
        self._storage = _NoWriting()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.study, name)

    @property
    def trials(self) -> list[FrozenTrial]:
        return self.get_trials()

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        return self._get_trials(deepcopy, states)

    def _get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None,
                    use_cache: bool = False) -> list[FrozenTrial]:
        chosen = [trial for trial in self._trials if states is None or trial.state in states]
        return copy.deepcopy(chosen) if deepcopy else chosen


class _NoWriting:
    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """TPE notes its relative values here for other processes; there, they follow from the seed."""


def _running(trial: FrozenTrial) -> FrozenTrial:
    then = copy.copy(trial)
    then.state, then.values = TrialState.RUNNING, None
    return then


def derived_seed(seed: int, number: int, name: str = "") -> int:
    digest = hashlib.sha256(f"{seed}\0{number}\0{name}".encode()).digest()
    return int.from_bytes(digest[:4], "little")
