"""What the test split says of finished runs, each measured once: the result is kept beside the run."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from finemesh.run import RunFolder
from finemesh.search.executors.base import Executor
from finemesh.search.intervals import difference, interval, seed_variance
from finemesh.search.observer import Observer
from finemesh.trial import read_json, read_outcome, write_json

UNTUNED = "untuned"
Result = dict[str, Any]  # loss, low, high, metrics; nulls and an error where it could not be measured


def tested(executor: Executor, run: RunFolder, folders: Mapping[str, Sequence[Path]], winner: str,
           observer: Observer) -> dict[str, Result]:
    """By name, the result over that name's runs (one a seed), and of the untuned model; all but the winner's with
    `above_winner`, the difference over the same rows."""
    runs = {UNTUNED: [run.untuned], **folders}
    distinct = list(dict.fromkeys(folder for group in runs.values() for folder in group))
    evaluations = {folder: _kept(folder) for folder in distinct}
    asked = {executor.submit("evaluate", _arguments(folder, run)): folder for folder in distinct
             if evaluations[folder] is None}
    if asked:
        observer.message(f"Measuring {len(asked)} runs on the test split.")
    for request, reply in _replies(executor, len(asked), observer):
        folder = asked[request]
        evaluations[folder] = reply
        if "error" not in reply:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "evaluated.json", reply)
    groups = {name: _measured([evaluations[folder] or {} for folder in group]) for name, group in runs.items()}
    seeds = _seed_variance(groups.values())
    return {name: _result(group, [] if name == winner else groups[winner], seeds) for name, group in groups.items()}


def answered(executor: Executor, folder: Path, rows: int, observer: Observer) -> list[dict[str, str]]:
    """The first test prompts with the answers of the untuned model and of the run; none where that fails."""
    executor.submit("answer", {"folder": str(folder.absolute()), "rows": rows})
    [(_, reply)] = _replies(executor, 1, observer)
    return reply.get("answers", [])


def _arguments(folder: Path, run: RunFolder) -> dict[str, Any]:
    outcome = None if folder == run.untuned else read_outcome(folder)
    return {"method": outcome and outcome.method, "folder": outcome and str(folder.absolute()), "split": "test"}


def _kept(folder: Path) -> dict[str, Any] | None:
    found: dict[str, Any] | None = read_json(folder / "evaluated.json")
    return found


def _replies(executor: Executor, count: int, observer: Observer) -> list[tuple[int, dict[str, Any]]]:
    """As many requests' results, with {"error": text} for one that failed and a list of answers named."""
    replies: list[tuple[int, dict[str, Any]]] = []
    while len(replies) < count:
        for event in executor.wait():
            if event.kind == "result":
                content = event.content
                replies.append((event.id, content if isinstance(content, dict) else {"answers": content}))
            elif event.kind == "waiting":
                observer.message(event.content)
            elif event.kind not in ("progress", "retried"):
                replies.append((event.id, {"error": str(event.content)}))
    return replies


def _measured(evaluations: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that are measurements, or else the failures."""
    return [evaluation for evaluation in evaluations if "row_losses" in evaluation] or list(evaluations)


def _seed_variance(groups: Iterable[Sequence[Mapping[str, Any]]]) -> float | None:
    measured = [_losses(group) for group in groups]
    weights: Sequence[float] = next((weights for losses, weights in measured if losses), [])
    return seed_variance([losses for losses, _ in measured if losses], weights)


def _result(measured: Sequence[Mapping[str, Any]], winner: Sequence[Mapping[str, Any]], seeds: float | None) -> Result:
    losses, weights = _losses(measured)
    if not losses:
        error = next((evaluation["error"] for evaluation in measured if "error" in evaluation), "no run succeeded")
        return {"loss": None, "low": None, "high": None, "metrics": {}, "error": error}
    metrics = {name: fmean(evaluation["metrics"][name] for evaluation in measured)
               for name in measured[0].get("metrics", {})}
    result = interval(losses, weights, prior=seeds) | {"metrics": metrics}
    others, _ = _losses(winner)
    return result | {"above_winner": difference(losses, others, weights, prior=seeds)} if others else result


def _losses(evaluations: Sequence[Mapping[str, Any]]) -> tuple[list[Sequence[float]], Sequence[float]]:
    """row_losses of each run, and the rows' weights."""
    found = [evaluation for evaluation in evaluations if "row_losses" in evaluation]
    return [evaluation["row_losses"] for evaluation in found], found[0]["row_weights"] if found else []
