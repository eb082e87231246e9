"""Studies in a database server: real PostgreSQL, and a database whose connections fail again and again."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.exc import InternalError, OperationalError
from sqlalchemy.orm import Session

from finemesh.errors import InputError
from finemesh.run import RunFolder
from finemesh.search import database
from tests.postgres import PASSWORD, Server

SCRIPT = {"seconds": 0.005, "heavy": [1], "infeasible": [2]}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "LOOK_EVERY", 0.02)


@pytest.fixture(scope="module")
def whole(fake: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return fake.points(fake.search(tmp_path_factory.mktemp("whole"), 7, workers=2, script=SCRIPT))


def steps(folder: Path) -> list[list[str]]:
    return [path.read_text().split() for path in sorted(folder.glob("trials/*/steps.log"))]


def test_postgresql_gives_the_points_of_sqlite_and_goes_on(fake: SimpleNamespace, tmp_path: Path, server: Server,
                                                           whole: Any) -> None:
    fake.search(tmp_path / "one/run", 4, workers=2, script=SCRIPT, storage=server.url)
    other = fake.search(tmp_path / "other/run", 3, sampler=fake.Watching(1), storage=server.url)  # is a study of its own
    outcomes = fake.search(tmp_path / "one/run", 7, workers=2, script=SCRIPT, storage=server.url)
    assert fake.points(outcomes) == whole
    assert len(other) == 3


def test_a_database_that_goes_away_is_waited_for(fake: SimpleNamespace, tmp_path: Path, server: Server, whole: Any) -> None:
    class Saboteur(fake.Watcher):
        def ended(self, outcome: Any) -> None:
            super().ended(outcome)
            if outcome.number in (1, 4):
                server.stop()

        def message(self, text: str) -> None:
            super().message(text)
            if "cannot be used" in text:
                server.start()

    watcher = Saboteur()
    outcomes = fake.search(tmp_path, 7, workers=2, script=SCRIPT, storage=server.url, observer=watcher)
    assert fake.points(outcomes) == whole
    assert steps(tmp_path) == [["0", "1"]] * 7  # what was under way was not run twice
    assert [job.number for job in watcher.jobs] == list(range(7))
    said = "\n".join(watcher.messages)
    assert len(watcher.messages) == 4
    assert "cannot be used" in said
    assert "answers again" in said
    assert PASSWORD not in said


def test_one_that_stays_away_loses_nothing(fake: SimpleNamespace, tmp_path: Path, server: Server, whole: Any,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    class Saboteur(fake.Watcher):
        def ended(self, outcome: Any) -> None:
            server.stop()

    monkeypatch.setattr(database, "PATIENCE", 0.2)
    try:
        with pytest.raises(InputError, match=r"(?s)^storage: the database .*cannot be reached.*Nothing is lost") as error:
            fake.search(tmp_path, 7, workers=2, script=SCRIPT, storage=server.url, observer=Saboteur())
    finally:
        server.start()
    assert PASSWORD not in str(error.value)
    kept = RunFolder(tmp_path).outcomes()
    assert kept
    assert fake.points(fake.search(tmp_path, 7, workers=2, script=SCRIPT, storage=server.url)) == whole
    assert steps(tmp_path)[:len(kept)] == [["0", "1"]] * len(kept)


def test_connections_that_fail_at_any_moment_change_nothing(fake: SimpleNamespace, tmp_path: Path, whole: Any,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    chance, commit, failures = random.Random(0), Session.commit, []

    def fragile(session: Session) -> None:
        """A failure before the commit, or after it: then the database did what this end does not know of."""
        when = chance.choices(("before", "after", "never"), (1, 1, 5))[0]
        if when != "before":
            commit(session)
        if when != "never":
            failures.append(when)
            raise OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly"))

    monkeypatch.setattr(Session, "commit", fragile)
    outcomes = fake.search(tmp_path, 7, workers=2, script=SCRIPT, storage=f"sqlite:///{tmp_path}/server.db")
    assert fake.points(outcomes) == whole
    assert steps(tmp_path) == [["0", "1"]] * 7
    assert {"before", "after"} <= set(failures)


class Refusal(Exception):
    """As psycopg's errors."""

    def __init__(self, sqlstate: str, message: str) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


