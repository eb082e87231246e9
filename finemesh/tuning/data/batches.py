"""Examples become token rows, rows length-bucketed batches, batches tensors. Which tokens are scored is fixed here.

A row is cut at its end (the field's way), never at its start: the prompt stays what inference shows.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from finemesh.errors import FieldError, InputError
from finemesh.tuning.data.examples import Dialogue, Example, Labelled
from finemesh.tuning.data.formats import Task
from finemesh.tuning.data.templates import pieces

if TYPE_CHECKING:
    import torch

POOL = 100  # batches: 1 % padding on Alpaca rows, and four of five batch mates are new in every epoch


@dataclass(frozen=True)
class Encoded:
    """`scored[t]`: token t is a target, predicted from those before it, never t = 0. `label`: class index or number."""

    input_ids: list[int]
    scored: list[bool]
    label: int | float | None = None
    token_type_ids: list[int] | None = None


def encode(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int, task: Task, *,
           labels: Sequence[str] = ()) -> Encoded | None:
    """At most `max_length` tokens; None when none of them is scored (for classify and regress: when there is none).

    `labels` are the classes in the order of their indices; a Labelled example without a label gets None.
    """
    if isinstance(example, Labelled):
        return _encode_text(example, tokenizer, max_length, task, labels)
    ids, scored = _tokens(pieces(example, tokenizer), tokenizer)
    scored[:1] = [False] * len(scored[:1])
    row = Encoded(ids[:max_length], scored[:max_length])
    return row if any(row.scored) else None


def encode_all(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int, task: Task, *,
               labels: Sequence[str] = (), name: str = "train") -> tuple[list[tuple[Example, Encoded]], int]:
    """The examples that have a scored token, with it, and the number of those that have none. InputError if all do."""
    rows = [(example, encode(example, tokenizer, max_length, task, labels=labels)) for example in examples]
    kept = [(example, row) for example, row in rows if row is not None]
    if not kept:
        prompts = [len(prompt_ids(example, tokenizer)) for example in examples if isinstance(example, Dialogue)]
        if not prompts:
            raise InputError(f"no row of the {name} split is left with a token: every text is empty")
        raise FieldError(f"{max_length} tokens leave no row of the {name} split with a scored one: the shortest prompt alone "
                         f"has {min(prompts)}; give a larger number", "data", "max_length")
    return kept, len(rows) - len(kept)


def prompt_ids(example: Dialogue, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None) -> list[int]:
    """Exactly the tokens that come before the last answer in training; of a prompt that is too long, the last ones."""
    ids, _ = _tokens(pieces(example, tokenizer)[:-1], tokenizer)
    return ids if max_length is None else ids[-max_length:]


def question(example: Dialogue, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
    """The row that an answer is asked of: nothing of it is scored."""
    ids = prompt_ids(example, tokenizer, max_length)
    return Encoded(ids, [False] * len(ids))


def _tokens(parts: Sequence[tuple[str, bool]], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool]]:
    """Each piece extends the tokens before it without changing them: so what a prompt is does not depend on its answer.

    Where the tokens of the longer text begin with those before, they are taken (some tokenizers open a text with a
    space of their own); where a token would straddle the border, the piece is tokenized alone.
    """
    ids: list[int] = []
    scored: list[bool] = []
    text = ""
    for part, is_scored in parts:
        text += part
        longer = token_ids(text, tokenizer)
        if longer[:len(ids)] != ids:
            longer = ids + token_ids(part, tokenizer)
        scored += [is_scored] * (len(longer) - len(ids))
        ids = longer
    return ids, scored


def token_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def between(tokenizer: PreTrainedTokenizerBase) -> str:
    """What stands before a second text beside what the tokenizer itself writes there."""
    return "\n" if tokenizer.num_special_tokens_to_add(pair=True) == tokenizer.num_special_tokens_to_add() else ""


def _encode_text(example: Labelled, tokenizer: PreTrainedTokenizerBase, max_length: int, task: Task,
                 labels: Sequence[str]) -> Encoded | None:
    """With the tokenizer's own special tokens; a line end between two texts where it has none for pairs."""
    second = None if example.text2 is None else between(tokenizer) + example.text2
    made = tokenizer(example.text, second, truncation=True, max_length=max_length)
    ids = list(made["input_ids"])
    if len(ids) <= tokenizer.num_special_tokens_to_add(pair=second is not None):
        return None
    types = list(made["token_type_ids"]) if "token_type_ids" in made else None
    row = Encoded(ids, [False] * len(ids), None, types)
    if example.label is None:
        return row
    return replace(row, label=labels.index(str(example.label)) if task == "classify" else float(example.label))


