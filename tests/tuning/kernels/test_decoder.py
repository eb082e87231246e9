"""The fast way gives what transformers and PEFT give: losses and every gradient, for each family and method."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import MistralConfig, MistralForCausalLM

from finemesh.tuning.data.batches import Batch, collate
from finemesh.tuning.features import Probe
from finemesh.tuning.kernels import attention, scored_losses, scored_states
from finemesh.tuning.kernels.decoder import way_through
from finemesh.tuning.kernels.head import cross_entropy
from finemesh.tuning.methods import METHODS
from tests import tiny

Gradients = dict[str, torch.Tensor]


def prepared(kind: str, method: str, **changes: Any) -> tuple[nn.Module, Batch]:
    """A tuned model with nothing left at zero, and eight rows of different lengths with a common start."""
    model, context = tiny.case(kind, "instruct")
    point = {**METHODS[method].reference, **changes}
    torch.manual_seed(1)
    tuned: Any = METHODS[method].prepare(model, point, context).train()
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    rows = METHODS[method].shape(tuned, context.train, context.encoded, point, context, training=True)
    return tuned.model if isinstance(tuned, Probe) else tuned, collate(list(rows[:8]), 0)


def stock_losses(tuned: Any, batch: Batch) -> torch.Tensor:
    """By the model's own forward, from all its logits."""
    logits = tuned(input_ids=batch.input_ids, use_cache=False).logits  # (batch, virtual + time, vocab)
    logits = logits[:, -batch.input_ids.size(1):][:, :-1]
    return F.cross_entropy(logits[batch.scored[:, 1:]], batch.input_ids[batch.scored], reduction="none")


def gradients(tuned: nn.Module, losses: Callable[[], torch.Tensor | None]) -> tuple[torch.Tensor, Gradients]:
    """Of the losses weighted unevenly, as accumulation and other objectives weight them."""
    tuned.zero_grad()
    found = losses()
    assert found is not None
    (found * torch.linspace(0.5, 1.5, len(found))).sum().backward()
    named = {name: p.grad.clone() for name, p in tuned.named_parameters() if p.requires_grad and p.grad is not None}
    return found.detach(), named


def assert_same(tuned: nn.Module, batch: Batch, tolerance: float = 1e-5) -> None:
    expected, expected_gradients = gradients(tuned, lambda: stock_losses(tuned, batch))
    found, found_gradients = gradients(tuned, lambda: scored_losses(tuned, batch))
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert set(found_gradients) == {name for name, p in tuned.named_parameters() if p.requires_grad}
    for name, gradient in expected_gradients.items():
        error = (found_gradients[name] - gradient).norm() / gradient.norm()
        assert error < tolerance, f"{name}: {error}"


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("method", ["lora", "full", "head", "prompt", "prefix", "p_tuning", "p_tuning_v2"])
def test_losses_and_gradients_are_the_model_s_own(kind: str, method: str) -> None:
    assert_same(*prepared(kind, method))


@pytest.mark.parametrize("placement", ["before", "after"])
@pytest.mark.parametrize("encoder", ["lstm", "mlp"])
def test_pseudo_tokens_elsewhere_and_from_other_encoders(placement: str, encoder: str) -> None:
    tuned, batch = prepared("llama", "p_tuning", placement=placement, encoder=encoder)
    assert way_through(tuned, batch.input_ids.size(1)) is not None
    assert_same(tuned, batch)


@pytest.mark.parametrize("init", ["text", "random"])
@pytest.mark.parametrize("reparameterization", ["mlp", "none"])
def test_other_kinds_of_prefix(reparameterization: str, init: str) -> None:
    tuned, batch = prepared("qwen2", "prefix", reparameterization=reparameterization, init=init)
    assert_same(tuned, batch)


def test_a_prefix_before_blocks_of_queries_and_a_loaded_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tuned, batch = prepared("llama", "prefix")
    METHODS["prefix"].save(tuned, tmp_path, "base")
    loaded = METHODS["prefix"].load(tiny.causal(), tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(scored_losses(loaded, batch), stock_losses(tuned, batch))
    monkeypatch.setattr(attention, "BLOCK", 3)
    assert_same(tuned, batch)
    monkeypatch.setattr(attention, "KEPT", 1)
    assert_same(tuned, batch)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("variant", ["houlsby", "pfeiffer", "parallel"])
def test_bottleneck_adapters_wherever_they_are(kind: str, variant: str) -> None:
    tuned: Any
    tuned, batch = prepared(kind, "bottleneck", variant=variant, scale=0.7)
    assert_same(tuned, batch)
    adapted = scored_losses(tuned, batch)
    assert adapted is not None
    with tuned.disable_adapter(), torch.no_grad():
        off = scored_losses(tuned, batch)
        torch.testing.assert_close(off, stock_losses(tuned, batch))
    assert not torch.allclose(off, adapted)


@pytest.mark.parametrize("changes", [{"layers": "attention"}, {"rank": 3, "alpha_over_rank": 0.5}])
def test_lora_in_other_shapes(changes: dict[str, Any]) -> None:
    assert_same(*prepared("llama", "lora", **changes))


def test_a_row_alone_and_rows_without_a_common_start() -> None:
    tuned, batch = prepared("llama", "lora")
    assert_same(tuned, Batch(batch.input_ids[:1, :batch.lengths[0]], batch.lengths[:1], batch.scored[:1, :batch.lengths[0]]))
    ids = batch.input_ids.clone()
    ids[:, 0] = torch.arange(8) + 5
    assert_same(tuned, Batch(ids, batch.lengths, batch.scored))


def test_scored_tokens_within_the_common_start() -> None:
    tuned, batch = prepared("llama", "lora")
    scored = batch.scored.clone()
    scored[:, 1] = True
    assert_same(tuned, Batch(batch.input_ids, batch.lengths, scored))


@pytest.mark.parametrize("method", ["lora", "prompt"])
def test_nothing_from_the_last_scored_token_on_is_looked_at(method: str) -> None:
    tuned, batch = prepared("llama", method)
    expected = stock_losses(tuned, batch)
    positions = torch.arange(batch.scored.size(1))
    last = (batch.scored * positions).amax(1)
    beyond = torch.where(positions >= last[:, None], 10 ** 6, batch.input_ids)  # no token: an embedding would not be found
    with pytest.raises(IndexError):
        stock_losses(tuned, replace(batch, input_ids=beyond))
    found = scored_states(tuned, replace(batch, input_ids=beyond))
    assert found is not None
    head = tuned.get_base_model().get_output_embeddings()
    losses = cross_entropy(found, head.weight, batch.input_ids[batch.scored])
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "computed again"])
def test_rows_longer_than_a_block_of_queries(monkeypatch: pytest.MonkeyPatch, kept: bool) -> None:
    monkeypatch.setattr(attention, "BLOCK", 3)
    monkeypatch.setattr(attention, "KEPT", 1000 if kept else 1)
    assert_same(*prepared("llama", "lora"))


