"""Answers to prompts, greedy, by transformers' generate."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from finemesh.tuning.data.batches import prompt_ids
from finemesh.tuning.data.examples import Dialogue

MOST_NEW_TOKENS = 128


@torch.no_grad()
def answers(model: Any, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Dialogue], max_length: int,
            most_new_tokens: int = MOST_NEW_TOKENS) -> list[str]:
    """One answer an example, from exactly the tokens that come before it in training."""
    model.eval()
    texts = []
    for example in examples:
        ids = torch.tensor([prompt_ids(example, tokenizer, max_length)], device=next(model.parameters()).device)
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=most_new_tokens,
                                do_sample=False, use_cache=True, pad_token_id=tokenizer.pad_token_id,
                                eos_token_id=tokenizer.eos_token_id)
        new = output[0, ids.size(1):] if output.size(1) > ids.size(1) else output[0]
        texts.append(str(tokenizer.decode(new, skip_special_tokens=True)).strip())
    return texts
