"""The contract of every format, from every kind of file; what is recognised; and what is wrong with a row."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from finemesh.errors import InputError
from finemesh.tuning.data.examples import Dialogue, Example, Labelled, from_json
from finemesh.tuning.data.files import READERS, read_rows
from finemesh.tuning.data.formats import FORMATS, Recognised, recognise
from finemesh.tuning.data.rows import Row

CHAT = [[{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f'a "{i}"\nb'}] for i in range(3)]
LINES: dict[str, list[dict[str, Any]]] = {
    "chat messages": [{"messages": CHAT[0]}, {"messages": CHAT[1]}, {"messages": CHAT[2]}],
    "seed tasks": [{"instruction": f"do {i}", "instances": [{"input": "x", "output": f"y{i}"}]} for i in range(3)],
    "Alpaca": [{"instruction": "do", "input": "", "output": "a"},
               {"instruction": "do", "input": "x, y", "output": 'b "c"'},
               {"instruction": "do\tit", "input": "z", "output": "d\ne"}],
    "prompt/completion": [{"prompt": f"p{i}", "completion": f"c{i}, \"d\""} for i in range(3)],
    "text/label": [{"text": "one, two", "text2": "x", "label": "yes"},
                   {"text": "three\tfour", "text2": "y", "label": "no"},
                   {"text": 'five "six"', "text2": "z", "label": "yes"}],
}


def write(folder: Path, rows: list[dict[str, Any]], suffix: str) -> str:
    path = folder / f"data{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif suffix in (".csv", ".tsv"):
        cells = [{k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows]
        out = io.StringIO()
        writer = csv.DictWriter(out, list(rows[0]), delimiter="," if suffix == ".csv" else "\t")
        writer.writeheader()
        writer.writerows(cells)
        path.write_text(out.getvalue(), encoding="utf-8", newline="")
    else:
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        path.write_text(json.dumps(rows) if suffix == ".json" else lines, encoding="utf-8")
    return str(path)


def made(*fields: dict[str, Any], **options: Any) -> tuple[Recognised, list[Example]]:
    rows = [Row(row, "d.jsonl", line) for line, row in enumerate(fields, start=1)]
    recognised = recognise(rows, **options)
    return recognised, recognised.examples(rows)[0]


def said(*fields: dict[str, Any], **options: Any) -> str:
    with pytest.raises(InputError) as raised:
        made(*fields, **options)
    return str(raised.value)


def first(*fields: dict[str, Any], **options: Any) -> Example:
    return made(*fields, **options)[1][0]


def contents(example: Example) -> list[str]:
    assert isinstance(example, Dialogue)
    return [f"{turn.role}: {turn.content}" for turn in example.turns]


def test_every_format_has_its_three_lines() -> None:
    assert set(LINES) == set(FORMATS)


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.parametrize("name", FORMATS)
def test_three_lines_go_round(tmp_path: Path, name: str, suffix: str) -> None:
    rows = read_rows(write(tmp_path, LINES[name], suffix))
    recognised = recognise(rows)
    assert recognised.format.name == name
    assert recognised.task == FORMATS[name].tasks[0]
    examples, dropped = recognised.examples(rows)
    assert (len(examples), dropped) == (3, 0)
    direct = made(*LINES[name])[1]
    assert [example.row_hash for example in examples] == [example.row_hash for example in direct]
    written = [json.loads(json.dumps(example.to_json())) for example in examples]
    assert [from_json(fields) for fields in written] == examples
    again, once_more = made(*written)
    assert once_more == examples
    assert again.task == recognised.task


@pytest.mark.parametrize(("row", "expected"), [
    ({"instruction": "do", "input": "x", "output": "y"}, ["user: do\n\nx", "assistant: y"]),
    ({"instruction": "do", "input": " ", "output": "y"}, ["user: do", "assistant: y"]),
    ({"instruction": "do", "input": None, "output": "y"}, ["user: do", "assistant: y"]),
    ({"instruction": "do", "context": "x", "response": "y", "category": "qa"}, ["user: do\n\nx", "assistant: y"]),
    ({"question": "q", "answer": "a"}, ["user: q", "assistant: a"]),
    ({"Prompt ": "q", "Completion": "a"}, ["user: q", "assistant: a"]),
    ({"input": "q", "target": "a"}, ["user: q", "assistant: a"]),
    ({"prompt": "q", "completion": "a", "label": True}, ["user: q", "assistant: a"]),
    ({"prompt": CHAT[0][:1], "completion": CHAT[0][1:]}, ["user: q0", 'assistant: a "0"\nb']),
    ({"system": "kind", "prompt": "q", "completion": "a"}, ["system: kind", "user: q", "assistant: a"]),
    ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "id": 1},
     ["user: q", "assistant: a"]),
    ({"system": "kind", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
     ["system: kind", "user: q", "assistant: a"]),
    ({"messages": [{"role": "User", "content": [{"type": "text", "text": "q"}]},
                   {"role": "assistant", "content": "a"}]},
     ["user: q", "assistant: a"]),
])
def test_dialogues(row: dict[str, Any], expected: list[str]) -> None:
    assert contents(first(row)) == expected


def test_seed_tasks_have_several_examples_a_row() -> None:
    row = {"instruction": "do", "instances": [{"input": "x", "output": "1"}, {"input": "", "output": "2"}]}
    assert [contents(e)[0] for e in made(row)[1]] == ["user: do\n\nx", "user: do"]


@pytest.mark.parametrize(("row", "text", "text2", "label"), [
    ({"sentence": "t", "label": "x", "idx": 0}, "t", None, "x"),
    ({"sentence1": "t", "sentence2": "u", "label": "x"}, "t", "u", "x"),
    ({"premise": "t", "hypothesis": "u", "label": "x"}, "t", "u", "x"),
    ({"question": "t", "sentence": "u", "label": "x"}, "t", "u", "x"),
    ({"question1": "t", "question2": "u", "label": "x"}, "t", "u", "x"),
    ({"tweet": "t", "label": 1}, "t", None, "1"),
    ({"text": "t", "sentence": "other", "label": True}, "t", None, "true"),
    ({"text": "t", "label": 2.0}, "t", None, "2"),
])
def test_labelled(row: dict[str, Any], text: str, text2: str | None, label: str) -> None:
    assert first(row, task="classify") == Labelled(text, text2, label)


@pytest.mark.parametrize(("labels", "task"), [
    (["pos", "neg"], "classify"), ([0, 1], "classify"), (["0", "1"], "classify"), ([True, False], "classify"),
    ([0.5, 1], "regress"), (["0.5", "1"], "regress"), (list(range(30)), "regress"), (["1", "x"], "classify")])
def test_the_task_is_guessed(labels: list[Any], task: str) -> None:
    assert made(*({"text": f"t{i}", "label": label} for i, label in enumerate(labels)))[0].task == task


def test_numbers_to_regress() -> None:
    examples = made({"text": "a", "score": "1e-1"}, {"text": "b", "score": 3}, task="regress")[1]
    assert [example.label for example in examples if isinstance(example, Labelled)] == [0.1, 3.0]


def test_columns_map_unusual_names_and_come_before_usual_ones() -> None:
    row = {"text": "t", "body": "b", "label": "x", "verdict": "y"}
    assert first(row, columns={"text": "body", "label": "verdict"}) == Labelled("b", None, "y")
    assert contents(first(row, columns={"prompt": "body", "completion": "verdict"})) == ["user: b", "assistant: y"]
    row = {"prompt": "p", "completion": "c"}
    assert first(row, columns={"text": "prompt", "label": "completion"}) == Labelled("p", None, "c")
    swapped = {"completion": "p", "prompt": "x", "question": "q", "answer": "a"}
    assert contents(first(swapped, columns={"prompt": "completion"})) == ["user: p", "assistant: a"]
    assert contents(first(swapped, columns={"completion": "prompt"})) == ["user: q", "assistant: x"]
    assert first({"0": "g", "1": "0", "3": "t"}, columns={"label": 1, "text": 3}) == Labelled("t", None, "0")


def test_the_sentence_says_what_is_what() -> None:
    recognised = made({"sentence": "t", "label": "x", "idx": 3})[0]
    assert recognised.sentence == "text/label (text = sentence, label), task classify; not used: idx"


def test_rows_without_an_answer_are_dropped_and_counted() -> None:
    rows = [Row({"instruction": "do", "output": answer}, "d.jsonl", i) for i, answer in enumerate(("", "a", " \n"))]
    examples, dropped = recognise(rows).examples(rows)
    assert (len(examples), dropped) == (1, 2)


@pytest.mark.parametrize("row", [
    {"instruction": "do", "input": "x"}, {"question": "do"}, {"messages": CHAT[0][:1]},
    {"prompt": "do", "completion": ""}, {"text": "t"}, {"premise": "t", "hypothesis": "u"}], ids=str)
def test_rows_that_only_ask(row: dict[str, Any]) -> None:
    task = "classify" if {"text", "premise"} & set(row) else "instruct"
    example = first(row, task=task, answered=False, columns={"label": "gone"} if task == "classify" else {})
    assert example.answer == ""


def test_a_row_that_asks_nothing() -> None:
    assert "line 2: nothing is asked" in said({"messages": CHAT[0]}, {"messages": []}, answered=False)


@pytest.mark.parametrize(("rows", "options", "words"), [
    ([{"prompt": "a", "completion": "b"}, {"prompt": "a", "complotion": "b"}], {},
     ["d.jsonl, line 2", "no field 'completion'", "prompt, complotion"]),
    ([{"prompt": "a", "completion": 3}], {}, ["line 1", "'completion' must be text, but it is a number: 3; write it as text"]),
    ([{"prompt": "a", "completion": None}], {}, ["line 1", "but it is null"]),
    ([{"instruction": "a", "input": ["x"], "output": "b"}], {}, ["line 1", "'input' must be text, but it is a list"]),
    ([{"messages": "hello"}], {}, ["line 1", "'messages' must be a list of objects, but it is text"]),
    ([{"prompt": ["a"], "completion": "b"}], {}, ["line 1", "'prompt' must be a list of objects, but it is a list"]),
    ([{"messages": "[{"}], {}, ["line 1", "malformed JSON"]),
    ([{"messages": "[" * 100_000}], {}, ["line 1", "'messages' holds malformed JSON: brackets within brackets"]),
    ([{"messages": '[{"role": ' + "7" * 5000 + "}]"}], {}, ["line 1", "an integer of more than 4300 digits"]),
    ([{"text": "a", "label": 10**400}], {}, ["line 1", "'label' must be text, but it is a number: 1000", "write it as text"]),
    ([{"text": "a", "label": 10**400}], {"task": "regress"}, ["line 1", "is not a number"]),
    ([{"messages": [{"role": "usr", "content": "x"}]}], {}, ["line 1", "message 1", '"usr"', "Did you mean user?"]),
    ([{"messages": [{"role": "tool", "content": "x"}]}], {}, ["line 1", '"tool"', "Rename it (what a tool said can"]),
    ([{"messages": [{"content": "x"}]}], {}, ["line 1", "role null"]),
    ([{"messages": [{"role": ["user"], "content": "x"}]}], {}, ["line 1", 'role ["user"]']),
    ([{"messages": [{"role": "user", "content": 3}]}], {}, ["line 1", "message 1", "a number: 3"]),
    ([{"instruction": "a", "instances": [{"input": "x"}]}], {}, ["line 1", "instances: output", "null"]),
    ([{"text": "a", "label": "1"}, {"text": "a", "label": "x"}], {"task": "regress"},
     ["line 2", 'the label "x" in \'label\' is not a number', "task: classify"]),
    ([{"text": "a", "label": float("nan")}], {"task": "regress"}, ["line 1", "not a number"]),
    ([{"text": "a", "label": 1.5}, {"text": "a", "label": -1e22}], {},
     ["line 2", "the label -1e+22 in 'label' is too large to regress; divide the labels"]),
    ([{"text": "a", "label": True}], {"task": "regress"}, ["line 1", "the label true"]),
    ([{"text": "a", "label": ["x"]}], {"task": "classify"}, ["line 1", "'label' must be text, but it is a list"]),
    ([{"text": "a", "label": " "}], {}, ["line 1", "the label in 'label' is empty"]),
    ([{"text": "a \ud800", "label": "x"}], {}, ["line 1", "'text'", "surrogate", "character 3"]),
    ([{"a": "x", "b": "y"}], {}, ["d.jsonl", "the columns a, b are those of no known format", "data.columns"]),
    ([{"prompt": "x", "idx": 1}], {}, ["for prompt/completion completion is missing"]),
    ([{"text": "x", "label": "y"}], {"task": "instruct"},
     ["text/label", "classify or regress", "not instruct", "prompt: ..."]),
    ([{"prompt": "x", "completion": "y"}], {"task": "classify"}, ["prompt/completion", "not classify", "text: ..."]),
    ([{"text": "x", "label": "y"}], {"columns": {"txt": "text"}},
     ["data.columns.txt: there is no such field", "Did you mean text?"]),
    ([{"text": "x", "label": "y"}], {"columns": {"text": "sentense"}},
     ["data.columns.text: there is no column 'sentense' in d.jsonl", "Known: label, text"]),
])
def test_what_is_wrong_is_said(rows: list[dict[str, Any]], options: dict[str, Any], words: list[str]) -> None:
    message = said(*rows, **options)
    for expected in words:
        assert expected in message


def test_a_table_whose_header_looks_like_data_is_told_of_positions(tmp_path: Path) -> None:
    path = tmp_path / "d.tsv"
    path.write_text("gj04\t1\t\tOur friends won't buy this.\ngj04\t0\t\tNext.\n")
    with pytest.raises(InputError, match=r"give the positions .* counted from 0, .* 3 = \"Our friends"):
        recognise(read_rows(str(path)))
    columns: dict[str, str | int] = {"label": 1, "text": 3}
    rows = read_rows(str(path), columns)
    assert recognise(rows, columns).examples(rows)[0][1] == Labelled("Next.", None, "0")
