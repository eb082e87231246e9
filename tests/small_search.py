"""A search of a tiny model, for tests that begin with a config; in this process where processes would cost seconds."""

import itertools
import json
from pathlib import Path

from finemesh.config import load_config
from finemesh.search.executors.base import Event
from finemesh.tuning.blackbox import Blackbox
from finemesh.tuning.task import Task
from finemesh.tuning.worker import _do

CONFIG = """
model: {model}
data: {{train: {data}, validation: 0.2, test: 0.2, max_length: 32}}
methods: {methods}
search: {{optimizer: {optimizer}, trials: {trials}, steps: 4, batch_size: 8, repeats: 2}}
out: {out}
"""


def config(places: Path, out: Path, *, model: str = "causal", data: str = "pairs", optimizer: str = "random",
           methods: str = "[lora, prompt]", trials: int = 5):
    file = out.with_suffix(".yaml")
    file.write_text(CONFIG.format(model=places / model, data=places / f"{data}.jsonl", out=out, optimizer=optimizer,
                                  methods=methods, trials=trials))
    return load_config(file)


class InProcess:
    """An executor without processes."""

    workers = 1

    def __init__(self, task: Task) -> None:
        self._blackbox, self._events, self._numbers = Blackbox(task), [], itertools.count()

    def submit(self, kind, arguments):
        event = Event(next(self._numbers), "result", _do(self._blackbox, kind, arguments, lambda line: None))
        self._events.append(event)
        return event.id

    def wait(self, timeout=None):
        events, self._events = self._events, []
        return events


def outcomes(run: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(run.glob("trials/*/outcome.json"))]


def points(run: Path) -> list[tuple]:
    return [(o["method"], o["hyperparameters"], o["validation_loss"]) for o in outcomes(run)]
