"""`storage: postgresql://...` from the first command to the report, on a tiny model and a real server."""

import json
from pathlib import Path

import pytest

from finemesh.cli import main
from tests import tiny
from tests.postgres import Server

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("places")
    tiny.causal().save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    rows = [{"prompt": d.turns[0].content, "completion": d.turns[1].content} for d in tiny.dialogues(120)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def config(places: Path, folder: Path, storage: str) -> str:
    file = folder / "mine.yaml"
    file.write_text(f"""
model: {places}/model
data: {{train: {places}/pairs.jsonl, validation: 0.2, test: 0.2, max_length: 32}}
methods: [lora, prompt]
search: {{optimizer: random, trials: 2, steps: 3, batch_size: 8, repeats: 1}}
storage: {storage}
out: {folder}/run
""")
    return str(file)


def points(folder: Path) -> list[tuple]:
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("run/trials/*/outcome.json"))]
    return [(outcome["method"], outcome["hyperparameters"], outcome["validation_loss"]) for outcome in found]


def test_from_the_first_command_to_the_report(places, tmp_path, capsys):
    for name in ("there", "here"):
        (tmp_path / name).mkdir()
    with Server() as server:
        there = config(places, tmp_path / "there", server.url)
        assert main(["search", there]) == 0, capsys.readouterr().err
        assert main(["search", there, "--trials", "4"]) == 0
        capsys.readouterr()
        assert main(["status", str(tmp_path / "there/run"), "--json"]) == 0
        assert sum(json.loads(capsys.readouterr().out)["trials"].values()) == 4
        server.stop()
        assert main(["report", str(tmp_path / "there/run")]) == 0  # the report needs no database
        server.start()
    assert main(["search", config(places, tmp_path / "here", "sqlite"), "--trials", "4"]) == 0
    assert points(tmp_path / "there") == points(tmp_path / "here")
    assert not (tmp_path / "there/run/study.db").exists()
    secrets = (b"sesame", b"open%20sesame")
    assert not [path for path in (tmp_path / "there/run").rglob("*") if path.is_file()
                and any(secret in path.read_bytes() for secret in secrets)]


def test_a_database_that_is_not_there_costs_nothing(places, tmp_path, capsys):
    assert main(["search", config(places, tmp_path, "postgresql://me:secret@127.0.0.1:1/x")]) == 2
    said = capsys.readouterr().err
    assert "storage: the database postgresql://me:***@127.0.0.1:1/x cannot be reached" in said
    assert "secret" not in said
    assert not (tmp_path / "run").exists()
