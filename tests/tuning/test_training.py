"""The loop: accumulation, cut and extended schedules, divergence, padding, the head at scored positions."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from finemesh.tuning import training
from finemesh.tuning.data.batches import collate
from finemesh.tuning.evaluation.evaluation import evaluate, evaluation_batches
from finemesh.tuning.evaluation.loss import batch_losses
from finemesh.tuning.methods import METHODS
from finemesh.tuning.schedule import Schedule
from finemesh.tuning.training import Diverged, Plan, fine_tune, whole_seconds
from tests import tiny

LORA = METHODS["lora"]
POINT = {"variant": "lora", "rank": 4, "alpha_over_rank": 2.0, "dropout": 0.0, "layers": "all", "learning_rate": 1e-2}


def tune(folder, steps=4, horizon=4, point=POINT, report=lambda line: None, validate=None, preparation_seconds=0.0, **changes):
    folder.mkdir(exist_ok=True)
    model, context = tiny.case("llama", "instruct")
    torch.manual_seed(0)
    tuned = LORA.prepare(model, point, context)
    plan = Plan("instruct", steps, horizon, 8, 0, 0, **changes)
    progress = fine_tune(tuned, LORA, point, context.encoded, plan, Accelerator(cpu=True),
                         validate or (lambda: evaluate(tuned, context.encoded, "instruct", 0).loss), folder, report=report,
                         preparation_seconds=preparation_seconds)
    return tuned, progress


def test_waiting_in_a_report_is_not_the_run_s_time(tmp_path, monkeypatch):
    """A run that is held up between its steps, by others that take turns with it, saves no checkpoint for that."""
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 1e4)
    clock = [0.0]
    monkeypatch.setattr(training.time, "monotonic", lambda: clock[0])
    _, progress = tune(tmp_path, report=lambda line: clock.__setitem__(0, clock[0] + 1e6))
    assert progress.seconds < 1e4
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_what_preparing_took_is_counted_once(tmp_path, monkeypatch):
    monkeypatch.setattr(training.time, "monotonic", lambda: 0.0)
    _, progress = tune(tmp_path, 2, preparation_seconds=5.0)
    assert [line.seconds for line in progress.curve] == [5.0] * 3
    _, progress = tune(tmp_path, 4, preparation_seconds=7.0)
    assert [line.seconds for line in progress.curve] == [5.0] * 5
    assert progress.seconds == 5.0


def test_accumulation_changes_nothing_but_memory(tmp_path):
    whole, _ = tune(tmp_path / "a")
    parts, _ = tune(tmp_path / "b", accumulation=4)
    for one, other in zip(LORA.state(whole).values(), LORA.state(parts).values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_dropout_is_continued_exactly(tmp_path):
    point = {**POINT, "dropout": 0.2}
    whole, _ = tune(tmp_path / "a", 5, 5, point)
    tune(tmp_path / "b", 2, 5, point)
    cut, _ = tune(tmp_path / "b", 5, 5, point)
    assert all(torch.equal(a, b) for a, b in zip(LORA.state(whole).values(), LORA.state(cut).values(), strict=True))


def test_training_in_int8_is_validated_without_and_continued_exactly(tmp_path):
    _, plain = tune(tmp_path / "a")
    whole, progress = tune(tmp_path / "b", int8=True)
    tune(tmp_path / "c", 2, int8=True)
    cut, _ = tune(tmp_path / "c", int8=True)
    assert progress.curve[0].validation_loss == plain.curve[0].validation_loss
    assert 0 < abs(progress.curve[-1].validation_loss - plain.curve[-1].validation_loss) < 0.01
    assert all(torch.equal(a, b) for a, b in zip(LORA.state(whole).values(), LORA.state(cut).values(), strict=True))


def test_a_cut_run_followed_the_long_schedule():
    long = Schedule.over(100)
    assert [Schedule.over(100).factor(i) for i in range(30)] == [long.factor(i) for i in range(30)]
    assert long.factor(0) < long.factor(4)
    assert all(long.factor(i) == 1.0 for i in range(long.warmup, long.decay_start))
    assert 0 < long.factor(99) < long.factor(90) < 1.0


def test_an_extended_run_is_the_longer_run(tmp_path):
    """20 steps of a horizon of 30, then extended to 40: equal to the run that was planned for 40 with that warmup."""
    tune(tmp_path / "a", 12, 20)
    extended, progress = tune(tmp_path / "a", 30, 30)
    planned, reference = tune(tmp_path / "b", 30, 30)
    rates = [line.learning_rate for line in progress.curve if line.step > 12]
    assert rates == [line.learning_rate for line in reference.curve if line.step > 12]
    if Schedule.over(20).warmup == Schedule.over(30).warmup:
        assert all(torch.equal(a, b) for a, b in zip(LORA.state(extended).values(), LORA.state(planned).values(), strict=True))


def test_a_checkpoint_off_the_way_is_not_used(tmp_path):
    tune(tmp_path / "a", 19, 20)  # already in the decay of 20
    fresh, progress = tune(tmp_path / "a", 30, 30)
    planned, _ = tune(tmp_path / "b", 30, 30)
    assert [line.step for line in progress.curve] == list(range(31))
    assert all(torch.equal(a, b) for a, b in zip(LORA.state(fresh).values(), LORA.state(planned).values(), strict=True))


def test_a_checkpoint_of_another_run_is_not_used(tmp_path):
    """As `finemesh tune` leaves it where it is interrupted and started with other settings."""
    tune(tmp_path / "a", 12, 20)
    other = {**POINT, "learning_rate": 1e-3}
    _, progress = tune(tmp_path / "a", 20, 20, other)
    _, alone = tune(tmp_path / "b", 20, 20, other)
    assert [line.validation_loss for line in progress.curve] == [line.validation_loss for line in alone.curve]


def test_a_checkpoint_of_other_parameters_is_not_used(tmp_path, monkeypatch):
    """As an earlier version of a method leaves it, which trained others by the same settings."""
    with monkeypatch.context() as patch:
        patch.setattr(LORA, "state", lambda tuned, plain=LORA.state: {f"old.{k}": v for k, v in plain(tuned).items()})
        tune(tmp_path / "a", 12, 20)
    _, progress = tune(tmp_path / "a", 20, 20)
    _, whole = tune(tmp_path / "b", 20, 20)
    assert [line.validation_loss for line in progress.curve] == [line.validation_loss for line in whole.curve]


def test_a_checkpoint_that_was_cut_off_is_not_used(tmp_path):
    tune(tmp_path / "a", 12, 20)
    file = tmp_path / "a" / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:2000])
    _, progress = tune(tmp_path / "a", 20, 20)
    _, whole = tune(tmp_path / "b", 20, 20)
    assert [line.validation_loss for line in progress.curve] == [line.validation_loss for line in whole.curve]


def test_a_rate_beyond_reason_is_divergence(tmp_path):
    with pytest.raises(Diverged, match="training loss is"):
        tune(tmp_path / "a", 40, 40, {**POINT, "learning_rate": float("inf")})


def test_losses_are_those_of_the_full_logits():
    model, context = tiny.case("llama", "instruct")
    batch = collate(list(context.encoded[:6]), 0)
    logits = model(input_ids=batch.input_ids, attention_mask=(batch.input_ids != 0).long()).logits
    plain = F.cross_entropy(logits[:, :-1].transpose(1, 2), batch.input_ids[:, 1:], reduction="none")[batch.scored[:, 1:]]
    torch.testing.assert_close(batch_losses(model, batch, "instruct").losses, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "task"), [("llama", "instruct"), ("gpt2", "instruct"), ("bert", "classify"),
                                            ("llama", "classify")])
def test_padding_changes_no_loss(kind, task):
    model, context = tiny.case(kind, task)
    together = evaluate(model, context.encoded, task, 0)
    alone = [evaluate(model, [row], task, 0) for row in context.encoded]
    assert together.row_losses == pytest.approx([e.loss for e in alone], abs=1e-5)
    assert together.loss == pytest.approx(sum(e.loss * e.scored_tokens for e in alone) / together.scored_tokens, abs=1e-5)


def test_evaluation_batches_hold_every_row_once():
    lengths = [3, 50, 7, 900, 12, 12, 5000]
    batches = evaluation_batches(lengths, 1000)
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert all(len(b) == 1 or max(lengths[i] for i in b) * len(b) <= 1000 for b in batches)


def test_validates_along_the_way_and_at_the_end():
    plan = Plan("instruct", 20, 20, 8, 0, 0, validations=4)
    assert [s for s in range(21) if plan.validates(s)] == [5, 10, 15, 20]
    assert [s for s in range(8) if replace(plan, steps=7).validates(s)] == [5, 7]


def test_a_short_run_s_validations_are_not_taken_for_the_whole_run_s_time(tmp_path):
    """Six steps of a second, the first one of five, and a validation of ten; the whole run validates at 18, 36 and 54."""
    lines = [{"step": step, "seconds": step + 4.0 * (step > 0) + 10 * (step == 6), "validation_loss": 1.0 if step in (0, 6) else
              None, "validation_seconds": 10.0 * (step == 6)} for step in range(7)]
    plan = Plan("instruct", 6, 54, 8, 0, 0, validations=3)
    (tmp_path / "curve.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert whole_seconds(tmp_path, plan) == pytest.approx(4 + 54 + 10 + 3 * 10)
    alone = lines[1] | {"validation_loss": 1.0}
    (tmp_path / "curve.jsonl").write_text(f"{json.dumps(lines[0])}\n{json.dumps(alone)}\n")
    assert whole_seconds(tmp_path, plan) == pytest.approx(54 * 5)


def test_the_seconds_of_a_validation_are_told_apart(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(training.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(training.Plan, "validates", lambda plan, step: clock.__setitem__(0, clock[0] + 1) or step == 4)
    tune(tmp_path, validate=lambda: clock.__setitem__(0, clock[0] + 7) or 1.0)
    lines = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert [line["seconds"] for line in lines] == [7, 8, 9, 10, 18]
    assert [line["validation_seconds"] for line in lines] == [7, 0, 0, 0, 7]