FULL = OperationalError("INSERT", {}, Refusal("53100", 'could not extend file "base/5/1": No space left on device'))
FOLLOWER = InternalError("INSERT", {}, Refusal("25006", "cannot execute INSERT in a read-only transaction"))


@pytest.mark.parametrize("error", [FULL, FOLLOWER])
def test_a_database_that_answers_and_refuses_to_write_is_waited_for_no_longer_than_one_that_is_away(
        fake: SimpleNamespace, tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    commit, watcher = Session.commit, fake.Watcher()

    def refusing(session: Session) -> None:
        """From the second trial on."""
        if len(RunFolder(tmp_path).outcomes()) > 1:
            raise error
        commit(session)

    storage = f"sqlite:///{tmp_path}/server.db"
    with monkeypatch.context() as patch:
        patch.setattr(Session, "commit", refusing)
        patch.setattr(database, "PATIENCE", 0.5)
        with pytest.raises(InputError, match=r"(?s)answers and refuses to work: (could not|cannot).*Nothing is lost"):
            fake.search(tmp_path, 7, workers=2, script=SCRIPT, storage=storage, observer=watcher)
    assert [text.split(f"{storage} ")[1].split(" (")[0] for text in watcher.messages] == [
        "cannot be used", "answers again after 0 seconds; the search goes on.", "answers and refuses to work"]
    assert fake.points(fake.search(tmp_path, 7, workers=2, script=SCRIPT, storage=storage)) == whole


def test_a_server_that_may_only_be_read_is_waited_for(fake: SimpleNamespace, tmp_path: Path, server: Server,
                                                      whole: Any) -> None:
    """For a while, as after a failover."""

    class Saboteur(fake.Watcher):
        def ended(self, outcome: Any) -> None:
            super().ended(outcome)
            if outcome.number == 1:
                server.only_read(True)

        def message(self, text: str) -> None:
            super().message(text)
            if "cannot be used (cannot execute" in text:
                server.only_read(False)

    watcher = Saboteur()
    outcomes = fake.search(tmp_path, 7, workers=2, script=SCRIPT, storage=server.url, observer=watcher)
    assert fake.points(outcomes) == whole
    assert any("cannot be used (cannot execute" in text for text in watcher.messages)


def refused(storage: Callable[[Server], str], *words: str) -> Any:
    return pytest.param(storage, words, id=words[0])


def test_a_password_that_is_a_part_of_words_does_not_tear_them() -> None:
    with pytest.raises(InputError, match=r"postgresql://me:\*\*\*@127\.0\.0\.1:1/x.*port 1 failed") as error:
        database.check("postgresql://me:p@127.0.0.1:1/x")
    assert ":p@" not in str(error.value)


@pytest.mark.parametrize(("storage", "words"), [
    refused(lambda server: server.url.replace("sesame", "barley"), "password authentication failed"),
    refused(lambda server: server.url.replace("/postgres", "/nowhere"), 'database "nowhere" does not exist'),
    refused(lambda _: "postgresql://me:secret@127.0.0.1:1/x", "Connection refused", "postgresql://me:***@127.0.0.1:1/x"),
    refused(lambda _: "postgresql://me:secret@nowhere:port/x", "is no address of a database"),
    refused(lambda _: "oracle+none://me:secret@nowhere/x", "there is no such kind of database"),
    refused(lambda _: "postgresql+asyncpg://me:secret@nowhere/x", "a driver is missing, asyncpg", "finemesh[postgres]"),
])
def test_what_cannot_be_used_is_said_without_the_password(server: Server, storage: Callable[[Server], str],
                                                          words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as error:
        database.check(storage(server))
    assert all(word in str(error.value) for word in ("storage: ", *words))
    assert not any(secret in str(error.value) for secret in (PASSWORD, "secret", "barley"))
