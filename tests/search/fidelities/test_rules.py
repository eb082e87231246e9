"""What every fidelity rule keeps to, and what the rules are for, on synthetic learning curves."""

import itertools
import pkgutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finemesh.hyperparameter import integer, real
from finemesh.search import study as loop
from finemesh.search.fidelities import FIDELITIES
from finemesh.search.fidelities.brackets import rungs
from finemesh.search.space import Space
from tests.search.fidelities import simulation

CHEAP = [name for name in FIDELITIES if name != "full"]
every_rule = pytest.mark.parametrize("fidelity", CHEAP)


@pytest.fixture(scope="module")
def uninterrupted(fake: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """The outcomes of twelve points by three workers."""
    return {fidelity: simulation.search(fake, tmp_path_factory.mktemp(fidelity), fidelity, points=12, workers=3)[0]
            for fidelity in CHEAP}


@pytest.fixture(scope="module")
def bracket(fake: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any], int]:
    """A whole bracket of halving: its folder, its outcomes, its steps."""
    folder = tmp_path_factory.mktemp("bracket")
    return (folder, *simulation.search(fake, folder, "halving", points=9))


@every_rule
def test_completion_order_changes_neither_points_nor_promotions(
        fake: SimpleNamespace, tmp_path: Path, uninterrupted: dict[str, list[Any]], fidelity: str) -> None:
    other, _ = simulation.search(fake, tmp_path, fidelity, points=12, workers=3, order=1)
    assert other == uninterrupted[fidelity]
    assert len({outcome.steps for outcome in other}) > 1


@every_rule
def test_a_search_stopped_anywhere_goes_on_as_the_uninterrupted_one(
        fake: SimpleNamespace, tmp_path: Path, uninterrupted: dict[str, list[Any]], fidelity: str) -> None:
    for order in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            simulation.search(fake, tmp_path, fidelity, points=12, workers=3, order=order, observer=fake.Stops(5))
    assert simulation.search(fake, tmp_path, fidelity, points=12, workers=3)[0] == uninterrupted[fidelity]


@pytest.mark.parametrize("place", ["finemesh.search.study.Start.write", "finemesh.run.RunFolder.hand_on", "optuna.Study.ask"])
def test_a_promotion_interrupted_at_any_point_is_made_once(
        fake: SimpleNamespace, tmp_path: Path, bracket: tuple[Path, list[Any], int], place: str,
        monkeypatch: pytest.MonkeyPatch) -> None:
    real = pkgutil.resolve_name(place)
    for when in ("before", "after"):
        calls = itertools.count()

        def interrupted(*arguments: Any, when: str = when, calls: Any = calls, **named: Any) -> Any:
            first = next(calls) == (0 if place.endswith("hand_on") else 9)
            if first and when == "before":
                raise KeyboardInterrupt
            result = real(*arguments, **named)
            if first:
                raise KeyboardInterrupt
            return result

        with monkeypatch.context() as patch:
            patch.setattr(place, interrupted)
            with pytest.raises(KeyboardInterrupt):
                simulation.search(fake, tmp_path / when, "halving", points=9)
        outcomes, parts_trained = simulation.search(fake, tmp_path / when, "halving", points=9)
        assert outcomes == bracket[1]
        assert parts_trained == 3 * 20 + 2 * 60


