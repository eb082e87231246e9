import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from finemesh.errors import InputError
from finemesh.results.finding import finding
from finemesh.results.record import read_record
from finemesh.results.report import write_report
from finemesh.results.report.table import facts
from finemesh.results.summary import print_status, print_summary, status
from finemesh.run import RunFolder
from finemesh.trial import Outcome, write_json, write_outcome

Make = Callable[..., Path]


def printed(show: Callable[[Path, Console], None], run: Path, width: int = 100) -> str:
    stream = io.StringIO()
    show(run, Console(file=stream, width=width))
    return stream.getvalue()


def test_the_summary_says_what_was_found(make_run: Make) -> None:
    run = make_run()
    (run / "report.html").touch()
    (run / "best").mkdir()
    text = printed(print_summary, run)
    finish = json.loads((run / "finish.json").read_text())
    for row in (finish["untuned"], finish["winner"], *finish["reference"].values()):
        assert f"{row['loss']:.3f}" in text
        assert f"{row['low']:.3f} to {row['high']:.3f}" in text
    for part in ("untuned model", "lora, reference settings", "the winner", "lower is better", "equally likely",
                 "1. What is the capital of France?", "before", "after", "in the data", str(run / "report.html"),
                 str(run / "best")):
        assert part in text
    assert text.index("untuned model  ") < text.index("lora, reference settings") < text.index(": the winner")


def test_a_winner_that_the_test_rows_could_not_measure_is_said_as_that(make_run: Make) -> None:
    run = make_run()
    finish = json.loads((run / "finish.json").read_text())
    lost = {"loss": None, "low": None, "high": None, "metrics": {}, "error": "OSError: the test split is gone"}
    write_json(run / "finish.json", finish | {"winner": finish["winner"] | lost})
    text = printed(print_summary, run, 80)
    assert "could not be measured on the test rows: OSError: the test split is gone." in " ".join(text.split())
    assert "has not finished" not in text
    assert "untuned model" in text


def test_the_front_of_several_objectives_is_shown(make_run: Make) -> None:
    run = make_run(objectives=["validation_loss", "trainable_parameters"])
    front = status(run)["front"]
    losses, sizes = ([one["objectives"][name] for one in front] for name in ("validation_loss", "trainable_parameters"))
    assert len(front) > 1
    assert losses == sorted(losses)
    assert sizes == sorted(sizes, reverse=True)
    for show in (print_summary, print_status):
        text = printed(show, run)
        assert all(f"trial {one['number']}, {one['method']}" in text for one in front)
    assert status(make_run())["front"] == []


def test_leaders_that_cannot_be_told_apart_are_said(make_run: Make) -> None:
    run = make_run()
    noise = json.loads((run / "finish.json").read_text())["noise"]
    first, second = (one["number"] for one in noise["leaders"][:2])
    said = f"Trials {first} and {second} cannot be told apart: {first} is better with a probability of 71 % " \
           f"against {second}. From seed to seed a loss varies by 0.012 (standard deviation)."
    for show in (print_summary, print_status):
        assert said in " ".join(printed(show, run).split())
    assert said in write_report(run).read_text()
    assert status(run)["noise"] == noise
    (run / "finish.json").write_text(json.dumps({**json.loads((run / "finish.json").read_text()),
                                                 "noise": noise | {"undecided": []}}))
    assert f"Trial {first} is the best of the 3 leaders with a probability of 60 %." in " ".join(
        printed(print_summary, run).split())


@pytest.mark.parametrize(("gain", "words"), [(0.5, "also beats"), (0.01, "cannot be told apart"), (-0.5, "do better")])
def test_the_winner_is_compared_honestly(make_run: Make, gain: float, words: str) -> None:
    assert words in " ".join(printed(print_summary, make_run(gain=gain)).split())


def test_a_winner_with_reference_settings_is_not_compared_with_itself(make_run: Make) -> None:
    run = make_run()
    finish = json.loads((run / "finish.json").read_text())
    winner = finish["winner"]
    shared = ("loss", "low", "high", "metrics", "hyperparameters")
    finish["reference"][winner["method"]] = {name: winner[name] for name in shared}
    (run / "finish.json").write_text(json.dumps(finish))
    text = " ".join(printed(print_summary, run).split())
    assert f"These are the reference settings of {winner['method']}. It also beats the best other reference settings (" in text
    assert f"reference settings ({winner['method']}," not in text


def test_a_winner_behind_settings_that_no_trial_had_is_only_the_best_of_the_trials(make_run: Make) -> None:
    run = make_run(gain=-0.5)
    text = " ".join(printed(print_summary, run).split())
    assert "is the best of the trials: its loss" in text
    assert "No trial was of" not in text
    finish = json.loads((run / "finish.json").read_text())
    ahead = {"loss": 0.5, "above_winner": {"loss": -1.3, "low": -1.4, "high": -1.2}}
    finish["reference"]["prefix"] = finish["reference"]["head"] | ahead
    (run / "finish.json").write_text(json.dumps(finish))
    text = " ".join(printed(print_summary, run).split())
    methods = len(finish["reference"])
    assert f"No trial was of prefix: give the search at least as many as there are methods ({methods})." in text


