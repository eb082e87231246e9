"""Points that are foreseen to break the constraints are not started, and how often that is right is known."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finemesh.search.foresight import CHECK_EVERY, FEWEST, Foresight
from finemesh.trial import Outcome
from tests.search.fidelities import simulation


def count(method: str, point: Any) -> int:
    return 1000 * point.get("rank", 5)


def told(number: int, rank: int, **fields: Any) -> Outcome:
    point = {"rank": rank, "learning_rate": 1e-4 * (1 + number % 7), "init": "random"}
    outcome = Outcome(number, "complete", "lora", point, 0, 90, 1.5, trainable_parameters=1000 * rank, trained_tokens=900,
                      seconds=20.0 + rank + 0.5 * (-1) ** number, peak_memory_mb=100.0 + 2 * rank + (-1) ** number)
    return replace(outcome, **fields)


def foresight(space: Any, trials: int, **bounds: float) -> Foresight:
    made = Foresight(bounds, space, count, 90)
    for number in range(trials):
        made.tell(told(number, 2 + 3 * number))
    return made


def test_what_is_counted_is_known_at_once(fake: SimpleNamespace) -> None:
    made = foresight(fake.SPACE, 0, trainable_parameters=2e4, seconds=60)
    excesses, foreseen = made.excesses("lora", {"rank": 32})
    assert (excesses, foreseen) == ({"trainable_parameters": 12000.0}, "infeasible")
    assert not made.starts(excesses, foreseen)
    assert made.reason(excesses) == "predicted: trainable_parameters would be 3.2e+04, more than 20000"
    assert made.excesses("lora", {"rank": 16}) == ({"trainable_parameters": -4000.0}, "feasible")


def test_time_and_memory_follow_from_told_trials(fake: SimpleNamespace) -> None:
    point = {"rank": 40, "learning_rate": 3e-4, "init": "random"}
    assert foresight(fake.SPACE, FEWEST - 1, peak_memory_mb=150).excesses("lora", point) == ({}, None)
    made = foresight(fake.SPACE, 8, peak_memory_mb=150, seconds=100)
    excesses, foreseen = made.excesses("lora", point)
    assert excesses["peak_memory_mb"] == pytest.approx(100 + 80 - 150, abs=6)
    assert excesses["seconds"] == pytest.approx(60 - 100, abs=6)
    assert foreseen == "infeasible"
    assert made.excesses("lora", point | {"rank": 10})[1] == "feasible"
    assert made.excesses("full", {"learning_rate": 1e-4}) == ({}, None)


def test_what_may_be_feasible_is_started(fake: SimpleNamespace) -> None:
    """A little above the bound, within what the regression may be wrong by."""
    excesses, foreseen = foresight(fake.SPACE, 8, peak_memory_mb=141).excesses("lora", {"rank": 21, "learning_rate": 3e-4,
                                                                                        "init": "random"})
    assert excesses["peak_memory_mb"] > 0
    assert foreseen == "feasible"


def test_now_and_then_a_doubtful_point_runs_to_see_who_is_right(fake: SimpleNamespace) -> None:
    made, runs = foresight(fake.SPACE, 8, peak_memory_mb=120), []
    for number in range(2 * CHECK_EVERY):
        excesses, foreseen = made.excesses("lora", {"rank": 60, "learning_rate": 3e-4, "init": "random"})
        runs.append(made.starts(excesses, foreseen))
        made.tell(Outcome(9 + number, "infeasible", "lora", {}, 0, constraints=excesses, foreseen=foreseen, started=False))
    assert runs == ([True] + [False] * (CHECK_EVERY - 1)) * 2


def test_a_pruned_trial_says_how_long_a_whole_one_takes_and_a_stopped_one_only_what_stopped_it(fake: SimpleNamespace) -> None:
    made = Foresight({"seconds": 300, "peak_memory_mb": 900}, fake.SPACE, count, 90)
    for number in range(8):
        made.tell(told(number, 8, state="pruned", steps=30, seconds=40.0))
    made.tell(told(8, 8, state="infeasible", validation_loss=None, seconds=3.0, peak_memory_mb=950.0,
                   constraints={"seconds": -297.0, "peak_memory_mb": 50.0}))
    assert made.excesses("lora", told(9, 8).hyperparameters)[0]["seconds"] == pytest.approx(120 - 300, abs=1)


def test_what_preparing_takes_is_the_same_for_a_pruned_trial_and_a_whole_one(fake: SimpleNamespace) -> None:
    made = Foresight({"seconds": 300}, fake.SPACE, count, 90)
    for number in range(FEWEST):
        made.tell(told(number, 8, state="pruned", steps=30, seconds=40.0, preparation_seconds=10.0))
    assert made.excesses("lora", told(9, 8).hyperparameters)[0]["seconds"] == pytest.approx(10 + 90 - 300)


def test_a_trial_stopped_for_its_time_says_how_long_the_whole_one_would_have_taken(fake: SimpleNamespace) -> None:
    """All that were stopped at the bound took just that: only with the steps that they made do they say what was too long."""
    made = Foresight({"seconds": 60}, fake.SPACE, count, 90)
    for number in range(FEWEST):
        made.tell(told(number, 8, state="infeasible", validation_loss=None, steps=45, seconds=60.5,
                       constraints={"seconds": 0.5}))
    assert made.excesses("lora", told(9, 8).hyperparameters) == ({"seconds": pytest.approx(121 - 60)}, "infeasible")


@pytest.mark.parametrize("fidelity", ["full", "halving"])
def test_a_search_starts_what_it_may_and_goes_on_alike(fake: SimpleNamespace, tmp_path: Path, fidelity: str) -> None:
    options: Any = {"points": 12, "workers": 2, "constraints": {"trainable_parameters": 3e4, "peak_memory_mb": 140.0},
                    "count": count}
    whole, _ = simulation.search(fake, tmp_path / "whole", fidelity, **options)
    unstarted = [outcome for outcome in whole if not outcome.started]
    assert unstarted
    assert {outcome.state for outcome in unstarted} == {"infeasible"}
    assert all(outcome.foreseen == "infeasible" and str(outcome.error).startswith("predicted: ") for outcome in unstarted)
    assert not any(list((tmp_path / f"whole/trials/{outcome.number:04d}").glob("curve*")) for outcome in unstarted)
    run = [outcome for outcome in whole if outcome.started and outcome.continues is None and outcome.duplicate_of is None]
    assert len(run) == 12
    assert not any(outcome.constraints["trainable_parameters"] > 0 for outcome in run)

    with pytest.raises(KeyboardInterrupt):
        simulation.search(fake, tmp_path / "parts", fidelity, **options, observer=fake.Stops(7))
    assert simulation.search(fake, tmp_path / "parts", fidelity, **options)[0] == whole


@pytest.mark.parametrize(("fidelity", "stops"), [("full", (4, 17, 22)), ("halving", (5, 8))])
def test_what_was_foreseen_stays_so_whatever_is_told_before_the_search_goes_on(
        fake: SimpleNamespace, tmp_path: Path, fidelity: str, stops: tuple[int, ...]) -> None:
    """Points that are not started, and what others are expected to need, wait beside running ones to be told."""
    options: Any = {"points": 24, "workers": 4, "constraints": {"peak_memory_mb": 140.0}, "count": count}
    whole, _ = simulation.search(fake, tmp_path / "whole", fidelity, **options)
    for stop in stops:
        parts = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            simulation.search(fake, parts, fidelity, **options, observer=fake.Stops(stop), order=stop)
        assert simulation.search(fake, parts, fidelity, **options)[0] == whole
