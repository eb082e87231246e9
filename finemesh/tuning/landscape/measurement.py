"""All of the landscape of one model: pre-trained, randomly initialised with the same architecture, or tuned. In float32.

Numbers come as {"mean", "low", "high"}: 95 % by Student's t over batches, directions and (random) models.
"""

import gc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from scipy.stats import t as student
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finemesh.tuning.architecture import parameters_on_text
from finemesh.tuning.data.batches import Batch, Encoded, collate, training_batches
from finemesh.tuning.evaluation.loss import batch_losses
from finemesh.tuning.landscape.concentration import TOPS, Shares, Weights, concentration
from finemesh.tuning.landscape.directions import NORMALISATIONS, Place, amplitude, local_minima, oscillation
from finemesh.tuning.landscape.sharpness import mean_rises, worst_rise
from finemesh.tuning.methods import METHODS
from finemesh.tuning.models import ModelSource, TaskName, load_model

ALL, BODY = "all", "body"  # every matrix; those of the layers, which is all but embeddings and heads
RANDOM_MODELS = 2
REACH = {"filter": 1.0, "unit": 0.25}  # how far to go: of every row's length; of the length of the pre-trained weights
Say = Callable[[str], None]


@dataclass(frozen=True)
class Extent:
    """How much is measured: gradients of `batches`, losses on the first batch along `directions` at `points` each."""

    batches: int = 6
    directions: int = 3
    points: int = 13


@dataclass(frozen=True)
class Subject:
    """What is looked at, and with which rows."""

    source: ModelSource
    task: TaskName
    labels: Sequence[str]
    rows: Sequence[Encoded]
    batch_size: int
    pad_id: int
    seed: int

    def pretrained(self) -> PreTrainedModel:
        return load_model(self.source, self.task, labels=self.labels, head_seed=self.seed, pad_id=self.pad_id)

    def random(self, seed: int) -> PreTrainedModel:
        """The same architecture, initialised as its authors would before pre-training."""
        pretrained: Any = self.pretrained()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: PreTrainedModel = type(pretrained)(pretrained.config)
        return model.float().requires_grad_(False).eval()

    def tuned(self, method: str, folder: Path) -> nn.Module:
        """With what the method trained merged into the weights."""
        tuned: Any = METHODS[method].load(self.pretrained(), folder)
        whole: nn.Module = tuned.merge_and_unload() if hasattr(tuned, "merge_and_unload") else tuned
        return whole.requires_grad_(False).eval()

    def batches(self, count: int) -> list[Batch]:
        drawn = training_batches([len(row.input_ids) for row in self.rows], self.batch_size, self.seed)
        return [collate([self.rows[i] for i in next(drawn)], self.pad_id) for _ in range(count)]


def measure(subject: Subject, extent: Extent, tuned: tuple[str, Path] | None = None,
            say: Say = lambda text: None) -> dict[str, Any]:
    """gradients, landscape and flatness, each by model: pretrained, random and, for flatness, tuned."""
    batches = subject.batches(extent.batches)
    models: dict[str, list[Callable[[], nn.Module]]] = {
        "pretrained": [subject.pretrained],
        "random": [partial(subject.random, subject.seed + i) for i in range(RANDOM_MODELS)]}
    gradients, landscape, flatness = {}, {}, {}
    reach = 0.0
    for kind, makers in models.items():
        looks = []
        for index, make in enumerate(makers):
            say(f"the {kind} model" + (f", {index + 1} of {len(makers)}" if len(makers) > 1 else ""))
            look = _Look(make(), subject.task, batches, range(subject.seed, subject.seed + extent.directions))
            reach = reach or REACH["unit"] * look.place.norm
            looks.append((look.gradients(), look.curves(extent.points, reach), look.flatness()))
            del look
            gc.collect()
        gradients[kind] = _gradients([found for found, _, _ in looks])
        landscape[kind] = {way: _along([curves[way] for _, curves, _ in looks]) for way in NORMALISATIONS}
        flatness[kind] = _flatness([found for _, _, found in looks])
    if tuned is not None:
        say(f"the model tuned by {tuned[0]}")
        look = _Look(subject.tuned(*tuned), subject.task, batches, range(subject.seed, subject.seed + extent.directions))
        flatness["tuned"] = _flatness([look.flatness()])
    return {"tops": [f"{top:g}" for top in TOPS], "gradients": gradients, "landscape": landscape, "flatness": flatness}


