"""What the study's machinery costs at 10,000 stored trials: milliseconds a trial (store, processes, outcome files), seconds to
resume, and what the optimizers compute beside it.

Trials train nothing, so all that is left is machinery; the time within the sampler is counted apart. Beside it, in turns:
Optuna alone, asking and telling the same points in its own SQLite storage, in one process. The stored trials come from a
random search; they take some minutes, and with --store DIR they are kept there, and gone on with where they are too few.

    python benchmarks/machinery.py [--quick] [--trials 10000] [--fidelity full] [--store DIR] [--json]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from shutil import copytree
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial
from result import machine, show, versions
from rich.table import Table

from finemesh.hyperparameter import choice, integer, real
from finemesh.run import RunFolder
from finemesh.search.budget import Budget
from finemesh.search.executors import Executor, LocalExecutor
from finemesh.search.executors.base import Event
from finemesh.search.fidelities import FIDELITIES
from finemesh.search.observer import Nobody
from finemesh.search.samplers import OPTIMIZERS
from finemesh.search.space import Space
from finemesh.search.study import run_search
from finemesh.trial import Job, Outcome, write_outcome

SPACE = Space({method: {"learning_rate": real(1e-5, 1e-1, 1e-3, log=True), "rank": integer(1, 256, 8, log=True),
                        "alpha": real(0.25, 4.0, 2.0, log=True), "dropout": real(0.0, 0.2, 0.0),
                        "layers": choice(["all", "attention", "mlp"], "all"), "warmup": real(0.0, 0.3, 0.03)}
               for method in ("lora", "sift", "prefix")})
BOUNDS = {"peak_memory_mb": 1e4, "trainable_parameters": 1e6}  # which every trial keeps
STEPS = 9


class Stopwatch(Nobody):
    """When each trial ended, and what had been spent within the sampler until then."""

    def __init__(self, sampler: "Timed") -> None:
        self.sampler = sampler
        self.ended_at: list[tuple[float, float]] = []

    def ended(self, outcome: Outcome) -> None:
        self.ended_at.append((time.perf_counter(), self.sampler.seconds))

    def milliseconds(self) -> list[float]:
        """From the end of a trial to the end of the next one, without the sampler."""
        return [1000 * (b - a - (inner - before)) for (a, before), (b, inner) in pairwise(self.ended_at)]

    def asking(self) -> list[float]:
        """The sampler's milliseconds a trial."""
        return [1000 * (inner - before) for (_, before), (_, inner) in pairwise(self.ended_at)]


class Timed(BaseSampler):
    """A sampler that counts the seconds spent in it."""

    def __init__(self, inner: BaseSampler) -> None:
        self.inner, self.seconds = inner, 0.0

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._timed("infer_relative_search_space", study, trial)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        return self._timed("sample_relative", study, trial, search_space)

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str,
                           param_distribution: BaseDistribution) -> Any:
        return self._timed("sample_independent", study, trial, param_name, param_distribution)

    def _timed(self, name: str, *arguments: Any) -> Any:
        start = time.perf_counter()
        try:
            return getattr(self.inner, name)(*arguments)
        finally:
            self.seconds += time.perf_counter() - start


def outcome_of(job: Job) -> Outcome:
    """Written as every worker writes it."""
    point, rank = job.hyperparameters, job.hyperparameters["rank"]
    numbers: Mapping[str, Any] = {"peak_memory_mb": 100.0 + rank, "trainable_parameters": count(job.method, point)}
    outcome = Outcome(job.number, "complete" if job.steps == STEPS else "pruned", job.method, point, job.seed, job.steps,
                      validation_loss=float(point["dropout"]) + 1 / job.steps, continues=job.continues, seconds=1.0,
                      constraints={name: numbers[name] - bound for name, bound in job.constraints.items()},
                      foreseen=job.foreseen, **numbers)
    write_outcome(job.folder, outcome)
    return outcome


def count(method: str, point: Mapping[str, Any]) -> int:
    return 1000 * int(point["rank"])


