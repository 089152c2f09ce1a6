"""Broken files of all kinds: no traceback, no hang, no flood of memory, nothing executed.

    python experiments/fuzzing/run.py --inputs 10000 [--kind onnx] [--models FOLDER]   # fuzzing.json; 90 minutes
    python experiments/fuzzing/run.py --again onnx:4711 --keep FOLDER      # one input, as it was
    python experiments/fuzzing/run.py --atheris csv --inputs 10000         # by coverage (pip install atheris)

Each input is made from its kind and its number alone. It passes if it is read, or refused in one line (ValueError,
OSError), within `SECONDS` and `MEMORY`, and if nothing is run or unpickled meanwhile.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import logging
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from lownas.experiments.fuzzing.kinds import Kind, check_line, kinds

HERE = Path(__file__).parent
SECONDS, MEMORY = 10.0, 2 * 2**30
SLICE = 200
"""Inputs that a process reads before it says how far it is."""
EXECUTES = frozenset(
    {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pickle.find_class", "socket.connect"}
)
"""Audit events that must not come while a file is read."""

_seen: list[str] = []
_watching = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event in EXECUTES:
        _seen.append(f"{event} {arguments!r:.200}")


def watch() -> None:
    """Prepares this process for reading broken files."""
    logging.getLogger("lownas").setLevel(logging.CRITICAL)
    sys.addaudithook(_audit)


class TooLong(BaseException):
    """It took longer than `SECONDS`."""


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Notes what is executed, and raises `TooLong` after a while."""
    global _watching

    def too_long(*_: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    _watching = True
    try:
        yield
    finally:
        _watching = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(kind: Kind, folder: Path) -> str:
    """ "read", "refused", or what is wrong with how it was read."""
    _seen.clear()
    try:
        with watched(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind.read(folder)
        found = "read"
    except TooLong:
        return f"BAD more than {SECONDS:g} s"
    except (ValueError, OSError) as error:
        found = "refused"
        if type(error).__module__ not in ("builtins", "lownas.search_space.graph.onnx_file"):
            return f"BAD {type(error).__module__}.{type(error).__name__}: {error!s:.300}"
        try:
            check_line(error)
        except AssertionError as wrong:
            return f"BAD {wrong}"
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"BAD {type(error).__name__}: {' '.join(str(error).split())[:200]} ({where.filename}:{where.lineno})"
    return f"BAD it runs {_seen[0]}" if _seen else found


def made(name: str, kind: Kind, seeds: list[Any], number: int) -> Any:
    """The files of an input."""
    rng = random.Random(f"{name}:{number}")
    return kind.mutate(rng.choice(seeds), rng)


def written(files: Any, folder: Path) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _most_memory() -> int:
    """The most that this process has held so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fuzz(name: str, kind: Kind, inputs: int, first: int = 0) -> dict[str, Any]:
    """Reads so many mutated files."""
    return summary(name, [read_some(kind.seeds(), name, kind, range(first, first + inputs))])


def read_some(seeds: list[Any], name: str, kind: Kind, numbers: range) -> dict[str, Any]:
    """What came of the inputs of these numbers."""
    counts, parsed, slowest = Counter[str](), 0, 0.0
    before = _most_memory()
    bad: list[dict[str, Any]] = []
    for number in numbers:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            written(made(name, kind, seeds, number), Path(folder))
            parsed += kind.parses(Path(folder))
            begin = time.perf_counter()
            found = outcome(kind, Path(folder))
            slowest = max(slowest, time.perf_counter() - begin)
        counts[found.partition(" ")[0]] += 1
        if found.startswith("BAD"):
            bad.append({"input": f"{name}:{number}", "what": found[4:]})
    most = _most_memory()
    flooded = most > max(MEMORY, before)
    return {"counts": counts, "parsed": parsed, "slowest": slowest, "bad": bad, "memory": most, "flooded": flooded}


def summary(name: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of one kind, from what came of parts of the inputs."""
    counts = sum((part["counts"] for part in parts), Counter[str]())
    bad = [each for part in parts for each in part["bad"]]
    inputs = counts.total()
    return {
        "inputs": inputs,
        "read": counts["read"],
        "refused": counts["refused"],
        "bad": len(bad),
        "past the first stage": round(sum(part["parsed"] for part in parts) / inputs, 3),
        "slowest, s": round(max(part["slowest"] for part in parts), 2),
        "memory, MB": round(max(part["memory"] for part in parts) / 2**20),
        "over the memory": any(part["flooded"] for part in parts),
        "first bad": bad[:20],
    }


class Reading:
    """Reads inputs of a kind in a process of its own."""

    kind: Kind
    seeds: list[Any]

    @classmethod
    def begin(cls, name: str, models: Path | None) -> None:
        watch()
        cls.kind = kinds(models)[name]
        cls.seeds = cls.kind.seeds()

    @classmethod
    def some(cls, name: str, numbers: range) -> dict[str, Any]:
        return read_some(cls.seeds, name, cls.kind, numbers)


def fuzz_in(workers: int, name: str, models: Path | None, inputs: int) -> dict[str, Any]:
    """As `fuzz`, by several processes."""
    slices = [range(first, min(first + SLICE, inputs)) for first in range(0, inputs, SLICE)]
    parts: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, Reading.begin, (name, models)) as pool:
        for part in pool.map(partial(Reading.some, name), slices):
            parts.append(part)
            done = summary(name, parts)
            print(time.strftime("%X"), name, json.dumps({key: done[key] for key in list(done)[:-1]}), flush=True)
    return summary(name, parts)


def by_coverage(name: str, kind: Kind, inputs: int) -> None:
    """Lets atheris mutate the first file of the seeds, by what of the code it reaches; ends the process."""
    import atheris  # type: ignore[import-not-found]

    seeds = kind.seeds()
    base = dict(seeds[0])
    endings = (".csv", ".pt", ".onnx", ".json", ".safetensors")
    target = next((file for file in base if "/x." in file or file.endswith(endings)), next(iter(base)))
    parts: list[dict[str, Any]] = []

    def one(content: bytes) -> None:
        part = read_some([{**base, target: content}], name, replace(kind, mutate=lambda files, _: files), range(1))
        if part["bad"]:
            part["bad"][0]["input"] = base64.b64encode(content[:4000]).decode()
        parts.append(part)
        if len(parts) == inputs:
            record(f"{name}, by coverage", summary(name, parts))

    with tempfile.TemporaryDirectory() as corpus:
        for number, files in enumerate(seeds):
            if target in files:
                (Path(corpus) / str(number)).write_bytes(files[target])
        atheris.instrument_all()
        atheris.Setup([sys.argv[0], corpus, f"-runs={inputs}", "-max_len=200000", "-seed=1"], one)
        atheris.Fuzz()


def record(name: str, result: dict[str, Any]) -> None:
    """Puts a result among the others."""
    path = HERE / "fuzzing.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results[name] = result
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(name, json.dumps(result, indent=1), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--kind", action="append")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--models", type=Path, help="a folder of further ONNX files to begin with")
    parser.add_argument("--again", help="KIND:NUMBER")
    parser.add_argument("--keep", type=Path, help="where the input of --again is left")
    parser.add_argument("--atheris", metavar="KIND")
    given = parser.parse_args()
    watch()
    known = kinds(given.models)
    if given.again:
        name, _, number = given.again.partition(":")
        folder = given.keep or Path(tempfile.mkdtemp())
        written(made(name, known[name], known[name].seeds(), int(number)), folder)
        print(folder)
        known[name].read(folder)
        return
    if given.atheris:
        by_coverage(given.atheris, known[given.atheris], given.inputs)
        return
    for name in given.kind or known:
        record(name, fuzz_in(given.workers, name, given.models, given.inputs))


if __name__ == "__main__":
    main()
