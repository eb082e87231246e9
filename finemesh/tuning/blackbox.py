"""The seam: a job (method, point, steps, seed, folder) goes in, an outcome comes out. One object a worker process.

The base model stays loaded; a trial that breaks anything costs only itself (the model is loaded afresh). One that ends in
order, if only because it is stopped, gives it back.
"""

import gc
import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from finemesh.constraints import Infeasible, check, judged
from finemesh.disk import permit, size
from finemesh.errors import first_line
from finemesh.trial import Job, Outcome, write_outcome
from finemesh.tuning.data.batches import Encoded, encode, question
from finemesh.tuning.data.examples import Dialogue
from finemesh.tuning.data.split import read_split
from finemesh.tuning.evaluation.evaluation import Evaluation, evaluate
from finemesh.tuning.evaluation.generation import answers
from finemesh.tuning.evaluation.rival import Rival, read_rival, write_rows
from finemesh.tuning.evaluation.split import Split
from finemesh.tuning.features import Features
from finemesh.tuning.hurdles import Hopeless, hopeless, hurdle_after
from finemesh.tuning.memory import MB, PeakMemory
from finemesh.tuning.methods import METHODS, Context, Point
from finemesh.tuning.models import context_length, load_model, load_tokenizer
from finemesh.tuning.task import Task
from finemesh.tuning.training import CurveLine, Diverged, Plan, fine_tune, whole_seconds

Report = Callable[[Mapping[str, Any]], None]
VALIDATION_SHARE = 0.25  # of the training work, at most, goes into validating along the way
FORWARD_SHARE = 1 / 3  # of a training step's work is its forward pass


