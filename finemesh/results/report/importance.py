"""What mattered: how much each hyperparameter decides the order of a method's trials (functional ANOVA, by Optuna).

Losses are replaced by their ranks, else a few diverged trials would explain everything. Methods have hyperparameters
of their own, so each is looked at alone. Functional ANOVA: Hutter et al. 2014.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    json_to_distribution,
)

from finemesh.results import words
from finemesh.results.record import Record, read_document
from finemesh.run import RunFolder
from finemesh.trial import Outcome

FEWEST = 10  # trials of a method below which nothing can be told
MOST = 300  # of more, as many, evenly by rank: twice the trials take four times as long and say the same

Spaces = Mapping[str, Mapping[str, BaseDistribution]]


@dataclass(frozen=True)
class Importance:
    """`shares` sum to 1, largest first; empty where `note` says why."""

    method: str
    shares: tuple[tuple[str, float], ...]
    note: str


def searched_spaces(record: Record) -> dict[str, dict[str, BaseDistribution]]:
    """Each method's hyperparameters with the ranges that were searched, from space.json; {} where it is not there."""
    return {method: {name: json_to_distribution(json.dumps(distribution)) for name, distribution in known.items()}
            for method, known in read_document(RunFolder(record.folder).space).items()}


def spaces(record: Record) -> dict[str, dict[str, BaseDistribution]]:
    """As searched, with the ranges seen in the trials for what is not known; without what is fixed."""
    searched, known = searched_spaces(record), {}
    for method in record.methods:
        values: dict[str, list[Any]] = {}
        for outcome in record.outcomes:
            for name, value in outcome.hyperparameters.items() if outcome.method == method else ():
                values.setdefault(name, []).append(value)
        ranged = searched.get(method, {})
        ranges = {name: ranged[name] if name in ranged and fits(ranged[name], found) else seen(found)
                  for name, found in values.items()}
        known[method] = {name: distribution for name, distribution in ranges.items() if not distribution.single()}
    return known


def fits(distribution: BaseDistribution, values: list[Any]) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return all(value in distribution.choices for value in values)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return all(distribution.low <= value <= distribution.high for value in values)


def seen(values: list[Any]) -> BaseDistribution:
    low, high = (min(values), max(values)) if all(type(v) in (int, float) for v in values) else (None, None)
    if low is None or high is None:
        return CategoricalDistribution(sorted(set(values), key=str))
    log = low > 0 and high / low > 10
    whole = all(isinstance(value, int) for value in values)
    return IntDistribution(low, high, log=log) if whole else FloatDistribution(low, high, log=log)


def share_of_method(record: Record) -> float | None:
    """The share of the ranks' variance that lies between methods (epsilon squared); None where nothing can be told."""
    ranks: dict[str, list[float]] = {}
    for rank, outcome in enumerate(record.compared):
        ranks.setdefault(outcome.method, []).append(float(rank))
    trials = len(record.compared)
    if trials < FEWEST or not 1 < len(ranks) < trials:
        return None
    within = sum(sum((rank - fmean(found)) ** 2 for rank in found) for found in ranks.values())
    total = sum((rank - (trials - 1) / 2) ** 2 for rank in range(trials))
    return max(0.0, 1 - within / total * (trials - 1) / (trials - len(ranks)))


def importances(record: Record, known: Spaces) -> list[Importance]:
    return [of_method(method, [o for o in record.compared if o.method == method], known.get(method, {}))
            for method in record.methods]


def of_method(method: str, outcomes: list[Outcome], space: Mapping[str, BaseDistribution]) -> Importance:
    """`outcomes`: those of this method that are compared, best first."""
    points = [outcome.hyperparameters for outcome in outcomes]
    common = [name for name in space if all(name in point for point in points)]
    varied = [name for name in common if len({point[name] for point in points}) > 1]
    if len(outcomes) < FEWEST:
        complete = all(outcome.state == "complete" for outcome in outcomes)
        return Importance(method, (), words.count(len(outcomes), "complete trial" if complete else "trial"))
    if not varied:
        return Importance(method, (), "no setting that all its trials have and vary")
    study = optuna.create_study(storage=optuna.storages.InMemoryStorage())
    for rank, point in list(enumerate(points))[::-(-len(points) // MOST)]:
        study.add_trial(optuna.trial.create_trial(
            params={name: point[name] for name in varied}, distributions={name: space[name] for name in varied},
            value=float(rank)))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    note = f"From {words.count(len(outcomes), 'trial')}" + ("; a rough picture." if len(outcomes) < 30 else ".")
    if left_out := [words.name(name) for name in space if name not in varied]:
        note += f" Not in every trial, or never varied, so left out: {', '.join(left_out)}."
    return Importance(method, tuple((name, float(share)) for name, share in found.items()), note)
