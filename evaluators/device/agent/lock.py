"""One thing at a time: measurements take this machine's lock alone, trainings share it."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

WAIT_S = 120.0
"""How long to wait for another measurement on this machine to end."""
SAY_AFTER_S = 20.0
"""How long to wait in silence."""
TURN_S = 2.0  # after so long a training lets a measurement by that waits
LOCK = Path("/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir()) / "lownas.lock"
"""Held during every measurement on this machine, whoever's it is."""


@contextmanager
def alone(say: Callable[[str], None]) -> Iterator[Path]:
    """Holds the one lock that every measurement on this machine takes; gives an empty folder meanwhile.

    Trainings (`training`) share that lock, so that no measurement runs beside them either. Raises RuntimeError if
    whoever has it keeps it for longer than `WAIT_S`. `say` is told of a long wait.
    """
    base = Path(tempfile.gettempdir()) / f"lownas-{os.getuid()}"
    base.mkdir(mode=0o700, exist_ok=True)
    if base.is_symlink() or not base.is_dir() or base.stat().st_uid != os.getuid():
        raise RuntimeError(f"{base} is not a folder of this user's: remove it")
    begin = time.monotonic()
    with _lock_file() as lock:
        with _lock_file(".turn") as turn:
            _wait_for(turn, lock, say, begin)
            _wait_for(lock, lock, say, begin)  # meanwhile no training begins
        lock.truncate(0)
        lock.write(f"process {os.getpid()}")
        lock.flush()
        folder = base / "work"
        shutil.rmtree(folder, ignore_errors=True)  # what a measurement that was killed has left there
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.truncate(0)


class HoldingOff:
    """Holds off measurements while this process works hard; waits for one under way. Others may train meanwhile.

    A measurement that waits is the next one: trainings that begin later, or let it by, wait for it.
    """

    def __enter__(self) -> HoldingOff:
        with _lock_file(".turn") as turn:
            fcntl.flock(turn, fcntl.LOCK_SH)
            self._lock = _lock_file()
            fcntl.flock(self._lock, fcntl.LOCK_SH)
        self._since = time.monotonic()
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.close()

    def let_measure(self) -> None:
        """To be called now and then in long work: lets a measurement by that waits, if it is a while since."""
        if time.monotonic() - self._since >= TURN_S:
            self._lock.close()
            self.__enter__()


@contextmanager
def training() -> Iterator[None]:
    """Holds off measurements all the time; see `HoldingOff`."""
    with HoldingOff():
        yield


def _lock_file(suffix: str = "") -> TextIO:
    """The lock's file, open; whoever comes first makes it, and every user of this machine may lock it."""
    path = f"{LOCK}{suffix}"
    flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        try:
            opened = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
            os.fchmod(opened, 0o666)  # whatever the umask
        except FileExistsError:
            opened = os.open(path, flags)  # not to be made: Linux may forbid that for another user's file
    except OSError as error:
        raise RuntimeError(f"cannot open the lock of measurements {path}: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise RuntimeError(f"{path} is not a plain file: remove it")
    return os.fdopen(opened, "a+")


def _wait_for(wanted: TextIO, lock: TextIO, say: Callable[[str], None], begin: float) -> None:
    said = False
    while not _locked(wanted):
        waited = time.monotonic() - begin
        lock.seek(0)
        holder = lock.read(30)  # of a measurement; trainings, of which there may be several, leave no name
        measures = holder.startswith("process ") and holder[8:].isdigit()
        what = f"another measurement on this machine ({holder})" if measures else "trainings on this machine"
        if waited > WAIT_S:
            raise RuntimeError(f"waited {waited:.0f} s for {what} to end")
        if waited > SAY_AFTER_S and not said:
            said = True
            say(f"waiting for {what} to end")
        time.sleep(0.02)


def _locked(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
