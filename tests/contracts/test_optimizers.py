"""What every optimizer of the table keeps to."""

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import optuna
import pytest
from optuna.samplers import PartialFixedSampler, RandomSampler
from optuna.trial import Trial, TrialState

from finemesh.search.samplers import OPTIMIZERS

TRIALS = 20
KILL_AT = 13
WORKERS = (1, 3)
KILLED = [("nomad", 1), *((name, 3) for name in OPTIMIZERS)]
SCRIPT = Path(__file__).with_name("ask_and_tell.py")
ROOT = Path(__file__).parents[2]


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ask_and_tell", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


loop = _load()
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(scope="module")
def uninterrupted() -> dict[tuple[str, int], list[dict]]:
    return {(name, workers): loop.run(loop.study(name, workers), TRIALS, workers)
            for name in OPTIMIZERS for workers in WORKERS}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of databases whose studies were killed in the middle of asking for trial KILL_AT."""
    folder = tmp_path_factory.mktemp("killed")
    cases = [word for name, workers in KILLED for word in (name, str(workers))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, str(SCRIPT), str(folder), str(KILL_AT), *cases], check=True, env=environment)
    return folder


@pytest.mark.parametrize(("name", "workers"), KILLED)
def test_killed_and_resumed_gives_the_uninterrupted_sequence(
        name: str, workers: int, killed: Path, uninterrupted: dict[tuple[str, int], list[dict]]) -> None:
    study = loop.study(name, workers, storage=loop.database(killed, name, workers))
    assert len(study.trials) == KILL_AT + 1
    assert list(study.trials[KILL_AT].params) == ["method"]  # killed while it asked for its hyperparameters
    assert loop.run(study, TRIALS, workers, order=2) == uninterrupted[name, workers]


@every_optimizer
def test_another_sampler_object_goes_on_alike(name: str, uninterrupted: dict[tuple[str, int], list[dict]]) -> None:
    study = loop.study(name, 1)
    for trials in range(4, TRIALS + 1, 5):
        study.sampler = OPTIMIZERS[name](3, 1)
        points = loop.run(study, trials, 1)
        assert points == uninterrupted[name, 1][:trials]


@every_optimizer
def test_the_order_in_which_trials_end_changes_no_point(
        name: str, uninterrupted: dict[tuple[str, int], list[dict]]) -> None:
    assert loop.run(loop.study(name, 3), TRIALS, 3, order=5) == uninterrupted[name, 3]


@every_optimizer
def test_another_seed_gives_other_points(name: str, uninterrupted: dict[tuple[str, int], list[dict]]) -> None:
    others = loop.run(loop.study(name, 1, seed=4), TRIALS, 1)
    same = sum(a == b for a, b in zip(others, uninterrupted[name, 1], strict=True))
    assert same <= 2


@every_optimizer
def test_stays_in_the_space_and_its_conditions(name: str, uninterrupted: dict[tuple[str, int], list[dict]]) -> None:
    for params in uninterrupted[name, 1]:
        prefixes = {key.split(".")[0] for key in params} - {"method"}
        assert prefixes == {params["method"]}
        if params["method"] == "lora":
            assert 2 <= params["lora.rank"] <= 128
            assert params["lora.rank"] == int(params["lora.rank"])
            assert math.isclose(params["lora.dropout"] / 0.05, round(params["lora.dropout"] / 0.05), abs_tol=1e-9)


@every_optimizer
def test_survives_failed_and_infeasible_trials(name: str) -> None:
    """The first three fail, each in its own way, and half of the space is infeasible."""
    study = optuna.create_study(sampler=OPTIMIZERS[name](0, 1))

    def objective(trial: Trial) -> float:
        x, k = trial.suggest_float("x", -1, 1), trial.suggest_int("k", 0, 9)
        trial.set_constraint("k", k - 4)
        if trial.number == 0:
            raise FloatingPointError
        if trial.number == 1:
            return math.nan
        if trial.number == 2:
            raise optuna.TrialPruned
        if x > 0.9:
            return math.inf
        return (x - 0.3) ** 2 - 0.1 * k

    study.optimize(objective, n_trials=16, catch=FloatingPointError)
    assert len(study.trials) == 16
    assert study.trials[0].state == study.trials[1].state == TrialState.FAIL
    feasible = [trial for trial in loop.finished(study) if trial.constraints["k"] <= 0 and math.isfinite(trial.value)]
    assert min(trial.value for trial in feasible) < 0.0


@every_optimizer
def test_maximises_and_learns(name: str) -> None:
    study = optuna.create_study(sampler=OPTIMIZERS[name](0, 1), direction="maximize")
    study.optimize(lambda trial: -(trial.suggest_float("x", -5, 5) - 2) ** 2, n_trials=30)
    assert study.best_value > -0.5


@every_optimizer
def test_enqueued_points_are_run_and_the_rest_follows(name: str) -> None:
    study = optuna.create_study(sampler=OPTIMIZERS[name](0, 1))
    study.enqueue_trial({"x": 0.25, "y": 0.75})
    study.enqueue_trial({"x": 0.5})
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1) + trial.suggest_float("y", 0, 1), n_trials=12)
    assert study.trials[0].params == {"x": 0.25, "y": 0.75}
    assert study.trials[1].params["x"] == 0.5
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 12


@every_optimizer
def test_goes_on_alike_from_another_samplers_trials(name: str) -> None:
    sequences = []
    for chunks in ([8], [5, 3]):
        study = optuna.create_study(sampler=RandomSampler(seed=0))
        study.optimize(lambda trial: loop.loss(loop.suggest(trial)), n_trials=8, catch=FloatingPointError)
        for trials in chunks:
            study.sampler = OPTIMIZERS[name](3, 1)
            study.optimize(lambda trial: loop.loss(loop.suggest(trial)), n_trials=trials, catch=FloatingPointError)
        sequences.append([trial.params for trial in study.trials])
    assert sequences[0] == sequences[1]
    assert len({str(params) for params in sequences[0]}) == 16


@pytest.mark.filterwarnings("ignore:PartialFixedSampler is experimental")
@every_optimizer
def test_a_fixed_hyperparameter_leaves_the_others_to_be_searched(name: str) -> None:
    study = optuna.create_study(sampler=PartialFixedSampler({"y": 0.5}, OPTIMIZERS[name](1, 1)))
    study.optimize(lambda trial: sum((trial.suggest_float(name, 0, 1) - 0.37) ** 2 for name in "xyz"), n_trials=30)
    assert {trial.params["y"] for trial in study.trials} == {0.5}
    assert len({tuple(trial.params.values()) for trial in study.trials}) >= 27


def trade_off(trial: Trial) -> tuple[float, float]:
    point = loop.suggest(trial)
    trial.set_constraint("memory", loop.memory(point))
    return loop.loss(point), point.get("rank", 10.0)


@pytest.mark.parametrize("objectives", [2, 5])
@every_optimizer
def test_searches_several_objectives_or_says_why_not(name: str, objectives: int) -> None:
    """And goes on alike with another sampler object."""
    def objective(trial: Trial) -> tuple[float, ...]:
        return (*trade_off(trial), 1.0, 2.0, 3.0)[:objectives]

    sequences = []
    for chunks in ([12], [5, 4, 3]):
        study = optuna.create_study(directions=["minimize", "maximize", *["minimize"] * (objectives - 2)])
        for trials in chunks:
            study.sampler = OPTIMIZERS[name](3, 1)
            refused = None
            try:
                study.optimize(objective, n_trials=trials, catch=FloatingPointError)
            except ValueError as error:
                refused = str(error)
            if refused is not None:
                assert f"objectives, not {objectives}" in refused
                assert objectives > 2
                return
        sequences.append([trial.params for trial in study.trials])
    assert sequences[0] == sequences[1]
    assert len({str(params) for params in sequences[0]}) == 12
    assert any(all(excess <= 0 for excess in trial.constraints.values()) for trial in loop.finished(study))
