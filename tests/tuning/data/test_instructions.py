"""Templates: what is asked and what is answered, columns in braces; an item draws one by its own content."""

from collections import Counter

import pytest

from finemesh.tuning.data.instructions import Item, Template

VALUES = {"text": "a {fine} film => good", "label": "positive"}


def item(text: str = "a film", label: str = "positive", task: str = "sst2") -> Item:
    return Item(task, {"text": text, "label": label}, frozenset({"text"}), "t.tsv, line 2")


def test_a_template_asks_and_answers() -> None:
    template = Template.read("Good or bad?\n\n{text} =>  It is {label}. ")
    made = Item("sst2", VALUES, frozenset({"text"}), "t.tsv, line 2").put([template])
    assert [(turn.role, turn.content) for turn in made.turns] == [
        ("user", "Good or bad?\n\na {fine} film => good"), ("assistant", "It is positive.")]
    assert (made.task, made.place) == ("sst2", "t.tsv, line 2")
    assert (template.asks, template.answers) == ({"text"}, {"label"})


def test_turned_around_it_asks_for_the_text() -> None:
    made = item().put([Template.read("Write a {label} review. => {text}")])
    assert (made.prompt, made.answer) == ("Write a positive review.", "a film")


@pytest.mark.parametrize(("text", "question", "columns"), [
    ("a => b: {text} => {label}", "a => b: a film", {"text"}),
    ("{{text}} {text} => {label}", "{text} a film", {"text"}),
    ("no column => {label}", "no column", set()),
])
def test_the_last_arrow_parts_and_doubled_braces_are_text(text: str, question: str, columns: set[str]) -> None:
    template = Template.read(text)
    assert item().put([template]).prompt == question
    assert template.asks == columns


def test_any_name_of_a_column_will_do() -> None:
    template = Template.read("{first text} {a:b!c} {0} => {rating.1}")
    assert template.asks == {"first text", "a:b!c", "0"}
    assert template.answers == {"rating.1"}


@pytest.mark.parametrize(("text", "words"), [
    ("Good or bad? {text}", "no => in it"), ("=> {label}", "nothing stands before =>"),
    ("{text} => positive", "the answer names no column"), ("{text} =>", "the answer names no column"),
    ("{text => {label}", "a brace is not closed or not opened in '{text'"), ("{text} => label}", "a brace is not closed"),
    ("{} => {label}", "{} names no column"),
])
def test_what_is_no_template(text: str, words: str) -> None:
    with pytest.raises(ValueError) as raised:
        Template.read(text)
    assert words in str(raised.value)


def test_the_row_alone_draws_its_template_and_all_of_them_are_drawn() -> None:
    templates = [Template.read(f"{word} {{text}} => {{label}}") for word in ("one", "two", "three")]
    rows = [item(f"film {i}") for i in range(300)]
    first = [row.put(templates) for row in rows]
    assert [item(f"film {i}").put(templates) for i in reversed(range(300))] == first[::-1]
    drawn = Counter(example.prompt.split()[0] for example in first)
    assert min(drawn.values()) > 70


def test_the_key_is_what_is_asked_about() -> None:
    assert item(label="negative").key == item().key == item(task="other").key
    assert item(label="negative").row_hash != item().row_hash
    assert item("another film").key != item().key
    pairs = [Item("rte", {"a": a, "b": b, "label": "yes"}, frozenset("ab"), "") for a, b in (("x", "y"), ("y", "x"))]
    assert pairs[0].key == pairs[1].key
    nothing = [Item("free", {"text": text, "label": ""}, frozenset(), "") for text in "xy"]
    assert nothing[0].key != nothing[1].key


def test_line_ends_and_outer_whitespace_make_no_other_item() -> None:
    spaced, plain = item("a\r\nfilm ", "positive\n"), item("a\nfilm")
    assert (spaced.key, spaced.row_hash) == (plain.key, plain.row_hash)
    assert (item("a b", "1").key[:12], item("a b", "1").row_hash[:12]) == ("541e27fe8b97", "9138e82171f1")  # as ever


def test_what_is_drawn_for_one_purpose_says_nothing_of_another() -> None:
    rows = [item(f"film {i}") for i in range(400)]
    assert 60 < sum(row.draw("cap") % 2 == row.draw("order") % 2 == 0 for row in rows) < 140
