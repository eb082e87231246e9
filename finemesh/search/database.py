"""The database server of a study that `storage` names: its address, whether it answers, and waiting until it does again.

A search that loses its database in the middle goes on as one that was killed does: by reading the store anew.
"""

import math
import re
import time
from collections.abc import Callable
from pathlib import Path

import sqlalchemy
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import ArgumentError, InterfaceError, NoSuchModuleError, OperationalError, SQLAlchemyError

from finemesh.errors import InputError

PATIENCE = 600.0  # seconds after which a database counts as gone for good
LOOK_EVERY = 2.0  # seconds
SOON = 60.0  # seconds: what failed to be written is written again at once
READ_ONLY = "25006"  # the SQL state of a write to a server that may only be read
LONG = 4  # characters of a password that no other word of a message holds
CONNECTION = {"connect_timeout": "10", "keepalives_idle": "30", "keepalives_interval": "10", "keepalives_count": "3",
              "tcp_user_timeout": "60000"}  # libpq's: a server whose machine vanished is noticed within a minute


def address(storage: str) -> sqlalchemy.URL:
    try:
        url = sqlalchemy.make_url(storage)
    except (ArgumentError, ValueError):
        raise InputError(f"storage: {without_password(storage)} is no address of a database: it should look like "
                         "postgresql://user@host:5432/name") from None
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername == "postgresql+psycopg":
        url = url.update_query_dict({name: value for name, value in CONNECTION.items() if name not in url.query})
    return url


def without_password(storage: str) -> str:
    return re.sub(r"(password=)[^&]*", r"\1***", re.sub(r"(://[^:/@]*):.*@", r"\1:***@", storage))


def check(storage: str) -> None:
    """InputError where the database cannot be used; it says why."""
    try:
        engine = sqlalchemy.create_engine(address(storage))
    except NoSuchModuleError:
        raise InputError(f"storage: there is no such kind of database as that of {without_password(storage)}: give "
                         "postgresql://user@host:5432/name, or leave the field out") from None
    except ImportError as error:
        raise InputError(f"storage: a driver is missing, {error.name}: install it (for PostgreSQL: "
                         "pip install 'finemesh[postgres]')") from None
    try:
        engine.connect().close()
    except SQLAlchemyError as error:
        raise InputError(f"storage: the database {without_password(storage)} cannot be reached: {reason(error, storage)}. "
                         "Start it, or mend the address; `storage: sqlite` needs no server.") from None
    finally:
        engine.dispose()


def gone(error: Exception) -> bool:
    """Whether it is the server that failed: it is away, its disk is full, or it may only be read, as after a failover."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    read_only = getattr(getattr(cause, "orig", None), "sqlstate", None) == READ_ONLY
    return read_only or isinstance(cause, OperationalError | InterfaceError)


def reason(error: BaseException, storage: str) -> str:
    """The last line of what the driver says, without the password."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    lines = [line.strip() for line in str(getattr(cause, "orig", None) or cause).splitlines() if line.strip()]
    said = next((line for line in lines if "failed" in line or "FATAL" in line), lines[0] if lines else type(cause).__name__)
    password = address(storage).password
    if password:
        secret = re.escape(str(password))
        # a short one is a part of many words: what is left of them would tell it
        said = re.sub(secret if len(str(password)) >= LONG else rf"(?<!\w){secret}(?!\w)", "***", said)
    return said.rstrip(".")


class Patience:
    """That of one search with its database. A failure within SOON seconds of the last answer, before any further trial was
    told, is the same one, going on: a server that answers and refuses to work, as one with a full disk does, is waited for no
    longer than one that is away."""

    def __init__(self, storage: str, folder: Path, pause: Callable[[float], None], say: Callable[[str], None]) -> None:
        self._storage, self._name, self._folder = storage, without_password(storage), folder
        self._pause, self._say = pause, say
        self._began, self._answered, self._failures, self._told = 0.0, -math.inf, 0, 0

    def wait(self, error: Exception, told: int) -> None:
        """Until the database answers again; `told` trials it knows to be over. InputError once it has failed for PATIENCE
        seconds."""
        why = reason(error, self._storage)
        refusal = f"storage: the database {self._name} answers and refuses to work: {why}. Make room, or mend the address."
        if told > self._told or time.monotonic() - self._answered > SOON:
            self._began, self._failures, self._told = time.monotonic(), 0, max(told, self._told)
            self._say(f"The database {self._name} cannot be used ({why}). Trials that are under way go on; waiting for it, "
                      f"{PATIENCE / 60:.0f} minutes at most.")
        elif self._failures == 1:
            self._say(f"The database {self._name} answers and refuses to work ({why}); still waiting for it.")
        self._failures += 1
        while time.monotonic() - self._began <= PATIENCE:
            self._pause(LOOK_EVERY)
            try:
                check(self._storage)
            except InputError as unreachable:
                refusal = str(unreachable)
            else:
                self._answered = time.monotonic()
                if self._failures == 1:
                    self._say(f"The database {self._name} answers again after {self._answered - self._began:.0f} seconds; "
                              "the search goes on.")
                return
        raise InputError(f"{refusal}\nIt could not be used for {PATIENCE / 60:.0f} minutes. Nothing is lost: what has ended is "
                         f"in {self._folder}. Start the same command again when the database is back.") from error
