"""Mixtures of tasks: capped, disjoint, unmoved by more rows, judged on clusters that nothing is trained on."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from finemesh.errors import InputError
from finemesh.tuning.data.examples import Dialogue
from finemesh.tuning.data.instructions import Template
from finemesh.tuning.data.mixture import TaskSource, load_tasks
from finemesh.tuning.data.split import NAMES, Splits, read_splits

PLAIN = "Good or bad? {text} => {label}"
TURNED = "Write something {label}. => {text}"


def rows(count: int, word: str, start: int = 0) -> list[dict[str, Any]]:
    return [{"text": f"{word} {i}", "label": i % 2} for i in range(start, start + count)]


def task(folder: Path, name: str, lines: Sequence[Mapping[str, Any]] = (), templates: Sequence[str] = (PLAIN,), *,
         cluster: str | None = None, **more: Any) -> TaskSource:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in lines or rows(100, name)), encoding="utf-8")
    return TaskSource(str(path), [Template.read(text) for text in templates], cluster or name, **more)


def tasks_of(splits: Splits, name: str) -> Counter[str]:
    return Counter(example.task for example in splits[name] if isinstance(example, Dialogue))


def test_without_held_out_clusters_every_task_is_in_every_split(tmp_path: Path) -> None:
    splits = load_tasks({name: task(tmp_path, name) for name in ("a", "b")}, (), 0.2, 0.2)
    for name in NAMES:
        assert set(tasks_of(splits, name)) == {"a", "b"}
    assert sum(len(splits[name]) for name in NAMES) == 200
    assert len({example.key for name in NAMES for example in splits[name]}) == 200
    assert [example.task for example in splits.train[:30]] != sorted(example.task for example in splits.train[:30])
    assert splits.task == "instruct"
    assert splits.format == "instructions of a, b; validation and test are shares of all of them"


def test_a_row_of_blank_fields_has_no_answer(tmp_path: Path) -> None:
    lines = [*rows(40, "a"), {"text": "", "label": ""}, {"text": "asked, not answered", "label": " "}]
    assert load_tasks({"a": task(tmp_path, "a", lines, labels={"0": "no", "1": "yes"})}).dropped == 2


def test_a_number_that_no_float_holds_is_said_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.jsonl, line 2: field 'label' must be text, but it is a number: 1000"):
        load_tasks({"a": task(tmp_path, "a", [*rows(1, "a"), {"text": "x", "label": 10**400}])})


def test_one_held_out_cluster_validates_and_tests(tmp_path: Path) -> None:
    tasks = {name: task(tmp_path, name, cluster="held" if name in "cd" else name) for name in "abcd"}
    splits = load_tasks(tasks, ["held"], 0.1, 0.3)
    assert tasks_of(splits, "train") == {"a": 100, "b": 100}
    assert set(tasks_of(splits, "validation")) == set(tasks_of(splits, "test")) == {"c", "d"}
    assert len(splits.validation) + len(splits.test) == 200
    assert len(splits.test) == pytest.approx(150, abs=20)
    assert not {e.key for e in splits.validation} & {e.key for e in splits.test}
    assert splits.format == "instructions of a, b; zero-shot validation and test on held (c, d)"
    assert "with a second cluster in data.held_out" in splits.notes[0]


def test_of_several_held_out_clusters_the_last_one_tests(tmp_path: Path) -> None:
    splits = load_tasks({name: task(tmp_path, name) for name in "abcd"}, ["d", "b", "c"])
    assert [tasks_of(splits, name) for name in NAMES] == [{"a": 100}, {"b": 100, "d": 100}, {"c": 100}]
    assert splits.notes == ()
    assert splits.format == "instructions of a; zero-shot validation on d and b (b, d), test on c (c)"


def test_the_search_never_sees_the_rows_of_the_test_cluster(tmp_path: Path) -> None:
    shared = rows(10, "the same")
    tasks = {"a": task(tmp_path, "a", rows(50, "a") + shared), "b": task(tmp_path, "b", rows(50, "b") + shared),
             "c": task(tmp_path, "c", rows(30, "c") + shared)}
    splits = load_tasks(tasks, ["b", "c"])
    assert [len(splits[name]) for name in NAMES] == [50, 50, 40]
    assert "10 train rows whose text is in test too, in another task, were left out" in splits.notes
    with pytest.raises(InputError, match="no row is left for the train split once those are taken out"):
        load_tasks({"a": task(tmp_path, "a", shared), "c": tasks["c"]}, ["c"])


def test_a_task_that_asks_the_other_way_round_tells_nothing_of_what_judges(tmp_path: Path) -> None:
    lines = rows(100, "a")
    tasks = {"judge": task(tmp_path, "judge", lines, cluster="one"), "write": task(tmp_path, "write", lines, [TURNED])}
    splits = load_tasks(tasks, (), 0.2, 0.2)
    answers = {example.answer for example in splits.train}
    judged = [example for example in (*splits.validation, *splits.test) if example.answer in "01"]
    assert not {example.prompt.removeprefix("Good or bad? ") for example in judged} & answers
    gone = 200 - sum(len(splits[name]) for name in NAMES)
    assert gone == sum(int(note.split()[0]) for note in splits.notes if "too, in another task, were left out" in note) > 0
    with pytest.raises(InputError, match=r"^data\.held_out: no row is left for the train split .* give the tasks different"):
        load_tasks(tasks, ["one"])
    both = {**tasks, "write": task(tmp_path, "write", lines, [TURNED], cluster="one"), "c": task(tmp_path, "c")}
    halves = load_tasks(both, ["one"], 0.2, 0.2)
    texts = [{example.answer if example.task == "write" else example.prompt.removeprefix("Good or bad? ")
              for example in halves[name] if isinstance(example, Dialogue)} for name in ("validation", "test")]
    assert not texts[0] & texts[1]


def test_the_cap_bounds_every_task_and_more_rows_displace_few(tmp_path: Path) -> None:
    def capped(count: int) -> Splits:
        return load_tasks({"a": task(tmp_path, "a", rows(count, "a"), cap=50), "b": task(tmp_path, "b", rows(30, "b"), cap=50),
                           "c": task(tmp_path, "c", cap=40)}, ["c"])

    before, after = capped(400), capped(440)
    assert tasks_of(before, "train") == {"a": 50, "b": 30}
    assert len(before.validation) + len(before.test) == 40
    assert len(set(before.train) & set(after.train)) > 65
    assert (before.validation, before.test) == (after.validation, after.test)


def test_a_row_stays_in_its_split_whatever_its_template(tmp_path: Path) -> None:
    def home(lines: list[dict[str, Any]], templates: list[str]) -> dict[str, str]:
        splits = load_tasks({"a": task(tmp_path, "a", lines, templates)}, (), 0.2, 0.2)
        texts = {row["text"] for row in lines}
        found = {text: name for name in NAMES for example in splits[name] for text in texts
                 if text in (example.prompt.removeprefix("Good or bad? "), example.answer)}
        assert set(found) == texts
        return found

    first = home(rows(80, "a"), [PLAIN])
    assert home(rows(80, "a"), [PLAIN, TURNED]) == first
    assert {text: name for text, name in home(rows(120, "a")[::-1], [PLAIN, TURNED]).items() if text in first} == first


def test_turned_around_templates_only_train(tmp_path: Path) -> None:
    splits = load_tasks({"a": task(tmp_path, "a", templates=[PLAIN, "{text}? => Answer: {label}", TURNED])}, (), 0.2, 0.2)
    kinds = Counter(example.answer[:2] for example in splits.train)
    assert min(kinds[answer] for answer in ("0", "1", "An", "a ")) > 3
    judged = [*splits.validation, *splits.test]
    assert {example.answer for example in judged} == {"0", "1", "Answer: 0", "Answer: 1"}


def test_labels_become_words(tmp_path: Path) -> None:
    words = {"0": "negative", "1": "positive"}
    splits = load_tasks({"a": task(tmp_path, "a", templates=[PLAIN, TURNED], labels=words)}, (), 0.2, 0.2)
    answers = {example.prompt: example.answer for example in splits.train}
    assert set(words.values()) <= set(answers.values())
    assert "Write something positive." in answers
    with pytest.raises(InputError, match=r"data\.tasks\.a\.labels: there is no word for '1', which .*a\.jsonl, line 2 has"):
        load_tasks({"a": task(tmp_path, "a", labels={"0": "negative"})})


def test_equal_rows_and_those_without_an_answer_are_left_out_and_counted(tmp_path: Path) -> None:
    lines = [{**row, "id": i} for i, row in enumerate([*rows(60, "a"), *rows(20, "a"), {"text": "a", "label": " "}])]
    tasks = {"a": task(tmp_path, "a", lines), "again": task(tmp_path, "again", rows(10, "a"))}
    splits = load_tasks(tasks, (), 0.2, 0.2)
    assert (splits.duplicates, splits.dropped) == (30, 1)
    assert sum(len(splits[name]) for name in NAMES) == 60
    with pytest.raises(InputError, match="none of its 1 rows has an answer to learn"):
        load_tasks({"a": task(tmp_path, "a", lines[-1:])})


def test_columns_are_those_of_the_file_or_the_usual_names_or_given(tmp_path: Path) -> None:
    lines = [{"sentence": f"s{i}", "label": "x", "stars": i % 3} for i in range(40)]
    template = "{text} or {sentence}: {mark} => {label}"
    splits = load_tasks({"a": task(tmp_path, "a", lines, [template], columns={"mark": "stars"})})
    assert splits.train[0].prompt.split()[0] == splits.train[0].prompt.split()[2].rstrip(":")
    assert {example.prompt[-1] for example in splits.train} == {"0", "1", "2"}


@pytest.mark.parametrize(("template", "columns"), [("{2} => {0}", {}), ("{text} => {label}", {"text": 2, "label": 0})])
def test_a_file_without_a_header(tmp_path: Path, template: str, columns: dict[str, str | int]) -> None:
    (tmp_path / "a.tsv").write_text("".join(f"{i % 2}\t*\tsentence {i}\n" for i in range(40)))
    source = TaskSource(str(tmp_path / "a.tsv"), [Template.read(template)], "a", columns=columns)
    splits = load_tasks({"a": source})
    assert sum(len(splits[name]) for name in NAMES) == 40
    assert splits.train[0].prompt.startswith("sentence ")
    assert splits.train[0].answer in ("0", "1")


@pytest.mark.parametrize(("templates", "columns", "words"), [
    ([PLAIN, "{txt} => {label}"], {}, ["data.tasks.a.templates.1: {txt} is no column of ", "a.jsonl. Did you mean text?"]),
    ([PLAIN], {"label": "lable"}, ["data.tasks.a.columns.label: there is no column 'lable'", "Did you mean label?"]),
])
def test_columns_that_are_not_there(tmp_path: Path, templates: list[str], columns: dict[str, str], words: list[str]) -> None:
    with pytest.raises(InputError) as raised:
        load_tasks({"a": task(tmp_path, "a", templates=templates, columns=columns)})
    for expected in words:
        assert expected in str(raised.value)


def test_a_table_whose_header_is_data_is_told_of_positions(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("1\tfine\n0\tbad\n")
    with pytest.raises(InputError, match=r"no column of .*where the file has no header line, .* 1 = 'fine'"):
        load_tasks({"a": TaskSource(str(tmp_path / "a.tsv"), [Template.read(PLAIN)], "a")})


@pytest.mark.parametrize(("lines", "words"), [
    ([{"text": "x", "label": [1]}], "line 1: field 'label' must be text, but it is a list"),
    ([{"text": "x", "label": 1}, {"text": "x"}],
     "line 2: the row has no field 'label', which is its label; it has text. Fill it in or remove the row"),
    ([{"text": None, "label": 1}], "line 1: field 'text' must be text, but it is null; fill it in or remove the row"),
])
def test_rows_that_cannot_be_put(tmp_path: Path, lines: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(InputError) as raised:
        load_tasks({"a": task(tmp_path, "a", lines)})
    assert str(raised.value).startswith("data.tasks.a.train: ")
    assert words in str(raised.value)


def test_a_file_that_is_missing_and_too_few_rows(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^data\.tasks\.a\.train: nowhere\.tsv: there is no such file; check the name"):
        load_tasks({"a": TaskSource("nowhere.tsv", [Template.read(PLAIN)], "a")})
    few = {"a": task(tmp_path, "a"), "b": task(tmp_path, "b", rows(1, "b"))}
    with pytest.raises(InputError, match=r"^data\.held_out: b has rows of one question only"):
        load_tasks(few, ["b"])
    with pytest.raises(InputError, match=r"data\.tasks: a split would be empty"):
        load_tasks({"b": few["b"]})


def test_what_is_written_is_read_again_with_its_tasks(tmp_path: Path) -> None:
    splits = load_tasks({name: task(tmp_path, name) for name in "abc"}, ["c"])
    splits.write(tmp_path / "splits")
    again = read_splits(tmp_path / "splits")
    assert again == splits
    assert [tasks_of(again, name) for name in NAMES] == [tasks_of(splits, name) for name in NAMES]
    assert again.data_hash == splits.data_hash
    summary = json.loads((tmp_path / "splits/summary.json").read_text())
    assert summary["tasks"]["a"] == {"cluster": "a", "rows": {"train": 100, "validation": 0, "test": 0}}
    assert summary["tasks"]["c"]["rows"]["validation"] == len(splits.validation)
