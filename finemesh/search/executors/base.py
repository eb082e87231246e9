"""What an executor is: it runs requests in worker processes and says what became of them.

A worker is such a process, on this machine or on another one: what an executor knows of it.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class Event:
    """What became of request `id`.

    progress and result carry what the worker sent, error its exception as text. `retried`: its worker died and it runs
    once more. `waiting`: no machine has room for its worker; the content says why, once. died and out_of_memory: it died
    again; the content says how, with the last lines of the log.
    """

    id: int
    kind: Literal["progress", "result", "error", "retried", "waiting", "died", "out_of_memory"]
    content: Any


class WorkerError(RuntimeError):
    """No worker can be started: the fault is neither a trial's nor, for all that is known, the user's."""


class Executor(Protocol):
    """A context manager; its end ends the workers, whatever they are doing. `workers`: requests at a time."""

    workers: int

    def submit(self, kind: str, arguments: dict[str, Any]) -> int:
        """The request's id. It waits its turn where all workers are busy."""

    def wait(self, timeout: float | None = None) -> list[Event]:
        """At least one event, unless the time (in seconds) is over or nothing is under way.

        Raises InputError where a worker refuses the task, WorkerError where none can be started.
        """

    def close(self) -> None: ...
    def __enter__(self) -> "Executor": ...
    def __exit__(self, *exception: object) -> None: ...


class Worker(Protocol):
    """It puts (itself, message) into the executor's inbox for each JSON document that it says, (itself, None) at its end.

    `lost`: it ended with its machine, which is not the fault of what it was doing.
    """

    ready: bool
    lost: bool

    def send(self, document: dict[str, Any]) -> None: ...
    def touch(self) -> None: ...
    def silence(self) -> float:
        """Seconds since it last said something or used the processor."""

    def kill(self, reason: str) -> None: ...
    def end(self, patience: float) -> None:
        """It should end; killed if it has not after `patience` seconds."""

    def out_of_memory(self) -> bool:
        """Whether that is what it died of. After the end only."""

    def obituary(self) -> str:
        """How it ended. After the end only."""
