"""An example: what is asked, and what is to be learned. A dialogue for instruct, a labelled text for the other tasks.

`key` names the question (all its answers share it), `row_hash` the whole content; both are sha256 in hex, and the same
for texts that differ in their line ends or outer whitespace alone: a file saved elsewhere has no new rows.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Turn:
    role: Role
    content: str


@dataclass(frozen=True)
class Dialogue:
    """An optional system turn, then user and assistant in turn (see `dialogue`); it ends with the answer to learn,
    or with the user where an answer is asked for.

    `about`, of rows of data.tasks: a hash of what the row is about, then those of what rows of other tasks are about and
    this one holds (overlap.py).
    """

    turns: tuple[Turn, ...]
    place: str = field(default="", compare=False, repr=False)  # "train.jsonl, line 7"
    task: str = field(default="", compare=False, repr=False)  # of data.tasks, that it is an instruction of
    about: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @property
    def prompt(self) -> str:
        """The question before the last answer, as people read it: without the system turn."""
        turns = [turn for turn in self._before_answer if turn.role != "system"]
        return turns[0].content if len(turns) == 1 else "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns)

    @property
    def answer(self) -> str:
        return self.turns[-1].content if self.turns[-1].role == "assistant" else ""

    @property
    def _before_answer(self) -> tuple[Turn, ...]:
        return self.turns[:-1] if self.turns[-1].role == "assistant" else self.turns

    @cached_property
    def key(self) -> str:
        """Of everything before the first answer; of the whole where that is blank, for then nothing is asked."""
        first = next((i for i, turn in enumerate(self.turns) if turn.role == "assistant"), len(self.turns))
        question = self.turns[:first]
        if not any(turn.content.strip() for turn in question):
            return self.row_hash
        return content_hash([[turn.role, canonical(turn.content)] for turn in question])

    @cached_property
    def row_hash(self) -> str:
        return content_hash({"messages": [{"role": turn.role, "content": canonical(turn.content)} for turn in self.turns]})

    def to_json(self) -> dict[str, Any]:
        messages = [{"role": turn.role, "content": turn.content} for turn in self.turns]
        return {"messages": messages, **({"task": self.task} if self.task else {}),
                **({"about": list(self.about)} if self.about else {})}


@dataclass(frozen=True)
class Labelled:
    """A text, or a pair of texts, with a class name (classify) or a number (regress); None where it is asked for."""

    text: str
    text2: str | None
    label: str | float | None
    place: str = field(default="", compare=False, repr=False)

    @property
    def prompt(self) -> str:
        return self.text if self.text2 is None else f"{self.text}\n\n{self.text2}"

    @property
    def answer(self) -> str:
        return "" if self.label is None else str(self.label)

    @cached_property
    def key(self) -> str:
        return content_hash([canonical(self.text), None if self.text2 is None else canonical(self.text2)])

    @cached_property
    def row_hash(self) -> str:
        texts = {name: canonical(text) for name, text in self.to_json().items() if name != "label"}
        return content_hash({**texts, "label": self.label})

    def to_json(self) -> dict[str, Any]:
        second = {} if self.text2 is None else {"text2": self.text2}
        return {"text": self.text, **second, "label": self.label}


Example = Dialogue | Labelled


def from_json(fields: Mapping[str, Any]) -> Example:
    """The inverse of `to_json`."""
    if "messages" in fields:
        turns = tuple(Turn(turn["role"], turn["content"]) for turn in fields["messages"])
        return Dialogue(turns, task=fields.get("task", ""), about=tuple(fields.get("about", ())))
    return Labelled(fields["text"], fields.get("text2"), fields["label"])


def dialogue(turns: Sequence[Turn], place: str = "", *, answered: bool = True) -> Dialogue | None:
    """The dialogue of `turns` in the shape that every chat template takes; None where nothing is left to learn from.

    Blank turns go, turns of one role in a row become one, assistant turns before the first question go, and so does
    what follows the last answer (nothing in it is scored). With `answered` false a final question stays and is enough.
    """
    kept: list[Turn] = []
    for turn in turns:
        asked = any(former.role == "user" for former in kept)
        blank = not turn.content.strip()
        if (turn.role == "assistant" and not asked) or (blank and (asked or turn.role != "user")):
            continue  # a blank first question stays: it holds the place of one
        if kept and kept[-1].role == turn.role:
            turn = Turn(turn.role, "\n\n".join(part for part in (kept.pop().content, turn.content) if part.strip()))
        kept.append(turn)
    while answered and kept and kept[-1].role != "assistant":
        kept.pop()
    return Dialogue(tuple(kept), place) if any(turn.role != "system" for turn in kept) else None


def canonical(text: str) -> str:
    """The same for texts that differ in their line ends or outer whitespace alone."""
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def content_hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()
