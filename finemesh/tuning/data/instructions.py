"""A template puts a row of a task to the model in natural language (FLAN, arXiv 2109.01652).

`Is this review positive or negative? {text} => {label}`: what stands before the last => is asked, what stands after it is
to be learned; columns are named in braces. Turned around, a template asks for the input by the answer: `Write a {label}
review. => {text}`. Which way round a task is meant, its first template says.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from string import Formatter

from finemesh.tuning.data.examples import Dialogue, Turn, canonical, content_hash

Side = tuple[tuple[str, str | None], ...]  # text, and the column whose value follows it
EXAMPLE = '"Is this positive or negative? {text} => {label}"'


@dataclass(frozen=True)
class Template:
    text: str
    question: Side
    answer: Side

    @staticmethod
    def read(text: str) -> "Template":
        """ValueError, with the mend, where it is no template."""
        question, arrow, answer = text.rpartition("=>")
        if not arrow:
            raise ValueError(f"no => in it: write what is asked, =>, and what is to be answered, as in {EXAMPLE}")
        template = Template(text, _side(question.strip()), _side(answer.strip()))
        if not template.question:
            raise ValueError(f"nothing stands before =>: write what is asked, as in {EXAMPLE}")
        if not template.answers:
            raise ValueError("the answer names no column, so that there is nothing to learn from the rows: write one in "
                             f"braces after =>, as in {EXAMPLE}")
        return template

    @property
    def asks(self) -> frozenset[str]:
        """The columns in the question."""
        return frozenset(column for _, column in self.question if column is not None)

    @property
    def answers(self) -> frozenset[str]:
        return frozenset(column for _, column in self.answer if column is not None)

    def asked(self, values: Mapping[str, str]) -> str:
        """The question with the text of its columns in it."""
        return _filled(self.question, values)


def _side(text: str) -> Side:
    found: list[tuple[str, str | None]] = []
    try:
        parts = list(Formatter().parse(text))
    except ValueError:
        raise ValueError(f"a brace is not closed or not opened in {text!r}: a column is written {{name}}, and a brace "
                         "that is just text {{ or }}") from None
    for words, name, rest, conversion in parts:
        column = name and name + (f"!{conversion}" if conversion else "") + (f":{rest}" if rest else "")
        if column == "":
            raise ValueError("{} names no column: write its name in the braces, or its position where the file has no "
                             "header line")
        found.append((words, column))
    return tuple(found)


def _filled(side: Side, values: Mapping[str, str]) -> str:
    return "".join(words + ("" if column is None else values[column]) for words, column in side).strip()


@dataclass(frozen=True)
class Item:
    """A row of a task, whose template is drawn by the row alone. `values`: the text of each column that templates name.

    `asked`: the columns of the question as the first template asks it. `about`: see Dialogue.
    """

    task: str
    values: Mapping[str, str]
    asked: frozenset[str]
    place: str
    about: tuple[str, ...] = ()

    @cached_property
    def row_hash(self) -> str:
        return content_hash(sorted((name, canonical(text)) for name, text in self.values.items()))

    @cached_property
    def key(self) -> str:
        """Of what is asked about, whatever the template, the task and the order; of the whole where that is blank."""
        question = sorted(canonical(self.values[column]) for column in self.asked)
        return content_hash(question) if any(question) else self.row_hash

    def texts(self, columns: Iterable[str]) -> frozenset[str]:
        """Those in the columns that are not blank."""
        return frozenset(filter(None, (canonical(self.values[column]) for column in columns)))

    def draw(self, purpose: str) -> int:
        """A number that is random over the rows, and the same for this one for ever."""
        return int(content_hash([purpose, self.row_hash]), 16)

    def put(self, templates: Sequence[Template]) -> Dialogue:
        """By one of the templates, none of whose answers is blank."""
        template = templates[self.draw("template") % len(templates)]
        answer = _filled(template.answer, self.values)
        turns = (Turn("user", template.asked(self.values)), Turn("assistant", answer))
        return Dialogue(turns, self.place, self.task, self.about)
