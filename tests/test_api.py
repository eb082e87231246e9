"""Both halves together on a tiny model: a whole search with real workers, its resume, one run, the check, predictions."""

import json
import re
import socket
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from finemesh import api, remarks
from finemesh.config import load_config
from finemesh.errors import InputError
from finemesh.reading import load_data
from finemesh.run import RunFolder
from tests import tiny
from tests.small_search import config, outcomes, points

pytestmark = pytest.mark.usefixtures("one_precision")


@pytest.fixture(scope="module")
def run(places, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("search") / "run"
    document = api.search(config(places, out))
    assert document["state"] == "finished"
    return out


def test_a_search_hands_over_what_it_promises(run):
    assert {o["state"] for o in outcomes(run)} == {"complete"}
    assert (run / "report.html").exists()
    assert {file.name for file in (run / "best").iterdir()} >= {"README.md", "tokenizer.json", "finemesh.json"}
    found = json.loads((run / "finish.json").read_text())
    assert set(found["reference"]) == {"lora", "prompt"}
    assert len(found["answers"]) == 3
    splits = {name: [json.loads(line)["messages"][0]["content"]
                     for line in (run / f"splits/{name}.jsonl").read_text().splitlines()]
              for name in ("train", "validation", "test")}
    assert not set(splits["train"]) & set(splits["validation"])
    assert not set(splits["train"]) & set(splits["test"])


@pytest.mark.usefixtures("in_process")
def test_a_finished_search_says_so_again_and_goes_on_with_more_trials(places, run):
    before = points(run)
    stamps = [path.stat().st_mtime for path in sorted(run.glob("trials/*/outcome.json"))]
    api.search(config(places, run))
    assert [path.stat().st_mtime for path in sorted(run.glob("trials/*/outcome.json"))] == stamps
    document = api.search(config(places, run, trials=7))
    assert sum(document["trials"].values()) == 7
    assert points(run)[:5] == before


@pytest.mark.usefixtures("in_process")
def test_a_search_by_halving_continues_trials_and_tells_the_tokens(places, tmp_path):
    settings = config(places, tmp_path / "run", trials=4, methods="[lora]")
    changes = {"fidelity": "halving", "reduction": 2, "repeats": 1}
    document = api.search(settings.model_copy(update={"search": settings.search.model_copy(update=changes)}))
    assert document["trials"] == {"complete": 2, "pruned": 2, "infeasible": 0, "failed": 0}
    ended = outcomes(tmp_path / "run")
    assert sorted(o["steps"] for o in ended) == [1, 1, 1, 1, 2, 2, 4, 4]
    whole, _ = [o for o in ended if o["state"] == "complete"]
    former, own = ((tmp_path / f"run/trials/{number:04d}/curve.jsonl").read_text().splitlines()
                   for number in (whole["continues"], whole["number"]))
    assert [json.loads(line)["step"] for line in own] == [0, 1, 2, 3, 4]
    assert own[:3] == former
    assert whole["trained_tokens"] < document["trained_tokens"] < 3 * whole["trained_tokens"]
    assert "(2 pruned)" in (tmp_path / "run/report.html").read_text()


@pytest.mark.usefixtures("in_process")
def test_one_run_and_the_same_again(places, tmp_path):
    settings = config(places, tmp_path / "one")
    outcome = api.tune(settings, "lora", {"rank": 4, "learning_rate": 1e-2}, steps=6)
    assert outcome.state == "complete"
    assert outcome.hyperparameters["rank"] == 4
    assert outcome.trainable_parameters > 0
    folder = Path(f"{settings.out}-lora")
    again = api.tune_again(folder, 0)
    assert again.validation_loss == outcome.validation_loss
    with pytest.raises(InputError, match="has no trial 3"):
        api.tune_again(folder, 3)


@pytest.mark.usefixtures("in_process")
def test_a_classifier_on_an_encoder(places, tmp_path):
    settings = config(places, tmp_path / "run", model="encoder", data="labels", methods="[lora, head]", trials=2)
    document = api.search(settings)
    assert {"accuracy", "f1", "matthews"} <= set(document["test"]["winner"]["metrics"])
    (tmp_path / "new.jsonl").write_text('{"text": "w0 w9"}\n{"text": "w7 w9"}\n')
    labels = list(api.predict(tmp_path / "run", str(tmp_path / "new.jsonl")))
    assert len(labels) == 2
    assert set(labels) <= set(tiny.LABELS)
    (tmp_path / "two.jsonl").write_text('{"text": "w0 w9", "text2": "w1"}\n')
    with pytest.raises(InputError, match=r"two\.jsonl: its rows have two texts"):
        list(api.predict(tmp_path / "run", str(tmp_path / "two.jsonl")))
    with pytest.raises(InputError, match=r"^--task sst2: there are no data\.tasks in this run"):
        list(api.predict(tmp_path / "run", str(tmp_path / "new.jsonl"), "sst2"))


TASKS = """
model: {model}
data:
  tasks:
    repeat:
      train: {folder}/repeat.jsonl
      templates: ["w20 {{first}} {{rest}} => {{first}} {{first}}", "w21 {{first}} => {{rest}}"]
      cap: 60
    last: {{train: {folder}/last.jsonl, templates: ["w22 {{first}} {{rest}} => {{rest}}"], cluster: copying}}
    held: {{train: {folder}/held.jsonl, templates: ["{{first}} {{rest}} => {{first}}"], cluster: held}}
    new: {{train: {folder}/new.jsonl, templates: ["{{rest}} {{first}} => {{first}} {{first}}"], cluster: new}}
  held_out: [held, new]
  max_length: 32
methods: [lora, prompt]
search: {{optimizer: random, trials: 3, steps: 4, batch_size: 8, repeats: 1}}
out: {out}
"""


@pytest.mark.usefixtures("in_process")
def test_several_tasks_are_judged_on_those_that_were_held_out(places, tmp_path):
    for start, name in enumerate(("repeat", "last", "held", "new")):
        rows = [{"first": f"w{5 * start + i % 5}", "rest": f"w{i % 19} w{i // 5}"} for i in range(100)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "tasks.yaml"
    file.write_text(TASKS.format(model=places / "causal", folder=tmp_path, out=tmp_path / "run"))
    found = api.check(load_config(file))
    assert {name: task["rows"]["train"] > 0 for name, task in found["tasks"].items()} == {
        "repeat": True, "last": True, "held": False, "new": False}
    document = api.search(load_config(file))
    assert document["state"] == "finished"
    assert {tuple(o["metrics"]) for o in outcomes(tmp_path / "run")} == {("loss_held",)}
    best = min(o["metrics"]["loss_held"] for o in outcomes(tmp_path / "run"))
    assert document["best"]["validation_loss"] == pytest.approx(best)
    for result in (document["test"]["untuned"], document["test"]["winner"]):
        assert result["metrics"] == {"loss_new": pytest.approx(result["loss"])}
    splits = {name: [json.loads(line)["task"] for line in (tmp_path / f"run/splits/{name}.jsonl").read_text().splitlines()]
              for name in ("train", "validation", "test")}
    assert {name: set(tasks) for name, tasks in splits.items()} == {
        "train": {"repeat", "last"}, "validation": {"held"}, "test": {"new"}}
    card = (tmp_path / "run/best/README.md").read_text()
    assert "repeat (" in card
    assert "loss new" in card
    assert "held, held: 100 validation" in (tmp_path / "run/report.html").read_text()
    (tmp_path / "questions.jsonl").write_text('{"prompt": "w23 w5"}\n')
    assert len(list(api.predict(tmp_path / "run", str(tmp_path / "questions.jsonl")))) == 1
    new = str(tmp_path / "asked.jsonl")
    Path(new).write_text('{"first": "w1", "rest": "w2 w3"}\n')
    (tmp_path / "written.jsonl").write_text('{"prompt": "w20 w1 w2 w3"}\n')
    said = list(api.predict(tmp_path / "run", new, "repeat"))
    assert said == list(api.predict(tmp_path / "run", str(tmp_path / "written.jsonl")))
    with pytest.raises(InputError, match=r"asked\.jsonl: .* are those of the tasks repeat, last, held, new: say so with"):
        list(api.predict(tmp_path / "run", new))
    with pytest.raises(InputError, match=r"^--task: there is no task repaet in this run\. Did you mean repeat\?"):
        list(api.predict(tmp_path / "run", new, "repaet"))


@pytest.mark.usefixtures("in_process")
def test_a_prompt_that_trains_nothing_is_handed_over_and_answers_without_the_training_rows(places, tmp_path):
    settings = config(places, tmp_path / "run", trials=6,
                      methods="{in_context: {k: 2, selection: similar}, lora: {learning_rate: 1e-6}}")
    document = api.search(settings)
    found = outcomes(tmp_path / "run")
    assert {o["state"] for o in found} == {"complete"}
    prompted = next(o for o in found if o["method"] == "in_context")
    assert (prompted["trainable_parameters"], prompted["trained_tokens"]) == (0, 0)
    assert prompted["metrics"]["demonstrations_left_out"] == 0
    assert 0 < prompted["adapter_mb"] < 0.1
    assert set(document["test"]["reference"]) == {"in_context", "lora"}
    (tmp_path / "new.jsonl").write_text('{"prompt": "w0 w9"}\n{"prompt": "w7 w9"}\n')
    best = json.loads((tmp_path / "run/best/finemesh.json").read_text())
    assert best["method"] == "in_context"
    assert (tmp_path / "run/best/prompt.json").exists()
    card = (tmp_path / "run/best/README.md").read_text()
    assert "prompted with in\\_context" in card
    assert 'from_pretrained("causal", dtype="float32")' in card
    said = list(api.predict(tmp_path / "run", str(tmp_path / "new.jsonl")))
    (tmp_path / "run/splits/train.jsonl").unlink()
    assert list(api.predict(tmp_path / "run", str(tmp_path / "new.jsonl"))) == said
    assert len(said) == 2


@pytest.mark.usefixtures("in_process")
def test_an_instruction_of_ones_own_and_one_that_is_blank(places, tmp_path):
    with pytest.raises(InputError, match=r"methods\.in_context\.instruction.*the instruction is blank: say what the model"):
        api.check(config(places, tmp_path / "run", methods='{in_context: {instruction: ""}}'))
    settings = config(places, tmp_path / "own", methods='{in_context: {k: 1, instruction: "w1 w2 w3"}}')
    outcome = api.tune(settings, "in_context", {"k": 1, "instruction": "w4 w5"})
    prompt = json.loads(Path(f"{settings.out}-in_context/trials/0000/adapter/prompt.json").read_text())
    assert prompt["instruction"] == outcome.hyperparameters["instruction"] == "w4 w5"


@pytest.mark.usefixtures("in_process")
def test_constraints_make_a_trial_infeasible_before_it_trains(places, tmp_path):
    settings = config(places, tmp_path / "run", methods="{lora: {rank: [2, 64]}, prompt: {length: 2}}", trials=4)
    search = settings.search.model_copy(update={"constraints": {"trainable_parameters": 200.0}})
    document = api.search(settings.model_copy(update={"search": search}))
    assert document["trials"]["complete"] == 4  # what is not started costs nothing
    assert (document["trials"]["infeasible"], document["constraints"]["not_started"] >= 1) == (0, True)
    infeasible = next(o for o in outcomes(tmp_path / "run") if o["state"] == "infeasible")
    assert infeasible["constraints"]["trainable_parameters"] > 0
    assert (infeasible["trained_tokens"], infeasible["started"]) == (0, False)
    assert infeasible["error"].startswith("predicted: trainable_parameters would be ")
    assert document["best"]["method"] == "prompt"
    with pytest.raises(InputError, match="was not started, so there is nothing to repeat: predicted: trainable_parameters"):
        api.tune_again(tmp_path / "run", infeasible["number"])
    killed = tmp_path / "run" / f".worker-{socket.gethostname()}-99999999.json"
    killed.touch()
    again = api.search(settings.model_copy(update={"search": search.model_copy(update={"trials": 5})}))
    assert again["trials"]["complete"] == 5
    assert not killed.exists()


@pytest.mark.usefixtures("in_process")
def test_several_objectives_give_a_front_whose_lowest_loss_wins(places, tmp_path):
    settings = config(places, tmp_path / "run", optimizer="nomad", methods="{lora: {rank: [2, 64]}, prompt: {length: 2}}")
    search = settings.search.model_copy(update={"objectives": ["validation_loss", "trainable_parameters"], "repeats": 1})
    document = api.search(settings.model_copy(update={"search": search}))
    front = [(one["objectives"]["validation_loss"], one["objectives"]["trainable_parameters"]) for one in document["front"]]
    assert front == sorted(front)
    assert [size for _, size in front] == sorted((size for _, size in front), reverse=True)
    ended = [o for o in outcomes(tmp_path / "run") if o["duplicate_of"] is None]
    assert front[0][0] == min(o["validation_loss"] for o in ended)
    assert front[-1][1] == min(o["trainable_parameters"] for o in ended)
    assert "on the front of" in (tmp_path / "run/report.html").read_text()


def test_a_trial_that_would_mostly_validate_is_said_to(places, tmp_path, monkeypatch):
    monkeypatch.setattr(remarks, "ENOUGH_ROWS", 5)
    settings = config(places, tmp_path / "run")
    splits = load_data(settings)
    assert not remarks._mostly_validated(settings, splits)
    short = settings.model_copy(update={"search": settings.search.model_copy(update={"steps": 1})})
    [said] = remarks._mostly_validated(short, splits)
    assert re.match(r"validation has \d+ rows, and a trial trains on 8: about [56]\d % of its time goes into validation; "
                    r"some 5 would do \(data.validation: 0.0\d\)", said)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("hours", [None, 1e-4])
def test_check_spends_nothing_and_tells_all(places, tmp_path, hours):
    settings = config(places, tmp_path / "run")
    search = settings.search.model_copy(update={"steps": 1000, "fidelity": "halving", "hours": hours})  # are foreseen, not made
    said: list[str] = []
    found = api.check(settings.model_copy(update={"search": search}), said.append)
    assert [text.partition(":")[0] for text in said] == ["[1/2] lora", "[2/2] prompt"]
    assert found["rows"]["train"] > found["rows"]["test"] > 0
    assert set(found["methods"]) == {"lora", "prompt"}
    assert found["methods"]["lora"]["trial_seconds"] > 0
    mean = sum(method["trial_seconds"] for method in found["methods"].values()) / 2
    searching = settings.search.trials / 3 * mean if hours is None else hours * 3600
    finishing = (settings.search.repeats * 5 + 2) * mean  # leaders and references
    assert found["search_seconds"] == pytest.approx(searching + finishing, rel=0.01, abs=1)
    assert not (tmp_path / "run").exists()


def test_an_encoder_is_told_that_it_cannot_write(places, tmp_path):
    with pytest.raises(InputError, match="encoder and cannot write answers"):
        api.search(config(places, tmp_path / "run", model="encoder"))


def test_workers_import_nothing_from_the_current_directory(places, tmp_path, monkeypatch):
    settings, commands = config(places, tmp_path / "run"), []
    task = SimpleNamespace(to_json=dict, threads=1)
    monkeypatch.setitem(api.EXECUTORS, "local", lambda command, count, **options: nullcontext(commands.append(command)))
    for folder in (tmp_path, Path(api.__file__).parents[1]):
        monkeypatch.chdir(folder)
        with api._workers(RunFolder(tmp_path), task, settings, 1):
            pass
    assert [command[1] for command in commands] == ["-P", "-m"]  # where finemesh lies, its folder is the current one
