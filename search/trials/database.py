"""The database of the Optuna study: a lock or a restart of the server is waited for, all else is said in one line."""

from __future__ import annotations

import functools
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import MetaData, Table, event, make_url, update
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

PASSWORD = "LOWNAS_STORAGE_PASSWORD"  # the environment variable with the database's password
PATIENCE_S = 180.0  # how long a database may be locked, or its server away
MOUNTS = Path("/proc/self/mounts")
# File systems of other machines, as Linux calls them. Any "fuse" or "fuse.NAME" may be one, so it counts as one.
NETWORK = ("nfs", "cifs", "smb", "9p", "fuse.", "afs", "ceph", "gluster", "lustre", "gpfs", "beegfs", "virtiofs")
BUSY_MS = 1000  # how long SQLite itself waits for a lock, in which no Ctrl-C is heard

_logger = logging.getLogger("lownas.search")


def check_storage(url: str | None) -> None:
    """Checks a database URL: that a driver here understands it, and that it holds no password.

    The URL goes to run.json, and everyone on the machine sees a command line. Raises ValueError, in one line that does
    not repeat the URL.
    """
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


def _may_pass(error: Exception, *, network: bool = False) -> bool:
    """Whether waiting may help: a lock, a connection that was lost or refused, a file whose server does not answer."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if not isinstance(cause, DBAPIError):
        return False
    said = str(cause.orig).lower()
    if "authentication" in said:
        return False
    if "sqlite3" in type(cause.orig).__module__:
        words = ("locked", "busy", "locking protocol", *(("disk i/o error",) if network else ()))
        return any(word in said for word in words)
    return cause.connection_invalidated or any(
        word in said for word in ("connect", "terminat", "closed", "starting up", "shutting down", "recovery")
    )


def _reason(error: Exception) -> str:
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    original = getattr(cause, "orig", None) or cause or error
    return " ".join(str(original).split())[:300]


def _patient(name: str) -> Any:
    """A method of the storage that does no harm when it is done twice, tried again while the database is away."""

    @functools.wraps(getattr(RDBStorage, name))
    def method(self: PatientStorage, *args: Any, **kwargs: Any) -> Any:
        return self.patiently(functools.partial(getattr(self.backend, name), *args, **kwargs))

    return method


class PatientStorage(BaseStorage):
    """Optuna's storage in a database, whose methods try again while that is locked or away, for `PATIENCE_S`.

    It hands on to an `RDBStorage` by its public methods. Optuna calls the interface of storages its own, which may
    change between versions: setup.cfg admits the one that was tested (5.0).

    Raises OSError, in one line and without the password, for all that waiting does not mend.
    """

    def __init__(self, url: str, log: logging.Logger = _logger) -> None:
        """`log` is told of waiting: a run's own log."""
        self._shown, self._log, self._gave_up = url, log, False
        sqlite = url.startswith("sqlite")
        file = make_url(url).database if sqlite else None
        self._network = file is not None and on_network(Path(file))
        # A connection that a restarted server has dropped is noticed before it is used.
        options: dict[str, Any] = {} if sqlite else {"pool_pre_ping": True}
        self.backend: RDBStorage = self.patiently(lambda: RDBStorage(_with_password(url), engine_kwargs=options))
        self.engine = self.backend.engine
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", _of_other_machines if self._network else _relax_sqlite)
            self.engine.dispose()  # so that every connection is made anew

    def patiently(self, action: Callable[[], Any], done: Callable[[], Any] | None = None) -> Any:
        """Gives what `action` gives; before another try asks `done` whether it had come through after all.

        Once that took longer than `PATIENCE_S`, nothing is waited for any more until something works again.
        """
        until, pause = time.monotonic() + (0.0 if self._gave_up else PATIENCE_S), 0.1
        failed = False
        while True:
            try:
                result = done() if failed and done is not None else None
                if result is None:
                    result = action()
                self._gave_up = False
                return result
            except (StorageInternalError, SQLAlchemyError) as error:
                if not _may_pass(error, network=self._network) or time.monotonic() > until:
                    self._gave_up = True
                    raise OSError(f"the study database {self._shown} failed: {_reason(error)}") from None
                if not failed:
                    for log in {self._log, _logger}:  # a run's own is a file
                        log.warning("waiting for the study database %s: %s", self._shown, _reason(error))
                failed = True
                time.sleep(pause)
                pause = min(2 * pause, 2.0)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Adds a trial; one whose creation was cut off but came through is not added twice."""
        state = TrialState.RUNNING if template_trial is None else template_trial.state
        # Only one process creates trials of that state: a new one is ours.
        before = {trial.number for trial in self.get_all_trials(study_id, False, (state,))} if self._doubtful else None

        def done() -> int | None:
            if before is None:
                return None
            found = [trial for trial in self.get_all_trials(study_id, False, (state,)) if trial.number not in before]
            return self.get_trial_id_from_study_id_trial_number(study_id, found[-1].number) if found else None

        create = functools.partial(self.backend.create_new_trial, study_id, template_trial)
        created: int = self.patiently(create, done)
        return created

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Sets a trial's state, and its values when it is complete."""

        def done() -> bool | None:
            return True if self.backend.get_trial(trial_id).state == state else None

        change = functools.partial(self.backend.set_trial_state_values, trial_id, state, values)
        result: bool = self.patiently(change, done)
        return result

    def change_states(self, study_id: int, states: Mapping[int, TrialState]) -> None:
        """Changes the states of finished trials, by their numbers; of all or of none.

        Optuna has no method for this, so it is written into its table. Values and attributes stay.
        """

        def change() -> None:
            trials = Table("trials", MetaData(), autoload_with=self.engine)
            with self.engine.begin() as connection:
                for number, state in states.items():
                    these = (trials.c.study_id == study_id) & (trials.c.number == number)
                    connection.execute(update(trials).where(these).values(state=state.name))

        self.patiently(change)

    @property
    def _doubtful(self) -> bool:
        """Whether a commit may come through although its connection is lost: not with a file of this machine."""
        return bool(self._network or self.engine.dialect.name != "sqlite")

    create_new_study = _patient("create_new_study")
    delete_study = _patient("delete_study")
    get_all_studies = _patient("get_all_studies")
    get_all_trials = _patient("get_all_trials")
    get_study_directions = _patient("get_study_directions")
    get_study_id_from_name = _patient("get_study_id_from_name")
    get_study_name_from_id = _patient("get_study_name_from_id")
    get_study_system_attrs = _patient("get_study_system_attrs")
    get_study_user_attrs = _patient("get_study_user_attrs")
    get_trial = _patient("get_trial")
    get_trial_id_from_study_id_trial_number = _patient("get_trial_id_from_study_id_trial_number")
    get_trial_number_from_id = _patient("get_trial_number_from_id")
    get_trial_param = _patient("get_trial_param")
    set_study_system_attr = _patient("set_study_system_attr")
    set_study_user_attr = _patient("set_study_user_attr")
    set_trial_intermediate_value = _patient("set_trial_intermediate_value")
    set_trial_param = _patient("set_trial_param")
    set_trial_system_attr = _patient("set_trial_system_attr")
    set_trial_user_attr = _patient("set_trial_user_attr")


