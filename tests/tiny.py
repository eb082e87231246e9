"""Tiny models of each architecture, a tiny tokenizer and a learnable toy task, for the contract tests."""

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GemmaConfig,
    GemmaForCausalLM,
    GemmaForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from finemesh.tuning.data.batches import encode
from finemesh.tuning.data.examples import Dialogue, Labelled, Turn
from finemesh.tuning.methods import Context
from finemesh.tuning.models import context_length

WORDS = [f"w{i}" for i in range(24)]
SPECIAL = ["<pad>", "</s>", "<unk>", "<user>", "<assistant>"]
TEMPLATE = ("{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} </s> {% endfor %}"
            "{% if add_generation_prompt %}<assistant> {% endif %}")
LABELS = ("no", "yes")


def tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(SPECIAL + WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    built = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
                                    additional_special_tokens=["<user>", "<assistant>"])
    if chat:
        built.chat_template = TEMPLATE
    return built


VOCABULARY = len(SPECIAL) + len(WORDS)
_SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
DECODERS = {  # configuration, language model, classifier
    "llama": (LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification),
    "gemma": (GemmaConfig, GemmaForCausalLM, GemmaForSequenceClassification),
}


def _extra(kind: str) -> dict[str, int]:
    return {"head_dim": 8} if kind == "gemma" else {}


def causal(kind: str = "llama", **changes: object) -> PreTrainedModel:
    torch.manual_seed(0)
    if kind == "gpt2":
        model: PreTrainedModel = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4,
                                                            n_positions=128, bos_token_id=1, eos_token_id=1))
    else:
        config, build, _ = DECODERS[kind]
        model = build(config(**_SIZES, tie_word_embeddings=True, bos_token_id=1, eos_token_id=1, pad_token_id=0,
                             **_extra(kind), **changes))
    return _frozen(model)


def classifier(kind: str = "bert", labels: int = 2) -> PreTrainedModel:
    torch.manual_seed(0)
    if kind == "gpt2":
        model: PreTrainedModel = GPT2ForSequenceClassification(GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, num_labels=labels, pad_token_id=0))
    elif kind == "distilbert":
        model = DistilBertForSequenceClassification(DistilBertConfig(
            vocab_size=VOCABULARY, dim=32, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=128,
            num_labels=labels, pad_token_id=0))
    elif kind in DECODERS:
        config, _, build = DECODERS[kind]
        model = build(config(**_SIZES, **_extra(kind), num_labels=labels, pad_token_id=0))
    else:
        config, build = {"bert": (BertConfig, BertForSequenceClassification),
                         "roberta": (RobertaConfig, RobertaForSequenceClassification)}[kind]
        sizes = {k: v for k, v in _SIZES.items() if k != "num_key_value_heads"}
        model = build(config(**sizes, num_labels=labels, pad_token_id=0))
    if labels == 1:
        model.config.problem_type = "regression"
    return _frozen(model)


def without_pooler() -> PreTrainedModel:
    """An encoder as it was pre-trained: a classifier made of it has a pooler drawn anew, beside its head."""
    torch.manual_seed(0)
    sizes = {k: v for k, v in _SIZES.items() if k != "num_key_value_heads"}
    return BertForMaskedLM(BertConfig(**sizes, pad_token_id=0))


def deberta() -> PreTrainedModel:
    """The same of DeBERTa's kind, whose pooler lies beside the encoder and not in it."""
    torch.manual_seed(0)
    sizes = {k: v for k, v in _SIZES.items() if k != "num_key_value_heads"}
    return DebertaV2ForMaskedLM(DebertaV2Config(**sizes, pad_token_id=0, pooler_hidden_size=32))


def _frozen(model: PreTrainedModel) -> PreTrainedModel:
    model.config.use_cache = False
    model.config.pad_token_id = 0
    return model.requires_grad_(False).eval()


def dialogues(count: int = 24) -> list[Dialogue]:
    """The answer repeats the question's first word twice, and prompts differ in length."""
    return [Dialogue((Turn("user", " ".join([WORDS[i % 8], *(WORDS[8 + (i * 7 + j) % 16] for j in range(i % 5))])),
                      Turn("assistant", f"{WORDS[i % 8]} {WORDS[i % 8]}"))) for i in range(count)]


def labelled(count: int = 24) -> list[Labelled]:
    """Label yes where the first word is one of the first three."""
    return [Labelled(" ".join([WORDS[i % 8], *(WORDS[8 + (i * 5 + j) % 16] for j in range(i % 4))]), None,
                     LABELS[int(i % 8 < 3)]) for i in range(count)]


def measured(count: int = 24) -> list[Labelled]:
    return [Labelled(" ".join([WORDS[i % 8], *(WORDS[8 + (i * 5 + j) % 16] for j in range(i % 4))]), None,
                     float(i % 8 < 4)) for i in range(count)]


def case(kind: str, task: str) -> tuple[PreTrainedModel, Context]:
    """A model with what a method's context needs."""
    words = tokenizer()
    examples: Sequence[Dialogue | Labelled]
    if task == "instruct":
        model, examples = causal(kind), dialogues()
    else:
        model, examples = classifier(kind, 2 if task == "classify" else 1), labelled() if task == "classify" else measured()
    rows = [encode(e, words, 64, task, labels=LABELS if task == "classify" else ()) for e in examples]
    assert all(row is not None for row in rows)
    longest = max(len(row.input_ids) for row in rows)
    return model, Context(task, words, examples, rows, 64, context_length(model.config), 0, longest)
