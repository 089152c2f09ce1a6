"""The run folder: what a search leaves behind, and what it resumes from.

run.json        every setting, versions, seed, git commit, whether it trains and by which plan; written once
data_card.json  what the user's data are, as they were found
results.jsonl   one `EvaluationResult` a line, append-only, each line on disk before the trial is told to the study;
                where nothing trains the networks that are kept, in the order in which they are found
rungs.jsonl     one `RungEntry` a line: what a trial had reached at a rung
states/         trainings that wait at a rung
measured.jsonl  one `MeasuredRound` a line
study.db        Optuna's storage; none where nothing trains
front/          the Pareto front, exported
log.txt         what happened
lock            held by the one process that searches in the folder
"""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any, Self, TypeVar

from filelock import FileLock, Timeout

from ...version import __version__
from ..settings import SearchSettings
from .records import EvaluationResult, MeasuredRound, RungEntry

SCHEMA = 1
_Line = TypeVar("_Line", RungEntry, MeasuredRound)
_PACKAGES = ("torch", "numpy", "optuna", "ray", "onnx", "onnxruntime")


@contextmanager
def _one_line_errors(what: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, Timeout):
            raise
        raise OSError(f"cannot {what} {path}: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """Writes a file completely or not at all, as `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file completely or not at all: a temporary file beside it, then renamed. Raises OSError, in one line."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _one_line_errors("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


class _LogFile(logging.FileHandler):
    """Writes log.txt. What cannot be logged is left out: a full disk is said once, by what it stops."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class RunFolder:
    """One run's folder, open for the one process that holds its lock. Use as a context manager.

    Attributes:
        log: writes to log.txt; the run's own, so that two runs in one process do not log into each other.
        about: the content of run.json.
    """

    def __init__(self, path: Path, lock: FileLock) -> None:
        self.path = path
        self.log = logging.Logger("lownas.search", logging.INFO)
        self._lock = lock
        self.about: dict[str, Any] = {}

    @classmethod
    def open(cls, path: str | Path, *, resume: bool) -> Self:
        """Locks the folder, creating it when it is a new run's.

        Raises:
            ValueError: an existing run without `resume`, no run to resume, or another search at work on it.
            OSError: the folder cannot be written.
        """
        path = Path(path)
        exists = (path / "run.json").exists()
        if exists and not resume:
            raise _exists(path)
        if resume and not exists:
            raise ValueError(f"no run to resume in {path}: it has no run.json")
        if path.exists() and not path.is_dir():
            raise ValueError(f"the run folder {path} is a file")
        if not exists and path.is_dir() and any((path / name).exists() for name in ("results.jsonl", "study.db")):
            raise ValueError(f"{path} holds results but no run.json; name another folder (--run)")
        with _one_line_errors("write the run folder", path):
            path.mkdir(parents=True, exist_ok=True)
            lock = _locked(path)
        run = cls(path, lock)
        try:
            if not resume and (path / "run.json").exists():  # another search was faster between check and lock
                raise _exists(path)
            if resume:
                run.about = read_about(path)
            run._start_log()
        except BaseException:
            run.close()
            raise
        return run

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self.close()
        if kind is not None and not (self.path / "run.json").exists():  # the run never began: leave nothing behind
            for name in ("log.txt", "measured.jsonl", "lock"):
                (self.path / name).unlink(missing_ok=True)
            with suppress(OSError):
                self.path.rmdir()

    def close(self) -> None:
        for handler in list(self.log.handlers):
            self.log.removeHandler(handler)
            handler.close()
        with suppress(OSError):  # it goes where nothing waits in it
            (self.path / "states").rmdir()
        self._lock.release()

    def _start_log(self) -> None:
        with _one_line_errors("write", self.path / "log.txt"):
            file = _LogFile(self.path / "log.txt", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self.log.addHandler(file)

    def write_about(self, settings: SearchSettings, **facts: Any) -> None:
        """Writes run.json: the settings, versions and `facts` (JSON values)."""
        self.about = {
            "schema": SCHEMA,
            "settings": settings.to_dict(),
            "seed": settings.seed,
            "versions": versions(),
            "git_commit": git_commit(),
            **facts,
        }
        write_text(self.path / "run.json", json.dumps(self.about, indent=2, allow_nan=False) + "\n")

    @property
    def settings(self) -> SearchSettings:
        return SearchSettings.from_dict(self.about["settings"])

    @property
    def results_path(self) -> Path:
        return self.path / "results.jsonl"

    def load_results(self) -> list[EvaluationResult]:
        """All results, as they came. A broken last line (the process died writing it) is set aside."""
        set_aside_broken_tail(self.results_path, self.log)
        results = _results(self.path)
        seen: set[int] = set()
        for result in results:
            if result.trial in seen:
                raise ValueError(f"{self.results_path}: trial {result.trial} stands there twice")
            seen.add(result.trial)
        return results

    def append_result(self, result: EvaluationResult) -> None:
        self._append(self.results_path, result.to_json())

    def load_rungs(self) -> list[RungEntry]:
        """All entries at rungs, as they came."""
        return self._load("rungs.jsonl", RungEntry)

    def append_rung(self, entry: RungEntry) -> None:
        self._append(self.path / "rungs.jsonl", entry.to_json())

    def state_path(self, trial: int) -> Path:
        """Where the training of a trial that waits at a rung is kept."""
        return self.path / "states" / f"{trial}.safetensors"

    def load_measured(self) -> list[MeasuredRound]:
        """All latency measurements, as they came."""
        return self._load("measured.jsonl", MeasuredRound)

    def append_measured(self, measured: MeasuredRound) -> None:
        self._append(self.path / "measured.jsonl", measured.to_json())

    def _load(self, name: str, kind: type[_Line]) -> list[_Line]:
        """The lines of a file as records. A broken last one is set aside."""
        path = self.path / name
        set_aside_broken_tail(path, self.log)
        entries = []
        for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else (), start=1):
            try:
                entries.append(kind.from_json(line))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
        return entries

    def _append(self, path: Path, line: str) -> None:
        with _one_line_errors("write", path), path.open("ab") as file:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _locked(path: Path) -> FileLock:
    lock = FileLock(path / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another search is at work on {path}; wait for it or name another folder (--run)") from None
    return lock


def check_free(path: str | Path) -> None:
    """Raises ValueError if another search is at work on a run, as opening it would, but at once."""
    if (Path(path) / "lock").exists():
        _locked(Path(path)).release()


def _exists(path: Path) -> ValueError:
    return ValueError(f"there is already a run in {path}: go on with it (--resume) or name another folder (--run)")


def read_about(path: Path) -> dict[str, Any]:
    """The content of a run's run.json, or of that file itself. Raises ValueError if there is none or it is not ours."""
    file = path if path.is_file() else path / "run.json"
    if not file.exists():
        raise ValueError(f"{path} is not a run: it has no run.json")
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{file} is not readable: {error}") from None
    if not isinstance(about, dict) or not isinstance(about.get("settings"), dict):
        raise ValueError(f"{file} is not a run's description: it has no settings")
    if about.get("schema") != SCHEMA:
        raise ValueError(f"{file} has schema {about.get('schema')!r}; this version reads {SCHEMA}")
    return about


def read_settings(path: str | Path) -> SearchSettings:
    """The settings of the run in `path`, or in the run.json that `path` is."""
    return SearchSettings.from_dict(read_about(Path(path))["settings"])


def read_results(path: str | Path) -> list[EvaluationResult]:
    """The results of the run in `path`, in trial order, without touching anything; a broken last line is left out."""
    return sorted(_results(path), key=lambda result: result.trial)


def _results(path: str | Path) -> list[EvaluationResult]:
    file = Path(path) / "results.jsonl"
    if not file.exists():
        return []
    lines = file.read_bytes().split(b"\n")
    results = []
    for number, line in enumerate(lines, start=1):
        try:
            if line:
                results.append(EvaluationResult.from_json(line))
        except ValueError as error:
            if number == len(lines):
                break
            raise ValueError(f"{file}, line {number}: {error}") from None
    return results


def set_aside_broken_tail(path: Path, log: logging.Logger) -> None:
    """Moves a last line that was not written completely to PATH.broken, so that the next line stands on its own."""
    if not path.exists():
        return
    with _one_line_errors("read", path):
        content = path.read_bytes()
    _, _, tail = content.rpartition(b"\n")
    if not tail:
        return
    try:
        json.loads(tail)
        complete = True
    except (json.JSONDecodeError, UnicodeDecodeError):
        complete = False
    with _one_line_errors("write", path):
        if complete:  # only the newline is missing
            with path.open("ab") as file:
                file.write(b"\n")
        else:
            with path.with_name(path.name + ".broken").open("ab") as aside:
                aside.write(tail + b"\n")
                aside.flush()
                os.fsync(aside.fileno())
            log.warning("set aside the broken last line of %s (%d bytes)", path.name, len(tail))
            with path.open("r+b") as file:
                file.truncate(len(content) - len(tail))
                os.fsync(file.fileno())


def versions() -> dict[str, str | None]:
    """Versions of what decides a run's numbers; None for what is not installed."""
    found: dict[str, str | None] = {"lownas": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def git_commit() -> str | None:
    """The commit of the checkout that this package runs from ("-dirty" with changes), or None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        output = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return output.stdout.strip() or None
