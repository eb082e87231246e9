"""Workers on the nodes of an existing Ray cluster (P. Moritz et al., OSDI 2018).

An actor holds the resources of a trial and one worker process, the same as on this machine: a trial that breaks it
leaves the actor able to say how. All nodes share the run folder, under one path. Ray is imported only when it is used.
"""

import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from finemesh.errors import InputError, first_line
from finemesh.search.executors.base import Event, Worker
from finemesh.search.executors.pool import Inbox, Pool
from finemesh.search.executors.process import WorkerProcess

ROOM_AFTER = 60.0  # seconds without a worker after which the nodes are looked at
LISTENS = 10.0  # seconds that an actor waits for its process to say something before it says that it has not
MEMORY_MB = 1e6  # bytes
T = TypeVar("T")


class RayExecutor(Pool):
    """`address`: of the cluster's head, as host:port; left out: RAY_ADDRESS, else a cluster that runs on this machine.

    Each worker takes `cpus`, `gpus` (which its process sees as CUDA_VISIBLE_DEVICES) and `memory_mb` of a node.
    """

    def __init__(self, command: Sequence[str], workers: int, *, logs: Path, environment: Mapping[str, str] | None = None,
                 patience: float = 900.0, address: str | None = None, cpus: float = 1.0, gpus: float = 0.0,
                 memory_mb: float | None = None) -> None:
        super().__init__(workers, patience)
        self._ray, self._ours = connected(address or os.environ.get("RAY_ADDRESS") or "auto")
        self._wanted = {"CPU": cpus, "GPU": gpus, "memory": (memory_mb or 0) * MEMORY_MB}
        self._worked, self._said = time.monotonic(), False  # when a worker was last there or begun; that there is no room
        try:
            _check_room(self._ray.nodes(), self._wanted)
        except InputError:
            self.close()
            raise
        self._command, self._environment, self._logs = list(command), dict(environment or {}), logs.absolute()
        self._actor = self._ray.remote(Host).options(
            num_cpus=cpus, num_gpus=gpus, memory=memory_mb and int(memory_mb * MEMORY_MB), max_concurrency=2,
            max_restarts=0)

    def _unplaced(self) -> list[Event]:
        """No node is large enough any more: Ray says nothing of that."""
        if not self._waiting or any(worker and worker.ready for worker in self._slots):
            self._worked, self._said = time.monotonic(), False
        elif not self._said and time.monotonic() - self._worked > ROOM_AFTER:
            try:
                _check_room(self._ray.nodes(), self._wanted)
            except InputError as lack:
                self._said = True
                return [Event(self._waiting[0].id, "waiting", f"{lack} Trials wait for such a node.")]
        return []

    def _start(self, index: int) -> Worker:
        self._worked = time.monotonic()
        actor = self._actor.remote(self._command, self._environment, str(self._logs / f"worker-{index}.log"))
        return RayWorker(self._ray, actor, self._inbox)

    def close(self) -> None:
        super().close()
        if self._ours:
            self._ray.shutdown()


def on_a_node(function: Callable[[], T], address: str | None, cpus: float, gpus: float, memory_mb: float | None) -> T:
    """What the function says on a node that has room for a trial; it waits for one that is busy."""
    ray, ours = connected(address or os.environ.get("RAY_ADDRESS") or "auto")
    try:
        _check_room(ray.nodes(), {"CPU": cpus, "GPU": gpus, "memory": (memory_mb or 0) * MEMORY_MB})
        there = ray.remote(function).options(num_cpus=cpus, num_gpus=gpus, memory=memory_mb and int(memory_mb * MEMORY_MB))
        said: T = ray.get(there.remote())
        return said
    finally:
        if ours:
            ray.shutdown()


def connected(address: str) -> tuple[Any, bool]:
    """The module ray, and whether it was connected here, not before. InputError where no cluster is at the address."""
    mend = "Start one (ray start --head), mend ray.address or RAY_ADDRESS, or leave `executor: ray` out."
    host, _, port = address.rpartition(":")
    if address != "auto" and "://" not in address:
        try:
            socket.create_connection((host, int(port)), timeout=10).close()  # Ray itself would try for a minute
        except (OSError, ValueError, OverflowError) as error:
            raise InputError(f"ray.address: no cluster answers at {address} ({error}). {mend}") from None
    try:
        import ray
    except ImportError:
        raise InputError("executor: ray needs the package ray, in the version of the cluster: "
                         "pip install 'finemesh[ray]'") from None
    if ray.is_initialized():
        return ray, False
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError, AssertionError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"ray.address: no cluster can be joined at {address}: {said.rstrip('.')}. {mend}") from None
    return ray, True


