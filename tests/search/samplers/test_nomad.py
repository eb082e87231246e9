import math
import os
import pickle
import signal
import threading
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.trial import Trial, TrialState, create_trial

from finemesh.search.samplers import NomadSampler


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)


def studied(objective: Callable[[Trial], float], trials: int, **arguments: Any) -> optuna.Study:
    study = optuna.create_study(sampler=NomadSampler(seed=0, **arguments))
    study.optimize(objective, n_trials=trials, catch=ZeroDivisionError)
    assert len(study.trials) == trials
    return study


def distinct(study: optuna.Study) -> int:
    return len({tuple(sorted((name, str(value)) for name, value in trial.params.items())) for trial in study.trials})


def bowl(trial: Trial) -> float:
    return (trial.suggest_float("x", -5, 5) - 1) ** 2 + (math.log10(trial.suggest_float("y", 1e-6, 1, log=True)) + 3) ** 2


def test_finds_the_minimum_of_a_bowl() -> None:
    assert studied(bowl, 30).best_value < 0.01


def test_a_space_without_variables() -> None:
    studied(lambda trial: 1.0, 3)
    studied(lambda trial: trial.suggest_float("x", 2, 2) + trial.suggest_int("k", 1, 1), 3)


def test_one_variable_and_one_that_cannot_vary() -> None:
    study = studied(lambda trial: (trial.suggest_float("x", 0, 1) - 0.3) ** 2 + trial.suggest_float("y", 2, 2), 16)
    assert study.best_value < 2.001


def test_only_categoricals_all_tried_before_any_is_repeated() -> None:
    def objective(trial: Trial) -> float:
        return trial.suggest_categorical("a", [1, 2, 3]) + (trial.suggest_categorical("b", [None, "x"]) is None)

    study = studied(objective, 8)
    assert distinct(study) == 6
    assert study.best_value == 1


@pytest.mark.filterwarnings("ignore:Choices for a categorical distribution")  # lists cannot be stored in a database
@pytest.mark.parametrize("choices", [[[64], [64, 64], {"of": 32}], [math.nan, 1.0, 2.0]])
def test_choices_that_are_no_plain_values(choices: list[Any]) -> None:
    def objective(trial: Trial) -> float:
        choice = trial.suggest_categorical("widths", [float("nan") if choice != choice else choice for choice in choices])
        return len(str(choice)) + (trial.suggest_float("x", 0, 1) - 0.3) ** 2

    study = studied(objective, 20)
    assert distinct(study) == 20
    assert len({str(trial.params["widths"]) for trial in study.trials}) == 3


def test_log_integers_cost_no_trial_twice() -> None:
    study = studied(lambda trial: abs(trial.suggest_int("rank", 1, 8, log=True) - 5), 8)
    assert distinct(study) == 8
    assert study.best_value == 0


def test_a_hyperparameter_that_appears_late() -> None:
    def objective(trial: Trial) -> float:
        late = (trial.suggest_float("z", 0, 1) - 0.8) ** 2 if trial.number >= 12 else 1.0
        return (trial.suggest_float("x", 0, 1) - 0.3) ** 2 + late

    study = studied(objective, 40)
    assert distinct(study) == 40
    assert study.best_value < 0.01


