"""How structures share the trials where the study holds trials that the sampler did not plan."""

from collections import Counter

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.samplers import PartialFixedSampler, RandomSampler
from optuna.trial import FrozenTrial, Trial, create_trial

from finemesh.search.samplers import NomadSampler


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def methods(trial: Trial) -> float:
    method = trial.suggest_categorical("method", ["a", "b", "c", "d"])
    return "abcd".index(method) + (trial.suggest_float(f"{method}.x", 0, 1) - 0.4) ** 2


def made(method: str, x: float) -> FrozenTrial:
    distributions = {"method": CategoricalDistribution(["a", "b", "c", "d"]), f"{method}.x": FloatDistribution(0, 1)}
    return create_trial(params={"method": method, f"{method}.x": x}, distributions=distributions,
                        value="abcd".index(method) + (x - 0.4) ** 2)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_best_method_of_another_samplers_trials_gets_the_most(seed: int) -> None:
    study = optuna.create_study(sampler=RandomSampler(seed=seed))
    study.optimize(methods, n_trials=25)
    study.sampler = NomadSampler(seed=seed)
    study.optimize(methods, n_trials=10)
    counts = Counter(trial.params["method"] for trial in study.trials[25:])
    assert counts["a"] == max(counts.values())
    assert counts["a"] >= 4


def test_another_samplers_trials_count_in_no_share() -> None:
    """They were nearly all of the best method; the others have nothing to catch up."""
    study = optuna.create_study(sampler=NomadSampler(seed=0))
    study.add_trials([made("bcd"[index // 5 % 3] if index % 5 == 0 else "a", index / 59) for index in range(60)])
    study.optimize(methods, n_trials=10)
    assert [trial.params["method"] for trial in study.trials[60:]].count("a") >= 4


@pytest.mark.filterwarnings("ignore:PartialFixedSampler is experimental")
def test_a_point_of_several_objectives_that_was_overridden_is_not_handed_out_again() -> None:
    def objective(trial: Trial) -> tuple[float, float]:
        x, y, z = (trial.suggest_float(name, 0, 1) for name in "xyz")
        return (x - 0.37) ** 2 + (y - 0.37) ** 2 + (z - 0.37) ** 2, (x - 0.6) ** 2 + (z - 0.6) ** 2

    sampler = PartialFixedSampler({"y": 0.5}, NomadSampler(seed=1))
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
    study.optimize(objective, n_trials=30)
    assert {trial.params["y"] for trial in study.trials} == {0.5}
    assert len({tuple(trial.params.values()) for trial in study.trials}) >= 27
