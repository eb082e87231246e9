import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from finemesh.search.samplers import nomad_process
from finemesh.search.samplers.nomad_process import NomadProcess, shared

REQUEST = {
    "seed": 7,
    "parameters": ["DIMENSION 2", "LOWER_BOUND * 0", "UPPER_BOUND * 1", "BB_INPUT_TYPE ( R R )", "BB_OUTPUT_TYPE OBJ PB",
                   "DIRECTION_TYPE ORTHO 2N", "INITIAL_FRAME_SIZE ( 0.2 0.2 )"],
    "cache": [[[0.5, 0.5], [1.0, -1.0]], [[0.9, 0.1], [0.3, 0.5]]],
}


@pytest.fixture
def process() -> Iterator[NomadProcess]:
    process = NomadProcess()
    yield process
    process.close()


def test_a_request_is_answered_alike_by_any_child(process: NomadProcess) -> None:
    first = process.ask(REQUEST)["points"]
    assert len(first) >= 4
    assert all(0 <= z <= 1 for point in first for z in point)
    assert process.ask(REQUEST)["points"] == first
    process.close()
    assert process.ask(REQUEST)["points"] == first


def test_the_frame_grows_with_success_and_shrinks_with_failure(process: NomadProcess) -> None:
    def frame(loss: float) -> float:
        lines = process.ask(REQUEST | {"points": [[[0.3, 0.5], [loss, -1.0]]]})["parameters"]
        return float(next(line for line in lines if line.startswith("INITIAL_FRAME_SIZE")).split()[2])

    assert frame(0.1) > 0.2 > frame(5.0)


def test_a_killed_child_is_replaced(process: NomadProcess) -> None:
    first = process.ask(REQUEST)["points"]
    former = process.pid
    assert former is not None
    os.kill(former, signal.SIGKILL)
    assert process.ask(REQUEST)["points"] == first
    assert process.pid != former


def test_the_samplers_of_a_process_share_a_child_that_ends_with_the_last_of_them() -> None:
    one, other = shared(), shared()
    one.ask(REQUEST)
    pid = other.pid
    assert pid is not None
    del one
    assert other.ask(REQUEST)["points"]
    del other
    _wait_for_the_end(pid)
    assert shared().pid is None


def test_a_fork_has_a_child_of_its_own(process: NomadProcess) -> None:
    """Two processes that read from one pipe would get each other's answers."""
    first, former = process.ask(REQUEST)["points"], process.pid
    fork = os.fork()
    if fork == 0:
        same = process.ask(REQUEST)["points"] == first
        own = process.pid
        process.close()
        os._exit(0 if same and own != former else 1)
    assert os.waitpid(fork, 0)[1] == 0
    assert process.ask(REQUEST)["points"] == first
    assert process.pid == former


def test_a_run_for_several_objectives_is_repeated_up_to_its_next_block(process: NomadProcess) -> None:
    parameters = [line.replace("OBJ PB", "OBJ OBJ PB") for line in REQUEST["parameters"]]
    request = {"seed": 7, "parameters": [*parameters, "DMULTIMADS_OPTIMIZATION yes"],
               "starts": [[[0.5, 0.5], [1.0, 2.0, -1.0]], [[0.9, 0.1], [0.3, 3.0, 0.5]]], "blocks": []}
    blocks = []
    for _ in range(3):
        blocks.append(process.ask(request)["points"])
        request["blocks"] += [[[x + y, 2 - x, -1.0] if x < 0.8 else None for x, y in blocks[-1]]]
    assert all(blocks)
    assert len({tuple(point) for block in blocks for point in block}) == sum(map(len, blocks))
    process.close()
    for count, block in enumerate(blocks):
        assert process.ask(request | {"blocks": request["blocks"][:count]})["points"] == block


def test_what_crashes_nomad_costs_one_answer(process: NomadProcess) -> None:
    assert "error" in process.ask(REQUEST | {"parameters": ["BB_OUTPUT_TYPE OBJ", "DIMENSION none"]})
    survivor = process.pid
    assert process.ask(REQUEST)["points"]
    assert process.pid == survivor


def test_the_child_lives_in_a_session_of_its_own(process: NomadProcess) -> None:
    process.ask(REQUEST)
    assert process.pid is not None
    assert os.getsid(process.pid) != os.getsid(0)


def test_the_child_ends_with_its_parent() -> None:
    script = "from finemesh.search.samplers.nomad_process import *; import os, signal, sys\n" \
             "process = NomadProcess(); process._running(); print(process.pid, flush=True)\n" \
             "os.kill(os.getpid(), signal.SIGKILL)"
    root = Path(__file__).parents[3]
    with subprocess.Popen([sys.executable, "-c", script], cwd=root, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert parent.stdout.read() == ""  # closed by both: the child holds no copy
    parent_status = parent.wait()
    assert parent_status == -signal.SIGKILL
    _wait_for_the_end(pid)


def _wait_for_the_end(pid: int) -> None:
    import time

    for _ in range(200):
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.02)
    pytest.fail(f"process {pid} outlived its parent")


def test_the_child_imports_neither_torch_nor_optuna() -> None:
    script = "import sys, finemesh.search.samplers.nomad_child; print({'torch', 'optuna', 'numpy'} & set(sys.modules))"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_what_lies_in_the_current_directory_is_not_imported(process: NomadProcess, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    assert process.ask(REQUEST)["points"]


def test_without_pynomad_the_error_says_what_to_install(process: NomadProcess, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "PyNomad.py").write_text("raise ImportError('no NOMAD here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ImportError, match=r"no NOMAD here.*pip install PyNomadBBO"):
        process.ask(REQUEST)


def test_a_child_that_never_lives_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nomad_process.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="5 times"):
        NomadProcess().ask(REQUEST)
