"""A folder with tiny models and data, for the tests that start from a config; a search without models."""

import gc
import json
import runpy
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest


def pytest_collection_finish() -> None:
    """What the libraries hold by now stays: looking for garbage in it took a third of a second, at each trial again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _revisions_read_once() -> Iterator[None]:
    """Optuna reads its ten revisions of the tables, each a module, whenever a store is opened."""
    from optuna.storages._rdb.storage import _VersionManager

    read, known = _VersionManager._create_alembic_script, []

    def scripts(manager: _VersionManager) -> object:
        known[:] = known or [read(manager)]
        return known[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_VersionManager, "_create_alembic_script", scripts)
        yield


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests import tiny  # not above: this file is also read by the process that only hands out the tests

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


@pytest.fixture(scope="module")
def one_precision() -> Iterator[None]:
    """One process has one precision, and the machine may prefer another."""
    from finemesh import preparation
    from finemesh.tuning.precision import Precision

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "measure_precision", lambda: Precision("fp32", 1.0, 1.0))
        yield


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is started. Real workers have test_api.py's `run`, tests/faults and tests/search/executors."""
    from finemesh import api
    from tests.small_search import InProcess

    monkeypatch.setattr(api, "_workers", lambda run, task, config, count: nullcontext(InProcess(task)))
