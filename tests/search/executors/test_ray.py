"""Both ends of a Ray actor, without Ray; tests/real/test_ray.py has a cluster."""

import queue
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finemesh.errors import InputError
from finemesh.search.executors import EXECUTORS, pool, process
from finemesh.search.executors import ray as module
from finemesh.search.executors.ray import Host, RayWorker
from finemesh.trial import Job

WORKER = Path(__file__).parents[1] / "fake_worker.py"


def host(folder: Path, script: str) -> Host:
    (folder / "script.json").write_text(script)
    command = ["python of elsewhere", str(WORKER), str(folder / "script.json")]
    return Host(command, {"PYTHONPATH": str(Path(__file__).parents[3])}, str(folder / "logs/worker-0.log"))


def heard(host: Host, until: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    while not until(answer := host.listen()):
        pass
    return answer


def job(folder: Path) -> dict[str, Any]:
    return Job(0, "lora", {"learning_rate": 1e-3, "rank": 8}, 0, 2, folder / "0000").to_json()


def test_the_actor_tells_what_its_process_says_and_how_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kills = iter(range(1000))
    monkeypatch.setattr(process, "out_of_memory_kills", lambda: next(kills))
    actor = host(tmp_path, '{"die": {"0": 9}}')
    assert "ready" in heard(actor, lambda answer: bool(answer["said"]))["said"][0]
    actor.send({"id": 1, "kind": "tune", "arguments": job(tmp_path)})
    end = heard(actor, lambda answer: "obituary" in answer)
    assert "killed by SIGKILL: the system ran out of memory" in end["obituary"]
    assert end["out_of_memory"]


def test_a_node_that_does_not_share_the_run_folder_refuses(tmp_path: Path) -> None:
    answer = Host(["python"], {}, str(tmp_path / "elsewhere/logs/worker-0.log")).listen()
    assert f"out: {tmp_path}/elsewhere is not there on the node" in answer["said"][0]["refused"]
    assert not (tmp_path / "elsewhere").exists()


class Unavailable(Exception):
    pass


class OutOfMemory(Exception):
    pass


class ActorDied(Exception):
    def __init__(self, actor_init_failed: bool) -> None:
        super().__init__("The actor died.\nDetails")
        self.actor_init_failed = actor_init_failed


@pytest.mark.parametrize(("end", "lost", "out_of_memory", "why"), [
    (ActorDied(False), True, False, "its node or its actor was lost"),
    (ActorDied(True), False, False, "its actor cannot be started"),
    (OutOfMemory("killed"), False, True, "the node ran out of memory"),
    ({"said": [], "silence": 0.0, "obituary": "the worker died (exit status 1)", "out_of_memory": False}, False, False,
     "exit status 1"),
])
def test_this_end_tells_a_lost_node_from_a_dead_process(end: Any, lost: bool, out_of_memory: bool, why: str) -> None:
    answers = iter([{"said": [{"ready": {}}], "silence": 0.0}, end])
    inbox: Any = queue.Queue()

    def get(reference: None) -> dict[str, Any]:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    ray = SimpleNamespace(get=get, exceptions=SimpleNamespace(ActorUnavailableError=Unavailable, OutOfMemoryError=OutOfMemory))
    worker = RayWorker(ray, SimpleNamespace(listen=SimpleNamespace(remote=lambda: None)), inbox)
    assert [inbox.get(timeout=5)[1] for _ in range(2)] == [{"ready": {}}, None]
    assert (worker.lost, worker.out_of_memory()) == (lost, out_of_memory)
    assert why in worker.obituary()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1", "127.0.0.1:port"])
def test_no_cluster_at_the_address(tmp_path: Path, address: str) -> None:
    with pytest.raises(InputError, match=rf"ray.address: no cluster answers at {address} .*Start one \(ray start --head\)"):
        EXECUTORS["ray"]([sys.executable], 1, logs=tmp_path / "logs", address=address)


def test_that_no_node_has_room_any_more_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The actor is never placed: Ray waits for a node in silence."""
    nodes = [{"Alive": True, "Resources": {"CPU": 4.0}}, {"Alive": True, "Resources": {"CPU": 1.0}}]
    killed = threading.Event()

    def get(reference: None) -> None:
        killed.wait(10)
        raise ActorDied(False)

    actor = SimpleNamespace(listen=SimpleNamespace(remote=lambda: None))
    ray: Any = SimpleNamespace(
        nodes=lambda: nodes, get=get, kill=lambda actor: killed.set(),
        exceptions=SimpleNamespace(ActorUnavailableError=Unavailable, OutOfMemoryError=OutOfMemory),
        remote=lambda host: SimpleNamespace(options=lambda **wanted: SimpleNamespace(remote=lambda *arguments: actor)))
    monkeypatch.setattr(module, "connected", lambda address: (ray, False))
    monkeypatch.setattr(module, "ROOM_AFTER", 0.02)
    with EXECUTORS["ray"]([sys.executable], 1, logs=tmp_path / "logs", cpus=4) as executor:
        executor.submit("tune", job(tmp_path))
        assert executor.wait(0.05) == executor.wait(0.01) == []  # the cluster is busy, or grows
        nodes[0]["Alive"] = False
        [event] = executor.wait(0.01)
        assert event.kind == "waiting"
        assert "ray.cpus 4: no node of the cluster has this much for a trial. Nodes have: cpus 1" in event.content
        assert executor.wait(0.05) == []
    monkeypatch.setattr(pool, "POLL", 0.01)
    nodes[0]["Alive"], killed = True, threading.Event()
    with EXECUTORS["ray"]([sys.executable], 1, logs=tmp_path / "logs", cpus=4) as executor:
        executor.submit("evaluate", {})
        nodes[0]["Alive"] = False
        assert [event.kind for event in executor.wait()] == ["waiting"]  # also for who waits without an end
