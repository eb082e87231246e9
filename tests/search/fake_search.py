"""A search without models: a small space, workers that train nothing, a sampler that notices everything.

As a script it is a command that can be killed: `python fake_search.py FOLDER '{"trials": 12, "workers": 3, ...}'`.
"""

import functools
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial

from finemesh.hyperparameter import choice, integer, real
from finemesh.run import RunFolder
from finemesh.search.board import Board
from finemesh.search.budget import Budget
from finemesh.search.executors import Executor, LocalExecutor
from finemesh.search.finish import finish
from finemesh.search.jobs import run_posted
from finemesh.search.space import Space
from finemesh.search.study import run_search
from finemesh.trial import Job, Outcome

WORKER = Path(__file__).with_name("fake_worker.py")
SPACE = Space({
    "lora": {"rank": integer(1, 64, 8, log=True), "learning_rate": real(1e-5, 1e-1, 1e-3, log=True),
             "init": choice(["random", "text"], "random"), "words": integer(1, 5, 2, when=("init", ("text",)))},
    "full": {"learning_rate": real(1e-6, 1e-2, 1e-5, log=True)},
})
REFERENCES = {"lora": {"rank": 8, "learning_rate": 2e-4, "init": "random"}, "full": {"learning_rate": 2e-5}}


class Watching(BaseSampler):
    """Random points that depend on everything a sampler can see: any other view of the history gives others."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.seen: dict[int, list[str]] = {}

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        earlier = [t for t in study.get_trials(deepcopy=False) if t.number < trial.number]
        self.seen[trial.number] = [t.state.name for t in earlier]
        view = [(t.state.name, t.values, sorted(t.params.items()), sorted(t.constraints.items()),
                 t.intermediate_values) for t in earlier]
        digest = hashlib.sha256(repr((self.seed, view)).encode()).digest()
        self.stream = RandomSampler(seed=int.from_bytes(digest[:4], "little"))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study: Study, trial: FrozenTrial,
                        search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str,
                           param_distribution: BaseDistribution) -> Any:
        return self.stream.sample_independent(study, trial, param_name, param_distribution)


class Watcher:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.lines: list[tuple[int, Mapping[str, Any]]] = []
        self.outcomes: list[Outcome] = []
        self.messages: list[str] = []
        self.phases: list[tuple[str, int]] = []

    def started(self, job: Job) -> None:
        self.jobs.append(job)

    def progress(self, number: int, line: Mapping[str, Any]) -> None:
        self.lines.append((number, line))

    def ended(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def message(self, text: str) -> None:
        self.messages.append(text)

    def phase(self, name: str, total: int) -> None:
        self.phases.append((name, total))


class Stops(Watcher):
    """Ctrl-C when so many trials have ended."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self._after = after

    def ended(self, outcome: Outcome) -> None:
        super().ended(outcome)
        if len(self.outcomes) == self._after:
            raise KeyboardInterrupt


@functools.cache
def empty_store() -> Path:
    """Making the tables of a store takes longer than most of the searches here."""
    path = Path(tempfile.mkdtemp()) / "empty.db"
    storage = RDBStorage(f"sqlite:///{path}")
    storage.engine.dispose()
    return path


def executor(folder: Path, workers: int = 1, **script: Any) -> LocalExecutor:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "script.json").write_text(json.dumps(script))
    return LocalExecutor([sys.executable, str(WORKER), str(folder / "script.json")], workers, logs=folder / "logs",
                         environment={"PYTHONPATH": str(Path(__file__).parents[2])}, patience=30)


def search(folder: Path, trials: int, *, workers: int = 1, space: Space = SPACE, sampler: BaseSampler | None = None,
           hours: float | None = None, steps: int = 2, observer: Any = None, finishing: bool = False,
           script: Mapping[str, Any] | None = None, extra: int = 0, objectives: Sequence[str] = ("validation_loss",),
           workplace: Executor | None = None, here: int | None = None, in_flight: int | None = None,
           **options: Any) -> list[Outcome]:
    run = RunFolder(folder)
    run.path.mkdir(parents=True, exist_ok=True)
    if not run.study.exists():
        shutil.copy(empty_store(), run.study)
    observer, here = observer or Watcher(), here or workers

    def meanwhile(free: Callable[[], bool]) -> None:
        with executor(folder / f"fake-{os.getpid()}", here, **(script or {})) as workplace:
            run_posted(Board(run), workplace, observer, free)

    with run.locked(meanwhile), workplace or executor(folder / "fake", here, **(script or {})) as workplace:
        outcomes = run_search(space, sampler or Watching(0), Budget(trials, hours), workplace, run, seed=0, steps=steps,
                              in_flight=in_flight or workers, observer=observer, objectives=objectives, **options)
        if finishing:
            finish(outcomes, REFERENCES, space, workplace, run, seed=0, steps=steps, repeats=2, observer=observer,
                   answers=2, rows={"test": 40}, extra=extra, objectives=objectives,
                   constraints=options.get("constraints"))
    return outcomes


def points(outcomes: list[Outcome]) -> list[tuple[str, dict[str, Any], float | None, str]]:
    return [(o.method, dict(o.hyperparameters), o.validation_loss, o.state) for o in outcomes]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests were started in the background
    search(Path(sys.argv[1]), **json.loads(sys.argv[2]))
