"""Prefix tuning and P-tuning v2: the start from text is what the model remembers of it; what is saved is stock, without MLP."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    FalconConfig,
    FalconForCausalLM,
    MptConfig,
    MptForCausalLM,
)

from finemesh.tuning.data.batches import Encoded, collate, question
from finemesh.tuning.evaluation.evaluation import evaluate
from finemesh.tuning.evaluation.generation import answers
from finemesh.tuning.evaluation.loss import batch_losses
from finemesh.tuning.methods import METHODS
from finemesh.tuning.methods.prefix import key_values
from finemesh.tuning.methods.prompt import text_tokens
from finemesh.tuning.training import Plan, fine_tune
from tests import tiny

POINTS = {
    "mlp": ("prefix", {"length": 7, "init": "text", "reparameterization": "mlp", "hidden_size": 12, "learning_rate": 1e-2}),
    "random mlp": ("prefix", {"length": 3, "init": "random", "reparameterization": "mlp", "hidden_size": 20,
                              "learning_rate": 1e-2}),
    "direct": ("prefix", {"length": 7, "init": "text", "reparameterization": "none", "learning_rate": 1e-2}),
    "v2": ("p_tuning_v2", {"length": 7, "init": "text", "learning_rate": 1e-2}),
    "random v2": ("p_tuning_v2", {"length": 3, "init": "random", "learning_rate": 1e-2}),
}
CASES = [("llama", "instruct"), ("gpt2", "instruct"), ("gemma", "instruct"), ("bert", "classify"), ("gpt2", "classify")]


def prepared(name: str, kind: str, task: str) -> tuple[Any, Any]:
    method, point = POINTS[name]
    model, context = tiny.case(kind, task)
    torch.manual_seed(1)
    return METHODS[method].prepare(model, point, context), context


def trained(name: str, kind: str, task: str, folder: Any, steps: int = 8) -> tuple[Any, Any, float]:
    tuned, context = prepared(name, kind, task)
    method, point = POINTS[name]
    fine_tune(tuned, METHODS[method], point, context.encoded, Plan(task, steps, steps, 8, 0, 0), Accelerator(cpu=True),
              lambda: 0.0, folder)
    return tuned, context, evaluate(tuned, context.encoded, task, 0).loss


@pytest.mark.parametrize("name", ["mlp", "direct", "v2"])
@pytest.mark.parametrize(("kind", "task"), [(k, t) for k, t in CASES if k != "bert"] + [("llama", "regress")])
def test_untuned_it_is_a_model_that_has_read_the_text(name, kind, task):
    tuned, context = prepared(name, kind, task)
    model, _ = tiny.case(kind, task)
    text = [i for row in context.encoded for i in row.input_ids][:7]
    rows = [replace(row, input_ids=[*text, *row.input_ids], scored=[False] * 7 + list(row.scored)) for row in context.encoded]
    read = evaluate(model, rows, task, 0)
    assert evaluate(tuned, context.encoded, task, 0).row_losses == pytest.approx(read.row_losses, abs=2e-6)
    assert abs(evaluate(model, context.encoded, task, 0).loss - read.loss) > 1e-4


def test_an_encoder_starts_from_its_own_keys_and_values():
    """It reads in both directions, so there is no model that has read the text alone: the numbers themselves are compared."""
    tuned, context = prepared("v2", "bert", "classify")
    model: Any
    model, _ = tiny.case("bert", "classify")
    seen = []
    for layer in model.bert.encoder.layer:
        for projection in (layer.attention.self.key, layer.attention.self.value):
            projection.register_forward_hook(lambda module, given, found: seen.append(found[0]))
    model(input_ids=text_tokens(context, 7)[None])
    assert len(seen) == 4
    torch.testing.assert_close(tuned.prompt_encoder["default"].embedding.weight.data, torch.cat(seen, -1))
    losses = evaluate(tuned, context.encoded, "classify", 0).row_losses
    assert losses != pytest.approx(evaluate(model, context.encoded, "classify", 0).row_losses, abs=1e-4)


def test_text_goes_on_from_the_start_where_the_rows_end():
    _, context = tiny.case("llama", "instruct")
    every = [i for row in context.encoded for i in row.input_ids]
    assert text_tokens(context, len(every) + 3).tolist() == every + every[:3]


@pytest.mark.parametrize("name", POINTS)
@pytest.mark.parametrize(("kind", "task"), CASES)
def test_plain_peft_loads_what_is_saved_without_the_mlp(name, kind, task, tmp_path):
    tuned, context, loss = trained(name, kind, task, tmp_path)
    METHODS[POINTS[name][0]].save(tuned, tmp_path / "adapter", "base")
    saved = load_file(tmp_path / "adapter/adapter_model.safetensors")
    length = POINTS[name][1]["length"]
    width = key_values(tiny.case(kind, task)[0], torch.tensor([1])).size(1)
    assert saved["prompt_embeddings"].shape == (length, width)
    assert all(key.startswith(("base_model.classifier", "base_model.score")) for key in set(saved) - {"prompt_embeddings"})
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["peft_type"] == "PREFIX_TUNING"
    assert config["prefix_projection"] is False
    fresh, _ = tiny.case(kind, task)
    loaded: nn.Module = PeftModel.from_pretrained(fresh, str(tmp_path / "adapter")).eval()
    assert evaluate(loaded, context.encoded, task, 0).loss == pytest.approx(loss, abs=1e-6)


def test_the_mlp_is_trained():
    tuned, _ = prepared("mlp", "llama", "instruct")
    shapes = {name.rpartition("default.")[2]: tuple(p.shape) for name, p in tuned.named_parameters() if p.requires_grad}
    assert shapes == {"embedding.weight": (7, 16), "transform.0.weight": (12, 16), "transform.0.bias": (12,),
                      "transform.2.weight": (64, 12), "transform.2.bias": (64,)}


@pytest.mark.parametrize("name", ["mlp", "v2"])
@pytest.mark.parametrize(("kind", "task"), [("llama", "instruct"), ("gpt2", "instruct"), ("bert", "classify")])
def test_in_bfloat16_what_is_trained_stays_float32(name, kind, task):
    curves = []
    for half in (False, True):
        method, point = POINTS[name]
        model, context = tiny.case(kind, task)
        torch.manual_seed(1)
        tuned = METHODS[method].prepare(model.bfloat16() if half else model, point, context)
        parameters = [p for p in tuned.parameters() if p.requires_grad]
        assert {p.dtype for p in parameters} == {torch.float32}
        optimizer, curve = torch.optim.AdamW(parameters, lr=3e-2), []
        for _ in range(12):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = _mean_loss(tuned, context, task)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            curve.append(float(loss.detach()))
        curves.append(curve)
    assert curves[0][-1] < curves[0][0] - 0.03
    assert curves[1] == pytest.approx(curves[0], rel=0.006)


def _mean_loss(tuned: nn.Module, context: Any, task: Any) -> torch.Tensor:
    return batch_losses(tuned, collate(list(context.encoded), 0), task).losses.mean()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma", "gpt2"])
def test_answers_continue_the_text_that_was_read(kind):
    tuned, context = prepared("v2", kind, "instruct")
    model, _ = tiny.case(kind, "instruct")
    text = text_tokens(context, 7).tolist()
    questions = [question(example, context.tokenizer, 64) for example in context.train[:4]]
    for asked, found in zip(questions, answers(tuned, context.tokenizer, questions, 5), strict=True):
        ids = torch.tensor([text + asked.input_ids])
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
        assert found == context.tokenizer.decode(output[0, ids.size(1):], skip_special_tokens=True).strip()


def test_an_answer_ends_where_the_context_does():
    tuned, context = prepared("v2", "gpt2", "instruct")  # positions are learned: there is none beyond
    ids = (context.encoded[0].input_ids * 30)[:118]
    found = answers(tuned, context.tokenizer, [Encoded(ids, [False] * 118)])
    assert len(found[0].split()) <= 3


def test_a_model_whose_layers_take_no_keys_is_told_what_fits():
    model = DistilBertForSequenceClassification(DistilBertConfig(vocab_size=29, dim=32, n_layers=1, n_heads=2, hidden_dim=48))
    assert "prompt and p_tuning" in METHODS["prefix"].unfit(model, "classify")
    assert METHODS["p_tuning_v2"].unfit(tiny.classifier("bert"), "classify") is None


@pytest.mark.parametrize("model", [
    lambda: FalconForCausalLM(FalconConfig(vocab_size=tiny.VOCABULARY, hidden_size=32, num_hidden_layers=2,
                                           num_attention_heads=4)),
    lambda: MptForCausalLM(MptConfig(vocab_size=tiny.VOCABULARY, d_model=32, n_layers=2, n_heads=4, max_seq_len=64)),
], ids=["falcon, one head of keys for all queries", "mpt"])
def test_models_that_call_their_heads_otherwise(model, tmp_path):
    _, context = tiny.case("gpt2", "instruct")
    method, point = POINTS["v2"]
    tuned = METHODS[method].prepare(model().requires_grad_(False), point, context)
    losses = evaluate(tuned, context.encoded, "instruct", 0).row_losses
    METHODS[method].save(tuned, tmp_path, "base")
    stock = PeftModel.from_pretrained(METHODS[method].remove(tuned), str(tmp_path)).eval()
    assert evaluate(stock, context.encoded, "instruct", 0).row_losses == pytest.approx(losses, abs=1e-6)


def test_the_context_bounds_the_length():
    model, context = tiny.case("bert", "classify")
    longest = max(len(row.input_ids) for row in context.encoded)
    point = POINTS["v2"][1]
    assert METHODS["p_tuning_v2"].refuses(model, {**point, "length": 128 - longest}, context) is None
    message = METHODS["p_tuning_v2"].refuses(model, {**point, "length": 129 - longest}, context)
    assert f"takes 129 positions, and the model has 128; give a length of at most {128 - longest}" in message
