"""Rows become examples: which format a data set is in is recognised from its columns, and said in a sentence.

A new format is an entry of FORMATS: the tasks it serves, its fields with their usual columns, and how a row is built.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from finemesh.errors import FieldError, InputError, nearest
from finemesh.tuning.data.cells import Cells, as_number, shown
from finemesh.tuning.data.examples import Dialogue, Example, Labelled, Turn, dialogue
from finemesh.tuning.data.files import no_header
from finemesh.tuning.data.rows import Row

Task = Literal["instruct", "classify", "regress"]
LARGEST = 1e15  # of a label to regress: its square, and that of its gradient, is a float32
MOST_CLASSES = 20  # more distinct numbers than this are taken for something to regress

ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant"}


@dataclass(frozen=True)
class Format:
    """`fields` maps a field to its usual columns, the best known first. Fields in `optional` may be absent, and those
    in `answers` too where answers are asked for. `build` gives no example for a row without an answer to learn."""

    name: str
    tasks: tuple[Task, ...]
    fields: Mapping[str, tuple[str, ...]]
    build: Callable[[Cells, Task, bool], Sequence[Example]]
    optional: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()


def _alpaca(cells: Cells, task: Task, answered: bool) -> list[Dialogue]:
    output = cells.text("output") if answered else ""
    return _asked(cells, cells.text("instruction"), cells.text("input", ""), output, answered)


def _seed_tasks(cells: Cells, task: Task, answered: bool) -> list[Dialogue]:
    instruction = cells.text("instruction")
    return [example for instance in cells.listed("instances") for example in _asked(
        cells, instruction, cells.checked(instance.get("input", ""), "instances: input"),
        cells.checked(instance.get("output"), "instances: output") if answered else "", answered)]


def _asked(cells: Cells, instruction: str, given: str, answer: str, answered: bool) -> list[Dialogue]:
    question = f"{instruction}\n\n{given}" if given.strip() else instruction
    system = Turn("system", cells.text("system", ""))
    return _dialogues([system, Turn("user", question), Turn("assistant", answer)], cells, answered)


def _chat(cells: Cells, task: Task, answered: bool) -> list[Dialogue]:
    system = Turn("system", cells.text("system", ""))
    return _dialogues([system, *_turns(cells, "messages")], cells, answered)


def _prompt_completion(cells: Cells, task: Task, answered: bool) -> list[Dialogue]:
    """Either side may be a list of messages too, as TRL's conversational prompts are."""
    if isinstance(cells.value("prompt"), list):
        asked = _turns(cells, "prompt")  # first, so that of two that are wrong this one is named
        return _dialogues([*asked, *(_turns(cells, "completion") if answered else [])], cells, answered)
    return _asked(cells, cells.text("prompt"), "", cells.text("completion") if answered else "", answered)


def _dialogues(turns: Sequence[Turn], cells: Cells, answered: bool) -> list[Dialogue]:
    made = dialogue(turns, cells.row.place, answered=answered)
    return [] if made is None else [made]


def _turns(cells: Cells, field: str) -> list[Turn]:
    turns = []
    for number, message in enumerate(cells.listed(field), start=1):
        name = f"{cells.columns[field]}: message {number}"
        role = message.get("role", message.get("from"))
        if not isinstance(role, str) or role.lower() not in ROLES:
            raise cells.row.error(f"{name} has the role {shown(role)}.{nearest(str(role), ROLES)} Rename it (what a tool said "
                                  "can be a user's turn), or leave the row out.")
        content = message.get("content", message.get("value"))
        if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            content = "".join(cells.checked(part.get("text"), name) for part in content)
        turns.append(Turn(ROLES[role.lower()], cells.checked(content, name)))
    return turns


def _labelled(cells: Cells, task: Task, answered: bool) -> list[Labelled]:
    second = cells.text("text2") if "text2" in cells.columns else None
    label = _label(cells, task) if answered else None
    return [Labelled(cells.text("text"), second, label, cells.row.place)]


