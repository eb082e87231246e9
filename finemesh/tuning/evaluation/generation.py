"""Answers to prompts, greedy, by transformers' generate."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from finemesh.tuning.data.batches import Encoded, token_ids
from finemesh.tuning.data.examples import Dialogue, Turn
from finemesh.tuning.data.templates import pieces
from finemesh.tuning.models import context_length

MOST_NEW_TOKENS = 128


@torch.no_grad()
def answers(model: Any, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Encoded],
            most_new_tokens: int = MOST_NEW_TOKENS) -> list[str]:
    """One answer a question, which is shown as its tokens stand: as the method shapes it."""
    model.eval()
    vectors = getattr(getattr(model, "active_peft_config", None), "num_virtual_tokens", 0)  # beside the tokens
    # PEFT takes a model without keys and values (Mamba) for one that has read nothing yet: vectors again before each token
    cached = not vectors or "past_key_values" in inspect.signature(type(model.get_base_model()).forward).parameters
    texts, stops = [], ends(model, tokenizer)
    for question in questions:
        ids = torch.tensor([question.input_ids], device=next(model.parameters()).device)
        room = context_length(model.config) - vectors - ids.size(1)
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids),
                                max_new_tokens=max(1, min(most_new_tokens, room)), do_sample=False, use_cache=cached,
                                repetition_penalty=1.0,  # whatever the model's own settings say: greedy, and nothing else
                                pad_token_id=tokenizer.pad_token_id, eos_token_id=stops)
        new = output[0, ids.size(1):] if output.size(1) > ids.size(1) else output[0]
        texts.append(str(tokenizer.decode(new, skip_special_tokens=True)).strip())
    return texts


def ends(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer: the tokenizer's, the model's, and what the chat template writes after one, which training
    scores and which often is neither (<end_of_turn>, <|im_end|>)."""
    generation = getattr(model, "generation_config", None)
    known = getattr(generation, "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(known if isinstance(known, list) else [known])}
    answer, _ = pieces(Dialogue((Turn("user", "?"), Turn("assistant", "!"))), tokenizer)[-1]
    last = token_ids(answer, tokenizer)[-1]
    return sorted((found | ({last} & set(tokenizer.added_tokens_decoder))) - {None})
