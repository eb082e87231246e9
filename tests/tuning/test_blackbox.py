"""One worker's blackbox on a tiny model: what a trial can do wrong costs only itself."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from finemesh.trial import Hurdle, Job, read_outcome
from finemesh.tuning import blackbox as module
from finemesh.tuning.blackbox import Blackbox
from finemesh.tuning.data.examples import Dialogue, Turn
from finemesh.tuning.data.split import Splits
from finemesh.tuning.features import Features
from finemesh.tuning.methods import METHODS
from finemesh.tuning.models import ModelSource
from finemesh.tuning.precision import Precision
from finemesh.tuning.task import Task
from tests import tiny

LORA = {"variant": "lora", "rank": 4, "alpha_over_rank": 2.0, "dropout": 0.0, "layers": "all", "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Task:
    folder = tmp_path_factory.mktemp("task")
    tiny.causal().save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    examples = tiny.dialogues(80)
    Splits(tuple(examples[:60]), tuple(examples[60:70]), tuple(examples[70:]), "instruct", "").write(folder / "splits")
    return Task(ModelSource("tiny", str(folder / "model"), "tiny"), "instruct", folder / "splits", (), 64, 8, 1, 4, 0,
                Precision("fp32", 1.0, 1.0), 1)


@pytest.fixture(scope="module")
def box(task) -> Blackbox:
    return Blackbox(task)


def job(folder: Path, **changes) -> Job:
    return replace(Job(0, "lora", LORA, 0, 4, folder), **changes)


def test_an_outcome_is_whole_and_written(box, tmp_path):
    lines = []
    outcome = box.tune(job(tmp_path), lines.append)
    assert outcome.state == "complete"
    assert read_outcome(tmp_path) == outcome
    assert outcome.validation_loss < box.base_validation_loss
    assert outcome.scored_tokens == sum(sum(row.scored) for row in box.validation.rows)
    assert outcome.trained_tokens == lines[-1]["trained_tokens"] > 0
    assert outcome.trainable_parameters == sum(p.numel() for p in METHODS["lora"].prepare(
        tiny.causal(), LORA, box.context(0)).parameters() if p.requires_grad)
    assert outcome.adapter_mb > 0
    usual = (tmp_path / "outcome.json").stat().st_mode
    assert {file.stat().st_mode for file in (tmp_path / "adapter").iterdir()} == {usual}  # not its owner's alone
    assert not (tmp_path / "checkpoint.safetensors").exists()
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]


def test_the_peak_holds_what_saving_takes(box, tmp_path, monkeypatch):
    """As a head's whole model, of which a copy is made."""
    save = METHODS["lora"].save

    def heavy(*arguments):
        torch.ones(75_000_000).sum()  # 300 MB
        save(*arguments)

    monkeypatch.setattr(METHODS["lora"], "save", heavy)
    assert box.tune(job(tmp_path)).peak_memory_mb > 290


def test_the_same_job_gives_the_same_loss_whatever_ran_before(box, tmp_path):
    first = box.tune(job(tmp_path / "a"))
    box.tune(job(tmp_path / "b", method="full", hyperparameters={"learning_rate": 1e-2, "weight_decay": 0.0}))
    assert box.tune(job(tmp_path / "c")).validation_loss == first.validation_loss
    assert box.tune(job(tmp_path / "d", seed=1)).validation_loss != first.validation_loss


def test_the_reloaded_adapter_has_the_loss_of_the_trial(box, tmp_path):
    outcome = box.tune(job(tmp_path))
    assert box.evaluate("lora", LORA, tmp_path, "validation").loss == pytest.approx(outcome.validation_loss, abs=1e-6)
    assert box.evaluate(None, {}, None, "validation").loss == pytest.approx(box.base_validation_loss, abs=1e-6)


def test_answers_before_and_after(box, tmp_path):
    box.tune(job(tmp_path))
    found = box.answer("lora", LORA, tmp_path, 2)
    assert [set(answer) for answer in found] == [{"prompt", "reference", "before", "after"}] * 2
    assert found[0]["prompt"] == box.test.examples[0].prompt


def test_a_cut_trial_is_pruned_and_continued_from_its_checkpoint(box, tmp_path):
    whole = box.tune(job(tmp_path / "whole"))
    cut = box.tune(job(tmp_path / "0000", steps=2))
    assert (cut.state, cut.steps, cut.error) == ("pruned", 2, None)
    assert box.evaluate("lora", LORA, tmp_path / "0000", "validation").loss == pytest.approx(cut.validation_loss, abs=1e-6)
    (tmp_path / "0001").mkdir()
    (tmp_path / "0000/checkpoint.safetensors").rename(tmp_path / "0001/checkpoint.safetensors")
    lines = []
    outcome = box.tune(job(tmp_path / "0001", continues=0), lines.append)
    assert [line["step"] for line in lines] == [3, 4]
    timed = {"seconds": 0, "preparation_seconds": 0, "peak_memory_mb": 0}
    assert replace(outcome, **timed) == replace(whole, **timed, continues=0)
    assert not (tmp_path / "0001/checkpoint.safetensors").exists()


