"""What a trial is judged by, whole or pruned."""

from dataclasses import replace

import pytest

from finemesh.constraints import judged, violations
from finemesh.trial import Outcome

WHOLE = Outcome(0, "complete", "lora", {}, 0, 90, 1.5, seconds=50.0, peak_memory_mb=400.0, metrics={"accuracy": 0.7})
PRUNED = replace(WHOLE, state="pruned", steps=10, seconds=9.0, whole_seconds=60.0)


def test_a_pruned_trial_that_would_take_too_long_goes_no_further() -> None:
    outcome = judged(PRUNED, {"seconds": 55, "peak_memory_mb": 500})
    assert outcome.constraints == {"seconds": 5.0, "peak_memory_mb": -100.0}
    assert (outcome.state, outcome.error) == ("pruned", "after all steps seconds would be 60, more than 55")
    assert judged(PRUNED, {"seconds": 65}).error is None
    assert judged(replace(PRUNED, error="too far behind"), {"seconds": 55}).error == "too far behind"


@pytest.mark.parametrize(("bounds", "reason"), [
    ({"peak_memory_mb": 300, "seconds": 55}, "peak_memory_mb is 400, more than 300"), ({"seconds": 8}, "more than 8")])
def test_what_breaks_a_bound_at_its_rung_is_infeasible(bounds: dict[str, float], reason: str) -> None:
    outcome = judged(PRUNED, bounds)
    assert outcome.state == "infeasible"
    assert reason in str(outcome.error)


def test_a_score_that_a_pruned_trial_has_not_reached_is_neither_kept_nor_broken() -> None:
    """Told as kept, samplers would learn that every point reaches it; told as broken, that hardly any does."""
    assert violations(WHOLE, {"accuracy": 0.8}) == {"accuracy": pytest.approx(0.1)}
    assert violations(PRUNED, {"accuracy": 0.8, "f1": 0.5, "validation_loss": 1.0}) == {
        "accuracy": 0.0, "f1": 0.0, "validation_loss": 0.0}
    assert violations(PRUNED, {"accuracy": 0.6, "validation_loss": 2.0}) == {
        "accuracy": pytest.approx(-0.1), "validation_loss": -0.5}
    assert judged(PRUNED, {"accuracy": 0.8}).error is None
