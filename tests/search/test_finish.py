import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finemesh.objectives import front
from finemesh.run import RunFolder
from finemesh.search import verdict
from finemesh.search.executors import Event
from finemesh.search.finish import NoWinner, leaders, steadiest
from finemesh.trial import Outcome, read_outcome


def outcome(number: int, loss: float | None, state: Any = "complete", **fields: Any) -> Outcome:
    return Outcome(number, state, "lora", {"rank": number}, 0, validation_loss=loss, **fields)


def finished(fake: SimpleNamespace, folder: Path, trials: int = 6, **options: Any) -> dict[str, Any]:
    fake.search(folder, trials, finishing=True, **options)
    document = RunFolder(folder).finish()
    assert document is not None
    return document


def test_leaders_are_the_best_complete_feasible_trials_without_copies() -> None:
    outcomes = [outcome(0, 3.0), outcome(1, 1.0, "infeasible", constraints={"seconds": 1.0}), outcome(2, 2.0),
                outcome(3, 2.0, duplicate_of=2), outcome(4, None, "failed"), outcome(5, 1.5, "pruned"),
                outcome(6, 2.0), outcome(7, 5.0, constraints={"seconds": 0.0}), outcome(8, 2.5)]
    assert [leader.number for leader in leaders(outcomes)] == [2, 6, 8]
    assert [leader.number for leader in leaders(outcomes, 9)] == [2, 6, 8, 0, 7]


def test_only_leaders_of_the_fewest_failed_repeats_can_win() -> None:
    good = {0: [outcome(0, 1.0), outcome(0, 3.0)], 1: [outcome(1, 1.8), outcome(1, 1.9)]}
    assert steadiest(good) == good
    assert steadiest(good | {2: [outcome(2, 1.0), outcome(2, None, "failed")]}) == good
    failed = {2: [outcome(2, 1.0), outcome(2, None, "failed")], 3: [outcome(3, None, "failed")] * 2}
    assert steadiest(failed) == {2: [outcome(2, 1.0)]}
    with pytest.raises(NoWinner, match=r"every repeat .* most often: NaN \(2 of 2\)"):
        steadiest({3: [outcome(3, None, "failed", error="NaN")] * 2})


def test_the_document(fake: SimpleNamespace, tmp_path: Path) -> None:
    watcher = fake.Watcher()
    document = finished(fake, tmp_path, observer=watcher, workers=2)
    best = leaders(RunFolder(tmp_path).outcomes())
    assert [(r["number"], r["seed"]) for r in document["repeats"]] == [(b.number, s) for b in best for s in (1, 2)]
    winner = document["winner"]
    assert (winner["number"], winner["method"]) == (best[0].number, best[0].method)
    assert winner["hyperparameters"] == best[0].hyperparameters
    assert (winner["seeds"], winner["folder"]) == ([1, 2], f"repeats/{best[0].number:04d}-1")
    losses = [r["validation_loss"] for r in document["repeats"][:2]]
    assert winner["loss"] == pytest.approx(sum(losses) / 2, abs=0.01)
    assert winner["low"] < winner["loss"] < winner["high"] < document["untuned"]["low"]
    assert winner["metrics"] == {"accuracy": 0.5}
    assert {m: r["hyperparameters"] for m, r in document["reference"].items()} == fake.REFERENCES
    assert document["answers"] == [{"prompt": f"p{n}", "reference": "r", "before": "b", "after": "a"} for n in (0, 1)]
    assert document["rows"] == {"test": 40}
    assert watcher.phases == [("search", 6), ("leaders and references", 10)]
    assert len(watcher.outcomes) == 6 + 10
    assert len({job.number for job in watcher.jobs if job.number < 0}) == 4


def test_only_what_is_named_in_the_report_is_measured_on_the_test_split_and_once(fake: SimpleNamespace,
                                                                                 tmp_path: Path) -> None:
    document = finished(fake, tmp_path)
    winner = document["winner"]["number"]
    measured = sorted(path.parent.name for path in tmp_path.rglob("evaluations.log"))
    assert measured == sorted([f"{winner:04d}-1", f"{winner:04d}-2", "full-1", "full-2", "lora-1", "lora-2"])
    (tmp_path / "finish.json").unlink()
    assert finished(fake, tmp_path) == document
    assert {path.read_text() for path in tmp_path.rglob("evaluations.log")} == {"once\n"}


def test_what_keeps_the_test_split_from_being_measured_is_said(fake: SimpleNamespace, tmp_path: Path) -> None:
    reply = {"row_losses": [1.0, 2.0], "row_weights": [1, 1], "metrics": {}}
    events = [Event(1, "waiting", "no node has room"), Event(1, "result", reply), Event(2, "result", reply)]
    numbers = itertools.count(1)
    executor: Any = SimpleNamespace(submit=lambda kind, arguments: next(numbers), wait=lambda: [events.pop(0)])
    watcher = fake.Watcher()
    results = verdict.tested(executor, RunFolder(tmp_path), {"winner": [tmp_path / "repeats/0000-1"]}, "winner", watcher)
    assert results["winner"]["loss"] == results["untuned"]["loss"] == 1.5
    assert watcher.messages == ["Measuring 2 runs on the test split.", "no node has room"]


