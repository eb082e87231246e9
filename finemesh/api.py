"""What the commands do, as functions. The only module, with preparation.py, that sees both halves."""

import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from finemesh.config import Config, load_config
from finemesh.errors import InputError, nearest
from finemesh.handover import hand_over
from finemesh.preparation import (
    Study,
    earlier_points,
    prepare,
    prepared_task,
    refuse_point,
    whole_space,
)
from finemesh.reading import read_asked
from finemesh.remarks import remarks
from finemesh.results.report import write_report
from finemesh.results.summary import status as read_status
from finemesh.run import RunFolder, process_name
from finemesh.search import database
from finemesh.search.beginning import beginning
from finemesh.search.board import Board
from finemesh.search.budget import Budget
from finemesh.search.executors import EXECUTORS, Executor
from finemesh.search.fidelities import FIDELITIES, Fidelity
from finemesh.search.finish import finish
from finemesh.search.jobs import LOOK_EVERY, Jobs, run_posted
from finemesh.search.observer import Nobody, Observer
from finemesh.search.samplers import OPTIMIZERS
from finemesh.search.study import run_search, trials_in_flight
from finemesh.search_config import SearchConfig
from finemesh.trial import Job, Outcome, read_outcome, write_json
from finemesh.tuning.environment import worker_environment
from finemesh.tuning.methods import METHODS, describe
from finemesh.tuning.models import quieten
from finemesh.tuning.predictions import predictions
from finemesh.tuning.task import Task

CHECK_STEPS = 4
ANSWERS = 3  # test prompts that are answered before and after


def search(config: Config, *, observer: Observer | None = None, here: int | None = None) -> dict[str, Any]:
    """The whole job: search, leaders repeated, test split, best/ and the report. The status document.

    `here`: trials at a time in this process; the others wait for further processes on the same run. While another process
    asks for trials, this one runs those that wait, and takes over at its end.
    """
    run, watcher, here = RunFolder(config.out), observer or Nobody(), min(here or config.workers, config.workers)
    storage = None if config.storage == "sqlite" else config.storage
    if storage:
        database.check(storage)
    with _begun(run, config, lambda free: _lend_a_hand(run, config, watcher, here, free)):
        study = prepare(config, run, here, watcher.message)
        earlier = earlier_points(config, run, study)
        for note in remarks(config, study) if not (run.path / "trials").exists() else ():
            watcher.message(note)
        settings = config.search
        with _workers(run, study.task, config, here) as executor:
            in_flight = trials_in_flight(config.workers, reproducible=settings.reproducible)
            outcomes = run_search(
                study.space, OPTIMIZERS[settings.optimizer](settings.seed, in_flight),
                Budget(settings.trials, settings.hours), executor, run, seed=settings.seed, steps=settings.steps,
                in_flight=in_flight, constraints=settings.bounds, count=study.count, reproducible=settings.reproducible,
                objectives=settings.objectives,
                observer=watcher, first=beginning(study.references, study.space, settings.steps), earlier=earlier,
                fidelity=_rule(settings), storage=storage)
            if run.finish() is None:
                run.forget_lightened()
            finish(outcomes, study.references, study.space, executor, run, seed=settings.seed, steps=settings.steps,
                   repeats=settings.repeats, extra=settings.extra_repeats, constraints=settings.bounds,
                   objectives=settings.objectives, observer=watcher, answers=ANSWERS if study.task.task == "instruct" else 0,
                   rows={name: len(study.splits[name]) for name in ("train", "validation", "test")})
        hand_over(run, config)
    return read_status(run.path)


def tune(config: Config, method: str, settings: Mapping[str, Any], steps: int | None = None, out: str | None = None,
         observer: Observer | None = None) -> Outcome:
    """One run; what `settings` leaves out is the method's reference. The same again is read, not run, unless it failed."""
    if method not in METHODS:
        raise InputError(f"--method: there is no method {method!r}.{nearest(method, METHODS)}")
    config = config.with_option("methods", [method], "--method").model_copy(update={"out": out or f"{config.out}-{method}"})
    run = RunFolder(config.out)
    point = whole_space().point(method, settings, METHODS[method].reference)
    with _begun(run, config):
        study = prepare(config, run, say=(observer or Nobody()).message)
        refuse_point(config, study.splits, method, point)
        earlier = run.outcomes()
        length = steps or config.search.steps
        same = next((o for o in earlier if (o.hyperparameters, o.steps) == (point, length) and o.state != "failed"), None)
        number = same.number if same else len(earlier)
        job = Job(number, method, point, config.search.seed, length, run.trial(number), config.search.bounds)
        return _one(run, replace(study.task, steps=length), config, job, observer)


