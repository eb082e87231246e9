"""The rows of a file as questions to be answered: they need no answers or labels, and none is left out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from finemesh.errors import FieldError, InputError
from finemesh.tuning.data.cells import Cells
from finemesh.tuning.data.examples import Dialogue, Example, Labelled, Turn
from finemesh.tuning.data.files import read_rows
from finemesh.tuning.data.formats import Recognised, Task, recognise
from finemesh.tuning.data.mixture import TaskSource, columns_of
from finemesh.tuning.data.rows import Row


def read_questions(source: str, *, columns: Mapping[str, str | int] | None = None,
                   task: Task | None = None, trained: Example | None = None) -> list[Example]:
    """The rows of `source` in order; with as many texts as a row has that was `trained` on, where it is given."""
    rows = read_rows(source, columns)
    recognised = recognise(rows, columns, task, answered=False)
    if isinstance(trained, Labelled):
        recognised.refuse_unless(trained.text2 is not None, source)
    return recognised.examples(rows)[0]


def read_instructions(source: str, tasks: Mapping[str, TaskSource]) -> list[Example]:
    """Rows that say themselves what is asked. InputError for those of a task, which one of its templates must put."""
    rows = read_rows(source)
    recognised = _recognised(rows)
    used = set(recognised.columns.values()) if recognised else set()
    theirs = [name for name, task in tasks.items() if not (_columns(task, rows) or set()) <= used]
    present = ", ".join(dict.fromkeys(column for row in rows for column in row.fields))
    if theirs:
        one = f"the task {theirs[0]}" if len(theirs) == 1 else f"the tasks {', '.join(theirs)}"
        raw = f"; or leave all columns but {', '.join(used)} out, where that is the whole instruction" if used else ""
        raise InputError(f"the columns {present} are those of {one}: say so with --task {theirs[0]}, and its first template "
                         f"asks{raw}", file=source)
    if recognised is None:
        asked = "; ".join(f"{name}: {', '.join(sorted(task.templates[0].asks))}" for name, task in tasks.items())
        raise InputError(f"the columns {present} are neither those of instructions (a prompt, or messages) nor what a task "
                         f"asks by ({asked}); rename them, and for rows of a task give --task NAME", file=source)
    return recognised.examples(rows)[0]


def put_questions(source: str, name: str, task: TaskSource) -> list[Dialogue]:
    """The rows of a task, each as its first template asks it."""
    asking = replace(_asking(task), train=source)
    rows = asking.rows()
    try:
        columns = columns_of(asking, rows)
    except FieldError as error:
        raise InputError(f"as rows of the task {name}: {error.message}", file=source) from None
    questions = []
    for row in rows:
        cells = Cells(row, columns)
        values = {column: cells.written(column) for column in columns}
        if values and not any(text.strip() for text in values.values()):
            raise row.error(f"nothing is asked in it: {', '.join(columns.values())} blank")
        questions.append(Dialogue((Turn("user", asking.templates[0].asked(values)),), row.place, name))
    return questions


def _asking(task: TaskSource) -> TaskSource:
    """The task with what its first template asks by alone."""
    template = replace(task.templates[0], answer=())
    return replace(task, templates=[template], columns={name: task.columns[name] for name in template.asks & set(task.columns)})


def _columns(task: TaskSource, rows: Sequence[Row]) -> set[str] | None:
    """Those of the rows that the task asks by; None where they are not all there."""
    try:
        return set(columns_of(_asking(task), rows).values())
    except FieldError:
        return None


def _recognised(rows: Sequence[Row]) -> Recognised | None:
    try:
        return recognise(rows, None, "instruct", answered=False)
    except InputError:
        return None
