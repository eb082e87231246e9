"""What the study's machinery costs: milliseconds a trial (store, processes, outcome files) and seconds to resume.

Trials train nothing and the sampler is random, so all that is left is machinery. Beside it, in turns: Optuna alone, asking
and telling the same points in its own SQLite storage, in one process.

    python benchmarks/machinery.py [--quick] [--trials 1000] [--json]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import RandomSampler
from result import machine, show, versions
from rich.table import Table

from finemesh.hyperparameter import choice, integer, real
from finemesh.run import RunFolder
from finemesh.search.budget import Budget
from finemesh.search.executors import LocalExecutor
from finemesh.search.observer import Nobody
from finemesh.search.space import Space
from finemesh.search.study import run_search
from finemesh.trial import Job, Outcome, write_outcome

SPACE = Space({method: {"learning_rate": real(1e-5, 1e-1, 1e-3, log=True), "rank": integer(1, 256, 8, log=True),
                        "alpha": real(0.25, 4.0, 2.0, log=True), "dropout": real(0.0, 0.2, 0.0),
                        "layers": choice(["all", "attention", "mlp"], "all"), "warmup": real(0.0, 0.3, 0.03)}
               for method in ("lora", "sift", "prefix")})
CONSTRAINTS = {"peak_memory_mb": -1.0, "trainable_parameters": -1.0}


class Stopwatch(Nobody):
    """When each trial ended, and when the first one was started."""

    def __init__(self) -> None:
        self.ended_at: list[float] = []
        self.started_at: float | None = None

    def started(self, job: Job) -> None:
        self.started_at = self.started_at or time.perf_counter()

    def ended(self, outcome: Outcome) -> None:
        self.ended_at.append(time.perf_counter())

    def milliseconds(self) -> list[float]:
        return [1000 * (b - a) for a, b in zip(self.ended_at, self.ended_at[1:], strict=False)]


def work() -> None:
    """A worker that has nothing to do but what every worker does: one line of a curve and outcome.json."""
    print(json.dumps({"ready": {}}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        job = Job.from_json(request["arguments"])
        print(json.dumps({"id": request["id"], "progress": {"step": 1, "validation_loss": 1.0}}), flush=True)
        outcome = Outcome(job.number, "complete", job.method, job.hyperparameters, job.seed, job.steps,
                          validation_loss=float(job.hyperparameters["dropout"]), constraints=CONSTRAINTS)
        write_outcome(job.folder, outcome)
        print(json.dumps({"id": request["id"], "result": outcome.to_json()}), flush=True)


def search(folder: Path, trials: int, workers: int = 1) -> Stopwatch:
    watch, run = Stopwatch(), RunFolder(folder)
    with run.locked(), LocalExecutor([sys.executable, __file__, "--worker"], workers, logs=run.logs) as executor:
        run_search(SPACE, RandomSampler(), Budget(trials), executor, run, seed=0, steps=1, workers=workers,
                   observer=watch)
    return watch


class OptunaAlone:
    """The same trials in Optuna's storage, with its own defaults."""

    def __init__(self, folder: Path) -> None:
        storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'optuna.db'}")
        self.study = optuna.create_study(storage=storage, sampler=RandomSampler())

    def trials(self, count: int) -> list[float]:
        """Milliseconds of each."""
        times = []
        for _ in range(count):
            start = time.perf_counter()
            trial = self.study.ask()
            _, point = SPACE.suggest(trial)
            for name, excess in CONSTRAINTS.items():
                trial.set_constraint(name, excess)
            self.study.tell(trial, point["dropout"])
            times.append(1000 * (time.perf_counter() - start))
        return times


def measure(stored: int, rounds: int, per_round: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        run, optuna_alone = Path(folder) / "run", OptunaAlone(Path(folder))
        search(run, stored)
        optuna_alone.trials(stored)
        ours, theirs, trials = [], [], stored
        for _ in range(rounds):
            trials += per_round
            ours.append(statistics.median(search(run, trials).milliseconds()))
            theirs.append(statistics.median(optuna_alone.trials(per_round)))
        resumed = [whole_command(run, trials + extra) for extra in (1, 2, 3)]
    return {
        "ratios": {"machinery_vs_optuna_sqlite": statistics.median(a / b for a, b in zip(ours, theirs, strict=True))},
        "milliseconds_per_trial": statistics.median(ours),
        "milliseconds_per_trial_optuna_sqlite": statistics.median(theirs),
        "seconds_to_resume": statistics.median(resumed),
        "stored_trials": stored,
        "machine": machine(),
        "versions": versions("finemesh", "optuna", "sqlalchemy"),
    }


def whole_command(folder: Path, trials: int) -> float:
    """Seconds for a new process to resume the study and run one more trial, its start and its imports included."""
    start = time.perf_counter()
    subprocess.run([sys.executable, __file__, "--resume", str(folder), "--trials", str(trials)], check=True)
    return time.perf_counter() - start


def table(result: dict[str, Any]) -> Table:
    shown = Table(title=f"Machinery at {result['stored_trials']} stored trials")
    for column in ("", "finemesh", "Optuna alone, SQLite", "ratio"):
        shown.add_column(column)
    shown.add_row("milliseconds a trial", f"{result['milliseconds_per_trial']:.1f}",
                  f"{result['milliseconds_per_trial_optuna_sqlite']:.1f}",
                  f"{result['ratios']['machinery_vs_optuna_sqlite']:.2f}")
    shown.add_row("seconds to resume, in a new process", f"{result['seconds_to_resume']:.2f}", "", "")
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="200 stored trials")
    parser.add_argument("--trials", type=int, default=1000, help="stored trials before measuring")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--resume", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work()
    elif arguments.resume:
        search(arguments.resume, arguments.trials)
    else:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        result = measure(200 if arguments.quick else arguments.trials, rounds=5, per_round=10 if arguments.quick else 40)
        show(result, arguments.json, table(result))


if __name__ == "__main__":
    main()
