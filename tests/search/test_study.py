import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from finemesh.errors import InputError
from finemesh.hyperparameter import integer, real
from finemesh.run import RunFolder
from finemesh.search import study as loop
from finemesh.search.fidelities import FIDELITIES
from finemesh.search.samplers import OPTIMIZERS
from finemesh.search.space import Space
from finemesh.search.store import Store
from finemesh.search.study import trials_in_flight
from finemesh.trial import read_outcome

TINY = Space({"lora": {"rank": integer(1, 3, 1), "learning_rate": real(1e-3, 1e-3, 1e-3, log=True)}})


def stored(folder: Path) -> list[optuna.trial.FrozenTrial]:
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'study.db'}")
    trials = storage.get_all_trials(storage.get_study_id_from_name(folder.name))
    storage.remove_session()
    storage.engine.dispose()
    return trials


@pytest.mark.parametrize(("workers", "in_flight"), [(1, 1), (3, 3), (2, 4)])
def test_trial_n_sees_exactly_the_trials_up_to_n_minus_in_flight(fake: SimpleNamespace, tmp_path: Path, workers: int,
                                                                 in_flight: int) -> None:
    sampler = fake.Watching(0)
    fake.search(tmp_path, 6, workers=workers, in_flight=in_flight, sampler=sampler, script={"seconds": 0.01, "slow": [0, 3]})
    assert sampler.seen == {n: ["COMPLETE"] * max(0, n - in_flight + 1) + ["RUNNING"] * min(n, in_flight - 1)
                            for n in range(6)}


def test_a_slow_trial_leaves_no_worker_idle(fake: SimpleNamespace, tmp_path: Path) -> None:
    """Trial 0 ends only after trial 3, which its worker's neighbour gets to when it has run 1 and 2."""
    in_flight = trials_in_flight(2, reproducible=True)
    watcher = fake.Watcher()
    fake.search(tmp_path, 6, workers=2, in_flight=in_flight, observer=watcher, script={"until": {"0": 3}})
    assert [outcome.number for outcome in watcher.outcomes] == [0, 1, 2, 3, 4, 5]
    assert [trials_in_flight(4, reproducible=False), trials_in_flight(1, reproducible=True)] == [4, 1]


def test_outcomes_are_returned_written_and_stored(fake: SimpleNamespace, tmp_path: Path) -> None:
    watcher = fake.Watcher()
    outcomes = fake.search(tmp_path, 5, observer=watcher)
    assert [o.number for o in outcomes] == [0, 1, 2, 3, 4]
    assert RunFolder(tmp_path).outcomes() == outcomes == watcher.outcomes
    assert [(job.number, job.seed, job.steps) for job in watcher.jobs] == [(n, 0, 2) for n in range(5)]
    assert {number for number, _ in watcher.lines} == {0, 1, 2, 3, 4}
    for outcome, trial in zip(outcomes, stored(tmp_path), strict=True):
        assert trial.state == TrialState.COMPLETE
        assert trial.value == outcome.validation_loss
        assert trial.params == fake.SPACE.stored(outcome.method, outcome.hyperparameters)


def test_other_workers_give_other_points(fake: SimpleNamespace, tmp_path: Path) -> None:
    one, two = (fake.points(fake.search(tmp_path / str(workers), 5, workers=workers)) for workers in (1, 2))
    assert one != two


@pytest.mark.parametrize("workers", [1, 3])
def test_a_finished_run_goes_on_as_the_longer_one(fake: SimpleNamespace, tmp_path: Path, workers: int) -> None:
    script = {"heavy": [3], "infeasible": [5], "pruned": [6]}
    whole = fake.search(tmp_path / "whole", 9, workers=workers, script=script)
    fake.search(tmp_path / "parts", 4, workers=workers, script=script)
    fake.search(tmp_path / "parts", 7, workers=workers, script=script)
    watcher = fake.Watcher()
    assert fake.search(tmp_path / "parts", 9, workers=workers, observer=watcher, script=script) == whole
    assert [job.number for job in watcher.jobs] == [7, 8]


def test_tpe_goes_on_as_the_longer_run(fake: SimpleNamespace, tmp_path: Path) -> None:
    def points(folder: str, trials: int) -> Any:
        sampler = OPTIMIZERS["tpe"](0, 2)
        return fake.points(fake.search(tmp_path / folder, trials, workers=2, steps=1, sampler=sampler))

    whole = points("whole", 14)
    points("parts", 12)
    assert points("parts", 14) == whole


def test_a_finished_run_started_again_does_nothing(fake: SimpleNamespace, tmp_path: Path) -> None:
    outcomes, watcher = fake.search(tmp_path, 3), fake.Watcher()
    assert fake.search(tmp_path, 3, observer=watcher) == outcomes
    assert watcher.jobs == []


