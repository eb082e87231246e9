"""A folder with tiny models and data, for the tests that start from a config; a search without models."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import tiny


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("places")
    for name, model in (("causal", tiny.causal()), ("encoder", tiny.classifier("bert"))):
        model.save_pretrained(folder / name)
        tiny.tokenizer().save_pretrained(folder / name)
    rows = [{"prompt": d.turns[0].content, "completion": d.turns[1].content} for d in tiny.dialogues(120)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [{"text": e.text, "label": e.label} for e in tiny.labelled(120)]
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    return folder


@pytest.fixture(scope="session")
def fake() -> SimpleNamespace:
    """tests/search/fake_search.py, which is also a command of its own."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("search") / "fake_search.py"), run_name="fake_search"))
