"""The data sets of the benchmarks, read as they are. They lie in FINEMESH_DATA, by default ../shared/data."""

import os
from collections import Counter
from pathlib import Path

import pytest

from finemesh.errors import InputError
from finemesh.tuning.data.examples import Dialogue
from finemesh.tuning.data.files import read_rows
from finemesh.tuning.data.formats import recognise
from finemesh.tuning.data.instructions import Template
from finemesh.tuning.data.mixture import TaskSource, load_tasks
from finemesh.tuning.data.questions import read_questions
from finemesh.tuning.data.split import NAMES, load

ROOT = Path(__file__).parents[3]
DATA = Path(os.environ.get("FINEMESH_DATA", ROOT.parent / "shared" / "data"))


def path(name: str) -> str:
    if not (DATA / name).exists():
        pytest.skip(f"no {name} in {DATA} (FINEMESH_DATA)")
    return str(DATA / name)


@pytest.mark.parametrize(("name", "format", "task", "rows", "duplicates"), [
    ("alpaca_en_demo.jsonl", "Alpaca", "instruct", 985, 14),
    ("seed_tasks.jsonl", "seed tasks", "instruct", 175, 0),
    ("e2e_valid.jsonl", "prompt/completion", "instruct", 4521, 151),
    ("bbh/navigate.json", "prompt/completion", "instruct", 250, 0),
    ("rte_train.jsonl", "text/label", "classify", 32, 0),
    ("rte_val.jsonl", "text/label", "classify", 277, 0),
    ("sst2_train.tsv", "text/label", "classify", 6911, 9),
    ("sst2_dev.tsv", "text/label", "classify", 872, 0),
    ("sst2_test.tsv", "text/label", "classify", 1821, 0),
    ("cola_in_domain_train.tsv", "text/label", "classify", 8543, 8),
    ("cola_in_domain_dev.tsv", "text/label", "classify", 527, 0),
    ("cola_out_of_domain_dev.tsv", "text/label", "classify", 516, 0),
])
def test_every_data_set_is_read(name: str, format: str, task: str, rows: int, duplicates: int) -> None:
    splits = load(path(name))
    assert splits.format.startswith(format + " (")
    assert (splits.task, splits.duplicates, splits.dropped) == (task, duplicates, 0)
    assert sum(len(splits[name]) for name in NAMES) == rows
    assert len(splits.labels) == (2 if task == "classify" else 0)
    keys = [{example.key for example in splits[name]} for name in NAMES]
    assert all(keys)
    assert sum(map(len, keys)) == len(set().union(*keys))


def test_pairs_of_texts() -> None:
    rows = read_rows(path("rte_val.jsonl"))
    assert dict(recognise(rows).columns) == {"text": "premise", "text2": "hypothesis", "label": "label"}


def test_a_file_without_a_header() -> None:
    source = path("mmlu/dev/abstract_algebra_dev.csv")
    with pytest.raises(InputError, match="5 = 'B'"):
        load(source)
    columns: dict[str, str | int] = {"text": 0, "label": 5}
    assert len(read_questions(source, columns=columns)) == 5
    assert set(load(source, columns=columns).labels) <= set("ABCD")


def test_rows_that_the_published_splits_share_are_found() -> None:
    with pytest.raises(InputError, match=r"sst2_test\.tsv: 2 rows are also in .*\(rows at 942, 2423\)"):
        load(path("sst2_train.tsv"), path("sst2_dev.tsv"), path("sst2_test.tsv"))
    with pytest.raises(InputError, match=r"cola_in_domain_dev\.tsv: 3 rows are also in"):
        load(path("cola_in_domain_train.tsv"), path("cola_in_domain_dev.tsv"))
    splits = load(path("sst2_train.tsv"), path("sst2_dev.tsv"), 0.1)
    assert len(splits.validation) == 872


def test_tasks_of_three_clusters() -> None:
    def source(name: str, cap: int, cluster: str, *templates: str) -> TaskSource:
        return TaskSource(path(name), [Template.read(text) for text in templates], cluster, cap)

    splits = load_tasks({
        "sst2": source("sst2_train.tsv", 500, "sentiment", "{text} Good? => {label}", "A {label} review: => {text}"),
        "cola": source("cola_in_domain_train.tsv", 300, "grammar", "Is this acceptable? {sentence} => {label}"),
        "rte": source("rte_val.jsonl", 100, "entailment", "{premise} So: {hypothesis} => {label}")}, ["entailment"])
    counts = {name: Counter(example.task for example in splits[name] if isinstance(example, Dialogue)) for name in NAMES}
    assert counts["train"] == {"sst2": 500, "cola": 300}
    assert set(counts["validation"]) == set(counts["test"]) == {"rte"}
    assert counts["validation"]["rte"] + counts["test"]["rte"] == 100
