"""Steps that go wrong, by which the script itself is tested."""

from __future__ import annotations

import importlib
import os
import sys
import time

from lownas.experiments.gpu.record import Record
from lownas.experiments.gpu.sizes import Sizes


def works(record: Record, sizes: Sizes) -> str:
    """Finds something."""
    record.add({"number": 1.23456789, "none": float("nan")})
    return "one row"


def hangs(record: Record, sizes: Sizes) -> str:
    """Finds something, and never ends."""
    record.add({"number": 1})
    while True:
        time.sleep(60)


def raises(record: Record, sizes: Sizes) -> str:
    """Finds something, and fails."""
    record.add({"number": 1})
    raise RuntimeError("it went\nwrong")


def dies(record: Record, sizes: Sizes) -> str:
    """Finds something, and is gone without a word, as if the system had ended it."""
    record.add({"number": 1})
    print("about to die", file=sys.stderr, flush=True)
    os.kill(os.getpid(), 9)
    return "never"


def lacks(record: Record, sizes: Sizes) -> str:
    """Is never run, as packages that it needs are not there."""
    raise AssertionError("it was run")


def misses(record: Record, sizes: Sizes) -> str:
    """Learns only in the middle that a package is not there."""
    record.add({"number": 1})
    importlib.import_module("no_such_package")
    return "never"