def open_storage(url: str, log: logging.Logger = _logger) -> PatientStorage:
    """Opens a study database; `log` is told of waiting for it.

    Raises OSError, in one line, if it cannot be reached or written.
    """
    with quiet_optuna():
        return PatientStorage(url, log)


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keeps Optuna from telling of each study that is made, as long as this lasts."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def on_network(path: Path) -> bool:
    """Whether a file is, or would be, on a file system of another machine; only Linux says so."""
    try:
        lines = MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    parents = {str(parent) for parent in (path.resolve() / "file").parents}
    kind, longest = "", 0
    for line in lines:
        _, where, mounted, *_ = line.split(" ")
        # Blanks and backslashes are written as octal numbers. Of two at one place the later one is seen.
        where = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), where)
        if where in parents and len(where) >= longest:
            kind, longest = mounted, len(where)
    return f"{kind}.".startswith(NETWORK)


def _relax_sqlite(connection: Any, record: Any) -> None:
    """Lets readers not block the driver, and syncs no single write: results.jsonl is the truth, and it is synced.

    A trial took 0.86 s with SQLite's defaults and 0.20 s so (40 parameters, 2 cores, SSD).
    """
    connection.execute(f"PRAGMA busy_timeout={BUSY_MS}")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def _of_other_machines(connection: Any, record: Any) -> None:
    """As `_relax_sqlite`, with a rollback journal: a write-ahead log needs memory that all who open the file share."""
    connection.execute(f"PRAGMA busy_timeout={BUSY_MS}")
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.execute("PRAGMA synchronous=NORMAL")
