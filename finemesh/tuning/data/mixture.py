"""Instruction tuning: tasks become one mixture of dialogues, judged on task clusters that no row of is trained on.

FLAN (arXiv 2109.01652), with examples-proportional mixing under a cap (arXiv 1910.10683, section 3.5.2). Which rows judge,
and why, is in docs/decisions/006. A row's split, its template and whether the cap keeps it follow from hashes of the row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from finemesh.errors import FieldError, InputError, nearest
from finemesh.tuning.data.cells import Cells
from finemesh.tuning.data.examples import Dialogue
from finemesh.tuning.data.files import no_header, read_rows
from finemesh.tuning.data.formats import is_data, usual_names
from finemesh.tuning.data.instructions import Item, Template
from finemesh.tuning.data.overlap import related, without
from finemesh.tuning.data.rows import Row
from finemesh.tuning.data.split import NAMES, Splits, remarks, split


@dataclass(frozen=True)
class TaskSource:
    """What the config says of a task. `labels`: words for the values of the one column that its first template answers with."""

    train: str
    templates: Sequence[Template]
    cluster: str
    cap: int | None = None  # at most so many rows are used
    columns: Mapping[str, str | int] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def named(self) -> set[str]:
        """All the columns that the templates name."""
        return {name for template in self.templates for name in template.asks | template.answers}

    @property
    def straight(self) -> list[Template]:
        """Those that ask as the first one does."""
        return [template for template in self.templates if template.answers == self.templates[0].answers]

    def rows(self) -> list[Row]:
        """Without a header line where the task speaks of a column by its position."""
        return read_rows(self.train, {**self.columns, **{column: column for column in self.named - set(self.columns)}})


def load_tasks(tasks: Mapping[str, TaskSource], held_out: Sequence[str] = (), validation: float = 0.1,
               test: float = 0.1) -> Splits:
    """The splits of a mixture: validation and test are rows of the held-out clusters, or shares of every task."""
    items: dict[str, list[Item]] = {}
    duplicates = dropped = 0
    for name, task in tasks.items():
        try:
            items[name], equal, blank = _read(name, task)
        except FieldError as error:
            raise FieldError(error.message, "data", "tasks", name, *error.field) from None
        except InputError as error:
            raise FieldError(str(error), "data", "tasks", name, "train") from None
        duplicates, dropped = duplicates + equal, dropped + blank
    clusters = {name: task.cluster for name, task in tasks.items()}
    items = related(items)
    parts, notes = _judged_zero_shot(items, tasks, held_out, validation, test) if held_out else \
        _apart(_shares(_capped([item for own in items.values() for item in own], tasks), validation, test))
    empty = next((name for name in NAMES if not parts[name]), None)
    if empty:
        raise FieldError(f"no row is left for the {empty} split once those are taken out whose text another split has in "
                         "another task: give the tasks different texts", "data", "held_out" if held_out else "tasks")
    made: dict[str, list[Dialogue]] = {}
    for name in NAMES:
        put = [item.put(tasks[item.task].templates if name == "train" else tasks[item.task].straight)
               for item in sorted(parts[name], key=lambda item: item.draw("order"))]
        made[name] = list({example.row_hash: example for example in put}.values())  # tasks may share rows
        duplicates += len(put) - len(made[name])
    return Splits(tuple(made["train"]), tuple(made["validation"]), tuple(made["test"]), "instruct",
                  _sentence(clusters, held_out), (), duplicates, dropped,
                  (*notes, *remarks(made, duplicates, dropped)), clusters)


def _read(name: str, task: TaskSource) -> tuple[list[Item], int, int]:
    """The distinct rows in the file's order; how many were equal to another one, and how many had no answer."""
    rows = task.rows()
    columns = columns_of(task, rows)
    answers = {template.answers for template in task.templates}
    found: dict[str, Item] = {}
    blank = 0
    for row in rows:
        cells = Cells(row, columns)
        values = {column: cells.written(column) for column in sorted(columns)}
        if task.labels:
            (answer,) = task.templates[0].answers
            if values[answer].strip():
                values[answer] = _word(values[answer], task.labels, row)
        item = Item(name, values, task.templates[0].asks, row.place)
        if all(any(values[column].strip() for column in answer) for answer in answers):
            found.setdefault(item.row_hash, item)
        else:
            blank += 1
    if not found:
        raise InputError(f"none of its {len(rows)} rows has an answer to learn: what the templates answer with is blank "
                         "everywhere", file=task.train)
    return list(found.values()), len(rows) - blank - len(found), blank