@pytest.fixture(scope="module")
def full_length(fake: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> float:
    outcomes, steps = simulation.search(fake, tmp_path_factory.mktemp("full"), "full", "random")
    assert steps == 18 * simulation.FULL
    return simulation.best(outcomes)


@pytest.mark.parametrize(("fidelity", "optimizer", "points", "share"), [
    ("halving", "random", 12, 0.27), ("halving", "tpe", 12, 0.27), ("halving", "nomad", 12, 0.27),
    ("hyperband", "random", 17, 0.5), ("curve", "random", 18, 0.6),
])
def test_as_good_a_loss_for_fewer_steps(fake: SimpleNamespace, tmp_path: Path, full_length: float, fidelity: str,
                                        optimizer: str, points: int, share: float) -> None:
    outcomes, steps = simulation.search(fake, tmp_path, fidelity, optimizer, points=points)
    assert steps <= share * 18 * simulation.FULL
    assert simulation.best(outcomes) <= full_length


def test_halving_promotes_the_best_third_of_a_bracket_and_two_to_the_end(bracket: tuple[Path, list[Any], int]) -> None:
    folder, outcomes, steps = bracket
    assert Counter(outcome.steps for outcome in outcomes) == {10: 9, 30: 3, 90: 2}
    assert steps == 9 * 10 + 3 * 20 + 2 * 60
    first = sorted(outcomes[:9], key=lambda outcome: outcome.validation_loss or 0.0)
    assert [outcome.continues for outcome in outcomes[9:12]] == [outcome.number for outcome in first[:3]]
    kept = {path.parent.name for path in folder.glob("trials/*/checkpoint.safetensors")}
    assert kept == {"0012", "0013"}  # complete; a real trial removes it itself


def test_the_first_bracket_holds_every_point_that_is_known_before(fake: SimpleNamespace, tmp_path: Path) -> None:
    first = [("full", {"learning_rate": 1e-5 * 1.1 ** index}) for index in range(15)]
    outcomes, _ = simulation.search(fake, tmp_path, "halving", points=24, first=first)
    assert Counter(outcome.steps for outcome in outcomes[:15 + 5 + 2]) == {10: 15, 30: 5, 90: 2}
    assert Counter(outcome.steps for outcome in outcomes[15 + 5 + 2:]) == {10: 9, 30: 3, 90: 2}


@pytest.mark.parametrize(("steps", "min_steps", "reduction", "lengths"), [
    (90, None, 3, [10, 30, 90]), (90, 2, 3, [3, 10, 30, 90]), (5, 1, 2, [1, 2, 5]), (20, 1, 2, [1, 2, 5, 10, 20]),
    (2, None, 2, [1, 2]), (1, None, 2, [1]),
])
def test_every_rung_is_longer_than_the_one_below(steps: int, min_steps: int | None, reduction: int, lengths: list[int]) -> None:
    assert rungs(steps, min_steps, reduction) == lengths


def test_what_is_left_of_the_budget_is_decided_among_itself(fake: SimpleNamespace, tmp_path: Path) -> None:
    outcomes, _ = simulation.search(fake, tmp_path, "halving", points=4, workers=2)
    assert Counter(outcome.steps for outcome in outcomes) == {10: 4, 30: 2, 90: 2}
    longer, _ = simulation.search(fake, tmp_path, "halving", points=9, workers=2)
    assert longer[:8] == outcomes
    assert Counter(outcome.steps for outcome in longer) >= Counter({10: 9, 30: 3, 90: 2})


@pytest.mark.parametrize(("fidelity", "points"), [("full", 9), ("halving", 18), ("hyperband", 17)])
def test_the_share_of_a_trial_that_a_point_costs(fake: SimpleNamespace, tmp_path: Path, fidelity: str, points: int) -> None:
    outcomes, steps = simulation.search(fake, tmp_path, fidelity, points=points)
    rule = FIDELITIES[fidelity](simulation.FULL, None, 3)
    assert rule.share == pytest.approx(steps / (points * simulation.FULL))
    assert rule.earliest == min(outcome.steps for outcome in outcomes)


def test_hyperband_begins_at_every_rung(fake: SimpleNamespace, tmp_path: Path) -> None:
    outcomes, _ = simulation.search(fake, tmp_path, "hyperband", points=17)
    begun = Counter(outcome.steps for outcome in outcomes if outcome.continues is None)
    assert begun == {10: 9, 30: 5, 90: 3}


@pytest.mark.parametrize("fidelity", ["halving", "hyperband"])
def test_what_would_take_too_long_is_not_promoted_and_the_next_best_is(fake: SimpleNamespace, tmp_path: Path,
                                                                       fidelity: str) -> None:
    """Without a count nothing is foreseen before it starts: what is known of a trial, its rung says."""
    bound = 95.0
    free, _ = simulation.search(fake, tmp_path / "free", fidelity, points=9)
    told, _ = simulation.search(fake, tmp_path / "bound", fidelity, points=9, constraints={"seconds": bound})
    promoted = [outcome for outcome in told if outcome.continues is not None]
    assert any(outcome.whole_seconds and outcome.whole_seconds > bound for outcome in free if outcome.continues is not None)
    assert Counter(outcome.steps for outcome in promoted) == Counter(o.steps for o in free if o.continues is not None)
    assert all(outcome.constraints["seconds"] <= 0 for outcome in promoted)
    slow = [outcome for outcome in told if outcome.constraints["seconds"] > 0]
    assert {outcome.state for outcome in slow} <= {"pruned", "infeasible"}
    assert any(outcome.state == "pruned" and "after all steps seconds would be" in str(outcome.error) for outcome in slow)


@every_rule
def test_a_search_under_every_kind_of_bound_goes_on_as_the_uninterrupted_one(fake: SimpleNamespace, tmp_path: Path,
                                                                             fidelity: str) -> None:
    options: Any = {"points": 12, "workers": 3, "constraints": {"seconds": 120.0, "peak_memory_mb": 150.0, "accuracy": 0.9}}
    whole, _ = simulation.search(fake, tmp_path / "whole", fidelity, **options)
    for order in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            simulation.search(fake, tmp_path / "parts", fidelity, **options, order=order, observer=fake.Stops(5))
    assert simulation.search(fake, tmp_path / "parts", fidelity, **options)[0] == whole


def test_a_promotion_makes_an_exhausted_space_no_larger(fake: SimpleNamespace, tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "EXHAUSTED", 20)
    options: Any = {"space": Space({"lora": {"rank": integer(1, 5, 1), "learning_rate": real(1e-3, 1e-3, 1e-3, log=True)}})}
    outcomes, _ = simulation.search(fake, tmp_path / "whole", "halving", **options)
    assert Counter(outcome.steps for outcome in outcomes if outcome.duplicate_of is None) == {10: 5, 30: 2, 90: 2}
    copies = [outcome.number for outcome in outcomes if outcome.duplicate_of is not None]
    assert copies[-20:] == list(range(len(outcomes) - 24, len(outcomes) - 4))  # then the promotions, one after the other
    for stop in (3, len(outcomes) - 10, len(outcomes) - 2):
        parts = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            simulation.search(fake, parts, "halving", **options, observer=fake.Stops(stop))
        assert simulation.search(fake, parts, "halving", **options)[0] == outcomes
