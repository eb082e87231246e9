"""A hard prompt: an instruction and demonstrations, in words, before what a row shows of itself.

A row keeps its own tokens from its question on, so that exactly the tokens that were scored before are scored; what it
begins with is replaced. What one demonstration adds does not depend on the others: all are tokenized once.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from finemesh.errors import InputError
from finemesh.tuning.data.batches import Encoded, token_ids
from finemesh.tuning.data.demonstrations import Demonstrations
from finemesh.tuning.data.examples import Dialogue, Example, Turn, from_json
from finemesh.tuning.data.templates import PROBE, before_question

PROMPT_FILE = "prompt.json"
SAMPLE = Dialogue((Turn("user", "a question"), Turn("assistant", "an answer")))


@dataclass(frozen=True)
class Shown:
    """Rows with the prompt before them, and the number of demonstrations that did not fit."""

    rows: list[Encoded]
    left_out: int


@dataclass(frozen=True)
class HardPrompt:
    """`answer_room`: the tokens of the context that are kept free for an answer, which is not known when it is asked for."""

    k: int
    selection: str  # fixed, random, similar
    order: str  # of similar ones: similar_last, similar_first, random
    template: str  # turns, message
    instruction: str  # "" for none
    answer_room: int
    demonstrations: Demonstrations

    def before(self, examples: Sequence[Example], rows: Sequence[Encoded], tokenizer: PreTrainedTokenizerBase,
               context_length: int) -> Shown:
        """The rows as they are shown, each at most `context_length` tokens long if it was before.

        What does not fit is left out, the least useful demonstration first, the instruction at last.
        """
        writing = Writing(tokenizer, self.template, self.instruction)
        shown, left_out = [], 0
        for example, row in zip(examples, rows, strict=True):
            assert isinstance(example, Dialogue)
            frame = writing.frame(example)
            own = row.input_ids[frame.replaces(row):]
            free = context_length - len(frame.head) - len(own)
            chosen = [writing.block(frame, dialogue) for dialogue in self._chosen(example)]
            fitting = _fitting(chosen, free - max(0, self.answer_room - _answer_length(row)))
            left_out += len(chosen) - len(fitting)
            lead = [*frame.head, *(token for block in self._ordered(fitting, example) for token in block)]
            scored = row.scored[len(row.scored) - len(own):]
            shown.append(Encoded([*lead, *own], [False] * len(lead) + scored, row.label) if free >= 0 else row)
        return Shown(shown, left_out)

    def _chosen(self, example: Dialogue) -> list[Dialogue]:
        """The most useful first."""
        if self.selection == "fixed":
            return self.demonstrations.fixed(example, self.k)
        if self.selection == "random":
            return self.demonstrations.random(example, self.k)
        return self.demonstrations.similar(example, self.k)

    def _ordered(self, blocks: list[list[int]], example: Dialogue) -> list[list[int]]:
        if self.selection != "similar" or self.order == "similar_first":
            return blocks
        if self.order == "similar_last":
            return blocks[::-1]
        return random.Random(f"{self.demonstrations.seed}/{example.key}").sample(blocks, len(blocks))

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PROMPT_FILE).write_text(json.dumps(self.to_json(), ensure_ascii=False) + "\n", encoding="utf-8")

    @staticmethod
    def load(folder: Path) -> "HardPrompt":
        fields: dict[str, Any] = json.loads((folder / PROMPT_FILE).read_text(encoding="utf-8"))
        dialogues = tuple(from_json(dialogue) for dialogue in fields.pop("demonstrations"))
        return HardPrompt(**{name: value for name, value in fields.items() if name != "seed"},
                          demonstrations=Demonstrations(dialogues, fields["seed"]))  # type: ignore[arg-type]

    def to_json(self) -> dict[str, Any]:
        """With no more demonstrations than can be chosen: of fixed ones, those and some for a row that is among them."""
        needed = self.demonstrations.dialogues
        if self.selection == "fixed" or not self.k:
            needed = needed[:self.k + self.demonstrations.spare if self.k else 0]
        own = {name: value for name, value in vars(self).items() if name != "demonstrations"}
        return own | {"seed": self.demonstrations.seed, "demonstrations": [dialogue.to_json() for dialogue in needed]}


@dataclass(frozen=True)
class Frame:
    """What stands before the question of rows with the same system turn."""

    system: tuple[Turn, ...]
    text: str  # of the head
    opening: list[int]  # what such a row begins with by itself
    head: list[int]  # what it begins with instead, up to the first demonstration
    ending: str  # what stands between the last demonstration and the question, and is the row's own

    def replaces(self, row: Encoded) -> int:
        """How many tokens of the row are its opening; none of a question that was cut at its start."""
        return _alike(self.opening, row.input_ids)


class Writing:
    """Writes frames and demonstrations with a model's tokenizer and chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str, instruction: str) -> None:
        self.tokenizer, self.template, self.instruction = tokenizer, template, instruction
        self._frames: dict[tuple[Turn, ...], Frame] = {}
        self._blocks: dict[tuple[tuple[Turn, ...], Dialogue], list[int]] = {}

    def frame(self, example: Dialogue) -> Frame:
        system = tuple(turn for turn in example.turns[:1] if turn.role == "system")
        if system not in self._frames:
            self._frames[system] = self._framed(system)
        return self._frames[system]

    def block(self, frame: Frame, dialogue: Dialogue) -> list[int]:
        """What a demonstration adds to the frame."""
        key = (frame.system, dialogue)
        if key not in self._blocks:
            written = self._before(frame.system, [dialogue])
            if not (written.startswith(frame.text) and written.endswith(frame.ending)):
                raise InputError("the model's chat template does not show earlier turns as they were: "
                                 "use template: message, which writes demonstrations into the question")
            block = written[len(frame.text):len(written) - len(frame.ending)]
            self._blocks[key] = self._ids_before(block, frame.ending)
        return self._blocks[key]

    def _framed(self, system: tuple[Turn, ...]) -> Frame:
        alone, bare = before_question(system, self.tokenizer), self._before(system, [])
        longest = _alike(*(text[::-1] for text in (alone, bare, self._before(system, [SAMPLE]))))
        endings = (alone[len(alone) - length:] for length in range(longest, -1, -1))
        ending = next((ending for ending in endings if self._is_border(alone, ending)), "")
        head = bare.removesuffix(ending)
        opening = token_ids(alone.removesuffix(ending), self.tokenizer)
        return Frame(system, head, opening, self._ids_before(head, ending), ending)

    def _is_border(self, alone: str, ending: str) -> bool:
        """Whether a row's tokens part where `ending` begins, after a space or a special token: within a word, unknown
        tokens would only look as if they did."""
        before = alone.removesuffix(ending)
        if before and not (before[-1].isspace() or before[-1] in ">]"):
            return False
        opening = token_ids(before, self.tokenizer)
        return token_ids(alone + PROBE, self.tokenizer)[:len(opening)] == opening

    def _before(self, system: tuple[Turn, ...], dialogues: Sequence[Dialogue]) -> str:
        if self.template == "message":
            blocks = [f"Question:\n{d.prompt}\nAnswer:\n{d.answer}\n\n" for d in dialogues]
            lead = "".join([f"{self.instruction}\n\n" if self.instruction else "", *blocks, "Question:\n"])
            return before_question(system, self.tokenizer, lead)
        told = "\n\n".join([*(turn.content for turn in system), *([self.instruction] if self.instruction else [])])
        turns = [turn for dialogue in dialogues for turn in dialogue.turns if turn.role != "system"]
        return before_question([*([Turn("system", told)] if told else []), *turns], self.tokenizer)

    def _ids_before(self, text: str, ending: str) -> list[int]:
        """The tokens of `text` as they are before a question."""
        longer, after = (token_ids(part + ending + PROBE, self.tokenizer) for part in (text, ""))
        return longer[:-len(after)] if longer[-len(after):] == after else token_ids(text, self.tokenizer)


def _alike(*sequences: Sequence[Any]) -> int:
    """How many first elements are the same in all."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*sequences, strict=False)))


def _fitting(blocks: list[list[int]], free: int) -> list[list[int]]:
    """The first ones that fit into `free` tokens together."""
    for count, block in enumerate(blocks):
        free -= len(block)
        if free < 0:
            return blocks[:count]
    return blocks


def _answer_length(row: Encoded) -> int:
    """Tokens of the last answer; 0 of a question."""
    return next((i for i, scored in enumerate(reversed(row.scored)) if not scored), len(row.scored))
