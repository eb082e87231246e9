"""The Optuna study of a run, and how an outcome is told to it.

Two things are added to Optuna's storage. All parameters of a trial are written in one transaction, as are its
constraints: a trial in the store has none or all of them, so that one that was being asked for when the process was
killed is simply asked for again. And a horizon: while trial n is asked for, the sampler sees as finished exactly the
trials that it would see in an uninterrupted run, whatever has ended in the meantime.
"""

import copy
import functools
import json
import shutil
import sqlite3
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, check_distribution_compatibility, distribution_to_json, json_to_distribution
from optuna.samplers import BaseSampler
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage, _StudyInfo
from optuna.storages._rdb.models import (
    TrialIntermediateValueModel,
    TrialModel,
    TrialParamModel,
    TrialSystemAttributeModel,
    TrialUserAttributeModel,
    TrialValueModel,
)
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.study._constrained_optimization import _CONSTRAINTS_KEY
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from finemesh.disk import disk_is_full
from finemesh.errors import InputError
from finemesh.objectives import LOSS, directions, values
from finemesh.search.database import address
from finemesh.trial import Outcome

SQLITE_PATIENCE = 60  # seconds to wait for another process that reads or writes
FULL_BYTES = 100_000


class Store(_CachedStorage):
    """All trials are read once and kept: only the process that has the run folder's lock writes them.

    `horizon`: finished trials with this number and later ones are shown as running; None shows them as they are.
    """

    def __init__(self, backend: RDBStorage) -> None:
        super().__init__(backend)
        self.horizon: int | None = None
        self._open: set[int] = set()  # numbers of unfinished trials
        self._unwritten: dict[int, dict[str, tuple[float, BaseDistribution]]] = {}

    def _known(self, study_id: int) -> dict[int, FrozenTrial]:
        """By number, in order."""
        study = self._studies.setdefault(study_id, _StudyInfo())
        if study.last_finished_trial_id < 0:
            study.last_finished_trial_id = 0  # it is read
            self._add_trials_to_cache(study_id, read_trials(self._backend, study_id))
            self._open = {number for number, trial in study.trials.items() if not trial.state.is_finished()}
            for trial in study.trials.values():
                study.param_distribution |= trial.distributions
        return study.trials

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Once: the backend tries again, and where the first one was made all the same there would be two."""
        self._known(study_id)
        made = copy.deepcopy(template_trial) if template_trial else create_trial(state=TrialState.RUNNING)
        with _create_scoped_session(self._backend.scoped_session) as session:
            trial: Any = self._backend._get_prepared_new_trial(study_id, template_trial, session)
            made._trial_id, made.number, made.datetime_start = trial.trial_id, trial.number, trial.datetime_start
        self._add_trials_to_cache(study_id, [made])
        self._open.add(made.number)
        return made._trial_id

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """An unfinished one for the caller alone, who changes it."""
        if trial_id not in self._trial_id_to_study_id_and_number:
            return super().get_trial(trial_id)
        study_id, number = self._trial_id_to_study_id_and_number[trial_id]
        trial = self._known(study_id)[number]
        return trial if trial.state.is_finished() else copy.deepcopy(trial)

    def _change(self, trial_id: int, **attributes: Any) -> None:
        """Of the trial as it is kept; whoever holds it as it was still does."""
        study_id, number = self._trial_id_to_study_id_and_number[trial_id]
        changed = copy.copy(self._known(study_id)[number])
        for name, value in attributes.items():
            setattr(changed, name, value)
        self._known(study_id)[number] = changed
        (self._open.discard if changed.state.is_finished() else self._open.add)(number)

    def set_trial_param(self, trial_id: int, param_name: str, param_value_internal: float,
                        distribution: BaseDistribution) -> None:
        self._unwritten.setdefault(trial_id, {})[param_name] = (param_value_internal, distribution)

    def write_params(self, trial_id: int) -> None:
        params = self._unwritten.pop(trial_id, {})
        if not params:
            return
        study_id, number = self._trial_id_to_study_id_and_number[trial_id]
        known, trial = self._studies[study_id].param_distribution, self._known(study_id)[number]
        for name, (_, distribution) in params.items():
            check_distribution_compatibility(known.setdefault(name, distribution), distribution)
        with _create_scoped_session(self._backend.scoped_session) as session:
            session.add_all([TrialParamModel(trial_id=trial_id, param_name=name, param_value=value,
                                             distribution_json=distribution_to_json(distribution))
                             for name, (value, distribution) in params.items()])
        values = {name: distribution.to_external_repr(value) for name, (value, distribution) in params.items()}
        distributions = {name: distribution for name, (_, distribution) in params.items()}
        self._change(trial_id, params=trial.params | values, distributions=trial.distributions | distributions)

    def write_constraints(self, trial_id: int, constraints: Mapping[str, float]) -> None:
        """As Trial.set_constraint, in one transaction; one that is there already is replaced."""
        if constraints:
            named = {f"{_CONSTRAINTS_KEY}:{name}": float(excess) for name, excess in constraints.items()}
            with _create_scoped_session(self._backend.scoped_session) as session:
                for name, excess in named.items():
                    self._backend._set_trial_attr_without_commit(session, TrialSystemAttributeModel, trial_id, name, excess)
            self._change(trial_id, _system_attrs=self.get_trial(trial_id).system_attrs | named)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        super().set_trial_system_attr(trial_id, key, value)
        self._change(trial_id, _system_attrs=self.get_trial(trial_id).system_attrs | {key: value})

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        super().set_trial_user_attr(trial_id, key, value)
        self._change(trial_id, _user_attrs=self.get_trial(trial_id).user_attrs | {key: value})

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)
        values = self.get_trial(trial_id).intermediate_values | {step: intermediate_value}
        self._change(trial_id, intermediate_values=values)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        if not super().set_trial_state_values(trial_id, state, values):
            return False
        when = "datetime_complete" if state.is_finished() else "datetime_start"
        self._change(trial_id, state=state, values=None if values is None else list(values), **{when: datetime.now()})
        return True

    def get_all_trials(self, study_id: int, deepcopy: bool = True,
                       states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        known = self._known(study_id)
        hidden = range(len(known) if self.horizon is None else min(self.horizon, len(known)), len(known))
        if states is None or any(state.is_finished() and state in states for state in TrialState):
            trials = list(known.values())
        else:
            trials = [known[number] for number in sorted(self._open.union(hidden))]
        start = len(trials) - len(hidden)
        trials[start:] = [_as_running(trial) if trial.state.is_finished() else trial for trial in trials[start:]]
        if states is not None:
            trials = [trial for trial in trials if trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials


def read_trials(backend: RDBStorage, study_id: int) -> list[FrozenTrial]:
    """What the backend's get_all_trials gives, without an object for every row and a distribution for every value."""
    distribution = functools.cache(json_to_distribution)
    with _create_scoped_session(backend.scoped_session) as session:

        def rows(model: Any, order: str, *names: str) -> dict[int, list[Any]]:
            """By trial."""
            found: dict[int, list[Any]] = defaultdict(list)
            query = sqlalchemy.select(model.trial_id, *[getattr(model, name) for name in names])
            query = query.where(model.trial_id == TrialModel.trial_id, TrialModel.study_id == study_id)
            for trial_id, *row in session.execute(query.order_by(getattr(model, order))):
                found[trial_id].append(row)
            return found

        params = rows(TrialParamModel, "param_id", "param_name", "param_value", "distribution_json")
        values = rows(TrialValueModel, "objective", "value", "value_type")
        reported = rows(TrialIntermediateValueModel, "step", "step", "intermediate_value", "intermediate_value_type")
        system = rows(TrialSystemAttributeModel, "key", "key", "value_json")
        user = rows(TrialUserAttributeModel, "key", "key", "value_json")
        trials: Any = session.query(TrialModel).filter(TrialModel.study_id == study_id).order_by(TrialModel.trial_id)
        return [FrozenTrial(
            number=trial.number, state=trial.state, value=None, trial_id=trial.trial_id,
            datetime_start=trial.datetime_start, datetime_complete=trial.datetime_complete,
            values=[TrialValueModel.stored_repr_to_value(*row) for row in values[trial.trial_id]] or None,
            params={name: distribution(text).to_external_repr(value) for name, value, text in params[trial.trial_id]},
            distributions={name: distribution(text) for name, _, text in params[trial.trial_id]},
            user_attrs={name: json.loads(text) for name, text in user[trial.trial_id]},
            system_attrs={name: json.loads(text) for name, text in system[trial.trial_id]},
            intermediate_values={step: TrialIntermediateValueModel.stored_repr_to_intermediate_value(*row)
                                 for step, *row in reported[trial.trial_id]}) for trial in trials]