def _label(cells: Cells, task: Task) -> str | float:
    value, column = cells.value("label"), cells.columns["label"]
    if task == "regress":
        number = as_number(value)
        if number is None:
            raise cells.row.error(f"the label {shown(value)} in {column!r} is not a number, which task: regress needs; "
                                  "for classes give task: classify")
        if abs(number) > LARGEST:
            raise cells.row.error(f"the label {shown(value)} in {column!r} is too large to regress; divide the labels, so that "
                                  f"all lie within {LARGEST:g}")
        return number
    label = cells.written("label").strip()
    if not label:
        raise cells.row.error(f"the label in {column!r} is empty")
    return label


INSTRUCT: tuple[Task, ...] = ("instruct",)
FORMATS: dict[str, Format] = {format.name: format for format in (
    Format("chat messages", INSTRUCT, {"messages": ("messages", "conversations", "conversation", "dialogue", "dialog"),
                                       "system": ("system",)}, _chat, optional=("system",)),
    Format("seed tasks", INSTRUCT, {"instruction": ("instruction",), "instances": ("instances",)}, _seed_tasks),
    Format("Alpaca", INSTRUCT, {"instruction": ("instruction",), "input": ("input", "context"),
                                "output": ("output", "response"), "system": ("system",)},
           _alpaca, optional=("input", "system"), answers=("output",)),
    Format("prompt/completion", INSTRUCT,
           {"prompt": ("prompt", "question", "query", "input", "instruction"),
            "completion": ("completion", "answer", "response", "output", "reply", "target"), "system": ("system",)},
           _prompt_completion, optional=("system",), answers=("completion",)),
    Format("text/label", ("classify", "regress"),
           {"text": ("text", "text1", "sentence1", "premise", "question", "question1", "sentence", "tweet", "review",
                     "headline", "content"),
            "text2": (),  # see PAIRS
            "label": ("label", "labels", "class", "category", "score", "similarity", "sentiment", "intent", "rating",
                      "stars", "target")},
           _labelled, optional=("text2",), answers=("label",)),
)}
# text2 by the column of text: a `passage` or a `sentence` is a second text only beside a question
PAIRS = {"text": ("text2",), "text1": ("text2",), "sentence1": ("sentence2",), "premise": ("hypothesis",),
         "question1": ("question2",), "question": ("sentence", "question2", "passage")}


@dataclass(frozen=True)
class Recognised:
    """The format of some rows, the column of each of its fields, and the task they are for."""

    format: Format
    columns: Mapping[str, str]
    task: Task
    unused: tuple[str, ...]
    answered: bool = True

    @property
    def sentence(self) -> str:
        columns = ", ".join(field if field == name else f"{field} = {name}" for field, name in self.columns.items())
        unused = f"; not used: {', '.join(self.unused)}" if self.unused else ""
        return f"{self.format.name} ({columns}), task {self.task}{unused}"

    def refuse_unless(self, pairs: bool, file: str) -> None:
        """InputError where the model learns from pairs of texts and these rows have one each, or the other way round."""
        if pairs and "text2" not in self.columns:
            raise InputError(f"its rows have one text ({self.columns['text']}), and those that are trained on have two: give "
                             "the second one as well, under its name there", file=file)
        if not pairs and "text2" in self.columns:
            raise InputError(f"its rows have two texts ({self.columns['text']}, {self.columns['text2']}), and those that are "
                             f"trained on have one: leave the column {self.columns['text2']} out", file=file)

    def examples(self, rows: Sequence[Row]) -> tuple[list[Example], int]:
        """The examples, and how many rows had no answer to learn. Where answers are asked for, every row asks."""
        examples: list[Example] = []
        dropped = 0
        for row in rows:
            built = [] if row.blank and self.answered else self.format.build(Cells(row, self.columns), self.task, self.answered)
            if not built and not self.answered:
                raise row.error(f"nothing is asked in it: {', '.join(self.columns.values())} are blank")
            dropped += not built
            examples.extend(built)
        return examples, dropped


def recognise(rows: Sequence[Row], columns: Mapping[str, str | int] | None = None, task: Task | None = None, *,
              answered: bool = True) -> Recognised:
    """The format of `rows` by their columns: those named in `columns` (field to column) first, then the usual names.

    The task is guessed where it is None: numbers with a fraction, or more than MOST_CLASSES of them, are regressed.
    With `answered` false the rows only ask: labels and completions may be absent.
    """
    present = list(dict.fromkeys(name for row in rows for name in row.fields))
    wanted = _wanted(columns or {}, present, rows[0], answered)
    for format in FORMATS.values():
        if (task is None or task in format.tasks) and set(wanted) <= set(format.fields):
            matched, missing = _match(format, present, wanted, answered)
            if not missing:
                unused = tuple(name for name in present if name not in matched.values())
                return Recognised(format, matched, task or _guess(format, matched, rows), unused, answered)
    raise _unrecognised(present, wanted, task, rows[0])