def tune_again(folder: Path, number: int, observer: Observer | None = None) -> Outcome:
    """Trial `number` of a run once more, into again/ beside its trials: it should give the same numbers."""
    run = RunFolder.existing(folder)
    former = read_outcome(run.trial(number))
    if former is None:
        numbers = [outcome.number for outcome in run.outcomes()]
        raise InputError(f"{folder} has no trial {number} that ended; it has {_ranges(numbers)}")
    if not former.started:
        raise InputError(f"trial {number} was not started, so there is nothing to repeat: {former.error}. Run its settings "
                         "with --method and --set")
    place = run.path / "again" / f"{number:04d}"
    shutil.rmtree(place, ignore_errors=True)
    job = Job(number, former.method, former.hyperparameters, former.seed, former.steps, place)
    with run.locked():
        config = load_config(run.config)
        return _one(run, prepared_task(config, run), config, job, observer)


def predict(folder: Path, data: str, task: str | None = None) -> Iterator[str]:
    """The winner's answers or labels for the rows of a file, in their order; `task` is the one of data.tasks that asks them."""
    run = RunFolder.existing(folder)
    best = run.winner()
    if best is None:
        raise InputError(f"{folder} has no winner yet: {run.best} is written when its search ends")
    config = load_config(run.config)
    loaded = prepared_task(config, run)
    questions = read_asked(config, data, loaded, task)
    yield from predictions(loaded, best["method"], best["hyperparameters"], run.best, questions)


