"""Three disjoint splits. Equal rows are kept once; a hash of the question says where it goes, with all its answers.

The hash alone decides, so the split of a row does not move when rows are added, removed or reordered. No rule can
promise that and also that no split is empty: a rule that never moves a row looks at that row alone, and then there
are always three rows that it sends to the same split. So a split that the hash leaves empty, which happens below some
dozens of questions, takes the question whose hash is nearest; only such a question can move when rows are added.
"""

import hashlib
import json
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from finemesh.disk import whole
from finemesh.errors import FieldError, InputError, NoSuchFile, nearest, undamaged
from finemesh.trial import write_json
from finemesh.tuning.data.examples import Dialogue, Example, Labelled, from_json
from finemesh.tuning.data.files import read_rows
from finemesh.tuning.data.formats import Recognised, Task, as_number, recognise

NAMES = ("train", "validation", "test")
FEW_ROWS = 20  # a split with fewer is worth a word
MOST_PLACES = 10  # shown of rows that must go


class Keyed(Protocol):
    """What can be split: `key` names the question."""

    @property
    def key(self) -> str: ...


K = TypeVar("K", bound=Keyed)


@dataclass(frozen=True)
class Splits:
    """`labels` are the classes of classify in the order of their indices; `format` is the sentence about the data."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    task: Task
    format: str
    labels: tuple[str, ...] = ()
    duplicates: int = 0  # rows left out because an equal one is kept
    dropped: int = 0  # rows without an answer
    notes: tuple[str, ...] = field(default=())
    clusters: Mapping[str, str] = field(default_factory=dict)  # of data.tasks: task to cluster

    def __getitem__(self, name: str) -> tuple[Example, ...]:
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]

    @property
    def id2label(self) -> dict[int, str]:
        return dict(enumerate(self.labels))

    @property
    def data_hash(self) -> str:
        """Of the contents of the splits, whatever their order."""
        hashes = {name: sorted(example.row_hash for example in self[name]) for name in NAMES}
        return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()

    def summary(self) -> dict[str, Any]:
        return {"rows": {name: len(self[name]) for name in NAMES}, "duplicates": self.duplicates,
                "dropped": self.dropped, "data_hash": self.data_hash, "format": self.format, "task": self.task,
                "labels": list(self.labels), "notes": list(self.notes),
                **({"tasks": self._mixture()} if self.clusters else {})}

    def _mixture(self) -> dict[str, Any]:
        counts = {name: Counter(e.task for e in self[name] if isinstance(e, Dialogue)) for name in NAMES}
        return {task: {"cluster": cluster, "rows": {name: counts[name][task] for name in NAMES}}
                for task, cluster in self.clusters.items()}

    def write(self, folder: Path) -> None:
        """train.jsonl, validation.jsonl, test.jsonl and, last, summary.json; each whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in NAMES:
            with whole(folder / f"{name}.jsonl") as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
                file.writelines(json.dumps(example.to_json(), ensure_ascii=False) + "\n" for example in self[name])
        write_json(folder / "summary.json", self.summary())


def read_split(path: Path) -> tuple[Example, ...]:
    """What `write` wrote as one of the three files."""
    with undamaged(path), open(path, encoding="utf-8", newline="\n") as file:
        return tuple(from_json(json.loads(line)) for line in file)


def read_splits(folder: Path) -> Splits:
    """The inverse of `write`."""
    train, validation, test = (read_split(folder / f"{name}.jsonl") for name in NAMES)
    with undamaged(folder / "summary.json"):
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        return Splits(train, validation, test, summary["task"], summary["format"], tuple(summary["labels"]),
                      summary["duplicates"], summary["dropped"], tuple(summary["notes"]),
                      {name: task["cluster"] for name, task in summary.get("tasks", {}).items()})


@dataclass(frozen=True)
class _Source:
    """The distinct examples of one source, in its order."""

    name: str
    recognised: Recognised
    examples: tuple[Example, ...]
    duplicates: int
    dropped: int


def load(train: str, validation: float | str = 0.1, test: float | str = 0.1, *,
         columns: Mapping[str, str | int] | None = None, task: Task | None = None) -> Splits:
    """The splits of the data at `train`; the other two are shares of it, or sources of their own."""
    source = _read("train", train, columns or {}, task)
    task = source.recognised.task
    wanted = {"validation": validation, "test": test}
    given = {name: _read(name, value, columns or {}, task) for name, value in wanted.items() if isinstance(value, str)}
    shares = {name: value for name, value in wanted.items() if not isinstance(value, str)}
    sources = [source, *given.values()]
    for other in given.values():
        if task != "instruct":
            other.recognised.refuse_unless("text2" in source.recognised.columns, other.name)
    _refuse_shared_rows(sources)
    labels = _labels(*sources) if task == "classify" else ()
    parts = split(source.examples, shares, train) | {name: list(other.examples) for name, other in given.items()}
    learned = _classes(parts["train"])
    if len(learned) == 1:
        raise InputError(f"every row that is left to train on has the label {learned.pop()!r}, and those of others are in "
                         "validation or test; task: classify needs at least two labels to train on: add rows of the others, "
                         "or give data.validation and data.test as files", file=train)
    duplicates, dropped = sum(s.duplicates for s in sources), sum(s.dropped for s in sources)
    return Splits(tuple(parts["train"]), tuple(parts["validation"]), tuple(parts["test"]), task,
                  source.recognised.sentence, labels, duplicates, dropped, tuple(remarks(parts, duplicates, dropped)))


