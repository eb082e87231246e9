"""What benchmarks/methods.py has found: one line a run in TASK.jsonl, and the tables that are made of them."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from finemesh.results import words
from finemesh.search.intervals import difference, interval, seed_variance
from finemesh.tuning.machine import describe_machine, usable_cores

BESIDE = "lora"  # what the other methods are compared with
METRICS = {"sst2": "accuracy", "cola": "matthews", "rte": "accuracy"}  # of GLUE
Line = dict[str, Any]


@dataclass(frozen=True)
class Run:
    dataset: str
    method: str
    hyperparameters: Mapping[str, Any]
    seed: int
    steps: int

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def line(self) -> Line:
        return {"key": self.key, **asdict(self)}


class Results:
    """The lines of the file, by key. One that a kill cut off is dropped; a run that failed is forgotten, to be tried again."""

    def __init__(self, file: Path, *, forget_failed: bool = False) -> None:
        self.file = file
        self._lines: dict[str, Line] = {}
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        whole = text[:text.rfind("\n") + 1]
        if forget_failed and whole != text:
            os.truncate(file, len(whole.encode()))
        for line in map(json.loads, whole.splitlines()):
            self._lines[line["key"]] = line
        if forget_failed:
            self._lines = {key: line for key, line in self._lines.items() if line["state"] != "failed"}

    def append(self, line: Line) -> None:
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._lines[line["key"]] = line

    def known(self, run: Run) -> bool:
        return run.key in self._lines

    def __getitem__(self, run: Run) -> Line:
        return self._lines[run.key]

    def of(self, dataset: str, method: str) -> list[Line]:
        return [line for line in self._lines.values() if (line["dataset"], line["method"]) == (dataset, method)]

    def methods(self, dataset: str) -> list[str]:
        found = (line["method"] for line in self._lines.values() if line["dataset"] == dataset)
        return [method for method in dict.fromkeys(found) if method != "untuned"]


def document(results: Mapping[str, Results], datasets: Sequence[Any], searched: Mapping[str, str],
             references: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """By task: the untuned model and, by method, what was found. `ratios`: test loss relative to LoRA's on the same rows."""
    found: dict[str, Any] = {}
    for dataset in datasets:
        name = dataset.name
        of = partial(results[name].of, name)
        methods = {method: _method(of(method), searched[method], references[method])
                   for method in references if of(method)}
        beside = methods.get(BESIDE, {}).get("best", {}).get("runs", [])
        prior = _seed_variance([entry.get("best", {}).get("runs", []) for entry in methods.values()])
        for entry in methods.values():
            for kind in ("best", "reference"):
                entry[kind] = _tested(entry.get(kind, {}).get("runs", []), beside, prior)
        untuned = of("untuned")
        found[name] = {"model": dataset.model, "steps": dataset.steps, "batch_size": dataset.batch_size,
                       "max_length": dataset.max_length, "rows": dataset.rows,
                       "untuned": _tested(untuned, [], None), "methods": methods}
    ratios = {f"loss_vs_{BESIDE}_{name}_{method}": round(entry["best"]["loss"] / task["methods"][BESIDE]["best"]["loss"], 4)
              for name, task in found.items() for method, entry in task["methods"].items()
              if method != BESIDE and entry["best"] and task["methods"].get(BESIDE, {}).get("best")}
    machine = describe_machine(usable_cores())
    return {"ratios": ratios, "tasks": found, "versions": machine.pop("versions") | {"python": machine.pop("python")},
            "machine": machine}


def _method(lines: Sequence[Line], searched: str, reference: Mapping[str, Any]) -> dict[str, Any]:
    """Of one method on one task: the search, and the runs of its best setting and of its reference settings."""
    search = {line["hyperparameters"][searched]: line for line in lines if line["seed"] == 0}
    losses = {value: line["validation_loss"] for value, line in sorted(search.items(), key=lambda item: str(item[0]))
              if line["state"] == "complete"}
    errors = sorted({line["error"] for line in lines if line["error"]})
    entry: dict[str, Any] = {"searched": searched, "validation_losses": [[value, loss] for value, loss in losses.items()],
                             "errors": errors}
    if losses:
        best = min(losses, key=losses.__getitem__)
        entry["best_value"] = best
        entry["best"] = {"runs": [line for line in lines if line["seed"] and line["hyperparameters"][searched] == best
                                  and line["state"] == "complete"]}
    entry["reference"] = {"runs": [line for line in lines if line["seed"] == 0 and line["state"] == "complete"
                                   and line["hyperparameters"] == reference]}
    return entry


