"""One fine-tuning run: the loop of every method. Schedule, mixed precision, accumulation, clipping, checkpoints, curve.

A run is a function of its plan: cut at any update and continued from a checkpoint, it gives the same numbers.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from finemesh.tuning.checkpoint import Checkpoint, load_optimizer_state, optimizer_state
from finemesh.tuning.data.batches import Encoded, scored_a_row, training_batches
from finemesh.tuning.gradients import Gradients
from finemesh.tuning.methods import Method, Point
from finemesh.tuning.models import TaskName
from finemesh.tuning.schedule import Schedule

CHECKPOINT_SECONDS = 20.0  # of training between checkpoints; more where saving one takes long
CHECKPOINT_SHARE = 0.05  # of the time, at most, goes into saving them


@dataclass(frozen=True)
class Plan:
    """What a run does. `steps` may stop short of `horizon`, the length that the schedule is made for."""

    task: TaskName
    steps: int
    horizon: int
    batch_size: int  # rows an update
    seed: int
    pad_id: int
    accumulation: int = 1  # micro-batches an update
    clip: float = 1.0  # largest gradient norm
    int8: bool = False  # products with frozen weights in 8-bit integers while training; validation is as without
    validations: int = 2  # along the way, the last at the horizon

    def validates(self, step: int) -> bool:
        """After `step` updates. Also where a run is cut short."""
        every = max(1, self.horizon // max(1, self.validations))
        return step == self.steps or (step % every == 0 and step > 0 and self.horizon - step >= every)


@dataclass(frozen=True)
class CurveLine:
    """One line of curve.jsonl; `train_loss` is that update's, `validation_loss` the one after it; `validation_seconds` are
    those since the line before that went into it."""

    step: int
    trained_tokens: int
    seconds: float
    train_loss: float | None
    validation_loss: float | None
    learning_rate: float
    validation_seconds: float = 0.0


@dataclass
class Progress:
    """Where a run stands; all but `curve` is what the outcome reports."""

    step: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    curve: list[CurveLine] | None = None


class Diverged(Exception):
    """The loss is no longer a finite number."""


def fine_tune(tuned: nn.Module, method: Method, point: Point, rows: Sequence[Encoded], plan: Plan, accelerator: Accelerator,
              validate: Callable[[], float], folder: Path, *, report: Callable[[CurveLine], None] = lambda line: None,
              peak_memory_mb: Callable[[], float] = lambda: 0.0, preparation_seconds: float = 0.0) -> Progress:
    """Tune in place. `validate` gives the validation loss; `report` sees each line and may raise to stop the run. What was
    spent on preparing the model and the rows is a part of the run's time, once: not again where a checkpoint is taken up.

    Writes folder/curve.jsonl and, as it goes, folder/checkpoint.safetensors; continues from one that fits the plan.
    A method that trains nothing is only validated. Raises Diverged.
    """
    run = _Run(tuned, method, point, plan, accelerator, folder, report, peak_memory_mb, rows, preparation_seconds)
    if not method.trains:
        run.record(0, None, run.timed(validate), 0.0)
        return run.progress
    optimizer = method.optimizer(tuned, point)
    peak_rates = [group["lr"] for group in optimizer.param_groups]
    schedule = run.continue_from_checkpoint(optimizer)
    if run.progress.step == 0 and not run.progress.curve:
        run.record(0, None, run.timed(validate), 0.0)
    batches = training_batches([len(row.input_ids) for row in rows], plan.batch_size, plan.seed, start=run.progress.step)
    tuned.train()
    for step in range(run.progress.step, plan.steps):
        for group, rate in zip(optimizer.param_groups, peak_rates, strict=True):
            group["lr"] = rate * schedule.factor(step)
        batch = [rows[i] for i in next(batches)]
        loss = run.update(optimizer, batch)
        loss_after = run.timed(validate) if plan.validates(step + 1) else None
        run.progress.trained_tokens += sum(len(row.input_ids) for row in batch)
        run.record(step + 1, loss, loss_after, optimizer.param_groups[0]["lr"])
        run.save_now_and_then(optimizer, schedule)
    tuned.eval()
    if plan.steps < plan.horizon:
        run.save(optimizer, schedule)
    return run.progress


def whole_seconds(folder: Path, plan: Plan) -> float:
    """What a run of the plan's horizon would take, by the curve in the folder: a step and a validation cost what they have.

    A trial that ends early is validated more often for its steps, so its time does not grow in proportion to them; its first
    step warms up.
    """
    lines = [json.loads(line) for line in (folder / "curve.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [after["seconds"] - before["seconds"] - after["validation_seconds"] for before, after in pairwise(lines)]
    validations = [line["validation_seconds"] for line in lines[1:] if line["validation_loss"] is not None]
    whole, ahead = replace(plan, steps=plan.horizon), range(lines[-1]["step"] + 1, plan.horizon + 1)
    seconds: float = lines[-1]["seconds"]
    return seconds + len(ahead) * fmean(steps[1:] or steps) + sum(map(whole.validates, ahead)) * fmean(validations)


class _Run:
    """The moving parts of one run."""

    def __init__(self, tuned: nn.Module, method: Method, point: Point, plan: Plan, accelerator: Accelerator, folder: Path,
                 report: Callable[[CurveLine], None], peak_memory_mb: Callable[[], float], rows: Sequence[Encoded],
                 preparation_seconds: float) -> None:
        self.tuned, self.method, self.plan, self.accelerator = tuned, method, plan, accelerator
        self.what = {"method": method.name, "hyperparameters": dict(point), "seed": plan.seed}
        self.folder, self.report, self.peak_memory_mb = folder, report, peak_memory_mb
        self.scored_a_row = scored_a_row(rows, plan.task)
        longest = max((len(row.input_ids) for row in rows), default=0)
        self.gradients = Gradients(tuned, plan.task, plan.pad_id, accelerator, longest, int8=plan.int8)
        self.progress = Progress(trained_tokens=method.calibration_tokens(tuned), seconds=preparation_seconds, curve=[])
        (folder / "curve.jsonl").write_text("", encoding="utf-8")
        self._clock = time.monotonic()
        self._validating = 0.0  # seconds, since the last line
        self._saved = preparation_seconds  # progress.seconds at the last checkpoint
        self._saving = 0.0  # seconds that it took

    def update(self, optimizer: torch.optim.Optimizer, batch: Sequence[Encoded]) -> float:
        """One optimizer step, whatever the accumulation; the mean loss of the batch's scored tokens.

        The sum of losses is divided by what a batch scores on average, not by what this one does: batches hold rows of like
        length, and every scored token of the data is to weigh the same (docs/decisions/005).
        """
        plan = self.plan
        size = -(-len(batch) // plan.accumulation)
        total, count = 0.0, 0
        for i in range(0, len(batch), size):
            for losses in self.gradients.add(batch[i:i + size], self.scored_a_row * len(batch)):
                total += float(losses.sum())
                count += len(losses)
        mean = total / count
        if mean != mean or mean in (float("inf"), float("-inf")):
            raise Diverged(f"the training loss is {mean} at step {self.progress.step + 1}")
        self.method.join(self.tuned, len(batch))
        if plan.clip > 0:
            self.accelerator.clip_grad_norm_(self.gradients.parameters, plan.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return mean

    def timed(self, validate: Callable[[], float]) -> float:
        start = time.monotonic()
        loss = validate()
        self._validating += time.monotonic() - start
        return loss

    def record(self, step: int, train_loss: float | None, validation_loss: float | None, rate: float) -> None:
        now = time.monotonic()
        progress = self.progress
        progress.seconds += now - self._clock
        self._clock = now
        progress.step = step
        progress.peak_memory_mb = max(progress.peak_memory_mb, self.peak_memory_mb())
        line = CurveLine(step, progress.trained_tokens, round(progress.seconds, 3), train_loss, validation_loss, rate,
                         round(self._validating, 3))
        self._validating = 0.0
        assert progress.curve is not None
        progress.curve.append(line)
        with open(self.folder / "curve.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(line)) + "\n")
        self.report(line)
        self._clock = time.monotonic()  # what `report` waits for is not the run's time

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    def save_now_and_then(self, optimizer: torch.optim.Optimizer, schedule: Schedule) -> None:
        since = self.progress.seconds - self._saved
        if since >= CHECKPOINT_SECONDS and since * CHECKPOINT_SHARE >= self._saving and self.progress.step < self.plan.steps:
            self.save(optimizer, schedule)

    def save(self, optimizer: torch.optim.Optimizer, schedule: Schedule) -> None:
        start = time.monotonic()
        cuda = torch.cuda.get_rng_state() if self.accelerator.device.type == "cuda" else None
        state = asdict(self.progress) | {"horizon": schedule.horizon, "warmup": schedule.warmup, "of": self.what}
        Checkpoint(self.progress.step, state, self.method.state(self.tuned), optimizer_state(optimizer),
                   torch.get_rng_state(), cuda).save(self._checkpoint)
        self._saving = time.monotonic() - start
        self._saved = self.progress.seconds

    def continue_from_checkpoint(self, optimizer: torch.optim.Optimizer) -> Schedule:
        """Take up a checkpoint of this very run that lies on the plan's way; the schedule to go on with."""
        schedule = Schedule.over(self.plan.horizon)
        saved = Checkpoint.load(self._checkpoint)
        if saved is None or saved.progress.get("of") != self.what:
            return schedule
        former = Schedule(saved.progress["horizon"], saved.progress["warmup"])
        longer = Schedule(self.plan.horizon, former.warmup)
        same_way = saved.step <= min(former.decay_start, longer.decay_start) or former.horizon == longer.horizon
        fits = {name: tensor.shape for name, tensor in saved.weights.items()} == {
            name: tensor.shape for name, tensor in self.method.state(self.tuned).items()}
        if saved.step > self.plan.steps or not same_way or not fits:
            return schedule
        self.method.load_state(self.tuned, saved.weights)
        load_optimizer_state(optimizer, saved.optimizer)
        torch.set_rng_state(saved.generator)
        if saved.cuda_generator is not None:
            torch.cuda.set_rng_state(saved.cuda_generator)
        fields: dict[str, Any] = {k: saved.progress[k] for k in ("step", "trained_tokens", "seconds", "peak_memory_mb")}
        self.progress = Progress(**fields, curve=[CurveLine(**line) for line in saved.progress["curve"]])
        self._saved = self.progress.seconds
        assert self.progress.curve is not None
        with open(self.folder / "curve.jsonl", "a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(line)) + "\n" for line in self.progress.curve)
        return longer
