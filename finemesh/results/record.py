"""Everything a run folder says, read once: what the summary, the status and the report are made of.

A run may be of any age: still searching, stopped, with every trial failed, finished. What is missing is empty here.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from finemesh.constraints import broken, violations
from finemesh.errors import InputError
from finemesh.objectives import LOSS, front
from finemesh.results import words
from finemesh.run import Curve, RunFolder
from finemesh.search_config import SearchConfig
from finemesh.trial import Outcome, read_json
from finemesh.yaml_lines import read_yaml

Result = Mapping[str, Any]  # loss, low, high, metrics on the test split; perhaps error


@dataclass(frozen=True)
class Row:
    """A line of the results: a model and what it reached on the test split."""

    title: str
    kind: str  # untuned, reference, winner
    method: str | None
    settings: str
    result: Result
    breaks: str | None = None  # the constraint that these settings break, in words

    @property
    def loss(self) -> float | None:
        return self.result.get("loss")

    @property
    def above_winner(self) -> Result | None:
        """How much higher its loss is than the winner's, with an interval over the same rows; None where not measured.

        Rows differ much more than models do, so this tells apart what the two models' own intervals cannot.
        """
        return self.result.get("above_winner")

    def compared(self, winner: "Row") -> int:
        """1 where the winner is surely better, -1 where it is surely worse, 0 where it cannot be told."""
        if self.above_winner is not None:
            low, high = self.above_winner["low"], self.above_winner["high"]
        else:
            ends = [row.result.get(end) for row in (self, winner) for end in ("low", "high")]
            if None in ends:
                return 0
            low, high = ends[0] - ends[3], ends[1] - ends[2]  # type: ignore[operator]
        return 1 if low > 0 else -1 if high < 0 else 0


@dataclass(frozen=True)
class Record:
    """`outcomes` are in the order of their numbers, without those that a later one continued; `curves` has those that
    wrote one. `trained_tokens` are those of all trials, each token counted once."""

    folder: Path
    state: str  # running, stopped, finished
    config: Mapping[str, Any]
    task: str
    outcomes: tuple[Outcome, ...]
    curves: Mapping[int, Curve]
    repeats: tuple[Outcome, ...]
    references: Mapping[str, tuple[Outcome, ...]]
    finish: Mapping[str, Any] | None
    splits: Mapping[str, Any]
    machine: Mapping[str, Any]
    seconds: float
    trained_tokens: int
    transfer: Mapping[str, Any]  # of a warm start, what transferred, in numbers and words

    @cached_property
    def scored(self) -> list[Outcome]:
        """The complete trials, best first, without the copies."""
        return best_first(outcome for outcome in self.trials if outcome.state == "complete")

    @cached_property
    def early(self) -> list[Outcome]:
        """Where trials were pruned, each as it was after the number of steps at which most have a loss, best first.

        Of several such numbers it is the largest; what trains nothing has its one loss at any. Empty where no trial was
        pruned or most went all their steps.
        """
        known = [(o, self._losses(o)) for o in self.trials if o.state in ("complete", "pruned")]
        counts = Counter(step for _, losses in known for step in losses if step > 0)
        length = max(counts, key=lambda step: (counts[step], step), default=0)
        if length >= self.settings.get("steps", 0) or all(outcome.state == "complete" for outcome, _ in known):
            return []
        return best_first(replace(o, steps=length, validation_loss=losses.get(
            length, None if o.trained_tokens else o.validation_loss)) for o, losses in known)

    @property
    def compared(self) -> list[Outcome]:
        """A loss for each point, all after as many steps, best first: what tells settings and methods apart."""
        return self.early or self.scored

    @property
    def trials(self) -> list[Outcome]:
        """Those that were run: points that are known already, or not started, cost no trial."""
        return [outcome for outcome in self.outcomes if outcome.started and outcome.duplicate_of is None]

    @property
    def foresight(self) -> dict[str, int]:
        """How often it was foreseen whether a trial keeps the constraints, and how often that was right where it ran."""
        judged = [o for o in self.trials if o.foreseen and o.state != "failed"]
        right = [o for o in judged if (o.foreseen == "infeasible") == any(
            excess > 0 and hasattr(o, name) for name, excess in o.constraints.items())]
        return {"not_started": sum(not o.started and o.duplicate_of is None for o in self.outcomes)} | {
            f"foreseen_{kind}{ending}": sum(outcome.foreseen == kind for outcome in found)
            for kind in ("infeasible", "feasible") for ending, found in (("", judged), ("_right", right))}

    @property
    def best(self) -> Outcome | None:
        return self.scored[0] if self.scored else None

    @cached_property
    def methods(self) -> list[str]:
        """In the order of their best losses, those without any last."""
        return list(dict.fromkeys(o.method for o in [*self.scored, *self.early, *self.outcomes]))

    @cached_property
    def leaders(self) -> list[int]:
        """The numbers of the repeated trials, or of the three best where none is repeated yet."""
        repeated = list(dict.fromkeys(outcome.number for outcome in self.repeats))
        return repeated or [outcome.number for outcome in self.scored[:3]]

    @property
    def winner(self) -> Mapping[str, Any] | None:
        return (self.finish or {}).get("winner")

    @property
    def noise(self) -> Mapping[str, Any] | None:
        """What the seeds' noise leaves open about the leaders: seed_deviation, leaders (best first), undecided."""
        return (self.finish or {}).get("noise")

    @property
    def objectives(self) -> list[str]:
        return list(self.settings.get("objectives") or [LOSS])

    @cached_property
    def front(self) -> list[Outcome]:
        """Of several objectives, the trials that no other one dominates, the lowest validation loss first; else none."""
        return front(self.trials, self.objectives) if len(self.objectives) > 1 else []

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.config.get("search") or {}

    def _losses(self, outcome: Outcome) -> dict[int, float]:
        """Its validation losses by step."""
        last = {} if outcome.validation_loss is None else {outcome.steps: outcome.validation_loss}
        return losses_along(self.curves.get(outcome.number, ())) | last

    def _breaks(self, method: str) -> str | None:
        """References that break a bound on their size or score are measured all the same, to be compared with; which one."""
        bounds = SearchConfig(constraints=self.settings.get("constraints") or {}).bounds
        for outcome in self.references.get(method, ()):
            excesses = violations(outcome, bounds)
            if any(excess > 0 for excess in excesses.values()):
                return broken(excesses, bounds)
        return None

    def rows(self) -> list[Row]:
        """Untuned, the references from worst to best, the winner: what the test split said."""
        if self.finish is None:
            return []
        rows = []
        if self.finish.get("untuned"):
            rows.append(Row("untuned model", "untuned", None, "without fine-tuning", self.finish["untuned"]))
        known = (self.finish.get("reference") or {}).items()
        for method, result in sorted(known, key=lambda pair: -(pair[1].get("loss") or float("inf"))):
            text, breaks = words.settings(result.get("hyperparameters", {})), self._breaks(method)
            text += f"; no winner, as {breaks}" if breaks and result.get("loss") is not None else ""
            rows.append(Row(f"{method}, reference settings", "reference", method, text, result, breaks))
        if self.winner is not None:
            text = words.settings(self.winner.get("hyperparameters", {}))
            rows.append(Row(f"{self.winner['method']}, trial {self.winner['number']}: the winner", "winner",
                            self.winner["method"], text, self.winner))
        return rows