def test_a_finish_that_was_stopped_anywhere_goes_on(fake: SimpleNamespace, tmp_path: Path) -> None:
    whole = finished(fake, tmp_path / "whole")

    class StopsLater(fake.Watcher):
        def message(self, text: str) -> None:
            raise KeyboardInterrupt

    for observer in (fake.Stops(9), StopsLater()):
        with pytest.raises(KeyboardInterrupt):
            fake.search(tmp_path / "run", 6, finishing=True, observer=observer)
        assert RunFolder(tmp_path / "run").finish() is None
    assert finished(fake, tmp_path / "run") == whole
    again = [path for path in (tmp_path / "run").glob("*/*/steps.log") if path.read_text() != "0\n1\n"]
    assert len(again) <= 1  # the step in which the worker was ended


def test_leaders_that_cannot_be_told_apart_are_repeated_once_more_and_a_stop_changes_nothing(fake: SimpleNamespace,
                                                                                             tmp_path: Path) -> None:
    options: dict[str, Any] = {"script": {"noise": 0.5}, "extra": 2, "finishing": True}
    whole = fake.Watcher()
    fake.search(tmp_path / "whole", 6, observer=whole, **options)
    document = RunFolder(tmp_path / "whole").finish() or {}
    assert whole.phases[1:] == [("leaders and references", 10), ("leaders again", 2), ("leaders again", 2)]
    assert [text for text in whole.messages if "cannot be told apart" in text and "probability" in text]
    noise, seeds = document["noise"], {}
    for repeat in document["repeats"]:
        seeds.setdefault(repeat["number"], []).append(repeat["seed"])
    assert {one["number"]: one["runs"] for one in noise["leaders"]} == {n: len(found) for n, found in seeds.items()}
    assert sorted(seed for found in seeds.values() for seed in found if seed > 2) == [3, 3, 4, 4]
    assert all((tmp_path / f"whole/repeats/{n:04d}-{seed}").exists() for n, found in seeds.items() for seed in found)
    assert noise["leaders"][0]["number"] == document["winner"]["number"]
    assert document["winner"]["seeds"] == seeds[document["winner"]["number"]]
    assert 0.2 < noise["seed_deviation"] < 0.9

    class Stops(fake.Watcher):
        def started(self, job: Any) -> None:
            super().started(job)
            if job.seed == 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fake.search(tmp_path / "run", 6, observer=Stops(), **options)
    fake.search(tmp_path / "run", 6, **options)
    assert RunFolder(tmp_path / "run").finish() == document


def test_of_several_objectives_the_leaders_are_those_of_the_front_and_a_stop_changes_nothing(fake: SimpleNamespace,
                                                                                         tmp_path: Path) -> None:
    objectives = ["validation_loss", "peak_memory_mb"]
    options: dict[str, Any] = {"objectives": objectives, "finishing": True,
                               "script": {"infeasible": [1], "heavy": [2], "fail": [4]}}
    whole = fake.search(tmp_path / "whole", 8, **options)

    with pytest.raises(KeyboardInterrupt):
        fake.search(tmp_path / "run", 8, observer=fake.Stops(6), **options)
    assert fake.points(fake.search(tmp_path / "run", 8, **options)) == fake.points(whole)
    document = RunFolder(tmp_path / "run").finish() or {}
    assert document == RunFolder(tmp_path / "whole").finish()
    best = front(whole, objectives)
    assert {repeat["number"] for repeat in document["repeats"]} == {leader.number for leader in best[:3]}
    assert document["winner"]["number"] == best[0].number == leaders(whole)[0].number


def test_references_that_take_more_than_allowed_are_stopped_and_said_to_be(fake: SimpleNamespace, tmp_path: Path) -> None:
    """A bound on their size stops none of them: how much it costs is worth knowing."""
    watcher = fake.Watcher()
    document = finished(fake, tmp_path, observer=watcher, script={"infeasible": [-1, -2], "fail": [-3]},
                        constraints={"seconds": 60.0, "peak_memory_mb": 900.0, "adapter_mb": 5.0, "accuracy": 0.5})
    assert [job.constraints for job in watcher.jobs if job.number < 0] == [{"seconds": 60.0, "peak_memory_mb": 900.0}] * 4
    stopped, half = document["reference"]["lora"], document["reference"]["full"]
    assert (stopped["loss"], stopped["error"]) == (None, "stopped: too many")
    assert (half["loss"] is not None, half.get("error")) == (True, None)  # one of its seeds went through


def test_more_trials_make_another_finish(fake: SimpleNamespace, tmp_path: Path) -> None:
    whole = finished(fake, tmp_path / "whole", 9)
    finished(fake, tmp_path / "run", 6)
    assert finished(fake, tmp_path / "run", 9) == whole