def _seed_variance(groups: Sequence[Sequence[Line]]) -> float | None:
    tested = [runs for group in groups if (runs := [line["test"] for line in group if "test" in line])]
    weights = tested[0][0]["row_weights"] if tested else []
    return seed_variance([[run["row_losses"] for run in runs] for runs in tested], weights)


def _tested(lines: Sequence[Line], beside: Sequence[Line], prior: float | None) -> dict[str, Any]:
    """Loss with its interval over rows and seeds, the difference to LoRA's on the same rows, metrics, and what it cost."""
    runs = [line for line in lines if "test" in line]
    if not runs:
        return {}
    losses, weights = [run["test"]["row_losses"] for run in runs], runs[0]["test"]["row_weights"]
    entry: dict[str, Any] = {**interval(losses, weights, prior=prior), "seeds": len(runs)}
    if others := [line["test"]["row_losses"] for line in beside if "test" in line]:
        entry["above_lora"] = difference(losses, others, weights, prior=prior)
    entry["metrics"] = {name: {"mean": fmean(values), "low": min(values), "high": max(values)}
                        for name in runs[0]["test"]["metrics"]
                        for values in [[run["test"]["metrics"][name] for run in runs]]}
    for name in ("trainable_parameters", "peak_memory_mb", "seconds", "adapter_mb"):
        values = [run[name] for run in runs if run.get(name) is not None]
        entry[name] = fmean(values) if values else None
    entry["hyperparameters"] = runs[0]["hyperparameters"]
    return entry


def markdown(found: Mapping[str, Any]) -> str:
    return "\n\n".join(_table(name, task) for name, task in found["tasks"].items() if task["untuned"])


def _table(name: str, task: Mapping[str, Any]) -> str:
    metric = METRICS.get(name)
    columns = ["method", "searched", "best", "test loss (95 %)", "above LoRA's"]
    columns += [words.name(metric) + " (3 seeds: lowest to highest)"] if metric else []
    columns += ["reference settings", "parameters", "memory", "time"]
    untuned = task["untuned"]
    rows = [["untuned", "", "", _loss(untuned), "", *([_metric(untuned, metric)] if metric else []), "", "0", "", ""]]
    order = sorted(task["methods"].items(), key=lambda item: item[1]["best"].get("loss", float("inf")))
    for method, entry in order:
        best, reference = entry["best"], entry["reference"]
        shown = best or reference
        rows.append([
            method, words.name(entry["searched"]), words.setting(entry["best_value"]) if "best_value" in entry else "–",
            _loss(best) if best else "; ".join(entry["errors"]) or "–",
            _difference(best) if method != BESIDE else "", *([_metric(best, metric)] if metric else []), _loss(reference),
            f"{shown['trainable_parameters']:,.0f}" if shown.get("trainable_parameters") is not None else "–",
            f"{shown['peak_memory_mb']:.0f} MB" if shown else "–", f"{shown['seconds']:.0f} s" if shown else "–"])
    train, validation, test = task["rows"]
    title = (f"### {name}: {task['model'].removeprefix('package:')}, {task['steps']} steps of {task['batch_size']} rows, "
             f"at most {train} / {validation} / {test} rows to train, choose and test on")
    lines = [columns, ["---"] * len(columns), *rows]
    return title + "\n\n" + "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _loss(entry: Mapping[str, Any]) -> str:
    return f"{entry['loss']:.3f} ({words.interval(entry)})" if entry else "–"


def _difference(entry: Mapping[str, Any]) -> str:
    above = entry.get("above_lora")
    return f"{above['loss']:+.3f} ({above['low']:+.3f} to {above['high']:+.3f})" if above else "–"


def _metric(entry: Mapping[str, Any], name: str) -> str:
    if not entry:
        return "–"
    found = entry["metrics"][name]
    spread = f" ({words.metric(name, found['low'])} to {words.metric(name, found['high'])})" if entry["seeds"] > 1 else ""
    return words.metric(name, found["mean"]) + spread
