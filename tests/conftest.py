"""A folder with a tiny causal model, a tiny classifier and data for both, for the tests that start from a config."""

import json
from pathlib import Path

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
