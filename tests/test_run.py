import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from finemesh.errors import InputError
from finemesh.run import RunFolder
from finemesh.trial import Outcome, write_outcome

CONFIG = {"model": "tiny", "search": {"trials": 10, "steps": 20, "constraints": {"seconds": 1e-5}}, "workers": 1,
          "methods": {"lora": {"rank": [4, 64]}}, "out": "runs/a"}


def changed(**search: object) -> dict:
    return CONFIG | {"search": CONFIG["search"] | search}  # type: ignore[operator]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    with run.locked():
        run.begin(CONFIG)
    return run


def test_the_budget_may_change_and_the_folder_move(run: RunFolder, tmp_path: Path) -> None:
    run.path.rename(tmp_path / "moved")
    moved = RunFolder(tmp_path / "moved")
    moved.begin(changed(trials=50, hours=2.5) | {"out": "moved"})
    moved.begin(changed(trials=50, hours=3) | {"out": "moved"})
    assert "trials: 50" in moved.config.read_text()


@pytest.mark.parametrize(("config", "message"), [
    (changed(steps=40), r"search.steps: 20 there, 40 now"),
    (CONFIG | {"workers": 4}, r"workers: 1 there, 4 now"),
    (CONFIG | {"methods": {"lora": {"rank": [4, 32]}}}, r"methods.lora.rank: \[4, 64\] there, \[4, 32\] now"),
    (CONFIG | {"methods": {"lora": {}}}, r"methods.lora: not set there, {} now"),
    (changed(constraints={}), r"search.constraints.seconds: 1e-05 there, not set now"),
])
def test_another_config_is_refused_with_what_differs(run: RunFolder, config: dict, message: str) -> None:
    before = run.config.read_text()
    with pytest.raises(InputError, match=f"holds a run of another config:\n(.*\n)*  {message}"):
        run.begin(config)
    assert run.config.read_text() == before


def test_a_field_that_there_was_not_when_the_run_began_may_be_at_its_default(run: RunFolder) -> None:
    run.begin(changed(fidelity="full"), {"search": {"fidelity": "full"}})
    with pytest.raises(InputError, match=r"search.fidelity: full there, curve now"):
        run.begin(changed(fidelity="curve"), {"search": {"fidelity": "full"}})


def test_constraints_of_a_run_are_the_same_beside_their_default(run: RunFolder) -> None:
    defaults = {"search": {"constraints": {}}}
    run.begin(CONFIG, defaults)
    with pytest.raises(InputError, match=r"search.constraints.seconds: 1e-05 there, 2e-05 now"):
        run.begin(changed(constraints={"seconds": 2e-5}), defaults)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(InputError, match=r"is not the folder of a run \(it holds thesis.tex, but no config.yaml\)"):
        RunFolder(tmp_path).begin(CONFIG)
    assert not (tmp_path / "config.yaml").exists()


def test_two_processes_cannot_work_on_one_folder(run: RunFolder) -> None:
    code = "import sys; from finemesh.run import RunFolder\nwith RunFolder(sys.argv[1]).locked(): pass"
    with run.locked():
        assert RunFolder(run.path).working()
        other = subprocess.run([sys.executable, "-c", code, str(run.path)], capture_output=True, text=True, check=False)
    assert other.returncode != 0
    assert f"process {os.getpid()} on {socket.gethostname()} is already working on this run" in other.stderr
    assert not run.working()
    with run.locked():
        pass


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_that_may_only_be_read_says_whether_its_process_lives(run: RunFolder, monkeypatch: pytest.MonkeyPatch,
                                                                      number: int) -> None:
    def denied(lock: object, timeout: float) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("filelock.FileLock.acquire", denied)
    owner = run.path / ".lock.pid"
    here = socket.gethostname()
    for process, alive in ((f"{os.getpid()} on {here}", True), (f"{2**22 + 1} on {here}", False), ("1 on elsewhere", True)):
        owner.write_text(process)
        assert run.working() is alive


def test_a_lock_of_a_killed_process_is_none(run: RunFolder) -> None:
    code = ("import os, sys; from finemesh.run import RunFolder\n"
            "with RunFolder(sys.argv[1]).locked(): os.kill(os.getpid(), 9)")
    subprocess.run([sys.executable, "-c", code, str(run.path)], check=False)
    assert not run.working()
    with run.locked():
        pass


def test_what_was_written_is_read(run: RunFolder) -> None:
    for number in (11, 2):
        write_outcome(run.trial(number), Outcome(number, "complete", "lora", {"rank": 8}, 0, validation_loss=1.5))
    write_outcome(run.repeat(2, 1), Outcome(2, "complete", "lora", {"rank": 8}, 1))
    write_outcome(run.reference("lora", 1), Outcome(-1, "failed", "lora", {"rank": 8}, 1))
    run.trial(3).mkdir()
    (run.trial(2) / "curve.jsonl").write_text('{"step": 0}\n{"step": 1}\n{"st')
    assert [outcome.number for outcome in run.outcomes()] == [2, 11]
    assert [outcome.seed for outcome in run.repeats()] == [1]
    assert [outcome.state for outcome in run.references()] == ["failed"]
    assert run.curve(2) == [{"step": 0}, {"step": 1}]
    assert run.curve(11) == []


def test_the_clock_adds_the_phases(run: RunFolder) -> None:
    assert run.clock() == {}
    run.write_clock("search", 2.5)
    run.write_clock("finish", 1.0)
    run.write_clock("search", 3.0)
    assert run.clock() == {"seconds": 4.0, "search": 3.0, "finish": 1.0}


def test_a_finish_is_there_until_more_is_tried(run: RunFolder) -> None:
    assert run.finish() is None
    run.write_finish({"winner": None})
    assert run.finish() == {"winner": None}
    run.unfinish()
    run.unfinish()
    assert run.finish() is None


def test_a_full_disk_is_the_users_to_mend(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write_finish({"winner": 1})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"the disk that holds .*/run is full"):
        run.write_finish({"winner": 2})
    assert json.loads((run.path / "finish.json").read_text()) == {"winner": 1}
    assert not list(run.path.glob(".finish*"))


def test_whole_models_are_not_kept_and_made_again_for_a_finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finemesh.run.HEAVY_MB", 0.001)
    run = RunFolder(tmp_path)
    for name, size in (("0001-1", 2000), ("0002-1", 500)):
        adapter = tmp_path / "repeats" / name / "adapter"
        adapter.mkdir(parents=True)
        (adapter / "model.safetensors").write_bytes(b"x" * size)
        write_outcome(adapter.parent, Outcome(1, "complete", "full", {}, 1))
        (adapter.parent / "evaluated.json").write_text("{}")
        run.lighten(adapter.parent)
    assert not (tmp_path / "repeats/0001-1/adapter").exists()
    assert (tmp_path / "repeats/0002-1/adapter").exists()
    run.forget_lightened()
    assert [outcome.parent.name for outcome in tmp_path.glob("repeats/*/outcome.json")] == ["0002-1"]
    assert (tmp_path / "repeats/0001-1/evaluated.json").exists()
