"""The store: what it keeps of the trials is what the database says of them."""

import copy
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from finemesh.search.samplers import OPTIMIZERS
from finemesh.search.store import opened, read_trials, store_of, tell
from finemesh.trial import Outcome


def test_what_is_kept_is_what_the_database_says(fake: SimpleNamespace, tmp_path: Path) -> None:
    """Written one after another and seen by a sampler in between; read anew by another store."""
    losses = [("complete", 1.5), ("failed", None), ("pruned", 2.5), ("infeasible", 3.5), ("infeasible", None),
              ("complete", math.inf)]
    url = f"sqlite:///{tmp_path / 'study.db'}"
    with opened(url, "one", fake.Watching(0)) as study:
        store = store_of(study)
        study.enqueue_trial(fake.SPACE.stored("full", {"learning_rate": 1e-3}), user_attrs={"continues": 3})
        for number, (state, loss) in enumerate(losses):
            store.horizon = number
            trial = study.ask()
            method, point = fake.SPACE.suggest(trial)
            store.write_params(trial._trial_id)
            store.set_trial_system_attr(trial._trial_id, "note", [number])
            before = study.get_trials(deepcopy=False)
            tell(study, trial, Outcome(number, state, method, point, 0, 4, loss, constraints={"seconds": -1.0}), 2.0, 9)
            assert [t.state for t in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))] == [TrialState.RUNNING]
            assert before[-1].state == TrialState.RUNNING  # whoever was shown it
            assert not before[-1].constraints
        study.ask()
        store.horizon = None
        kept = study.get_trials(deepcopy=False)
        with opened(url, "one", fake.Watching(0)) as again:
            assert [without_times(trial) for trial in kept] == [without_times(trial) for trial in again.trials]
        assert read_trials(store._backend, study._study_id) == store._backend.get_all_trials(study._study_id)
        assert [trial.number for trial in study.get_trials(states=(TrialState.RUNNING,))] == [6]


def without_times(trial: FrozenTrial) -> FrozenTrial:
    timeless = copy.copy(trial)
    timeless.datetime_start = timeless.datetime_complete = None
    return timeless


def test_studies_share_a_database(fake: SimpleNamespace, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    with opened(url, "one", fake.Watching(0)) as one, opened(url, "two", optuna.samplers.RandomSampler()) as two:
        for study in (one, two, one, two):
            study.ask()
        assert [[trial.number for trial in study.trials] for study in (one, two)] == [[0, 1], [0, 1]]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_searches_several_objectives_some_of_them_scores(fake: SimpleNamespace, tmp_path: Path,
                                                                        optimizer: str) -> None:
    shutil.copy(fake.empty_store(), tmp_path / "study.db")
    objectives = ["validation_loss", "peak_memory_mb", "accuracy"]
    with opened(f"sqlite:///{tmp_path}/study.db", "study", OPTIMIZERS[optimizer](0, 1), objectives) as study:
        assert [direction.name for direction in study.directions] == ["MINIMIZE", "MINIMIZE", "MAXIMIZE"]
        for number in range(11):
            trial = study.ask()
            x = trial.suggest_float("x", 0, 1)
            store_of(study).write_params(trial._trial_id)
            state = {3: "infeasible", 5: "failed", 7: "infeasible"}.get(number, "complete")
            outcome = Outcome(number, state, "lora", {"x": x}, 0, validation_loss=None if number == 7 else (x - 0.3) ** 2,
                              peak_memory_mb=None if number == 9 else x, metrics={"accuracy": 1 - x},
                              constraints={"seconds": 2.0} if number == 3 else {})
            tell(study, trial, outcome, objectives=objectives)
        trials = study.get_trials(deepcopy=False)
    states = {number: trials[number].state for number in (0, 3, 5, 7, 9)}
    assert states == {0: TrialState.COMPLETE, 3: TrialState.COMPLETE, 5: TrialState.FAIL, 7: TrialState.PRUNED,
                      9: TrialState.FAIL}  # of the ninth one objective was not measured
    x = trials[0].params["x"]
    assert trials[0].values == pytest.approx([(x - 0.3) ** 2, x, 1 - x])
    assert trials[7].constraints == {"infeasible": 1.0}


def test_a_trial_that_broke_a_bound_at_its_rung_is_not_told_as_a_whole_one(fake: SimpleNamespace, tmp_path: Path) -> None:
    with opened(f"sqlite:///{tmp_path / 'study.db'}", "one", fake.Watching(0)) as study:
        for steps in (10, 90):
            trial = study.ask()
            method, point = fake.SPACE.suggest(trial)
            store_of(study).write_params(trial._trial_id)
            tell(study, trial, Outcome(trial.number, "infeasible", method, point, 0, steps, 2.0,
                                       constraints={"peak_memory_mb": 5.0, "accuracy": 0.1}), whole=90,
                 bounds={"peak_memory_mb": 1000.0, "accuracy": 0.8})
        first, second = study.get_trials()
    assert (first.state.name, first.intermediate_values, second.state.name) == ("PRUNED", {10: 2.0}, "COMPLETE")
    assert first.constraints == second.constraints == {"peak_memory_mb": 0.005, "accuracy": pytest.approx(0.125)}