@contextmanager
def opened(url: str, name: str, sampler: BaseSampler, objectives: Sequence[str] = (LOSS,), *,
           alone: bool = False) -> Iterator[optuna.Study]:
    """The study of this name, made where there is none. `alone`: whatever its name, as a run's folder may be renamed."""
    if url.startswith("sqlite"):
        backend = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": SQLITE_PATIENCE}})
        backend.engine.dispose()
        sqlalchemy.event.listen(backend.engine, "connect", _without_waiting)
    else:
        backend = RDBStorage(address(url).render_as_string(hide_password=False), engine_kwargs={"pool_pre_ping": True})
    try:
        if alone:
            name = next((study.study_name for study in backend.get_all_studies()), name)
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
         objectives: Sequence[str] = (LOSS,), bounds: Mapping[str, float] | None = None) -> None:
    """complete is COMPLETE, failed FAIL, pruned PRUNED with its last loss as an intermediate value, and after the `whole`
    length the forecast of the loss that it would have had: by the last value, samplers compare like with like.

    infeasible has a constraint above 0 and is COMPLETE where it has a whole trial's loss, else PRUNED: samplers count both as
    bad, by how much the constraint is broken, whereas FAIL would be a point that they never heard of. They add several up:
    so each is told as a share of its bound. Of several objectives all must have been measured.
    """
    bounds = bounds or {}
    constraints = {name: excess / (abs(bounds.get(name, 1.0)) or 1.0) for name, excess in outcome.constraints.items()}
    if outcome.state == "infeasible" and not any(excess > 0 for excess in constraints.values()):
        constraints["infeasible"] = 1.0
    store_of(study).write_constraints(trial._trial_id, constraints)
    loss, found = outcome.validation_loss, values(outcome, objectives)
    if outcome.state == "failed" or (outcome.state == "complete" and found is None):
        study.tell(trial, state=TrialState.FAIL)
    elif outcome.state == "pruned" or found is None or outcome.steps < whole:
        if loss is not None and len(objectives) == 1:
            trial.report(loss, outcome.steps)
            if forecast is not None and outcome.steps < whole:
                trial.report(forecast, whole)
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, found)


def storage_error(error: Exception, file: Path) -> Exception:
    """What to raise instead, of SQLite: InputError where the file is damaged or the disk full, which is also an I/O error."""
    cause = error.__cause__ or error
    if any(said in str(cause) for said in ("malformed", "not a database")):
        return InputError(f"it is damaged ({str(cause).splitlines()[0]}): remove it, and the same command makes it again from "
                          "what its trials have written", file=file)
    full = "full" in str(cause) or shutil.disk_usage(file.parent).free < FULL_BYTES
    return disk_is_full(file.parent) if full else error


def _as_running(trial: FrozenTrial) -> FrozenTrial:
    """As it was before it was told."""
    running = copy.copy(trial)
    running.state, running.values, running.datetime_complete = TrialState.RUNNING, None, None
    running.intermediate_values = {}
    running._system_attrs = {name: value for name, value in trial.system_attrs.items()
                             if not name.startswith(_CONSTRAINTS_KEY)}
    return running
