import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from finemesh.errors import InputError
from finemesh.search.executors import Event, LocalExecutor, WorkerError, process
from finemesh.trial import Job, read_outcome


def job(folder: Path, number: int = 0, steps: int = 2) -> dict[str, Any]:
    point = {"learning_rate": 1e-3, "rank": 8}
    return Job(number, "lora", point, 0, steps, folder / f"{number:04d}").to_json()


def last_events(executor: LocalExecutor, count: int = 1) -> list[Event]:
    """All but the progress, until `count` requests have ended."""
    events: list[Event] = []
    while sum(event.kind != "retried" for event in events) < count:
        new = executor.wait(20)
        assert new, "nothing came for 20 seconds"
        events += [event for event in new if event.kind != "progress"]
    return events


def running(executor: LocalExecutor) -> list[int]:
    return [worker.pid for worker in executor._slots if worker]


def test_a_request_reports_progress_then_its_result(fake: SimpleNamespace, tmp_path: Path) -> None:
    with fake.executor(tmp_path) as executor:
        number = executor.submit("tune", job(tmp_path))
        events = []
        while not any(event.kind == "result" for event in events):
            events += executor.wait(20)
    assert [(event.id, event.kind) for event in events] == [(number, kind) for kind in
                                                           ("progress", "progress", "result")]
    assert read_outcome(tmp_path / "0000").to_json() == events[-1].content  # type: ignore[union-attr]


def test_workers_are_started_as_they_are_needed_and_ended_with_the_block(fake: SimpleNamespace, tmp_path: Path) -> None:
    with fake.executor(tmp_path, 3, seconds=0.02) as executor:
        assert running(executor) == []
        executor.submit("tune", job(tmp_path, 0))
        executor.submit("tune", job(tmp_path, 1))
        last_events(executor, 2)
        assert len(running(executor)) == 2
        pids = [psutil.Process(pid) for pid in running(executor)]
        assert executor.wait(10) == []  # nothing is under way
    assert not any(process.is_running() for process in pids)


def test_a_worker_that_is_busy_when_the_block_ends_is_ended(fake: SimpleNamespace, tmp_path: Path) -> None:
    with fake.executor(tmp_path, hang=[0]) as executor:
        executor.submit("tune", job(tmp_path))
        while not executor.ready:
            executor.wait(0.05)
        [worker] = [psutil.Process(pid) for pid in running(executor)]
    assert not worker.is_running()


def test_a_worker_that_dies_is_replaced_and_the_request_goes_on(fake: SimpleNamespace, tmp_path: Path) -> None:
    with fake.executor(tmp_path, die={"0": 1}) as executor:
        executor.submit("tune", job(tmp_path, steps=6))
        retried, result = last_events(executor)
    assert (retried.kind, result.kind) == ("retried", "result")
    assert retried.content == "the worker died (killed by SIGKILL):\nabout to die in trial 0"
    steps = (tmp_path / "0000" / "steps.log").read_text().split()
    assert steps == ["0", "1", "2", "3", "3", "4", "5"]  # from the checkpoint


def test_a_request_that_kills_two_workers_has_died_and_others_go_on(fake: SimpleNamespace, tmp_path: Path) -> None:
    with fake.executor(tmp_path, die={"0": 9}) as executor:
        executor.submit("tune", job(tmp_path, 0))
        executor.submit("tune", job(tmp_path, 1))
        kinds = {event.id: event.kind for event in last_events(executor, 2)}
    assert kinds == {1: "died", 2: "result"}


def test_a_kill_for_lack_of_memory_is_told_as_such(fake: SimpleNamespace, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    kills = iter(range(1000))
    monkeypatch.setattr(process, "out_of_memory_kills", lambda: next(kills))
    with fake.executor(tmp_path, die={"0": 9}) as executor:
        executor.submit("tune", job(tmp_path))
        event = last_events(executor)[-1]
    assert event.kind == "out_of_memory"
    assert "killed by SIGKILL: the system ran out of memory" in event.content


def test_the_kernels_counter_is_read() -> None:
    expected = [line.split()[1] for line in Path("/proc/vmstat").read_text().splitlines() if "oom_kill " in line]
    assert process.out_of_memory_kills() == int((expected or ["0"])[0])


def test_an_idle_worker_that_dies_is_replaced_when_it_is_needed(fake: SimpleNamespace, tmp_path: Path) -> None:
    with fake.executor(tmp_path) as executor:
        executor.submit("tune", job(tmp_path, 0))
        last_events(executor)
        [first] = running(executor)
        os.kill(first, signal.SIGKILL)
        time.sleep(0.1)
        executor.submit("tune", job(tmp_path, 1))
        assert [event.kind for event in last_events(executor)][-1] == "result"
        assert running(executor) != [first]


def test_an_error_of_a_worker_is_an_event(fake: SimpleNamespace, tmp_path: Path) -> None:
    with fake.executor(tmp_path, error=[0]) as executor:
        executor.submit("tune", job(tmp_path))
        assert last_events(executor) == [Event(1, "error", "RuntimeError: out of luck")]


def test_a_refusal_is_the_users_error(fake: SimpleNamespace, tmp_path: Path) -> None:
    with fake.executor(tmp_path, refuse="no such model") as executor:
        executor.submit("tune", job(tmp_path))
        with pytest.raises(InputError, match="no such model"):
            last_events(executor)


def test_workers_that_cannot_start_end_it(fake: SimpleNamespace, tmp_path: Path) -> None:
    with fake.executor(tmp_path, broken=True) as executor:
        executor.submit("tune", job(tmp_path))
        with pytest.raises(WorkerError, match=r"after 3 attempts: .*\(exit status 1\):\nTraceback: the model is not"):
            last_events(executor)


def test_a_worker_that_does_nothing_counts_as_dead(fake: SimpleNamespace, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finemesh.search.executors.pool.POLL", 0.05)
    with fake.executor(tmp_path, hang=[0]) as executor:
        executor._patience = 0.5
        executor.submit("tune", job(tmp_path))
        event = last_events(executor)[-1]
    assert event.kind == "died"
    assert "it wrote nothing and did nothing for 0.5 seconds" in event.content


def test_devices_are_shared_out(fake: SimpleNamespace, tmp_path: Path) -> None:
    with fake.executor(tmp_path) as made:
        executor = LocalExecutor(made._command, 1, logs=tmp_path, environment=made._environment, devices=["5"])
    with executor:
        executor.submit("tune", job(tmp_path))
        last_events(executor)
    assert executor.ready["device"] == "5"