class Blackbox:
    """`tune` runs a trial; `evaluate` and `answer` look at what trials saved, in float32 and reloaded as anyone would."""

    def __init__(self, task: Task, *, look_only: bool = False) -> None:
        """With `look_only` nothing is loaded and measured that only `tune` needs."""
        torch.set_num_threads(task.threads)
        self.task = task
        self.tokenizer = load_tokenizer(task.source)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model: PreTrainedModel | None = None
        self._features = Features()  # of the base model, also where it is loaded anew
        if look_only:
            return
        self.accelerator = Accelerator(mixed_precision=task.precision.mixed_precision)
        self.device = self.accelerator.device
        assert self.longest  # all rows are read now, so that they are not the first trial's memory
        self.base_validation_loss = self._evaluate(self.model, self.validation.rows).loss
        with PeakMemory() as memory:
            self.base_memory_mb = memory.base_mb

    @property
    def model(self) -> PreTrainedModel:
        """The base model, untouched."""
        if self._model is None:
            gc.collect()
            self._model = self._load(self.task.precision.dtype)
        return self._model

    @cached_property
    def train(self) -> Split:
        return self._split("train")

    @cached_property
    def validation(self) -> Split:
        return self._split("validation")

    @cached_property
    def test(self) -> Split:
        return self._split("test")

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest row of all splits."""
        return max(len(row.input_ids) for split in (self.train, self.validation, self.test) for row in split.rows)

    @cached_property
    def exact_model(self) -> PreTrainedModel:
        """The base model in float32, for the losses of the report."""
        return self._load(torch.float32)

    def tune(self, job: Job, report: Report = lambda line: None) -> Outcome:
        """Run the trial, write its outcome.json and give the outcome back. Raises nothing that a trial can do wrong."""
        job.folder.mkdir(parents=True, exist_ok=True)
        base = Outcome(job.number, "failed", job.method, dict(job.hyperparameters), job.seed, job.steps,
                       base_memory_mb=round(self.base_memory_mb, 1), continues=job.continues, foreseen=job.foreseen)
        start = time.monotonic()
        try:
            outcome = self._tuned(job, base, report)
        except Infeasible as reason:
            outcome = replace(base, state="infeasible", error=str(reason), **reason.numbers)
        except Hopeless as reason:
            outcome = replace(base, state="pruned", error=str(reason), **reason.numbers)
        except (Diverged, ScoredTokensDiffer) as reason:
            outcome = replace(base, error=str(reason))
        except Exception as error:
            state = "infeasible" if _out_of_memory(error) else "failed"
            outcome = replace(base, state=state, error=f"{type(error).__name__}: {first_line(error)}")  # type: ignore[arg-type]
            with open(job.folder / "log.txt", "a", encoding="utf-8") as log:
                traceback.print_exc(file=log)
        if not outcome.seconds:
            outcome = replace(outcome, seconds=round(time.monotonic() - start, 3))
        if outcome.state == "pruned":
            outcome = replace(outcome, whole_seconds=round(whole_seconds(job.folder, self._plan(job)), 3))
        outcome = judged(outcome, job.constraints)
        write_outcome(job.folder, outcome)
        if job.steps >= self.task.steps:
            (job.folder / "checkpoint.safetensors").unlink(missing_ok=True)
        return outcome

    def evaluate(self, method: str | None, hyperparameters: Point, folder: Path | None, split: str) -> Evaluation:
        """The reloaded adapter's losses on a split; the untuned model's where `method` is None."""
        rows = {"validation": self.validation, "test": self.test}[split] if split != "train" else self.train
        if method is None or folder is None:
            return rows.by_task(evaluate(self.exact_model, rows.rows, self.task.task, self._pad_id, self.device))
        plug, tuned = METHODS[method], self.loaded(method, folder / "adapter")
        try:
            shaped = plug.shape(tuned, rows.examples, rows.rows, hyperparameters, self.shown(), training=False)
            return rows.by_task(evaluate(tuned, shaped, self.task.task, self._pad_id, self.device))
        finally:
            self._release_exact(tuned)

    def answer(self, method: str, hyperparameters: Point, folder: Path, rows: int) -> list[dict[str, str]]:
        """Test prompts with the given answer, the untuned model's and the tuned one's (greedy)."""
        asked = {example.prompt: example for example in reversed(self.test.examples) if isinstance(example, Dialogue)}
        examples = list(reversed(asked.values()))[:rows]  # each question once
        questions = [question(example, self.tokenizer, self.task.max_length) for example in examples]
        before = answers(self.exact_model, self.tokenizer, questions)
        plug, tuned = METHODS[method], self.loaded(method, folder / "adapter")
        try:
            shaped = plug.shape(tuned, examples, questions, hyperparameters, self.shown(), training=False)
            after = answers(tuned, self.tokenizer, shaped)
        finally:
            self._release_exact(tuned)
        return [{"prompt": e.prompt, "reference": e.answer, "before": b, "after": a}
                for e, b, a in zip(examples, before, after, strict=True)]

    def loaded(self, method: str, folder: Path) -> nn.Module:
        """What a trial saved, on the exact model or in place of it."""
        return METHODS[method].load(self.exact_model, folder).to(self.device)

    def _tuned(self, job: Job, base: Outcome, report: Report) -> Outcome:
        method = METHODS[job.method]
        if reason := method.unfit(self.model, self.task.task):
            raise ValueError(reason)
        context = self.context(job.seed)
        if reason := method.refuses(self.model, job.hyperparameters, context):
            raise Infeasible(reason, {"steps": 0})
        with PeakMemory() as memory:
            torch.manual_seed(job.seed)
            start = time.monotonic()
            model, self._model = self.model, None  # an error leaves none: the next trial starts from fresh weights
            tuned = method.prepare(model, job.hyperparameters, context).to(self.device)
            try:
                outcome = self._trained(job, base, report, tuned, context, memory, start)
            except (Diverged, Hopeless, Infeasible, ScoredTokensDiffer):
                self._model = method.remove(tuned).eval()
                raise
            self._model = method.remove(tuned).eval()
        return outcome

    def _trained(self, job: Job, base: Outcome, report: Report, tuned: nn.Module, context: Context, memory: PeakMemory,
                 start: float) -> Outcome:
        """From the prepared model on; what was done since `start` is a part of the trial's time."""
        method = METHODS[job.method]
        trainable = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
        numbers: dict[str, Any] = {"trainable_parameters": trainable, "steps": 0}
        check(base, job.constraints, numbers)
        evaluations: list[Evaluation] = []
        rows = method.shape(tuned, self.train.examples, self.train.rows, job.hyperparameters, context,
                            training=True) if method.trains else self.train.rows
        validation = method.shape(tuned, self.validation.examples, self.validation.rows, job.hyperparameters, context,
                                  training=False)
        numbers["preparation_seconds"] = round(time.monotonic() - start, 3)

        def validate() -> float:
            step = len((job.folder / "curve.jsonl").read_bytes().splitlines())  # a line for each, 0 too
            if step == 0 and method.starts_at_base:
                return self.base_validation_loss
            evaluations.append(self._compared(tuned, validation, job, min(step, job.steps)))
            return evaluations[-1].loss

        def watch(line: CurveLine) -> None:
            report(asdict(line))
            so_far = numbers | {"steps": line.step, "seconds": line.seconds, "peak_memory_mb": round(memory.peak_mb(), 1),
                                "trained_tokens": line.trained_tokens}
            check(base, job.constraints, so_far)
            if line.validation_loss is not None and evaluations and (reason := hopeless(line, evaluations[-1], job)):
                seen = evaluations[-1]
                raise Hopeless(reason, so_far | {"validation_loss": seen.loss, "scored_tokens": seen.scored_tokens})

        progress = fine_tune(tuned, method, job.hyperparameters, rows, self._plan(job), self.accelerator, validate, job.folder,
                             report=watch, peak_memory_mb=memory.peak_mb, preparation_seconds=numbers["preparation_seconds"])
        if not evaluations:
            validate()
        self._same_tokens(evaluations[-1])
        evaluation = self.validation.by_task(evaluations[-1])
        metrics = {**evaluation.metrics, **method.counts(tuned)}
        method.save(tuned, job.folder / "adapter", self.task.source.public_name)
        permit(job.folder / "adapter", like=job.folder / "curve.jsonl")
        peak = max(progress.peak_memory_mb, memory.peak_mb())  # saving a whole model takes a copy of it
        whole = job.steps >= self.task.steps or not method.trains
        return replace(
            base, state="complete" if whole else "pruned", validation_loss=evaluation.loss, metrics=metrics,
            preparation_seconds=numbers["preparation_seconds"],
            steps=max(job.steps, self.task.steps) if whole else job.steps,
            scored_tokens=evaluation.scored_tokens, trained_tokens=progress.trained_tokens,
            seconds=round(progress.seconds, 3), peak_memory_mb=round(peak, 1),
            trainable_parameters=trainable, adapter_mb=round(size(job.folder / "adapter") / MB, 3),
        )

    def _compared(self, tuned: nn.Module, rows: Sequence[Encoded], job: Job, step: int) -> Evaluation:
        """The evaluation after `step` updates, cut short where the rival of this step is surely better."""
        hurdle = hurdle_after(job, step)
        rival = read_rival(job.folder.parent / hurdle.rival, step, hurdle.loss) if hurdle else None
        evaluation = self._evaluate(tuned, rows, rival)
        if job.hurdles is not None and not evaluation.beaten and math.isfinite(evaluation.loss):
            write_rows(job.folder, step, evaluation.loss, evaluation.row_losses)
        return evaluation

    def _plan(self, job: Job) -> Plan:
        task = self.task
        horizon = max(job.steps, task.steps)  # that of the full trial: it validates after the same steps
        training = horizon * task.batch_size * self.train.tokens / len(self.train.rows)
        affordable = VALIDATION_SHARE * training / (FORWARD_SHARE * max(1, self.validation.tokens))
        return Plan(task.task, job.steps, horizon, task.batch_size, job.seed, self._pad_id, accumulation=task.accumulation,
                    int8=task.precision.name == "int8", validations=task.validations or min(10, max(2, round(affordable))))

    def _same_tokens(self, evaluation: Evaluation) -> None:
        rows = self.validation.rows
        expected = sum(sum(row.scored) for row in rows) if self.task.task == "instruct" else len(rows)
        if evaluation.scored_tokens != expected:
            raise ScoredTokensDiffer(f"the validation scored {evaluation.scored_tokens} tokens instead of {expected}")
        if not abs(evaluation.loss) < float("inf"):
            raise Diverged(f"the validation loss is {evaluation.loss}")

    def _evaluate(self, model: nn.Module, rows: Sequence[Encoded], rival: Rival | None = None) -> Evaluation:
        with self.accelerator.autocast():
            return evaluate(model, rows, self.task.task, self._pad_id, self.device, rival)

    def context(self, seed: int) -> Context:
        """What methods may look at."""
        return Context(self.task.task, self.tokenizer, self.train.examples, self.train.rows, self.task.max_length,
                       context_length((self._model or self.exact_model).config), seed, self.longest,
                       self._features, lambda: self.train.scored_tokens)

    def shown(self) -> Context:
        """The context without training rows, in which a saved adapter shapes its input."""
        return Context(self.task.task, self.tokenizer, (), (), self.task.max_length,
                       context_length(self.exact_model.config), self.task.seed)

    def _split(self, name: str) -> Split:
        pairs = []
        for example in read_split(self.task.splits / f"{name}.jsonl"):
            row = encode(example, self.tokenizer, self.task.max_length, self.task.task, labels=self.task.labels)
            if row is not None:
                pairs.append((example, row))
        return Split(tuple(e for e, _ in pairs), tuple(r for _, r in pairs))

    def _load(self, dtype: torch.dtype) -> PreTrainedModel:
        task = self.task
        model: Any = load_model(task.source, task.task, labels=task.labels, dtype=dtype, head_seed=task.seed,
                                pad_id=self._pad_id)
        loaded: PreTrainedModel = model.to(self.device)
        return loaded

    def _release_exact(self, tuned: nn.Module) -> None:
        if tuned is self.exact_model or any(m is self.exact_model for m in tuned.modules()):
            del self.exact_model  # it was changed in place: load it afresh when next needed (safetensors: 0.1 s)

    @property
    def _pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id)


class ScoredTokensDiffer(Exception):
    """A trial scored other tokens than those fixed before the search."""


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