def test_what_trains_nothing_has_gone_its_full_length(box, tmp_path):
    outcome = box.tune(job(tmp_path, method="in_context", hyperparameters=dict(METHODS["in_context"].reference), steps=1))
    assert (outcome.state, outcome.steps, outcome.trained_tokens) == ("complete", 4, 0)


def test_a_trial_that_is_surely_behind_ends_within_its_validation(box, tmp_path, monkeypatch):
    leader = box.tune(job(tmp_path / "0000", hurdles=()))
    assert sorted(path.name for path in (tmp_path / "0000/rows").iterdir()) == ["2.json", "4.json"]
    hurdles = [Hurdle(4, leader.validation_loss, "0000")]
    slow = {**LORA, "learning_rate": 1e-6}
    assert box.tune(job(tmp_path / "0001", hyperparameters=slow, hurdles=hurdles)).state == "complete"  # 10 rows: too few
    monkeypatch.setattr("finemesh.tuning.evaluation.rival.FEWEST", 4)
    monkeypatch.setattr("finemesh.tuning.evaluation.rival.ERROR", 0.2)
    outcome = box.tune(job(tmp_path / "0002", hyperparameters=slow, hurdles=hurdles))
    assert (outcome.state, outcome.steps) == ("pruned", 4)
    assert outcome.error.startswith("surely behind trial 0000 after 4 steps, as ")
    exact = box.tune(job(tmp_path / "0003", hyperparameters=slow)).validation_loss
    assert outcome.validation_loss == pytest.approx(exact, abs=0.1)
    again = box.tune(job(tmp_path / "0004", hurdles=hurdles))  # its rows in other batches
    assert again.state == "complete"
    assert again.validation_loss == pytest.approx(leader.validation_loss, abs=1e-5)


def test_a_trial_that_is_too_far_behind_stops_on_its_way(box, tmp_path):
    outcome = box.tune(job(tmp_path, hurdles=[Hurdle(2, 0.5, "none"), Hurdle(4, 9.0, "none")]))
    assert (outcome.state, outcome.steps) == ("pruned", 2)
    assert outcome.error.endswith("after 2 steps is above 0.5: too far behind the leaders")
    assert len((tmp_path / "curve.jsonl").read_text().splitlines()) == 3
    assert outcome.trained_tokens > 0
    assert box.tune(job(tmp_path / "after")).state == "complete"


@pytest.mark.parametrize(("error", "state"), [
    (RuntimeError("matrices do not fit"), "failed"), (MemoryError(), "infeasible"),
    (torch.OutOfMemoryError("out"), "infeasible"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), "infeasible"),
])
def test_an_error_is_an_outcome_and_the_next_trial_is_unharmed(box, tmp_path, monkeypatch, error, state):
    sound = box.tune(job(tmp_path / "sound"))

    def broken(tuned, *_, **__):
        for parameter in tuned.parameters():
            parameter.data.zero_()
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(module, "fine_tune", broken)
        outcome = box.tune(job(tmp_path / "broken"))
    assert outcome.state == state
    assert type(error).__name__ in outcome.error
    assert "Traceback" in (tmp_path / "broken" / "log.txt").read_text()
    assert box.tune(job(tmp_path / "after")).validation_loss == sound.validation_loss


@pytest.mark.parametrize("changes", [
    {"method": "prompt", "hyperparameters": {**METHODS["prompt"].reference, "length": 200}},
    {"constraints": {"trainable_parameters": 10}}, {"constraints": {"seconds": 1e-9}}, {"constraints": {"adapter_mb": 1e-6}},
    {"method": "sift", "hyperparameters": {**METHODS["sift"].reference, "rank": 2}, "constraints": {"seconds": 1e-9}},
    {"hyperparameters": {**LORA, "learning_rate": 1e30}}, {"hurdles": [Hurdle(2, 0.5, "none")]}])
def test_a_trial_that_is_refused_or_stopped_leaves_the_model(box, tmp_path, changes):
    base = box.model
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    assert box.tune(job(tmp_path, **changes)).state != "complete"
    assert box.model is base
    assert not any(each.training for each in base.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())


def test_the_head_s_features_survive_a_model_that_is_loaded_anew(box, tmp_path, monkeypatch):
    head = {"method": "head", "hyperparameters": dict(METHODS["head"].reference)}
    first = box.tune(job(tmp_path / "first", **head))
    with monkeypatch.context() as patch:
        patch.setattr(module, "fine_tune", lambda *_, **__: 1 / 0)
        assert box.tune(job(tmp_path / "broken")).state == "failed"
    monkeypatch.setattr(Features, "_keep", lambda *_: pytest.fail("it is known"))
    assert box.tune(job(tmp_path / "second", **head)).validation_loss == first.validation_loss


