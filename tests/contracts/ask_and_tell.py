"""A study as finemesh runs it, in miniature: asked and told in order, with running trials found again after a kill.

As a script it runs studies that kill their own process in the middle: python ask_and_tell.py FOLDER KILL_AT NAME WORKERS ...
"""

import math
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from finemesh.search.samplers import OPTIMIZERS

Suggest = Callable[[Trial], dict[str, Any]]


def suggest(trial: Trial) -> dict[str, Any]:
    """A space like finemesh's: a method, and hyperparameters of its own."""
    point: dict[str, Any] = {"method": trial.suggest_categorical("method", ["lora", "full", "prompt"])}
    if point["method"] == "lora":
        point["rank"] = trial.suggest_int("lora.rank", 2, 128, log=True)
        point["rate"] = trial.suggest_float("lora.rate", 1e-5, 1e-2, log=True)
        point["dropout"] = trial.suggest_float("lora.dropout", 0.0, 0.3, step=0.05)
        point["target"] = trial.suggest_categorical("lora.target", ["all", "attention"])
    elif point["method"] == "full":
        point["rate"] = trial.suggest_float("full.rate", 1e-6, 1e-3, log=True)
    else:
        point["rate"] = trial.suggest_float("prompt.rate", 1e-4, 1.0, log=True)
        point["length"] = trial.suggest_int("prompt.length", 4, 100)
    return point


def loss(point: dict[str, Any]) -> float:
    """Fails at some high learning rates; NaN at others."""
    rate = math.log10(point["rate"])
    if -2.3 < rate < -2.1:
        return math.nan
    if rate > -0.2:
        raise FloatingPointError
    best = {"lora": -3.0, "full": -4.5, "prompt": -1.5}[point["method"]]
    return 2.0 + 0.2 * (rate - best) ** 2 - 0.05 * math.log2(point.get("rank", 1))


def memory(point: dict[str, Any]) -> float:
    return point.get("rank", 10) / 64 - 1.0


def tell(study: optuna.Study, trial: Trial, point: dict[str, Any]) -> None:
    try:
        value = loss(point)
    except FloatingPointError:
        value = math.nan
    if math.isnan(value):
        study.tell(trial, state=TrialState.FAIL)
        return
    trial.set_constraint("memory", memory(point))
    study.tell(trial, value)


def run(study: optuna.Study, trials: int, workers: int, order: int = 0, kill_at: int | None = None) -> list[dict[str, Any]]:
    """Trials may end in any order; they are told in order, and trial n is asked for when 0 .. n - workers are told."""
    rng = random.Random(order)
    found = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.RUNNING]
    running = {trial.number: Trial(study, trial._trial_id) for trial in found}
    points = {number: suggest(trial) for number, trial in running.items()}
    ended: set[int] = set()
    asked = len(study.get_trials(deepcopy=False))
    told = asked - len(running)
    while told < trials:
        while asked < trials and asked - workers < told:
            running[asked] = study.ask()
            if asked == kill_at:
                running[asked].suggest_categorical("method", ["lora", "full", "prompt"])
                os.kill(os.getpid(), signal.SIGKILL)
            points[asked] = suggest(running[asked])
            asked += 1
        ended.add(rng.choice([number for number in running if number not in ended]))
        while told in ended:
            tell(study, running.pop(told), points[told])
            told += 1
    return [trial.params for trial in study.get_trials(deepcopy=False)]


def study(name: str, workers: int, seed: int = 3, storage: str | None = None) -> optuna.Study:
    sampler = OPTIMIZERS[name](seed, workers)
    return optuna.create_study(sampler=sampler, storage=storage, study_name="study", load_if_exists=True)


def database(folder: Path, name: str, workers: int) -> str:
    return f"sqlite:///{folder}/{name}-{workers}.db"


def finished(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])


def main() -> None:
    folder, kill_at = Path(sys.argv[1]), int(sys.argv[2])
    for name, workers in zip(sys.argv[3::2], map(int, sys.argv[4::2]), strict=True):
        if os.fork() == 0:
            run(study(name, workers, storage=database(folder, name, workers)), kill_at + 1, workers, 1, kill_at)
        _, status = os.wait()
        assert os.WTERMSIG(status) == signal.SIGKILL


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    main()
