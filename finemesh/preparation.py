"""From a config to what a study stands on: splits on disk, the task that workers load, the space that is searched.

All that the user can have got wrong is found here, before anything is spent. What is fixed once a study (splits,
precision, threads) is read back from the run folder when the study goes on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from heapq import nlargest
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from finemesh.config import Config
from finemesh.disk import full_disk
from finemesh.errors import FieldError, InputError
from finemesh.reading import check_unchanged, contents, model_of, read_data
from finemesh.run import RunFolder
from finemesh.search.executors.ray import on_a_node
from finemesh.search.space import Space
from finemesh.search.transfer import Known, known_points, read_known, write_known
from finemesh.trial import HIGHER_IS_BETTER, SCORES, read_json, write_json
from finemesh.tuning.data.batches import encode_all, scored_tokens
from finemesh.tuning.data.split import NAMES, Splits, read_splits
from finemesh.tuning.kernels.decoder import FAMILIES, way_through
from finemesh.tuning.machine import describe_machine, usable_cores
from finemesh.tuning.methods import METHODS, Context
from finemesh.tuning.models import (
    ModelSource,
    context_length,
    context_of,
    fetch,
    load_skeleton,
    load_tokenizer,
    quieten,
)
from finemesh.tuning.precision import measure_precision
from finemesh.tuning.task import Task

LOOKED_AT = 200  # training rows, and as many of the longest texts, to see whether a method's settings fit them


@dataclass(frozen=True)
class Study:
    """`references` are the methods' reference settings, by method, as whole points of the space; `count` says how many
    parameters a point trains."""

    splits: Splits
    task: Task
    space: Space
    references: Mapping[str, Mapping[str, Any]]
    count: Callable[[str, Mapping[str, Any]], int]


def searched_space(config: Config, splits: Splits, source: ModelSource) -> Space:
    """The methods that the config names, or all that fit; with what it narrows.

    InputError for one that does not fit, and for a value that the user wrote and that cannot be used here.
    """
    fit = _Fit.of(config, splits, source)
    reasons = {name: fit.reason(name) for name in METHODS}
    fitting = [name for name, reason in reasons.items() if reason is None]
    wanted = config.spaces if config.spaces is not None else {name: {} for name in fitting}
    space = whole_space().narrowed(wanted)
    with config.placed():
        if config.search.precision == "int8" and (refusal := _no_int8(config, fit.model)):
            raise FieldError(f"int8 {refusal}: leave it at auto", "search", "precision")
        for index, (method, written) in enumerate(wanted.items()):
            if reasons[method]:
                raise FieldError(f"{method} does not fit: {reasons[method]}. These do: {', '.join(fitting)}.",
                                 "methods", index if isinstance(config.methods, list) else method)
            for name in written:
                for point in space.extremes(method, name):
                    if refusal := fit.refusal(method, point):
                        raise FieldError(f"{point[name]!r} cannot be used here: {refusal}", "methods", method, name)
    return space


def refuse_point(config: Config, splits: Splits, method: str, point: Mapping[str, Any]) -> None:
    """InputError where these settings of one run cannot be used."""
    if refusal := _Fit.of(config, splits, model_of(config)).refusal(method, point):
        raise InputError(f"{method}: {refusal}")


def _no_int8(config: Config, model: PreTrainedModel) -> str | None:
    """Why no step would do anything in 8 bits."""
    if config.ray.gpus if config.executor == "ray" else torch.cuda.is_available():
        return "is for processors, and trials run on a GPU"
    if way_through(model, time=1) is None:
        return f"is for causal models of the types {', '.join(FAMILIES)}, and {type(model).__name__} is none"
    return None


@dataclass(frozen=True)
class _Fit:
    """Whether methods and their settings fit the model and the data: its shapes and some of the rows are looked at."""

    model: PreTrainedModel
    context: Context

    @staticmethod
    def of(config: Config, splits: Splits, source: ModelSource) -> "_Fit":
        with config.placed():
            model = load_skeleton(source, splits.task, labels=splits.labels).requires_grad_(False)
            tokenizer = load_tokenizer(source)
        length = config.data.max_length
        every = [example for name in NAMES for example in splits[name]]
        long = nlargest(LOOKED_AT, every, key=lambda example: len(example.prompt) + len(example.answer))
        pairs, longest = (encode_all(some, tokenizer, length, splits.task, labels=splits.labels)[0]
                          for some in (splits.train[:LOOKED_AT], long))

        def answers() -> list[int]:
            every, _ = encode_all(splits.train, tokenizer, length, splits.task, labels=splits.labels)
            return scored_tokens([row for _, row in every])

        return _Fit(model, Context(splits.task, tokenizer, [example for example, _ in pairs], [row for _, row in pairs],
                                   length, context_length(model.config), config.search.seed,
                                   max(len(row.input_ids) for _, row in longest), answers=answers))

    def reason(self, method: str) -> str | None:
        """Why the method does not fit at all: for its kind, or because even its smallest settings are too much."""
        unfit = METHODS[method].unfit(self.model, self.context.task)
        if unfit is not None:
            return unfit
        space = whole_space()
        points = [space.point(method, {}, METHODS[method].reference), space.smallest(method)]
        refusals = [self.refusal(method, point) for point in points]
        return refusals[-1] if all(refusals) else None

    def trainable(self, method: str, point: Mapping[str, Any]) -> int:
        """How many parameters are trained; a number of the model's and the point's shapes."""
        return METHODS[method].trainable(self.model, point, self.context)

    def refusal(self, method: str, point: Mapping[str, Any]) -> str | None:
        return METHODS[method].refuses(self.model, point, self.context)


def prepare(config: Config, run: RunFolder, here: int | None = None, say: Callable[[str], None] = lambda text: None) -> Study:
    """What the study of a locked and begun run folder stands on; made the first time, read afterwards.

    `here`: workers that this machine has at a time; left out: all of them. `say` is told what takes long.
    """
    quieten()
    source = model_of(config)
    with full_disk(run.path):
        if (run.splits / "summary.json").exists():
            check_unchanged(config, run)
            splits = read_splits(run.splits)
        else:
            splits = read_data(config, source)
            splits.write(run.splits)
            write_json(run.sources, contents(config.data))
        with config.placed():
            fetch(source, splits.task, say)
        space = searched_space(config, splits, source)
        known = run.task.exists()
        task = prepared_task(config, run) if known else _task(config, run, source, splits, here or config.workers)
        write_json(run.task, task.to_json())
        write_json(run.space, space.to_json())
        if read_json(run.machine) is None:
            write_json(run.machine, describe_machine(task.threads) | {"precision": task.precision.to_json()})
    references = {name: space.point(name, {}, METHODS[name].reference) for name in space.methods}
    with config.placed():
        _check_scores(config, splits)
    return Study(splits, task, space, references, _Fit.of(config, splits, source).trainable)


def earlier_points(config: Config, run: RunFolder, study: Study) -> list[Known]:
    """What the runs that the search starts from found; read once, for they may go on."""
    if run.earlier.exists():
        return read_known(run)
    points: list[Known] = []
    with config.placed():
        for index, folder in enumerate(config.search.earlier):
            try:
                if run.path.resolve() == Path(folder).resolve():
                    raise InputError(f"{folder} is the run of this search itself, which goes on without that")
                points += known_points(folder, study.space, study.references)
            except InputError as error:
                raise FieldError(str(error), "search", "from", index) from None
    if points:
        write_known(run, points)
    return points


def _check_scores(config: Config, splits: Splits) -> None:
    measured = SCORES.get(splits.task, ())
    for field, names in (("constraints", config.search.bounds), ("objectives", config.search.objectives)):
        for name in names:
            if name in HIGHER_IS_BETTER and name not in measured:
                raise FieldError(f"{name} is not measured for task: {splits.task}" +
                                 (f"; these are: {', '.join(measured)}" if measured else ", which has no such score"),
                                 "search", field)


def prepared_task(config: Config, run: RunFolder) -> Task:
    """As it was prepared, with the places that model and splits have here and now."""
    quieten()
    task = Task.read(run.task)
    source = task.source if Path(task.source.location).is_dir() else model_of(config)
    return replace(task, source=source, splits=run.splits.resolve())


def whole_space() -> Space:
    """Of every method, as `finemesh tune` takes its settings from."""
    return Space({name: method.space for name, method in METHODS.items()})


def _task(config: Config, run: RunFolder, source: ModelSource, splits: Splits, here: int) -> Task:
    search = config.search
    max_length = min(config.data.max_length, context_of(source))  # the rows are shorter, but not all that will be asked
    measured = on_a_node(measure_precision, **config.ray.model_dump()) if config.executor == "ray" else measure_precision()
    return Task(source, splits.task, run.splits.resolve(), splits.labels, max_length, search.batch_size,
                accumulation=search.accumulation, steps=search.steps, seed=search.seed,
                precision=measured.chosen(search.precision),
                threads=max(1, int(config.ray.cpus) if config.executor == "ray" else usable_cores() // here))
