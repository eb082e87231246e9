from typing import Any

from finemesh.objectives import directions, front, value, values
from finemesh.trial import Outcome


def outcome(number: int, loss: float | None, memory: float | None = None, **fields: Any) -> Outcome:
    state = fields.pop("state", "complete")
    return Outcome(number, state, "lora", {}, 0, validation_loss=loss, peak_memory_mb=memory, **fields)


def test_values_are_numbers_of_the_outcome_its_minutes_and_its_scores() -> None:
    one = outcome(0, 1.5, 800.0, seconds=90.0, trainable_parameters=7, metrics={"accuracy": 0.9})
    assert values(one, ["validation_loss", "minutes", "trainable_parameters", "accuracy"]) == [1.5, 1.5, 7.0, 0.9]
    assert value(one, "adapter_mb") is None
    assert value(outcome(0, float("nan")), "validation_loss") is None
    assert values(one, ["validation_loss", "f1"]) is None
    assert directions(["accuracy", "seconds"]) == ["maximize", "minimize"]


def test_the_front_is_of_complete_feasible_trials_that_no_other_one_dominates() -> None:
    trials = [outcome(0, 1.0, 900), outcome(1, 2.0, 500), outcome(2, 2.0, 600), outcome(3, 3.0, 500), outcome(4, 1.5, 700),
              outcome(5, 0.5, 100, state="infeasible", constraints={"seconds": 1.0}), outcome(6, 0.5, 100, duplicate_of=0),
              outcome(7, None, 100, state="failed"), outcome(8, 0.9, None), outcome(9, 2.0, 500)]
    assert [one.number for one in front(trials, ["validation_loss", "peak_memory_mb"])] == [0, 4, 1, 9]


def test_scores_are_better_when_higher() -> None:
    trials = [outcome(0, 1.0, metrics={"accuracy": 0.8}), outcome(1, 1.2, metrics={"accuracy": 0.9}),
              outcome(2, 1.1, metrics={"accuracy": 0.7})]
    assert [one.number for one in front(trials, ["validation_loss", "accuracy"])] == [0, 1]
