"""The head on remembered features: the same numbers as without memory, and the frozen model asked once."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LongformerConfig,
    LongformerForSequenceClassification,
    MambaConfig,
    MixtralConfig,
)

from finemesh.tuning import features as module
from finemesh.tuning.data.batches import collate
from finemesh.tuning.evaluation.evaluation import evaluate
from finemesh.tuning.evaluation.loss import batch_losses
from finemesh.tuning.features import Features, Probe
from finemesh.tuning.kernels import decoder
from finemesh.tuning.methods import METHODS
from finemesh.tuning.training import Plan, fine_tune
from tests import tiny

CASES = [("llama", "instruct"), ("gemma", "instruct"), ("gpt2", "instruct"), ("bert", "classify"), ("llama", "classify"),
         ("gpt2", "classify"), ("bert", "regress")]
HEAD = METHODS["head"]
POINT = {"learning_rate": 5e-2, "weight_decay": 0.0}
SIZES = {"vocab_size": tiny.VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}


class Count:
    """How often a model's first block computed anything, whichever way took it there."""

    def __init__(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        project, embed = decoder._states, type(model.base_model).forward

        def states(*arguments: Any) -> Any:
            self.calls += 1
            return project(*arguments)

        def forward(body: Any, *arguments: Any, **named: Any) -> Any:
            self.calls += 1
            return embed(body, *arguments, **named)

        monkeypatch.setattr(decoder, "_states", states)
        monkeypatch.setattr(type(model.base_model), "forward", forward)


def trial(model: Any, context: Any, folder: Path, seed: int = 0) -> tuple[list[float], dict[str, torch.Tensor]]:
    folder.mkdir()
    torch.manual_seed(seed)
    tuned = HEAD.prepare(model, POINT, context)
    rows = context.encoded
    progress = fine_tune(tuned, HEAD, POINT, rows, Plan(context.task, 6, 6, 8, seed, 0), Accelerator(cpu=True),
                         lambda: evaluate(tuned, rows, context.task, 0).loss, folder)
    state = {name: tensor.clone() for name, tensor in HEAD.state(tuned).items()}
    assert HEAD.remove(tuned) is model
    return [line.train_loss or line.validation_loss for line in progress.curve or []], state


@pytest.mark.parametrize(("kind", "task"), CASES)
def test_a_second_trial_asks_the_model_nothing_and_gives_the_same_numbers(
        kind: str, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, context = tiny.case(kind, task)
    count = Count(model, monkeypatch)
    first = trial(model, context, tmp_path / "first")
    assert count.calls > 0
    count.calls = 0
    second = trial(model, context, tmp_path / "second")
    assert count.calls == 0
    assert second[0] == first[0]
    assert all(torch.equal(second[1][name], tensor) for name, tensor in first[1].items())
    trial(model, context, tmp_path / "other", seed=1)  # has batches of its own
    assert count.calls > 0


@pytest.mark.parametrize(("kind", "task"), CASES)
def test_the_numbers_are_those_of_the_model_itself(kind: str, task: str) -> None:
    """Losses and the head's gradient, against the model's own forward and against logits computed without any of ours."""
    model, context = tiny.case(kind, task)
    tuned: Any = HEAD.prepare(model, POINT, context)
    batch = collate(list(context.encoded[:8]), 0)
    found = []
    for way in (tuned, tuned, tuned.model):  # computed, remembered, plain
        tuned.zero_grad()
        losses = batch_losses(way.eval(), batch, task).losses
        losses.sum().backward()
        found.append((losses.detach(), [p.grad.clone() for p in tuned.parameters() if p.requires_grad]))
    for losses, gradients in found[:2]:
        torch.testing.assert_close(losses, found[2][0])
        for gradient, plain in zip(gradients, found[2][1], strict=True):
            torch.testing.assert_close(gradient, plain)
    if task == "instruct":
        logits = tuned.model(input_ids=batch.input_ids).logits[:, :-1][batch.scored[:, 1:]]
        stock = F.cross_entropy(logits, batch.input_ids[batch.scored], reduction="none")
        torch.testing.assert_close(found[1][0], stock.detach())


def test_of_the_vocabulary_the_answers_tokens_are_trained_and_all_others_together(tmp_path: Path) -> None:
    """Also what is saved: a plain model, whose losses are those that were validated (contract test)."""
    model, context = tiny.case("llama", "instruct")
    answers = context.answer_tokens
    assert 1 < len(answers) < tiny.VOCABULARY - 1
    before = model.get_output_embeddings().weight.clone()
    _, state = trial(model, context, tmp_path / "run")
    [(_, own)] = state.items()
    assert len(own) == len(answers) + 1
    assert not torch.equal(own[:-1], before[answers])
    assert own[-1].any()
    tuned: Any = HEAD.prepare(model, POINT, context)
    HEAD.load_state(tuned, state)
    assert not tuned.model.config.tie_word_embeddings
    HEAD.save(tuned, tmp_path / "adapter", "base")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    expected = before + own[-1]
    expected[answers] = own[:-1]
    assert torch.equal(saved.get_output_embeddings().weight, expected)
    assert torch.equal(saved.get_input_embeddings().weight, before)  # tied before
    assert torch.equal(HEAD.state(tuned)["model.lm_head.own.weight"], own)  # saving leaves it as it was


@pytest.mark.parametrize(("kind", "known"), [("llama", 3), ("gpt2", 3), ("gemma2", 1)])
def test_what_the_rest_of_the_vocabulary_weighs_is_known_where_logits_are_the_head_s(kind: str, known: int) -> None:
    _, context = tiny.case("llama", "instruct")
    model = gemma2() if kind == "gemma2" else tiny.causal(kind)
    tuned: Any = HEAD.prepare(model, POINT, context)
    batch = collate(list(context.encoded[:8]), 0)
    batch_losses(tuned, batch, "instruct")
    assert len(tuned.features.of(batch, lambda: pytest.fail("it is known"))) == known


def test_what_a_diverged_head_leaves_is_what_another_would_have() -> None:
    model, context = tiny.case("gpt2", "instruct")
    batch = collate(list(context.encoded[:8]), 0)
    tuned: Any = HEAD.prepare(model, POINT, context)
    with torch.no_grad():
        HEAD.state(tuned)["model.lm_head.own.weight"].fill_(float("nan"))
    assert batch_losses(tuned, batch, "instruct").losses.isnan().all()
    assert len(context.features.of(batch, lambda: pytest.fail("it is known"))) == 3


def test_dropout_is_the_classifier_s_own_and_no_other() -> None:
    model, context = tiny.case("bert", "classify")
    tuned: Any = HEAD.prepare(model, POINT, context)
    batch = collate(list(context.encoded[:8]), 0)
    tuned.train()
    assert tuned.model.dropout.training
    assert not any(module.training for module in tuned.body.modules())
    torch.manual_seed(0)
    drawn = [batch_losses(tuned, batch, "classify").losses.detach() for _ in range(3)]
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])
    torch.manual_seed(0)
    assert torch.equal(batch_losses(tuned, batch, "classify").losses, drawn[0])
    body = tuned.model.bert(input_ids=batch.input_ids, attention_mask=(batch.input_ids != 0).long())
    torch.manual_seed(0)
    logits = tuned.model.classifier(nn.functional.dropout(body.pooler_output, tuned.model.dropout.p))
    assert batch.labels is not None
    torch.testing.assert_close(F.cross_entropy(logits, batch.labels, reduction="none"), drawn[0])
    assert not HEAD.remove(tuned).training