def test_what_preparing_takes_is_in_the_trial_s_time(box, tmp_path, monkeypatch):
    prepare = type(METHODS["lora"]).prepare

    def slow(*arguments):
        time.sleep(0.2)
        return prepare(*arguments)

    monkeypatch.setattr(type(METHODS["lora"]), "prepare", slow)
    lines = []
    outcome = box.tune(job(tmp_path), lines.append)
    assert outcome.seconds > outcome.preparation_seconds >= 0.2
    assert lines[0]["seconds"] >= 0.2
    assert "seconds" in box.tune(job(tmp_path / "bound", constraints={"seconds": 0.2})).constraints


def test_what_a_trial_saved_is_loaded_where_the_blackbox_computes(box, tmp_path, monkeypatch):
    box.tune(job(tmp_path, method="full", hyperparameters=dict(METHODS["full"].reference)))
    monkeypatch.setattr(box, "device", torch.device("meta"))
    assert {p.device.type for p in box.loaded("full", tmp_path / "adapter").parameters()} == {"meta"}


def test_a_loss_that_is_no_number_is_failed(box, tmp_path):
    outcome = box.tune(job(tmp_path, hyperparameters={**LORA, "learning_rate": 1e30}))
    assert outcome.state == "failed"
    assert "loss is" in outcome.error
    assert outcome.validation_loss is None
    json.loads((tmp_path / "outcome.json").read_text())


def test_a_trial_that_scores_other_tokens_is_failed(box, tmp_path, monkeypatch):
    monkeypatch.setattr(type(METHODS["lora"]), "shape",
                        lambda self, tuned, e, rows, p, c, *, training: rows if training else rows[1:])
    outcome = box.tune(job(tmp_path))
    assert outcome.state == "failed"
    assert "scored" in outcome.error


@pytest.mark.parametrize(("constraints", "trained"), [
    ({"trainable_parameters": 10}, False), ({"seconds": 1e-9}, True), ({"adapter_mb": 1e-6}, True)])
def test_a_broken_constraint_is_infeasible(box, tmp_path, constraints, trained):
    outcome = box.tune(job(tmp_path, constraints=constraints))
    [name] = constraints
    assert outcome.state == "infeasible"
    assert outcome.constraints[name] > 0
    assert name in outcome.error
    assert (tmp_path / "curve.jsonl").exists() == trained
    assert (outcome.steps == 4) == (name == "adapter_mb")  # those that were made: its size is known at the end
    assert box.tune(job(tmp_path / "after")).state == "complete"


def test_met_constraints_are_told_with_their_slack(box, tmp_path):
    outcome = box.tune(job(tmp_path, constraints={"trainable_parameters": 1e6, "seconds": 600}))
    assert outcome.state == "complete"
    assert outcome.constraints["trainable_parameters"] == outcome.trainable_parameters - 1e6
    assert outcome.constraints["seconds"] < 0


def test_a_pruned_trial_says_how_long_a_whole_one_takes_and_goes_no_further_where_that_is_too_long(box, tmp_path):
    short = box.tune(job(tmp_path / "short", steps=2))
    assert (short.state, short.error) == ("pruned", None)
    assert short.whole_seconds > short.seconds
    assert box.tune(job(tmp_path / "whole")).whole_seconds is None
    slow = box.tune(job(tmp_path / "slow", steps=2, constraints={"seconds": 600, "trainable_parameters": 1e6}))
    assert slow.constraints["seconds"] == slow.whole_seconds - 600


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_vectors_leave_room_for_the_longest_row_of_any_split(task, tmp_path, split):
    shutil.copytree(task.splits, tmp_path / "splits")
    long = Dialogue((Turn("user", "w1 " * 56), Turn("assistant", "w2")))
    with open(tmp_path / f"splits/{split}.jsonl", "a") as file:
        file.write(json.dumps(long.to_json()) + "\n")
    box = Blackbox(replace(task, splits=tmp_path / "splits"))
    outcome = box.tune(job(tmp_path / "trial", method="prompt", hyperparameters=METHODS["prompt"].reference | {"length": 69}))
    assert outcome.state == "infeasible"
    assert "with the longest row (61 tokens) it takes 130 positions" in outcome.error


def test_a_method_that_does_not_fit_is_failed_with_the_reason(box, tmp_path, monkeypatch):
    monkeypatch.setattr(type(METHODS["lora"]), "unfit", lambda *_: "not this one")
    outcome = box.tune(job(tmp_path))
    assert (outcome.state, outcome.error) == ("failed", "ValueError: not this one")