def _read(part: str, name: str, columns: Mapping[str, str | int], task: Task | None) -> _Source:
    """The source `name` of data.train, data.validation or data.test."""
    try:
        rows = read_rows(name, columns)
    except NoSuchFile as error:
        raise FieldError(str(error), "data", part) from None
    recognised = recognise(rows, columns, task)
    examples, dropped = recognised.examples(rows)
    if not examples:
        raise InputError(f"none of its {len(rows)} rows has an answer to learn: "
                         f"{recognised.sentence} is blank everywhere", file=name)
    distinct = {example.row_hash: example for example in reversed(examples)}  # the first of equal ones stays
    kept = tuple(example for example in examples if distinct[example.row_hash] is example)
    return _Source(name, recognised, kept, len(examples) - len(kept), dropped)


def split(examples: Sequence[K], shares: Mapping[str, float], source: str | None = "data.train") -> dict[str, list[K]]:
    """train, and of validation and test those that have a share. Each gets at least one question, see the top."""
    for name, share in shares.items():
        if not 0 < share < 1:
            raise InputError(f"data.{name}: {share:g} must be a share between 0 and 1, or a file")
    if sum(shares.values()) >= 1:
        raise InputError(f"data.validation and data.test: shares of {' and '.join(f'{s:g}' for s in shares.values())} "
                         "leave nothing to train on; together they must stay below 1")
    points = sorted({_point(example.key) for example in examples})
    if len(points) <= len(shares):
        raise InputError(f"a split would be empty: {len(points)} distinct question{'s' * (len(points) != 1)} cannot "
                         f"fill train and {' and '.join(shares)}; at least {len(shares) + 1} rows with different "
                         "questions are needed, some hundreds for losses worth comparing", file=source)
    home = _homes(points, {name: shares[name] for name in ("test", "validation") if name in shares})
    parts: dict[str, list[K]] = {name: [] for name in ("train", *shares)}
    for example in examples:
        parts[home[_point(example.key)]].append(example)
    return parts


def _homes(points: Sequence[float], shares: Mapping[str, float]) -> dict[float, str]:
    """The split of each of the sorted points. They lie in its order: an empty split takes a point of its neighbour."""
    cuts: list[int] = []
    share = 0.0
    for part in shares.values():
        share += part
        cuts.append(max(cuts[-1] + 1 if cuts else 1, bisect_left(points, share)))
    for i in reversed(range(len(cuts))):
        cuts[i] = min(cuts[i], (cuts[i + 1] if i + 1 < len(cuts) else len(points)) - 1)
    names = [*shares, "train"]
    return {point: names[bisect_right(cuts, rank)] for rank, point in enumerate(points)}


def _point(key: str) -> float:
    """The question's place in [0, 1): the test split lies lowest, then validation, then train."""
    return int(key[:13], 16) / 16**13  # 52 bits: exact in a float


def _refuse_shared_rows(sources: Sequence[_Source]) -> None:
    for i, later in enumerate(sources):
        for earlier in sources[:i]:
            there = {example.row_hash: example for example in earlier.examples}
            shared = [(example, there[example.row_hash]) for example in later.examples if example.row_hash in there]
            if shared:
                places = ", ".join(twin.place.rsplit(" ", 1)[-1] for _, twin in shared[:MOST_PLACES])
                more = ", ..." if len(shared) > MOST_PLACES else ""
                first, twin = shared[0]
                alike = "" if first == twin else ", but for line ends or outer whitespace"
                rows, unit = ("row is", "row at") if len(shared) == 1 else ("rows are", "rows at")
                raise InputError(
                    f"{len(shared)} {rows} also in {earlier.name}; the first: {first.place} equals {twin.place}{alike} "
                    f"({_short(first.prompt)}). Take what is in both out of {earlier.name} "
                    f"({unit} {places}{more}), or give a share in place of the second file", file=later.name)


def _labels(source: _Source, *given: _Source) -> tuple[str, ...]:
    """The classes of the training source, numbers in their order."""
    names = _classes(source.examples)
    if len(names) == 1:
        raise InputError(f"every row has the label {names.pop()!r}; task: classify needs at least two labels",
                         file=source.name)
    for other in given:
        for example in other.examples:
            if isinstance(example, Labelled) and example.label not in names:
                raise InputError(f"{example.place}: the label {example.label!r} is none of those in {source.name}."
                                 f"{nearest(str(example.label), names)}")
    numbers = {name: as_number(name) for name in names}
    return tuple(sorted(names, key=lambda name: (0.0 if None in numbers.values() else numbers[name] or 0.0, name)))


def _classes(examples: Sequence[Example]) -> set[str]:
    return {example.label for example in examples if isinstance(example, Labelled) and isinstance(example.label, str)}


def remarks(parts: Mapping[str, Sequence[Example]], duplicates: int, dropped: int) -> list[str]:
    notes = []
    if duplicates:
        notes.append(f"{duplicates} rows equal to another one (line ends and outer whitespace aside) were left out")
    if dropped:
        notes.append(f"{dropped} rows without an answer were left out")
    unknown = _classes([*parts["validation"], *parts["test"]]) - _classes(parts["train"])
    if unknown:
        notes.append(f"no train row has the label {', '.join(sorted(unknown))}, which validation or test has: it cannot be "
                     "learned")
    questions = {example.key for example in parts["train"]}
    for name in ("validation", "test"):
        known = sum(example.key in questions for example in parts[name])
        if known:
            notes.append(f"the questions of {known} {name} rows are also in train, with other answers")
        if len(parts[name]) < FEW_ROWS:
            notes.append(f"{name} has only {len(parts[name])} row{'s' * (len(parts[name]) > 1)}: its losses say little")
    return notes


def _short(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 60 else line[:57] + "...")