def test_a_condition_on_a_float() -> None:
    def objective(trial: Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        return 0.5 + trial.suggest_float("m", 0, 1) if x > 0.5 else (x - 0.2) ** 2

    study = studied(objective, 30)
    assert distinct(study) == 30
    assert study.best_value < 0.01


def test_a_number_of_layers() -> None:
    def objective(trial: Trial) -> float:
        layers = trial.suggest_int("layers", 1, 3)
        widths = [trial.suggest_float(f"width{i}", 0, 1) for i in range(layers)]
        return sum((width - 0.5) ** 2 for width in widths) / layers + 0.2 * abs(layers - 2)

    assert studied(objective, 40).best_value < 0.02


@pytest.mark.parametrize("is_integer", [False, True])
def test_a_name_with_another_range_in_each_branch(is_integer: bool) -> None:
    def objective(trial: Trial) -> float:
        branch = trial.suggest_int("branch", 0, 2) if is_integer else trial.suggest_categorical("branch", [0, 1, 2])
        low, high = [(1, 4), (10, 90), (3, 20)][branch]
        k = trial.suggest_int("k", low, high)
        return (k / high - 0.5) ** 2 + (trial.suggest_float(f"x{branch}", 0, 1) - 0.3) ** 2 if branch else k

    study = studied(objective, 30)
    assert distinct(study) == 30
    assert study.best_value < 0.02


@pytest.mark.parametrize("error", [optuna.TrialPruned, ZeroDivisionError])
def test_a_range_that_moved_and_a_first_trial_without_a_loss(error: type[Exception]) -> None:
    def objective(trial: Trial) -> float:
        low = 2 * (trial.number >= 8)
        x = trial.suggest_float("x", low, low + 1)
        if trial.number in (8, 9):
            raise error
        return (x - low - 0.3) ** 2

    study = studied(objective, 20)
    assert distinct(study) == 20
    assert min(trial.value for trial in study.trials[8:] if trial.value is not None) < 0.01


def test_a_method_that_always_fails_is_left_alone() -> None:
    def objective(trial: Trial) -> float:
        method = trial.suggest_categorical("method", ["bad", "good", "fair"])
        if method == "bad":
            raise ZeroDivisionError
        return {"good": 0.0, "fair": 1.0}[method] + (trial.suggest_float(f"{method}.x", 0, 1) - 0.4) ** 2

    study = studied(objective, 30)
    assert study.best_value < 1e-3
    assert [trial.params["method"] for trial in study.trials].count("bad") <= 4


def test_the_better_method_gets_more_trials_and_none_is_given_up() -> None:
    def objective(trial: Trial) -> float:
        method = trial.suggest_categorical("method", ["a", "b", "c"])
        return "bca".index(method) + (trial.suggest_float(f"{method}.x", 0, 1) - 0.4) ** 2

    methods = [trial.params["method"] for trial in studied(objective, 36).trials]
    assert methods.count("b") > methods.count("c") > methods.count("a") >= 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e200])
def test_nothing_but_useless_values(value: float) -> None:
    assert distinct(studied(lambda trial: value * trial.suggest_float("x", 0.1, 1), 8)) == 8


