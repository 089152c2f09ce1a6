"""Databases that are locked, restarted, full or not ours to write: nothing that was finished is lost."""

import errno
import glob
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from lownas.search.training.proxy import plan_proxy, train_candidate
from lownas.search.trials import database
from lownas.search.trials.database import check_storage, open_storage
from lownas.search.trials.run_folder import RunFolder, read_results

from ..conftest import load_study


def statuses(run: Path) -> Counter[str]:
    return Counter(result.status for result in read_results(run))


def lock_for(run: Path, seconds: float, moments: list[float], free: threading.Event | None = None) -> threading.Thread:
    """Locks a run's study against readers and writers from another connection; gives when there is something to lock.

    `moments` are when it was locked and when it was free again: after some seconds, or once `free` is set.
    """

    def hold() -> None:
        with closing(sqlite3.connect(run / "study.db", timeout=20)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            moments.append(time.monotonic())
            (free or threading.Event()).wait(seconds)
            connection.rollback()
            moments.append(time.monotonic())

    thread = threading.Thread(target=hold)
    thread.start()
    while not moments:
        time.sleep(0.02)
    return thread


@pytest.mark.parametrize("network", [False, True])
@pytest.mark.parametrize("locked_s", [2.0, pytest.param(30.0, marks=pytest.mark.slow)])
def test_a_database_that_is_locked_for_a_while_and_read_meanwhile(
    run_search, evaluate, tmp_path, monkeypatch, caplog, locked_s: float, network: bool
) -> None:
    """Another process's lock, while a third one reads as Optuna's dashboard does; also in the file for networks."""
    monkeypatch.setattr(database, "on_network", lambda path: network)
    run = tmp_path / "run"
    locked: list[float] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            with suppress(StorageInternalError, OperationalError):  # a rollback journal lets nobody read what is locked
                assert len(load_study(run).get_trials()) <= 12
            time.sleep(0.2)

    threads: list[threading.Thread] = []

    def evaluated(task):
        if task.trial == 3 and not threads:
            threads.append(lock_for(run, locked_s, locked))
            threads.append(threading.Thread(target=read))
            threads[-1].start()
        return evaluate(task)

    outcome = run_search(evaluate=evaluated)
    stop.set()
    for thread in threads:
        thread.join()
    assert locked[1] - locked[0] >= locked_s
    assert outcome.seconds > locked_s  # it really waited
    assert "waiting for the study database" in caplog.text  # where the command line shows warnings
    assert statuses(run) == {"complete": 12}
    study = load_study(run)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 12
    with closing(sqlite3.connect(run / "study.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete" if network else "wal",)


@pytest.mark.slow
def test_a_minute_without_the_study_in_the_middle_of_real_trainings(run_search, tmp_path, caplog) -> None:
    """Two workers train on; what they bring is written once the study can be."""
    run = tmp_path / "run"
    locked: list[float] = []
    threads: list[threading.Thread] = []

    def progress(status) -> None:
        if status.done >= 3 and not threads:
            threads.append(lock_for(run, 60.0, locked))

    changes = {"data": "digits", "workers": 2, "trials": 9, "repeats": 1, "proxy_epochs": 2}
    outcome = run_search(evaluate=train_candidate, plan=plan_proxy, progress=progress, **changes)
    for thread in threads:
        thread.join()
    assert locked[1] - locked[0] >= 60 and outcome.seconds > 60
    assert sum("waiting for the study database" in record.message for record in caplog.records) == 1
    results = read_results(run)
    assert {result.status for result in results} <= {"complete", "pruned"} and len(results) == 10
    study = load_study(run)
    told = {"complete": "COMPLETE", "pruned": "PRUNED"}
    assert [trial.state.name for trial in study.trials] == [told[result.status] for result in in_order(results)]
    assert [trial.user_attrs["config_id"] for trial in study.trials] == [r.config_id for r in in_order(results)]


def in_order(results):
    return sorted(results, key=lambda result: result.trial)


def test_a_lock_that_stays_ends_a_run_that_can_be_gone_on_with(run_search, evaluate, tmp_path, monkeypatch) -> None:
    run = tmp_path / "run"
    whole = run_search(run=str(tmp_path / "whole"))
    monkeypatch.setattr(database, "PATIENCE_S", 0.5)
    locked: list[float] = []
    threads: list[threading.Thread] = []
    free = threading.Event()

    def evaluated(task):
        if task.trial == 3 and not threads:
            threads.append(lock_for(run, 120.0, locked, free))
        return evaluate(task)

    with pytest.raises(OSError, match=r"^the study database .*study\.db failed: database is locked$"):
        run_search(evaluate=evaluated)
    assert len(locked) == 1  # still locked: it did not wait for it again and again
    assert [result.trial for result in read_results(run)] == [0, 1, 2, 3]  # also the one that could not be told
    free.set()
    threads[0].join()
    run_search(resume=True)
    assert [r.to_dict() for r in read_results(run)] == [r.to_dict() for r in read_results(whole.run)]
    assert [trial.state.name for trial in load_study(run).trials] == ["COMPLETE"] * 12


def test_a_lock_that_stays_is_said_in_one_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(database, "PATIENCE_S", 0.5)
    known = open_storage(f"sqlite:///{tmp_path}/study.db")
    study = optuna.create_study(storage=known)
    with sqlite3.connect(tmp_path / "study.db") as connection:
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(OSError, match=r"study\.db failed: database is locked"):
            study.set_user_attr("name", 1)
        connection.rollback()
    study.set_user_attr("name", 2)
    assert study.user_attrs == {"name": 2}


# --- file systems of other machines


def test_which_files_are_on_another_machine(tmp_path, monkeypatch) -> None:
    mounts = tmp_path / "mounts"
    monkeypatch.setattr(database, "MOUNTS", mounts)
    there = tmp_path / "with blank"
    (there / "local").mkdir(parents=True)
    (tmp_path / "link").symlink_to(there)
    escaped = str(there).replace(" ", "\\040")
    mounts.write_text(
        f"/dev/sda / ext4 rw 0 0\nserver:/export {escaped} nfs4 rw,hard 0 0\n"
        f"/dev/sdb {escaped}/local ext4 rw 0 0\nme@host: {tmp_path}/ssh fuse.sshfs rw 0 0\n"
        f"me {tmp_path}/fuse fuse rw 0 0\n/dev/sdc {tmp_path}/ntfs fuseblk rw 0 0\n"
    )
    assert database.on_network(there / "study.db") and database.on_network(tmp_path / "link" / "run" / "study.db")
    assert database.on_network(tmp_path / "ssh" / "study.db") and database.on_network(tmp_path / "fuse" / "study.db")
    assert not database.on_network(tmp_path / "ntfs" / "study.db")
    assert not database.on_network(there / "local" / "study.db") and not database.on_network(tmp_path / "study.db")
    assert not database.on_network(tmp_path / "with blanks" / "study.db")
    mounts.unlink()
    assert not database.on_network(there / "study.db")


def test_a_server_of_files_that_is_away_for_a_while_is_waited_for(tmp_path, monkeypatch) -> None:
    """What SQLite says then is final for a disk of this machine."""
    for network in (True, False):
        monkeypatch.setattr(database, "on_network", lambda path, network=network: network)
        known = open_storage(f"sqlite:///{tmp_path}/{network}.db")
        failures = iter([1, 1])

        def action(failures=failures) -> str:
            if next(failures, None):
                raise OperationalError("UPDATE", {}, sqlite3.OperationalError("disk I/O error"))
            return "done"

        if network:
            assert known.patiently(action) == "done"
        else:
            with pytest.raises(OSError, match="failed: disk I/O error"):
                known.patiently(action)


# --- disks


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_the_run_goes_on_once_there_is_room(
    run_search, evaluate, small_disk, tmp_path
) -> None:
    ballast = small_disk / "ballast"
    run = str(small_disk / "run")

    def filling(task):
        if task.trial == 4:
            with ballast.open("wb") as file, pytest.raises(OSError):
                for size in (65536, 512):
                    while True:
                        file.write(b"x" * size)
                        file.flush()
        return evaluate(task)

    with pytest.raises(OSError) as caught:
        run_search(run=run, evaluate=filling)
    assert "\n" not in str(caught.value) and any(word in str(caught.value).lower() for word in ("space", "full"))
    finished = read_results(Path(run))
    assert {result.trial for result in finished} >= {0, 1, 2, 3}
    ballast.unlink()
    run_search(run=run, resume=True)
    whole = run_search(run=str(tmp_path / "whole"))
    again = {result.trial: result for result in read_results(Path(run))}
    assert all(again[result.trial] == result for result in finished)
    assert statuses(Path(run)) == {"complete": 12}
    assert [r.config_id for r in read_results(Path(run))] == [r.config_id for r in read_results(whole.run)]


@pytest.mark.parametrize(("code", "said"), [(errno.EIO, "Input/output error"), (errno.EROFS, "Read-only file system")])
def test_a_failing_disk_is_one_line_and_resumable(run_search, tmp_path, monkeypatch, code: int, said: str) -> None:
    """Simulated where the results are written: opening fails on a read-only disk, syncing on a broken one."""
    append = RunFolder.append_result
    count = 0

    def failing(self, result):
        nonlocal count
        count += 1
        if count == 4:
            name, where = ("open", Path) if code == errno.EROFS else ("fsync", os)
            monkeypatch.setattr(where, name, broken)
        append(self, result)

    def broken(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(RunFolder, "append_result", failing)
    with pytest.raises(OSError, match=rf"cannot write .*results\.jsonl: {said}$"):
        run_search()
    monkeypatch.undo()
    before = read_results(tmp_path / "run")
    assert len(before) >= 3
    run_search(resume=True)
    assert read_results(tmp_path / "run")[: len(before)] == before
    assert statuses(tmp_path / "run") == {"complete": 12}


def test_a_database_that_may_not_be_written(tmp_path) -> None:
    known = open_storage(f"sqlite:///{tmp_path}/study.db")
    study = optuna.create_study(storage=known)
    event.listen(known.engine, "connect", lambda connection, _: connection.execute("PRAGMA query_only = ON"))
    known.engine.dispose()
    with pytest.raises(OSError, match=r"study\.db failed: attempt to write a readonly database"):
        study.set_user_attr("name", 1)


# --- PostgreSQL


def as_postgres(*command: str, **options) -> subprocess.CompletedProcess:
    """A server does not start as root."""
    prefix = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    return subprocess.run([*prefix, *command], check=True, capture_output=True, cwd="/", **options)


def free_port() -> int:
    """A port outside of those that the system gives to clients: one of them may take it while the server is away."""
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")


class Server:
    """A PostgreSQL cluster of its own, on a free port, that asks for a password."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self.binaries, self.folder = binaries, folder
        self.port = free_port()
        folder.mkdir()
        password = folder.parent / "password"
        password.write_text("not for eyes")
        if os.getuid() == 0:
            shutil.chown(folder, "postgres")
            shutil.chown(password, "postgres")
            for parent in folder.parents[:3]:
                parent.chmod(0o755)
        as_postgres(
            *(str(binaries / "initdb"), "-D", str(folder), "-U", "lownas", "-A", "scram-sha-256"),
            f"--pwfile={password}",
        )
        password.unlink()

    def control(self, *words: str) -> None:
        options = f"-p {self.port} -k '' -c listen_addresses=127.0.0.1 -c fsync=off"
        as_postgres(
            *(str(self.binaries / "pg_ctl"), "-D", str(self.folder), "-l", str(self.folder / "log"), "-w"),
            *("-o", options, *words),
        )


@pytest.fixture
def postgres(tmp_path, monkeypatch):
    binaries = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
    if not binaries:
        pytest.skip("PostgreSQL is not installed")
    pytest.importorskip("psycopg")
    server = Server(Path(binaries[-1]), tmp_path / "cluster")
    server.control("start")
    monkeypatch.setenv(database.PASSWORD, "not for eyes")
    yield server
    server.control("stop", "-m", "immediate")


@pytest.mark.slow
def test_a_study_in_postgresql_whose_server_is_restarted(run_search, evaluate, postgres, tmp_path) -> None:
    url = f"postgresql+psycopg://lownas@127.0.0.1:{postgres.port}/postgres"
    threads = []

    def evaluated(task):
        if task.trial in (3, 7) and len(threads) < 2:
            mode = "immediate" if task.trial == 3 else "fast"
            for thread in threads:
                thread.join()  # the server is up, but who started it may not have noticed yet

            def restart() -> None:
                postgres.control("stop", "-m", mode)
                time.sleep(3)
                postgres.control("start")

            threads.append(threading.Thread(target=restart))
            threads[-1].start()
            time.sleep(1.5)
        return evaluate(task)

    run_search(evaluate=evaluated, storage=url)
    for thread in threads:
        thread.join()
    assert len(threads) == 2
    run = tmp_path / "run"
    assert statuses(run) == {"complete": 12}
    name = json.loads((run / "run.json").read_text())["study"]
    study = optuna.load_study(study_name=name, storage=open_storage(url))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 12
    assert [trial.user_attrs["config_id"] for trial in study.trials] == [r.config_id for r in read_results(run)]
    storage = open_storage(url)
    for state in (TrialState.PRUNED, TrialState.COMPLETE):
        storage.change_states(storage.get_study_id_from_name(name), {4: state})
        assert [trial.state for trial in study.get_trials()].index(state) == (4 if state == TrialState.PRUNED else 0)
    # Resumed from the same database; and the password is nowhere.
    run_search(storage=url, resume=True, trials=9)
    assert statuses(run) == {"complete": 13}
    for path in run.rglob("*"):
        if path.is_file():
            assert b"not for eyes" not in path.read_bytes(), path
    assert json.loads((run / "run.json").read_text())["settings"]["storage"] == url


def test_a_wrong_password_is_one_line(postgres, monkeypatch) -> None:
    monkeypatch.setenv(database.PASSWORD, "guessed")
    with pytest.raises(OSError, match="password authentication failed") as caught:
        open_storage(f"postgresql+psycopg://lownas@127.0.0.1:{postgres.port}/postgres")
    assert "\n" not in str(caught.value) and "guessed" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://me:secret@host/db",
        "postgresql+psycopg://me@host/db?password=secret",
        "postgresql+psycopg://me@host/db?passwd=secret",
    ],
)
def test_a_password_in_the_url_is_refused_and_not_repeated(url: str) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(ValueError, match="leave it out and set LOWNAS_STORAGE_PASSWORD") as caught:
        check_storage(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["postgresql:me:secret@host/db", "postgresql+psycopg://me:secret/db", "secret", "nothing://me:secret@host/db"],
)
def test_what_is_no_database_url_is_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match=r"^storage .*: not a database URL") as caught:
        check_storage(url)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_runs_in_folders_of_one_name_are_apart_in_one_database(run_search, tmp_path) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"
    runs = [tmp_path / name / "run" for name in ("one", "other")]
    for seed, run in enumerate(runs):
        run_search(run=str(run), storage=url, seed=seed)
    names = [json.loads((run / "run.json").read_text())["study"] for run in runs]
    assert len(set(names)) == 2
    for name, run in zip(names, runs, strict=True):
        assert statuses(run) == {"complete": 12}
        study = optuna.load_study(study_name=name, storage=url)
        assert [trial.user_attrs["config_id"] for trial in study.trials] == [r.config_id for r in read_results(run)]
    run_search(run=str(runs[1]), storage=url, seed=1, resume=True, trials=9)
    assert statuses(runs[1]) == {"complete": 13} and len(optuna.get_all_study_names(url)) == 2
