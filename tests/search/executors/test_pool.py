"""What becomes of requests whose workers die, or vanish with their machines."""

from typing import Any

import pytest

from finemesh.search.executors import WorkerError
from finemesh.search.executors.base import Worker
from finemesh.search.executors.pool import Inbox, Pool


class Doomed:
    """A worker whose fate is known: answers, died, lost (with its machine), lost early (before it was ready), broken."""

    def __init__(self, fate: str, inbox: Inbox) -> None:
        self.fate, self.inbox, self.ready, self.lost = fate, inbox, False, fate.startswith("lost")
        inbox.put((self, None if fate in ("lost early", "broken") else {"ready": {}}))

    def send(self, document: dict[str, Any]) -> None:
        self.inbox.put((self, {"id": document["id"], "result": 7} if self.fate == "answers" else None))

    def touch(self) -> None:
        pass

    def silence(self) -> float:
        return 0.0

    def kill(self, reason: str) -> None:
        pass

    def end(self, patience: float) -> None:
        pass

    def out_of_memory(self) -> bool:
        return False

    def obituary(self) -> str:
        return self.fate


class Fates(Pool):
    def __init__(self, fates: list[str]) -> None:
        super().__init__(1, 30)
        self.fates = list(fates)

    def _start(self, index: int) -> Worker:
        return Doomed(self.fates.pop(0), self._inbox)


@pytest.mark.parametrize(("fates", "kinds"), [
    (["died", "answers"], ["retried", "result"]),
    (["died", "died"], ["retried", "died"]),
    (["lost"] * 5 + ["answers"], ["retried"] * 5 + ["result"]),  # no fault of the request's
    (["lost"] * 6, ["retried"] * 5 + ["died"]),  # or is it?
    (["lost", "died", "lost", "answers"], ["retried"] * 3 + ["result"]),
    (["lost early"] * 4 + ["answers"], ["result"]),
    (["broken", "broken", "answers"], ["result"]),
])
def test_a_request_goes_on_elsewhere(fates: list[str], kinds: list[str]) -> None:
    with Fates(fates) as pool:
        pool.submit("tune", {})
        events = []
        while new := pool.wait(1):
            events += new
        assert [event.kind for event in events] == kinds
        assert pool.fates == []


def test_machines_that_vanish_do_not_hide_workers_that_cannot_start() -> None:
    with Fates(["broken", "lost early", "broken", "lost early", "broken"]) as pool:
        pool.submit("tune", {})
        with pytest.raises(WorkerError, match="broken"):
            pool.wait(1)