def test_only_infeasible_trials_lead_to_the_least_infeasible() -> None:
    def objective(trial: Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        trial.set_constraint("never", 1 + (x - 0.7) ** 2)
        trial.set_constraint("always", -math.inf)
        return x

    study = studied(objective, 20)
    assert min(abs(trial.params["x"] - 0.7) for trial in study.trials) < 0.02


def test_out_of_memory_points_are_learned_as_a_constraint() -> None:
    """Half of the space gives no loss at all, and nothing but that it is infeasible."""
    def objective(trial: Trial) -> float:
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        if x + y > 1:
            trial.set_constraint("infeasible", 1.0)
            raise optuna.TrialPruned
        return -x - y + 0.1 * x * y

    study = studied(objective, 30)
    assert min(trial.value for trial in study.trials if trial.value is not None) < -0.93


def test_more_workers_get_different_points_without_waiting() -> None:
    study = optuna.create_study(sampler=NomadSampler(seed=0, workers=4))
    trials = []
    for _ in range(20):
        trials.append(study.ask())
        value = bowl(trials[-1])
        if trials[-1].number >= 3:
            study.tell(trials[-4], value)
    assert distinct(study) == 20


def test_threads() -> None:
    study = optuna.create_study(sampler=NomadSampler(seed=0))
    study.optimize(bowl, n_trials=24, n_jobs=3)
    assert distinct(study) == 24


@pytest.mark.parametrize("told", [6, 8, 12])
def test_trials_that_ask_after_a_later_one_get_points_of_their_own(told: int) -> None:
    study = optuna.create_study(sampler=NomadSampler(seed=2))
    for trial in (study.ask(), study.ask()):
        study.tell(trial, bowl(trial))
    study.optimize(bowl, n_trials=told - 2)
    early = [study._storage.create_new_trial(study._study_id) for _ in range(2)]  # whose threads stop before they ask
    bowl(study.ask())
    for number in reversed(early):
        bowl(Trial(study, number))
    assert distinct(study) == told + 3


def test_a_trial_that_ends_in_another_process_while_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    study = optuna.create_study(sampler=NomadSampler(seed=0))
    study.optimize(bowl, n_trials=2)
    bowl(study.ask())  # and is not told
    storage = study._storage
    there = storage.create_new_trial(study._study_id)  # yet to ask, in the other process
    write = storage.set_trial_system_attr

    def writing(trial: int, *arguments: Any) -> None:
        if trial == there and not storage.get_trial(there).state.is_finished():
            storage.set_trial_state_values(there, TrialState.FAIL)
        write(trial, *arguments)

    monkeypatch.setattr(storage, "set_trial_system_attr", writing)
    study.optimize(bowl, n_trials=3)
    assert storage.get_trial(there).state == TrialState.FAIL
    assert distinct(study) == 7


def test_a_killed_child_changes_no_point() -> None:
    expected = [trial.params for trial in studied(bowl, 20).trials]

    def killing(trial: Trial) -> float:
        value = bowl(trial)
        pid = trial.study.sampler._process.pid  # type: ignore[attr-defined]
        if pid is not None and trial.number % 2:
            os.kill(pid, signal.SIGKILL)
        return value

    assert [trial.params for trial in studied(killing, 20).trials] == expected


def test_pickled_and_used_for_another_study() -> None:
    study = studied(bowl, 12)
    first = [trial.params for trial in study.trials]
    sampler = pickle.loads(pickle.dumps(study.sampler))
    for used in (sampler, study.sampler):
        again = optuna.create_study(sampler=used)
        again.optimize(bowl, n_trials=12)
        assert [trial.params for trial in again.trials] == first


def test_a_study_in_the_place_of_one_that_is_gone_gets_points_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage may have the id() of an earlier one, whose memory it was given."""
    def points(sampler: NomadSampler, low: int) -> list[Any]:
        study = optuna.create_study(sampler=sampler)
        study.optimize(lambda trial: trial.suggest_float("x", low, low + 1), n_trials=3)
        return [trial.params for trial in study.trials]

    monkeypatch.setattr("finemesh.search.samplers.nomad.id", lambda _: 1, raising=False)
    sampler = NomadSampler(seed=0)
    points(sampler, 0)
    assert points(sampler, 5) == points(NomadSampler(seed=0), 5)


def test_threads_that_ask_for_two_studies_do_not_get_into_each_others_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one asks while the first one writes down what it was planned."""
    def objective(trial: Trial) -> float:
        return trial.suggest_float(trial.study.study_name, 0, 1)

    sampler = NomadSampler(seed=0)
    one, other = (optuna.create_study(sampler=sampler, study_name=name) for name in "ab")
    other.optimize(objective, n_trials=2)
    one.optimize(objective, n_trials=2)
    second = threading.Thread(target=other.optimize, args=(objective, 1))
    write = one._storage.set_trial_system_attr

    def writing(*arguments: Any) -> None:
        if not second.ident:
            second.start()
            second.join(0.2)
        write(*arguments)

    monkeypatch.setattr(one._storage, "set_trial_system_attr", writing)
    one.optimize(objective, n_trials=1)
    second.join()
    assert distinct(one) == distinct(other) == 3


def test_without_a_seed_two_samplers_differ() -> None:
    points = []
    for _ in range(2):
        study = optuna.create_study(sampler=NomadSampler())
        study.optimize(bowl, n_trials=2)
        points.append(study.trials[1].params)
    assert points[0] != points[1]


def two_bowls(trial: Trial) -> tuple[float, float]:
    x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
    return (x - 0.2) ** 2 + (y - 0.5) ** 2, -((x - 0.8) ** 2) - (y - 0.5) ** 2


def test_several_objectives_in_both_directions_spread_over_the_front() -> None:
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=NomadSampler(seed=0))
    study.optimize(two_bowls, n_trials=24)
    assert distinct(study) == 24
    near = sorted(trial.params["x"] for trial in study.best_trials if abs(trial.params["y"] - 0.5) < 0.1)
    gaps = [b - a for a, b in zip([0.2, *near], [*near, 0.8], strict=True)]
    assert len(near) >= 6
    assert max(gaps) < 0.25


