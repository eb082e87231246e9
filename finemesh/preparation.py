"""From a config to what a study stands on: splits on disk, the task that workers load, the space that is searched.

All that the user can have got wrong is found here, before anything is spent. What is fixed once a study (splits,
precision, threads) is read back from the run folder when the study goes on.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from finemesh.config import Config
from finemesh.errors import InputError, nearest
from finemesh.run import RunFolder, full_disk
from finemesh.search.space import Space
from finemesh.trial import write_json
from finemesh.tuning.data.batches import encode_all
from finemesh.tuning.data.split import NAMES, Splits, load, read_splits
from finemesh.tuning.machine import describe_machine, usable_cores
from finemesh.tuning.methods import METHODS
from finemesh.tuning.models import ModelSource, find_model, load_skeleton, load_tokenizer, quieten
from finemesh.tuning.precision import measure_precision
from finemesh.tuning.task import Task


@dataclass(frozen=True)
class Study:
    """`references` are the methods' reference settings, by method, as whole points of the space."""

    splits: Splits
    task: Task
    space: Space
    references: Mapping[str, Mapping[str, Any]]


def read_data(config: Config, source: ModelSource) -> Splits:
    """The splits of the config's data, without rows that the model would not score. InputError if none is left."""
    data = config.data
    splits = load(data.train, data.validation, data.test, columns=data.columns, task=config.task)
    tokenizer = load_tokenizer(source)
    kept: dict[str, Any] = {}
    dropped = 0
    for name in NAMES:
        rows, lost = encode_all(splits[name], tokenizer, data.max_length, splits.task, labels=splits.labels,
                                name=f"data.{name}")
        kept[name], dropped = tuple(example for example, _ in rows), dropped + lost
    notes = splits.notes
    if dropped:
        notes += (f"{dropped} rows have no scored token within data.max_length {data.max_length} and were left out",)
    return replace(splits, **kept, dropped=splits.dropped + dropped, notes=notes)


def searched_space(config: Config, splits: Splits, source: ModelSource) -> Space:
    """The methods that the config names, or all that fit; with what it narrows. InputError for one that does not fit."""
    model = load_skeleton(source, splits.task, labels=splits.labels)
    reasons = {name: method.unfit(model, splits.task) for name, method in METHODS.items()}
    fitting = [name for name, reason in reasons.items() if reason is None]
    wanted = config.spaces if config.spaces is not None else {name: {} for name in fitting}
    for name in wanted:
        if name not in METHODS:
            raise InputError(f"methods: there is no method {name!r}.{nearest(name, METHODS)}")
        if reasons[name]:
            raise InputError(f"methods: {name} does not fit: {reasons[name]}. These do: {', '.join(fitting)}.")
    return Space({name: METHODS[name].space for name in METHODS}).narrowed(wanted)


def prepare(config: Config, run: RunFolder) -> Study:
    """What the study of a locked and begun run folder stands on; made the first time, read afterwards."""
    quieten()
    source = find_model(config.model)
    with full_disk(run.path):
        if (run.splits / "summary.json").exists():
            splits = read_splits(run.splits)
        else:
            splits = read_data(config, source)
            splits.write(run.splits)
        space = searched_space(config, splits, source)
        if run.task.exists():
            task = replace(Task.read(run.task), source=source, splits=run.splits.resolve())
        else:
            task = _task(config, run, source, splits)
        write_json(run.task, task.to_json())
        if not run.machine.exists():
            write_json(run.machine, describe_machine(task.threads) | {"precision": task.precision.to_json()})
    references = {name: space.point(name, {}, METHODS[name].reference) for name in space.methods}
    return Study(splits, task, space, references)


def whole_space() -> Space:
    """Of every method, as `finemesh tune` takes its settings from."""
    return Space({name: method.space for name, method in METHODS.items()})


def _task(config: Config, run: RunFolder, source: ModelSource, splits: Splits) -> Task:
    search = config.search
    return Task(source, splits.task, run.splits.resolve(), splits.labels, config.data.max_length, search.batch_size,
                accumulation=search.accumulation, steps=search.steps, seed=search.seed, precision=measure_precision(),
                threads=max(1, usable_cores() // config.workers))


def read_summary(run: RunFolder) -> dict[str, Any]:
    """What splits/summary.json says of the data."""
    found: dict[str, Any] = json.loads((run.splits / "summary.json").read_text(encoding="utf-8"))
    return found