def work() -> None:
    """A worker that has nothing to do but what every worker does: one line of a curve and outcome.json."""
    print(json.dumps({"ready": {}}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        job = Job.from_json(request["arguments"])
        print(json.dumps({"id": request["id"], "progress": {"step": 1, "validation_loss": 1.0}}), flush=True)
        print(json.dumps({"id": request["id"], "result": outcome_of(job).to_json()}), flush=True)


class Here(Executor):
    """An executor without processes, to come by stored trials sooner."""

    workers = 1

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._requests = 0

    def submit(self, kind: str, arguments: Mapping[str, Any]) -> int:
        self._requests += 1
        self._events.append(Event(self._requests, "result", outcome_of(Job.from_json(arguments)).to_json()))
        return self._requests

    def wait(self, timeout: float | None = None) -> list[Event]:
        events, self._events = self._events, []
        return events


def search(folder: Path, trials: int, fidelity: str, optimizer: str = "random", here: bool = False) -> Stopwatch:
    run, sampler = RunFolder(folder), Timed(OPTIMIZERS[optimizer](0, 1))
    watch = Stopwatch(sampler)

    def searched(executor: Executor) -> None:
        run_search(SPACE, sampler, Budget(trials), executor, run, seed=0, steps=STEPS, observer=watch, constraints=BOUNDS,
                   count=count, fidelity=FIDELITIES[fidelity](STEPS, None, 3))

    with run.locked():
        if here:
            searched(Here())
        else:
            with LocalExecutor([sys.executable, __file__, "--worker"], 1, logs=run.logs) as executor:
                searched(executor)
    return watch


class OptunaAlone:
    """The same trials in Optuna's storage, with its own defaults."""

    def __init__(self, folder: Path) -> None:
        storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'optuna.db'}")
        self.study = optuna.create_study(storage=storage, sampler=RandomSampler(), study_name="alone", load_if_exists=True)

    def fill(self, count: int) -> None:
        self.trials(count - len(self.study.get_trials(deepcopy=False)))

    def trials(self, count: int) -> list[float]:
        """Milliseconds of each."""
        times = []
        for _ in range(count):
            start = time.perf_counter()
            trial = self.study.ask()
            _, point = SPACE.suggest(trial)
            for name in BOUNDS:
                trial.set_constraint(name, -1.0)
            self.study.tell(trial, point["dropout"])
            times.append(1000 * (time.perf_counter() - start))
        return times


def measure(store: Path, stored: int, fidelity: str, rounds: int, per_round: int) -> dict[str, Any]:
    """The store is left as it was."""
    store.mkdir(parents=True, exist_ok=True)
    search(store / fidelity, stored, fidelity, here=True)
    OptunaAlone(store).fill(stored)
    with tempfile.TemporaryDirectory(dir=store) as folder:
        copytree(store / fidelity, run := Path(folder) / fidelity)  # the study has the folder's name
        (Path(folder) / "optuna.db").write_bytes((store / "optuna.db").read_bytes())
        optuna_alone = OptunaAlone(Path(folder))
        ours, theirs, asking, trials = [], [], {}, len(list((run / "trials").iterdir()))
        for _ in range(rounds):
            trials += per_round
            ours.append(statistics.median(search(run, trials, fidelity).milliseconds()))
            theirs.append(statistics.median(optuna_alone.trials(per_round)))
        resumed = [whole_command(run, trials + extra, fidelity) for extra in (1, 2, 3)]
        for name in OPTIMIZERS:
            trials += 20
            asking[name] = statistics.median(search(run, trials, fidelity, name).asking())
    return {
        "ratios": {"machinery_vs_optuna_sqlite": statistics.median(a / b for a, b in zip(ours, theirs, strict=True))},
        "milliseconds_per_trial": statistics.median(ours),
        "milliseconds_per_trial_optuna_sqlite": statistics.median(theirs),
        "milliseconds_of_asking": asking,
        "seconds_to_resume": statistics.median(resumed),
        "stored_trials": stored,
        "fidelity": fidelity,
        "machine": machine(),
        "versions": versions("finemesh", "optuna", "sqlalchemy"),
    }


def whole_command(folder: Path, trials: int, fidelity: str) -> float:
    """Seconds for a new process to resume the study and run one more trial, its start and its imports included."""
    start = time.perf_counter()
    arguments = ["--resume", str(folder), "--trials", str(trials), "--fidelity", fidelity]
    subprocess.run([sys.executable, __file__, *arguments], check=True)
    return time.perf_counter() - start


def table(result: dict[str, Any]) -> Table:
    shown = Table(title=f"Machinery at {result['stored_trials']:,} stored trials, fidelity {result['fidelity']}")
    for column in ("", "finemesh", "Optuna alone, SQLite", "ratio"):
        shown.add_column(column)
    shown.add_row("milliseconds a trial, without the sampler", f"{result['milliseconds_per_trial']:.1f}",
                  f"{result['milliseconds_per_trial_optuna_sqlite']:.1f}",
                  f"{result['ratios']['machinery_vs_optuna_sqlite']:.2f}")
    for name, milliseconds in result["milliseconds_of_asking"].items():
        shown.add_row(f"milliseconds a trial within {name}", f"{milliseconds:.1f}", "", "")
    shown.add_row("seconds to resume, in a new process", f"{result['seconds_to_resume']:.2f}", "", "")
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="200 stored trials")
    parser.add_argument("--trials", type=int, default=10_000, help="stored trials before measuring")
    parser.add_argument("--fidelity", choices=FIDELITIES, default="full")
    parser.add_argument("--store", type=Path, help="where the stored trials are kept")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--resume", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work()
    elif arguments.resume:
        search(arguments.resume, arguments.trials, arguments.fidelity)
    else:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with tempfile.TemporaryDirectory() as folder:
            result = measure(arguments.store or Path(folder), 200 if arguments.quick else arguments.trials, arguments.fidelity,
                             rounds=5, per_round=10 if arguments.quick else 20)
        show(result, arguments.json, table(result))


if __name__ == "__main__":
    main()
