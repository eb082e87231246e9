"""Bottleneck adapters: where they sit, that PEFT alone reloads them, and the same numbers as the formulas say."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from finemesh.tuning.bottleneck import VARIANTS, BottleneckConfig
from finemesh.tuning.evaluation.evaluation import evaluate
from finemesh.tuning.methods import METHODS
from tests import tiny

PAIRS = [(kind, variant) for kind in ("llama", "qwen2", "gemma", "gpt2", "bert") for variant in VARIANTS]


def base(kind: str) -> Any:
    return tiny.classifier() if kind == "bert" else tiny.causal(kind)


def adapted(kind: str, variant: str, **changes: Any) -> Any:
    """With nothing left at zero."""
    tuned = get_peft_model(base(kind), BottleneckConfig(variant=variant, reduction=8, **changes))
    torch.manual_seed(1)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    return tuned.eval()


def logits(model: Any) -> torch.Tensor:
    result: torch.Tensor = model(input_ids=torch.arange(5, 12)[None]).logits.detach()
    return result


def network(adapter: dict[str, torch.Tensor], place: str, h: torch.Tensor) -> torch.Tensor:
    down, up = f"{place}.bottleneck_down", f"{place}.bottleneck_up"
    inner = torch.relu(h @ adapter[f"{down}.weight"].t() + adapter[f"{down}.bias"])
    return inner @ adapter[f"{up}.weight"].t() + adapter[f"{up}.bias"]


@pytest.mark.parametrize(("kind", "variant"), PAIRS)
def test_the_output_is_that_of_the_formula(kind: str, variant: str) -> None:
    """By hooks on an untouched model, which know where the blocks of each family begin and end."""
    tuned = adapted(kind, variant, scale=0.5)
    weights = {name.removeprefix("base_model.model.").replace(".default", ""): p.detach()
               for name, p in tuned.named_parameters() if p.requires_grad}
    plain = base(kind)
    attention, last, block = {"gpt2": ("attn.c_proj", "mlp.c_proj", "mlp"),
                              "bert": ("attention.output.dense", "output.dense", "output")}.get(
                                  kind, ("self_attn.o_proj", "mlp.down_proj", "mlp"))
    used = set()
    for name, module in plain.named_modules():
        if variant == "parallel":
            if name.endswith(f".{block}") and not name.endswith("attention.output"):
                used.add(name)
                if kind == "bert":
                    module.register_forward_pre_hook(
                        lambda m, a, name=name: (a[0], a[1] + 0.5 * network(weights, name, a[1])))
                else:
                    module.register_forward_hook(lambda m, a, y, name=name: y + 0.5 * network(weights, name, a[0]))
        elif name.endswith(f".{last}" if variant == "pfeiffer" else (f".{attention}", f".{last}")) and not (
                variant == "pfeiffer" and "attention" in name):
            used.add(name)
            module.register_forward_hook(lambda m, a, y, name=name: y + 0.5 * network(weights, name, y))
    assert {name.split(".bottleneck")[0] for name in weights if "bottleneck" in name} == used
    assert len(used) == (4 if variant == "houlsby" else 2)
    torch.testing.assert_close(logits(tuned), logits(plain), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "variant"), PAIRS)
def test_it_is_what_peft_switches_off_takes_out_saves_and_loads(kind: str, variant: str, tmp_path: Path) -> None:
    untouched = logits(base(kind))
    tuned = adapted(kind, variant)
    found = logits(tuned)
    assert not torch.allclose(found, untouched, atol=1e-3)
    with tuned.disable_adapter():
        assert torch.equal(logits(tuned), untouched)
    tuned.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(base(kind), tmp_path)), found)
    if kind != "bert":
        ids = torch.arange(5, 12)[None]
        made = tuned.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, use_cache=True)
        assert made.shape[1] > 7
    plain = tuned.unload()
    assert torch.equal(logits(plain), untouched)
    assert not any("bottleneck" in name for name, _ in plain.named_modules())


@pytest.mark.parametrize(("first", "second"), [("houlsby", "pfeiffer"), ("parallel", "parallel")])
def test_two_adapters_on_one_model(first: str, second: str) -> None:
    tuned = adapted("llama", first)
    one = logits(tuned)
    tuned.add_adapter("other", BottleneckConfig(variant=second, reduction=4))
    assert torch.equal(logits(tuned), one)
    tuned.set_adapter("other")
    assert torch.allclose(logits(tuned), logits(base("llama")))
    tuned.set_adapter("default")
    tuned.delete_adapter("other")
    assert torch.equal(logits(tuned), one)


def test_adapters_beside_and_after_the_blocks_are_not_mixed() -> None:
    with pytest.raises(ValueError, match="cannot be on one model"):
        adapted("llama", "parallel").add_adapter("other", BottleneckConfig(variant="houlsby"))


def test_it_is_not_merged_by_mistake() -> None:
    with pytest.raises(NotImplementedError, match="not linear"):
        adapted("llama", "houlsby").merge_and_unload()


@pytest.mark.parametrize("first", ["finemesh", "peft"])
def test_importing_finemesh_is_all_that_loading_needs(first: str, tmp_path: Path) -> None:
    """In a process of its own, whichever is imported first; and also after somebody has looked whether there is a PEFT."""
    tiny.causal().save_pretrained(tmp_path / "model")
    tuned = adapted("llama", "parallel")
    tuned.save_pretrained(tmp_path / "adapter")
    script = f"""
import importlib.util, json, {first}
importlib.util.find_spec("peft")
import finemesh
from peft import PeftModel
from transformers import AutoModelForCausalLM
import torch
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / "model")!r})
tuned = PeftModel.from_pretrained(model, {str(tmp_path / "adapter")!r})
print(json.dumps(tuned(input_ids=torch.arange(5, 12)[None]).logits.tolist()))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    torch.testing.assert_close(torch.tensor(json.loads(ended.stdout)), logits(tuned), rtol=0, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["gemma", "gpt2", "bert"])
def test_float32_adapters_on_a_bfloat16_model_learn(kind: str, variant: str) -> None:
    task = "classify" if kind == "bert" else "instruct"
    model, context = tiny.case(kind, task)
    method = METHODS["bottleneck"]
    tuned = method.prepare(model.bfloat16(), {**method.reference, "variant": variant}, context)
    trained = {name: p for name, p in tuned.named_parameters() if p.requires_grad}
    assert {p.dtype for name, p in trained.items() if "bottleneck" in name} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        ids = torch.tensor([context.encoded[0].input_ids])
        tuned(input_ids=ids).logits.float().square().mean().backward()
    # as W_up is zero, W_down learns from the second step on
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.values())
    assert all(p.grad.abs().sum() > 0 for name, p in trained.items() if "up" in name)
    if task == "instruct":  # without autocast, too
        assert evaluate(tuned, context.encoded, task, 0).loss < 10


def test_an_architecture_without_known_blocks_is_unfit() -> None:
    model = MixtralForCausalLM(MixtralConfig(
        vocab_size=29, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=2)).eval()
    assert "MixtralForCausalLM are not known" in str(METHODS["bottleneck"].unfit(model, "instruct"))
    assert METHODS["bottleneck"].unfit(tiny.causal(), "instruct") is None
    with pytest.raises(ValueError, match="give target_modules"):
        get_peft_model(model, BottleneckConfig())


def test_a_reduction_that_leaves_nothing_is_refused() -> None:
    model, context = tiny.case("llama", "instruct")
    method = METHODS["bottleneck"]
    assert method.refuses(model, {**method.reference, "reduction": 32}, context) is None
    assert "width 32" in str(method.refuses(model, {**method.reference, "reduction": 33}, context))
