"""A warm start: which points of earlier studies are tried, in which order, and what is said to have transferred."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finemesh.errors import InputError
from finemesh.run import RunFolder
from finemesh.search.space import Space
from finemesh.search.transfer import CARRIED, Known, Transfer, known_points
from finemesh.trial import Outcome, write_outcome
from tests.search.fidelities import simulation

Point = dict[str, Any]


def lora(rate: float, rank: int = 8) -> Point:
    return {"rank": rank, "learning_rate": rate, "init": "random"}


def earlier(folder: Path, trials: Sequence[tuple[str, Point, float]], state: Any = "complete") -> Path:
    """A run in which these were tried."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("model: some/model\n")
    for number, (method, point, loss) in enumerate(trials):
        write_outcome(RunFolder(folder).trial(number), Outcome(number, state, method, point, 0, 9, loss))
    return folder


TRIALS: list[tuple[str, Point, float]] = [
    ("full", {"learning_rate": 1e-3}, 1.9), ("lora", lora(2e-3), 1.5), ("lora", lora(1.9e-3), 1.51), ("lora", lora(1e-2), 1.6),
    ("full", {"learning_rate": 1e-4}, 1.7), ("lora", lora(1e-3, 32), 1.55), ("lora", lora(1e-4, 2), 1.8),
    ("full", {"learning_rate": 2e-5}, 2.5), ("head", {"learning_rate": 1e-3}, 1.4)]


def test_of_each_method_the_best_that_differ_and_the_references(fake: SimpleNamespace, tmp_path: Path) -> None:
    references = {"lora": lora(1e-4, 2), "full": {"learning_rate": 2e-5}}
    found = known_points(earlier(tmp_path / "run", TRIALS), fake.SPACE, references)
    assert [known.number for known in found] == [1, 5, 3, 4, 6, 0, 7]
    assert [known.rank for known in found] == [2, 4, 5, 6, 7, 8, 9]  # the best was head's, which this space has not


def test_points_are_moved_into_the_space(fake: SimpleNamespace, tmp_path: Path) -> None:
    space = fake.SPACE.narrowed({"lora": {"rank": [16, 64], "learning_rate": 1e-3}})
    found = known_points(earlier(tmp_path / "run", TRIALS), space, {})
    assert [(known.hyperparameters, known.loss) for known in found] == [
        (lora(1e-3, 16), 1.5), (lora(1e-3, 32), 1.55)]  # the best of those that come to lie on one point


def transfer(space: Space, first: tuple[int, ...] = (), studies: Sequence[str] = ("run",)) -> Transfer:
    points = [Known(study, number, method, point, loss, rank) for study in studies
              for rank, (number, method, point, loss) in enumerate(sorted(
                  ((n, *t) for n, t in enumerate(TRIALS[:-1]) if n != 2), key=lambda trial: trial[3]), 1)]
    keys = {space.key(method, point) for method, point, _ in (TRIALS[number] for number in first)}
    return Transfer(points, space, keys, lambda outcome: None)


def tried(found: Transfer, space: Space, losses: dict[int, float | None], first: tuple[int, ...] = ()) -> list[int]:
    """The numbers of the trials that are taken over, one at a time, where they have these losses here (None: failed)."""
    asked, numbers = set(), list[int]()

    def run(number: int) -> None:
        method, point, _ = TRIALS[number]
        asked.add(space.key(method, point))
        loss = losses[number]
        found.tell(Outcome(len(asked), "failed" if loss is None else "complete", method, point, 0, 9, loss))

    for number in first:
        run(number)
    while (known := found.next(asked)) is not None:
        assert not found.over(asked)
        numbers.append(known.number)
        run(known.number)
    assert found.over(asked)
    return numbers