def gemma2() -> Any:
    """It caps its logits after the head."""
    torch.manual_seed(0)
    return Gemma2ForCausalLM(Gemma2Config(
        **SIZES, num_attention_heads=4, num_key_value_heads=2, head_dim=8, final_logit_softcapping=0.05, pad_token_id=0,
        )).requires_grad_(False).eval()


def test_what_stands_between_head_and_logits_is_the_model_s_own() -> None:
    _, context = tiny.case("gemma", "instruct")
    model = gemma2()
    batch = collate(list(context.encoded[:8]), 0)
    plain = batch_losses(model, batch, "instruct").losses
    tuned = HEAD.prepare(model, POINT, context)
    for _ in range(2):
        torch.testing.assert_close(batch_losses(tuned, batch, "instruct").losses, plain)


def test_a_model_that_tells_its_body_more_than_it_is_told() -> None:
    """Longformer's classifier, which looks from its first token at all others."""
    _, context = tiny.case("bert", "classify")
    torch.manual_seed(0)
    model = LongformerForSequenceClassification(LongformerConfig(
        **SIZES, num_attention_heads=4, max_position_embeddings=64, pad_token_id=0, attention_window=[4, 4]))
    expected = evaluate(model.requires_grad_(False).eval(), context.encoded, "classify", 0).row_losses
    tuned = HEAD.prepare(model, POINT, context)
    assert evaluate(tuned, context.encoded, "classify", 0).row_losses == pytest.approx(expected, abs=1e-6)
    assert "vectors are none" in str(METHODS["prompt"].unfit(model, "classify"))


