"""Splits: disjoint, unmoved by more rows, never empty; given files; what is written and read again."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from finemesh.errors import InputError
from finemesh.tuning.data.examples import Dialogue, Example, Labelled, Turn
from finemesh.tuning.data.split import NAMES, Splits, load, read_splits, split

SHARES = {"validation": 0.1, "test": 0.1}


def examples(count: int, seed: int = 0, answers: int = 1) -> list[Example]:
    generator = random.Random(seed)
    questions = [f"question {generator.random()}" for _ in range(count)]
    return [Dialogue((Turn("user", question), Turn("assistant", f"answer {answer}")))
            for question in questions for answer in range(answers)]


def home(parts: dict[str, list[Example]]) -> dict[str, str]:
    """Split by question; fails where a question is in two."""
    found: dict[str, str] = {}
    for name, part in parts.items():
        for example in part:
            assert found.setdefault(example.key, name) == name
    return found


def write(folder: Path, name: str, rows: list[dict]) -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder / name)


def pairs(count: int, start: int = 0) -> list[dict]:
    return [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(start, start + count)]


def labels(count: int, start: int = 0) -> list[dict]:
    return [{"text": f"t{i}", "label": "yes" if i % 2 else "no"} for i in range(start, start + count)]


@pytest.mark.parametrize("seed", range(5))
def test_splits_are_disjoint_and_whole_with_all_answers_of_a_question_together(seed: int) -> None:
    given = examples(200, seed, answers=3)
    parts = split(given, SHARES)
    assert sorted(e.row_hash for part in parts.values() for e in part) == sorted(e.row_hash for e in given)
    assert len(home(parts)) == 200
    assert all(len(part) % 3 == 0 for part in parts.values())


@pytest.mark.parametrize("seed", range(5))
def test_a_row_does_not_move_when_rows_are_added_removed_or_reordered(seed: int) -> None:
    given = examples(400, seed)
    random.Random(seed).shuffle(given)
    before, after = home(split(given[:200], SHARES)), home(split(given, SHARES))
    assert before == {key: name for key, name in after.items() if key in before}
    assert home(split(given[::-1], SHARES)) == after


def test_shares_are_kept_and_a_larger_validation_share_leaves_the_test_rows() -> None:
    given = examples(4000)
    parts = split(given, {"validation": 0.2, "test": 0.1})
    assert len(parts["validation"]) == pytest.approx(800, abs=100)
    assert len(parts["test"]) == pytest.approx(400, abs=80)
    assert split(given, SHARES)["test"] == parts["test"]


@pytest.mark.parametrize("shares", [SHARES, {"validation": 0.1}, {"test": 0.9}, {"validation": 0.05, "test": 0.9},
                                    {"test": 0.001, "validation": 0.998}], ids=str)
@pytest.mark.parametrize("count", [3, 4, 7, 12])
def test_no_split_is_empty_however_few_the_rows(count: int, shares: dict[str, float]) -> None:
    for seed in range(50):
        parts = split(examples(count, seed), shares)
        assert set(parts) == {"train", *shares}
        assert all(parts.values())
        assert len(home(parts)) == count


def test_among_few_rows_only_the_stand_ins_move() -> None:
    for seed in range(50):
        given = examples(40, seed)
        before, after = home(split(given[:20], SHARES)), home(split(given, SHARES))
        moved = [key for key in before if before[key] != after[key]]
        assert len(moved) <= 2
        assert all(list(before.values()).count(before[key]) == 1 or after[key] != "train" for key in moved)


@pytest.mark.parametrize(("count", "shares", "words"), [
    (2, SHARES, ["2 distinct questions", "train and validation and test", "at least 3 rows"]),
    (1, {"test": 0.5}, ["1 distinct question cannot", "at least 2 rows"]),
    (9, {"test": 0.0}, ["data.test: 0 must be a share between 0 and 1"]),
    (9, {"validation": 1.5}, ["data.validation: 1.5 must be"]),
    (9, {"validation": 0.5, "test": 0.5}, ["leave nothing to train on"]),
])
def test_splits_that_cannot_be(count: int, shares: dict[str, float], words: list[str]) -> None:
    with pytest.raises(InputError) as raised:
        split(examples(count), shares, "few.jsonl")
    for expected in words:
        assert expected in str(raised.value)


def test_few_questions_with_many_answers_are_few(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i % 2}", "completion": f"c{i}"} for i in range(50)]
    with pytest.raises(InputError, match=r"d\.jsonl: a split would be empty: 2 distinct questions"):
        load(write(tmp_path, "d.jsonl", rows))


def test_equal_rows_are_kept_once_and_counted_as_those_without_an_answer(tmp_path: Path) -> None:
    source = write(tmp_path, "d.jsonl", pairs(60) + pairs(25) + [{"prompt": "p0", "completion": "else"},
                                                                 {"prompt": "p", "completion": " "}])
    splits = load(source)
    assert (splits.duplicates, splits.dropped) == (25, 1)
    assert sum(len(splits[name]) for name in NAMES) == 61
    assert splits.task == "instruct"
    assert splits.format == "prompt/completion (prompt, completion), task instruct"
    assert any(note.startswith("25 rows equal") for note in splits.notes)
    assert any(note.startswith("1 rows without an answer") for note in splits.notes)


@pytest.mark.parametrize("label", ["{}.5", "{}"])
def test_rows_that_a_spreadsheet_leaves_blank_are_left_out(tmp_path: Path, label: str) -> None:
    lines = ["text,label", *(f"t{i},{label.format(i)}" for i in range(40)), ",", ","]
    (tmp_path / "d.csv").write_text("\n".join(lines) + "\n")
    splits = load(str(tmp_path / "d.csv"))
    assert (splits.task, splits.dropped, sum(len(splits[name]) for name in NAMES)) == ("regress", 2, 40)
    (tmp_path / "d.csv").write_text("text,label\n,\n")
    with pytest.raises(InputError, match="none of its 1 rows has an answer to learn"):
        load(str(tmp_path / "d.csv"))


def test_files_of_their_own(tmp_path: Path) -> None:
    train = write(tmp_path, "train.jsonl", labels(40))
    validation = write(tmp_path, "validation.csv.jsonl", labels(10, 100))
    splits = load(train, validation, 0.2)
    assert len(splits.validation) == 10
    assert len(splits.train) + len(splits.test) == 40
    assert splits.labels == ("no", "yes")
    assert splits.id2label == {0: "no", 1: "yes"}
    both = load(train, validation, write(tmp_path, "test.jsonl", labels(5, 200)))
    assert [len(both[name]) for name in NAMES] == [40, 10, 5]


def test_the_task_of_the_training_file_is_that_of_the_others(tmp_path: Path) -> None:
    train = write(tmp_path, "train.jsonl", [{"text": f"t{i}", "score": i / 7} for i in range(40)])
    splits = load(train, write(tmp_path, "v.jsonl", [{"text": "u0", "score": 1}, {"text": "u1", "score": "2"}]))
    assert splits.task == "regress"
    assert [example.label for example in splits.validation if isinstance(example, Labelled)] == [1.0, 2.0]
    assert splits.labels == ()


def test_rows_in_two_files_are_refused_with_their_places(tmp_path: Path) -> None:
    train = write(tmp_path, "train.jsonl", pairs(40))
    test = write(tmp_path, "test.jsonl", pairs(5, 100) + pairs(3, 10))
    with pytest.raises(InputError) as raised:
        load(train, 0.1, test)
    assert str(raised.value) == (
        f"{test}: 3 rows are also in {train}; the first: {test}, line 6 equals {train}, line 11 ('p10'). "
        f"Take what is in both out of {train} (rows at 11, 12, 13), or give a share in place of the second file")
    with pytest.raises(InputError, match=r"test\.jsonl: 8 rows are also in .*test\.jsonl"):
        load(write(tmp_path, "other.jsonl", pairs(9, 500)), test, test)
    with pytest.raises(InputError, match=r"40 rows are also in .*\(rows at 1, 2, .* 10, \.\.\.\)"):
        load(train, 0.1, train)


def test_rows_that_differ_in_line_ends_or_outer_whitespace_are_equal(tmp_path: Path) -> None:
    def spaced(count: int) -> list[dict]:
        return [{"prompt": f"a\r\np{i} ", "completion": f"c{i}"} for i in range(count)]

    rows = [{"prompt": f"a\np{i}", "completion": f"c{i}"} for i in range(40)]
    splits = load(write(tmp_path, "both.jsonl", rows + spaced(40)))
    assert (splits.duplicates, sum(len(splits[name]) for name in NAMES)) == (40, 40)
    with pytest.raises(InputError, match=r"5 rows are also in .* line 1 equals .* line 1, but for line ends or outer"):
        load(write(tmp_path, "train.jsonl", rows), 0.1, write(tmp_path, "test.jsonl", spaced(5)))
    others = load(write(tmp_path, "others.jsonl", rows + [row | {"completion": "else"} for row in spaced(40)]), 0.2, 0.2)
    questions = [{" ".join(example.prompt.split()) for example in others[name]} for name in NAMES]
    assert sum(map(len, questions)) == len(set.union(*questions)) == 40


def test_a_question_in_two_files_with_other_answers_is_said(tmp_path: Path) -> None:
    train = write(tmp_path, "train.jsonl", pairs(40))
    splits = load(train, 0.1, write(tmp_path, "test.jsonl", [{"prompt": "p1", "completion": "else"}, *pairs(30, 100)]))
    assert "the questions of 1 test rows are also in train, with other answers" in splits.notes


def test_labels_are_sorted_as_numbers_where_they_are_numbers(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": (10, 9, -1)[i % 3]} for i in range(30)]
    assert load(write(tmp_path, "d.jsonl", rows)).labels == ("-1", "9", "10")


def test_labels_that_are_not_in_train_are_said(tmp_path: Path) -> None:
    rows = labels(40)
    held = load(write(tmp_path, "d.jsonl", rows))
    assert not any("no train row" in note for note in held.notes)
    rare = [row | {"label": "rare"} if row["text"] == held.test[0].prompt else row for row in rows]
    assert "no train row has the label rare, which validation or test has: it cannot be learned" in load(
        write(tmp_path, "d.jsonl", rare)).notes
    alone = [row | {"label": "rare" if row["label"] == "rare" else "usual"} for row in rare]
    with pytest.raises(InputError, match=r"d\.jsonl: every row that is left to train on has the label 'usual', and those of"):
        load(write(tmp_path, "d.jsonl", alone))


@pytest.mark.parametrize(("rows", "given", "words"), [
    ([{"text": f"t{i}", "label": "x"} for i in range(9)], None, ["every row has the label 'x'", "at least two labels"]),
    (labels(9), [{"text": "u", "label": "yess"}],
     ["v.jsonl, line 1", "'yess' is none of those in", "Did you mean yes?"]),
    (labels(9), [{"text": "u", "text2": "w", "label": "yes"}], ["v.jsonl: its rows have two texts (text, text2)", "have one"]),
    ([{"prompt": "p", "completion": ""}], None, ["none of its 1 rows has an answer"]),
])
def test_what_is_wrong_is_said(tmp_path: Path, rows: list[dict], given: list[dict] | None, words: list[str]) -> None:
    source = write(tmp_path, "d.jsonl", rows)
    with pytest.raises(InputError) as raised:
        load(source, 0.1 if given is None else write(tmp_path, "v.jsonl", given))
    for expected in words:
        assert expected in str(raised.value)


@pytest.fixture
def splits(tmp_path: Path) -> Splits:
    return load(write(tmp_path, "d.jsonl", [*labels(50), {"text": "a\u2028\r\n\"b\" é", "label": "no"}]))


def test_what_is_written_is_read_again(tmp_path: Path, splits: Splits) -> None:
    splits.write(tmp_path / "splits")
    assert sorted(path.name for path in (tmp_path / "splits").iterdir()) == [
        "summary.json", "test.jsonl", "train.jsonl", "validation.jsonl"]
    assert read_splits(tmp_path / "splits") == splits
    summary = json.loads((tmp_path / "splits" / "summary.json").read_text())
    assert summary["rows"] == {name: len(splits[name]) for name in NAMES}
    assert summary["data_hash"] == splits.data_hash
    assert set(summary) >= {"duplicates", "dropped", "format"}


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    splits.write(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*names: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        Splits(splits.test, splits.train, splits.test, "classify", "other").write(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_data_hash_is_that_of_the_contents(tmp_path: Path) -> None:
    rows = pairs(50)
    source, turned, other = (load(write(tmp_path, f"{name}.jsonl", given)) for name, given in (
        ("a", rows), ("b", rows[::-1]), ("c", [*rows[:-1], {"prompt": "p49", "completion": "c"}])))
    assert source.data_hash == turned.data_hash != other.data_hash
    moved = Splits(source.train + source.test, source.validation, (), source.task, source.format)
    assert moved.data_hash != source.data_hash


def test_reading_and_splitting_loads_no_heavy_library(tmp_path: Path) -> None:
    source = write(tmp_path, "d.jsonl", pairs(30))
    code = (f"import sys; from finemesh.tuning.data.split import load; load({source!r}); "
            "print({'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules))")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
