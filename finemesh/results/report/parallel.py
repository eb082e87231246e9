"""Settings and losses of each method: against one hyperparameter at a time, and in parallel coordinates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from finemesh.results import words
from finemesh.results.record import Record
from finemesh.results.report.charts import Line, Mark, Scale, Tick, loss_scale, path
from finemesh.trial import Outcome


@dataclass(frozen=True)
class Axis:
    at: float
    title: str
    ticks: Sequence[Tick]  # from the top


@dataclass(frozen=True)
class Slice:
    """The losses of a method's trials against one hyperparameter."""

    title: str
    ticks: Sequence[Tick]
    marks: Sequence[Mark]
    width: str  # wide, wider: the names of its choices need the room on a phone, or anywhere


@dataclass(frozen=True)
class Parallel:
    method: str
    look: str
    axes: Sequence[Axis]
    lines: Sequence[Line]
    slices: Sequence[Slice]
    loss_ticks: Sequence[Tick]
    name: str


def parallels(record: Record, looks: Mapping[str, str], spaces: Mapping[str, Mapping[str, BaseDistribution]]
              ) -> list[Parallel]:
    """One a method with at least two trials that are compared."""
    return [parallel(record, method, looks[method], spaces[method]) for method in record.methods
            if spaces.get(method) and sum(o.method == method for o in record.compared) > 1]


def parallel(record: Record, method: str, look: str, space: Mapping[str, BaseDistribution]) -> Parallel:
    outcomes = [outcome for outcome in record.compared if outcome.method == method]
    names = [name for name in space if any(name in o.hyperparameters for o in outcomes)]
    found = [outcome.validation_loss or 0.0 for outcome in outcomes]
    loss = Scale(min(found), min(max(found), loss_scale(found).high))
    places = {name: round(100 * i / len(names), 2) for i, name in enumerate(names)}
    axes = [Axis(places[name], words.name(name), ends(space[name])) for name in names]
    title = f"loss after {words.count(record.early[0].steps, 'step')}" if record.early else "loss"
    axes.append(Axis(100, title, [Tick(0, words.loss(loss.high)), Tick(100, words.loss(loss.low))]))
    lines = []
    for rank, outcome in reversed(list(enumerate(outcomes))):  # the best are drawn last
        points = [(places[name], height(space[name], outcome.hyperparameters[name])) for name in names
                  if name in outcome.hyperparameters]
        points.append((100.0, 100 - loss.at(outcome.validation_loss or 0.0)))
        best = "top" if rank < min(3, len(outcomes) / 2) else "good" if rank < len(outcomes) / 3 else "faint"
        lines.append(Line(path(points), look, best, outcome.number))
    said = f"{words.count(len(outcomes), 'trial')} of {method} through {', '.join(words.name(n) for n in names)}."
    slices = [slice_of(name, space[name], outcomes, look, loss) for name in names]
    return Parallel(method, look, axes, lines, slices, axes[-1].ticks, said)


def slice_of(name: str, distribution: BaseDistribution, outcomes: Sequence[Outcome], look: str, loss: Scale) -> Slice:
    marks = []
    for outcome in outcomes:
        if name in outcome.hyperparameters:
            across = 100 - height(distribution, outcome.hyperparameters[name])
            marks.append(Mark(across, 100 - loss.at(outcome.validation_loss or 0.0), look, "", outcome.number))
    ticks = [Tick(100 - tick.at, tick.text) for tick in ends(distribution)]
    letters = sum(len(tick.text) for tick in ticks)
    return Slice(words.name(name), ticks, marks, "wide wider" if letters > 26 else "wide" if letters > 14 else "")


def height(distribution: BaseDistribution, value: Any) -> float:
    if isinstance(distribution, CategoricalDistribution):
        last = len(distribution.choices) - 1
        return 100 - 100 * distribution.choices.index(value) / last if last else 50.0
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return 100 - Scale(distribution.low, distribution.high, distribution.log).at(float(value))


def ends(distribution: BaseDistribution) -> list[Tick]:
    if isinstance(distribution, CategoricalDistribution):
        return [Tick(height(distribution, value), words.setting(value)) for value in reversed(distribution.choices)]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return [Tick(0, words.setting(distribution.high)), Tick(100, words.setting(distribution.low))]
