"""Tokens and masks, buckets, tensors."""

import random
from collections.abc import Callable
from itertools import islice

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from finemesh.errors import InputError
from finemesh.tuning.data.batches import (
    Encoded,
    bucketed,
    collate,
    encode,
    encode_all,
    prompt_ids,
    training_batches,
)
from finemesh.tuning.data.examples import Dialogue, Labelled, Turn

ONE = Dialogue((Turn("user", "Hello there"), Turn("assistant", "I am fine.")))
TWO = Dialogue((*ONE.turns, Turn("user", "What is 2 + 2?"), Turn("assistant", "It is 4.")))
AWKWARD = ["\n\n\nI am", "  fine", "assistant", "'s", " \n", "4.5", "é\u2028", "<|im_end|>x", "a" * 50]


def encoded(example: Dialogue | Labelled, tokenizer: PreTrainedTokenizerFast, max_length: int = 512,
            task: str = "instruct", **options: object) -> Encoded:
    row = encode(example, tokenizer, max_length, task, **options)
    assert row is not None
    return row


def scored_text(row: Encoded, tokenizer: PreTrainedTokenizerFast) -> str:
    return tokenizer.decode([i for i, scored in zip(row.input_ids, row.scored, strict=True) if scored])


def test_answers_are_scored_with_their_end_of_turn(chat_tokenizer: PreTrainedTokenizerFast,
                                                   plain_tokenizer: PreTrainedTokenizerFast) -> None:
    assert scored_text(encoded(ONE, chat_tokenizer), chat_tokenizer) == "I am fine.<|im_end|>"
    assert scored_text(encoded(TWO, chat_tokenizer), chat_tokenizer) == "I am fine.<|im_end|>It is 4.<|im_end|>"
    assert scored_text(encoded(ONE, plain_tokenizer), plain_tokenizer) == "I am fine.</s>"


