"""Runs that are taken up again: failed, moved elsewhere, with other data, ended by a full disk."""

import json
import shutil
from dataclasses import replace

import pytest

from finemesh import api
from finemesh.errors import InputError
from finemesh.trial import write_outcome
from tests.small_search import config, points

pytestmark = pytest.mark.usefixtures("one_precision", "in_process")


def test_one_run_that_failed_is_run_again(places, tmp_path):
    settings = config(places, tmp_path / "one")
    for number, state in enumerate(("complete", "failed", "complete")):
        outcome = api.tune(settings, "lora", {"rank": 2}, steps=1)
        assert (outcome.number, outcome.state) == (max(0, number - 1), "complete")
        write_outcome(tmp_path / f"one-lora/trials/{outcome.number:04d}", replace(outcome, state=state))


def test_a_run_that_was_moved_answers_and_does_its_trials_again(places, tmp_path):
    run, moved = tmp_path / "run", tmp_path / "moved"
    api.search(config(places, run, trials=1, methods="[prompt]"))
    shutil.copytree(run, moved)
    task = json.loads((moved / "task.json").read_text())
    gone = task | {"splits": "/nowhere/splits", "source": task["source"] | {"location": "/nowhere/model"}}
    (moved / "task.json").write_text(json.dumps(gone))
    (tmp_path / "new.jsonl").write_text('{"prompt": "w0 w9"}\n')
    asked = [list(api.predict(folder, str(tmp_path / "new.jsonl"))) for folder in (run, moved)]
    assert asked[0] == asked[1]
    assert api.tune_again(moved, 0).validation_loss == points(run)[0][2]


def test_a_run_whose_data_have_changed_does_not_go_on(places, tmp_path):
    data = tmp_path / "mine.jsonl"
    data.write_bytes((places / "pairs.jsonl").read_bytes())
    settings = config(places, tmp_path / "run", data=str(tmp_path / "mine"), trials=1, methods="[prompt]")
    api.search(settings)
    rows = data.read_text()
    data.write_text(rows + '{"prompt": "w1 w2 w3", "completion": "w4"}\n')
    with pytest.raises(InputError, match=r"run.yaml, line 3: data.train: .*mine.jsonl is not the file any more with which"):
        api.search(settings)
    data.unlink()  # its rows are in the splits
    assert api.search(settings)["state"] == "finished"


def test_a_disk_that_is_full_at_the_end_leaves_nothing_half_written(places, tmp_path, monkeypatch):
    settings = config(places, tmp_path / "run", trials=1, methods="[prompt]")

    def full(tokenizer, folder, **_):
        (folder / "tokenizer.json").write_text("{")
        raise Exception("No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", full)
        with pytest.raises(InputError, match=r"the disk that holds .*run is full"):
            api.search(settings)
    assert not list((tmp_path / "run").glob("*best*"))
    assert api.search(settings)["state"] == "finished"
    assert (tmp_path / "run/best/tokenizer.json").exists()