def test_the_method_that_does_best_here_comes_first(fake: SimpleNamespace) -> None:
    """The best of each method, the next best; then full, whose points do better here."""
    losses = {0: 1.2, 1: 2.0, 3: 2.2, 4: 1.1, 5: 2.1, 7: 1.4}
    found = transfer(fake.SPACE, first=(7,))
    assert tried(found, fake.SPACE, losses, first=(7,)) == [1, 4, 5, 0, 3]
    document = found.document()
    assert document["methods"]["lora"] == {"pairs": 3, "same_order": 3, "kendall": 1.0, "dropped": False}
    assert (document["pairs"], document["same_order"]) == (15, 6)
    assert "6 of 15 pairs are in the same order as there (Kendall's tau -0.20), so the ranking there does not hold" \
        in document["said"]
    assert document["points"][0] == {"study": "run", "number": 1, "trial": 2, "method": "lora", "earlier_loss": 1.5,
                                     "loss": 2.0}


def test_a_method_whose_order_is_another_here_is_left(fake: SimpleNamespace) -> None:
    losses = {0: 1.8, 1: None, 3: 1.0, 4: 1.7, 5: 1.3, 6: 1.6, 7: 1.9}
    found = transfer(fake.SPACE, first=(6, 7))
    assert tried(found, fake.SPACE, losses, first=(6, 7)) == [1, 4, 0]  # lora's best failed: worse than its reference
    assert found.document()["methods"]["lora"]["dropped"]
    assert "Within lora it does not: no more points of it were taken over." in found.said()
    assert math.isinf(found._best("head"))


def test_of_several_studies_only_pairs_of_one_are_compared(fake: SimpleNamespace) -> None:
    losses = {number: loss for number, (_, _, loss) in enumerate(TRIALS)}
    found = transfer(fake.SPACE, studies=("one", "two"))
    assert len(tried(found, fake.SPACE, losses)) == CARRIED
    assert found.agreement().tau == 1.0
    assert found.agreement().same == 2 * math.comb(6, 2)


@pytest.mark.parametrize(("fidelity", "optimizer"), [("full", "tpe"), ("halving", None)])
def test_any_search_goes_on_from_an_interruption_as_the_uninterrupted_one(fake: SimpleNamespace, tmp_path: Path, fidelity: str,
                                                                         optimizer: str | None) -> None:
    folder = earlier(tmp_path / "earlier", TRIALS)
    references = list(fake.REFERENCES.items())
    options = {"points": 10, "workers": 3, "first": references, "earlier": known_points(folder, fake.SPACE, fake.REFERENCES)}

    whole, _ = simulation.search(fake, tmp_path / "whole", fidelity, optimizer, **options)
    with pytest.raises(KeyboardInterrupt):
        simulation.search(fake, tmp_path / "parts", fidelity, optimizer, order=1, observer=fake.Stops(4), **options)
    assert simulation.search(fake, tmp_path / "parts", fidelity, optimizer, order=2, **options)[0] == whole
    begun = [outcome for outcome in whole if outcome.continues is None]
    keys = [fake.SPACE.key(outcome.method, outcome.hyperparameters) for outcome in begun]
    known = [fake.SPACE.key(point.method, point.hyperparameters) for point in options["earlier"]]
    assert keys[2] == known[0]
    taken = [key for key in keys[2:] if key in known]
    assert keys[2:2 + len(taken)] == taken  # then the optimizer's own
    written = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*/transfer.json"))]
    assert written[0] == written[1]
    assert len(written[0]["points"]) == len(taken) + 1  # full's reference settings were tried there, lora's were not


def test_what_is_wrong_with_an_earlier_run_is_said(fake: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not the folder of a run"):
        known_points(tmp_path, fake.SPACE, {})
    with pytest.raises(InputError, match="has no complete trial yet"):
        known_points(earlier(tmp_path / "failed", TRIALS, "failed"), fake.SPACE, {})
    with pytest.raises(InputError, match=r"shares no method .*: it has trials of head, this one is over lora, full"):
        known_points(earlier(tmp_path / "head", TRIALS[-1:]), fake.SPACE, {})
