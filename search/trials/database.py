"""The study's database, held on to: a lock or a restart of the server is waited for, all else is said in one line."""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.storages._rdb.models import (
    TrialModel,
    TrialParamModel,
    TrialSystemAttributeModel,
    TrialUserAttributeModel,
    TrialValueModel,
)
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event, insert, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import Session

PASSWORD = "LOWNAS_STORAGE_PASSWORD"  # the environment variable with the database's password
PATIENCE_S = 180.0  # that a database may be locked, or its server away

_NEWS = "SELECT trial_id, number, state FROM trials WHERE study_id = :study AND trial_id > :after ORDER BY trial_id"
_RUNNING = "SELECT number FROM trials WHERE study_id = :study AND state = 'RUNNING' ORDER BY number"
_LAST = "SELECT MAX(trial_id) FROM trials WHERE study_id = :study"

logger = logging.getLogger("lownas.search")


def check_storage(url: str | None) -> None:
    """Raises ValueError for a URL that no database driver here understands, or that holds a password: the URL goes to
    run.json, and everyone on the machine sees a command line. The message does not repeat it."""
    if url is None:
        return
    scheme, separator, _ = url.partition("://")
    shown = repr(f"{scheme}://...") if separator else "..."
    try:
        parsed = make_url(url)
        parsed.get_dialect().import_dbapi()
    except (NoSuchModuleError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"storage {shown}: not a database URL that can be opened here: {reason}") from None
    except (ArgumentError, ValueError):  # what these say holds parts of the URL
        raise ValueError(
            f"storage {shown}: not a database URL, as DIALECT+DRIVER://USER@HOST:PORT/NAME or sqlite:///FILE"
        ) from None
    if parsed.password is not None or any(re.search("passw|pwd", name, re.IGNORECASE) for name in parsed.query):
        raise ValueError(f"storage {shown}: everyone can read a password there; leave it out and set {PASSWORD}")


def _with_password(url: str) -> str:
    password = os.environ.get(PASSWORD)
    if not password:
        return url
    return make_url(url).set(password=password).render_as_string(hide_password=False)


