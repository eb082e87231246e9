"""LoRA's variants and target layers: what is scaled by what, and which matrices get increments."""

from collections.abc import Mapping
from math import sqrt
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification, MixtralConfig, MixtralForCausalLM

from finemesh.tuning.evaluation.evaluation import evaluate
from finemesh.tuning.methods import METHODS
from tests import tiny

LORA = METHODS["lora"]


def tuned(kind: str, task: str, half: bool = False, **changes: Any) -> Any:
    model, context = tiny.case(kind, task)
    if half:
        model = model.bfloat16()
    torch.manual_seed(0)
    return LORA.prepare(model, {**LORA.reference, **changes}, context), context


def scales(model: nn.Module) -> set[float]:
    return {float(scale) for module in model.modules() if isinstance(module, LoraLayer) for scale in module.scaling.values()}


@pytest.mark.parametrize(("variant", "rank", "scale"), [
    ("lora", 8, 2.0), ("lora", 32, 2.0), ("rslora", 8, 2.0), ("rslora", 32, 1.0), ("rslora", 2, 4.0), ("dora", 32, 2.0)])
def test_the_scale_is_the_searched_one_at_the_reference_rank(variant: str, rank: int, scale: float) -> None:
    model, _ = tuned("llama", "instruct", variant=variant, rank=rank)
    assert list(scales(model)) == [pytest.approx(scale)]
    stock = model.active_peft_config  # what plain PEFT reads from the saved file
    assert stock.lora_alpha / (sqrt(rank) if stock.use_rslora else rank) == pytest.approx(scale)


WHERE: Mapping[tuple[str, str], Mapping[str, set[str]]] = {
    ("llama", "instruct"): {"attention": {"q_proj", "k_proj", "v_proj", "o_proj"}, "query_value": {"q_proj", "v_proj"},
                            "mlp": {"gate_proj", "up_proj", "down_proj"}},
    ("gpt2", "instruct"): {"attention": {"attn.c_attn", "attn.c_proj"}, "query_value": {"attn.c_attn"},
                           "mlp": {"mlp.c_fc", "mlp.c_proj"}},
    ("bert", "classify"): {"attention": {"self.query", "self.key", "self.value", "attention.output.dense"},
                           "query_value": {"self.query", "self.value"},
                           "mlp": {"0.intermediate.dense", "0.output.dense", "1.intermediate.dense", "1.output.dense"}},
}


@pytest.mark.parametrize(("kind", "task"), WHERE)
@pytest.mark.parametrize("layers", ["attention", "query_value", "mlp"])
def test_target_layers(kind: str, task: str, layers: str) -> None:
    model, _ = tuned(kind, task, layers=layers)
    found = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A." in name}
    wanted = WHERE[kind, task][layers]
    assert all(name.endswith(tuple(wanted)) for name in found)
    assert {end for end in wanted if any(name.endswith(end) for name in found)} == wanted
    assert len(found) == (len(wanted) if kind == "bert" and layers == "mlp" else 2 * len(wanted))


@pytest.mark.parametrize("variant", ["rslora", "dora"])
@pytest.mark.parametrize(("kind", "task"), [("llama", "instruct"), ("gpt2", "instruct"), ("bert", "classify")])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_variants_start_at_base_learn_and_reload(kind: str, task: str, variant: str, half: bool, tmp_path) -> None:
    """DoRA's lengths are those of the rows of W, also of GPT-2's transposed matrices and in bfloat16."""
    model, context = tiny.case(kind, task)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        before = evaluate(model.bfloat16() if half else model, context.encoded, task, 0).loss
        model, context = tuned(kind, task, half, variant=variant)
        assert evaluate(model, context.encoded, task, 0).loss == pytest.approx(before, rel=5e-3 if half else 1e-6)
        parameters = [p for p in model.parameters() if p.requires_grad]
        assert {p.dtype for name, p in model.named_parameters() if "lora_" in name} == {torch.float32}
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    ids = torch.tensor([context.encoded[0].input_ids])
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = model(input_ids=ids).logits
        logits.float()[..., 0].mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters)
        optimizer.step()
    model.eval().save_pretrained(tmp_path, save_embedding_layers=False)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        logits = model(input_ids=ids).logits
        fresh = tiny.case(kind, task)[0]
        again = PeftModel.from_pretrained(fresh.bfloat16() if half else fresh, tmp_path).eval()(input_ids=ids).logits
    torch.testing.assert_close(again, logits, rtol=1e-6, atol=1e-6)


def mixture() -> MixtralForCausalLM:
    return MixtralForCausalLM(MixtralConfig(
        vocab_size=29, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=2))


def test_layers_that_are_not_known_are_refused() -> None:
    model, (_, context) = mixture(), tiny.case("llama", "instruct")
    assert "use layers: all" in str(LORA.refuses(model, {**LORA.reference, "layers": "mlp"}, context))
    assert LORA.refuses(model, LORA.reference, context) is None


def test_dora_is_refused_for_experts_that_are_one_tensor() -> None:
    model, (_, context) = mixture(), tiny.case("llama", "instruct")
    assert "use variant: lora" in str(LORA.refuses(model, {**LORA.reference, "variant": "dora"}, context))


@pytest.mark.parametrize(("layers", "own"), [("attention", ["query_proj", "key_proj", "value_proj", "dense"]),
                                             ("query_value", ["query_proj", "value_proj"])])
def test_deberta_calls_its_projections_otherwise(layers: str, own: list[str]) -> None:
    model = DebertaV2ForSequenceClassification(DebertaV2Config(
        vocab_size=29, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, pooler_hidden_size=32))
    _, context = tiny.case("bert", "classify")
    point = {**LORA.reference, "layers": layers}
    expected = LORA.trainable(model.requires_grad_(False), point, context)
    made = LORA.prepare(model, point, context)
    found = [name for name, _ in made.named_modules() if name.endswith("lora_A")]
    assert {name.split(".")[-2] for name in found} == set(own)
    assert len(found) == 2 * len(own)
    assert expected == sum(parameter.numel() for parameter in made.parameters() if parameter.requires_grad)