def test_mistral_and_its_window() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 29, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    model = MistralForCausalLM(MistralConfig(**sizes, sliding_window=64)).requires_grad_(False)
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    _, batch = prepared("llama", "lora")
    assert_same(tuned, batch)
    assert way_through(tuned, 65) is None


def test_dropout_is_drawn_for_every_row_alone() -> None:
    """In the mean over draws, losses are those without dropout to first order; two draws differ; the start is not shared."""
    tuned, batch = prepared("llama", "lora", dropout=0.2)
    torch.manual_seed(3)
    first, _ = gradients(tuned, lambda: scored_losses(tuned, batch))
    torch.manual_seed(3)
    again, found = gradients(tuned, lambda: scored_losses(tuned, batch))
    other, _ = gradients(tuned, lambda: scored_losses(tuned, batch))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert all(gradient.abs().sum() > 0 for gradient in found.values())
    assert_same(tuned.eval(), batch)


def test_a_module_of_another_kind_is_called() -> None:
    class Doubled(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = 2 * self.inner(x)
            return y

    tuned, batch = prepared("llama", "lora")
    layer: Any = tuned.get_submodule("base_model.model.model.layers.1")
    layer.self_attn.o_proj = Doubled(layer.self_attn.o_proj)
    layer.mlp.up_proj = Doubled(layer.mlp.up_proj)
    assert_same(tuned, batch)


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
@pytest.mark.parametrize("configuration", [
    LoraConfig(r=4, target_modules="all-linear", use_dora=True, init_lora_weights=False),
    LoraConfig(r=4, target_modules="all-linear", use_rslora=True, init_lora_weights=False),
    LoraConfig(r=4, target_modules="all-linear", lora_bias=True, init_lora_weights=False),
], ids=["dora", "rslora", "biases"])
def test_other_kinds_of_lora(configuration: LoraConfig) -> None:
    _, batch = prepared("llama", "lora")
    assert_same(get_peft_model(tiny.causal(), configuration), batch)


def test_adapters_switched_off_and_merged() -> None:
    tuned: Any
    tuned, batch = prepared("llama", "lora")
    with tuned.disable_adapter(), torch.no_grad():
        torch.testing.assert_close(scored_losses(tuned, batch), stock_losses(tuned, batch))
    tuned.merge_adapter()
    with torch.no_grad():
        torch.testing.assert_close(scored_losses(tuned, batch), stock_losses(tuned, batch))


@pytest.mark.parametrize("kind", ["gpt2", "gemma"])
def test_other_architectures_compute_their_own_losses(kind: str) -> None:
    _, batch = prepared("llama", "lora")
    assert scored_losses(tiny.causal(kind), batch) is None


def test_a_model_that_is_not_as_it_was_built_computes_its_own_losses() -> None:
    model: Any = tiny.causal()
    assert way_through(model, 32) is not None
    handle = model.model.layers[0].register_forward_hook(lambda *arguments: None)
    assert way_through(model, 32) is None
    handle.remove()
    model.activation_checkpointing_enable()
    assert way_through(model, 32) is None
    assert way_through(tiny.causal(attention_dropout=0.1), 32) is None
    assert way_through(tiny.causal(hidden_act="gelu"), 32) is None


def test_nothing_is_left_on_the_model() -> None:
    tuned, batch = prepared("llama", "lora")
    before = {name: tensor.clone() for name, tensor in tuned.state_dict().items()}
    gradients(tuned, lambda: scored_losses(tuned, batch))
    after = tuned.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(("method", "changes", "rate"), [
    ("lora", {}, 1e-3), ("full", {}, 3e-3), ("bottleneck", {}, 1e-2), ("bottleneck", {"variant": "parallel"}, 1e-2),
    ("p_tuning", {}, 1e-2), ("prefix", {}, 1e-2)])
def test_in_bfloat16_twenty_steps_follow_those_in_float32(method: str, changes: dict[str, Any], rate: float) -> None:
    curves = []
    for half in (False, True):
        tuned, batch = prepared("llama", method, **changes)
        if half:
            for parameter in tuned.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.bfloat16()
        optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=rate)
        curve = []
        for _ in range(20):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                losses = scored_losses(tuned, batch)
            assert losses is not None
            assert losses.dtype == torch.float32
            losses.mean().backward()
            optimizer.step()
            curve.append(float(losses.detach().mean()))
        curves.append(curve)
    assert curves[0][-1] < 0.97 * curves[0][0]
    assert curves[1] == pytest.approx(curves[0], rel=0.005)