def test_states_are_told_as_samplers_understand_them(fake: SimpleNamespace, tmp_path: Path) -> None:
    outcomes = fake.search(tmp_path, 6, script={"fail": [1], "infeasible": [2], "heavy": [3], "pruned": [4], "error": [5]})
    assert [o.state for o in outcomes] == ["complete", "failed", "infeasible", "infeasible", "pruned", "failed"]
    trials = stored(tmp_path)
    assert [t.state.name for t in trials] == ["COMPLETE", "FAIL", "PRUNED", "COMPLETE", "PRUNED", "FAIL"]
    assert [t.constraints for t in trials] == [{}, {}, {"trainable_parameters": 5.0}, {"adapter_mb": 2.0}, {}, {}]
    assert trials[3].value == outcomes[3].validation_loss
    assert trials[4].intermediate_values == {2: outcomes[4].validation_loss}
    assert read_outcome(tmp_path / "trials" / "0005").error == "RuntimeError: out of luck"  # type: ignore[union-attr]


def test_a_trial_that_kills_its_workers_fails_alone(fake: SimpleNamespace, tmp_path: Path) -> None:
    watcher = fake.Watcher()
    outcomes = fake.search(tmp_path, 4, workers=2, script={"die": {"1": 9, "2": 1}}, observer=watcher)
    assert [o.state for o in outcomes] == ["complete", "failed", "complete", "complete"]
    assert "the worker died (killed by SIGKILL)" in str(outcomes[1].error)
    assert read_outcome(tmp_path / "trials" / "0001") == outcomes[1]
    assert any(message.startswith("0002: the worker died") for message in watcher.messages)


def test_a_promoted_trial_whose_worker_died_stays_the_continuation_that_it_was(fake: SimpleNamespace, tmp_path: Path) -> None:
    options: Any = {"steps": 9, "fidelity": FIDELITIES["halving"](9, None, 3), "script": {"whole": 9, "die": {"9": 2}}}
    outcomes = fake.search(tmp_path, 9, **options)
    assert (outcomes[9].state, outcomes[9].continues is None) == ("failed", False)
    assert fake.search(tmp_path, 9, **options) == outcomes


def test_first_points_come_first_and_are_moved_inside(fake: SimpleNamespace, tmp_path: Path) -> None:
    space = fake.SPACE.narrowed({"lora": {"rank": [16, 64]}, "full": {}})
    first = [("lora", fake.REFERENCES["lora"]), ("full", fake.REFERENCES["full"])]
    outcomes = fake.search(tmp_path, 4, workers=2, space=space, first=first)
    assert fake.points(outcomes)[0][:2] == ("lora", {**fake.REFERENCES["lora"], "rank": 16})
    assert fake.points(outcomes)[1][:2] == ("full", fake.REFERENCES["full"])
    assert stored(tmp_path)[1].params == {"method": "full", "full.learning_rate": 2e-5}


@pytest.mark.parametrize("workers", [1, 3])
def test_equal_points_cost_one_trial_and_an_exhausted_space_ends(fake: SimpleNamespace, tmp_path: Path, workers: int,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "EXHAUSTED", 8)
    watcher = fake.Watcher()
    outcomes = fake.search(tmp_path, 30, workers=workers, space=TINY, observer=watcher)
    originals = [o for o in outcomes if o.duplicate_of is None]
    assert sorted(o.hyperparameters["rank"] for o in originals) == [1, 2, 3]
    assert {job.number for job in watcher.jobs} == {o.number for o in originals}
    for outcome in outcomes[-8:]:
        assert outcome.validation_loss == outcomes[outcome.duplicate_of].validation_loss
        assert read_outcome(tmp_path / "trials" / f"{outcome.number:04d}") == outcome
    assert watcher.messages == ["The space is exhausted: 8 points in a row were known already. "
                                "The search ends after 3 trials."]
    assert fake.search(tmp_path, 40, workers=workers, space=TINY) == outcomes


def test_copies_do_not_count_toward_the_budget(fake: SimpleNamespace, tmp_path: Path) -> None:
    outcomes = fake.search(tmp_path, 3, space=TINY)
    assert sum(o.duplicate_of is None for o in outcomes) == 3
    assert len(outcomes) > 3


def test_hours_end_a_search_and_add_up_over_runs(fake: SimpleNamespace, tmp_path: Path) -> None:
    outcomes = fake.search(tmp_path, 100, hours=0.5 / 3600, workers=2, script={"seconds": 0.05})
    assert 0 < len(outcomes) < 100
    assert {trial.state for trial in stored(tmp_path)} == {TrialState.COMPLETE}
    watcher = fake.Watcher()
    assert fake.search(tmp_path, 100, hours=0.5 / 3600, workers=2, observer=watcher) == outcomes
    assert watcher.jobs == []
    RunFolder(tmp_path).write_clock("finish", 7200.0)  # is not the search's
    assert len(fake.search(tmp_path, len(outcomes) + 1, hours=1, workers=2)) == len(outcomes) + 1


