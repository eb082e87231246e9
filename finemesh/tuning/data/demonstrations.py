"""Demonstrations: answered dialogues of the training rows, chosen to be shown before a question.

Similar ones are retrieved by BM25 over the questions (Robertson & Zaragoza 2009; for demonstrations Liu et al., arXiv
2101.06804). A row is never a demonstration for itself, be it as another task puts it, nor is another answer to its question.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from finemesh.tuning.data.batches import Encoded
from finemesh.tuning.data.examples import Dialogue, Example

MOST = 5000  # kept to choose from: they are saved with the prompt
WORD = r"(?u)[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+"  # Chinese and Japanese have no spaces


@dataclass(frozen=True)
class Demonstrations:
    """What there is to choose from: dialogues with distinct questions, in an order that the seed has drawn."""

    dialogues: tuple[Dialogue, ...]
    seed: int

    @staticmethod
    def drawn(examples: Sequence[Example], rows: Sequence[Encoded], max_length: int, seed: int) -> "Demonstrations":
        """Of the training rows, those that `max_length` does not cut: a demonstration is shown whole."""
        whole = [example for example, row in zip(examples, rows, strict=True)
                 if isinstance(example, Dialogue) and len(row.input_ids) < max_length]
        distinct = list({asked(dialogue): dialogue for dialogue in whole}.values())
        random.Random(seed).shuffle(distinct)
        return Demonstrations(tuple(distinct[:MOST]), seed)

    @property
    def spare(self) -> int:
        """How many of them may be one row, each as another task puts it."""
        return len({dialogue.task for dialogue in self.dialogues})

    def fixed(self, row: Dialogue, count: int) -> list[Dialogue]:
        """The same for every row; the next one in place of the row itself."""
        return self._others(range(count + self.spare), row)[:count]

    def random(self, row: Dialogue, count: int) -> list[Dialogue]:
        generator = random.Random(f"{self.seed}/{row.key}")
        drawn = generator.sample(range(len(self.dialogues)), min(count + self.spare, len(self.dialogues)))
        return self._others(drawn, row)[:count]

    def similar(self, row: Dialogue, count: int) -> list[Dialogue]:
        """The most similar first."""
        if not self.dialogues:
            return []
        scores = self._index.get_scores(_words([row.prompt])[0])
        return self._others(np.argsort(-scores, kind="stable")[:count + self.spare], row)[:count]

    def _others(self, places: Sequence[int] | np.ndarray, row: Dialogue) -> list[Dialogue]:
        question = asked(row)
        chosen = [self.dialogues[place] for place in places if place < len(self.dialogues)]
        return [dialogue for dialogue in chosen
                if asked(dialogue) != question and dialogue.key != row.key and not _one_row(dialogue, row)]

    @cached_property
    def _index(self) -> Any:
        import bm25s

        index = bm25s.BM25()
        index.index(_words([dialogue.prompt for dialogue in self.dialogues]), show_progress=False)
        return index


def asked(dialogue: Dialogue) -> str:
    """The question, whatever its case, its spaces and the system turn before it; the row itself where it is blank."""
    first = next((turn.content for turn in dialogue.turns if turn.role == "user"), "")
    return " ".join(first.casefold().split()) or dialogue.row_hash


def _one_row(first: Dialogue, second: Dialogue) -> bool:
    """Whether one holds all that the other is about."""
    return bool(set(first.about[:1]) & set(second.about) or set(second.about[:1]) & set(first.about))


def _words(texts: list[str]) -> list[list[str]]:
    import bm25s

    found = bm25s.tokenize(texts, token_pattern=WORD, stopwords=[], return_ids=False, show_progress=False)
    return [list(words) or [" "] for words in found]  # bm25s divides by the mean number of words; "" is its own
