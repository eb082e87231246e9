"""Where an answer ends: at the tokenizer's end token, the model's, and the one that the chat template writes after a turn."""

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM, PreTrainedTokenizerFast

from finemesh.tuning.data.batches import Encoded
from finemesh.tuning.evaluation.generation import answers, ends
from finemesh.tuning.methods import METHODS
from tests import tiny


def turned() -> PreTrainedTokenizerFast:
    """A tokenizer whose template ends a turn with another token than a text ends with."""
    words = tiny.tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<user>", "<assistant>", "<unk>"]})
    words.chat_template = tiny.TEMPLATE.replace("</s>", "<unk>")
    return words


@pytest.mark.parametrize(("known", "expected"), [(None, [1, 2]), (5, [1, 2, 5]), ([5, 6], [1, 2, 5, 6])])
def test_tokens_that_end_an_answer(known, expected):
    model, words = tiny.causal(), turned()
    model.generation_config.eos_token_id = known
    assert ends(model, words) == expected


def test_a_word_of_the_template_ends_nothing():
    words = tiny.tokenizer()
    words.chat_template = tiny.TEMPLATE.replace("</s>", "w3")
    model = tiny.causal()
    model.generation_config.eos_token_id = None
    assert ends(model, words) == [1]


def test_answers_are_asked_to_end_there(monkeypatch):
    model, words = tiny.causal(), turned()
    asked = {}
    monkeypatch.setattr(model, "generate", lambda **arguments: asked.update(arguments) or arguments["input_ids"])
    answers(model, words, [Encoded([3, 5, 2, 4], [False] * 4)])
    assert asked["eos_token_id"] == ends(model, words) == [1, 2]


def test_a_model_without_keys_and_values_answers_after_its_vectors_too():
    """Mamba: word by word as it does when it reads all anew for each."""
    _, context = tiny.case("llama", "instruct")
    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(vocab_size=tiny.VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4))
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data.add_(0.15 * torch.randn_like(weight))
    tuned = METHODS["prompt"].prepare(model.requires_grad_(False), METHODS["prompt"].reference | {"length": 6}, context).eval()
    question = Encoded([3, 5, 6, 4], [False] * 4)
    told = list(question.input_ids)
    for _ in range(6):
        told.append(int(tuned(input_ids=torch.tensor([told])).logits[0, -1].argmax()))
    assert len(set(told[4:])) > 1
    assert answers(tuned, context.tokenizer, [question], 6) == [context.tokenizer.decode(told[4:], skip_special_tokens=True)]
