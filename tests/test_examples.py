"""The configs of examples/: they load, from anywhere, and their rows are there."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from finemesh.config import load_config
from finemesh.reading import load_data
from finemesh.tuning.data.split import NAMES

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.yaml"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_is_whole(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "chatterbot-corpus" in file.read_text(encoding="utf-8") and find_spec("chatterbot_corpus") is None:
        pytest.skip("chatterbot-corpus is not installed (make setup installs it)")
    monkeypatch.chdir(tmp_path)
    splits = load_data(load_config(file))
    assert min(len(splits[name]) for name in NAMES) >= 20
    assert len(splits.train) >= 100