def columns_of(task: TaskSource, rows: Sequence[Row]) -> dict[str, str]:
    """The column of each name in the templates: as `columns` says, else one of that name, else the usual one for it."""
    present = list(dict.fromkeys(column for row in rows for column in row.fields))
    given = {name: str(column) for name, column in task.columns.items()}
    answered = any(template.answers for template in task.templates)
    known = usual_names(present, answered=answered) | {column: column for column in present} | given
    for name, column in given.items():
        if column not in present:
            raise FieldError(f"there is no column {column!r} in {task.train}.{nearest(column, present)}", "columns", name)
    for number, template in enumerate(task.templates):
        for name in sorted(template.asks | template.answers):
            if name not in known:
                mend = f" Note that {no_header(present)}" if is_data(present, task.train) else ""
                raise FieldError(f"{{{name}}} is no column of {task.train}.{nearest(name, present)}{mend}", "templates", number)
    return {name: known[name] for name in task.named}


def _word(value: str, labels: Mapping[str, str], row: Row) -> str:
    if value.strip() not in labels:
        raise FieldError(f"there is no word for {value.strip()!r}, which {row.place} has; there are some for "
                         f"{', '.join(labels)}", "labels")
    return labels[value.strip()]


def _capped(items: Sequence[Item], tasks: Mapping[str, TaskSource]) -> list[Item]:
    """Of each task at most `cap` rows: those that rows added later are least likely to displace."""
    drawn = sorted(items, key=lambda item: item.draw("cap"))
    return [item for name, task in tasks.items() for item in [item for item in drawn if item.task == name][:task.cap]]


def _shares(items: Sequence[Item], validation: float, test: float) -> dict[str, list[Item]]:
    try:
        return split(items, {"validation": validation, "test": test}, None)
    except InputError as error:
        raise FieldError(str(error), "data", "tasks") from None


def _judged_zero_shot(items: Mapping[str, list[Item]], tasks: Mapping[str, TaskSource], held_out: Sequence[str],
                      validation: float, test: float) -> tuple[dict[str, list[Item]], list[str]]:
    """Trained on the other clusters; the last held-out one tests, those before it validate, a single one does both."""
    home = {name: "train" if task.cluster not in held_out else "test" if task.cluster == held_out[-1] else "validation"
            for name, task in tasks.items()}
    parts, notes = _apart({part: [item for name, own in items.items() if home[name] == part for item in own] for part in NAMES})
    parts = {part: _capped(parts[part], tasks) for part in NAMES}
    if len(held_out) == 1:
        if len({item.key for item in parts["test"]}) < 2:
            raise FieldError(f"{held_out[0]} has rows of one question only, where validation and test need one each: give "
                             "its tasks more rows, or hold out a second cluster", "data", "held_out")
        halves = split(parts["test"], {"test": test / (validation + test)})
        parts, shared = _apart(parts | {"validation": halves["train"], "test": halves["test"]})
        notes += [*shared, f"validation and test are different rows of one cluster, {held_out[0]}: the test's rows are new, "
                  "but the search chose by their task; with a second cluster in data.held_out the test's task is new too"]
    return parts, notes


def _apart(parts: Mapping[str, list[Item]]) -> tuple[dict[str, list[Item]], list[str]]:
    """Each split without the rows whose text a later one has in another task, and notes that count them."""
    kept, notes = dict(parts), []
    for later, earlier in (("test", "validation"), ("test", "train"), ("validation", "train")):
        asked = {item.key for item in kept[later]}
        others = without((item for item in kept[earlier] if item.key not in asked), kept[later])
        met = len(kept[earlier]) - len(others)
        if met:
            notes.append(f"{met} {earlier} rows whose text is in {later} too, in another task, were left out")
        kept[earlier] = others
    return kept, notes


def _sentence(clusters: Mapping[str, str], held_out: Sequence[str]) -> str:
    def tasks(*names: str) -> str:
        return f"{' and '.join(names)} ({', '.join(task for task, cluster in clusters.items() if cluster in names)})"

    trained = ", ".join(task for task, cluster in clusters.items() if cluster not in held_out)
    if not held_out:
        return f"instructions of {trained}; validation and test are shares of all of them"
    if len(held_out) == 1:
        return f"instructions of {trained}; zero-shot validation and test on {tasks(*held_out)}"
    return f"instructions of {trained}; zero-shot validation on {tasks(*held_out[:-1])}, test on {tasks(held_out[-1])}"