def best_first(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Those that have a loss."""
    return sorted((o for o in outcomes if o.validation_loss is not None), key=lambda o: o.validation_loss or 0.0)


def losses_along(curve: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """The validation losses by step."""
    return {line["step"]: line["validation_loss"] for line in curve if line.get("validation_loss") is not None}


def ends(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those that no later one continued, each with what was foreseen of its point when that began."""
    by_number = {outcome.number: outcome for outcome in outcomes}
    continued = {outcome.continues for outcome in outcomes}

    def first(outcome: Outcome) -> Outcome:
        return outcome if outcome.continues is None else first(by_number[outcome.continues])

    return [replace(outcome, foreseen=first(outcome).foreseen) for outcome in outcomes if outcome.number not in continued]


def tokens_of(outcomes: Sequence[Outcome]) -> int:
    """A promoted trial counts the tokens of the one that it continued, too."""
    trained = {outcome.number: outcome.trained_tokens for outcome in outcomes}
    twice = [min(outcome.trained_tokens, trained[outcome.continues]) for outcome in outcomes
             if outcome.continues is not None]
    return sum(trained.values()) - sum(twice)


def read_document(path: Path) -> dict[str, Any]:
    """{} where there is no such file."""
    return read_json(path) or {}


def state(run: RunFolder) -> str:
    """Finished as soon as finish.json is there, even while the report is being written."""
    return "finished" if run.finish() is not None else "running" if run.working() else "stopped"


def read_record(folder: Path) -> Record:
    run = RunFolder(folder)
    if not run.config.exists():
        raise InputError(f"{folder} is not the folder of a run: it has no config.yaml. Name the folder that "
                         "`finemesh search` wrote (its `out`).")
    config = read_yaml(run.config).values
    if not isinstance(config, Mapping):
        raise InputError("it holds no config: put back the one that this run was started with", file=run.config)
    known = run.outcomes()
    outcomes = ends(known)
    references: dict[str, list[Outcome]] = {}
    for outcome in run.references():
        references.setdefault(outcome.method, []).append(outcome)
    curves = {outcome.number: run.curve(outcome.number) for outcome in outcomes}
    return Record(
        folder=folder, state=state(run), config=config,
        task=config.get("task") or read_document(run.task).get("task", "instruct"),
        outcomes=tuple(outcomes), curves={number: curve for number, curve in curves.items() if curve},
        repeats=tuple(run.repeats()), references={method: tuple(found) for method, found in references.items()},
        finish=run.finish(), splits=read_document(run.splits / "summary.json"), machine=read_document(run.machine),
        seconds=run.clock().get("seconds", 0.0), trained_tokens=tokens_of(known), transfer=read_document(run.transfer))
