"""Tiny tokenizers, made here: byte-level BPE with a chat template or without, and one that opens texts with a space."""

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LINES = ["Hello there, how are you?", "I am fine. The sky is blue.", "system user assistant model\n",
         "What is 2 + 2? It is 4.", "### Instruction:\nName a colour.\n\n### Response:\nBlue.\n\n",
         "answer question yes no red green 0 1", "four\n\n\n\nlines"] * 3
SPECIAL = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "[CLS]", "[SEP]"]
CHATML = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(LINES, trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False))
    return tokenizer


def _opening_with_a_space() -> Tokenizer:
    """As Llama 2's: a space is part of a word, and a text begins with one that nobody wrote."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(LINES, trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, show_progress=False))
    return tokenizer


def _wrapped(tokenizer: Tokenizer, template: str | None = None, **special: Any) -> PreTrainedTokenizerFast:
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"} | special
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    made.chat_template = template
    return made


@pytest.fixture(scope="session")
def plain_tokenizer() -> PreTrainedTokenizerFast:
    return _wrapped(_byte_level())


@pytest.fixture(scope="session")
def chat_tokenizer() -> PreTrainedTokenizerFast:
    return _wrapped(_byte_level(), CHATML, eos_token="<|im_end|>")


@pytest.fixture(scope="session")
def templated() -> Callable[[str], PreTrainedTokenizerFast]:
    """A tokenizer with the chat template given."""
    return lambda template: _wrapped(_byte_level(), template)


@pytest.fixture(scope="session")
def spaced_tokenizer() -> PreTrainedTokenizerFast:
    return _wrapped(_opening_with_a_space())


@pytest.fixture(scope="session")
def bos_tokenizer() -> PreTrainedTokenizerFast:
    """One that puts <s> before every text by itself."""
    tokenizer = _byte_level()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    return _wrapped(tokenizer)


@pytest.fixture(scope="session")
def encoder_tokenizer() -> PreTrainedTokenizerFast:
    """As BERT's: [CLS] a [SEP] b [SEP], with token types."""
    tokenizer = _byte_level()
    ids = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids)
    return _wrapped(tokenizer, model_input_names=["input_ids", "token_type_ids", "attention_mask"])
