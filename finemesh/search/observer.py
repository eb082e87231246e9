"""Whoever watches a search: the live display, a log, nobody."""

from collections.abc import Mapping
from typing import Any, Protocol

from finemesh.trial import Job, Outcome


class Observer(Protocol):
    """`progress` brings a line of the curve of the run whose job has this number."""

    def started(self, job: Job) -> None: ...
    def progress(self, number: int, line: Mapping[str, Any]) -> None: ...
    def ended(self, outcome: Outcome) -> None: ...
    def message(self, text: str) -> None: ...
    def phase(self, name: str, total: int) -> None: ...


class Nobody:
    """Watches nothing."""

    def started(self, job: Job) -> None:
        pass

    def progress(self, number: int, line: Mapping[str, Any]) -> None:
        pass

    def ended(self, outcome: Outcome) -> None:
        pass

    def message(self, text: str) -> None:
        pass

    def phase(self, name: str, total: int) -> None:
        pass
