"""The rows that a config's data section names: as splits, as questions to a finished run, and whether they are still those.

What is wrong with them is said with the config's file and line.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finemesh.config import Config
from finemesh.data_config import DataConfig
from finemesh.errors import FieldError, InputError, nearest
from finemesh.run import RunFolder
from finemesh.trial import read_json
from finemesh.tuning.data.batches import encode_all
from finemesh.tuning.data.examples import Example
from finemesh.tuning.data.instructions import Template
from finemesh.tuning.data.mixture import TaskSource, load_tasks
from finemesh.tuning.data.questions import put_questions, read_instructions, read_questions
from finemesh.tuning.data.split import NAMES, Splits, load, read_split
from finemesh.tuning.models import ModelSource, check_task, context_of, find_model, load_tokenizer, vocabulary_of
from finemesh.tuning.task import Task


def model_of(config: Config) -> ModelSource:
    with config.placed():
        return find_model(config.model)


def load_data(config: Config) -> Splits:
    """The splits as the config's sources give them, without a look at the model."""
    data = config.data
    if not data.tasks:
        assert data.train is not None
        return load(data.train, data.validation, data.test, columns=data.columns, task=config.task)
    return load_tasks(_tasks(data), data.held_out or (), float(data.validation), float(data.test))


def read_asked(config: Config, data: str, task: Task, name: str | None) -> Sequence[Example]:
    """The rows of a file as questions to the model of a run; with `name` as that one of data.tasks asks."""
    tasks = _tasks(config.data)
    if name is None and tasks:
        return read_instructions(data, tasks)
    if name is None:
        rows = task.splits / "train.jsonl"  # not needed to ask, so it may be gone
        trained = read_split(rows)[0] if rows.exists() else None
        return read_questions(data, columns=config.data.columns, task=task.task, trained=trained)
    if not tasks:
        raise InputError(f"--task {name}: there are no data.tasks in this run, whose rows are taken as they are: leave it out")
    if name not in tasks:
        raise InputError(f"--task: there is no task {name} in this run.{nearest(name, tasks)}")
    return put_questions(data, name, tasks[name])


def _tasks(data: DataConfig) -> dict[str, TaskSource]:
    return {name: TaskSource(task.train, [Template.read(text) for text in task.templates], data.clusters[name], task.cap,
                             task.columns, task.labels) for name, task in (data.tasks or {}).items()}


def read_data(config: Config, source: ModelSource) -> Splits:
    """The splits of the config's data, without rows that the model would not score. InputError if none is left."""
    data = config.data
    kept: dict[str, Any] = {}
    dropped = 0
    with config.placed():
        splits = load_data(config)
        check_task(source, splits.task)
        tokenizer = load_tokenizer(source)
        for name in NAMES:
            rows, lost = encode_all(splits[name], tokenizer, data.max_length, splits.task, labels=splits.labels, name=name)
            kept[name], dropped = tuple(example for example, _ in rows), dropped + lost
            highest, known = max(max(row.input_ids) for _, row in rows), vocabulary_of(source)
            if highest >= known:
                word = tokenizer.convert_ids_to_tokens(highest)
                raise FieldError(f"the tokenizer of {source.name} writes token {highest} ({word!r}), and the model knows "
                                 f"{known}: its embeddings were not enlarged for what was added. Get a tokenizer and a model "
                                 "that belong together.", "model")
            longest, room = max(len(row.input_ids) for _, row in rows), context_of(source)
            if longest > room:
                raise FieldError(f"a row of the {name} split has {longest} tokens, and the model takes {room}: give at most "
                                 f"{room}, where longer rows are cut", "data", "max_length")
    notes = splits.notes
    if dropped:
        notes += (f"{dropped} rows have no scored token within data.max_length {data.max_length} and were left out",)
    return replace(splits, **kept, dropped=splits.dropped + dropped, notes=notes)


def contents(data: DataConfig) -> dict[str, str]:
    """By field, the hash of the file that it names; hub data sets and packages have none."""
    return {field: hashlib.sha256(Path(name).read_bytes()).hexdigest() for field, name in data.named.items()
            if Path(name).is_file()}


def check_unchanged(config: Config, run: RunFolder) -> None:
    """FieldError where a file holds other rows than those of the run's splits. One that is gone is not needed any more."""
    known, now = read_json(run.sources) or {}, contents(config.data)
    for field in known.keys() & now.keys():
        if known[field] != now[field]:
            with config.placed():
                raise FieldError(f"{config.data.named[field]} is not the file any more with which {run.path} began: put that "
                                 "one back, or choose another --out", "data", *field.split("/"))


def read_summary(run: RunFolder) -> dict[str, Any]:
    """What splits/summary.json says of the data."""
    return read_json(run.splits / "summary.json") or {}