def test_a_winner_within_the_untuned_interval_proves_nothing(make_run: Make) -> None:
    run = make_run()
    finish = json.loads((run / "finish.json").read_text())
    finish["untuned"] |= {key: finish["winner"][key] for key in ("loss", "low", "high")}
    (run / "finish.json").write_text(json.dumps(finish))
    assert "cannot be told from this test split" in " ".join(printed(print_summary, run).split())


def test_a_difference_over_the_same_rows_tells_more_than_two_intervals(make_run: Make) -> None:
    run = make_run(gain=0.01)
    finish = json.loads((run / "finish.json").read_text())
    finish["untuned"] |= {"low": 1.0, "high": 4.0, "above_winner": {"loss": 0.7654, "low": 0.6, "high": 0.9}}
    for result in finish["reference"].values():
        result["above_winner"] = {"loss": 0.01, "low": 0.004, "high": 0.02}
    (run / "finish.json").write_text(json.dumps(finish))
    text = " ".join(printed(print_summary, run).split())
    assert "Row by row that is lower by 0.765 (0.600 to 0.900)." in text
    assert "also beats the best reference settings" in text
    assert "compared row by row" in text


def test_metrics_are_shown_where_the_task_has_them(make_run: Make) -> None:
    run = make_run(task="classify")
    for width in (120, 80, 40):
        text = printed(print_summary, run, width)
        assert "accuracy" in text
        assert "matthews" in text
        assert max(map(len, text.splitlines())) <= max(width, len(str(run)) + 10)
    assert "equally likely" not in text
    assert "pearson" in printed(print_summary, make_run(task="regress"))


def test_a_result_that_could_not_be_measured_says_why(make_run: Make) -> None:
    run = make_run(trials=4)
    finish = json.loads((run / "finish.json").read_text())
    finish["reference"]["head"] |= {"loss": None, "low": None, "high": None, "error": "every seed failed"}
    (run / "finish.json").write_text(json.dumps(finish))
    assert "every seed failed" in printed(print_summary, run)


def test_the_status_document(make_run: Make) -> None:
    run = make_run()
    document = status(run)
    assert document["state"] == "finished"
    assert document["trials"] == {"complete": 20, "pruned": 1, "infeasible": 1, "failed": 1}  # the copy is none
    best = document["best"]
    outcomes = RunFolder(run).outcomes()
    assert best["validation_loss"] == min(o.validation_loss for o in outcomes if o.state == "complete")
    assert set(best) == {"number", "method", "hyperparameters", "validation_loss"}
    assert set(document["test"]) == {"untuned", "reference", "winner"}
    assert set(document["test"]["winner"]) >= {"loss", "low", "high", "metrics"}
    assert document["seconds"] == 612.0
    json.dumps(document, allow_nan=False)


def test_the_status_before_the_finish(make_run: Make) -> None:
    run = make_run(finished=False, trials=3)
    assert status(run)["state"] == "stopped"
    assert status(run)["test"] is None
    assert "stopped" in printed(print_status, run)
    with RunFolder(run).locked():
        assert status(run)["state"] == "running"
    assert status(run)["transfer"] is None
    write_json(RunFolder(run).transfer, {"kendall": 1.0, "said": "1 of 1 pairs are in the same order as there"})
    assert status(run)["transfer"]["kendall"] == 1.0
    assert "warm start  1 of 1 pairs are in the same order as there" in printed(print_status, run)
    empty = status(make_run(trials=0, finished=False))
    assert empty["best"] is None
    assert sum(empty["trials"].values()) == 0


@pytest.mark.parametrize("options", [{"trials": 1}, {"trials": 0, "finished": False}, {"all_failed": True},
                                     {"finished": False, "trials": 5}])
def test_every_run_has_a_summary(make_run: Make, options: dict[str, object]) -> None:
    run = make_run(**options)
    assert printed(print_summary, run).strip()
    assert printed(print_status, run, 40).strip()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.yaml"):
        status(tmp_path)


@pytest.mark.parametrize(("name", "content"), [
    ("trials/0005/outcome.json", '{"number": 5, "st'), ("trials/0005/outcome.json", "{}"), ("finish.json", ""),
    ("clock.json", ""), ("config.yaml", ""), ("machine.json", "\0"),
])
def test_a_damaged_file_is_named(make_run: Make, name: str, content: str) -> None:
    run = make_run()
    (run / name).write_text(content)
    for show in (status, write_report):
        with pytest.raises(InputError, match=name):
            show(run)