def check(config: Config, message: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Data, split, memory and time: each method's reference is run for a few steps, nothing is kept. `message` is told what
    is being measured: with many methods it takes minutes."""
    quieten()
    if config.storage != "sqlite":
        database.check(config.storage)
    parent = None if config.executor == "local" else next(p for p in Path(config.out).absolute().parents if p.is_dir())
    with tempfile.TemporaryDirectory(dir=parent) as temporary:
        run = RunFolder(Path(temporary) / "check")
        run.path.mkdir()
        study = prepare(config, run, say=message)
        splits, source = study.splits, study.task.source
        warnings = remarks(config, study)
        earlier_points(config, run, study)
        with _workers(run, replace(study.task, steps=CHECK_STEPS), config, 1) as executor:
            outcomes: dict[str, Outcome] = {}
            for index, name in enumerate(study.references, 1):
                message(f"[{index}/{len(study.references)}] {name}: {CHECK_STEPS} steps with its reference settings")
                outcomes[name] = _trial_run(run, study, name, executor)
    steps, batch = config.search.steps, config.search.batch_size
    methods: dict[str, Any] = {}
    for name, outcome in outcomes.items():
        if outcome.state == "complete":
            each = outcome.metrics["seconds_a_step"]
            methods[name] = {"trial_seconds": round(each * steps + outcome.metrics["seconds_beside"], 1),
                             "peak_memory_mb": outcome.peak_memory_mb, "trainable_parameters": outcome.trainable_parameters,
                             "adapter_mb": outcome.adapter_mb}
        else:
            warnings.append(f"{name}: {outcome.error}")
    mean = sum(m["trial_seconds"] for m in methods.values()) / max(1, len(methods))
    repeats = config.search.repeats * (3 + len(study.references)) + 2 * config.search.extra_repeats
    summary, rule = splits.summary(), _rule(config.search)
    searching = mean * rule.share * config.search.trials / config.workers
    finishing = mean * repeats / config.workers
    return {"task": splits.task, "format": splits.format, "rows": summary["rows"],
            **{name: summary[name] for name in ("tasks",) if name in summary}, "duplicates": splits.duplicates,
            "dropped": splits.dropped, "data_hash": summary["data_hash"], "model": source.public_name,
            "precision": study.task.precision.name, "epochs_a_trial": round(steps * batch / len(splits.train), 2),
            "judged_after": rule.earliest if rule.earliest < steps else None,
            "base_memory_mb": next((o.base_memory_mb for o in outcomes.values() if o.base_memory_mb), None),
            "methods": methods, "search_seconds": round(min(searching, 3600 * (config.search.hours or math.inf)) + finishing),
            "warnings": warnings}


def status(folder: Path) -> dict[str, Any]:
    """state, trials, best, test, seconds."""
    return read_status(RunFolder.existing(folder).path)


def report(folder: Path) -> Path:
    """Writes report.html; its path."""
    return write_report(RunFolder.existing(folder).path)


def methods() -> list[dict[str, Any]]:
    """The METHODS table."""
    return [describe(method) for method in METHODS.values()]


def _one(run: RunFolder, task: Task, config: Config, job: Job, observer: Observer | None) -> Outcome:
    watcher = observer or Nobody()
    watcher.phase("tune", 1)
    with _workers(run, task, config, 1) as executor:
        ended = _ended(Jobs(executor, watcher), job)
    watcher.ended(ended)
    return ended


def _ended(jobs: Jobs, job: Job) -> Outcome:
    outcome = jobs.start(job)
    while outcome is None:
        outcome = next((outcome for _, outcome in jobs.wait()), None)
    return outcome


def _trial_run(run: RunFolder, study: Study, method: str, executor: Executor) -> Outcome:
    """A few steps of the method's reference settings; seconds_a_step leaves the first and the last out."""
    job = Job(0, method, study.references[method], study.task.seed, CHECK_STEPS, run.path / "trials" / method)
    outcome = _ended(Jobs(executor, Nobody()), job)
    if outcome.state != "complete":
        return outcome
    curve = [json.loads(line) for line in (job.folder / "curve.jsonl").read_text(encoding="utf-8").splitlines()]
    each = (curve[-2]["seconds"] - curve[1]["seconds"]) / (len(curve) - 3) if len(curve) > 3 else 0.0
    beside = max(0.0, outcome.seconds - CHECK_STEPS * each)
    return replace(outcome, metrics={"seconds_a_step": each, "seconds_beside": beside})


def _rule(search: SearchConfig) -> Fidelity:
    """How far each trial goes."""
    return FIDELITIES[search.fidelity](search.steps, search.min_steps, search.reduction)


@contextmanager
def _begun(run: RunFolder, config: Config, meanwhile: Callable[[Callable[[], bool]], None] | None = None) -> Iterator[None]:
    """The folder is locked. What ends before the first trial leaves no folder, so that the config can be mended."""
    with run.locked(meanwhile):
        fresh = not run.config.exists()
        run.begin(_written(config), _defaults())
        run.forget_ended()
        try:
            yield
        except BaseException:
            if fresh and not (run.path / "trials").exists():
                shutil.rmtree(run.path)
            raise


def _written(config: Config) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(config.model_dump_json(exclude_none=True))
    return found


def _defaults() -> dict[str, Any]:
    """What a config says of the search that says nothing."""
    found: dict[str, Any] = json.loads(SearchConfig().model_dump_json(exclude_none=True))
    return {"search": found}


def _lend_a_hand(run: RunFolder, config: Config, observer: Observer, here: int, free: Callable[[], bool]) -> None:
    """Runs trials that another process has asked for and that wait, until the run is free."""
    while not run.task.exists():  # the other one is preparing
        if free():
            return
        time.sleep(LOOK_EVERY)
    run.check(_written(config), _defaults())
    observer.message(f"Another process searches in {run.path}. This one runs trials that wait there, {here} at a time, and "
                     "goes on with the search when that one ends.")
    with _workers(run, prepared_task(config, run), config, here, run.logs / process_name()) as executor:
        run_posted(Board(run), executor, observer, free)


@contextmanager
def _workers(run: RunFolder, task: Task, config: Config, count: int, logs: Path | None = None) -> Iterator[Executor]:
    """Worker processes that have this task loaded, ended in any case."""
    file = run.worker_task()
    write_json(file, task.to_json())
    here = Path.cwd() == Path(__file__).resolve().parents[1]  # elsewhere it may hold somebody's tokenize.py
    command = [sys.executable, *([] if here else ["-P"]), "-m", "finemesh.tuning.worker", str(file.absolute())]
    devices = [str(i) for i in range(torch.cuda.device_count())]
    options = config.ray.model_dump() if config.executor == "ray" else {"devices": devices}
    environment = worker_environment(task.threads)
    try:
        with EXECUTORS[config.executor](command, count, logs=logs or run.logs, environment=environment, **options) as executor:
            yield executor
    finally:
        file.unlink(missing_ok=True)


def _ranges(numbers: list[int]) -> str:
    return f"{min(numbers)} to {max(numbers)}" if numbers else "none yet"
