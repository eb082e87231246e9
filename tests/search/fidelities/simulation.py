"""Trials on synthetic learning curves, in this process: an executor that ends them in an order of its own.

A point's loss falls by a power law to a floor that its settings decide; a low learning rate falls slowly.
"""

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

from finemesh.constraints import judged
from finemesh.run import RunFolder
from finemesh.search.budget import Budget
from finemesh.search.executors.base import Event
from finemesh.search.fidelities import FIDELITIES
from finemesh.search.samplers import OPTIMIZERS
from finemesh.search.study import run_search
from finemesh.trial import Job, Outcome, write_outcome

FULL = 90


def loss(job: Job, step: int) -> float:
    point = job.hyperparameters
    rate = math.log10(point["learning_rate"])
    best, lowest = {"lora": (-3.0, 1.0), "full": (-4.5, 1.1)}[job.method]
    floor = lowest + 0.15 * (rate - best) ** 2 - 0.02 * math.log2(point.get("rank", 1))
    return floor + 1.2 * (1 + step / (3 * 3 ** max(0.0, best - rate))) ** -0.9


class Simulated:
    """Of the requests under way one ends at a time, drawn by `order`. `trained` counts the steps that were made."""

    def __init__(self, order: int = 0, workers: int = 1) -> None:
        self.workers = workers
        self._chance = random.Random(order)
        self._jobs: dict[int, Job] = {}
        self._requests = 0
        self.trained = 0

    def submit(self, kind: str, arguments: dict[str, Any]) -> int:
        self._requests += 1
        self._jobs[self._requests] = Job.from_json(arguments)
        return self._requests

    def wait(self, timeout: float | None = None) -> list[Event]:
        request = self._chance.choice(sorted(self._jobs))
        return [Event(request, "result", self._outcome(self._jobs.pop(request)).to_json())]

    def close(self) -> None:
        self._jobs.clear()

    def _outcome(self, job: Job) -> Outcome:
        checkpoint = job.folder / "checkpoint.safetensors"
        start = int(checkpoint.read_text()) if checkpoint.exists() else 0
        assert (start > 0) == (job.continues is not None)  # never from scratch
        hurdles = {hurdle.step: hurdle.loss for hurdle in job.hurdles or ()}
        last = next((step for step in range(10, job.steps, 10) if step > start and loss(job, step) > hurdles.get(step, 99.0)),
                    job.steps)
        curve = [{"step": step, "validation_loss": loss(job, step)} for step in range(0, last + 1, 10)]
        (job.folder / "curve.jsonl").write_text("".join(json.dumps(line) + "\n" for line in curve))
        checkpoint.write_text(str(last))
        self.trained += last - start
        rank = job.hyperparameters.get("rank", 5)
        state: Any = "complete" if last == FULL else "pruned"
        outcome = judged(Outcome(
            job.number, state, job.method, job.hyperparameters, job.seed, last, validation_loss=loss(job, last),
            trained_tokens=last, continues=job.continues, foreseen=job.foreseen, trainable_parameters=1000 * rank,
            peak_memory_mb=100.0 + 2 * rank, seconds=last * (1 + rank / 50),
            whole_seconds=None if state == "complete" else FULL * (1 + rank / 50), metrics={"accuracy": 1 / loss(job, last)},
            error=None if last == job.steps else "too far behind"), job.constraints)
        write_outcome(job.folder, outcome)
        return outcome


def search(fake: Any, folder: Path, fidelity: str, optimizer: str | None = None, *, points: int = 18, workers: int = 1,
           order: int = 0, observer: Any = None, space: Any = None, **options: Any) -> tuple[list[Outcome], int]:
    """The outcomes, and the steps that were made for them. By default the sampler is one that notices everything."""
    run = RunFolder(folder)
    run.path.mkdir(parents=True, exist_ok=True)
    if not run.study.exists():
        shutil.copy(fake.empty_store(), run.study)
    executor = Simulated(order, workers)
    sampler = OPTIMIZERS[optimizer](0, workers) if optimizer else fake.Watching(0)
    outcomes = run_search(space or fake.SPACE, sampler, Budget(points), executor, run, seed=0, steps=FULL, in_flight=workers,
                          fidelity=FIDELITIES[fidelity](FULL, None, 3), observer=observer, **options)
    return outcomes, executor.trained


def best(outcomes: list[Outcome]) -> float:
    return min(outcome.validation_loss or math.inf for outcome in outcomes if outcome.state == "complete")