def test_a_damaged_curve_is_shown_as_far_as_it_goes(make_run: Make) -> None:
    run = make_run()
    whole = RunFolder(run).curve(0)
    with open(run / "trials/0000/curve.jsonl", "ab") as file:
        file.write(b"\x00\xff\xfe")
    assert RunFolder(run).curve(0) == whole != []


def test_a_promoted_trial_counts_once_with_all_its_tokens(make_run: Make) -> None:
    run = make_run(trials=0, finished=False)
    ended = [Outcome(0, "pruned", "lora", {"rank": 8}, 0, 10, 2.5, trained_tokens=100),
             Outcome(1, "pruned", "lora", {"rank": 4}, 0, 10, 2.7, trained_tokens=100),
             Outcome(2, "complete", "lora", {"rank": 8}, 0, 90, 2.0, trained_tokens=900, continues=0)]
    for outcome in ended:
        write_outcome(RunFolder(run).trial(outcome.number), outcome)
    document = status(run)
    assert document["trials"] == {"complete": 1, "pruned": 1, "infeasible": 0, "failed": 0}
    assert document["trained_tokens"] == 1000
    assert document["best"]["number"] == 2
    assert "1,000 tokens" in printed(print_status, run)


def test_reference_settings_that_break_a_constraint_are_no_advice(make_run: Make) -> None:
    run = make_run(gain=-0.5)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["search"]["constraints"] = {"trainable_parameters": 5000}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    finish = json.loads((run / "finish.json").read_text())
    finish["reference"]["head"]["above_winner"] = {"loss": -1.3, "low": -1.4, "high": -1.2}
    finish["reference"]["head"]["loss"] = 0.5
    (run / "finish.json").write_text(json.dumps(finish))
    for file in run.glob("reference/head-*/outcome.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"trainable_parameters": 460800}))
    text = " ".join(printed(print_summary, run).split())
    broken = "trainable_parameters is 460800, more than 5000"
    assert f"The reference settings of head would do better (0.500), but break a constraint: {broken}." in text
    assert f"no winner, as {broken}" in text
    assert "best reference settings (head" not in text


def test_reference_settings_that_were_stopped_are_shown_with_the_reason(make_run: Make) -> None:
    run = make_run()
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["search"]["constraints"] = {"minutes": 1}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    finish = json.loads((run / "finish.json").read_text())
    stopped = {"loss": None, "low": None, "high": None, "metrics": {}, "error": "stopped: seconds is 61, more than 60"}
    finish["reference"]["full"] = stopped | {"hyperparameters": {"learning_rate": 2e-5}}
    write_json(run / "finish.json", finish)
    for file in run.glob("reference/full-*/outcome.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"state": "infeasible", "seconds": 61.0}))
    text = " ".join(printed(print_summary, run, 120).split())
    assert "stopped: seconds is 61, more than 60" in " ".join(write_report(run).read_text().split())
    assert "full, reference settings" in text
    assert "seconds is 61" in text
    assert "no winner" not in text


def test_a_search_that_started_nothing_says_so(make_run: Make) -> None:
    run = make_run(trials=0, finished=False)
    for number in range(3):
        write_outcome(run / f"trials/{number}", Outcome(number, "infeasible", "lora", {"rank": number}, 0, started=False))
    text = " ".join(printed(print_status, run).split())
    assert "trials none" in text
    assert "none ended yet" not in text
    assert "3 points not started" in text
    assert "None of 3 points was started: each was foreseen to break a constraint." in finding(read_record(run))


def test_what_was_not_run_is_no_trial(make_run: Make) -> None:
    run = make_run()
    before = status(run)
    for number, started, original in ((900, False, None), (901, False, 900), (902, True, 0)):
        write_outcome(run / f"trials/{number}", Outcome(number, "infeasible", "lora", {"rank": number}, 0, started=started,
                                                        duplicate_of=original))
    after = status(run)
    assert (after["trials"], after["constraints"]["not_started"]) == (before["trials"], 1)
    assert dict(facts(read_record(run)))["trials"].startswith(str(sum(before["trials"].values())))


def test_what_was_foreseen_is_judged_by_how_the_last_trial_of_a_point_ended(make_run: Make) -> None:
    run = make_run(trials=0, finished=False)
    rung = Outcome(0, "pruned", "lora", {"rank": 8}, 0, 10, 2.0, foreseen="feasible", constraints={"seconds": -1.0})
    again = replace(rung, number=1, state="infeasible", continues=0, foreseen=None, constraints={"seconds": 1.0})
    for outcome in (rung, again, replace(rung, number=2, hyperparameters={"rank": 4})):
        write_outcome(run / f"trials/{outcome.number}", outcome)
    assert "of 2 foreseen to be feasible 1 were" in printed(print_status, run)