def test_without_the_rule_results_are_told_as_they_come(fake: SimpleNamespace, tmp_path: Path) -> None:
    sampler = fake.Watching(0)
    outcomes = fake.search(tmp_path, 6, workers=2, sampler=sampler, reproducible=False, script={"until": {"0": 3}})
    assert [o.number for o in outcomes] == list(range(6))
    assert sampler.seen[3][0] == "RUNNING"
    assert sampler.seen[3][1] == "COMPLETE"


def test_ctrl_c_leaves_a_run_that_goes_on(fake: SimpleNamespace, tmp_path: Path) -> None:
    whole = fake.search(tmp_path / "whole", 6, workers=2)

    class Impatient(fake.Watcher):
        def progress(self, number: int, line: Any) -> None:
            if number == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fake.search(tmp_path / "run", 6, workers=2, observer=Impatient())
    assert TrialState.RUNNING in {trial.state for trial in stored(tmp_path / "run")}
    assert fake.search(tmp_path / "run", 6, workers=2) == whole
    assert {trial.state for trial in stored(tmp_path / "run")} == {TrialState.COMPLETE}


def test_a_point_whose_asking_was_interrupted_is_asked_for_again(fake: SimpleNamespace, tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fake.search(tmp_path / "whole", 6, workers=2)
    fake.search(tmp_path / "run", 3, workers=2)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_params", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fake.search(tmp_path / "run", 6, workers=2)
    assert stored(tmp_path / "run")[-1].params == {}
    assert fake.search(tmp_path / "run", 6, workers=2) == whole


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_result_of_another_point_is_not_adopted(fake: SimpleNamespace, tmp_path: Path) -> None:
    fake.search(tmp_path, 2)
    (tmp_path / "study.db").unlink()
    with pytest.raises(InputError, match="holds the result of another point"):
        fake.search(tmp_path, 2, sampler=fake.Watching(1))
    assert len(fake.search(tmp_path / "new", 2)) == 2


def test_a_lost_store_is_made_again_from_the_outcomes(fake: SimpleNamespace, tmp_path: Path) -> None:
    outcomes, watcher = fake.search(tmp_path, 4), fake.Watcher()
    (tmp_path / "study.db").unlink()
    assert fake.search(tmp_path, 4, observer=watcher) == outcomes
    assert watcher.jobs == []


def test_a_renamed_folder_keeps_its_study(fake: SimpleNamespace, tmp_path: Path) -> None:
    outcomes, watcher = fake.search(tmp_path / "a", 4), fake.Watcher()
    (tmp_path / "a").rename(tmp_path / "b")
    assert fake.search(tmp_path / "b", 5, observer=watcher)[:4] == outcomes
    assert [job.number for job in watcher.jobs] == [4]


def test_a_damaged_store_is_named(fake: SimpleNamespace, tmp_path: Path) -> None:
    outcomes = fake.search(tmp_path, 3)
    whole = (tmp_path / "study.db").read_bytes()
    for content in (whole[:len(whole) // 2], b"not a database, " * 100):
        (tmp_path / "study.db").write_bytes(content)
        with pytest.raises(InputError, match=r"study.db: it is damaged \(.+\): remove it, and the same command makes it again"):
            fake.search(tmp_path, 3)
    (tmp_path / "study.db").unlink()
    assert fake.search(tmp_path, 3) == outcomes


def test_a_lost_outcome_is_said(fake: SimpleNamespace, tmp_path: Path) -> None:
    fake.search(tmp_path, 2)
    (tmp_path / "trials" / "0001" / "outcome.json").unlink()
    with pytest.raises(InputError, match=r"0001 has no outcome.json, but the store knows"):
        fake.search(tmp_path, 2)


@pytest.mark.parametrize("content", ['{"number": 1, "stat', '{"number": 1}', "[]"])
def test_a_damaged_outcome_is_named(fake: SimpleNamespace, tmp_path: Path, content: str) -> None:
    fake.search(tmp_path, 2)
    (tmp_path / "trials" / "0001" / "outcome.json").write_text(content)
    with pytest.raises(InputError, match=r"0001/outcome.json: it is damaged \(.+\): put a copy of it back"):
        fake.search(tmp_path, 2)


def test_the_search_knows_nothing_of_models() -> None:
    code = ("import sys, finemesh.search.study, finemesh.search.finish, finemesh.search.executors\n"
            "assert not [n for n in sys.modules if n.split('.')[0] in ('torch', 'transformers', 'peft')]\n"
            "assert not [n for n in sys.modules if n.startswith('finemesh.tuning')]")
    subprocess.run([sys.executable, "-c", code], check=True)
