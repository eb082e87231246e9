"""Rows of different tasks that are about the same, whichever way round they ask; labels make no two rows one."""

from collections.abc import Mapping

from finemesh.tuning.data.instructions import Item
from finemesh.tuning.data.overlap import related, without


def items(task: str, asked: str, *rows: Mapping[str, str]) -> list[Item]:
    return [Item(task, row, frozenset(asked.split()), "") for row in rows]


REVIEWS = [{"text": f"film {i}", "label": "good" if i % 2 else "bad"} for i in range(40)]
WORDS = [{"text": text, "label": text.upper()} for text in ("good", "film 3", "else")]


def left(trained: list[Item], judged: list[Item]) -> list[str]:
    """The texts of the trained rows that no judged one is about."""
    tasks = related({"trained": trained, "judged": judged})
    return [item.values["text"] for item in without(tasks["trained"], tasks["judged"])]


def test_a_row_is_found_on_either_side() -> None:
    straight, turned = items("judged", "text", *REVIEWS[:10]), items("trained", "label", *REVIEWS)
    assert left(turned, straight) == [row["text"] for row in REVIEWS[10:]]
    assert left(items("trained", "text", *REVIEWS), items("judged", "label", *REVIEWS[30:])) == [
        row["text"] for row in REVIEWS[:30]]


def test_other_words_for_the_labels_and_further_columns_hide_nothing() -> None:
    worded = [row | {"label": {"good": "1", "bad": "0"}[row["label"]], "year": str(i)} for i, row in enumerate(REVIEWS)]
    assert left(items("trained", "label year", *worded), items("judged", "label", *REVIEWS)) == []


def test_a_label_is_no_match() -> None:
    assert left(items("trained", "text", *REVIEWS), items("judged", "text", *WORDS)) == [
        row["text"] for row in REVIEWS if row["text"] != "film 3"]
    assert left(items("trained", "text", *WORDS), items("judged", "label", *REVIEWS)) == ["good", "else"]


def test_pairs_that_share_one_text_are_two() -> None:
    pairs = [{"text": f"p{i // 3}", "other": f"h{i}", "label": str(i % 3)} for i in range(60)]
    trained = items("trained", "text label", *pairs)
    assert len(left(trained, items("judged", "text other", *pairs[:1]))) == 59
    assert len(left(trained, items("judged", "text other", pairs[0] | {"other": "h1"}, pairs[1] | {"other": "h0"}))) == 58
    assert len(left(trained, items("judged", "text other", pairs[0] | {"other": "new", "label": ""}))) == 60


def test_rows_of_one_task_are_never_taken_out_for_each_other() -> None:
    chain = [{"text": f"turn {i}", "reply": f"turn {i + 1}"} for i in range(9)]
    found = related({"talk": items("talk", "text", *chain), "reviews": items("reviews", "text", *REVIEWS)})["talk"]
    assert without(found[:5], found[5:]) == found[:5]


def test_blank_texts_say_nothing() -> None:
    trained = items("trained", "", {"text": "a", "input": ""}, {"text": "b", "input": " "})
    assert left(trained, items("judged", "text input", {"text": "c", "input": ""})) == ["a", "b"]
