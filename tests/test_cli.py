"""The commands: what reaches the API, what is printed where, the exit status, and how mistakes read."""

import contextlib
import errno
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import finemesh
from finemesh.cli import main
from finemesh.errors import InputError
from finemesh.trial import Outcome, write_json

LEAST = "model: some/model\ndata:\n  train: train.jsonl\n"
OUTCOME = Outcome(0, "complete", "lora", {"rank": 8, "learning_rate": 2e-4}, seed=0, steps=20, validation_loss=1.84,
                  scored_tokens=500, trained_tokens=4000, seconds=41.0, peak_memory_mb=310.0,
                  trainable_parameters=2_442_240, adapter_mb=9.8)
LORA = {"trial_seconds": 100.0, "peak_memory_mb": 812.5, "trainable_parameters": 2_442_240, "adapter_mb": 9.82}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(LEAST)
    return tmp_path


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """fake(search=answer): that function of finemesh.api answers so, or raises; the calls are returned."""
    api = ModuleType("finemesh.api")
    monkeypatch.setitem(sys.modules, "finemesh.api", api)
    monkeypatch.setattr(finemesh, "api", api, raising=False)

    def install(**answers: Any) -> list[Any]:
        calls: list[Any] = []
        for name, answer in answers.items():
            def call(*given: Any, answer: Any = answer, **named: Any) -> Any:
                calls.append((*given, *named.values()))
                print("noise of some library")
                if isinstance(answer, BaseException):
                    raise answer
                return answer

            setattr(api, name, call)
        return calls

    return install


Fake = Callable[..., list[Any]]
Captured = pytest.CaptureFixture[str]


def test_search_passes_the_options_and_prints_one_document(folder: Path, fake: Fake, capsys: Captured) -> None:
    calls = fake(search={"state": "finished", "seconds": 1.5})
    options = ["--trials", "1e1", "--hours", ".5", "--optimizer", "tpe", "--workers", "2", "--here", "1", "--out", "there",
               "--from", "a", "--from", "b"]
    assert main(["search", "mine.yaml", *options, "--json"]) == 0
    (config, observer, here), = calls
    assert here == 1
    assert (config.search.trials, config.search.hours, config.search.optimizer) == (10, 0.5, "tpe")
    assert (config.workers, config.out, config.search.earlier) == (2, "there", ["a", "b"])
    assert hasattr(observer, "ended")
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"state": "finished", "seconds": 1.5}
    assert "noise" in printed.err


