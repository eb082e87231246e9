"""What an executor is: it runs requests in worker processes and says what became of them."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class Event:
    """What became of request `id`.

    progress and result carry what the worker sent, error its exception as text. `retried`: its worker died and it runs
    once more. died and out_of_memory: it died again; the content says how, with the last lines of the log.
    """

    id: int
    kind: Literal["progress", "result", "error", "retried", "died", "out_of_memory"]
    content: Any


class WorkerError(RuntimeError):
    """No worker can be started: the fault is neither a trial's nor, for all that is known, the user's."""


class Executor(Protocol):
    """A context manager; its end ends the workers, whatever they are doing."""

    def submit(self, kind: str, arguments: dict[str, Any]) -> int:
        """The request's id. It waits its turn where all workers are busy."""

    def wait(self, timeout: float | None = None) -> list[Event]:
        """At least one event, unless the time (in seconds) is over or nothing is under way.

        Raises InputError where a worker refuses the task, WorkerError where none can be started.
        """

    def close(self) -> None: ...
    def __enter__(self) -> "Executor": ...
    def __exit__(self, *exception: object) -> None: ...
