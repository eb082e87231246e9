"""The worker process by its protocol, on a tiny model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from finemesh.trial import write_json
from finemesh.tuning.data.split import Splits
from finemesh.tuning.models import ModelSource
from finemesh.tuning.precision import Precision
from finemesh.tuning.task import Task
from tests import tiny

POINT = {"length": 4, "init": "random", "learning_rate": 0.1}


@pytest.fixture
def task(tmp_path) -> Path:
    tiny.causal().save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    examples = tiny.dialogues(40)
    Splits(tuple(examples[:30]), tuple(examples[30:35]), tuple(examples[35:]), "instruct", "").write(tmp_path / "splits")
    described = Task(ModelSource("tiny", str(tmp_path / "model"), "tiny"), "instruct", tmp_path / "splits", (), 64, 8, 1, 2, 0,
                     Precision("fp32", 1.0, 1.0), 1)
    assert Task.from_json(json.loads(json.dumps(described.to_json()))) == described
    write_json(tmp_path / "task.json", described.to_json())
    return tmp_path / "task.json"


def start(task: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "finemesh.tuning.worker", str(task)], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_tunes_evaluates_answers_and_ends_with_its_input(task, tmp_path):
    folder = str(tmp_path / "trial")
    job = {"number": 0, "method": "prompt", "hyperparameters": POINT, "seed": 0, "steps": 2, "folder": folder}
    requests = [("tune", job), ("evaluate", {"method": "prompt", "folder": folder, "split": "test"}),
                ("evaluate", {"method": None, "folder": None, "split": "test"}), ("answer", {"folder": folder, "rows": 1}),
                ("dance", {})]
    with start(task) as worker:
        replies = [json.loads(worker.stdout.readline())]
        for number, (kind, arguments) in enumerate(requests):
            worker.stdin.write(json.dumps({"id": number, "kind": kind, "arguments": arguments}) + "\n")
            worker.stdin.flush()
            while replies[-1].get("id") != number or "progress" in replies[-1]:
                replies.append(json.loads(worker.stdout.readline()))
        worker.stdin.close()
        assert worker.wait(60) == 0
        assert worker.stdout.read() == ""
    assert replies[0]["ready"]["base_memory_mb"] > 0
    assert [reply["progress"]["step"] for reply in replies if "progress" in reply] == [0, 1, 2]
    tuned, evaluated, untuned, answered, refused = (reply for reply in replies[1:] if "progress" not in reply)
    assert tuned["result"]["state"] == "complete"
    assert len(evaluated["result"]["row_losses"]) == len(evaluated["result"]["row_weights"]) == 5
    assert evaluated["result"]["loss"] != untuned["result"]["loss"]
    assert set(answered["result"][0]) == {"prompt", "reference", "before", "after"}
    assert "dance" in refused["error"]


def test_refuses_what_the_user_can_mend(task):
    described = json.loads(task.read_text())
    tiny.classifier().save_pretrained(described["source"]["location"])
    with start(task) as worker:
        refusal = json.loads(worker.stdout.readline())
    assert "is an encoder" in refusal["refused"]
