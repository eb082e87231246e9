"""Where an answer ends: at the tokenizer's end token, the model's, and the one that the chat template writes after a turn."""

import pytest
from transformers import PreTrainedTokenizerFast

from finemesh.tuning.data.batches import Encoded
from finemesh.tuning.evaluation.generation import answers, ends
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
