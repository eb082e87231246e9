"""best/: what a finished search hands over. The winner's adapter, the tokenizer and the model card; beside it the report."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finemesh.config import Config
from finemesh.disk import full_disk
from finemesh.reading import read_summary
from finemesh.results.card import write_card
from finemesh.results.report import write_report
from finemesh.run import RunFolder
from finemesh.trial import read_json, write_json
from finemesh.tuning.data.batches import between
from finemesh.tuning.data.examples import Labelled
from finemesh.tuning.data.split import read_split
from finemesh.tuning.data.templates import takes_system
from finemesh.tuning.methods import METHODS, describe
from finemesh.tuning.methods.prompting import Prompting
from finemesh.tuning.models import load_tokenizer, place_in_package
from finemesh.tuning.task import Task


def hand_over(run: RunFolder, config: Config) -> None:
    """best/: the winner's adapter, the tokenizer and the model card; then the report."""
    found = run.finish()
    assert found is not None
    winner, task = found["winner"], Task.read(run.task)
    draft = run.path / ".best"
    if run.best.exists() and run.winner() == _identity(winner):
        write_report(run.path)
        return
    with full_disk(run.path):
        shutil.rmtree(draft, ignore_errors=True)
        try:
            shutil.copytree(run.path / winner["folder"] / "adapter", draft)
            load_tokenizer(task.source).save_pretrained(draft)
            write_json(draft / "finemesh.json", _identity(winner))
            write_card(draft, _card(run, config, task, found))
            shutil.rmtree(run.best, ignore_errors=True)
            draft.replace(run.best)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        for outcome_folder in [*run.path.glob("repeats/*"), *run.path.glob("reference/*")]:
            run.lighten(outcome_folder)
        write_report(run.path)


def _identity(winner: Mapping[str, Any]) -> dict[str, Any]:
    return {name: winner[name] for name in ("method", "hyperparameters", "folder", "seeds", "loss")}


def _card(run: RunFolder, config: Config, task: Task, found: Mapping[str, Any]) -> dict[str, Any]:
    method = METHODS[found["winner"]["method"]]
    machine, tokenizer = read_json(run.machine) or {}, load_tokenizer(task.source)
    first = read_split(run.splits / "train.jsonl")[0]
    pairs = isinstance(first, Labelled) and first.text2 is not None
    peft_type = _peft_type(run.path / found["winner"]["folder"] / "adapter") if method.trains else None
    package = place_in_package(task.source.name) if task.source.name.startswith("package:") else None
    return {"name": run.path.name, "base_model": task.source.public_name, "package": package, "task": task.task,
            "labels": list(task.labels), "method": describe(method), "peft_type": peft_type,
            "prompted": isinstance(method, Prompting), "system_turns": takes_system(tokenizer),
            "between": between(tokenizer) if pairs else None, "finish": found, "data": read_summary(run),
            "source": config.data.source, "trained_on": config.data.trained_on,
            "versions": machine["versions"], "machine": machine,
            "steps": task.steps, "batch_size": task.batch_size, "max_length": task.max_length,
            "optimizer": config.search.optimizer, "fidelity": config.search.fidelity,
            "trials": sum(outcome.is_new for outcome in run.outcomes())}


def _peft_type(adapter: Path) -> str | None:
    """None: it is a transformers folder; "finemesh": a form of the method's own."""
    file = adapter / "adapter_config.json"
    if file.exists():
        return str(json.loads(file.read_text(encoding="utf-8"))["peft_type"])
    return None if (adapter / "config.json").exists() else "finemesh"
