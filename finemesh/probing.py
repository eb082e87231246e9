"""`finemesh probe`: what the gradient and the loss around a model look like, and around what a run made of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from finemesh.config import Config
from finemesh.disk import full_disk
from finemesh.errors import InputError
from finemesh.reading import model_of, read_data
from finemesh.results.probe import write_probe
from finemesh.run import RunFolder
from finemesh.trial import write_json
from finemesh.tuning.data.batches import encode_all
from finemesh.tuning.landscape.measurement import Extent, Subject, measure
from finemesh.tuning.methods import METHODS
from finemesh.tuning.models import load_tokenizer, quieten
from finemesh.tuning.task import Task


def probe(config: Config, *, run: Path | None = None, out: str | None = None, counts: Mapping[str, int] | None = None,
          say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Gradient concentration and loss landscape on the config's training rows; with `run` also of what it tuned.

    `counts` changes how many batches, directions and points are measured. Writes probe.json and probe.html into `out`.
    """
    quieten()
    extent = Extent(**(counts or {}))
    folder, source = Path(out or f"{config.out}-probe"), model_of(config)
    splits = read_data(config, source)
    tokenizer = load_tokenizer(source)
    pairs, _ = encode_all(splits.train, tokenizer, config.data.max_length, splits.task, labels=splits.labels)
    subject = Subject(source, splits.task, splits.labels, [row for _, row in pairs], config.search.batch_size,
                      int(tokenizer.pad_token_id), config.search.seed)
    tuned = _tuned_by(run, source.public_name, splits.labels) if run is not None else None
    with full_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        about = {"model": source.public_name, "task": splits.task, "data": config.data.source, "batch_size": subject.batch_size,
                 "max_length": config.data.max_length, "seed": subject.seed, **asdict(extent),
                 "tuned": {"method": tuned[0], "run": str(run)} if tuned else None}
        document = about | measure(subject, extent, tuned, say)
        write_json(folder / "probe.json", document)
        page = write_probe(folder, document)
    return document | {"files": [str(folder / "probe.json"), str(page)]}


def _tuned_by(run: Path, model: str, labels: Sequence[str]) -> tuple[str, Path]:
    """The method and the adapter of a run's winner, or of the best of its trials that is kept."""
    folder = RunFolder.existing(run)
    best = folder.winner()
    kept = [o for o in folder.outcomes() if o.validation_loss is not None and (folder.trial(o.number) / "adapter").exists()]
    if best is None and not kept:
        raise InputError(f"--run: {run} holds no tuned model: it has no best/ and keeps no adapter of a trial")
    task = Task.read(folder.task)
    if (task.source.public_name, tuple(task.labels)) != (model, tuple(labels)):
        raise InputError(f"--run: {run} tuned {task.source.public_name}{_labels(task.labels)}, the config names "
                         f"{model}{_labels(labels)}: give a run of this config")
    winner = min(kept, key=lambda o: o.validation_loss or 0.0) if best is None else None
    method = winner.method if winner else best["method"] if best else ""
    if not METHODS[method].mergeable:
        raise InputError(f"--run: {run} was tuned by {method}, which leaves the weights as they are, so the landscape of "
                         f"the weights is the same; give a run of {', '.join(n for n, m in METHODS.items() if m.mergeable)}")
    return method, folder.trial(winner.number) / "adapter" if winner else folder.best


def _labels(labels: Sequence[str]) -> str:
    return f" for the labels {', '.join(labels)}" if labels else ""
