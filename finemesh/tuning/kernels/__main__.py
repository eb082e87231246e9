"""Compile every kernel now (`python -m finemesh.tuning.kernels`), so that no trial waits for it: a step of a tiny model."""

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from finemesh.tuning.data.batches import Batch
from finemesh.tuning.kernels.compiled import thread_safe
from finemesh.tuning.kernels.decoder import scored_losses
from finemesh.tuning.kernels.head import cross_entropy
from finemesh.tuning.kernels.int8 import in_int8
from finemesh.tuning.kernels.sampled import Entries, Tokens

IDS = torch.tensor([[1, 2, 3, 4], [1, 2, 5, 0]])
BATCH = Batch(IDS, torch.tensor([4, 3]), IDS > 1)


def main() -> None:
    config = LlamaConfig(vocab_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
                         num_key_value_heads=2)
    model: Any = LlamaForCausalLM(config)
    thread_safe()
    full, half = torch.float32, torch.bfloat16
    for weights, computing in ((full, full), (half, half), (full, half)):
        for int8 in (False, True):
            model.model.layers.requires_grad_(not int8)
            with torch.autocast("cpu", half, enabled=computing == half), in_int8(int8):
                losses = scored_losses(model.to(weights), BATCH)
            assert losses is not None
            losses.sum().backward()
        states = torch.randn(4, 16, dtype=computing, requires_grad=True)
        head, targets = torch.randn(8, 16, dtype=computing), torch.arange(4)
        cross_entropy(states, head, targets).sum().backward()
        with torch.no_grad():
            cross_entropy(states, head, targets)
        tokens = Tokens(states.detach())
        Entries(torch.tensor([3], dtype=torch.int32), (16, 16)).gradient(tokens, tokens)


if __name__ == "__main__":
    main()
