"""Soft prompts where models differ in what they call their sizes, or have none; and where there is no place for them."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    ElectraConfig,
    MambaConfig,
    OPTConfig,
    T5Config,
    T5ForSequenceClassification,
)

from finemesh.tuning.data.batches import collate
from finemesh.tuning.evaluation.loss import batch_losses
from finemesh.tuning.methods import METHODS
from tests import tiny

SIZES = {"vocab_size": tiny.VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}
HEADS = {"num_attention_heads": 4, "max_position_embeddings": 128}
ODD = {  # the first two have an embedding that is narrower than the layers, the last no heads
    "electra": ("classify", ElectraConfig(**SIZES, **HEADS, intermediate_size=48, embedding_size=16)),
    "opt": ("instruct", OPTConfig(**SIZES, **HEADS, ffn_dim=48, word_embed_proj_dim=16, do_layer_norm_before=False)),
    "mamba": ("instruct", MambaConfig(**SIZES, state_size=4)),
}


@pytest.mark.parametrize(("kind", "name"), [
    (kind, name) for kind, (task, _) in ODD.items() for name in ("prompt", "p_tuning", "instruction_prompt")
    if task in METHODS[name].tasks])
def test_vectors_are_as_wide_as_the_embedding(name: str, kind: str) -> None:
    task, config = ODD[kind]
    auto = AutoModelForCausalLM if task == "instruct" else AutoModelForSequenceClassification
    method = METHODS[name]
    _, context = tiny.case("bert" if task == "classify" else "gpt2", task)
    torch.manual_seed(0)
    model = auto.from_config(config).requires_grad_(False)
    point = {**method.reference, "length": 6, **({"k": 1} if "k" in method.space else {})}
    tuned = method.prepare(model, point, context)
    rows = method.shape(tuned, context.train, context.encoded, point, context, training=True)
    batch_losses(tuned, collate(rows[:4], 0), task).losses.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in tuned.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", ["prefix", "prompt", "p_tuning", "p_tuning_v2"])
def test_an_encoder_with_a_decoder_takes_no_vectors(name: str) -> None:
    with torch.device("meta"):
        model = T5ForSequenceClassification(T5Config(vocab_size=29, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    assert "by an encoder and a decoder" in str(METHODS[name].unfit(model, "classify"))
    assert METHODS["lora"].unfit(model, "classify") is None
