"""The data section with several tasks: what is read from it, and what is wrong said with its line."""

from pathlib import Path

import pytest

from finemesh.config import Config, load_config
from finemesh.errors import InputError

SST2 = """\
    sst2:
      train: sst2.tsv
      templates: ["Good or bad? {text} => {label}", "Write a {label} review. => {text}"]
"""
RTE = """\
    rte:
      train: rte.jsonl
      templates: ["{premise} So {hypothesis}? => {label}"]
      cluster: entailment
"""
HEAD = "model: some/model\ndata:\n  tasks:\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(text: str) -> Config:
    Path("mine.yaml").write_text(text)
    return load_config("mine.yaml")


def refused(text: str) -> str:
    with pytest.raises(InputError) as caught:
        load(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_tasks_take_the_place_of_train() -> None:
    more = "      cap: 5e2\n      labels: {0: negative, 1.0: positive}\n"
    config = load(HEAD + SST2 + more + RTE + "  held_out: [entailment]\n")
    assert config.data.train is None
    tasks = config.data.tasks or {}
    assert (tasks["sst2"].cap, tasks["rte"].cap) == (500, None)
    assert tasks["sst2"].labels == {"0": "negative", "1": "positive"}
    assert config.data.clusters == {"sst2": "sst2", "rte": "entailment"}
    assert config.data.held_out == ["entailment"]
    assert config.data.source == "sst2 (sst2.tsv), rte (rte.jsonl)"
    assert config.data.trained_on == "sst2 (sst2.tsv)"
    assert load(config.to_yaml()) == config


def test_files_are_looked_for_beside_the_config(folder: Path) -> None:
    (folder / "project").mkdir()
    (folder / "project/sst2.tsv").touch()
    (folder / "project/mine.yaml").write_text(HEAD + SST2 + RTE)
    tasks = load_config("project/mine.yaml").data.tasks or {}
    assert (tasks["sst2"].train, tasks["rte"].train) == ("project/sst2.tsv", "rte.jsonl")


def test_a_config_without_tasks_is_written_as_ever() -> None:
    """Runs of before the tasks go on: their config.yaml has no word of them."""
    config = load("model: some/model\ndata: {train: a.jsonl}\n")
    assert set(config.model_dump(exclude_none=True)["data"]) == {"train", "validation", "test", "max_length", "columns"}


@pytest.mark.parametrize(("extra", "parts"), [
    ("  train: a.jsonl\n", ["line 11: data.train: train and tasks are both given: keep one"]),
    ("  held_out: [entailement]\n", ["line 11: data.held_out: no task has the cluster entailement. Did you mean entailment?"]),
    ("  held_out: [entailment, sst2]\n", ["line 11: data.held_out: every cluster is held out", "add a task of another"]),
    ("  held_out: [sst2, sst2]\n", ["line 11: data.held_out: a cluster is named twice"]),
    ("  held_out: entailment\n", ["line 11: data.held_out: must be a list", "not 'entailment'"]),
    ("  validation: dev.jsonl\n", ["line 11: data.validation: with data.tasks it must be a share such as 0.1, not the file"]),
    ("  columns: {text: sentence}\n", ["line 11: data.columns: every task has columns of its own"]),
    ("  cap: 5\n", ["line 11: data.cap: there is no such field."]),
    ("      cap: 0\n", ["line 11: data.tasks.rte.cap: must be at least 1, not 0"]),
    ("      cap: many\n", ["line 11: data.tasks.rte.cap: must be a number, not 'many'"]),
    ("      clutser: x\n", ["line 11: data.tasks.rte.clutser: there is no such field. Did you mean cluster?"]),
    ("      max_length: 5\n", ["line 11: data.tasks.rte.max_length: there is no such field. It belongs below data."]),
    ("      columns: {premise: [1]}\n", ["line 11: data.tasks.rte.columns: premise must be the name of a column"]),
    ("      labels: [no, yes]\n", ["line 11: data.tasks.rte.labels: must be fields of its own", "not ['no', 'yes']"]),
    (f"      labels: {{{10**400}: yes}}\n", ["line 11: not YAML: an integer of more than 300 digits", "in quotes"]),
    ("    empty:\n", ["line 11: data.tasks.empty: must be fields of its own"]),
    ("    empty: {}\n", ["data.tasks.empty.train: missing; add `train:`"]),
    ("    train:\n      trian: a\n", ["line 12: data.tasks.train.trian: there is no such field. Did you mean train?"]),
    ("task: classify\n", ["line 11: task: data.tasks are instructions", "not classify"]),
])
def test_what_is_wrong_is_said_with_its_line(extra: str, parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load(HEAD + SST2 + RTE + extra)
    for part in parts:
        assert f"mine.yaml, {part}" in str(caught.value) if part.startswith("line") else part in str(caught.value)


@pytest.mark.parametrize(("templates", "parts"), [
    ("[]", ["data.tasks.a.templates: must be a list of at least one template", "=> {label}"]),
    ('"{text} => {label}"', ["data.tasks.a.templates: must be a list of at least one template", "not '{text} => {label}'"]),
    ('["{text} => {label}", "Good? {text}"]', ["data.tasks.a.templates.1: no => in it"]),
    ('["{text => {label}"]', ["data.tasks.a.templates.0: a brace is not closed"]),
    ('["Good? {text} => yes"]', ["data.tasks.a.templates.0: the answer names no column"]),
    ("[5]", ["data.tasks.a.templates.0: must be text, not 5"]),
])
def test_templates(templates: str, parts: list[str]) -> None:
    message = refused(f"{HEAD}    a:\n      train: a.tsv\n      templates: {templates}\n")
    for part in ["mine.yaml, line 6: ", *parts]:
        assert part in message


def test_the_line_is_that_of_the_template() -> None:
    templates = '      templates:\n        - "{text} => {label}"\n        - "Good? {text}"\n'
    assert refused(f"{HEAD}    a:\n      train: a.tsv\n{templates}").startswith("mine.yaml, line 8: data.tasks.a.templates.1:")


@pytest.mark.parametrize(("text", "parts"), [
    ("data: {tasks: {}}", ["line 2: data.tasks: no task is named"]),
    ("data: {train: a, held_out: [x]}", ["line 2: data.held_out: there is nothing to hold out without data.tasks"]),
    ("data: {tasks: {a: {train: b}}}", ["line 2: data.tasks.a.templates: missing; add `templates:` with a list"]),
    ("data: {max_length: 5}", ["line 2: data.train: missing; add `train:` below `data:`", "`tasks:` for several"]),
    ("data: {held_out: [a], tasks: {a: {train: b, templates: ['{x} => {y}']}}}",
     ["line 2: data.held_out: a is the only cluster, so that no task is left to train on"]),
    ("data: {tasks: {a: {train: b, templates: ['{x} => {y} {z}'], labels: {0: no}}}}",
     ["line 2: data.tasks.a.labels: words for the labels need one column to be answered with"]),
    ("data: {tasks: {a: {train: b, templates: ['{x} => {y}'], labels: {0: 1}}}}",
     ["data.tasks.a.labels.0: must be text, not 1"]),
])
def test_whole_sections(text: str, parts: list[str]) -> None:
    message = refused(f"model: some/model\n{text}\n")
    assert message.startswith("mine.yaml, line 2: ")
    for part in parts:
        assert part in message


def test_an_empty_list_holds_nothing_out() -> None:
    assert load(HEAD + SST2 + "  held_out: []\n").data.held_out is None