def _passing(error: Exception) -> bool:
    """Whether waiting may help: a lock, or a connection that was lost or refused."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if not isinstance(cause, DBAPIError):
        return False
    said = str(cause.orig).lower()
    if "authentication" in said:
        return False
    if "sqlite3" in type(cause.orig).__module__:
        return "locked" in said or "busy" in said
    return cause.connection_invalidated or any(
        word in said for word in ("connect", "terminat", "closed", "starting up", "shutting down", "recovery")
    )


def _reason(error: Exception) -> str:
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    original = getattr(cause, "orig", None) or cause or error
    return " ".join(str(original).split())[:300]


class PatientStorage(RDBStorage):
    """Optuna's storage in a database, whose methods try again while that is locked or away, for `PATIENCE_S`.

    Raises OSError, in one line and without the password, for all that waiting does not mend.
    """

    def __init__(self, url: str) -> None:
        self._shown = url
        sqlite = url.startswith("sqlite")
        # A connection that a restarted server has dropped is noticed before it is used.
        options: dict[str, Any] = {} if sqlite else {"pool_pre_ping": True}
        self._patiently(lambda: RDBStorage.__init__(self, _with_password(url), engine_kwargs=options))
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", _relax_sqlite)
            self.engine.dispose()  # so that every connection is made anew

    def _patiently(self, action: Callable[[], Any], done: Callable[[], Any] | None = None) -> Any:
        """What `action` gives; before it is tried again `done` is asked whether it had come through after all."""
        until, pause = time.monotonic() + PATIENCE_S, 0.1
        failed = False
        while True:
            try:
                if failed and done is not None and (result := done()) is not None:
                    return result
                return action()
            except (StorageInternalError, SQLAlchemyError) as error:
                if not _passing(error) or time.monotonic() > until:
                    raise OSError(f"the study database {self._shown} failed: {_reason(error)}") from None
                if not failed:
                    logger.warning("waiting for the study database %s: %s", self._shown, _reason(error))
                failed = True
                time.sleep(pause)
                pause = min(2 * pause, 2.0)

    def news(self, study_id: int, after: int) -> list[tuple[int, int, str]]:
        """(id, number, name of the state) of a study's trials with a greater id than `after`, in their order.

        Optuna reads all that is not finished again, each time that it is asked for any trials.
        """

        def read() -> list[tuple[int, int, str]]:
            with self.engine.connect() as connection:
                found = connection.execute(text(_NEWS), {"study": study_id, "after": after}).all()
                return [(int(trial_id), int(number), str(state)) for trial_id, number, state in found]

        rows: list[tuple[int, int, str]] = self._patiently(read)
        return rows

    def running(self, study_id: int) -> list[int]:
        """The numbers of a study's trials that are RUNNING."""

        def read() -> list[int]:
            with self.engine.connect() as connection:
                return [int(number) for number in connection.execute(text(_RUNNING), {"study": study_id}).scalars()]

        numbers: list[int] = self._patiently(read)
        return numbers

    def _last_id(self, study_id: int) -> int:
        def read() -> int:
            with self.engine.connect() as connection:
                return int(connection.execute(text(_LAST), {"study": study_id}).scalar() or -1)

        found: int = self._patiently(read)
        return found

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        """What `create_new_trial` and Optuna's cache call."""
        before = self._last_id(study_id)

        def done() -> FrozenTrial | None:
            news = self.news(study_id, before)
            return RDBStorage.get_trial(self, news[-1][0]) if news else None

        create = functools.partial(RDBStorage._create_new_trial, self, study_id, template_trial)
        trial: FrozenTrial = self._patiently(create, done)
        return trial

    def finish(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None, user_attrs: Mapping[str, Any]
    ) -> None:
        """Ends a trial in one transaction, whatever state it is in."""

        def write() -> None:
            with Session(self.engine) as session, session.begin():
                trial = TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
                for objective, value in enumerate(values or ()):
                    stored, kind = TrialValueModel.value_to_stored_repr(value)
                    session.add(TrialValueModel(trial_id=trial_id, objective=objective, value=stored, value_type=kind))
                known = {attribute.key: attribute for attribute in trial.user_attributes}
                for name, value in user_attrs.items():
                    attribute = known.get(name) or TrialUserAttributeModel(trial_id=trial_id, key=name)
                    attribute.value_json = json.dumps(value)
                    session.add(attribute)
                trial.state = state
                trial.datetime_start = trial.datetime_start or datetime.now()
                trial.datetime_complete = datetime.now()

        def done() -> bool | None:
            return RDBStorage.get_trial(self, trial_id).state.is_finished() or None

        self._patiently(write, done)

    def _get_prepared_new_trial(self, study_id: int, template_trial: FrozenTrial | None, session: Any) -> TrialModel:
        """Optuna's, for a trial that runs, without a query or more for each parameter and attribute: there can be none
        of them before, and the choices of a parameter do not change in a run. It takes a third of the time."""
        if template_trial is None or template_trial.state != TrialState.RUNNING:
            return RDBStorage._get_prepared_new_trial(self, study_id, template_trial, session)
        trial = TrialModel(
            study_id=study_id, number=None, state=TrialState.RUNNING, datetime_start=template_trial.datetime_start
        )
        session.add(trial)
        session.flush()
        parameters = [
            {
                "trial_id": trial.trial_id,
                "param_name": name,
                "param_value": distribution.to_internal_repr(template_trial.params[name]),
                "distribution_json": _distribution_json(distribution),
            }
            for name, distribution in template_trial.distributions.items()
        ]
        session.execute(insert(TrialParamModel), parameters)
        for model, attributes in (
            (TrialUserAttributeModel, template_trial.user_attrs),
            (TrialSystemAttributeModel, template_trial.system_attrs),
        ):
            rows = [
                {"trial_id": trial.trial_id, "key": name, "value_json": json.dumps(value)}
                for name, value in attributes.items()
            ]
            if rows:
                session.execute(insert(model), rows)
        trial.number = trial.count_past_trials(session)
        return trial

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Any = None) -> bool:
        def done() -> bool | None:
            return True if RDBStorage.get_trial(self, trial_id).state == state else None

        result: bool = self._patiently(
            functools.partial(RDBStorage.set_trial_state_values, self, trial_id, state, values), done
        )
        return result


@functools.lru_cache(maxsize=1024)
def _distribution_json(distribution: BaseDistribution) -> str:
    return distribution_to_json(distribution)


def _patient(name: str) -> Callable[..., Any]:
    method = getattr(RDBStorage, name)

    @functools.wraps(method)
    def patient(self: PatientStorage, *args: Any, **kwargs: Any) -> Any:
        return self._patiently(functools.partial(method, self, *args, **kwargs))

    return patient


# All of these may be done twice.
for _name in (
    *("get_all_studies", "get_all_trials", "get_n_trials", "get_trial", "get_trial_id_from_study_id_trial_number"),
    *("get_study_directions", "get_study_id_from_name", "get_study_name_from_id", "get_study_system_attrs"),
    *("get_study_user_attrs", "get_trial_number_from_id", "get_trial_param", "get_trial_params"),
    *("get_trial_system_attrs", "get_trial_user_attrs", "set_study_system_attr", "set_study_user_attr"),
    *("set_trial_param", "set_trial_system_attr", "set_trial_user_attr", "_get_trials"),
):
    setattr(PatientStorage, _name, _patient(_name))


def open_storage(url: str) -> PatientStorage:
    """Raises OSError, in one line, if the database cannot be reached or written."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return PatientStorage(url)


def _relax_sqlite(connection: Any, record: Any) -> None:
    """Readers do not block the driver, and no fsync per parameter: results.jsonl is the truth, and it is synced.

    A trial took 0.86 s with SQLite's defaults and 0.20 s so (40 parameters, 2 cores, SSD).
    """
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