class _Look:
    """One model in memory, with its weight matrices."""

    def __init__(self, model: nn.Module, task: TaskName, batches: Sequence[Batch], seeds: Sequence[int]) -> None:
        self._losses = [partial(_mean_loss, model, batch, task) for batch in batches]
        self._seeds = seeds
        self.weights: Weights = {name: weight for name, weight in parameters_on_text(model).items() if weight.ndim > 1}
        self._body = [name for name in self.weights if any(part.isdigit() for part in name.split("."))]
        self.place = Place(self.weights, {f"{name}.weight" for name, module in model.named_modules()
                                          if isinstance(module, Conv1D)})

    def gradients(self) -> tuple[list[dict[str, Shares]], dict[str, Shares]]:
        return concentration(self.weights, self._losses, {ALL: list(self.weights), BODY: self._body})

    def curves(self, points: int, reach: float) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for way, distance in (("filter", REACH["filter"]), ("unit", reach)):
            distances = [distance * (2 * i / (points - 1) - 1) for i in range(points)]
            found[way] = distances, [
                self.place.losses_along(self.place.direction(way, seed), distances, self._losses[0])  # type: ignore[arg-type]
                for seed in self._seeds]
        return found

    def flatness(self) -> dict[str, list[float]]:
        with torch.no_grad():
            losses = [float(loss()) for loss in self._losses]
        return {"loss": losses, "worst_rise": [worst_rise(self.place, loss) for loss in self._losses],
                "mean_rise": mean_rises(self.place, self._losses[0], self._seeds)}


def _mean_loss(model: nn.Module, batch: Batch, task: TaskName) -> torch.Tensor:
    return batch_losses(model, batch, task).losses.mean()


def _gradients(found: Sequence[tuple[list[dict[str, Shares]], dict[str, Shares]]]) -> dict[str, Any]:
    """By matrix or group: shares of a batch's gradient, and of the gradient of all batches together."""
    single = [shares for each, _ in found for shares in each]
    together = [shares for _, shares in found]
    names = [name for name in together[0] if name not in (ALL, BODY)]
    document = {group: {"batch": _spreads([s[group] for s in single]), "together": _spreads([s[group] for s in together])}
                for group in (ALL, BODY) if group in together[0]}
    return document | {"layers": {name: _spreads([s[name] for s in single if name in s]) for name in names}}


def _spreads(found: Sequence[Shares]) -> dict[str, Any]:
    return {top: {kind: spread([shares[top][kind] for shares in found]) for kind in ("squared", "norm")} for top in found[0]}


def _along(found: Sequence[tuple[list[float], list[list[float]]]]) -> dict[str, Any]:
    curves = [curve for _, each in found for curve in each]
    bounded = [[loss if math.isfinite(loss) else None for loss in curve] for curve in curves]
    finite = [curve for curve in curves if all(map(math.isfinite, curve))]
    return {"distances": found[0][0], "losses": bounded} | {
        measure.__name__: spread([float(measure(curve)) for curve in finite])
        for measure in (amplitude, oscillation, local_minima)}


def _flatness(found: Sequence[Mapping[str, list[float]]]) -> dict[str, Any]:
    return {name: spread([value for one in found for value in one[name]]) for name in found[0]}


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """The mean with its 95 % interval; None of nothing, or of what is not finite."""
    if not values or not all(map(math.isfinite, values)):
        return None
    mean = fmean(values)
    half = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return {"mean": mean, "low": mean - half, "high": mean + half}
