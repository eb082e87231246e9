import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from optuna.trial import TrialState

from finemesh.search.samplers import OPTIMIZERS
from finemesh.search.store import opened, store_of, tell
from finemesh.trial import Outcome


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