def test_reference_settings_that_lead_are_not_run_twice(fake: SimpleNamespace, tmp_path: Path) -> None:
    watcher = fake.Watcher()
    document = finished(fake, tmp_path, 1, first=[("lora", fake.REFERENCES["lora"])], observer=watcher)
    assert [job.folder.name for job in watcher.jobs] == ["0000", "0000-1", "0000-2", "full-1", "full-2"]
    assert document["reference"]["lora"]["loss"] == document["winner"]["loss"]
    copy = read_outcome(tmp_path / "reference" / "lora-1")
    assert copy is not None
    assert (copy.duplicate_of, copy.seed) == (0, 1)


def test_reference_settings_that_were_given_up_and_do_better_are_a_leader(fake: SimpleNamespace, tmp_path: Path) -> None:
    """As halving gives them up after few steps; a stop anywhere changes nothing."""
    reference = fake.REFERENCES["lora"]
    first = [("lora", reference | {"learning_rate": rate}) for rate in (1e-5, 2e-5, 3e-5, 2e-4)]
    options: dict[str, Any] = {"trials": 4, "first": first, "script": {"pruned": [3]}}
    watcher = fake.Watcher()
    document = finished(fake, tmp_path / "whole", observer=watcher, **options)
    winner = document["winner"]
    assert (winner["number"], winner["hyperparameters"], winner["folder"]) == (3, reference, "repeats/0003-1")
    assert {one["number"] for one in document["noise"]["leaders"]} == {0, 1, 2, 3}
    assert document["reference"]["lora"]["loss"] == winner["loss"]
    assert watcher.phases[1:] == [("leaders and references", 10), ("references that lead", 2)]
    assert any("of lora, which were given up after" in text and "raise search.min_steps" in text for text in watcher.messages)
    copy = read_outcome(tmp_path / "whole/reference/lora-2")
    assert copy is not None
    assert (copy.duplicate_of, copy.seed) == (3, 2)
    for after in (13, 14, 15):
        with pytest.raises(KeyboardInterrupt):
            finished(fake, tmp_path / str(after), observer=fake.Stops(after), **options)
        assert finished(fake, tmp_path / str(after), **options) == document


@pytest.mark.parametrize("lightened", [False, True])
def test_reference_settings_that_led_once_keep_what_the_test_split_said_of_them(fake: SimpleNamespace, tmp_path: Path,
                                                                               lightened: bool) -> None:
    first = [("lora", fake.REFERENCES["lora"] | {"learning_rate": rate}) for rate in (2e-4, 8e-4, 9e-4, 1e-3)]
    before = finished(fake, tmp_path, 1, first=first)["reference"]["lora"]
    for outcome in tmp_path.glob("repeats/*/outcome.json") if lightened else ():
        outcome.unlink()
    document = finished(fake, tmp_path, 4, first=first)
    assert 0 not in [leader["number"] for leader in document["noise"]["leaders"]]
    assert document["reference"]["lora"] == before | {"above_winner": document["reference"]["lora"]["above_winner"]}
    assert not list(tmp_path.glob("reference/lora-*/evaluat*"))


def test_what_cannot_be_measured_is_null_with_the_reason(fake: SimpleNamespace, tmp_path: Path) -> None:
    document = finished(fake, tmp_path, script={"no_test": True})
    lost = {"loss": None, "low": None, "high": None, "metrics": {}, "error": "OSError: the test split is gone"}
    assert document["untuned"] == lost
    assert lost.items() <= document["winner"].items()
    assert document["winner"]["number"] == leaders(RunFolder(tmp_path).outcomes())[0].number
    assert not list(tmp_path.rglob("evaluated.json"))


def test_a_reference_that_fails_is_said(fake: SimpleNamespace, tmp_path: Path) -> None:
    document = finished(fake, tmp_path, script={"fail": [-1, -2]})
    assert document["reference"]["lora"]["error"] == "ValueError: NaN"
    assert document["reference"]["full"]["loss"] > 0


@pytest.mark.parametrize(("script", "message"), [
    ({"fail": [0, 1, 2], "error": [3]}, r"none of the 4 trials succeeded; most often: ValueError: NaN \(3 of 4\)"),
    ({"infeasible": [0, 1, 2, 3]}, r"none of the 4 trials met the constraints; most often: too many \(4 of 4\)"),
])
def test_no_winner_is_said_with_the_commonest_error(fake: SimpleNamespace, tmp_path: Path, script: dict,
                                                    message: str) -> None:
    with pytest.raises(NoWinner, match=message):
        fake.search(tmp_path, 4, finishing=True, script=script)
    assert RunFolder(tmp_path).finish() is None


def test_the_document_is_json_that_anyone_reads(fake: SimpleNamespace, tmp_path: Path) -> None:
    document = finished(fake, tmp_path)
    assert json.loads((tmp_path / "finish.json").read_text(encoding="utf-8")) == document
