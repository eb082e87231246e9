"""The Optuna study of a run, and how an outcome is told to it.

Two things are added to Optuna's storage. All parameters of a trial are written in one transaction, as are its
constraints: a trial in the store has none or all of them, so that one that was being asked for when the process was
killed is simply asked for again. And a horizon: while trial n is asked for, the sampler sees as finished exactly the
trials that it would see in an uninterrupted run, whatever has ended in the meantime.
"""

import copy
import shutil
import sqlite3
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError
from optuna.samplers import BaseSampler
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages._rdb.models import TrialSystemAttributeModel
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.study._constrained_optimization import _CONSTRAINTS_KEY
from optuna.trial import FrozenTrial, Trial, TrialState

from finemesh.objectives import LOSS, directions, values
from finemesh.run import disk_is_full
from finemesh.search.database import address
from finemesh.trial import Outcome

SQLITE_PATIENCE = 60  # seconds to wait for another process that reads or writes
FULL_BYTES = 100_000


class Store(_CachedStorage):
    """`horizon`: finished trials with this number and later ones are shown as running; None shows them as they are."""

    def __init__(self, backend: RDBStorage) -> None:
        super().__init__(backend)
        self.horizon: int | None = None
        self._unwritten: dict[int, dict[str, tuple[float, BaseDistribution]]] = {}

    def set_trial_param(self, trial_id: int, param_name: str, param_value_internal: float,
                        distribution: BaseDistribution) -> None:
        self._unwritten.setdefault(trial_id, {})[param_name] = (param_value_internal, distribution)

    def write_params(self, trial_id: int) -> None:
        params = self._unwritten.pop(trial_id, {})
        study_id, _ = self._trial_id_to_study_id_and_number[trial_id]
        known = self._studies[study_id].param_distribution
        with _create_scoped_session(self._backend.scoped_session) as session:
            for name, (value, distribution) in params.items():
                self._backend._set_trial_param_without_commit(session, trial_id, name, value, distribution,
                                                              known.get(name))
        for name, (_, distribution) in params.items():
            known.setdefault(name, distribution)

    def write_constraints(self, trial_id: int, constraints: Mapping[str, float]) -> None:
        """As Trial.set_constraint, in one transaction; one that is there already is replaced."""
        if constraints:
            with _create_scoped_session(self._backend.scoped_session) as session:
                for name, excess in constraints.items():
                    self._backend._set_trial_attr_without_commit(session, TrialSystemAttributeModel, trial_id,
                                                                 f"{_CONSTRAINTS_KEY}:{name}", float(excess))

    def get_all_trials(self, study_id: int, deepcopy: bool = True,
                       states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        if self.horizon is None:
            return super().get_all_trials(study_id, deepcopy, states)
        trials = super().get_all_trials(study_id, deepcopy=False)
        start = min(self.horizon, len(trials))
        trials[start:] = [_as_running(trial) if trial.state.is_finished() else trial for trial in trials[start:]]
        trials = [trial for trial in trials if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials


@contextmanager
def opened(url: str, name: str, sampler: BaseSampler, objectives: Sequence[str] = (LOSS,)) -> Iterator[optuna.Study]:
    """The study of this name, made where there is none."""
    if url.startswith("sqlite"):
        backend = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": SQLITE_PATIENCE}})
        backend.engine.dispose()
        sqlalchemy.event.listen(backend.engine, "connect", _without_waiting)
    else:
        backend = RDBStorage(address(url).render_as_string(hide_password=False), engine_kwargs={"pool_pre_ping": True})
    try:
        yield optuna.create_study(storage=Store(backend), study_name=name, sampler=sampler, load_if_exists=True,
                                  directions=directions(objectives))
    finally:
        backend.remove_session()
        backend.engine.dispose()


def _without_waiting(connection: sqlite3.Connection, _: object) -> None:
    """SQLite's write-ahead log: a commit does not wait for the disk, and still no kill can spoil the store.

    A power cut can take the latest commits away. Their trials are asked for again and adopt their outcome.json.
    """
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def store_of(study: optuna.Study) -> Store:
    assert isinstance(study._storage, Store)
    return study._storage


def tell(study: optuna.Study, trial: Trial, outcome: Outcome, forecast: float | None = None, whole: int = 0,
         objectives: Sequence[str] = (LOSS,)) -> None:
    """complete is COMPLETE, failed FAIL, pruned PRUNED with its last loss as an intermediate value, and after the `whole`
    length the forecast of the loss that it would have had: by the last value, samplers compare like with like.

    infeasible has a constraint above 0 and is COMPLETE where it has a loss, else PRUNED: samplers count both as bad,
    by how much the constraint is broken, whereas FAIL would be a point that they never heard of. Of several objectives
    all must have been measured.
    """
    constraints = dict(outcome.constraints)
    if outcome.state == "infeasible" and not any(excess > 0 for excess in constraints.values()):
        constraints["infeasible"] = 1.0
    store_of(study).write_constraints(trial._trial_id, constraints)
    loss, found = outcome.validation_loss, values(outcome, objectives)
    if outcome.state == "failed" or (outcome.state == "complete" and found is None):
        study.tell(trial, state=TrialState.FAIL)
    elif outcome.state == "pruned" or found is None:
        if loss is not None and len(objectives) == 1:
            trial.report(loss, outcome.steps)
            if forecast is not None and outcome.steps < whole:
                trial.report(forecast, whole)
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, found)


def storage_error(error: StorageInternalError, folder: Path) -> Exception:
    """What to raise instead: InputError where the disk is full, which SQLite also calls an I/O error."""
    full = "full" in str(error.__cause__) or shutil.disk_usage(folder).free < FULL_BYTES
    return disk_is_full(folder) if full else error


def _as_running(trial: FrozenTrial) -> FrozenTrial:
    """As it was before it was told."""
    running = copy.copy(trial)
    running.state, running.values, running.datetime_complete = TrialState.RUNNING, None, None
    running.intermediate_values = {}
    running._system_attrs = {name: value for name, value in trial.system_attrs.items()
                             if not name.startswith(_CONSTRAINTS_KEY)}
    return running
