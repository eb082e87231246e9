"""Sources that are no files: the hub (replaced here) and installed packages."""

import sys

import datasets
import pytest

from finemesh.errors import InputError
from finemesh.tuning.data.files import read_rows


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """A hub with one data set; the list of what was asked of it."""
    features = datasets.Features({"sentence": datasets.Value("string"),
                                  "label": datasets.ClassLabel(names=["neg", "pos"])})
    data = datasets.Dataset.from_dict({"sentence": ["good", "bad", "?"], "label": [1, 0, -1]}, features=features)
    asked = []

    def load_dataset(name: str, config: str | None, split: str) -> datasets.Dataset:
        asked.append((name, config, split))
        if name != "some/set":
            raise FileNotFoundError(f"Dataset {name} doesn't exist\non the hub")
        return data

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


@pytest.mark.parametrize(("source", "asked"), [
    ("some/set", ("some/set", None, "train")), ("some/set:test[:5]", ("some/set", None, "test[:5]")),
    ("some/set:sst2:test[:5]", ("some/set", "sst2", "test[:5]")),
    ("some/set:test", ("some/set", None, "test")), ("some/set:sst2:test", ("some/set", "sst2", "test"))])
def test_a_data_set_of_the_hub(hub: list[tuple], source: str, asked: tuple) -> None:
    rows = read_rows(source)
    assert hub == [asked]
    assert [dict(row.fields) for row in rows] == [
        {"sentence": "good", "label": "pos"}, {"sentence": "bad", "label": "neg"}, {"sentence": "?", "label": -1}]
    assert rows[1].place == f"{source}, row 2"


def test_a_name_that_the_hub_does_not_have(hub: list[tuple]) -> None:
    with pytest.raises(InputError, match=r"^other/set: no such file here, .* other/set doesn't exist; name a file"):
        read_rows("other/set")


def test_an_unknown_package_and_one_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="chatterbot-corpus"):
        read_rows("package:chaterbot-corpus")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install chatterbot-corpus"):
        read_rows("package:chatterbot-corpus")


@pytest.mark.real
def test_the_corpus_of_question_answer_pairs() -> None:
    pytest.importorskip("yaml")
    from importlib.util import find_spec

    if find_spec("chatterbot_corpus") is None:
        pytest.skip("chatterbot-corpus is not installed")
    rows = read_rows("package:chatterbot-corpus")
    assert len(rows) == 2025
    assert len({tuple(row.fields.items()) for row in rows}) == 897
    assert set(rows[0].fields) == {"question", "answer"}
    assert "chatterbot_corpus" not in sys.modules
