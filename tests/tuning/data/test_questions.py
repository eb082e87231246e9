"""Questions of a file: all of them in order, as they are or as a task's template asks them."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from finemesh.errors import InputError
from finemesh.tuning.data.examples import Labelled
from finemesh.tuning.data.instructions import Template
from finemesh.tuning.data.mixture import TaskSource
from finemesh.tuning.data.questions import put_questions, read_instructions, read_questions


def task(*templates: str, **more: dict[str, str | int]) -> TaskSource:
    return TaskSource("train.tsv", [Template.read(text) for text in templates], "cluster", **more)


TASKS = {"sst2": task("Good or bad? {text} => {label}", "A {label} one: => {text}", labels={"0": "bad", "1": "good"}),
         "qnli": task("{question} Is it in {sentence}? => {label}"),
         "marked": task("{mark}: {words} => {label}", columns={"words": 2, "mark": 0, "label": 1}),
         "plain": task("{prompt} => {completion}")}


def file(folder: Path, name: str, lines: Sequence[str]) -> str:
    path = folder / name
    path.write_text("".join(line + "\n" for line in lines))
    return str(path)


def test_questions_are_all_read_in_order(tmp_path: Path) -> None:
    source = file(tmp_path, "q.tsv", ["prompt", "a", "b", "a"])
    assert [example.prompt for example in read_questions(source)] == ["a", "b", "a"]
    assert [example.prompt for example in read_instructions(source, TASKS)] == ["a", "b", "a"]


@pytest.mark.parametrize(("lines", "second", "words"), [
    (["premise", "a"], "b", r"q\.tsv: its rows have one text \(premise\), .* have two: give the second one"),
    (["premise\thypothesis", "a\tb"], None, r"q\.tsv: .* two texts .* have one: leave the column hypothesis out"),
])
def test_rows_have_as_many_texts_as_those_trained_on(tmp_path: Path, lines: list[str], second: str | None, words: str) -> None:
    source = file(tmp_path, "q.tsv", lines)
    with pytest.raises(InputError, match=words):
        read_questions(source, task="classify", trained=Labelled("a", second, "x"))
    other = Labelled("a", None if second else "b", "x")
    assert len(read_questions(source, task="classify", trained=other)) == 1


@pytest.mark.parametrize(("lines", "texts"), [
    (["text", "a", '""', "b", '""'], ["a", "", "b", ""]), (["text,label", "a,", ",", "b,x", ","], ["a", "", "b", ""])])
def test_a_row_of_blank_fields_is_a_question_too(tmp_path: Path, lines: list[str], texts: list[str]) -> None:
    assert [example.prompt for example in read_questions(file(tmp_path, "q.csv", lines), task="classify")] == texts


@pytest.mark.parametrize(("name", "lines", "asked"), [
    ("sst2", ["sentence", "dull", "fine", "dull"], ["Good or bad? dull", "Good or bad? fine", "Good or bad? dull"]),
    ("sst2", ["text\tlabel", "dull\t7"], ["Good or bad? dull"]),  # a label that has no word is not looked at
    ("qnli", ["id\tquestion\tsentence", "1\tWho?\tHer."], ["Who? Is it in Her.?"]),
    ("marked", ["x\t1\tdull"], ["x: dull"]),
])
def test_the_first_template_asks(tmp_path: Path, name: str, lines: list[str], asked: list[str]) -> None:
    questions = put_questions(file(tmp_path, "new.tsv", lines), name, TASKS[name])
    assert [question.prompt for question in questions] == asked
    assert {(question.answer, question.task) for question in questions} == {("", name)}


@pytest.mark.parametrize(("lines", "words"), [
    (["sentence", "dull"], ["the columns sentence are those of the task sst2: say so with --task sst2"]),
    (["question\tsentence", "Who?\tHer."], ["those of the task qnli: say so with --task qnli",
                                             "or leave all columns but question out"]),
    (["remark", "x"], ["neither those of instructions", "(sst2: text; qnli: question, sentence; "]),
])
def test_rows_of_a_task_are_not_taken_for_instructions(tmp_path: Path, lines: list[str], words: list[str]) -> None:
    with pytest.raises(InputError) as raised:
        read_instructions(file(tmp_path, "new.tsv", lines), TASKS)
    for expected in words:
        assert expected in str(raised.value)


@pytest.mark.parametrize(("name", "lines", "words"), [
    ("qnli", ["question", "Who?"], "new.tsv: as rows of the task qnli: {sentence} is no column of "),
    ("marked", ["dull"], "as rows of the task marked: there is no column '2' in "),
    ("sst2", ["id\tsentence", "1\tdull", "2\t "], "new.tsv, line 3: nothing is asked in it: sentence blank"),
])
def test_rows_that_the_task_cannot_ask(tmp_path: Path, name: str, lines: list[str], words: str) -> None:
    with pytest.raises(InputError) as raised:
        put_questions(file(tmp_path, "new.tsv", lines), name, TASKS[name])
    assert words in str(raised.value)
