import optuna
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState

from finemesh.search.samplers.reseeded import ReseededSampler, StudyThen, derived_seed


def test_random_points_do_not_come_again_after_a_restart() -> None:
    study = optuna.create_study()
    values = []
    for _ in range(4):
        study.sampler = ReseededSampler(lambda seed: RandomSampler(seed=seed), seed=0)
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1) + trial.suggest_float("y", 0, 1), n_trials=2)
    values = [value for trial in study.trials for value in trial.params.values()]
    assert len(set(values)) == 16


def test_the_study_then_shows_what_was_told_and_what_ran() -> None:
    study = optuna.create_study()
    for value in range(6):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        study.tell(trial, float(value))
    then = StudyThen(study, number=4, workers=2)
    states = [trial.state for trial in then.trials]
    assert states == [TrialState.COMPLETE] * 3 + [TrialState.RUNNING]
    assert then.trials[3].params == study.trials[3].params
    assert then.trials[3].values is None
    assert study.trials[3].value == 3.0
    assert then.direction == study.direction


def test_the_inner_sampler_models_the_trials() -> None:
    """After the random start, TPE's points are near the best ones."""
    study = optuna.create_study(sampler=ReseededSampler(lambda seed: TPESampler(seed=seed), seed=0))
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 100) - 50) ** 2, n_trials=40)
    late = [abs(trial.params["x"] - 50) for trial in study.trials[30:]]
    assert sorted(late)[5] < 12


def test_seeds_differ_by_trial_and_name() -> None:
    seeds = {derived_seed(seed, number, name) for seed in range(3) for number in range(20) for name in ("", "x", "y")}
    assert len(seeds) == 180