def test_several_objectives_with_methods_and_a_constraint() -> None:
    """Small and large models, of which the large ones are limited, and a method that no front needs."""
    def objective(trial: Trial) -> tuple[float, float]:
        method = trial.suggest_categorical("method", ["small", "large", "useless"])
        size = trial.suggest_float(f"{method}.size", 0, 1)
        rate = (trial.suggest_float(f"{method}.rate", 0, 1) - 0.3) ** 2
        trial.set_constraint("memory", size - 0.5 if method == "large" else -1.0)
        return {"small": 1 - 0.2 * size, "large": 0.7 - 0.4 * size, "useless": 2.0}[method] + rate, \
            {"small": 0.3 * size, "large": 0.3 + 0.7 * size, "useless": 2.0}[method]

    study = optuna.create_study(directions=["minimize", "minimize"], sampler=NomadSampler(seed=0))
    study.optimize(objective, n_trials=30)
    methods = [trial.params["method"] for trial in study.trials]
    assert 2 <= methods.count("useless") < 30 / 4
    feasible = [trial for trial in study.trials if trial.constraints["memory"] <= 0]
    assert min(trial.values[0] for trial in feasible) < 0.55
    assert min(trial.values[1] for trial in feasible if trial.values[0] < 1.1) < 0.05


def test_five_objectives_are_refused() -> None:
    study = optuna.create_study(directions=["minimize"] * 5, sampler=NomadSampler(seed=0))
    with pytest.raises(ValueError, match="one to 4 objectives, not 5"):
        study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), 1, 1, 1, 1), n_trials=1)


def test_a_slow_trial_leaves_no_worker_idle_and_the_points_can_be_had_again() -> None:
    """Trial 5 ends as the last of all; the others overtake it, each asked for as soon as one of four workers is free."""
    study = optuna.create_study(sampler=NomadSampler(seed=0, workers=4))
    running: dict[int, tuple[Trial, float]] = {}
    for _ in range(16):
        if len(running) == 4:
            number = min(number for number in running if number != 5)
            study.tell(*running.pop(number))
        trial = study.ask()
        running[trial.number] = trial, bowl(trial)
    assert distinct(study) == 16
    assert study.trials[5].state == TrialState.RUNNING
    study.tell(*running.pop(5))
    again = NomadSampler(seed=0, workers=4)
    planned = []
    for trial in study.trials[6:]:
        asked = create_trial(state=TrialState.RUNNING, system_attrs=trial.system_attrs)
        asked.number = trial.number
        planned.append(again.sample_relative(study, asked, again.infer_relative_search_space(study, asked)))
    assert planned == [trial.params for trial in study.trials[6:]]


def test_a_latin_hypercube_has_a_point_in_every_stratum() -> None:
    study = studied(bowl, 7, latin_hypercube=6)
    for name, low, high in (("x", -5, 5), ("y", -6, 0)):
        values = [trial.params[name] if name == "x" else math.log10(trial.params[name]) for trial in study.trials[1:]]
        assert sorted(int(6 * (value - low) / (high - low)) for value in values) == list(range(6))


def test_options_are_pickled_with_the_sampler() -> None:
    sampler = pickle.loads(pickle.dumps(NomadSampler(seed=0, latin_hypercube=4)))
    study = optuna.create_study(sampler=sampler)
    study.optimize(bowl, n_trials=6)
    assert [trial.params for trial in study.trials] == [trial.params for trial in studied(bowl, 6, latin_hypercube=4).trials]
    assert [trial.params for trial in study.trials] != [trial.params for trial in studied(bowl, 6).trials]


def test_too_few_points_of_a_hypercube_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 points"):
        NomadSampler(latin_hypercube=1)


def test_no_workers_are_refused() -> None:
    with pytest.raises(ValueError, match="workers"):
        NomadSampler(workers=0)
