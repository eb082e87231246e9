"""Keys, hashes and the one shape of a dialogue."""

import pytest

from finemesh.tuning.data.examples import Dialogue, Labelled, Turn, dialogue, from_json


def turns(*contents: str) -> list[Turn]:
    """"u hello" is a user's turn."""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [Turn(roles[content[0]], content[2:]) for content in contents]


def shape(made: Dialogue | None) -> list[str] | None:
    return None if made is None else [f"{turn.role[0]} {turn.content}" for turn in made.turns]


@pytest.mark.parametrize(("given", "kept"), [
    (["u q", "a r"], ["u q", "a r"]),
    (["s ", "u q", "a r"], ["u q", "a r"]),
    (["s be kind", "u q", "a r", "u thanks"], ["s be kind", "u q", "a r"]),
    (["a welcome", "u q", "a r"], ["u q", "a r"]),
    (["u one", "u two", "a r", "a more"], ["u one\n\ntwo", "a r\n\nmore"]),
    (["u q", "a r", "u ", "a more"], ["u q", "a r\n\nmore"]),
    (["u ", "a r"], ["u ", "a r"]),
    (["u q", "a  \n"], None), (["u q"], None), (["a r"], None), (["s only"], None), ([], None),
])
def test_the_shape_of_a_dialogue(given: list[str], kept: list[str] | None) -> None:
    assert shape(dialogue(turns(*given))) == kept


def test_a_dialogue_that_asks_keeps_its_question() -> None:
    assert shape(dialogue(turns("u q", "a r", "u and now?"), answered=False)) == ["u q", "a r", "u and now?"]
    assert shape(dialogue(turns("s only"), answered=False)) is None


@pytest.mark.parametrize("example", [
    Dialogue(tuple(turns("s be kind", "u q\u2028\n\"x\"", "a café"))), Labelled("a", None, "x"),
    Labelled("a", "b", 0.5), Labelled("a", "", None)], ids=repr)
def test_json_goes_round(example: Dialogue | Labelled) -> None:
    again = from_json(example.to_json())
    assert again == example
    assert (again.key, again.row_hash) == (example.key, example.row_hash)


def test_the_key_is_that_of_the_question_and_the_hash_that_of_the_row() -> None:
    first, second, other = (Dialogue(tuple(turns(*given))) for given in (
        ["u q", "a r"], ["u q", "a else", "u more", "a s"], ["u other", "a r"]))
    assert first.key == second.key != other.key
    assert len({first.row_hash, second.row_hash, other.row_hash}) == 3
    assert Dialogue(tuple(turns("s kind", "u q", "a r"))).key != first.key
    assert Labelled("t", None, "x").key == Labelled("t", None, "y").key != Labelled("t", "u", "x").key
    assert Labelled("ab", "c", "x").key != Labelled("a", "bc", "x").key
    assert Labelled("t", None, "x").row_hash != Labelled("t", None, "y").row_hash


@pytest.mark.parametrize("space", ["{} ", "\n{}", "{}\r\n"])
def test_line_ends_and_outer_whitespace_make_no_other_row(space: str) -> None:
    spaced = space.format("a\r\nb")
    for example, twin in ((Dialogue(tuple(turns("u a\nb", "a a\nb"))), Dialogue(tuple(turns(f"u {spaced}", f"a {spaced}")))),
                          (Labelled("a\nb", "a\nb", "x"), Labelled(spaced, spaced, "x"))):
        assert (twin.key, twin.row_hash) == (example.key, example.row_hash)
        assert twin != example
    assert Labelled("a  b", None, "x").key != Labelled("a b", None, "x").key


@pytest.mark.parametrize(("example", "hashes"), [
    (Dialogue(tuple(turns("s s", "u one\n\ntwo", "a r"))), ("1b8b46d026b8", "7b0e2df98010")),
    (Labelled("a  b", "c", "x"), ("2abdcec948c3", "a9d36767764a")),
    (Labelled("a", None, 0.5), ("aebb0474c576", "f35fc9f172fe"))], ids=repr)
def test_hashes_stay_what_they_are(example: Dialogue | Labelled, hashes: tuple[str, str]) -> None:
    """Or rows would move between the splits from one version to the next."""
    assert (example.key[:12], example.row_hash[:12]) == hashes


def test_rows_that_ask_nothing_are_not_one_question() -> None:
    assert Dialogue(tuple(turns("u ", "a r"))).key != Dialogue(tuple(turns("u ", "a s"))).key


def test_the_place_is_no_part_of_an_example() -> None:
    assert Labelled("t", None, "x", "a.csv, line 1") == Labelled("t", None, "x", "b.csv, line 9")


def test_what_people_read() -> None:
    single = Dialogue(tuple(turns("s kind", "u q", "a r")))
    assert (single.prompt, single.answer) == ("q", "r")
    several = Dialogue(tuple(turns("u q", "a r", "u s", "a t")))
    assert (several.prompt, several.answer) == ("user: q\n\nassistant: r\n\nuser: s", "t")
    assert Dialogue(tuple(turns("u q"))).answer == ""
    assert (Labelled("a", "b", 1.5).prompt, Labelled("a", "b", 1.5).answer) == ("a\n\nb", "1.5")