def scored_tokens(rows: Sequence[Encoded]) -> list[int]:
    """The vocabulary of what is scored, ascending."""
    return sorted({token for row in rows for token, scored in zip(row.input_ids, row.scored, strict=True) if scored})


def scored_a_row(rows: Sequence[Encoded], task: Task) -> float:
    """How many losses a row has on average: its scored tokens, or one."""
    return sum(sum(row.scored) for row in rows) / len(rows) if task == "instruct" else 1.0


def bucketed(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """One epoch: every row once, in ceil(rows / batch_size) batches whose sizes differ by at most one, in random order.

    Rows are shuffled, cut into pools of POOL batches, and sorted by length within a pool: rows of a batch are alike in
    length, and whom a row meets there changes from epoch to epoch. Even sizes leave no runt that weighs like a batch.
    """
    generator = random.Random(f"{seed}/{epoch}")
    order = list(range(len(lengths)))
    generator.shuffle(order)
    count = -(-len(order) // batch_size)
    bounds = [round(i * len(order) / count) for i in range(count + 1)]
    batches: list[list[int]] = []
    pools = -(-count // POOL)
    for pool in range(pools):
        first, last = round(pool * count / pools), round((pool + 1) * count / pools)
        rows = sorted(order[bounds[first]:bounds[last]], key=lengths.__getitem__)
        base = bounds[first]
        batches += [rows[bounds[i] - base:bounds[i + 1] - base] for i in range(first, last)]
    generator.shuffle(batches)
    return batches


def training_batches(lengths: Sequence[int], batch_size: int, seed: int, start: int = 0) -> Iterator[list[int]]:
    """Batches of row indices without end, from step `start` on; every epoch has an order of its own."""
    epoch, offset = divmod(start, -(-len(lengths) // batch_size))
    while True:
        yield from bucketed(lengths, batch_size, seed, epoch)[offset:]
        epoch, offset = epoch + 1, 0


@dataclass(frozen=True)
class Batch:
    """Right-padded. `scored[b, t]`: token t is a target."""

    input_ids: "torch.Tensor"  # (batch, time) int64
    lengths: "torch.Tensor"  # (batch,) int64
    scored: "torch.Tensor"  # (batch, time) bool
    labels: "torch.Tensor | None" = None  # (batch,) int64 for classes, float32 for numbers
    token_type_ids: "torch.Tensor | None" = None  # (batch, time) int64

    def to(self, device: Any) -> "Batch":
        moved = {name: value.to(device, non_blocking=True) for name, value in vars(self).items() if value is not None}
        return replace(self, **moved)


def collate(rows: Sequence[Encoded], pad_id: int) -> Batch:
    import torch

    lengths = [len(row.input_ids) for row in rows]
    time = max(lengths)

    def padded(values: Sequence[Sequence[int]], pad: int | bool) -> "torch.Tensor":
        return torch.tensor([[*row, *[pad] * (time - len(row))] for row in values])

    labels = [row.label for row in rows if row.label is not None]
    types = [row.token_type_ids for row in rows if row.token_type_ids is not None]
    return Batch(padded([row.input_ids for row in rows], pad_id), torch.tensor(lengths),
                 padded([row.scored for row in rows], False),
                 torch.tensor(labels) if len(labels) == len(rows) else None,
                 padded(types, 0) if len(types) == len(rows) else None)