def test_the_tokens_are_those_of_the_whole_text(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": turn.role, "content": turn.content} for turn in TWO.turns]
    whole = chat_tokenizer.apply_chat_template(messages, tokenize=False).rstrip()
    assert encoded(TWO, chat_tokenizer).input_ids == chat_tokenizer(whole, add_special_tokens=False)["input_ids"]


@pytest.fixture(params=["chat_tokenizer", "plain_tokenizer", "spaced_tokenizer", "bos_tokenizer"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("answer", AWKWARD)
def test_a_prompt_at_inference_is_exactly_what_comes_before_the_answer(
        tokenizer: PreTrainedTokenizerFast, answer: str) -> None:
    for turns in (ONE.turns, (ONE.turns[0], Turn("assistant", answer), *TWO.turns[2:])):
        example = Dialogue((*turns[:-1], Turn("assistant", answer)))
        row = encoded(example, tokenizer)
        prompt = prompt_ids(example, tokenizer)
        assert prompt == prompt_ids(Dialogue(turns[:-1]), tokenizer)
        assert row.input_ids[:len(prompt)] == prompt
        assert all(row.scored[len(prompt):])
        assert not row.scored[len(prompt) - 1]


def test_the_space_that_a_tokenizer_opens_texts_with_is_there_once(spaced_tokenizer: PreTrainedTokenizerFast) -> None:
    row = encoded(ONE, spaced_tokenizer)
    assert scored_text(row, spaced_tokenizer) == "I am fine.</s>"
    whole = "### Instruction:\nHello there\n\n### Response:\nI am fine.</s>"
    assert row.input_ids == spaced_tokenizer(whole, add_special_tokens=False)["input_ids"]


def test_a_token_across_the_border_is_cut_there(plain_tokenizer: PreTrainedTokenizerFast) -> None:
    opened = Dialogue((Turn("user", "Hello"), Turn("assistant", "\n\n\nBlue")))
    text = "### Instruction:\nHello\n\n### Response:\n\n\n\nBlue.</s>"
    together = plain_tokenizer(text, add_special_tokens=False)["input_ids"]
    row = encoded(opened, plain_tokenizer)
    prompt = prompt_ids(opened, plain_tokenizer)
    assert together[:len(prompt)] != prompt  # a token of two line ends straddles the border
    assert row.input_ids[:len(prompt)] == prompt
    assert scored_text(row, plain_tokenizer) == "\n\n\nBlue</s>"


def test_a_row_is_cut_at_its_end_and_gone_without_a_scored_token(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    whole, prompt = encoded(ONE, chat_tokenizer), prompt_ids(ONE, chat_tokenizer)
    for length in range(1, len(whole.input_ids) + 3):
        row = encode(ONE, chat_tokenizer, length, "instruct")
        if length <= len(prompt):
            assert row is None
        else:
            assert row == Encoded(whole.input_ids[:length], whole.scored[:length])
    assert prompt_ids(ONE, chat_tokenizer, 5) == prompt[-5:]
    assert prompt_ids(ONE, chat_tokenizer, 500) == prompt


def test_rows_without_a_scored_token_are_counted_and_an_error_only_when_none_remain(
        chat_tokenizer: PreTrainedTokenizerFast) -> None:
    long = Dialogue((Turn("user", "Hello " * 50), Turn("assistant", "I am")))
    kept, dropped = encode_all([long, ONE, long], chat_tokenizer, 40, "instruct")
    assert [example for example, _ in kept] == [ONE]
    assert dropped == 2
    with pytest.raises(InputError, match=r"data\.max_length: 40 tokens leave no row of the train split .* has \d\d+;"):
        encode_all([long], chat_tokenizer, 40, "instruct", name="train")
    with pytest.raises(InputError, match="every text is empty"):
        encode_all([Labelled("", None, 1.0)], chat_tokenizer, 40, "regress")


def test_the_first_token_is_never_a_target(templated: Callable[[str], PreTrainedTokenizerFast]) -> None:
    bare = templated("{% for m in messages if m['role'] == 'assistant' %}{{ m['content'] }}</s>{% endfor %}")
    assert encoded(ONE, bare).scored[:2] == [False, True]


def test_texts_get_the_tokenizer_s_special_tokens_and_types(encoder_tokenizer: PreTrainedTokenizerFast) -> None:
    row = encoded(Labelled("Hello", "fine", "no"), encoder_tokenizer, 64, "classify", labels=("no", "yes"))
    assert encoder_tokenizer.decode(row.input_ids) == "[CLS]Hello[SEP]fine[SEP]"
    first = row.input_ids.index(encoder_tokenizer.convert_tokens_to_ids("[SEP]")) + 1
    assert row.token_type_ids == [0] * first + [1] * (len(row.input_ids) - first)
    assert (row.label, any(row.scored), len(row.scored)) == (0, False, len(row.input_ids))
    assert encoded(Labelled("Hello", None, "yes"), encoder_tokenizer, 64, "classify", labels=("no", "yes")).label == 1
    assert encoded(Labelled("Hello", None, 2.5), encoder_tokenizer, 64, "regress").label == 2.5
    assert encoded(Labelled("Hello", None, None), encoder_tokenizer, 64, "classify", labels=("no", "yes")).label is None
    cut = encoded(Labelled("Hello there " * 9, "fine", "no"), encoder_tokenizer, 12, "classify", labels=("no",))
    assert len(cut.input_ids) == 12
    assert encoder_tokenizer.decode(cut.input_ids).endswith("[SEP]fine[SEP]")
    assert encode(Labelled("", None, "no"), encoder_tokenizer, 12, "classify", labels=("no",)) is None


def test_two_texts_do_not_run_into_each_other(plain_tokenizer: PreTrainedTokenizerFast,
                                              bos_tokenizer: PreTrainedTokenizerFast) -> None:
    pair = Labelled("Hello", "fine", 1.0)
    assert plain_tokenizer.decode(encoded(pair, plain_tokenizer, 64, "regress").input_ids) == "Hello\nfine"
    assert bos_tokenizer.decode(encoded(pair, bos_tokenizer, 64, "regress").input_ids) == "<s>Hello<s>fine"


LENGTHS = random.Random(7).choices(range(10, 250), k=1003)


@pytest.mark.parametrize(("rows", "batch_size"), [
    (1003, 8), (16, 8), (17, 8), (9, 8), (8, 8), (7, 8), (1, 8), (5, 1), (1003, 3)])
def test_an_epoch_has_every_row_once_in_batches_of_even_size(rows: int, batch_size: int) -> None:
    for epoch in range(3):
        batches = bucketed(LENGTHS[:rows], batch_size, seed=0, epoch=epoch)
        assert sorted(i for batch in batches for i in batch) == list(range(rows))
        sizes = {len(batch) for batch in batches}
        assert len(batches) == -(-rows // batch_size)
        assert 1 <= min(sizes) <= max(sizes) <= batch_size
        assert max(sizes) - min(sizes) <= 1


def test_buckets_pad_little_and_mix_rows_from_epoch_to_epoch() -> None:
    epochs = [bucketed(LENGTHS, 8, seed=0, epoch=epoch) for epoch in range(2)]
    for batches in epochs:
        padded = sum(len(batch) * max(LENGTHS[i] for i in batch) for batch in batches)
        assert 1 - sum(LENGTHS) / padded < 0.03
    mates = [{i: set(batch) - {i} for batch in batches for i in batch} for batches in epochs]
    assert sum(len(mates[0][i] & mates[1][i]) for i in mates[0]) < 0.3 * 7 * len(LENGTHS)
    first = [max(LENGTHS[i] for i in batch) for batch in bucketed(LENGTHS[:100], 8, seed=0, epoch=0)]
    assert first not in (sorted(first), sorted(first)[::-1])


def test_batches_depend_on_seed_and_epoch_alone() -> None:
    assert bucketed(LENGTHS, 8, 3, 1) == bucketed(list(LENGTHS), 8, 3, 1)
    assert bucketed(LENGTHS, 8, 3, 1) != bucketed(LENGTHS, 8, 4, 1)
    assert bucketed(LENGTHS, 8, 3, 1) != bucketed(LENGTHS, 8, 3, 2)


@pytest.mark.parametrize("rows", [1003, 17, 3])
def test_training_batches_go_on_from_any_step(rows: int) -> None:
    lengths = LENGTHS[:rows]
    steps = list(islice(training_batches(lengths, 8, seed=1), 300))
    per_epoch = -(-rows // 8)
    assert steps[:per_epoch] == bucketed(lengths, 8, 1, 0)
    assert steps[per_epoch:2 * per_epoch] == bucketed(lengths, 8, 1, 1)
    for start in (0, 1, per_epoch - 1, per_epoch, 2 * per_epoch + 1):
        assert list(islice(training_batches(lengths, 8, seed=1, start=start), 20)) == steps[start:start + 20]


def test_collate() -> None:
    batch = collate([Encoded([5, 6, 7], [False, True, True]), Encoded([8], [False])], pad_id=9)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch.lengths.tolist() == [3, 1]
    assert batch.scored.tolist() == [[False, True, True], [False, False, False]]
    assert (batch.input_ids.dtype, batch.scored.dtype, batch.lengths.dtype) == (torch.int64, torch.bool, torch.int64)
    assert batch.labels is None
    assert batch.token_type_ids is None


@pytest.mark.parametrize(("labels", "dtype"), [([0, 2], torch.int64), ([0.5, 2.0], torch.float32)])
def test_collate_of_labels_and_types(labels: list[float], dtype: torch.dtype) -> None:
    rows = [Encoded([5, 6], [False] * 2, labels[0], [0, 1]), Encoded([5], [False], labels[1], [1])]
    batch = collate(rows, pad_id=0).to("cpu")
    assert batch.labels is not None
    assert batch.token_type_ids is not None
    assert batch.labels.dtype == dtype
    assert batch.labels.tolist() == labels
    assert batch.token_type_ids.tolist() == [[0, 1], [1, 0]]
    assert collate([rows[0], Encoded([5], [False])], pad_id=0).labels is None