def _check_room(nodes: Sequence[Mapping[str, Any]], wanted: Mapping[str, float]) -> None:
    """InputError where no node is large enough: Ray would wait for one for ever."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    if any(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in alive):
        return
    names = {"CPU": ("cpus", 1.0), "GPU": ("gpus", 1.0), "memory": ("memory_mb", MEMORY_MB)}
    asked = ", ".join(f"ray.{names[name][0]} {amount / names[name][1]:g}" for name, amount in wanted.items() if amount)
    has = "; ".join(", ".join(f"{names[name][0]} {node.get(name, 0) / names[name][1]:.0f}" for name in wanted)
                    for node in alive[:5])
    raise InputError(f"{asked}: no node of the cluster has this much for a trial. Nodes have: {has or 'none is alive'}. "
                     "Ask for less, or start a larger node.")


class Host:
    """The actor: a worker process, and what it says."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: str) -> None:
        self._inbox: Inbox = queue.Queue()
        self._worker: WorkerProcess | None = None
        run = Path(log).parent.parent
        if run.is_dir():  # on this node, too
            self._worker = WorkerProcess([sys.executable, *command[1:]], environment, Path(log), self._inbox)
        else:
            refusal = (f"out: {run} is not there on the node {socket.gethostname()}: with executor: ray, choose a folder "
                       "that all nodes of the cluster share, under the same path")
            self._refusal: list[dict[str, Any]] = [{"refused": refusal}]

    def send(self, document: dict[str, Any]) -> None:
        assert self._worker is not None
        self._worker.send(document)

    def listen(self) -> dict[str, Any]:
        """What the process said since, its silence in seconds; at its end also how it ended."""
        if self._worker is None:
            return {"said": self._refusal, "silence": 0.0, "obituary": "it refused", "out_of_memory": False}
        said: list[dict[str, Any] | None] = []
        with suppress(queue.Empty):
            said.append(self._inbox.get(timeout=LISTENS)[1])
            while True:
                said.append(self._inbox.get_nowait()[1])
        if said:
            self._worker.touch()
        heard: dict[str, Any] = {"said": [message for message in said if message is not None],
                                 "silence": self._worker.silence()}
        if None in said:
            heard |= {"obituary": self._worker.obituary(), "out_of_memory": self._worker.out_of_memory()}
        return heard


class RayWorker:
    """This end of an actor. An actor that vanished without a word went with its node."""

    def __init__(self, ray: Any, actor: Any, inbox: Inbox) -> None:
        self._ray, self._actor, self._inbox = ray, actor, inbox
        self.ready = self.lost = False
        self._out_of_memory, self._obituary, self._killed = False, "", ""
        self._silence = 0.0  # as long as it is not placed: the cluster is busy, or grows
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def send(self, document: dict[str, Any]) -> None:
        self.touch()
        self._actor.send.remote(document)

    def touch(self) -> None:
        self._silence = 0.0

    def silence(self) -> float:
        return self._silence

    def kill(self, reason: str) -> None:
        self._killed = self._killed or reason
        with suppress(Exception):  # the cluster itself may be gone
            self._ray.kill(self._actor)

    def end(self, patience: float) -> None:
        self.kill("the command ended")
        self._listener.join(patience)

    def out_of_memory(self) -> bool:
        return self._out_of_memory

    def obituary(self) -> str:
        return self._obituary

    def _listen(self) -> None:
        failures = self._ray.exceptions
        while not self._obituary:
            try:
                heard = self._ray.get(self._actor.listen.remote())
            except failures.ActorUnavailableError:  # for a moment; else the next answer is that it died
                if self._killed:
                    break
                time.sleep(1)
            except failures.OutOfMemoryError as error:
                self._out_of_memory = True
                self._obituary = f"the worker died (the node ran out of memory): {first_line(error)}"
            except Exception as error:
                self.lost = not self._killed and not getattr(error, "actor_init_failed", False)
                why = self._killed or ("its node or its actor was lost" if self.lost else "its actor cannot be started")
                self._obituary = f"the worker died ({why}): {first_line(error)}"
            else:
                self._silence = heard["silence"]
                for message in heard["said"]:
                    self._inbox.put((self, message))
                self._obituary, self._out_of_memory = heard.get("obituary", ""), heard.get("out_of_memory", False)
        self._inbox.put((self, None))
