import math

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from finemesh.search.samplers.record import read


def trial(**fields: object) -> optuna.trial.FrozenTrial:
    return create_trial(**{"state": TrialState.COMPLETE, **fields})


def test_a_maximised_value_is_turned_round() -> None:
    assert read(trial(value=3.0), sign=-1.0).loss == -3.0


@pytest.mark.parametrize("fields", [
    {"state": TrialState.FAIL}, {"value": math.inf}, {"value": -math.inf},
    {"state": TrialState.PRUNED}, {"state": TrialState.PRUNED, "intermediate_values": {0: math.nan}},
], ids=str)
def test_what_is_no_number_has_failed(fields: dict) -> None:
    record = read(trial(**fields), sign=1.0)
    assert (record.kind, record.loss) == ("failed", math.inf)


def test_a_pruned_trial_gives_its_last_report() -> None:
    record = read(trial(state=TrialState.PRUNED, intermediate_values={1: 5.0, 7: 4.0, 3: 1.0}), sign=1.0)
    assert (record.kind, record.loss) == ("pruned", 4.0)


def test_merit_puts_feasible_before_infeasible_before_failed() -> None:
    trials = [trial(state=TrialState.PRUNED, intermediate_values={0: 8.0}),
              trial(value=9.0, constraints={"memory": 0.0}), trial(value=1.0, constraints={"memory": 0.5, "time": -1}),
              trial(value=0.0, constraints={"memory": 0.5, "time": math.inf}),
              trial(state=TrialState.FAIL)]
    merits = [read(one, sign=1.0).merit for one in trials]
    assert merits == sorted(merits)
    assert len(set(merits)) == len(merits)


def test_out_of_memory_is_infeasible_not_failed() -> None:
    pruned = trial(state=TrialState.PRUNED, constraints={"memory": 2.0})
    assert (read(pruned, sign=1.0).kind, read(pruned, sign=1.0).violation) == ("infeasible", 4.0)
    failed = trial(state=TrialState.FAIL, constraints={"memory": 2.0})
    assert read(failed, sign=1.0).kind == "failed"
    assert read(pruned, sign=1.0).merit < read(failed, sign=1.0).merit


def test_the_violation_is_the_sum_of_squares_above_zero() -> None:
    record = read(trial(value=0.0, constraints={"a": 3.0, "b": -5.0, "c": 4.0}), sign=1.0)
    assert record.violation == 25.0
    assert not record.feasible