def _wanted(columns: Mapping[str, str | int], present: Sequence[str], row: Row, answered: bool) -> dict[str, str]:
    known = {field for format in FORMATS.values() for field in format.fields}
    for field in columns:
        if field not in known:
            raise FieldError(f"there is no such field.{nearest(field, known)}", "data", "columns", field)
    wanted = {field: str(column) for field, column in columns.items()}
    if not answered:
        asked = {field for format in FORMATS.values() for field in format.answers}
        wanted = {field: column for field, column in wanted.items() if column in present or field not in asked}
    for field, column in wanted.items():
        if column not in present:
            raise FieldError(f"there is no column {column!r} in {row.file}.{nearest(column, present)}", "data", "columns",
                             field)
    return wanted


def _match(format: Format, present: Sequence[str], wanted: Mapping[str, str],
           answered: bool = True) -> tuple[dict[str, str], list[str]]:
    """The column of each field, and the required fields that have none."""
    by_name = {name.strip().lower(): name for name in reversed(present)}
    matched: dict[str, str] = {}
    missing = []
    for field, names in format.fields.items():
        if field == "text2":
            names = PAIRS.get(matched.get("text", "").strip().lower(), ())
        taken = {*matched.values(), *wanted.values()}
        free = (by_name[name] for name in names if name in by_name and by_name[name] not in taken)
        column = wanted.get(field) or next(free, None)
        if column is not None:
            matched[field] = column
        elif field not in format.optional and (answered or field not in format.answers):
            missing.append(field)
    return matched, missing


def usual_names(present: Sequence[str], *, answered: bool = True) -> dict[str, str]:
    """The column of each field of the formats that these columns make up: text is `sentence`, say."""
    found: dict[str, str] = {}
    for format in FORMATS.values():
        matched, missing = _match(format, present, {}, answered)
        found |= {} if missing else {field: name for field, name in matched.items() if field not in found}
    return found


def _guess(format: Format, columns: Mapping[str, str], rows: Sequence[Row]) -> Task:
    if len(format.tasks) == 1 or "label" not in columns:
        return format.tasks[0]
    numbers = [as_number(row.fields.get(columns["label"])) for row in rows if not row.blank]
    if None in numbers:
        return "classify"
    many = len(set(numbers)) > MOST_CLASSES
    return "regress" if many or any(number != int(number) for number in numbers if number is not None) else "classify"


def _unrecognised(present: Sequence[str], wanted: Mapping[str, str], task: Task | None, row: Row) -> InputError:
    """What is nearest to a format, and how to name the columns."""
    for format in FORMATS.values():
        if task is not None and task not in format.tasks and not _match(format, present, {})[1]:
            fields = "prompt: ..., completion: ..." if task == "instruct" else "text: ..., label: ..."
            return InputError(f"the columns {', '.join(present)} are {format.name}, which is for task "
                              f"{' or '.join(format.tasks)}, not {task}; change the task, or say which are which in "
                              f"data.columns: {{{fields}}}", file=row.file)
    fitting = [format for format in FORMATS.values() if task is None or task in format.tasks]
    known = "; ".join(f"{format.name}: {', '.join(field for field in format.fields if field not in format.optional)}"
                      for format in fitting)
    message = f"the columns {', '.join(present)} are those of no known format ({known})"
    begun = max(fitting, key=lambda format: len(_match(format, present, wanted)[0]))
    matched, missing = _match(begun, present, wanted)
    if matched and missing:
        message += f"; for {begun.name} {' and '.join(missing)} is missing"
    message += "; say which are which in data.columns, as in {text: review, label: stars}"
    if is_data(present, row.file):
        message += f"; {no_header(present)}"
    return InputError(message, file=row.file)


def is_data(header: Sequence[str], file: str) -> bool:
    """Whether the header of a table looks like its first row."""
    odd = any(not name or len(name) > 40 or as_number(name) is not None for name in header)
    return odd and file.lower().endswith((".csv", ".tsv"))