@pytest.mark.parametrize("change", ["tokens", "scored", "arithmetic"])
def test_features_are_of_one_batch_in_one_arithmetic(change: str) -> None:
    _, context = tiny.case("llama", "instruct")
    rows = list(context.encoded[:4])
    batch, features = collate(rows, 0), Features()
    state = torch.randn(3, 2).bfloat16(), torch.arange(4.0)
    features.of(batch, lambda: state)
    kept = features.of(batch, lambda: pytest.fail("it is known"))
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(kept, state, strict=True))
    other = collate(rows, 0)
    if change == "tokens":
        other.input_ids[0, 0] += 1
    if change == "scored":
        other.scored[0, 0] = True
    with torch.autocast("cpu", torch.bfloat16, enabled=change == "arithmetic"):
        [found] = features.of(other, lambda: (torch.zeros(1),))
    assert torch.equal(found, torch.zeros(1))
    assert torch.equal(features.of(batch, lambda: pytest.fail("it is known"))[1], state[1])


@pytest.mark.parametrize("why", ["full disk", "too large"])
def test_what_cannot_be_kept_is_computed_again(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, context = tiny.case("llama", "instruct")
    batch, features = collate(list(context.encoded[:4]), 0), Features()
    if why == "too large":
        monkeypatch.setattr(module, "LARGEST", 10)
    else:
        features._file.close()
        features._file = open("/dev/full", "wb+", buffering=0)  # noqa: SIM115
    for value in (1.0, 2.0):
        [found] = features.of(batch, lambda value=value: (torch.full((3, 2), value),))
        assert torch.equal(found, torch.full((3, 2), value))
    features._file.close()


@pytest.mark.parametrize("config", [
    MixtralConfig(**SIZES, num_attention_heads=4, num_key_value_heads=2, num_local_experts=4),
    MambaConfig(**SIZES, state_size=4)], ids=["mixtral", "mamba"])
def test_what_else_a_body_gives_is_not_asked_for(config: Any) -> None:
    _, context = tiny.case("llama", "instruct")
    model = AutoModelForCausalLM.from_config(config).requires_grad_(False)
    expected = evaluate(model, context.encoded, "instruct", 0).row_losses
    tuned = HEAD.prepare(model, POINT, context)
    assert evaluate(tuned, context.encoded, "instruct", 0).row_losses == pytest.approx(expected, abs=1e-5)


def test_other_methods_know_nothing_of_it() -> None:
    model, context = tiny.case("llama", "instruct")
    HEAD.remove(HEAD.prepare(model, POINT, context))
    for name in ("full", "lora"):
        tuned = METHODS[name].prepare(model, METHODS[name].reference, context)
        assert not any(isinstance(each, Probe) for each in tuned.modules())
        METHODS[name].remove(tuned)
