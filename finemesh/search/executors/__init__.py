"""Where trials run, by name. A new executor is a file beside this one and a line in the table."""

from collections.abc import Callable
from typing import Any

from finemesh.search.executors.base import Event, Executor, WorkerError
from finemesh.search.executors.local import LocalExecutor

__all__ = ["EXECUTORS", "Event", "Executor", "LocalExecutor", "WorkerError"]


def _ray(*arguments: Any, **options: Any) -> Executor:
    from finemesh.search.executors.ray import RayExecutor

    return RayExecutor(*arguments, **options)


EXECUTORS: dict[str, Callable[..., Executor]] = {"local": LocalExecutor, "ray": _ray}