def test_search_ends_with_the_summary_of_the_run(
        folder: Path, fake: Fake, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(search={})
    def shown(run: Path, console: Any) -> None:
        console.print(f"the summary of {run}")

    monkeypatch.setattr("finemesh.results.summary.print_summary", shown)
    assert main(["search", "mine.yaml"]) == 0
    assert capsys.readouterr().out == "the summary of runs/mine\n"


def test_the_live_display_knows_what_is_left_of_the_hours(
        folder: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    @contextlib.contextmanager
    def watching(console: Any, **options: Any) -> Iterator[None]:
        given.update(options)
        yield None

    monkeypatch.setattr("finemesh.results.live.live", watching)
    monkeypatch.setattr("finemesh.results.summary.print_summary", lambda *given: None)
    fake(search={})
    (folder / "runs/mine").mkdir(parents=True)
    write_json(folder / "runs/mine/clock.json", {"seconds": 700.0, "search": 600.0, "finish": 100.0})
    assert main(["search", "mine.yaml", "--hours", "0.5"]) == 0
    assert given["search_left"]() == pytest.approx(1200)
    assert main(["search", "mine.yaml"]) == 0
    assert given["search_left"]() == math.inf


def test_tune_with_settings(folder: Path, fake: Fake, capsys: Captured) -> None:
    calls = fake(tune=OUTCOME)
    settings = ["--set", "rank=8", "--set", "learning_rate=2e-4", "--set", "rslora=true", "--set", "modules=all-linear"]
    assert main(["tune", "mine.yaml", "--method", "lora", *settings, "--steps", "5", "--json"]) == 0
    config, method, point, steps, out, _ = calls[0]
    assert (config.model, method, steps, out) == ("some/model", "lora", 5, None)
    assert point == {"rank": 8, "learning_rate": 2e-4, "rslora": True, "modules": "all-linear"}
    assert json.loads(capsys.readouterr().out)["validation_loss"] == 1.84


@pytest.mark.parametrize("options", [["--method", "lora"], ["--trial", "7"]])
def test_a_run_that_fails_is_printed_and_ends_with_1(folder: Path, fake: Fake, capsys: Captured, options: list[str]) -> None:
    failed = replace(OUTCOME, state="failed", error="the training loss is inf")
    fake(tune=failed, tune_again=failed)
    assert main(["tune", "mine.yaml", *options, "--json"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["error"] == "the training loss is inf"
    assert "Error" not in printed.err


def test_tune_a_trial_again(folder: Path, fake: Fake, capsys: Captured) -> None:
    calls = fake(tune_again=OUTCOME)
    assert main(["tune", "runs/mine", "--trial", "7"]) == 0
    assert calls == [(Path("runs/mine"), 7)]
    text = capsys.readouterr().out
    for part in ("lora", "rank 8, learning rate 2e-4", "1.840", "4,000 tokens in 20 steps", "2,442,240", "9.8 MB"):
        assert part in text


def test_predict_prints_a_line_a_row(folder: Path, fake: Fake, capsys: Captured) -> None:
    calls = fake(predict=iter(["yes", "first\nsecond"]))
    assert main(["predict", "runs/mine", "--data", "new.jsonl", "--task", "sst2"]) == 0
    assert calls == [(Path("runs/mine"), "new.jsonl", "sst2")]
    assert capsys.readouterr().out == "yes\nfirst\\nsecond\n"
    fake(predict=iter(["yes", "first\nsecond"]))
    assert main(["predict", "runs/mine", "--data", "new.jsonl", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == ["yes", "first\nsecond"]


def test_check(folder: Path, fake: Fake, capsys: Captured) -> None:
    found = {"task": "instruct", "format": "Alpaca (output)", "rows": {"train": 8000, "test": 10}, "duplicates": 3,
             "dropped": 0, "model": "some/model", "precision": "bf16", "epochs_a_trial": 2.37, "base_memory_mb": 824.0,
             "judged_after": 5, "methods": {"lora": LORA}, "search_seconds": 7300, "warnings": ["few rows"]}
    fake(check=found)
    assert main(["check", "mine.yaml"]) == 0
    text = capsys.readouterr().out
    for part in ("8,000 train", "2.4 times", "first judged after 5 steps (search.min_steps)", "left out: 3 duplicates",
                 "812 MB", "2 min", "2,442,240", "2 h 2 min", "Warning: few"):
        assert part in text
    assert main(["check", "mine.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    fake(check={**found, "methods": {}, "warnings": ["lora: out of memory"]})
    assert main(["check", "mine.yaml"]) == 1
    assert "Warning: lora: out of memory" in capsys.readouterr().out


def test_check_shows_a_mixture(folder: Path, fake: Fake, capsys: Captured) -> None:
    tasks = {"sst2": {"cluster": "sentiment", "rows": {"train": 300, "validation": 0, "test": 0}},
             "cola": {"cluster": "grammar", "rows": {"train": 100, "validation": 0, "test": 0}},
             "rte": {"cluster": "entailment", "rows": {"train": 0, "validation": 49, "test": 51}}}
    fake(check={"task": "instruct", "format": "instructions", "rows": {"train": 400, "validation": 49, "test": 51},
                "tasks": tasks, "duplicates": 0, "dropped": 0, "model": "some/model", "precision": "bf16",
                "epochs_a_trial": 2.37, "judged_after": None, "base_memory_mb": 824.0, "methods": {"lora": LORA},
                "search_seconds": 60,
                "warnings": []})
    assert main(["check", "mine.yaml"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["sst2", "sentiment", "300", "(75", "%)", "0", "0"] in lines
    assert ["rte", "entailment", "held", "out", "49", "51"] in lines


def test_report_prints_its_path(folder: Path, fake: Fake, capsys: Captured) -> None:
    page = folder / "runs [lr]" / "report.html"  # no markup
    fake(report=page)
    assert main(["report", "runs"]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    assert main(["report", "runs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(page)}


def test_methods(folder: Path, fake: Fake, capsys: Captured) -> None:
    lora = {"name": "lora", "summary": "small matrices beside the weights", "tasks": ["instruct", "classify"],
            "mergeable": True, "peft_type": "LORA", "plug_in": False, "gguf": True,
            "hyperparameters": {"rank": {"low": 1, "high": 64, "default": 16, "reference": 8}}}
    fake(methods=[lora])
    assert main(["methods"]) == 0
    text = capsys.readouterr().out
    for part in ("lora", "PEFT (LORA)", "small matrices", "rank=8 (1 to 64)"):
        assert part in text
    assert main(["methods", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [lora]


def test_ctrl_c_says_how_to_go_on(folder: Path, fake: Fake, capsys: Captured) -> None:
    fake(search=KeyboardInterrupt())
    assert main(["search", "mine.yaml", "--trials", "5"]) == 130
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-1].endswith("go on with: finemesh search mine.yaml --trials 5")
    fake(check=KeyboardInterrupt(), tune=KeyboardInterrupt(), tune_again=KeyboardInterrupt())
    for command, more in ((["check", "mine.yaml"], False), (["tune", "mine.yaml", "--method", "lora"], True),
                          (["tune", "mine", "--trial", "7"], False)):
        assert main(command) == 130
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.endswith("go on with: finemesh tune mine.yaml --method lora") if more else said == "Interrupted."


@pytest.mark.parametrize(("error", "status", "message"), [
    (InputError("rank: too high; take 64"), 2, "rank: too high; take 64"),
    (OSError(errno.ENOSPC, "No space left on device", "runs/x/outcome.json"), 2, "runs/x/outcome.json: No space left"),
    (OSError(errno.ENETDOWN, "Network is down"), 1, "Network is down"),
    (ZeroDivisionError("by zero"), 1, "unexpected ZeroDivisionError: by zero (run it again with --debug"),
])
def test_errors_are_one_message(
        folder: Path, fake: Fake, capsys: Captured, error: Exception, status: int, message: str) -> None:
    fake(search=error)
    assert main(["search", "mine.yaml"]) == status
    printed = capsys.readouterr()
    last = printed.err.splitlines()[-1]
    assert last.startswith("Error: ")
    assert message in last
    assert "Traceback" not in printed.err
    assert main(["search", "mine.yaml", "--debug"]) == status
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "message"), [
    (["serch", "mine.yaml"], "Did you mean 'search'?"),
    (["search"], "CONFIG"),
    (["search", "mine.yaml", "--trails", "3"], "--trails"),
    (["search", "nowhere.yaml"], "nowhere.yaml: there is no such config file"),
    (["search", "mine.yaml", "--trials", "0"], "--trials: must be at least 1, not 0"),
    (["search", "mine.yaml", "--trials", "many"], "--trials: must be a number, not 'many'"),
    (["search", "mine.yaml", "--trials", "7" * 400], "--trials: must be a number"),
    (["search", "mine.yaml", "--hours", "-1"], "--hours: must be more than 0, not -1"),
    (["search", "mine.yaml", "--optimizer", "nomade"], "--optimizer: there is no optimizer nomade. Did you mean"),
    (["search", "mine.yaml", "--workers", "1.5"], "--workers: must be a whole number, not 1.5"),
    (["search", "mine.yaml", "--out", "mine.yaml"], "--out: mine.yaml is a file"),
    (["search", "broken.yaml"], "broken.yaml, line 2"),
    (["check", "train.jsonl"], "finemesh init train.jsonl"),
    (["tune", "mine.yaml"], "--method is missing"),
    (["tune", "mine.yaml", "--method", "lora", "--set", "rank"], "--set rank: must be a name and a value"),
    (["tune", "mine.yaml", "--method", "lora", "--set", "rank="], "--set rank=: must be a name and a value"),
    (["tune", "mine.yaml", "--method", "lora", "--set", "a=1", "--set", "a=2"], "a is given twice"),
    (["tune", "mine.yaml", "--method", "lora", "--steps", "0"], "--steps: must be a whole number of at least 1, not 0"),
    (["tune", "."], "give --trial N"),
    (["tune", ".", "--trial", "x"], "--trial: must be the number of a trial, not 'x'"),
    (["tune", ".", "--trial", "1", "--steps", "5"], "--steps does not go with --trial"),
    (["predict", "."], "--data"),
    (["status", "."], "is not the folder of a run"),
    (["status", "nowhere"], "nowhere is not the folder of a run"),
    (["init", "train.jsonl", "--out", "mine.yaml"], "mine.yaml exists already"),
    (["init", "train.jsonl", "--column", "text="], "--column text=: must be a name and a value"),
    (["init", "nowhere.jsonl"], "nowhere.jsonl: there is no such file"),
])
def test_mistakes_end_with_2_and_one_message_and_write_nothing(
        folder: Path, fake: Fake, capsys: Captured, arguments: list[str], message: str) -> None:
    fake(methods=[{"name": "lora"}])
    (folder / "broken.yaml").write_text("model: a\n\tdata: b\n")
    (folder / "train.jsonl").touch()
    before = {path: path.read_bytes() for path in folder.rglob("*")}
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    said = [line for line in printed.err.splitlines() if "noise" not in line]
    assert len(said) == 1
    assert message in said[0]
    assert {path: path.read_bytes() for path in folder.rglob("*")} == before


def test_help_is_fast_because_it_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'optuna', 'pydantic', 'numpy'} & set(sys.modules)"
    script = f"import sys\nfrom finemesh.cli import main\nmain(['--help'])\nprint({heavy}, file=sys.stderr)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "Commands" in ended.stdout
    assert ended.stderr == "set()\n"
