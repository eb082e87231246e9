"""Methods that touch the layers, on families with sliding windows and on a model that also sees."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from transformers import (
    CanineConfig,
    CanineForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3ForSequenceClassification,
    Gemma3TextConfig,
    IBertConfig,
    IBertForSequenceClassification,
    PerceiverConfig,
    PerceiverForSequenceClassification,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from finemesh.tuning.architecture import text_part
from finemesh.tuning.data.batches import collate
from finemesh.tuning.evaluation.evaluation import evaluate
from finemesh.tuning.evaluation.loss import batch_losses
from finemesh.tuning.methods import METHODS
from finemesh.tuning.training import Plan, fine_tune
from tests import tiny

SIZES = {"vocab_size": tiny.VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "pad_token_id": 0,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128}
KINDS = ["sliding_attention", "full_attention"]
WINDOW = 5  # tokens: rows are longer
SMALL = {"length": 6, "rank": 2, "hidden_size": 16}


def seeing(**head: int) -> Gemma3Config:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
              "patch_size": 8}
    text = Gemma3TextConfig(**SIZES, sliding_window=WINDOW, layer_types=KINDS)
    return Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, **head)


def model_of(kind: str) -> tuple[PreTrainedModel, str]:
    """With the task that it is for."""
    torch.manual_seed(0)
    model: PreTrainedModel = {
        "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, sliding_window=WINDOW, layer_types=KINDS)),
        "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, sliding_window=WINDOW, layer_types=KINDS)),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, use_sliding_window=True, sliding_window=WINDOW,
                                                      layer_types=KINDS)),
        "seeing gemma3": lambda: Gemma3ForConditionalGeneration(seeing()),
        "seeing gemma3 classifier": lambda: Gemma3ForSequenceClassification(seeing(num_labels=2)),
    }[kind]()
    model.config.get_text_config().use_cache = False
    return model.requires_grad_(False).eval(), "classify" if "classifier" in kind else "instruct"


@pytest.mark.parametrize("kind", ["gemma2", "gemma3", "qwen3", "seeing gemma3", "seeing gemma3 classifier"])
@pytest.mark.parametrize("name", ["bottleneck", "head", "lora", "p_tuning_v2", "prefix", "sift"])
def test_a_method_trains_and_is_taken_back(name: str, kind: str, tmp_path: Path) -> None:
    method, (model, task) = METHODS[name], model_of(kind)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    _, context = tiny.case("llama", task)
    point = {key: SMALL.get(key, value) for key, value in method.reference.items()}
    assert method.unfit(model, task) is method.refuses(model, point, context) is None
    tuned = method.prepare(model, point, context)
    rows = method.shape(tuned, context.train, context.encoded, point, context, training=True)
    fine_tune(tuned, method, point, rows, Plan(task, 1, 1, 8, 0, 0), Accelerator(cpu=True), lambda: 0.0, tmp_path)
    together = evaluate(tuned, rows, task, 0)
    alone = [evaluate(tuned, [row], task, 0).loss for row in rows[:8]]
    assert together.row_losses[:8] == pytest.approx(alone, abs=1e-5)
    method.save(tuned, tmp_path / "adapter", "base")
    base = method.remove(tuned)
    assert all(torch.equal(tensor, before[key]) for key, tensor in base.state_dict().items())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fresh = model_of(kind)[0]
        loaded = method.load(fresh, tmp_path / "adapter")
    assert evaluate(loaded, rows, task, 0).row_losses == pytest.approx(together.row_losses, abs=1e-5)


def odd(kind: str) -> PreTrainedModel:
    """Encoders that read no words' vectors, or have no plain linear layers."""
    torch.manual_seed(0)
    sizes = {key: value for key, value in SIZES.items() if key not in ("num_key_value_heads", "head_dim")}
    model: PreTrainedModel = {
        "canine": lambda: CanineForSequenceClassification(CanineConfig(
            **{key: value for key, value in sizes.items() if key != "vocab_size"}, num_hash_buckets=64)),
        "ibert": lambda: IBertForSequenceClassification(IBertConfig(**sizes)),
        "perceiver": lambda: PerceiverForSequenceClassification(PerceiverConfig(
            vocab_size=tiny.VOCABULARY, d_model=32, d_latents=32, num_latents=8, num_self_attends_per_block=1, num_blocks=1,
            num_self_attention_heads=4, num_cross_attention_heads=4, max_position_embeddings=128)),
    }[kind]()
    return model.requires_grad_(False).eval()


@pytest.mark.parametrize("kind", ["canine", "ibert", "perceiver"])
@pytest.mark.parametrize("name", METHODS)
def test_an_odd_encoder_is_tuned_or_refused_with_the_reason(name: str, kind: str, tmp_path: Path) -> None:
    method, model = METHODS[name], odd(kind)
    _, context = tiny.case("bert", "classify")
    rows = [replace(row, input_ids=row.input_ids * 6, scored=row.scored * 6, token_type_ids=None)
            for row in context.encoded]  # as long as Canine's strides want them
    context = replace(context, encoded=rows)
    point = {key: SMALL.get(key, value) for key, value in method.reference.items()}
    if reason := method.unfit(model, "classify") or method.refuses(model, point, context):
        assert any(word in reason for word in (type(model).__name__, "classify", "the rank may be at most 1"))
        assert name != "full"
        return
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    tuned = method.prepare(model, point, context)
    fine_tune(tuned, method, point, rows, Plan("classify", 1, 1, 8, 0, 0), Accelerator(cpu=True), lambda: 0.0, tmp_path)
    expected = evaluate(tuned, rows, "classify", 0).row_losses
    method.save(tuned, tmp_path / "adapter", "base")
    base = method.remove(tuned)
    assert all(torch.equal(tensor, before[key]) for key, tensor in base.state_dict().items())
    loaded = method.load(odd(kind), tmp_path / "adapter")
    assert evaluate(loaded, rows, "classify", 0).row_losses == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["seeing gemma3", "seeing gemma3 classifier"])
@pytest.mark.parametrize(("name", "changes"), [
    *(("lora", {"layers": layers}) for layers in ("all", "attention", "query_value", "mlp")),
    *(("sift", {"layers": layers}) for layers in ("all", "attention")),
    *(("bottleneck", {"variant": variant}) for variant in ("houlsby", "pfeiffer", "parallel")), ("full", {})])
def test_what_sees_is_left_alone(kind: str, name: str, changes: dict[str, str]) -> None:
    model, task = model_of(kind)
    _, context = tiny.case("llama", task)
    point = {**METHODS[name].reference, "rank": 2, **changes}
    count = METHODS[name].trainable(model, point, context)
    tuned = METHODS[name].prepare(model, point, context)
    trained = {key: parameter for key, parameter in tuned.named_parameters() if parameter.requires_grad}
    assert sum(parameter.numel() for parameter in trained.values()) == count
    body = [key for key in trained if "score." not in key]
    assert body
    assert all("language_model." in key for key in body)
    batch_losses(tuned, collate(context.encoded[:4], 0), task).losses.mean().backward()
    assert all(parameter.grad is not None for parameter in trained.values())


@pytest.mark.parametrize(("kind", "part"), [("gemma3", ""), ("seeing gemma3", "model.language_model."),
                                            ("seeing gemma3 classifier", "model.language_model.")])
def test_where_the_text_part_lies(kind: str, part: str) -> None:
    assert text_part(model_of(kind)[0]) == part
